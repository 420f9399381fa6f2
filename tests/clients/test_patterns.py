"""The patterns of the document, in the dialects of regular expressions into whose code generators copy them."""

import json
import re
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import pytest

from tests.clients.support import needs_node, run

TITLE: Final = r"^[^\x00]*[^\x00\s][^\x00]*$"
# Without the line feed: before one at the end, `$` matches in Python and Ruby, but not in the others.
TEXTS: Final = [*map(chr, range(ord("\n"))), *map(chr, range(ord("\n") + 1, 0xD800)), "\ufeff", "\U0001f600"]
# In which dialects a title of this white space alone matches, or one of U+FEFF does not. The service goes by Python.
OTHER_SPACES: Final = {*"\x1c\x1d\x1e\x1f\x85\ufeff"}
UNICODE_SPACES: Final = {text for text in TEXTS if text.isspace()} - {*"\t\v\f\r "}

NODE: Final = """
const [patterns, texts] = JSON.parse(require("fs").readFileSync("input.json"));
const literals = patterns.map((pattern) => eval(`/${pattern.replaceAll("/", "\\\\/")}/u`));
console.log(JSON.stringify(literals.map((literal) => texts.map((text) => literal.test(text)))));
"""
RUBY: Final = """
patterns, texts = JSON.parse(File.read("input.json"))
rules = patterns.map { |pattern| Regexp.new(pattern) }
puts JSON.generate(rules.map { |rule| texts.map { |text| rule.match?(text) } })
"""


def _patterns(node: Any) -> set[str]:
    own = {node["pattern"]} if isinstance(node, dict) and isinstance(node.get("pattern"), str) else set()
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return own.union(*map(_patterns, children))


def _in_python(patterns: list[str]) -> list[list[bool]]:
    return [[bool(re.search(pattern, text)) for text in TEXTS] for pattern in patterns]


def _in_rust(patterns: list[str]) -> list[list[bool]]:
    rules = [jsonschema_rs.validator_for({"pattern": pattern}) for pattern in patterns]
    return [[rule.is_valid(text) for text in TEXTS] for rule in rules]


def _differences(patterns: list[str], found: list[list[bool]]) -> dict[str, set[str]]:
    """Returns the texts about which a dialect and Python disagree, by pattern."""
    rows = zip(patterns, found, _in_python(patterns), strict=True)
    differing = {pattern: {t for t, a, b in zip(TEXTS, *pair, strict=True) if a != b} for pattern, *pair in rows}
    return {pattern: texts for pattern, texts in differing.items() if texts}


async def test_in_python_the_pattern_of_a_title_is_the_rule_of_the_service(document: dict[str, Any]) -> None:
    [matches] = _in_python([TITLE])

    assert TITLE in _patterns(document)
    assert [text for text, match in zip(TEXTS, matches, strict=True) if match] == [
        text for text in TEXTS if text != "\0" and not text.isspace()
    ]


async def test_the_patterns_mean_the_same_in_rust_but_for_rare_white_space(document: dict[str, Any]) -> None:
    patterns = sorted(_patterns(document))

    assert _differences(patterns, _in_rust(patterns)) == {TITLE: OTHER_SPACES}


@pytest.mark.parametrize(
    ("program", "spaces"),
    [
        pytest.param(("node", "-e", NODE), OTHER_SPACES, marks=needs_node, id="JavaScript"),
        pytest.param(("ruby", "-rjson", "-e", RUBY), UNICODE_SPACES, id="Ruby"),
    ],
)
async def test_the_patterns_mean_the_same_in_another_language_but_for_rare_white_space(
    workspace: Path, document: dict[str, Any], program: tuple[str, ...], spaces: set[str]
) -> None:
    patterns = sorted(_patterns(document))
    (workspace / "input.json").write_text(json.dumps([patterns, TEXTS]))

    report = await run(workspace, *program)

    assert report.returncode == 0, report.stdout
    assert _differences(patterns, json.loads(report.stdout)) == {TITLE: spaces}

"""The defects of the `*.toml` files beside this one, and the table of the tests that found them."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
TABLE: Final = ROOT / "docs/mutants.md"

_HEAD: Final = """\
# Mutants

Each row is a defect of one change in the code, and a test that fails with it. `make mutants` plants the defects of
[tests/mutants](../tests/mutants) one after another in a copy of the project, and writes this table.

| File | Defect | Test |
|---|---|---|
"""
_ROW: Final = re.compile(r"\| `(.+)` \| (.+) \| `(.+)` \|")


class Mutant(NamedTuple):
    """A defect: `now` takes the place of `was` in `file`. One of `tests`, files or directories, must fail with it."""

    name: str
    file: str
    was: str
    now: str
    tests: list[str]


def load() -> list[Mutant]:
    """Returns all mutants, in the order of the files. Raises SystemExit for one that cannot be planted."""
    documents = [tomllib.loads(path.read_text()) for path in sorted(Path(__file__).parent.glob("*.toml"))]
    mutants = [Mutant(**entry) for document in documents for entry in document["mutant"]]
    for mutant in mutants:
        times = (ROOT / mutant.file).read_text().count(mutant.was)
        if times != 1:
            message = f"{mutant.name}: its text occurs {times} times in {mutant.file}, instead of once."
            raise SystemExit(message)
    return mutants


def read_table() -> dict[str, str]:
    """Returns the test that found each mutant last time, by the name of the mutant."""
    text = TABLE.read_text() if TABLE.exists() else ""
    return {name: test for _, name, test in _ROW.findall(text)}


def write_table(found: Iterable[tuple[Mutant, str]]) -> None:
    """Write the mutants and the tests that found them to `docs/mutants.md`."""
    rows = [f"| `{mutant.file}` | {mutant.name} | `{test}` |\n" for mutant, test in found]
    TABLE.write_text(_HEAD + "".join(rows))

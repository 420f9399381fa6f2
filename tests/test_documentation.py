"""The documentation is correct: its commands are run, and its tables are compared with the code."""

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio
import httpx
import playwright
import pytest
from dotenv import dotenv_values
from fastapi.routing import iter_route_contexts
from pydantic import ValidationError

from app.core import errors
from app.core.config import Settings
from app.main import create_app
from app.routes.tools import TOOLS
from app.schemas.task import TaskQuery, TaskResponse
from tests.conftest import Serve
from tests.support import SECRET, make_settings, serving, token

ROOT: Final = Path(__file__).parents[1]
README: Final = (ROOT / "README.md").read_text()
API: Final = (ROOT / "docs/api.md").read_text()
AUTH: Final = (ROOT / "docs/auth.md").read_text()
AGENTS: Final = (ROOT / "docs/agents.md").read_text()
ENV_EXAMPLE: Final = (ROOT / ".env.example").read_text()
DOCUMENTS: Final = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not any(part.startswith((".", "node_modules")) for part in path.relative_to(ROOT).parts)
]
GUIDES: Final = ("CONTRIBUTING.md", "docs/extend.md")  # for those who change the code

_SHOWN_ADDRESS: Final = "http://127.0.0.1:8000"
_COMMANDS: Final = re.compile(r"^```sh\n(.*?)^```\n(?:```http\n(.*?)^```)?", re.DOTALL | re.MULTILINE)
_FENCED: Final = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK: Final = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
# A path below the root or backend/app, unless it has a placeholder, as in `tests/routes/test_<field>.py`.
_PATH: Final = re.compile(
    r"(?<![\w/.])(?:backend|tests|docs|examples|alembic|benchmarks|deploy|core|http|models|routes|schemas|server|services)"
    r"/[\w./*-]++(?![<…])|(?<=`)[\w.-]+\.(?:example|md|py|sh|txt)(?=`)"
)
_VOLATILE: Final = re.compile(
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}|\d{4}-\d\d-\d\dT[\d:.]+Z|(?<=cursor=)[\w-]+"
)


class Example(NamedTuple):
    """A ```sh block that uses curl, and the ```http block below it: status, some of the headers, body."""

    commands: str
    shown: str

    @property
    def status(self) -> str:
        return self.shown[9:12]


EXAMPLES: Final = {
    name: [Example(*found) for found in _COMMANDS.findall((ROOT / name).read_text()) if "curl " in found[0]]
    for name in ("README.md", "docs/api.md", "docs/auth.md", "docs/agents.md")
}
RECIPES: Final = dict(re.findall(r"^### (.*?)\n.*?^```sh\n(.*?)^```", AUTH, re.DOTALL | re.MULTILINE))
REPLIES: Final = [
    pytest.param(document, number, id=f"{document} {example.status} {number}")
    for document, examples in EXAMPLES.items()
    for number, example in enumerate(examples)
    if example.shown
]


def read_table(document: str, first_column: str) -> list[list[str]]:
    """Returns the cells of the table whose first heading is `first_column`, without quotation as code."""
    rows = document.partition(f"\n| {first_column} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split(" |")] for row in rows]


class TestCommands:
    @pytest.fixture(scope="class")
    async def agents_url(self, configure: Callable[..., Settings], serve: Serve) -> AsyncIterator[str]:
        async with serve(configure(auth_jwt_secret=SECRET, mcp="on")) as url:
            yield url

    @pytest.fixture(scope="class")
    async def printed(
        self, base_url: str, secured_url: str, agents_url: str, tmp_path_factory: pytest.TempPathFactory
    ) -> dict[tuple[str, int], str]:
        """The output of each document's commands, which run one after the other in one shell."""
        directory = tmp_path_factory.mktemp("printed")
        printed = {}
        urls = {"docs/auth.md": secured_url, "docs/agents.md": agents_url}
        async with serving(make_settings("postgresql://postgres@127.0.0.1:1/postgres")) as unready_url:
            for document, examples in EXAMPLES.items():
                url = urls.get(document, base_url)
                commands = "".join(
                    f"{{\n{_with_address(example, unready_url if example.status == '503' else url)}}} >{number}\n"
                    for number, example in enumerate(examples)
                )
                environment = {**os.environ, "AUTH_JWT_SECRET": SECRET, "PYTHONPATH": str(ROOT / "backend")}
                await anyio.run_process(["bash", "-euo", "pipefail", "-c", commands], cwd=directory, env=environment)
                for number in range(len(examples)):
                    output = (directory / str(number)).read_bytes().decode()
                    printed[document, number] = output.replace("reader-", "").replace("\r\n", "\n")
        return printed

    @pytest.mark.parametrize(("document", "number"), REPLIES)
    async def test_a_documented_reply_equals_the_real_one(
        self, printed: Mapping[tuple[str, int], str], document: str, number: int
    ) -> None:
        shown = EXAMPLES[document][number].shown

        assert _comparable(printed[document, number], shown) == _comparable(shown, shown)

    def test_the_reply_of_every_command_is_shown_and_every_kind_of_reply(self) -> None:
        examples = [example for examples in EXAMPLES.values() for example in examples]

        assert [example for example in examples if ("curl -i" in example.commands) != bool(example.shown)] == []
        assert {example.status for example in examples if example.shown} >= {
            *("200", "201", "204", "304", "400", "401", "403", "404", "405", "412", "413", "415", "422", "503")
        }

    @pytest.mark.parametrize(
        ("language", "interpreter", "refusal"),
        [
            ("js", [str(Path(playwright.__file__).parent / "driver/node"), "--input-type=module"], "Please sign in."),
            ("python", [sys.executable, "-"], "401 Unauthorized"),
        ],
    )
    async def test_the_documented_loop_over_pages_lists_every_task_or_says_why_not(
        self,
        client: httpx.AsyncClient,
        secured_url: str,
        tasks: str,
        language: str,
        interpreter: list[str],
        refusal: str,
    ) -> None:
        for number in range(5):
            await client.post(tasks, json={"title": f"Task {number}"})
        (code,) = re.findall(rf"^```{language}\n(.*?)^```", API, re.DOTALL | re.MULTILINE)
        code = code.replace(f"{_SHOWN_ADDRESS}/api/grace/tasks", f"ADDRESS{tasks}")

        finished, refused = [
            await anyio.run_process(interpreter, input=code.replace("ADDRESS", url).encode(), check=False)
            for url in (str(client.base_url), secured_url)
        ]

        assert finished.stdout.decode().split("\n") == ["Task 4", "Task 3", "Task 2", "Task 1", "Task 0", ""]
        assert refusal in refused.stderr.decode()

    async def test_the_documented_agent_in_python_prints_what_is_shown(self, agents_url: str, user: str) -> None:
        [(code, shown)] = re.findall(r"^```python\n([^`]*)^```\n```text\n([^`]*)^```", AGENTS, re.MULTILINE)
        code = code.replace(_SHOWN_ADDRESS, agents_url)

        finished = await anyio.run_process([sys.executable, "-"], input=code.encode(), env={"TOKEN": token(user)})

        assert finished.stdout.decode() == shown


def _with_address(example: Example, address: str) -> str:
    """Returns the commands with the address of the service replaced, and with users that no other test has."""
    changed = example.commands.replace(_SHOWN_ADDRESS, address).replace("/api/", "/api/reader-")
    return changed.replace("make -s token U=", f"{sys.executable} -m app.token reader-")


def _comparable(reply: str, shown: str) -> tuple[str, str]:
    """Returns the status code, and the headers in `shown` with the body. A number replaces each id, time and cursor.
    Equal values get equal numbers. A reply may be shown without a field of the task that was added later.
    """
    names = [line.partition(": ")[0] for line in shown.partition("\n\n")[0].splitlines()[1:]]
    head, _, body = reply.partition("\n\n")
    headers = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    for added in TaskResponse.model_fields:
        if f'"{added}":' not in shown:
            body = re.sub(rf',"{added}":("[^"]*"|\[[^]]*]|[^,}}]*)', "", body)
    content = "\n".join([*(f"{name}: {headers[name]}" for name in names), body.strip()])
    seen: dict[str, str] = {}
    return reply[9:12], _VOLATILE.sub(lambda found: seen.setdefault(found[0], f"<{len(seen)}>"), content)


class TestSettings:
    def test_the_readme_lists_every_setting_with_its_default_and_meaning(self) -> None:
        expected = [
            [name.upper(), _text(field.default) or "unset", field.description]
            for name, field in Settings.model_fields.items()
        ]

        assert read_table(README, "Name") == expected

    def test_env_example_changes_no_setting_and_lists_each_with_its_meaning_and_default(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listed = re.findall(r"^# (.*)\n#([A-Z_]+)=", ENV_EXAMPLE, re.MULTILINE)
        assert listed == [(field.description, name.upper()) for name, field in Settings.model_fields.items()]
        assert dotenv_values(stream=StringIO(ENV_EXAMPLE)) == {}

        example = re.sub(r"^#(?=[A-Z])", "", ENV_EXAMPLE, flags=re.MULTILINE)
        example = example.replace("AUTH_JWT_SECRET=", f"AUTH_JWT_SECRET={SECRET}")  # other settings require it
        example = example.replace("//user:", "//app:")  # the example itself is refused
        loaded = _loaded(example, monkeypatch).model_dump()
        assert loaded.pop("auth_jwt_secret").get_secret_value() == SECRET
        for name in ("database_url", "database_url_unpooled"):  # examples, as there is no default
            assert "neon.tech" in loaded.pop(name).get_secret_value()
        assert loaded == {name: Settings.model_fields[name].default for name in loaded}


def _text(default: Any) -> str:
    return ",".join(default) if isinstance(default, tuple) else str(default or "")


def _loaded(env_file: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in dotenv_values(stream=StringIO(env_file)).items():
        monkeypatch.setenv(name, str(value))
    return Settings(_env_file=None)


class TestRecipes:
    @pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
    def test_the_settings_of_a_recipe_are_accepted_and_turn_authentication_on(
        self, recipe: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = _loaded(re.sub("replace-this-[a-z0-9-]+", SECRET, recipe), monkeypatch)

        assert settings.authenticates
        assert {name.lower() for name in dotenv_values(stream=StringIO(recipe))} == settings.model_fields_set

    def test_the_documented_secret_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValidationError, match="looks like a placeholder"):
            _loaded(RECIPES["A secret of your own"], monkeypatch)


class TestTables:
    async def test_the_readme_lists_every_route_with_its_status(self, client: httpx.AsyncClient) -> None:
        app = create_app(make_settings("postgresql://postgres@127.0.0.1/postgres"))
        expected = {
            f"{method.upper()} {path}": min(operation["responses"])
            for path, operations in app.openapi()["paths"].items()
            for method, operation in operations.items()
        }
        for path in [str(route.path) for route in iter_route_contexts(app.routes) if not route.include_in_schema]:
            page = await client.get(path.replace("{name}", "swagger-ui.css"))
            expected[f"GET {path}"] = str(page.status_code)

        assert {call: status for call, _, status in read_table(README, "Call")} == expected

    def test_the_parameters_of_lists_are_as_listed(self) -> None:
        expected = [
            (name, _text(field.get_default(call_default_factory=True)))
            for name, field in TaskQuery.model_fields.items()
        ]

        assert [(name, default) for name, default, _ in read_table(API, "Parameter")] == expected

    def test_the_fields_of_tasks_are_as_listed(self) -> None:
        assert [name for name, *_ in read_table(API, "Field")] == [*TaskResponse.model_fields]

    def test_the_tools_are_as_listed_with_their_hints(self) -> None:
        """An argument for a field that was added later need not be listed."""
        listed = {call.partition("(")[0]: (call, hint) for call, _, hint in read_table(AGENTS, "Tool")}

        assert [*listed] == [*TOOLS]
        for name, tool in TOOLS.items():
            call, hint = listed[name]
            arguments = {argument.rstrip("?"): argument for argument in call[len(name) + 1 : -1].split(", ")}
            definition = tool.definition.model_dump(by_alias=True, exclude_none=True)
            schema, hints = definition["inputSchema"], definition.get("annotations", {})
            assert arguments.keys() <= schema["properties"].keys()
            assert [each for each, shown in arguments.items() if shown == each] == schema.get("required", [])
            assert hint == ", ".join(f"{name}: {json.dumps(value)}" for name, value in hints.items())

    def test_the_types_of_errors_are_as_listed(self) -> None:
        classes = [each for each in vars(errors).values() if hasattr(each, "kind")]
        expected = {(f"urn:problem-type:{each.kind}", str(each.status)) for each in classes}

        assert {(kind, status) for kind, status, _ in read_table(API, "Type")} == expected


class TestDocuments:
    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
    def test_every_link_has_a_target(self, document: Path) -> None:
        links = _LINK.findall(_FENCED.sub("", document.read_text()))

        assert [link for link in links if not _has_target(document, *link)] == []

    def test_every_test_that_security_md_names_exists(self) -> None:
        references = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text())

        assert references
        assert [
            (path, name) for path, name in references if f"class {name}" * bool(name) not in (ROOT / path).read_text()
        ] == []

    @pytest.mark.parametrize("guide", GUIDES)
    def test_every_file_and_make_target_that_a_guide_names_exists(self, guide: str) -> None:
        text = (ROOT / guide).read_text()
        in_recipes = "".join(path.read_text() for path in ROOT.glob("examples/*.patch"))
        made = {*re.findall(r"^\+\+\+ b/(?:backend/app/)?(.+)$", in_recipes, re.MULTILINE)}
        paths = {path.rstrip(".").removeprefix("backend/app/") for path in _PATH.findall(text)}
        places = (ROOT, ROOT / "backend/app")

        assert [path for path in sorted(paths - made) if not any(any(place.glob(path)) for place in places)] == []
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        blocks = "".join(_FENCED.findall(text))
        assert {*re.findall(r"`make ([a-z-]+)", text), *re.findall(r"^make ([a-z-]+)", blocks, re.MULTILINE)} <= {
            *targets
        }

    def test_every_make_target_is_explained(self) -> None:
        listed = subprocess.run(
            ["make", "--silent", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        targets = [line.split()[0] for line in listed.stdout.splitlines()]
        explained = README + (ROOT / "CONTRIBUTING.md").read_text()

        assert "run" in targets
        assert [target for target in targets if f"`make {target}" not in explained] == []

    def test_every_decision_is_in_the_index_and_has_its_four_parts(self) -> None:
        decisions = {path.name: path for path in sorted((ROOT / "docs/adr").glob("[0-9]*.md"))}
        index = re.findall(r"^- \[(.*)\]\((.*)\)$", (ROOT / "docs/adr/README.md").read_text(), re.MULTILINE)

        assert [name for _, name in index] == [*decisions]
        assert [title for title, name in index if not decisions[name].read_text().startswith(f"# {title}\n")] == []
        parts = ["Context", "Decision", "Consequences", "Alternatives"]
        assert [name for name, path in decisions.items() if _headings(path) != parts] == []


def _has_target(document: Path, path: str, fragment: str) -> bool:
    target = document.parent / path if path else document
    return target.exists() and (not fragment or fragment in map(_anchor, _headings(target)))


def _headings(document: Path) -> list[str]:
    return re.findall(r"^##+ (.*)$", _FENCED.sub("", document.read_text()), re.MULTILINE)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")

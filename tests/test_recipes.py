"""The recipes of docs/extend.md. Each is a patch in examples that applies to the tree and passes checks and tests."""

import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from math import inf
from pathlib import Path
from time import sleep
from typing import Any, Final

import psutil
import pytest

from tests.copies import ENVIRONMENT, copy_tree, git
from tests.recipes import main
from tests.support import new_database

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs/extend.md"
RECIPES: Final = sorted((ROOT / "examples").glob("*.patch"))
NAMES: Final = [path.stem for path in RECIPES]
BUDGETS: Final = {"priority": 40, "due-date": 40, "tags": 40, "projects-session": 100}  # lines of the application
# Besides those that the recipe adds or changes: what may go wrong with any recipe, and takes few seconds.
TESTS: Final = (
    "tests/core/database/test_expand_contract.py::TestRevisions",
    "tests/core/database/test_migrations.py::TestSchema",
    "tests/core/database/test_partitions.py",
    "tests/http/test_access.py",
    "tests/routes/test_docs.py::TestDocument",
    "tests/test_documentation.py",
)
CHECK: Final = ("make", "--assume-old=install", "check")
PYTEST: Final = (".venv/bin/python", "-m", "pytest", "-q", "-m", "not ci")
REVISION: Final = 'Revision ID: {0}\nRevises: {1}\nrevision = "{0}"\ndown_revision = "{1}"\n'
_MODULE: Final = re.compile(r"tests/(?:\w+/)*test_\w+\.py")
_TIMEOUT: Final = 300  # seconds for one command
_MOVED: Final = "The recipe {0} no longer applies: {1}. `make recipes` refreshes it, or says what to mend."
_FAILED: Final = """\
The recipe {0} applies, but fails:
{1}
`make recipes R={0}` opens it in .data/recipes/{0}. Mend it there with this command, then run `make recipes`.

{2}"""


def apply(copy: Path, patch: Path) -> None:
    """Apply the patch as its reader does. Fails with the files and hunks that the tree no longer has."""
    applied = git(copy, "apply", patch, check=False)
    if applied.returncode:
        reasons = re.findall(r"^error: (?!.*: patch does not apply$)(.*)$", applied.stderr, re.MULTILINE)
        where = re.sub(r"patch failed: ([^,]+):(\d+)", r"\1 (the hunk at line \2)", ", ".join(reasons))
        pytest.fail(_MOVED.format(patch.stem, where), pytrace=False)


def files_of(patch: Path) -> dict[str, list[str]]:
    """The lines of the hunks of each file, with their first character."""
    parts = re.findall(r"^diff --git a/\S+ b/(\S+)\n(.*?)(?=^diff |\Z)", patch.read_text(), re.DOTALL | re.MULTILINE)
    return {file: [line for line in part.partition("\n@@")[2].splitlines()[1:] if line] for file, part in parts}


def cost_of(patch: Path) -> int:
    """The number of lines under backend/app that the recipe adds or removes."""
    lines = [line for file, lines in files_of(patch).items() if file.startswith("backend/app/") for line in lines]
    return sum(line.startswith(("+", "-")) for line in lines)


def run(copy: Path, *command: str, **environment: str) -> str:
    """Returns the end of the output of a command that failed, else nothing. No process outlives it."""
    options: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "start_new_session": True,
    }
    with subprocess.Popen(command, cwd=copy, env=ENVIRONMENT | environment, **options) as process:
        try:
            output, _ = process.communicate(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            return f"This did not end within {_TIMEOUT} s, or has left a process behind."
        finally:
            _kill(process.pid, copy)
    return "\n".join(output.splitlines()[-40:]) if process.returncode else ""


def _kill(group: int, copy: Path) -> None:
    """A PostgreSQL has a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    for file in copy.rglob("postmaster.pid"):
        with suppress(ProcessLookupError):
            os.kill(int(file.read_text().split()[0]), signal.SIGQUIT)


@pytest.mark.timeout(40)
@pytest.mark.parametrize(
    ("command", "timeout", "end"),
    [
        ("sleep 60 >/dev/null 2>&1 & echo $! >pid", 30, ""),
        ("sleep 60 & echo $! >pid; exit 1", 1, "This did not end within 1 s, or has left a process behind."),
    ],
    ids=["quiet", "with the output"],
)
def test_no_process_of_a_command_outlives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, command: str, timeout: int, end: str
) -> None:
    monkeypatch.setattr("tests.test_recipes._TIMEOUT", timeout)

    assert run(tmp_path, "sh", "-c", command) == end

    with suppress(psutil.NoSuchProcess):
        left = psutil.Process(int((tmp_path / "pid").read_text()))
        while left.status() != psutil.STATUS_ZOMBIE:
            sleep(0.05)


@pytest.mark.ci
@pytest.mark.timeout(2 * _TIMEOUT + 60)
@pytest.mark.parametrize("patch", RECIPES, ids=NAMES)
def test_a_recipe_applies_and_passes_make_check_and_its_tests(patch: Path, dsn: str, tmp_path: Path) -> None:
    copy = copy_tree(ROOT, tmp_path / patch.stem)
    apply(copy, patch)
    modules = sorted({*TESTS, *filter(_MODULE.fullmatch, files_of(patch))})
    with new_database(dsn, re.sub(r"\W", "_", f"recipe {patch.stem}")) as database:
        environment = {"TEST_DATABASE_URL": database, "PYTEST_DEBUG_TEMPROOT": str(copy / ".data")}
        commands = (CHECK, (*PYTEST, *modules))
        failed = next(((command, end) for command in commands if (end := run(copy, *command, **environment))), None)
    if failed:
        pytest.fail(_FAILED.format(patch.stem, " ".join(failed[0]), failed[1]), pytrace=False)


@pytest.mark.parametrize("patch", RECIPES, ids=NAMES)
class TestPatches:
    def test_a_recipe_is_short_and_has_everything_in_its_place(self, patch: Path) -> None:
        files = files_of(patch)

        assert cost_of(patch) <= BUDGETS.get(patch.stem, inf)
        assert {"docs/api.md", "docs/openapi.json"} <= files.keys()
        assert [*filter(_MODULE.fullmatch, files)]
        if any(file.startswith("backend/app/models/") for file in files):
            assert any(file.startswith("alembic/versions/") for file in files)
        added = [line for lines in files.values() for line in lines if line.startswith("+")]
        assert [line for line in added if re.search(r"/(tmp|work)\b", line)] == []

    def test_its_section_says_how_long_it_is_and_shows_only_lines_that_it_has(self, patch: Path) -> None:
        section = sections()[patch.stem]
        kept = [[line[1:].strip() for line in lines if line[0] != "-"] for lines in files_of(patch).values()]
        results = [[line.removeprefix('op.execute(r"""') for line in lines] for lines in kept]
        blocks = re.findall(r"^```(?:python|sql)\n(.*?)^```", section, re.DOTALL | re.MULTILINE)

        assert re.findall(r"\b(\d+) changed lines\b", section) == [str(cost_of(patch))]
        assert blocks
        assert [block for block in blocks if not any(has_lines(result, block) for result in results)] == []


def sections() -> dict[str, str]:
    """The sections of the page whose first paragraph links to a patch, by its name."""
    parts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    first = [re.search(r"\(\.\./examples/([\w-]+)\.patch\)", part.split("\n\n")[1]) for part in parts]
    return {found[1]: part for found, part in zip(first, parts, strict=True) if found}


def has_lines(result: list[str], block: str) -> bool:
    """Whether the lines of the block are among those of a file, in their order."""
    rest = iter(result)
    return all(line in rest for line in map(str.strip, block.splitlines()) if line)


def test_lines_of_a_block_have_to_be_in_the_file_in_its_order() -> None:
    lines = ["def a() -> None:", "b = 1", "c = 2"]

    assert has_lines(lines, "def a() -> None:\n\n    c = 2\n")
    assert not has_lines(lines, "c = 2\nb = 1\n")
    assert not has_lines(lines, "b = 2\n")


def test_every_recipe_has_a_section_and_every_section_a_recipe() -> None:
    assert sorted(sections()) == NAMES


def change(directory: Path, line: str, text: str) -> None:
    code = (directory / "code").read_text()
    assert line in code
    (directory / "code").write_text(code.replace(line, text))


class TestRefreshing:
    """`make recipes` in a small project, whose document changes with every change of its code."""

    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        """It has one recipe, which replaces the line 10."""
        root = tmp_path / "project"
        (root / "docs").mkdir(parents=True)
        (root / "alembic/versions").mkdir(parents=True)
        (root / "docs/openapi.json").touch()
        (root / "code").write_text("".join(f"line {number:02}\n" for number in range(1, 21)))
        (root / "alembic/versions/first.py").write_text(REVISION.format("0001", "0000"))
        (root / ".gitignore").write_text(".data\n.venv\n")
        (root / "Makefile").write_text("openapi: install\n\tcksum code >docs/openapi.json\n")
        assert main(root, "ten") == 0
        copy = root / ".data/recipes/ten"
        change(copy, "line 10", "ten")
        (copy / "alembic/versions/recipe.py").write_text(REVISION.format("0002", "0001"))
        assert main(root, "ten") == 0
        shutil.rmtree(root / ".data")
        for command in (("init",), ("add", "--all"), ("commit", "--message", "All")):
            git(root, *command)
        return root

    @pytest.mark.parametrize("where", ["repository", "archive"])
    def test_a_change_of_neighbouring_lines_needs_one_command_and_a_second_changes_nothing(
        self, project: Path, where: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if where == "archive":
            shutil.rmtree(project / ".git")
        change(project, "line 01", "line 00\nline 01")
        change(project, "line 08", "eight")
        patch = project / "examples/ten.patch"
        with pytest.raises(pytest.fail.Exception) as failure:
            apply(copy_tree(project, project / ".data/before"), patch)
        assert str(failure.value) == (
            "The recipe ten no longer applies: code (the hunk at line 7). "
            "`make recipes` refreshes it, or says what to mend."
        )

        assert [main(project), main(project)] == [0, 0]

        printed = capsys.readouterr().out.splitlines()[-2:]
        assert printed == ["ten: wrote examples/ten.patch.", "ten: unchanged."]
        assert not (project / ".data/recipes/ten").exists()
        copy = copy_tree(project, project / ".data/after")
        apply(copy, patch)
        assert (copy / "code").read_text() == (project / "code").read_text().replace("line 10", "ten")
        assert git(copy, "apply", "--reverse", patch).returncode == 0

    @pytest.mark.parametrize("where", ["repository", "archive"])
    def test_a_conflict_stays_open_until_it_is_mended(
        self, project: Path, where: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if where == "archive":
            shutil.rmtree(project / ".git")
        change(project, "line 10", "TEN")
        before = (project / "examples/ten.patch").read_text()

        assert [main(project), main(project)] == [1, 1]

        conflict = {"repository": "code", "archive": "code.rej, ten.patch.rej"}[where]
        message = f"conflicts in {conflict}. Mend them in .data/recipes/ten, and run `make recipes` again."
        assert capsys.readouterr().out.splitlines()[-2:] == [f"ten: {message}"] * 2
        assert (project / "examples/ten.patch").read_text() == before
        copy = project / ".data/recipes/ten"
        (copy / "code").write_text((project / "code").read_text().replace("TEN", "ten"))
        for rejected in copy.glob("*.rej"):
            rejected.unlink()
        assert main(project) == 0
        assert "\n-TEN\n+ten\n" in (project / "examples/ten.patch").read_text()

    def test_an_open_recipe_gets_the_changes_of_the_tree_and_no_work_is_overwritten(
        self, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        patch, copy = project / "examples/ten.patch", project / ".data/recipes/ten"
        main(project, "ten")
        change(project, "line 01", "one")
        change(copy, "ten", "TEN")

        assert main(project) == 0
        assert (copy / "code").read_text() == (project / "code").read_text().replace("line 10", "TEN")
        assert "\n-line 10\n+TEN\n" in patch.read_text()

        change(copy, "TEN", "Ten")
        patch.write_text("of a colleague")
        assert main(project) == 1
        assert "have both changed since it was opened. Remove one of them." in capsys.readouterr().out
        assert patch.read_text() == "of a colleague"
        assert "Ten\n" in (copy / "code").read_text()

    def test_the_revision_of_a_recipe_follows_the_newest_of_the_tree(self, project: Path) -> None:
        (project / "alembic/versions/second.py").write_text(REVISION.format("0002", "0001"))

        assert main(project, "ten") == 0

        revision = project / ".data/recipes/ten/alembic/versions/recipe.py"
        assert revision.read_text() == REVISION.format("0003", "0002")

    def test_a_name_that_leads_out_of_the_folder_is_refused(
        self, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """`..` would commit what is in the project, and `../x` would write a copy and a patch elsewhere."""
        change(project, "line 01", "one")
        names = ["..", ".", "../x", str(project.parent / "x"), "a/b", "a b", ".x", "-x", "ten.patch"]

        assert [main(project, name) for name in names] == [1] * len(names)

        refusal = "this is no name for a recipe. Take letters, digits and hyphens, as in due-date."
        assert capsys.readouterr().out.splitlines()[-len(names) :] == [f"{name}: {refusal}" for name in names]
        assert git(project, "status", "--porcelain").stdout == " M code\n"
        assert not (project / ".data").exists()
        assert [*project.parent.iterdir()] == [project]

    def test_no_change_of_a_file_that_is_gone_is_lost(self, project: Path) -> None:
        (project / "code").rename(project / "moved")
        (project / "Makefile").write_text("openapi: install\n")

        assert [main(project), main(project)] == [1, 1]

        rejected = (project / ".data/recipes/ten/ten.patch.rej").read_text()
        assert "\nerror: code: No such file or directory\n" in rejected
        assert "\n+ten\n" in rejected

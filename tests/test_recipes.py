"""The recipes of docs/extend.md. Each is a patch in examples that applies to the tree and passes checks and tests."""

import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from tests.copies import ENVIRONMENT, copy_tree, git
from tests.support import new_database

ROOT: Final = Path(__file__).parents[1]
RECIPES: Final = sorted((ROOT / "examples").glob("*.patch"))
# Besides those that the recipe adds or changes: what may go wrong with any recipe, and takes few seconds.
TESTS: Final = (
    "tests/core/database/test_expand_contract.py::TestRevisions",
    "tests/core/database/test_migrations.py::TestSchema",
    "tests/http/test_access.py",
    "tests/routes/test_docs.py::TestDocument",
    "tests/test_documentation.py",
)
CHECK: Final = ("make", "--assume-old=install", "check")
PYTEST: Final = (".venv/bin/python", "-m", "pytest", "-q", "-m", "not ci")
_TIMEOUT: Final = 300  # seconds for one command
_MOVED: Final = "The recipe {0} no longer applies: {1}. `make recipes` refreshes it, or says what to mend."
_FAILED: Final = """\
The recipe {0} applies, but fails:
{1}
`make recipes R={0}` opens it in .data/recipes/{0}. Mend it there with this command, then run `make recipes`.

{2}"""


def refusal(copy: Path, patch: Path) -> str:
    """Apply the patch as its reader does. Returns the files and hunks that have changed, empty if it applies."""
    output = git(copy, "apply", patch, check=False).stderr
    hunks = re.findall(r"^error: patch failed: (.+):(\d+)$", output, re.MULTILINE)
    return ", ".join(f"{file} (the hunk at line {line})" for file, line in hunks) or output.strip()


def modules_of(patch: str) -> set[str]:
    """The test modules that a recipe adds or changes."""
    return set(re.findall(r"^\+\+\+ b/(tests/(?:\w+/)*test_\w+\.py)$", patch, re.MULTILINE))


def run(copy: Path, *command: str, **environment: str) -> str:
    """Returns the end of the output of a command that failed, else nothing. No process outlives a timeout."""
    process = subprocess.Popen(
        command,
        cwd=copy,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=_TIMEOUT)
    except BaseException:
        _kill(process.pid, copy)
        raise
    return "\n".join(output.splitlines()[-40:]) if process.returncode else ""


def _kill(group: int, copy: Path) -> None:
    """A PostgreSQL has a session of its own."""
    os.killpg(group, signal.SIGKILL)
    for file in copy.rglob("postmaster.pid"):
        with suppress(ProcessLookupError):
            os.kill(int(file.read_text().split()[0]), signal.SIGQUIT)


@pytest.mark.ci
@pytest.mark.timeout(2 * _TIMEOUT + 60)
@pytest.mark.parametrize("patch", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_applies_and_passes_make_check_and_its_tests(patch: Path, dsn: str, tmp_path: Path) -> None:
    copy = copy_tree(ROOT, tmp_path / patch.stem)
    if hunks := refusal(copy, patch):
        pytest.fail(_MOVED.format(patch.stem, hunks), pytrace=False)
    with suppress(FileNotFoundError):
        shutil.copytree(ROOT / ".mypy_cache", copy / ".mypy_cache")
    modules = sorted({*TESTS, *modules_of(patch.read_text())})
    with new_database(dsn, "recipe") as database:
        for command in (CHECK, (*PYTEST, *modules)):
            output = run(copy, *command, TEST_DATABASE_URL=database, PYTEST_DEBUG_TEMPROOT=str(copy / ".data"))
            if output:
                pytest.fail(_FAILED.format(patch.stem, " ".join(command), output), pytrace=False)

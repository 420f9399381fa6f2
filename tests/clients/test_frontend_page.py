"""The files that docs/frontend.md shows. They are compiled with types from the running service, and run."""

import re
from pathlib import Path
from typing import Final

import pytest

from tests.clients.support import FOLDER, needs_node, run
from tests.support import token

pytestmark = needs_node

PAGE: Final = (FOLDER.parents[1] / "docs/frontend.md").read_text()
FILES: Final = {
    name: text for text, name in re.findall(r"^```tsx?\n(// (\S+)\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
}
TYPES: Final = re.findall(r"^npx (openapi-typescript) (\S+) (--output) (\S+)$", PAGE, re.MULTILINE)


@pytest.fixture
async def project(workspace: Path, secured_url: str) -> Path:
    """A project with the files of the page."""
    folder = workspace / "frontend"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("1000 * seconds", "seconds"))  # so that retries wait milliseconds
    [(program, url, *options)] = TYPES
    generated = await run(folder, program, url.replace("http://127.0.0.1:8000", secured_url), *options)
    assert generated.returncode == 0, generated.stdout
    return folder


async def test_the_files_of_the_page_compile_strictly_and_the_client_survives_faults(
    project: Path, secured_url: str, user: str
) -> None:
    compiler = await run(project, "tsc")
    assert compiler.returncode == 0, compiler.stdout

    program = await run(project, "node", "client.js", secured_url, user, token(user, exp=1), token(user))

    assert program.returncode == 0, program.stdout


def test_the_client_has_at_most_80_lines_and_every_code_block_is_a_file() -> None:
    assert FILES["lib/tasks.ts"].count("\n") <= 80
    assert len(FILES) == len(re.findall(r"^```(?!sh$)\w+$", PAGE, re.MULTILINE))

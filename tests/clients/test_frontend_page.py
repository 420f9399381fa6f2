"""The files that docs/frontend.md shows. They are compiled with types from the running service, and run."""

import re
import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.clients.support import FOLDER, needs_node, run
from tests.clients.test_better_auth import better_auth, service_of
from tests.support import token

pytestmark = needs_node

PAGE: Final = (FOLDER.parents[1] / "docs/frontend.md").read_text()
FILES: Final = {
    name: text for text, name in re.findall(r"^```tsx?\n(// (\S+)\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
}
TYPES: Final = re.findall(r"^npx --yes (openapi-typescript)@7 (\S+) (--output) (\S+)$", PAGE, re.MULTILINE)


@pytest.fixture
async def project(workspace: Path, secured_url: str) -> Path:
    """A project with the files of the page."""
    folder = workspace / "frontend"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(_for_node(text))
    [(program, url, *options)] = TYPES
    generated = await run(folder, program, url.replace("http://127.0.0.1:8000", secured_url), *options)
    assert generated.returncode == 0, generated.stdout
    return folder


def _for_node(text: str) -> str:
    """Node.js needs the endings of names, which bundlers refuse. Retries wait milliseconds instead of seconds."""
    return text.replace('"./tasks"', '"./tasks.js"').replace("1000 * seconds", "seconds")


async def test_the_files_of_the_page_compile_strictly_and_the_client_survives_faults_and_uses_tokens_of_better_auth(
    project: Path, dsn: str, secured_url: str, user: str
) -> None:
    compiler = await run(project, "tsc")
    assert compiler.returncode == 0, compiler.stdout

    program = await run(project, "node", "client.js", secured_url, user, token(user, exp=1), token(user))
    async with better_auth() as issuer, service_of(dsn, issuer.url) as service:
        sign_up = await run(project, "node", "token.js", str(service.base_url), issuer.url)

    assert program.returncode == 0, program.stdout
    assert sign_up.returncode == 0, sign_up.stdout


async def test_an_empty_project_with_the_settings_of_tsc_init_compiles_the_files(project: Path) -> None:
    assert "npx tsc --init --module preserve\n" in PAGE
    files = [name for name in FILES if "better-auth" not in FILES[name] and name.endswith(".ts")]
    empty = project.parent / "empty"
    (empty / "lib").mkdir(parents=True)
    shutil.copy(project / "package.json", empty)
    shutil.copy(project / "lib/schema.d.ts", empty / "lib")
    for name in files:
        (empty / name).write_text(FILES[name])
    strict = ("--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess", "--verbatimModuleSyntax")

    assert (await run(empty, "tsc", "--init", "--module", "preserve")).returncode == 0
    compiler = await run(empty, "tsc", "--noEmit", "--project", ".", *strict)

    assert (compiler.returncode, compiler.stdout) == (0, "")


def test_the_client_has_at_most_80_lines_and_every_code_block_is_a_file() -> None:
    assert FILES["lib/tasks.ts"].count("\n") <= 80
    assert len(FILES) == len(re.findall(r"^```(?!sh$)\w+$", PAGE, re.MULTILINE))

"""The programs in `generated`, each with a client that openapi-generator makes in its language.

Python's client has every pattern in its code, and Ruby's raises for a reply that breaks a rule of the document. A
TypeScript program does not compile if a type is not as it expects.
"""

from pathlib import Path
from typing import Final

import pytest

from tests.clients.support import needs_node, run
from tests.support import token

_TSC: Final = "tsc --strict --skipLibCheck --target es2023 --module nodenext --types node client.mts"
_PROGRAMS: Final = [
    ("python", ["python client.py"]),
    ("ruby", ["ruby -Ilib client.rb"]),
    pytest.param("typescript-fetch", [_TSC, "node client.mjs"], marks=needs_node),
]


@pytest.mark.parametrize(("language", "commands"), _PROGRAMS, ids=["Python", "Ruby", "TypeScript"])
async def test_a_program_can_use_every_operation(
    workspace: Path, secured_url: str, user: str, language: str, commands: list[str]
) -> None:
    folder = workspace / "generated"
    options = ("-i=openapi.json", f"-g={language}", f"-o={folder}", "-p=importFileExtension=.js")
    generator = await run(workspace, "openapi-generator-cli", "generate", *options)
    assert generator.returncode == 0, generator.stdout
    *compilers, program = commands
    for compiler in compilers:
        report = await run(folder, *compiler.split())
        assert report.returncode == 0, report.stdout

    report = await run(folder, *program.split(), secured_url, user, token(user))

    assert report.returncode == 0, report.stdout

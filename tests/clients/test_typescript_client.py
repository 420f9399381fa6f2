"""The program `client.mts`, with types generated from the document."""

import json
from pathlib import Path
from typing import Any

from tests.clients.support import needs_node, run
from tests.support import token

pytestmark = needs_node


async def compiled(workspace: Path) -> tuple[bool, str]:
    """Compile the program with the types of the document. Returns whether it compiles, and the compiler's output."""
    generated = await run(workspace, "openapi-typescript", "openapi.json", "--output=schema.ts")
    assert generated.returncode == 0, generated.stdout
    compiler = await run(workspace, "tsc")
    return compiler.returncode == 0, compiler.stdout


async def test_a_strict_typescript_program_compiles_and_can_use_every_operation(
    workspace: Path, secured_url: str, user: str
) -> None:
    fits, errors = await compiled(workspace)
    assert fits, errors

    program = await run(workspace, "node", "client.mjs", secured_url, user, token(user))

    assert program.returncode == 0, program.stdout


async def test_the_program_does_not_compile_without_an_optional_field_or_with_an_unknown_one_or_a_misspelt_type(
    workspace: Path, document: dict[str, Any]
) -> None:
    del document["components"]["schemas"]["TaskUpdate"]["properties"]["description"]
    (workspace / "openapi.json").write_text(json.dumps(document))
    with (workspace / "client.mts").open("a") as program:
        program.write('await createTask({ title: "Call Eve", mood: "high" });\n')
        program.write('assert(late.error?.type === "urn:problem-type:precondition-fialed");\n')

    fits, errors = await compiled(workspace)

    assert not fits
    assert "'description' does not exist" in errors
    assert "'mood' does not exist" in errors
    assert "have no overlap" in errors

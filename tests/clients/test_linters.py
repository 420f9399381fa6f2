"""Linters of OpenAPI documents. The configuration gives the reason for each rule that is off."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients.support import needs_node, run

pytestmark = needs_node

SPECTRAL: Final = ("spectral", "lint", "--fail-severity=hint", "openapi.json")
REDOCLY: Final = ("redocly", "lint", "openapi.json")


@pytest.mark.parametrize("linter", [SPECTRAL, REDOCLY], ids=["spectral", "redocly"])
async def test_a_linter_finds_nothing_in_the_document(workspace: Path, linter: tuple[str, ...]) -> None:
    report = await run(workspace, *linter)

    assert report.returncode == 0, report.stdout


@pytest.mark.parametrize(
    ("linter", "finding"),
    [(SPECTRAL, "owasp:api4:2023-string-limit"), (REDOCLY, "path-parameters-defined")],
    ids=["spectral", "redocly"],
)
async def test_spectral_finds_a_string_without_a_maximum_length_and_redocly_an_undefined_parameter(
    workspace: Path, document: dict[str, Any], linter: tuple[str, ...], finding: str
) -> None:
    del document["components"]["schemas"]["TaskCreate"]["properties"]["title"]["maxLength"]
    del document["paths"]["/api/{user_id}/tasks"]["get"]["parameters"][0]
    (workspace / "openapi.json").write_text(json.dumps(document))

    report = await run(workspace, *linter)

    assert report.returncode == 1
    assert finding in report.stdout

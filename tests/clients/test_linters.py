"""Linters of OpenAPI documents. The configuration gives the reason for each rule that is off."""

import json
from pathlib import Path
from typing import Any

from tests.clients.support import needs_node, run

pytestmark = needs_node

SPECTRAL = ("spectral", "lint", "--fail-severity=hint", "openapi.json")
REDOCLY = ("redocly", "lint", "openapi.json")


async def test_spectral_finds_nothing_in_the_document(workspace: Path) -> None:
    report = await run(workspace, *SPECTRAL)

    assert report.returncode == 0, report.stdout


async def test_spectral_finds_a_string_without_a_maximum_length_and_a_duplicate_operation_id(
    workspace: Path, document: dict[str, Any]
) -> None:
    del document["components"]["schemas"]["TaskCreate"]["properties"]["title"]["maxLength"]
    document["paths"]["/health/live"]["get"]["operationId"] = "get_task"
    (workspace / "openapi.json").write_text(json.dumps(document))

    report = await run(workspace, *SPECTRAL)

    assert report.returncode == 1
    assert "owasp:api4:2023-string-limit" in report.stdout
    assert "operation-operationId-unique" in report.stdout


async def test_redocly_finds_nothing_in_the_document(workspace: Path) -> None:
    report = await run(workspace, *REDOCLY)

    assert report.returncode == 0, report.stdout


async def test_redocly_finds_an_undefined_path_parameter(workspace: Path, document: dict[str, Any]) -> None:
    del document["paths"]["/api/{user_id}/tasks"]["get"]["parameters"][0]
    (workspace / "openapi.json").write_text(json.dumps(document))

    report = await run(workspace, *REDOCLY)

    assert report.returncode == 1
    assert "path-parameters-defined" in report.stdout

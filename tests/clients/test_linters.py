"""What the linters of OpenAPI documents say about ours. Rules that are off have their reasons in the configuration."""

import json
from pathlib import Path
from typing import Any

from tests.clients.support import needs_node, run

pytestmark = needs_node

SPECTRAL = ("spectral", "lint", "--fail-severity=hint", "openapi.json")
REDOCLY = ("redocly", "lint", "openapi.json")


async def test_spectral_finds_nothing(workspace: Path) -> None:
    report = await run(workspace, *SPECTRAL)

    assert report.returncode == 0, report.stdout


async def test_spectral_would_find_a_string_of_any_length_and_a_name_used_twice(
    workspace: Path, document: dict[str, Any]
) -> None:
    del document["components"]["schemas"]["TaskCreate"]["properties"]["title"]["maxLength"]
    document["paths"]["/health/live"]["get"]["operationId"] = "get_task"
    (workspace / "openapi.json").write_text(json.dumps(document))

    report = await run(workspace, *SPECTRAL)

    assert report.returncode == 1
    assert "owasp:api4:2023-string-limit" in report.stdout
    assert "operation-operationId-unique" in report.stdout


async def test_redocly_finds_nothing(workspace: Path) -> None:
    report = await run(workspace, *REDOCLY)

    assert report.returncode == 0, report.stdout


async def test_redocly_would_find_a_parameter_that_is_not_described(workspace: Path, document: dict[str, Any]) -> None:
    del document["paths"]["/api/{user_id}/tasks"]["get"]["parameters"][0]
    (workspace / "openapi.json").write_text(json.dumps(document))

    report = await run(workspace, *REDOCLY)

    assert report.returncode == 1
    assert "path-parameters-defined" in report.stdout

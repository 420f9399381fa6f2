"""Linters of OpenAPI documents. The configuration gives the reason for each rule that is off."""

from pathlib import Path
from typing import Final

import pytest

from tests.clients.support import needs_node, run

pytestmark = needs_node

SPECTRAL: Final = ("spectral", "lint", "--fail-severity=hint", "openapi.json")
REDOCLY: Final = ("redocly", "lint", "openapi.json")


@pytest.mark.parametrize("linter", [SPECTRAL, REDOCLY], ids=["spectral", "redocly"])
async def test_a_linter_finds_nothing_in_the_document(workspace: Path, linter: tuple[str, ...]) -> None:
    report = await run(workspace, *linter)

    assert report.returncode == 0, report.stdout

"""The OpenAPI document of the running service, in a folder for the tools."""

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.support import FOLDER, NODE_MODULES


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this directory starts programs that take seconds."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.ci)


@pytest.fixture
async def workspace(secured_url: str, tmp_path: Path) -> Path:
    """A folder with the configuration of the tools, and with the document in `openapi.json`."""
    shutil.copytree(
        FOLDER, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "__*", "test_*")
    )
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    async with httpx.AsyncClient(base_url=secured_url, timeout=30) as client:
        (tmp_path / "openapi.json").write_bytes((await client.get("/openapi.json")).content)
    return tmp_path


@pytest.fixture
def document(workspace: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workspace / "openapi.json").read_text())
    return content

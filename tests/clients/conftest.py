"""The OpenAPI document of the running service, where the tools find it."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.support import make_workspace


@pytest.fixture
async def workspace(client: httpx.AsyncClient, tmp_path: Path) -> Path:
    """A folder with the document in `openapi.json`."""
    make_workspace(tmp_path, (await client.get("/openapi.json")).content)
    return tmp_path


@pytest.fixture
def document(workspace: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workspace / "openapi.json").read_text())
    return content

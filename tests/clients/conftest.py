"""The OpenAPI document of the running service, in a folder for the tools."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.support import FOLDER, make_workspace


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this directory starts programs that take seconds."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.ci)


@pytest.fixture(scope="session")
def base_url(secured_url: str) -> str:
    """The service of these tests has authentication, as in production."""
    return secured_url


@pytest.fixture(scope="session")
async def client(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=base_url, timeout=30) as client:
        yield client


@pytest.fixture
async def workspace(client: httpx.AsyncClient, tmp_path: Path) -> Path:
    """A folder with the document in `openapi.json`."""
    make_workspace(tmp_path, (await client.get("/openapi.json")).content)
    return tmp_path


@pytest.fixture
def document(workspace: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workspace / "openapi.json").read_text())
    return content

"""Requests that schemathesis derives from the document, and its checks of the replies. Options: schemathesis.toml."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.clients.support import run
from tests.support import SECRET

RUN = ("st", "run", "openapi.json", "--checks=all", "--report-har-path=report.json")


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool signs tokens with the secret of the service (schemathesis_hooks.py)."""
    monkeypatch.setenv("AUTH_JWT_SECRET", SECRET)


@pytest.mark.timeout(300)
async def test_no_reply_contradicts_the_document(workspace: Path, document: dict[str, Any], secured_url: str) -> None:
    report = await run(workspace, *RUN, "--phases=examples,coverage,fuzzing,stateful", f"--url={secured_url}")

    assert report.returncode == 0, report.stdout
    entries = json.loads((workspace / "report.json").read_text())["log"]["entries"]
    done = [entry["request"] for entry in entries if entry["response"]["status"] < 300]
    calls = [(request["method"], urlsplit(request["url"]).path) for request in done]
    assert {(method, path.count("/")) for method, path in calls} == {
        (method.upper(), path.count("/")) for path, methods in document["paths"].items() for method in methods
    }
    assert {path.split("/")[2] for _, path in calls if path.count("/") > 3} >= {"ada", "grace"}

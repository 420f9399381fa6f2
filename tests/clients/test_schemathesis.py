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
    calls = successes(workspace / "report.json")
    assert {(method, parts) for method, parts, _ in calls} == operations(document)
    assert {user for _, parts, user in calls if parts > 3} >= {"ada", "grace"}


async def test_schemathesis_finds_a_limit_that_differs_from_the_document(
    workspace: Path, document: dict[str, Any], secured_url: str
) -> None:
    document["components"]["schemas"]["TaskCreate"]["properties"]["title"]["maxLength"] += 1
    (workspace / "openapi.json").write_text(json.dumps(document))

    options = ("--phases=coverage", "--include-operation-id=create_task", f"--url={secured_url}")
    report = await run(workspace, *RUN, *options)

    assert report.returncode == 1
    assert "Schema-valid request rejected" in report.stdout


def operations(document: dict[str, Any]) -> set[tuple[str, int]]:
    """The method of each operation, and the number of parts of its path."""
    return {(method.upper(), path.count("/")) for path, methods in document["paths"].items() for method in methods}


def successes(report: Path) -> set[tuple[str, int, str]]:
    """The method, the number of parts of the path, and the user of each successful request."""
    entries = json.loads(report.read_text())["log"]["entries"]
    done = [entry["request"] for entry in entries if entry["response"]["status"] < 300]
    paths = [(request["method"], urlsplit(request["url"]).path.split("/")) for request in done]
    return {(method, len(path) - 1, path[2]) for method, path in paths}

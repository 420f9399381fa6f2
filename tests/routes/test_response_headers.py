"""The headers of every reply that restrict browsers and caches. No reply names the server."""

from collections.abc import Mapping
from typing import Any, Final

import httpx
import pytest

from tests.support import bearer, exchange

MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
TASKS: Final = "/api/ada/tasks"
LOCKED: Final = "default-src 'none'; frame-ancestors 'none'"
# Method, path, body, status.
REPLIES: Final = [
    ("GET", TASKS, b"", 200),
    ("POST", TASKS, b'{"title": "a"}', 201),
    ("PATCH", TASKS, b"", 405),
    ("POST", TASKS, b"{", 400),
    ("POST", TASKS, b" " * 65_537, 413),
    ("POST", TASKS, b"{}", 422),
    ("GET", f"{TASKS}/{MISSING}", b"", 404),
    ("GET", "/api/grace/tasks", b"", 403),
    ("GET", "/nope", b"", 404),
    ("GET", "/", b"", 307),
    ("GET", "/docs", b"", 200),
    ("GET", "/docs/assets/swagger-ui.css", b"", 200),
    ("GET", "/openapi.json", b"", 200),
    ("GET", "/health/live", b"", 200),
    ("GET", "/health/ready", b"", 200),
]


@pytest.fixture
async def replies(secured_url: str) -> list[httpx.Response]:
    headers = {**bearer("ada"), "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=secured_url, headers=headers) as client:
        replies = [await client.request(method, path, content=content) for method, path, content, _ in REPLIES]
        preflight = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "PUT"}
        replies += [
            await client.get(TASKS, headers={"If-None-Match": "*"}),
            await client.get(TASKS, headers={"Authorization": "Bearer a"}),
            await client.options(TASKS, headers=preflight),
            await client.options(TASKS, headers={**preflight, "Origin": "https://evil.example"}),
        ]
    assert [reply.status_code for reply in replies] == [*(status for *_, status in REPLIES), 304, 401, 200, 400]
    return replies


def check_browser_headers(headers: Mapping[str, Any]) -> None:
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"]
    assert "Authorization" in headers["vary"]
    assert "server" not in headers


async def test_every_reply_has_the_browser_headers_and_does_not_name_the_server(
    replies: list[httpx.Response],
) -> None:
    for reply in replies:
        check_browser_headers(reply.headers)


async def test_only_the_docs_may_load_resources_and_no_reply_may_be_framed(replies: list[httpx.Response]) -> None:
    policies = {reply.url.path: reply.headers["Content-Security-Policy"] for reply in replies}

    docs = policies.pop("/docs")
    assert set(policies.values()) == {LOCKED}
    assert docs.startswith("default-src 'self'")
    assert docs.endswith("frame-ancestors 'none'")


async def test_errors_are_not_cached_and_other_replies_are_revalidated(replies: list[httpx.Response]) -> None:
    for reply in replies:
        expected = "no-store" if reply.status_code >= 400 else "private, no-cache"
        if "assets" not in reply.url.path:
            assert reply.headers["Cache-Control"] == expected


async def test_the_assets_of_the_docs_may_be_cached_publicly(replies: list[httpx.Response]) -> None:
    [asset] = [reply for reply in replies if "assets" in reply.url.path]

    assert asset.headers["Cache-Control"] == "public, max-age=3600"


async def test_every_reply_has_each_header_once(replies: list[httpx.Response]) -> None:
    for reply in replies:
        names = [name.lower() for name, _ in reply.headers.raw]
        assert len(names) == len(set(names))


async def test_a_refusal_by_the_server_itself_has_the_browser_headers(secured_url: str) -> None:
    _, head, _ = await exchange(httpx.URL(secured_url), b"nonsense\r\n\r\n")

    headers = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:])
    check_browser_headers({**headers, "vary": headers["vary"].title()})
    assert headers["content-security-policy"] == LOCKED
    assert headers["cache-control"] == "no-store"

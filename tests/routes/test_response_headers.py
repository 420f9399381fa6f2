"""The headers of every reply: its request id, and those that restrict browsers and caches."""

import re
from collections.abc import Mapping
from typing import Any, Final

import httpx
import pytest

from tests.support import bearer, exchange

MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
TASKS: Final = "/api/ada/tasks"
LOCKED: Final = "default-src 'none'; frame-ancestors 'none'"
MADE: Final = re.compile(r"[0-9a-f]{32}")
# Method, path, body, status.
REPLIES: Final = [
    ("GET", TASKS, b"", 200),
    ("POST", TASKS, b'{"title": "a"}', 201),
    ("PATCH", TASKS, b"", 405),
    ("POST", TASKS, b" " * 65_537, 413),
    ("GET", "/api/grace/tasks", b"", 403),
    ("GET", "/nope", b"", 404),
    ("GET", "/", b"", 307),
    ("GET", "/docs", b"", 200),
    ("GET", "/docs/assets/swagger-ui.css", b"", 200),
    ("GET", "/openapi.json", b"", 200),
    ("GET", "/health/live", b"", 200),
]


def check_browser_headers(headers: Mapping[str, Any]) -> None:
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert {*headers["vary"].split(", ")} >= {"Origin", "Authorization"}
    assert "server" not in headers


async def test_every_reply_has_the_browser_headers_once_and_does_not_name_the_server(secured_url: str) -> None:
    headers = {**bearer("ada"), "Content-Type": "application/json"}
    preflight = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "PUT"}
    async with httpx.AsyncClient(base_url=secured_url, headers=headers, timeout=30) as client:
        replies = [await client.request(method, path, content=content) for method, path, content, _ in REPLIES]
        replies += [
            await client.get(TASKS, headers={"If-None-Match": "*"}),
            await client.get(TASKS, headers={"Authorization": "Bearer a"}),
            await client.options(TASKS, headers=preflight),
            await client.options(TASKS, headers={**preflight, "Origin": "https://evil.example"}),
        ]

    assert [reply.status_code for reply in replies] == [*(status for *_, status in REPLIES), 304, 401, 200, 400]
    for reply in replies:
        names = [name.lower() for name, _ in reply.headers.raw]
        assert len(names) == len(set(names))
        check_browser_headers(reply.headers)
        assert MADE.fullmatch(reply.headers["X-Request-ID"])
        cached = "public, max-age=3600" if "assets" in reply.url.path else "private, no-cache"
        assert reply.headers["Cache-Control"] == ("no-store" if reply.is_error else cached)
        policy = reply.headers["Content-Security-Policy"]
        assert (policy == LOCKED) == (reply.url.path != "/docs")
        assert re.fullmatch(r"default-src '(none|self)'; .*frame-ancestors 'none'", policy)
    assert len({reply.headers["X-Request-ID"] for reply in replies}) == len(replies)


async def test_a_refusal_by_the_server_itself_has_the_browser_headers(secured_url: str) -> None:
    _, head, _ = await exchange(httpx.URL(secured_url), b"nonsense\r\n\r\n")

    headers = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:])
    check_browser_headers({**headers, "vary": headers["vary"].title()})
    assert (headers["content-security-policy"], headers["cache-control"]) == (LOCKED, "no-store")


class TestRequestId:
    @pytest.mark.parametrize("sent", ["a", "a" * 128, "01K9-z_Z.=@+", MISSING])
    async def test_a_valid_request_id_is_kept_and_a_second_one_ignored(
        self, client: httpx.AsyncClient, sent: str
    ) -> None:
        headers = [("X-Request-ID", sent), ("X-Request-ID", "second")]
        replies = [await client.get(path, headers=headers) for path in (f"{TASKS}/{MISSING}", "/docs")]

        assert [reply.headers.get_list("X-Request-ID") for reply in replies] == [[sent], [sent]]
        assert replies[0].json()["instance"] == sent

    @pytest.mark.parametrize("sent", [b"", b"a" * 129, b"a b", b"a/b", b'"a"', b"\xe9"])
    async def test_an_invalid_request_id_is_replaced(self, client: httpx.AsyncClient, sent: bytes) -> None:
        reply = await client.get(f"{TASKS}/{MISSING}", headers=[(b"X-Request-ID", sent)])

        [made] = reply.headers.get_list("X-Request-ID")
        assert MADE.fullmatch(made)
        assert reply.json()["instance"] == made


@pytest.mark.parametrize(
    "path", [TASKS, f"{TASKS}/{MISSING}", "/health/ready", "/openapi.json", "/docs", "/docs/assets/swagger-ui.css", "/"]
)
async def test_head_returns_the_headers_of_get_without_a_body(client: httpx.AsyncClient, path: str) -> None:
    head, get = [
        await exchange(
            client.base_url,
            b"%s %s HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: a\r\nConnection: close\r\n\r\n"
            % (method, path.encode()),
        )
        for method in (b"HEAD", b"GET")
    ]

    assert re.sub(rb"\r\ndate: [^\r]+", b"", head[1]) == re.sub(rb"\r\ndate: [^\r]+", b"", get[1])
    assert (head[2], get[0]) == (b"", {f"{TASKS}/{MISSING}": 404, "/": 307}.get(path, 200))

"""CORS: the frontends in the settings may call from a browser, with credentials, and read every reply."""

import re
from typing import Final, NoReturn

import httpx
import pytest

from app.main import create_app
from tests.server.support import CLOSE, HOST, converse, post
from tests.support import SECRET, make_settings, serving

MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
TASKS: Final = "/api/ada/tasks"
ORIGIN: Final = "http://localhost:3000"
DEFAULT_ORIGINS: Final = (ORIGIN, "http://localhost:5173", "http://127.0.0.1:3000", "http://127.0.0.1:5173")
FOREIGN_ORIGINS: Final = ("https://localhost:3000", "http://localhost:30000", f"{ORIGIN}.evil.example", "null", "*", "")
# Tracing and a frontend's own code add headers that no list of ours could name.
ASKED: Final = {*("authorization", "content-type", "idempotency-key", "if-match", "sentry-trace", "x-own")}
EXPOSED: Final = {
    *("ETag", "Idempotent-Replayed", "Ignored-Fields", "Link", "Location", "Preference-Applied", "Retry-After"),
    *("WWW-Authenticate", "X-Request-ID"),
}


async def preflight(
    client: httpx.AsyncClient, origin: str, method: str = "POST", headers: str = "content-type"
) -> httpx.Response:
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return await client.options(TASKS, headers=asked)


def listed(reply: httpx.Response, header: str) -> set[str]:
    return {item.strip() for item in reply.headers[header].split(",")}


class TestPreflight:
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
    @pytest.mark.parametrize("origin", DEFAULT_ORIGINS)
    async def test_an_allowed_origin_may_use_every_method_and_request_header(
        self, client: httpx.AsyncClient, origin: str, method: str
    ) -> None:
        reply = await preflight(client, origin, method, ",".join(ASKED))

        assert (reply.status_code, reply.headers["Access-Control-Allow-Origin"]) == (200, origin)
        assert reply.headers["Access-Control-Allow-Credentials"] == "true"
        assert method in listed(reply, "Access-Control-Allow-Methods")
        assert listed(reply, "Access-Control-Allow-Headers") >= ASKED
        assert int(reply.headers["Access-Control-Max-Age"]) > 0
        assert "Origin" in listed(reply, "Vary")

    @pytest.mark.parametrize(
        ("origin", "method"),
        [*((origin, "POST") for origin in FOREIGN_ORIGINS), (ORIGIN, "TRACE"), (ORIGIN, "post")],
    )
    async def test_a_foreign_origin_or_an_unknown_method_is_refused_with_a_problem(
        self, client: httpx.AsyncClient, origin: str, method: str
    ) -> None:
        reply = await preflight(client, origin, method)

        assert (reply.status_code, reply.headers["Content-Type"]) == (400, "application/problem+json")
        problem = reply.json()
        assert (problem["type"], problem["status"]) == ("urn:problem-type:preflight-refused", 400)
        assert re.fullmatch(r"CORS does not allow this: (origin|method)\.", problem["detail"])
        assert problem["instance"] == reply.headers["X-Request-ID"]
        assert ("Access-Control-Allow-Origin" in reply.headers) == (origin == ORIGIN)
        assert "Origin" in listed(reply, "Vary")


class TestPrivateNetwork:
    """Chrome asks before a page from elsewhere uses a service on this machine."""

    @pytest.mark.parametrize(
        ("origin", "host", "status", "allowed"),
        [
            (ORIGIN, "127.0.0.1", 200, "true"),
            (ORIGIN, "::1", 200, "true"),
            (FOREIGN_ORIGINS[0], "127.0.0.1", 400, None),
            (ORIGIN, "0.0.0.0", 400, None),
        ],
    )
    async def test_only_a_listed_origin_may_and_only_a_service_that_listens_on_loopback(
        self, dsn: str, origin: str, host: str, status: int, *, allowed: str | None
    ) -> None:
        app = create_app(make_settings(dsn, host=host, auth_jwt_secret=SECRET))
        asked = {"Origin": origin, "Access-Control-Request-Method": "GET"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            plain = await client.options(TASKS, headers=asked)
            reply = await client.options(TASKS, headers={**asked, "Access-Control-Request-Private-Network": "true"})

        assert (reply.status_code, reply.headers.get("Access-Control-Allow-Private-Network")) == (status, allowed)
        assert "Access-Control-Allow-Private-Network" not in plain.headers
        assert "Access-Control-Request-Private-Network" in listed(reply, "Vary")


class TestReply:
    @pytest.mark.parametrize("origin", [None, *FOREIGN_ORIGINS])
    async def test_a_foreign_origin_may_not_read_the_reply(self, client: httpx.AsyncClient, origin: str | None) -> None:
        reply = await client.get(TASKS, headers={} if origin is None else {"Origin": origin})

        assert "Access-Control-Allow-Origin" not in reply.headers
        assert "Origin" in listed(reply, "Vary")

    @pytest.mark.parametrize("origin", DEFAULT_ORIGINS)
    async def test_an_allowed_origin_may_read_every_reply(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, origin: str
    ) -> None:
        async def fail(*_: object) -> NoReturn:
            raise RuntimeError

        monkeypatch.setattr("app.services.tasks.get_task", fail)
        headers = {"Origin": origin, "Content-Type": "application/json"}
        for method, path, content, status in (
            ("GET", TASKS, b"", 200),
            ("GET", "/nope", b"", 404),
            ("PUT", TASKS, b"", 405),
            ("POST", TASKS, b" " * 65_537, 413),
            ("GET", f"{TASKS}/{MISSING}", b"", 500),
        ):
            reply = await client.request(method, path, content=content, headers=headers)

            assert (reply.status_code, reply.headers["Access-Control-Allow-Origin"]) == (status, origin)
            assert reply.headers["Access-Control-Allow-Credentials"] == "true"
            assert listed(reply, "Access-Control-Expose-Headers") == EXPOSED
            assert "Origin" in listed(reply, "Vary")

    @pytest.mark.parametrize("origin", [ORIGIN, FOREIGN_ORIGINS[0]])
    @pytest.mark.parametrize(
        ("rest", "status"),
        [(HOST, 400), (b"X:\r\n" * 101, 431), (b"Content-Length: 9\r\n\r\n{", 408)],
        ids=["malformed", "too large", "too slow"],
    )
    async def test_a_refusal_by_the_server_has_the_headers_of_a_reply_of_the_application(
        self, base_url: str, monkeypatch: pytest.MonkeyPatch, origin: str, rest: bytes, status: int
    ) -> None:
        monkeypatch.setattr("app.server.protocol.REQUEST_TIMEOUT", 0.2)
        fields = b"Origin: %s\r\nX-Request-ID: mine\r\n" % origin.encode()

        [refusal] = await converse(base_url, post(fields)[:-2] + rest + b"\r\n")
        [reply] = await converse(base_url, post(fields, CLOSE) + b"\r\n")

        assert (refusal.status_code, reply.status_code) == (status, 422)
        assert {**refusal.headers, "content-length": "", "date": ""} == {
            **reply.headers,
            "content-length": "",
            "date": "",
        }
        assert ("Access-Control-Allow-Origin" in refusal.headers) == (origin == ORIGIN)


async def test_cors_origins_replaces_the_default_origins(dsn: str) -> None:
    origins = "https://app.example.com", "https://b.example:8443", "tauri://localhost"
    settings = make_settings(dsn, cors_origins=", ".join(origins))
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        for origin in (*origins, ORIGIN):
            reply = await client.get(TASKS, headers={"Origin": origin})

            assert ("Access-Control-Allow-Origin" in reply.headers) == (origin != ORIGIN)
            assert (await preflight(client, origin)).status_code == (400 if origin == ORIGIN else 200)

"""CORS: the frontends in the settings may call from a browser, with credentials, and read every reply."""

from collections.abc import AsyncIterator
from typing import Final, NoReturn

import httpx
import pytest

from tests.support import make_settings, serving

MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
TASKS: Final = "/api/ada/tasks"
ORIGIN: Final = "http://localhost:3000"
DEFAULT_ORIGINS: Final = (ORIGIN, "http://localhost:5173", "http://127.0.0.1:3000", "http://127.0.0.1:5173")
FOREIGN_ORIGINS: Final = (
    "https://localhost:3000",
    "http://localhost",
    "http://localhost:3001",
    "http://localhost:30000",
    "http://localhost:3000/",
    "http://localhost:3000.evil.example",
    "http://evil.example",
    "HTTP://LOCALHOST:3000",
    "null",
    "*",
    "",
)
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
REQUEST_HEADERS: Final = (
    "authorization",
    "content-type",
    "idempotency-key",
    "if-match",
    "if-none-match",
    "prefer",
    "x-request-id",
)
EXPOSED: Final = (
    "ETag, Link, Location, Retry-After, Idempotent-Replayed, WWW-Authenticate, Ignored-Fields, Preference-Applied, "
    "X-Request-ID"
)


async def preflight(
    client: httpx.AsyncClient, origin: str, method: str = "POST", headers: str = "content-type", path: str = TASKS
) -> httpx.Response:
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return await client.options(path, headers=asked)


def listed(reply: httpx.Response, header: str) -> set[str]:
    return {item.strip().lower() for item in reply.headers[header].split(",")}


class TestPreflight:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("origin", DEFAULT_ORIGINS)
    async def test_an_allowed_origin_may_use_every_method_and_request_header(
        self, client: httpx.AsyncClient, origin: str, method: str
    ) -> None:
        reply = await preflight(client, origin, method, ",".join(REQUEST_HEADERS))

        assert reply.status_code == 200
        assert reply.headers["Access-Control-Allow-Origin"] == origin
        assert reply.headers["Access-Control-Allow-Credentials"] == "true"
        assert method.lower() in listed(reply, "Access-Control-Allow-Methods")
        assert listed(reply, "Access-Control-Allow-Headers") >= set(REQUEST_HEADERS)
        assert int(reply.headers["Access-Control-Max-Age"]) > 0
        assert "origin" in listed(reply, "Vary")
        assert reply.headers["X-Request-ID"]

    @pytest.mark.parametrize("header", REQUEST_HEADERS)
    async def test_each_request_header_is_allowed_on_its_own(self, client: httpx.AsyncClient, header: str) -> None:
        assert (await preflight(client, ORIGIN, headers=header)).status_code == 200

    @pytest.mark.parametrize("path", [f"{TASKS}/{MISSING}", f"{TASKS}/{MISSING}/complete", "/health/ready", "/nope"])
    async def test_a_preflight_succeeds_on_any_path(self, client: httpx.AsyncClient, path: str) -> None:
        assert (await preflight(client, ORIGIN, path=path)).status_code == 200

    @pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
    async def test_a_preflight_from_a_foreign_origin_is_refused(self, client: httpx.AsyncClient, origin: str) -> None:
        reply = await preflight(client, origin)

        assert reply.status_code == 400
        assert "Access-Control-Allow-Origin" not in reply.headers

    @pytest.mark.parametrize(
        ("origin", "method", "headers"),
        [
            ("http://evil.example", "POST", "content-type"),
            (ORIGIN, "TRACE", "content-type"),
            (ORIGIN, "post", "content-type"),
            (ORIGIN, "POST", "content-type,x-nope"),
        ],
        ids=["foreign origin", "forbidden method", "lower-case method", "unknown header"],
    )
    async def test_a_refused_preflight_returns_a_problem_document(
        self, client: httpx.AsyncClient, origin: str, method: str, headers: str
    ) -> None:
        reply = await preflight(client, origin, method, headers)

        assert reply.status_code == 400
        assert reply.headers["Content-Type"] == "application/problem+json"
        problem = reply.json()
        assert (problem["type"], problem["status"]) == ("urn:problem-type:preflight-refused", 400)
        assert problem["detail"]
        assert problem["instance"] == reply.headers["X-Request-ID"]
        assert "origin" in listed(reply, "Vary")


class TestReply:
    @pytest.mark.parametrize("origin", DEFAULT_ORIGINS)
    async def test_an_allowed_origin_may_read_the_reply_and_its_headers(
        self, client: httpx.AsyncClient, origin: str
    ) -> None:
        reply = await client.get(TASKS, headers={"Origin": origin})

        assert reply.headers["Access-Control-Allow-Origin"] == origin
        assert reply.headers["Access-Control-Allow-Credentials"] == "true"
        assert reply.headers["Access-Control-Expose-Headers"] == EXPOSED

    @pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
    async def test_a_foreign_origin_may_not_read_the_reply(self, client: httpx.AsyncClient, origin: str) -> None:
        reply = await client.get(TASKS, headers={"Origin": origin})

        assert "Access-Control-Allow-Origin" not in reply.headers
        assert "origin" in listed(reply, "Vary")

    async def test_a_reply_to_a_request_without_an_origin_varies_by_origin(self, client: httpx.AsyncClient) -> None:
        reply = await client.get(TASKS)

        assert "Access-Control-Allow-Origin" not in reply.headers
        assert "origin" in listed(reply, "Vary")


def assert_readable(reply: httpx.Response, status: int) -> None:
    """Check that a browser shows the reply to the frontend and does not report a network error instead."""
    assert reply.status_code == status
    assert reply.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert reply.headers["Access-Control-Allow-Credentials"] == "true"
    assert reply.headers["Access-Control-Expose-Headers"] == EXPOSED
    assert "origin" in listed(reply, "Vary")


class TestErrorReply:
    @pytest.mark.parametrize(
        ("method", "path", "content_type", "content", "status"),
        [
            ("POST", TASKS, "application/json", b"{", 400),
            ("GET", f"{TASKS}/{MISSING}", "", b"", 404),
            ("GET", "/nope", "", b"", 404),
            ("PUT", TASKS, "", b"", 405),
            ("POST", TASKS, "application/json", b" " * 65_537, 413),
            ("POST", TASKS, "text/plain", b"a", 415),
            ("POST", TASKS, "application/json", b"{}", 422),
            ("GET", "/api/a%20b/tasks", "", b"", 422),
        ],
    )
    async def test_an_allowed_origin_may_read_a_4xx_reply(
        self, client: httpx.AsyncClient, method: str, path: str, *, content_type: str, content: bytes, status: int
    ) -> None:
        headers = {"Origin": ORIGIN, "Content-Type": content_type}

        assert_readable(await client.request(method, path, content=content, headers=headers), status)

    async def test_an_allowed_origin_may_read_a_500_reply(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*_: object) -> NoReturn:
            raise RuntimeError

        monkeypatch.setattr("app.services.tasks.list_tasks", fail)

        assert_readable(await client.get(TASKS, headers={"Origin": ORIGIN}), 500)

    async def test_an_allowed_origin_may_read_a_503_reply(self) -> None:
        async with (
            serving(make_settings("postgresql://postgres@127.0.0.1:1/x", database_pool_timeout=1)) as url,
            httpx.AsyncClient(base_url=url) as client,
        ):
            assert_readable(await client.get(TASKS, headers={"Origin": ORIGIN}), 503)
            assert (await preflight(client, ORIGIN)).status_code == 200


class TestCorsOrigins:
    @pytest.fixture(scope="class")
    async def configured(self, dsn: str) -> AsyncIterator[httpx.AsyncClient]:
        settings = make_settings(dsn, cors_origins="https://app.example.com, https://b.example:8443")
        async with serving(settings) as url, httpx.AsyncClient(base_url=url) as client:
            yield client

    @pytest.mark.parametrize("origin", ["https://app.example.com", "https://b.example:8443"])
    async def test_an_origin_in_cors_origins_is_allowed(self, configured: httpx.AsyncClient, origin: str) -> None:
        reply = await configured.get(TASKS, headers={"Origin": origin})

        assert reply.headers["Access-Control-Allow-Origin"] == origin
        assert (await preflight(configured, origin)).status_code == 200

    async def test_cors_origins_replaces_the_default_origins(self, configured: httpx.AsyncClient) -> None:
        assert "Access-Control-Allow-Origin" not in (await configured.get(TASKS, headers={"Origin": ORIGIN})).headers
        assert (await preflight(configured, ORIGIN)).status_code == 400

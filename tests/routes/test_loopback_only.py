"""Without authentication, the service answers only to loopback names on loopback addresses."""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import httpx
import pytest
from starlette.types import Receive, Scope, Send

from app.core.config import Settings
from app.core.database import Database
from app.main import create_app
from tests.support import SECRET, exchange, make_settings, serving, short

MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
TASKS: Final = "/api/ada/tasks"
LOOPBACK_HOSTS: Final = (
    b"localhost",
    b"LocalHost",
    b"LOCALHOST:8000",
    b"localhost:1",
    b"localhost:",
    b"127.0.0.1",
    b"127.0.0.1:65535",
    b"127.255.255.254:8000",
    b"[::1]",
    b"[::1]:8000",
    b"[0:0:0:0:0:0:0:1]",
)
FOREIGN_HOSTS: Final = (
    b"evil.example",
    b"evil.example:8000",
    b"localhost.evil.example",
    b"127.0.0.1.evil.example",
    b"127.0.0.1@evil.example",
    b"localhost@evil.example",
    b"evil.example@localhost",
    b"evil.example:80@localhost",
    b"evil.example#@localhost",
    b"evil.localhost",
    b"localhost.",
    b"localhost..",
    b".localhost",
    b"localhost.:8000",
    b"localhost:abc",
    b"localhost:-1",
    b"localhost:123456",
    b"localhost:80:80",
    b"localhost,evil.example",
    b"localhost, localhost",
    b"localhost localhost",
    b"localhost\tevil.example",
    b"localhost/",
    b"localhost?",
    b"localhost%00",
    b"http://localhost",
    b"0.0.0.0",
    b"0.0.0.0:8000",
    b"[::]",
    b"[::]:8000",
    b"10.0.0.1",
    b"192.168.1.1:8000",
    b"169.254.169.254",
    b"2130706433",
    b"0x7f.1",
    b"0x7f000001",
    b"0177.0.0.1",
    b"127.1",
    b"127.0.0.1.",
    b"[::1",
    b"::1]",
    b"::1",
    b"[::1]x",
    b"[::1]:x",
    b"[[::1]]",
    b"[::1%25lo]",
    b"[localhost]",
    b"[]",
    b"[]:8000",
    b":8000",
    b":",
    b"",
    b"*",
    b"\xff",
    b"localhost\xa0",
    b"localhost\xc4\xb0",
    b"\xc2\xb2127.0.0.1",
    b"a" * 20_000,
    b"localhost" * 2_000,
    b"127." * 5_000,
    b":" * 20_000,
)
# Every operation, other and unknown paths, and a request that a browser makes by itself.
REQUESTS: Final = (
    (b"GET", TASKS),
    (b"HEAD", TASKS),
    (b"POST", TASKS),
    (b"GET", f"{TASKS}/{MISSING}"),
    (b"PUT", f"{TASKS}/{MISSING}"),
    (b"DELETE", f"{TASKS}/{MISSING}"),
    (b"PATCH", f"{TASKS}/{MISSING}/complete"),
    (b"GET", "/docs"),
    (b"GET", "/docs/assets/swagger-ui.css"),
    (b"GET", "/openapi.json"),
    (b"GET", "/health/live"),
    (b"GET", "/health/ready"),
    (b"GET", "/"),
    (b"GET", "/nope"),
    (b"TRACE", "/nope"),
    (b"OPTIONS", TASKS),
    (b"OPTIONS", "*"),
    (b"GET", "/favicon.ico"),
)
PREFLIGHT: Final = (b"Origin: http://localhost:3000", b"Access-Control-Request-Method: POST")

Reply = tuple[int, bytes, bytes]
Server = tuple[str, int | None]
Service = Callable[[Server, str], Awaitable[int]]


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The database statements that have run so far."""
    statements: list[Any] = []
    fetch = Database.fetch

    async def counted(database: Database, query: Any, **values: Any) -> list[asyncpg.Record]:
        statements.append(query)
        return await fetch(database, query, **values)

    monkeypatch.setattr(Database, "fetch", counted)
    return statements


@pytest.fixture(scope="module")
async def authenticating(dsn: str) -> AsyncIterator[httpx.URL]:
    async with serving(make_settings(dsn, auth_jwt_secret=SECRET)) as url:
        yield httpx.URL(url)


async def ask(
    url: httpx.URL,
    *fields: bytes,
    method: bytes = b"GET",
    path: str = TASKS,
    content: bytes = b"",
    version: str = "1.1",
) -> Reply:
    """Send a request. Its only `Host` headers are those in `fields`."""
    lines = [b"%s %s HTTP/%s" % (method, path.encode(), version.encode()), *fields, b"Connection: close"]
    if content:
        lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(content)]
    return await exchange(url, b"\r\n".join([*lines, b"", content]))


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[Service]:
    """Yields a function that sends a request, without a server, to an address with a `Host`. It returns the status."""
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:

        async def status_of(server: Server, host: str) -> int:
            async def at_address(scope: Scope, receive: Receive, send: Send) -> None:
                await app({**scope, "server": server, "state": dict(state or {})}, receive, send)

            transport = httpx.ASGITransport(at_address)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                return (await client.get(TASKS)).status_code

        yield status_of


@pytest.fixture
async def without_authentication(settings: Settings) -> AsyncIterator[Service]:
    async with started(settings) as service:
        yield service


@pytest.fixture
async def with_authentication(dsn: str) -> AsyncIterator[Service]:
    async with started(make_settings(dsn, auth_jwt_secret=SECRET)) as service:
        yield service


def kind(body: bytes) -> str:
    """The specific part of the problem's type."""
    return str(json.loads(body)["type"]).removeprefix("urn:problem-type:")


class TestHost:
    @pytest.mark.parametrize("host", LOOPBACK_HOSTS, ids=short)
    async def test_a_loopback_host_is_answered(
        self, client: httpx.AsyncClient, executed: list[Any], host: bytes
    ) -> None:
        status, _, _ = await ask(client.base_url, b"Host: " + host)

        assert (status, len(executed)) == (200, 1)

    @pytest.mark.parametrize("host", FOREIGN_HOSTS, ids=short)
    async def test_a_foreign_host_is_421_without_a_database_statement(
        self, client: httpx.AsyncClient, executed: list[Any], host: bytes
    ) -> None:
        status, _, body = await ask(client.base_url, b"Host: " + host)

        assert (status, kind(body), executed) == (421, "misdirected-request", [])

    @pytest.mark.parametrize(
        ("method", "path", "expected"),
        [
            (b"GET", "/docs", 200),
            (b"GET", "/openapi.json", 200),
            (b"GET", "/health/live", 200),
            (b"GET", "/health/ready", 200),
            (b"GET", "/nope", 404),
            (b"DELETE", f"{TASKS}/{MISSING}", 404),
            (b"PUT", TASKS, 405),
        ],
    )
    async def test_a_loopback_host_is_answered_on_every_path(
        self, client: httpx.AsyncClient, method: bytes, path: str, expected: int
    ) -> None:
        status, _, _ = await ask(client.base_url, b"Host: localhost", method=method, path=path)

        assert status == expected

    @pytest.mark.parametrize(("method", "path"), REQUESTS)
    async def test_a_foreign_host_is_421_on_every_path(
        self, client: httpx.AsyncClient, executed: list[Any], method: bytes, path: str
    ) -> None:
        status, head, body = await ask(client.base_url, b"Host: evil.example", method=method, path=path)

        assert (status, executed) == (421, [])
        assert b"\r\ncontent-type: application/problem+json" in head
        assert method == b"HEAD" or kind(body) == "misdirected-request"

    async def test_a_preflight_is_answered_only_for_a_loopback_host(self, client: httpx.AsyncClient) -> None:
        loopback = await ask(client.base_url, b"Host: localhost:8000", *PREFLIGHT, method=b"OPTIONS")
        other = await ask(client.base_url, b"Host: evil.example:8000", *PREFLIGHT, method=b"OPTIONS")

        assert (loopback[0], other[0]) == (200, 421)
        assert b"\r\naccess-control-allow-origin: http://localhost:3000" in loopback[1]
        assert b"access-control-" not in other[1]

    @pytest.mark.parametrize("content", [b"{", b'{"title": "a"}', b"a" * 70_000])
    async def test_the_body_of_a_misdirected_request_is_not_read(
        self, client: httpx.AsyncClient, executed: list[Any], content: bytes
    ) -> None:
        status, _, _ = await ask(client.base_url, b"Host: evil.example", method=b"POST", content=content)

        assert (status, executed) == (421, [])

    @pytest.mark.parametrize(
        ("fields", "expected"), [((), 421), ((b"Host: evil.example",), 421), ((b"Host: localhost",), 200)], ids=short
    )
    async def test_an_http_1_0_request_needs_a_loopback_host(
        self, client: httpx.AsyncClient, fields: tuple[bytes, ...], expected: int
    ) -> None:
        status, _, _ = await ask(client.base_url, *fields, version="1.0")

        assert status == expected

    async def test_a_host_of_60_000_bytes_is_431_without_a_database_statement(
        self, client: httpx.AsyncClient, executed: list[Any]
    ) -> None:
        status, _, body = await ask(client.base_url, b"Host: localhost" + b"a" * 60_000)

        assert (status, kind(body), executed) == (431, "head-too-large", [])

    @pytest.mark.parametrize(
        "field",
        [
            b"X-Forwarded-Host: %s",
            b"X-Forwarded-Server: %s",
            b"X-Host: %s",
            b"X-Original-Host: %s",
            b"Forwarded: host=%s",
            b"Origin: http://%s",
            b"Referer: http://%s/",
        ],
    )
    async def test_no_other_header_replaces_the_host_header(self, client: httpx.AsyncClient, field: bytes) -> None:
        loopback, _, _ = await ask(client.base_url, b"Host: localhost", field % b"evil.example")
        other, _, _ = await ask(client.base_url, b"Host: evil.example", field % b"localhost")

        assert (loopback, other) == (200, 421)

    async def test_the_request_line_does_not_replace_the_host_header(self, client: httpx.AsyncClient) -> None:
        other, _, _ = await ask(client.base_url, b"Host: evil.example", path=f"http://localhost{TASKS}")

        assert other == 421

    async def test_a_websocket_upgrade_for_a_foreign_host_is_421(self, client: httpx.AsyncClient) -> None:
        fields = (
            b"Host: evil.example",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: YWFhYWFhYWFhYWFhYWFhYQ==",
        )

        status, _, body = await ask(client.base_url, *fields)

        assert (status, kind(body)) == (421, "misdirected-request")

    async def test_a_421_reply_has_the_common_headers_and_does_not_repeat_the_host(
        self, client: httpx.AsyncClient
    ) -> None:
        fields = (b"Host: evil.example", b"X-Request-ID: a-request")

        _, head, body = await ask(client.base_url, *fields)

        assert json.loads(body).keys() == {"type", "title", "status", "detail", "instance"}
        assert json.loads(body)["instance"] == "a-request"
        assert b"evil" not in head + body
        for line in (b"cache-control: no-store", b"x-content-type-options: nosniff", b"x-request-id: a-request"):
            assert b"\r\n" + line in head

    async def test_a_421_is_logged_without_the_host(
        self, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "app.requests"):
            await ask(client.base_url, b"Host: evil.example")

        [record] = [record for record in caplog.records if record.name == "app.requests"]
        assert vars(record)["status"] == 421
        assert "evil" not in record.getMessage()


class TestFraming:
    @pytest.fixture(params=["off", "on"])
    def url(self, request: pytest.FixtureRequest, client: httpx.AsyncClient, authenticating: httpx.URL) -> httpx.URL:
        return authenticating if request.param == "on" else client.base_url

    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    @pytest.mark.parametrize(
        "fields",
        [
            (b"Host: localhost", b"Host: evil.example"),
            (b"Host: evil.example", b"Host: localhost"),
            (b"Host: localhost", b"hOST: localhost"),
            (b"Host: localhost", b"Host:"),
        ],
    )
    async def test_two_host_headers_are_400_with_and_without_authentication(
        self, url: httpx.URL, executed: list[Any], fields: tuple[bytes, ...], version: str
    ) -> None:
        status, _, body = await ask(url, *fields, version=version)

        assert (status, kind(body), executed) == (400, "malformed-request", [])

    async def test_an_http_1_1_request_without_a_host_header_is_400(self, url: httpx.URL, executed: list[Any]) -> None:
        status, _, body = await ask(url)

        assert (status, kind(body), executed) == (400, "malformed-request", [])

    @pytest.mark.parametrize("field", [b"Host : localhost", b"Host\t: localhost", b"X: a\r\n Host: localhost"])
    async def test_a_malformed_host_header_is_400(self, url: httpx.URL, executed: list[Any], field: bytes) -> None:
        status, _, body = await ask(url, field)

        assert (status, kind(body), executed) == (400, "malformed-request", [])


class TestWithAuthentication:
    @pytest.mark.parametrize("host", [*LOOPBACK_HOSTS, *FOREIGN_HOSTS], ids=short)
    async def test_every_host_is_answered_with_authentication(self, authenticating: httpx.URL, host: bytes) -> None:
        page, _, _ = await ask(authenticating, b"Host: " + host, path="/docs")
        tasks, _, _ = await ask(authenticating, b"Host: " + host)

        assert (page, tasks) == (200, 401)

    async def test_an_http_1_0_request_needs_no_host_with_authentication(self, authenticating: httpx.URL) -> None:
        status, _, _ = await ask(authenticating, path="/docs", version="1.0")

        assert status == 200


class TestAddress:
    """Our server listens where the settings say. Another server, started by hand, may listen on every address."""

    @pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.1", "169.254.1.1", "2001:db8::1", "fe80::1%eth0"])
    async def test_a_loopback_host_on_a_foreign_address_is_421(
        self, without_authentication: Service, executed: list[Any], address: str
    ) -> None:
        assert await without_authentication((address, 8000), "localhost") == 421
        assert executed == []

    @pytest.mark.parametrize("server", [("127.0.0.1", 8000), ("127.3.2.1", 8000), ("::1", 8000), ("/run/tasks", None)])
    async def test_a_loopback_host_on_a_loopback_address_is_answered(
        self, without_authentication: Service, server: Server
    ) -> None:
        assert await without_authentication(server, "localhost") == 200

    @pytest.mark.parametrize("server", [("127.0.0.1", 8000), ("::1", 8000), ("/run/tasks", None)])
    async def test_a_foreign_host_on_a_loopback_address_is_421(
        self, without_authentication: Service, server: Server
    ) -> None:
        assert await without_authentication(server, "evil.example") == 421

    async def test_a_foreign_host_and_address_are_accepted_with_authentication(
        self, with_authentication: Service
    ) -> None:
        assert await with_authentication(("192.0.2.1", 8000), "tasks.example.com") == 401


class TestRebinding:
    """The attack: a browser on this machine shows http://evil.example:8000, and that name now resolves to 127.0.0.1.
    The requests of the page's script have the same origin, so neither a preflight nor a CORS header stops them.
    """

    HOST: Final = b"Host: evil.example:8000"
    ORIGIN: Final = b"Origin: http://evil.example:8000"
    LOOPBACK: Final = b"Host: localhost:8000"

    async def test_a_rebound_page_reads_no_tasks(
        self, client: httpx.AsyncClient, task: dict[str, Any], tasks: str
    ) -> None:
        fields = (b"Sec-Fetch-Site: same-origin", b"Referer: http://evil.example:8000/")

        status, _, body = await ask(client.base_url, self.HOST, *fields, path=tasks)
        _, _, listed = await ask(client.base_url, self.LOOPBACK, *fields, path=tasks)

        assert status == 421
        assert task["id"].encode() not in body
        assert json.loads(listed) == [task]  # the control differs only in the host

    @pytest.mark.parametrize(("host", "titles"), [(HOST, []), (LOOPBACK, ["Planted"])], ids=["rebound", "control"])
    async def test_a_page_creates_a_task_only_under_a_loopback_host(
        self, client: httpx.AsyncClient, tasks: str, host: bytes, titles: list[str]
    ) -> None:
        await ask(client.base_url, host, self.ORIGIN, method=b"POST", path=tasks, content=b'{"title": "Planted"}')

        assert [task["title"] for task in (await client.get(tasks)).json()] == titles

    @pytest.mark.parametrize(("host", "status"), [(HOST, 200), (LOOPBACK, 404)], ids=["rebound", "control"])
    async def test_a_page_deletes_a_task_only_under_a_loopback_host(
        self, client: httpx.AsyncClient, path: str, host: bytes, status: int
    ) -> None:
        await ask(client.base_url, host, self.ORIGIN, method=b"DELETE", path=path)

        assert (await client.get(path)).status_code == status

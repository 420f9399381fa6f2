"""Without authentication, the service answers only to loopback names on loopback addresses."""

import json
import logging
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from app.main import create_app
from tests.support import SECRET, exchange, make_settings, short
from tests.tokens import counted_checkouts

MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
TASKS: Final = "/api/ada/tasks"
LIST: Final = f"GET {TASKS} HTTP/1.1"
LOOPBACK_HOSTS: Final = (b"LocalHost:8000", b"localhost:", b"127.255.255.254:65535", b"[0:0:0:0:0:0:0:1]:8000")
FOREIGN_HOSTS: Final = (
    *(b"evil.example", b"localhost.evil.example", b"localhost@evil.example", b"evil.example:80@localhost"),
    *(b"localhost.:8000", b"localhost:abc", b"localhost:123456", b"localhost:80:80", b"localhost, localhost"),
    *(b"localhost\tevil.example", b"localhost/", b"http://localhost", b"localhost\xa0", b"0.0.0.0:8000"),
    *(b"127.1", b"127." * 5_000, b"[::]", b"[::1", b"::1", b"[::1]x", b"[::1%25lo]", b"[localhost]", b":8000", b""),
)


@pytest.fixture
def checkouts() -> Iterator[list[None]]:
    """Has one element for each database connection that a request has taken."""
    with counted_checkouts() as checkouts:
        yield checkouts


async def ask(url: httpx.URL, *fields: bytes, start: str = LIST, content: bytes = b"") -> tuple[int, bytes, bytes]:
    """Send a request with this start line. Its only `Host` headers are those in `fields`."""
    lines = [start.encode(), *fields, b"Connection: close"]
    if content:
        lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(content)]
    return await exchange(url, b"\r\n".join([*lines, b"", content]))


def kind(body: bytes) -> str:
    """The specific part of the problem's type."""
    return str(json.loads(body)["type"]).removeprefix("urn:problem-type:")


class TestHost:
    async def test_a_loopback_host_is_answered_with_a_database_connection(
        self, client: httpx.AsyncClient, checkouts: list[None]
    ) -> None:
        statuses = [(await ask(client.base_url, b"Host: " + host))[0] for host in LOOPBACK_HOSTS]

        assert statuses == [200] * len(LOOPBACK_HOSTS)
        assert len(checkouts) == len(LOOPBACK_HOSTS)

    @pytest.mark.parametrize("host", FOREIGN_HOSTS, ids=short)
    async def test_a_foreign_host_is_421_without_a_database_connection(
        self, client: httpx.AsyncClient, checkouts: list[None], host: bytes
    ) -> None:
        status, _, body = await ask(client.base_url, b"Host: " + host)

        assert (status, kind(body), checkouts) == (421, "misdirected-request", [])

    @pytest.mark.parametrize(
        ("start", "expected"),
        [
            (f"HEAD {TASKS}", 200),
            (f"PUT {TASKS}/{MISSING}", 422),
            (f"DELETE {TASKS}/{MISSING}", 404),
            (f"PATCH {TASKS}/{MISSING}/complete", 404),
            ("GET /docs/assets/swagger-ui.css", 200),
            ("GET /openapi.json", 200),
            ("GET /health/live", 200),
            ("TRACE /nope", 404),
            (f"OPTIONS {TASKS}", 405),
        ],
    )
    async def test_every_path_is_answered_only_for_a_loopback_host(
        self, client: httpx.AsyncClient, start: str, expected: int
    ) -> None:
        loopback, _, _ = await ask(client.base_url, b"Host: localhost", start=f"{start} HTTP/1.1")
        foreign, head, _ = await ask(client.base_url, b"Host: evil.example", start=f"{start} HTTP/1.1")

        assert (loopback, foreign) == (expected, 421)
        assert b"\r\ncontent-type: application/problem+json" in head

    async def test_a_preflight_is_answered_only_for_a_loopback_host(self, client: httpx.AsyncClient) -> None:
        asked = (b"Origin: http://localhost:3000", b"Access-Control-Request-Method: POST")
        start = f"OPTIONS {TASKS} HTTP/1.1"
        loopback = await ask(client.base_url, b"Host: localhost:8000", *asked, start=start)
        other = await ask(client.base_url, b"Host: evil.example:8000", *asked, start=start)

        assert (loopback[0], other[0]) == (200, 421)
        assert b"\r\naccess-control-allow-origin: http://localhost:3000" in loopback[1]
        assert b"access-control-" not in other[1]

    @pytest.mark.parametrize(
        ("start", "fields"),
        [
            (f"GET {TASKS} HTTP/1.0", ()),
            (f"GET {TASKS} HTTP/1.0", (b"Host: evil.example",)),
            (f"GET http://evil.example{TASKS} HTTP/1.1", (b"Host: localhost",)),
            (f"GET http://evil.example{TASKS} HTTP/1.0", ()),
            (f"GET http://evil.example?@localhost{TASKS} HTTP/1.1", (b"Host: localhost",)),
            (f"GET //localhost{TASKS} HTTP/1.1", (b"Host: evil.example",)),
        ],
    )
    async def test_only_the_authority_of_an_absolute_url_replaces_the_host_header(
        self, client: httpx.AsyncClient, start: str, fields: tuple[bytes, ...]
    ) -> None:
        foreign = await ask(client.base_url, *fields, start=start)
        local = [
            await ask(client.base_url, b"Host: localhost", start=f"GET {TASKS} HTTP/1.0"),
            await ask(client.base_url, b"Host: evil.example", start=f"GET http://LocalHost:8000{TASKS} HTTP/1.1"),
            await ask(client.base_url, start=f"GET https://[::1]{TASKS} HTTP/1.0"),
        ]

        assert (foreign[0], [status for status, _, _ in local]) == (421, [200] * 3)

    async def test_neither_a_421_nor_its_log_line_repeats_the_host(
        self, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "app.requests"):
            _, head, body = await ask(client.base_url, b"Host: evil.example", b"X-Request-ID: a-request")

        assert json.loads(body).keys() == {"type", "title", "status", "detail", "instance"}
        assert json.loads(body)["instance"] == "a-request"
        for line in (b"cache-control: no-store", b"x-content-type-options: nosniff", b"x-request-id: a-request"):
            assert b"\r\n" + line in head
        [record] = [record for record in caplog.records if record.name == "app.requests"]
        assert vars(record)["status"] == 421
        assert "evil" not in record.getMessage() + (head + body).decode()


class TestFraming:
    @pytest.mark.parametrize(
        ("version", "fields"),
        [
            ("1.1", (b"Host: localhost", b"Host: evil.example")),
            ("1.0", (b"Host: evil.example", b"Host: localhost")),
            ("1.1", ()),
            ("1.1", (b"Host : localhost",)),
            ("1.1", (b"X: a\r\n Host: localhost",)),
        ],
        ids=short,
    )
    async def test_a_request_without_exactly_one_well_formed_host_header_is_400(
        self, base_url: str, secured_url: str, checkouts: list[None], version: str, fields: tuple[bytes, ...]
    ) -> None:
        for url in (base_url, secured_url):
            status, _, body = await ask(httpx.URL(url), *fields, start=f"GET {TASKS} HTTP/{version}")
            assert (status, kind(body), checkouts) == (400, "malformed-request", [])


async def test_every_host_is_answered_with_authentication(secured_url: str) -> None:
    url = httpx.URL(secured_url)
    for host in (b"localhost", b"evil.example", b"[::1", b"", b"\xff"):
        assert (await ask(url, b"Host: " + host, start="GET /docs HTTP/1.1"))[0] == 200
        assert (await ask(url, b"Host: " + host))[0] == 401
    assert (await ask(url, start="GET /docs HTTP/1.0"))[0] == 200


class TestProxy:
    """A proxy makes clients of other machines look like clients of this one, whatever `Host` it passes on."""

    @pytest.mark.parametrize(
        "marks",
        [
            *((b"X-Forwarded-For: " + value,) for value in (b"192.0.2.1", b"127.0.0.1", b"")),
            *((b"X-Forwarded-Host: " + value,) for value in (b"tasks.example.com", b"localhost")),
            *((b"Forwarded: " + value,) for value in (b"for=192.0.2.1", b"for=127.0.0.1;host=localhost", b"")),
            *((name + b": x",) for name in (b"Via", b"X-Real-IP", b"X-Forwarded-Proto", b"X-Forwarded-Server")),
            *(
                (name + b": x",)
                for name in (b"CF-Connecting-IP", b"True-Client-IP", b"X-Client-IP", b"X-Forwarded-Port")
            ),
            *((name + b": x",) for name in (b"X-Envoy-External-Address", b"Fly-Client-IP", b"Tailscale-User-Login")),
            (b"x-FORWARDED-for: ::1", b"X-Real-IP: ::1"),
        ],
        ids=short,
    )
    @pytest.mark.parametrize(
        "start", [LIST, "GET /health/ready HTTP/1.1", f"OPTIONS {TASKS} HTTP/1.0", "GET /docs HTTP/1.1"]
    )
    async def test_a_request_that_a_proxy_has_marked_is_421(
        self, client: httpx.AsyncClient, checkouts: list[None], marks: tuple[bytes, ...], start: str
    ) -> None:
        status, _, body = await ask(client.base_url, b"Host: localhost", *marks, start=start)

        assert (status, kind(body), checkouts) == (421, "misdirected-request", [])
        assert json.loads(body)["detail"].endswith("Set AUTH_JWT_SECRET or AUTH_JWKS_URL.")

    @pytest.mark.parametrize(
        ("clients", "hosts", "others", "expected"),
        [
            ([b"::1"], [b"localhost:3000"], [b"X-Forwarded-Port: 3000"], 200),
            ([b"::ffff:127.0.0.1,::1", b"127.0.0.1"], [b"127.0.0.1:3000"], [], 200),
            ([b"192.0.2.1"], [b"localhost:3000"], [], 421),
            ([b"127.0.0.1,192.0.2.1"], [b"localhost:3000"], [], 421),
            ([b"127.0.0.1", b"192.0.2.1"], [b"localhost:3000"], [], 421),
            ([b"127.0.0.1,"], [b"localhost:3000"], [], 421),
            ([b"unknown"], [b"localhost:3000"], [], 421),
            ([b"127.0.0.1"], [b"evil.example:3000"], [], 421),
            ([b"127.0.0.1"], [b"localhost", b"evil.example"], [], 421),
            ([b"127.0.0.1"], [b"localhost"], [b"Via: 1.1 proxy"], 421),
        ],
    )
    async def test_a_development_server_is_answered_if_its_client_and_host_are_of_this_machine(
        self, client: httpx.AsyncClient, clients: list[bytes], hosts: list[bytes], others: list[bytes], expected: int
    ) -> None:
        """The rewrites of Next.js and the proxy of Create React App use http-proxy with `xfwd`, which sets all."""
        marks = [b"X-Forwarded-Proto: http", *others]
        marks += [b"X-Forwarded-For: " + value for value in clients] + [
            b"X-Forwarded-Host: " + value for value in hosts
        ]

        assert (await ask(client.base_url, b"Host: 127.0.0.1:8000", *marks))[0] == expected

    async def test_a_request_that_a_proxy_has_marked_is_answered_with_authentication(self, secured_url: str) -> None:
        marks = (b"X-Forwarded-For: 192.0.2.1", b"X-Real-IP: 192.0.2.1", b"Forwarded: for=192.0.2.1", b"Via: 1.1 proxy")

        assert (await ask(httpx.URL(secured_url), b"Host: tasks.example.com", *marks))[0] == 401


class TestAddress:
    @pytest.mark.parametrize(
        ("server", "host", "authentication", "expected"),
        [
            (("127.3.2.1", 8000), "localhost", {}, 200),
            (("::1", 8000), "localhost", {}, 200),
            (("/run/tasks", None), "localhost", {}, 200),
            (("192.0.2.1", 8000), "localhost", {}, 421),
            (("127.0.0.1", 8000), "evil.example", {}, 421),
            (("/run/tasks", None), "evil.example", {}, 421),
            (("192.0.2.1", 8000), "tasks.example.com", {"auth_jwt_secret": SECRET}, 401),
        ],
    )
    async def test_without_authentication_a_request_needs_a_loopback_host_and_a_loopback_address_or_a_unix_socket(
        self, dsn: str, server: tuple[str, int | None], host: str, authentication: dict[str, str], expected: int
    ) -> None:
        """Our server listens where the settings say. Another server, started by hand, may listen on every address."""
        app = create_app(make_settings(dsn, **authentication))

        async def at_address(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "server": server, "state": dict(state or {})}, receive, send)

        async with (
            app.router.lifespan_context(app) as state,
            httpx.AsyncClient(transport=httpx.ASGITransport(at_address), base_url=f"http://{host}") as client,
        ):
            assert (await client.get(TASKS)).status_code == expected


class TestRebinding:
    """The attack: a browser on this machine shows http://evil.example:8000, and that name now resolves to 127.0.0.1.
    The requests of the page's script have the same origin, so neither a preflight nor a CORS header stops them.
    """

    @pytest.mark.parametrize(("host", "control"), [("evil.example:8000", False), ("localhost:8000", True)])
    async def test_a_page_reads_creates_and_deletes_tasks_only_under_a_loopback_host(
        self, client: httpx.AsyncClient, task: dict[str, Any], tasks: str, host: str, *, control: bool
    ) -> None:
        page = (f"Host: {host}".encode(), b"Origin: http://evil.example:8000", b"Sec-Fetch-Site: same-origin")

        _, _, listed = await ask(client.base_url, *page, start=f"GET {tasks} HTTP/1.1")
        await ask(client.base_url, *page, start=f"POST {tasks} HTTP/1.1", content=b'{"title": "Planted"}')
        await ask(client.base_url, *page, start=f"DELETE {tasks}/{task['id']} HTTP/1.1")

        assert (task["id"].encode() in listed) == control
        titles = [task["title"] for task in (await client.get(tasks)).json()]
        assert titles == (["Planted"] if control else [task["title"]])

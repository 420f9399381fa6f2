"""nginx with docs/nginx.conf in front of the service: forwarded requests, refused requests, and its logs."""

import asyncio
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from secrets import randbelow
from typing import Final, NamedTuple

import httpx
import pytest
import trustme

from app.core.security.tokens import TOKEN_MAX
from tests.support import SECRET, bearer, make_settings, serving

EXAMPLE: Final = (Path(__file__).parents[1] / "docs/nginx.conf").read_text()
# Debian installs nginx in a directory that is not in the PATH of ordinary users.
NGINX: Final = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") or ""
NAME: Final = "tasks.example.com"
ORIGIN: Final = "https://app.example.com"
LIMIT: Final = 65_536
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
HSTS: Final = "max-age=63072000"
# Headers of a connection or a server, not of the reply.
HOP_BY_HOP: Final = {"connection", "date", "keep-alive", "server", "transfer-encoding"}
MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
# All clients of these tests come from one address.
NO_RATE_LIMIT: Final = {"rate=20r/s": "rate=100000r/s", "burst=40": "burst=100000"}

# The rest of a configuration, with directives in its `http` block that could interfere.
MAIN: Final = """
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/main.log;
events {{}}
http {{
    gzip on;
    gzip_types *;
    gzip_proxied any;
    access_log {directory}/main-access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    scgi_temp_path {directory}/scgi;
    uwsgi_temp_path {directory}/uwsgi;
    include {directory}/site;
}}
"""

pytestmark = pytest.mark.skipif(not NGINX, reason="nginx is not installed")


class Upstream:
    """Stands in for a service that fails. It records the requests, sends `answers` on each connection, and closes the
    connection after the next request.
    """

    def __init__(self, *answers: bytes) -> None:
        self.arrived: list[bytes] = []
        self.reached = asyncio.Event()
        self.released = asyncio.Event()
        self.released.set()
        self._answers = answers

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            for answer in self._answers:
                await self._receive(reader)
                writer.write(answer)
            await self._receive(reader)
        writer.close()

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        self.arrived.append(head + await reader.readexactly(int(length[1]) if length else 0))
        self.reached.set()
        await self.released.wait()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self, "127.0.0.1")
        try:
            yield "http://{}:{}".format(*server.sockets[0].getsockname())
        finally:
            self.released.set()
            server.close()


class Proxy(NamedTuple):
    """A running nginx."""

    directory: Path
    port: int
    plain_port: int
    trust: ssl.SSLContext

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def plain_url(self) -> str:
        return f"http://127.0.0.1:{self.plain_port}"

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, verify=self.trust, headers={"Host": NAME}, timeout=30)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trust, server_hostname=NAME)

    async def exchange(self, request: bytes) -> tuple[bytes, bytes]:
        """Send these bytes. Returns the head and the body of the only reply."""
        reader, writer = await self.connect()
        writer.write(request)
        async with asyncio.timeout(10):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return head, body

    def logs(self) -> str:
        """The contents of all logs of nginx."""
        return "".join(path.read_text() for path in self.directory.glob("*.log"))

    async def logged(self, **members: str) -> dict[str, str]:
        """The only line with these members. nginx writes a line after the reply."""
        async with asyncio.timeout(10):
            while not (found := [line for line in self._lines() if line.items() >= members.items()]):  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.01)
        [line] = found
        return line

    def _lines(self) -> list[dict[str, str]]:
        whole = (self.directory / "tasks-access.log").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in whole if line.endswith("\n")]


Start = Callable[..., AbstractAsyncContextManager[Proxy]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts nginx in front of an address, with parts of the example replaced."""
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    certificate = authority.issue_cert("127.0.0.1", NAME)

    @asynccontextmanager
    async def start(service: str, changes: Mapping[str, str] = NO_RATE_LIMIT) -> AsyncIterator[Proxy]:
        proxy = Proxy(tmp_path_factory.mktemp("nginx"), _free_port(), _free_port(), trust)
        certificate.private_key_and_cert_chain_pem.write_to_path(str(proxy.directory / "tls.pem"))
        authority.cert_pem.write_to_path(str(proxy.directory / "ca.pem"))
        _write_configuration(proxy, service, changes)
        with _running(proxy.directory) as process:
            await _listening(proxy, process)
            yield proxy

    return start


def _free_port() -> int:
    """Returns a port below the range that the system assigns to other programs."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", 10_000 + randbelow(20_000))) as probe:
            port: int = probe.getsockname()[1]
            return port


def _write_configuration(proxy: Proxy, service: str, changes: Mapping[str, str]) -> None:
    """Write the example with other ports, paths and certificates, so that several can run on one machine."""
    everywhere = {
        "    listen [::]:80;\n": "",
        "    listen [::]:443 ssl http2;\n": "",
        "listen 80;": f"listen 127.0.0.1:{proxy.plain_port};",
        "listen 443 ": f"listen 127.0.0.1:{proxy.port} ",
        "server 127.0.0.1:8000;": f"server {service.removeprefix('http://')};",
        f"/etc/letsencrypt/live/{NAME}/fullchain.pem": f"{proxy.directory}/tls.pem",
        f"/etc/letsencrypt/live/{NAME}/privkey.pem": f"{proxy.directory}/tls.pem",
        "/var/log/nginx/": f"{proxy.directory}/",
    }
    site = EXAMPLE
    for words, others in {**everywhere, **changes}.items():
        assert words in site
        site = site.replace(words, others)
    (proxy.directory / "site").write_text(site)
    user = "user root;" if os.geteuid() == 0 else ""  # only root may set it, and has to
    (proxy.directory / "main").write_text(MAIN.format(directory=proxy.directory, user=user))


@contextmanager
def _running(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [NGINX, "-p", str(directory), "-c", "main", "-e", str(directory / "start.log")]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.terminate()


async def _listening(proxy: Proxy, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(10):
        while process.poll() is None:
            with suppress(ConnectionError):
                _, writer = await asyncio.open_connection("127.0.0.1", proxy.plain_port)
                writer.close()
                return
            await asyncio.sleep(0.01)
    raise AssertionError(proxy.logs())


@pytest.fixture(scope="module")
async def service(dsn: str) -> AsyncIterator[str]:
    settings = make_settings(dsn, auth_jwt_secret=SECRET, cors_origins=ORIGIN)
    async with serving(settings) as url:
        yield url


@pytest.fixture(scope="module")
async def proxy(start: Start, service: str) -> AsyncIterator[Proxy]:
    async with start(service) as proxy:
        yield proxy


@pytest.fixture(scope="module")
async def proxied(proxy: Proxy) -> AsyncIterator[httpx.AsyncClient]:
    async with proxy.client() as client:
        yield client


def check_problem(reply: httpx.Response, status: int, kind: str) -> None:
    """Check the headers and members that errors of nginx share with those of the service."""
    problem = reply.json()
    assert (reply.status_code, reply.headers["Content-Type"]) == (status, "application/problem+json")
    assert list(problem) == ["type", "title", "status", "detail", "instance"]
    assert (problem["type"], problem["status"]) == (f"urn:problem-type:{kind}", status)
    assert problem["instance"] == reply.headers["X-Request-ID"]
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Strict-Transport-Security"] == HSTS
    assert reply.headers["Server"] == "nginx"


def end_to_end(reply: httpx.Response) -> list[tuple[str, str]]:
    return sorted((name, value) for name, value in reply.headers.multi_items() if name not in HOP_BY_HOP)


class TestFile:
    async def test_nginx_accepts_the_file_without_a_warning(self, proxy: Proxy) -> None:
        command = [NGINX, "-t", "-p", str(proxy.directory), "-c", "main", "-e", str(proxy.directory / "start.log")]

        tested = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)

        warnings = [line for line in tested.stderr.splitlines() if "[" in line]
        assert tested.returncode == 0, tested.stderr
        # nginx 1.25 and newer prefer the directive `http2`, which older versions do not know.
        assert [line for line in warnings if '"listen ... http2" directive is deprecated' not in line] == []


class TestPassage:
    @pytest.mark.parametrize(
        ("path", "headers"),
        [
            ("{tasks}", {}),
            ("{tasks}?limit=1&sort=title", {}),
            ("{tasks}?limit=0", {}),
            ("{tasks}?nope=1", {"Origin": ORIGIN}),
            ("{tasks}/{task_id}", {"Origin": ORIGIN}),
            ("{tasks}/{task_id}", {"If-None-Match": "*"}),
            ("{tasks}/{task_id}", {"Accept-Encoding": "gzip"}),
            ("{tasks}/" + MISSING, {"Origin": ORIGIN}),
            ("{tasks}", {"Authorization": "Bearer a.b.c", "Origin": ORIGIN}),
            ("{tasks}", {"Authorization": ""}),
            ("{tasks}", bearer("somebody-else")),
            ("/docs", {"Accept-Encoding": "gzip"}),
            ("/openapi.json", {}),
            ("/nope", {}),
        ],
        ids=lambda value: value if isinstance(value, str) else ", ".join(value),
    )
    async def test_a_reply_equals_that_of_the_service_plus_hsts(
        self, proxied: httpx.AsyncClient, service: str, new_user: Callable[[], str], path: str, headers: dict[str, str]
    ) -> None:
        user = new_user()
        tasks = f"/api/{user}/tasks"
        for title in ("one", "two"):
            created = await proxied.post(tasks, json={"title": title}, headers=bearer(user))
        url = path.format(tasks=tasks, task_id=created.json()["id"])
        given = {**bearer(user), "X-Request-ID": user, **headers}

        through = await proxied.get(url, headers=given)
        async with httpx.AsyncClient(base_url=service) as client:
            direct = await client.get(url, headers=given)

        assert (through.status_code, through.content) == (direct.status_code, direct.content)
        assert end_to_end(through) == sorted([*end_to_end(direct), ("strict-transport-security", HSTS)])
        assert through.headers["Server"] == "nginx"

    async def test_a_task_is_created_with_its_location_and_changed_by_its_etag(
        self, proxied: httpx.AsyncClient, tasks: str, user: str
    ) -> None:
        created = await proxied.post(tasks, json={"title": "Buy oat milk"}, headers=bearer(user))
        versions = [created.headers["ETag"], '"2000-01-01T00:00:00.000000Z"']
        location = created.headers["Location"]

        changed = [
            await proxied.put(location, json={"title": "Done"}, headers={**bearer(user), "If-Match": version})
            for version in versions
        ]

        assert location == f"{tasks}/{created.json()['id']}"
        assert [reply.status_code for reply in changed] == [200, 412]
        assert (await proxied.delete(location, headers=bearer(user))).status_code == 204

    async def test_a_chunked_body_is_forwarded(self, proxied: httpx.AsyncClient, tasks: str, user: str) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for chunk in (b'{"title"', b': "a', b'b"}'):
                yield chunk

        headers = {**bearer(user), "Content-Type": "application/json"}
        reply = await proxied.post(tasks, content=chunks(), headers=headers)

        assert "Content-Length" not in reply.request.headers
        assert (reply.status_code, reply.json()["title"]) == (201, "ab")

    async def test_a_body_of_the_largest_size_is_forwarded(
        self, proxied: httpx.AsyncClient, tasks: str, user: str
    ) -> None:
        headers = {**bearer(user), "Content-Type": "application/json"}

        reply = await proxied.post(tasks, content=b'{"title": "a"}'.ljust(LIMIT), headers=headers)

        assert reply.status_code == 201

    async def test_a_token_of_the_largest_length_is_forwarded(
        self, proxied: httpx.AsyncClient, tasks: str, user: str
    ) -> None:
        longest = next(
            headers
            for length in range(6_144, 0, -1)
            if len((headers := bearer(user, name="a" * length))["Authorization"]) <= len("Bearer ") + TOKEN_MAX
        )

        assert len("Authorization: ") + len(longest["Authorization"]) > 8_192  # the default limit of nginx
        assert (await proxied.get(tasks, headers=longest)).status_code == 200

    async def test_a_reply_with_long_headers_is_forwarded(
        self, proxied: httpx.AsyncClient, tasks: str, user: str
    ) -> None:
        for number in range(2):
            task = {"title": f"{number}".ljust(200, "\U0001f418")}
            assert (await proxied.post(tasks, json=task, headers=bearer(user))).status_code == 201
        unknown = {"\U0001f418" * 10 + str(number): "" for number in range(20)}
        params = {"limit": "1", "sort": "title", "search": "\U0001f418" * 199, **unknown}

        reply = await proxied.get(tasks, params=params, headers=bearer(user))

        assert reply.status_code == 200
        assert len(reply.headers["Link"]) + len(reply.headers["Ignored-Fields"]) > 4_096  # the default limit of nginx

    async def test_a_request_over_http_2_is_answered(self, proxy: Proxy, tasks: str, user: str) -> None:
        status, _, body = await curl(proxy, tasks, bearer(user))

        assert (status, json.loads(body)) == ("2 200", [])

    async def test_a_service_without_authentication_refuses_requests_through_the_proxy(
        self, start: Start, base_url: str, tasks: str
    ) -> None:
        async with start(base_url) as proxy, proxy.client() as client:
            reply = await client.get(tasks)

        assert (reply.status_code, reply.json()["type"]) == (421, "urn:problem-type:misdirected-request")


async def curl(proxy: Proxy, path: str, headers: Mapping[str, str]) -> tuple[str, str, str]:
    """Send a GET request over HTTP/2. Returns the HTTP version with the status, the media type, and the body."""
    command = ["curl", "--silent", "--http2", "--cacert", str(proxy.directory / "ca.pem"), proxy.url + path]
    given = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    wanted = ["-w", "\n%{http_version} %{http_code}\n%{content_type}"]
    process = await asyncio.create_subprocess_exec(*command, *given, *wanted, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    body, status, media_type = output.decode().rsplit("\n", 2)
    return status, media_type, body


class TestRefusal:
    """Errors of nginx itself, over HTTP/1.1 unless the test names another version."""

    @pytest.mark.parametrize("size", [LIMIT + 1, 1_000_000])
    async def test_a_body_above_64_kib_is_413(self, proxied: httpx.AsyncClient, tasks: str, size: int) -> None:
        check_problem(await proxied.post(tasks, content=b" " * size), 413, "body-too-large")

    async def test_a_chunked_body_above_64_kib_is_413(self, proxied: httpx.AsyncClient, tasks: str) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(LIMIT // 1_024 + 1):
                yield b" " * 1_024

        check_problem(await proxied.post(tasks, content=chunks()), 413, "body-too-large")

    @pytest.mark.parametrize(
        ("query", "headers"),
        [
            ("", {"Authorization": "Bearer " + "a" * 17_000}),
            ("", {f"A-{number}": "a" * 300 for number in range(150)}),
            ("?search=" + "a" * 17_000, {}),
        ],
        ids=["one header", "many headers", "request line"],
    )
    async def test_a_head_above_the_size_limit_is_431(
        self, proxied: httpx.AsyncClient, tasks: str, query: str, headers: dict[str, str]
    ) -> None:
        check_problem(await proxied.get(tasks + query, headers=headers), 431, "head-too-large")

    async def test_a_head_above_the_size_limit_over_http_2_closes_the_connection(
        self, proxy: Proxy, tasks: str
    ) -> None:
        headers = {"A": "a" * 20_000, "B": "a" * 20_000}  # compressed, they are within the limit

        assert await curl(proxy, tasks, headers) == ("0 000", "", "")

    async def test_more_headers_than_the_service_takes_are_431(self, proxied: httpx.AsyncClient, tasks: str) -> None:
        check_problem(
            await proxied.get(tasks, headers={f"A-{number}": "" for number in range(100)}), 431, "head-too-large"
        )

    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
            b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\x16\x03\x01 nonsense\r\n\r\n",
        ],
        ids=ascii,
    )
    async def test_a_malformed_request_is_400(self, proxy: Proxy, request_bytes: bytes) -> None:
        head, body = await proxy.exchange(request_bytes)

        assert head.split()[1] == b"400"
        assert b"Content-Type: application/problem+json" in head
        assert json.loads(body)["type"] == "urn:problem-type:malformed-request"

    async def test_plain_http_on_the_port_of_https_is_400(self, proxy: Proxy) -> None:
        async with httpx.AsyncClient() as client:
            check_problem(await client.get(f"http://127.0.0.1:{proxy.port}/"), 400, "malformed-request")

    async def test_trace_is_501(self, proxied: httpx.AsyncClient, tasks: str) -> None:
        check_problem(await proxied.request("TRACE", tasks), 501, "not-implemented")

    async def test_a_transfer_coding_other_than_chunked_is_501(self, proxy: Proxy) -> None:
        head, body = await proxy.exchange(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
        )

        assert head.split()[1] == b"501"
        assert json.loads(body)["type"] == "urn:problem-type:not-implemented"

    async def test_the_internal_location_of_errors_is_404(self, proxied: httpx.AsyncClient) -> None:
        check_problem(await proxied.get("/.problem"), 404, "route-not-found")

    async def test_too_many_requests_of_one_address_are_429(
        self, start: Start, service: str, tasks: str, user: str
    ) -> None:
        async with (
            start(service, {"rate=20r/s": "rate=1r/m", "burst=40": "burst=2"}) as proxy,
            proxy.client() as client,
        ):
            replies = [
                await client.get(tasks, headers={**bearer(user), "X-Forwarded-For": f"10.0.0.{number}"})
                for number in range(4)
            ]

        assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
        check_problem(replies[3], 429, "too-many-requests")
        assert int(replies[3].headers["Retry-After"]) > 0

    async def test_too_many_connections_of_one_address_are_429(self, start: Start, tasks: str) -> None:
        upstream = Upstream(OK)
        upstream.released.clear()
        changes = {**NO_RATE_LIMIT, "limit_conn tasks_connections 32;": "limit_conn tasks_connections 1;"}
        async with upstream.listening() as url, start(url, changes) as proxy, proxy.client() as client:
            first = asyncio.create_task(client.get(tasks))
            await upstream.reached.wait()
            second = await client.get(tasks)
            upstream.released.set()

            assert (await first).status_code == 200
        check_problem(second, 429, "too-many-requests")

    async def test_a_service_that_is_down_is_502(self, start: Start, tasks: str) -> None:
        async with start(f"http://127.0.0.1:{_free_port()}") as proxy, proxy.client() as client:
            reply = await client.get(tasks)

        check_problem(reply, 502, "service-unreachable")
        assert int(reply.headers["Retry-After"]) > 0

    async def test_an_unresponsive_service_is_504(self, start: Start, tasks: str) -> None:
        upstream = Upstream(OK)
        upstream.released.clear()
        changes = {**NO_RATE_LIMIT, "proxy_read_timeout 30s;": "proxy_read_timeout 200ms;"}
        async with upstream.listening() as url, start(url, changes) as proxy, proxy.client() as client:
            reply = await client.post(tasks, json={"title": "a"})

        check_problem(reply, 504, "service-unreachable")
        assert len(upstream.arrived) == 1

    async def test_a_page_of_a_listed_origin_may_read_an_error(self, proxied: httpx.AsyncClient, tasks: str) -> None:
        headers = {"Origin": ORIGIN, "X-Request-ID": "mine"}

        reply = await proxied.post(tasks, content=b" " * (LIMIT + 1), headers=headers)

        assert reply.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert reply.headers["Access-Control-Allow-Credentials"] == "true"
        assert reply.headers["Access-Control-Expose-Headers"] == "Retry-After, X-Request-ID"
        assert reply.headers["Vary"] == "Origin"
        assert reply.json()["instance"] == "mine"

    async def test_a_page_of_another_origin_may_not_read_an_error(self, proxied: httpx.AsyncClient, tasks: str) -> None:
        headers = {"Origin": "https://app.example.com.evil.example"}

        reply = await proxied.post(tasks, content=b" " * (LIMIT + 1), headers=headers)

        assert reply.status_code == 413
        assert "Access-Control-Allow-Origin" not in reply.headers
        assert "Access-Control-Allow-Credentials" not in reply.headers


class TestSlowClient:
    @pytest.mark.parametrize(
        ("sent", "directive"),
        [
            (b"GET / HTTP/1.1\r\nHost: tasks.example.com\r\nA: ", "client_header_timeout 10s;"),
            (b"POST / HTTP/1.1\r\nHost: tasks.example.com\r\nContent-Length: 9\r\n\r\n{", "client_body_timeout 10s;"),
        ],
        ids=["head", "body"],
    )
    async def test_a_slow_request_is_aborted_and_never_forwarded(
        self, start: Start, sent: bytes, directive: str
    ) -> None:
        upstream = Upstream(OK)
        changes = {**NO_RATE_LIMIT, directive: directive.replace("10s", "200ms")}
        async with upstream.listening() as url, start(url, changes) as proxy:
            reader, writer = await proxy.connect()
            writer.write(sent)
            async with asyncio.timeout(10):
                with suppress(ConnectionError):  # the connection is reset
                    assert await reader.read() == b""
            writer.close()
            await proxy.logged(status="408")

        assert upstream.arrived == []


class TestForwarding:
    async def test_a_path_is_forwarded_unchanged(self, start: Start) -> None:
        target = b"/api/auth0%7Cada/tasks/a%2Fb//c%20/%c3%a9?search=%25%20+%00&cursor=a;b"
        upstream = Upstream(OK)
        async with upstream.listening() as url, start(url) as proxy:
            await proxy.exchange(b"GET %s HTTP/1.1\r\nHost: tasks.example.com\r\nConnection: close\r\n\r\n" % target)

        [arrived] = upstream.arrived
        assert arrived.startswith(b"GET %s HTTP/1.1\r\n" % target)

    async def test_a_connection_header_of_the_client_is_not_forwarded(self, start: Start, tasks: str) -> None:
        upstream = Upstream(OK)
        async with upstream.listening() as url, start(url) as proxy, proxy.client() as client:
            await client.get(tasks, headers={"Connection": "close"})

        assert b"\r\nconnection:" not in upstream.arrived[0].lower()

    async def test_a_client_cannot_forge_its_address(self, start: Start, tasks: str) -> None:
        names = (
            "X-Forwarded-For",
            "X-Forwarded-Host",
            "X-Forwarded-Port",
            "X-Forwarded-Proto",
            "X-Real-IP",
            "Forwarded",
        )
        upstream = Upstream(OK)
        async with upstream.listening() as url, start(url) as proxy, proxy.client() as client:
            await client.get(tasks, headers={**dict.fromkeys(names, "192.0.2.1"), "X-Request-ID": "mine"})
            logged = await proxy.logged(request_id="mine")

        [arrived] = upstream.arrived
        headers = dict(line.decode().split(": ", 1) for line in arrived.split(b"\r\n")[1:-2])
        assert {name: value for name, value in headers.items() if name in names} == {
            "X-Forwarded-For": "127.0.0.1",
            "X-Forwarded-Proto": "https",
        }
        assert b"192.0.2.1" not in arrived
        assert headers["Host"] == NAME
        assert logged["address"] == "127.0.0.1"

    @pytest.mark.parametrize("sent", ["", "a b", "a" * 129, '"}', "a\x7fb"], ids=ascii)
    async def test_an_invalid_request_id_is_replaced(self, start: Start, tasks: str, sent: str) -> None:
        upstream = Upstream(OK)
        async with upstream.listening() as url, start(url) as proxy, proxy.client() as client:
            await client.get(tasks, headers={"X-Request-ID": sent})

        assert re.search(rb"\r\nX-Request-ID: [0-9a-f]{32}\r\n", upstream.arrived[0])

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def test_a_request_without_an_answer_is_not_repeated(self, start: Start, tasks: str, method: str) -> None:
        assert await self._deliveries(start, tasks, method, NO_RATE_LIMIT) == 1

    async def test_a_repeated_request_is_counted_twice(self, start: Start, tasks: str) -> None:
        changes = {**NO_RATE_LIMIT, "proxy_next_upstream off;": "proxy_next_upstream error timeout non_idempotent;"}

        assert await self._deliveries(start, tasks, "POST", changes) == 2

    async def _deliveries(self, start: Start, tasks: str, method: str, changes: Mapping[str, str]) -> int:
        """Returns how often a request arrives at a service that closes the used connection without an answer."""
        upstream = Upstream(OK)
        async with upstream.listening() as url, start(url, changes) as proxy, proxy.client() as client:
            assert (await client.get("/health/live")).status_code == 200
            await client.request(method, tasks)
        return sum(request.startswith(f"{method} {tasks} ".encode()) for request in upstream.arrived)


class TestLogs:
    async def test_an_access_log_line_has_neither_user_nor_query(
        self, proxy: Proxy, proxied: httpx.AsyncClient, tasks: str, user: str
    ) -> None:
        headers = {**bearer(user), "X-Request-ID": f"of-{user}", "Referer": "https://zq9.example", "User-Agent": "zq9"}

        await proxied.get(f"{tasks}/{MISSING}?search=zq9", headers=headers)

        line = await proxy.logged(request_id=f"of-{user}")
        assert (line["method"], line["path"], line["status"]) == ("GET", f"/api/-/tasks/{MISSING}", "404")
        assert line["service_status"] == "404"
        assert "zq9" not in proxy.logs()
        assert f"/{user}/" not in proxy.logs()

    @pytest.mark.parametrize("path", ["/docs", "/api/", "/api/ada", "/nope/%2F"])
    async def test_the_query_of_another_path_is_not_logged(
        self, proxy: Proxy, proxied: httpx.AsyncClient, new_user: Callable[[], str], path: str
    ) -> None:
        request_id = f"of-{new_user()}"

        await proxied.get(f"{path}?search=zq9", headers={"X-Request-ID": request_id})

        assert (await proxy.logged(request_id=request_id))["path"] == path.replace("ada", "-")
        assert "zq9" not in proxy.logs()

    @pytest.mark.parametrize("number", [0, LIMIT + 1], ids=["no answer", "too large"])
    async def test_an_error_is_logged_without_query_and_token(
        self, start: Start, tasks: str, user: str, number: int
    ) -> None:
        headers = bearer(user)
        upstream = Upstream()
        async with upstream.listening() as url, start(url) as proxy, proxy.client() as client:
            reply = await client.post(f"{tasks}?search=zq9", content=b" " * number, headers=headers)
            line = await proxy.logged(request_id=reply.json()["instance"])
            logs = proxy.logs()

        assert line["status"] == str(reply.status_code) in {"502", "413"}
        assert "zq9" not in logs
        assert headers["Authorization"].removeprefix("Bearer ") not in logs

    async def test_an_error_log_at_level_error_would_contain_the_query(self, start: Start, tasks: str) -> None:
        upstream = Upstream()
        changes = {**NO_RATE_LIMIT, "tasks-error.log crit;": "tasks-error.log error;"}
        async with upstream.listening() as url, start(url, changes) as proxy, proxy.client() as client:
            await client.get(f"{tasks}?search=zq9")

            assert "zq9" in proxy.logs()

    async def test_plain_http_is_redirected_to_https_and_logged_without_its_query(
        self, proxy: Proxy, user: str
    ) -> None:
        headers = {**bearer(user), "Host": "evil.example", "X-Request-ID": f"plain-{user}"}
        async with httpx.AsyncClient(base_url=proxy.plain_url) as client:
            reply = await client.post("/api/auth0%7Cada/tasks?search=zq9", headers=headers)

        assert reply.status_code == 308
        assert reply.headers["Location"] == f"https://{NAME}/api/auth0%7Cada/tasks?search=zq9"
        assert reply.headers["Server"] == "nginx"
        assert (await proxy.logged(request_id=f"plain-{user}"))["path"] == "/api/-/tasks"
        assert "zq9" not in proxy.logs()
        assert headers["Authorization"].removeprefix("Bearer ") not in proxy.logs()

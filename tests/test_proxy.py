"""nginx with docs/nginx.conf in front of the service: forwarded requests, refused requests, and its logs.

TestNames and TestLogs also run HAProxy with docs/haproxy.cfg. tests/test_rolling_restart.py has more tests of it.
"""

import asyncio
import json
import re
import ssl
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import pytest

from app.core.security.tokens import TOKEN_MAX
from tests.deployments import WITHOUT_CHECKS, haproxy
from tests.nginx import BELOW_A_PATH, NAME, OK, Proxy, Upstream, nginx
from tests.servers import free_port, program
from tests.support import SECRET, bearer, exchange, make_settings, serving, until

ORIGIN: Final = "https://app.example.com"
LIMIT: Final = 65_536
TITLE: Final = "\U0001f418" * 200
HSTS: Final = "max-age=63072000"
# Headers of a connection or a server, not of the reply.
HOP_BY_HOP: Final = {"connection", "date", "keep-alive", "server", "transfer-encoding"}
MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"

pytestmark = pytest.mark.ci


@pytest.fixture(scope="module")
async def service(dsn: str) -> AsyncIterator[str]:
    async with serving(make_settings(dsn, auth_jwt_secret=SECRET, cors_origins=ORIGIN)) as url:
        yield url


@pytest.fixture(scope="module")
async def proxy(tmp_path_factory: pytest.TempPathFactory, service: str) -> AsyncIterator[Proxy]:
    async with nginx(tmp_path_factory.mktemp("nginx"), service) as proxy:
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


async def chunks(size: int) -> AsyncIterator[bytes]:
    """A body of this many bytes, which is sent in chunks."""
    yield b'{"title"'
    yield f': "{TITLE}"}}'.encode().ljust(size - 8)


class TestPassage:
    async def test_nginx_accepts_the_file_without_a_warning(self, proxy: Proxy) -> None:
        command = [*proxy.command, "-t"]
        tested = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)

        # nginx 1.25 and newer prefer the directive `http2`, which older versions do not know.
        warnings = [line for line in tested.stderr.splitlines() if "[" in line]
        assert [line for line in warnings if '"listen ... http2" directive is deprecated' not in line] == []

    @pytest.mark.parametrize(
        ("path", "headers"),
        [
            ("{tasks}?limit=1&sort=title&nope=1", {"Origin": ORIGIN}),
            ("{tasks}?limit=0", {}),
            ("{tasks}/{task_id}", {"If-None-Match": "*"}),
            ("{tasks}/{task_id}", {"Accept-Encoding": "gzip"}),
            ("{tasks}/" + MISSING, {"Origin": ORIGIN}),
            ("{tasks}", {"Authorization": "Bearer a.b.c", "Origin": ORIGIN}),
            ("/docs", {"Accept-Encoding": "gzip"}),
            ("/nope", {}),
        ],
        ids=lambda value: value if isinstance(value, str) else ", ".join(value),
    )
    async def test_a_reply_equals_that_of_the_service_plus_hsts(
        self, proxied: httpx.AsyncClient, service: str, user: str, tasks: str, path: str, headers: dict[str, str]
    ) -> None:
        for title in ("one", "two"):
            created = await proxied.post(tasks, json={"title": title}, headers=bearer(user))
        assert created.headers["Location"] == f"{tasks}/{created.json()['id']}"
        url = path.format(tasks=tasks, task_id=created.json()["id"])
        given = {**bearer(user), "X-Request-ID": user, **headers}

        through = await proxied.get(url, headers=given)
        async with httpx.AsyncClient(base_url=service, timeout=30) as client:
            direct = await client.get(url, headers=given)

        assert (through.status_code, through.content) == (direct.status_code, direct.content)
        assert end_to_end(through) == sorted([*end_to_end(direct), ("strict-transport-security", HSTS)])
        assert through.headers["Server"] == "nginx"

    async def test_the_largest_body_the_longest_token_and_long_reply_headers_are_forwarded(
        self, proxied: httpx.AsyncClient, tasks: str, user: str
    ) -> None:
        lengths = (bearer(user, name="a" * length) for length in range(6_144, 0, -1))
        longest = next(headers for headers in lengths if len(headers["Authorization"]) <= len("Bearer ") + TOKEN_MAX)
        headers = {**longest, "Content-Type": "application/json"}
        unknown = {"\U0001f418" * 10 + str(number): "" for number in range(20)}
        params = {"limit": "1", "search": TITLE, **unknown}

        created = [await proxied.post(tasks, content=chunks(LIMIT), headers=headers) for _ in range(2)]
        listed = await proxied.get(tasks, params=params, headers=headers)

        assert len("Authorization: ") + len(longest["Authorization"]) > 8_192  # the default limit of nginx
        assert [(reply.status_code, reply.json()["title"]) for reply in created] == [(201, TITLE)] * 2
        assert listed.status_code == 200
        assert len(listed.headers["Link"]) + len(listed.headers["Ignored-Fields"]) > 4_096  # the default limit of nginx


class TestPrefix:
    """The service at /svc/, behind the example with the lines that its comments have for that."""

    @pytest.fixture(scope="class")
    async def below(self, tmp_path_factory: pytest.TempPathFactory, dsn: str) -> AsyncIterator[Proxy]:
        settings = make_settings(dsn, auth_jwt_secret=SECRET, cors_origins=ORIGIN, root_path="/svc")
        async with (
            serving(settings) as url,
            nginx(tmp_path_factory.mktemp("below"), url, BELOW_A_PATH) as proxy,
        ):
            yield proxy

    async def test_each_link_of_the_service_leads_back_to_it(self, below: Proxy, tasks: str, user: str) -> None:
        headers = {**bearer(user), "Origin": ORIGIN}
        async with below.client() as client:
            created = [await client.post(f"/svc{tasks}", json={"title": title}, headers=headers) for title in "ab"]
            got = await client.get(created[0].headers["Location"], headers=headers)
            first = await client.get(f"/svc{tasks}?limit=1&search=%61&search=", headers=headers)
            page = await client.get("/svc/", follow_redirects=True)
            ready = await client.get("/svc/health/ready")

        assert got.json() == created[0].json()
        assert got.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert first.links["next"]["url"].startswith(f"/svc{tasks}?limit=1")
        assert (page.url.path, page.status_code, ready.status_code) == ("/svc/docs", 200, 200)

    async def test_no_client_can_have_the_redirect_to_the_prefix_lead_to_another_host(self, below: Proxy) -> None:
        async with below.client() as client:
            reply = await client.get("/svc", headers={"Host": "evil.example"})

        assert (reply.status_code, reply.headers["Location"]) == (301, "/svc/")

    async def test_haproxy_takes_the_prefix_away_with_the_line_of_its_example(
        self, dsn: str, tmp_path: Path, tasks: str, user: str
    ) -> None:
        changes = {"# With ROOT_PATH=/svc: ": "", **WITHOUT_CHECKS}
        async with serving(make_settings(dsn, auth_jwt_secret=SECRET, root_path="/svc")) as service:
            with haproxy(tmp_path, [service, service], changes) as url:
                async with httpx.AsyncClient(base_url=url, headers=bearer(user), timeout=30) as client:
                    created = await client.post(f"//svc{tasks}", json={"title": "a"})
                    got = await client.get(created.headers["Location"])
                    refused = await client.get(f"/svc/api%2F{user}/tasks")
                    page = await client.get("/svc/", follow_redirects=True)

        assert (got.json(), refused.status_code) == (created.json(), 404)
        assert (page.url.path, page.status_code) == ("/svc/docs", 200)

    async def test_an_agent_finds_the_metadata_of_the_tools_at_the_root_of_the_host(
        self, dsn: str, tmp_path: Path
    ) -> None:
        """Behind both examples, as an agent does: from the 401 of `/mcp` to the URL that it names."""
        url = f"https://{NAME}/svc"
        agents = {"mcp": "on", "public_url": url, "auth_issuer": "https://auth.example.com"}
        changes = {"# With ROOT_PATH=/svc: ": "", **WITHOUT_CHECKS}
        async with serving(make_settings(dsn, auth_jwt_secret=SECRET, root_path="/svc", **agents)) as service:
            with haproxy(tmp_path, [service, service], changes) as balanced:
                async with (
                    nginx(tmp_path, service, BELOW_A_PATH) as proxy,
                    proxy.client() as by_nginx,
                    httpx.AsyncClient(base_url=balanced, timeout=30) as by_haproxy,
                ):
                    for client in (by_nginx, by_haproxy):
                        refused = await client.post("/svc/mcp", json={})
                        [found] = re.findall('resource_metadata="(.*)"', refused.headers["WWW-Authenticate"])
                        metadata = await client.get(found.removeprefix(f"https://{NAME}"))

                        assert found.startswith(f"https://{NAME}/.well-known/")
                        assert metadata.json()["resource"] == f"{url}/mcp"

    @pytest.mark.parametrize(
        ("path", "answers", "logged"),
        [
            ("//svc//api//zq9/tasks/", "401", "/api/-/tasks/"),
            ("/svc/svc/api/zq9/tasks", "404", None),
            ("/svc/x/../api/zq9/tasks", "404", None),
            ("/svc/api%2Fzq9/tasks", "404", "/svc/api"),
            ("/%73vc/api/zq9/tasks", "404", "/"),
            ("/api/zq9/tasks", "", "/api/-/tasks"),  # of nginx: another site may be there
        ],
    )
    async def test_only_the_prefix_is_taken_away_and_the_log_has_no_user(
        self, below: Proxy, user: str, path: str, answers: str, logged: str | None
    ) -> None:
        async with below.client() as client:
            reply = await client.get("/", headers={"X-Request-ID": user}, extensions={"target": path.encode()})

        line = await below.logged(request_id=user)
        assert (reply.status_code, line["service_status"]) == (int(answers or 404), answers)
        assert logged in (None, line["path"])


class TestRefusal:
    """Errors of nginx itself, over HTTP/1.1 unless the test names another version."""

    async def test_a_body_above_64_kib_is_413_and_a_head_above_the_limits_431(
        self, proxied: httpx.AsyncClient, tasks: str
    ) -> None:
        for content in (b" " * (LIMIT + 1), chunks(LIMIT + 1)):
            check_problem(await proxied.post(tasks, content=content), 413, "body-too-large")
        for headers in (
            {"Authorization": "Bearer " + "a" * 17_000},
            {f"A-{number}": "a" * 300 for number in range(150)},
            {f"A-{number}": "" for number in range(100)},
        ):
            check_problem(await proxied.get(tasks, headers=headers), 431, "head-too-large")
        check_problem(await proxied.get(f"{tasks}?search={'a' * 17_000}"), 431, "head-too-large")

    @pytest.mark.parametrize(
        ("request_bytes", "status", "kind"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed-request"),
            (b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", 400, "malformed-request"),
            (b"\x16\x03\x01 nonsense\r\n\r\n", 400, "malformed-request"),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501, "not-implemented"),
            (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, "http-version-not-supported"),
            (b"TRACE / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 501, "not-implemented"),
            (b"GET /.problem HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 404, "route-not-found"),
        ],
        ids=ascii,
    )
    async def test_a_malformed_or_unsupported_request_is_refused(
        self, proxy: Proxy, request_bytes: bytes, status: int, kind: str
    ) -> None:
        head, body = await proxy.exchange(request_bytes)

        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"Content-Type: application/problem+json" in head
        assert json.loads(body)["type"] == f"urn:problem-type:{kind}"

    async def test_plain_http_on_the_port_of_https_is_400(self, proxy: Proxy) -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            check_problem(await client.get(f"http://127.0.0.1:{proxy.port}/"), 400, "malformed-request")

    async def test_too_many_requests_of_one_address_are_429(
        self, tmp_path: Path, service: str, tasks: str, user: str
    ) -> None:
        changes = {"rate=20r/s": "rate=1r/m", "burst=40": "burst=2"}
        async with nginx(tmp_path, service, changes) as proxy, proxy.client() as client:
            replies = [
                await client.get(tasks, headers={**bearer(user), "X-Forwarded-For": f"10.0.0.{number}"})
                for number in range(4)
            ]

        assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
        check_problem(replies[3], 429, "too-many-requests")
        assert replies[3].headers["Retry-After"] == "1"

    async def test_too_many_connections_of_one_address_are_429(self, tmp_path: Path, tasks: str) -> None:
        upstream = Upstream(OK)
        upstream.released.clear()
        changes = {"limit_conn tasks_connections 32;": "limit_conn tasks_connections 1;"}
        async with upstream.listening() as url, nginx(tmp_path, url, changes) as proxy, proxy.client() as client:
            first = asyncio.create_task(client.get(tasks))
            await upstream.reached.wait()
            second = await client.get(tasks)
            upstream.released.set()

            assert (await first).status_code == 200
        check_problem(second, 429, "too-many-requests")

    async def test_a_service_that_is_down_is_502(self, tmp_path: Path) -> None:
        async with nginx(tmp_path, f"http://127.0.0.1:{free_port()}") as proxy, proxy.client() as client:
            reply = await client.get("/")

        check_problem(reply, 502, "service-unreachable")
        assert reply.headers["Retry-After"] == "1"

    async def test_an_unresponsive_service_is_504_and_gets_a_request_once(self, tmp_path: Path) -> None:
        upstream = Upstream(OK)
        upstream.released.clear()
        changes = {"proxy_read_timeout 30s;": "proxy_read_timeout 200ms;"}
        async with upstream.listening() as url, nginx(tmp_path, url, changes) as proxy, proxy.client() as client:
            check_problem(await client.post("/"), 504, "service-unreachable")

        assert len(upstream.arrived) == 1

    @pytest.mark.parametrize("origin", [ORIGIN, f"{ORIGIN}.evil.example"])
    async def test_only_a_page_of_a_listed_origin_may_read_an_error(
        self, proxied: httpx.AsyncClient, tasks: str, origin: str
    ) -> None:
        headers = {"Origin": origin, "X-Request-ID": "mine"}

        reply = await proxied.post(tasks, content=b" " * (LIMIT + 1), headers=headers)

        allowed = {name: value for name, value in reply.headers.items() if name.startswith("access-control-allow")}
        readable = {"access-control-allow-origin": ORIGIN, "access-control-allow-credentials": "true"}
        assert allowed == (readable if origin == ORIGIN else {})
        assert reply.headers["Access-Control-Expose-Headers"] == "Retry-After, X-Request-ID"
        assert (reply.headers["Vary"], reply.json()["instance"]) == ("Origin", "mine")


class TestNames:
    """A service without authentication trusts requests to localhost, so clients of a proxy must not send it any."""

    @pytest.fixture(params=["nginx", "haproxy"])
    async def open_proxy(self, request: pytest.FixtureRequest, tmp_path: Path, base_url: str) -> AsyncIterator[Proxy]:
        """A proxy in front of a service without authentication."""
        async with nginx(tmp_path, base_url) as proxy:
            if request.param == "nginx":
                yield proxy
            else:
                with haproxy(tmp_path, [base_url, base_url], WITHOUT_CHECKS, tmp_path / "tls.pem") as url:
                    yield proxy._replace(port=int(url.rpartition(":")[2]))

    @pytest.mark.parametrize(
        ("server_name", "target", "host"),
        [
            (NAME, "", "localhost"),
            (NAME, "", "127.0.0.1:8000"),
            (NAME, "https://localhost", NAME),
            (NAME, "https://localhost", "localhost"),
            ("localhost", "", "localhost"),
        ],
    )
    async def test_no_name_leads_to_the_tasks_of_a_service_without_authentication(
        self, open_proxy: Proxy, tasks: str, server_name: str, target: str, host: str
    ) -> None:
        request = f"GET {target}{tasks} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()

        try:
            head, _ = await open_proxy.exchange(request, server_name)
        except ssl.SSLError:  # HAProxy refuses another server name in the handshake
            assert server_name != NAME
        else:
            assert int(head.split()[1]) in {400, 421}

    async def test_a_proxy_refuses_other_names_itself(self, open_proxy: Proxy) -> None:
        for host in ("localhost", "evil.example", "tasks.example.com.evil.example"):
            request = f"GET / HTTP/1.1\r\nHost: {host}\r\nX-Request-ID: mine\r\nConnection: close\r\n\r\n".encode()
            head, body = await open_proxy.exchange(request)

            assert head.startswith(b"HTTP/1.1 421 ")
            assert json.loads(body)["detail"] == "There is no service of this name here."
            assert json.loads(body)["instance"] == "mine"


class TestForwarding:
    async def test_a_path_is_forwarded_unchanged_without_a_forged_address(self, tmp_path: Path) -> None:
        target = b"/api/auth0%7Cada/tasks/a%2Fb//c%20/%c3%a9?search=%25%20+%00&cursor=a;b"
        forged = b"X-Real-IP: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\n" + b"".join(
            b"X-Forwarded-%s: 192.0.2.1\r\n" % name for name in (b"For", b"Host", b"Port", b"Proto")
        )
        lines = b"Host: tasks.example.com:8443\r\nX-Request-ID: mine\r\nConnection: close\r\n" + forged
        upstream = Upstream(OK)
        async with upstream.listening() as url, nginx(tmp_path, url) as proxy:
            await proxy.exchange(b"GET %s HTTP/1.1\r\n%s\r\n" % (target, lines))
            logged = await proxy.logged(request_id="mine")

        [arrived] = upstream.arrived
        request, *fields = arrived.decode().split("\r\n")[:-2]
        assert request == f"GET {target.decode()} HTTP/1.1"
        assert dict(field.split(": ", 1) for field in fields) == {
            "Host": "tasks.example.com",
            "X-Request-ID": "mine",
            "X-Forwarded-For": "127.0.0.1",
            "X-Forwarded-Proto": "https",
        }
        assert logged["address"] == "127.0.0.1"

    async def test_an_invalid_request_id_is_replaced_by_nginx(self, proxy: Proxy, proxied: httpx.AsyncClient) -> None:
        for sent in ("", "a b", "a" * 129, '"}', "a\x7fb"):
            reply = await proxied.get("/health/live", headers={"X-Request-ID": sent})

            assert re.fullmatch("[0-9a-f]{32}", reply.headers["X-Request-ID"])
            assert await proxy.logged(request_id=reply.headers["X-Request-ID"])

    @pytest.mark.parametrize("method", ["GET", "POST"])
    async def test_a_request_without_an_answer_is_not_repeated(self, tmp_path: Path, tasks: str, method: str) -> None:
        upstream = Upstream(OK)
        async with upstream.listening() as url, nginx(tmp_path, url) as proxy, proxy.client() as client:
            assert (await client.get("/health/live")).status_code == 200
            await client.request(method, tasks)

        arrived = [request for request in upstream.arrived if request.startswith(f"{method} {tasks} ".encode())]
        assert len(arrived) == 1


class TestLogs:
    @pytest.mark.parametrize(
        ("path", "logged"),
        [
            (f"/api/zq9/tasks/{MISSING}", f"/api/-/tasks/{MISSING}"),
            ("/api/zq9", "/api/-"),
            (f"//api//zq9/tasks/{MISSING}/", f"/api/-/tasks/{MISSING}/"),
            ("/nope/a%2F", "/nope/a"),
            ("/api%2Fzq9/tasks", "/api"),
            ("/%61pi/zq9/tasks", "/"),
        ],
    )
    async def test_an_access_log_line_has_neither_user_nor_query(
        self, proxy: Proxy, proxied: httpx.AsyncClient, user: str, path: str, logged: str
    ) -> None:
        sent = bearer("zq9")
        headers = {**sent, "X-Request-ID": f"of-{user}", "Referer": "https://zq9.example", "User-Agent": "zq9"}

        reply = await proxied.get("/", headers=headers, extensions={"target": f"{path}?search=zq9".encode()})

        line = await proxy.logged(request_id=f"of-{user}")
        assert (line["method"], line["path"], line["service_status"]) == ("GET", logged, str(reply.status_code))
        assert "zq9" not in proxy.logs()
        assert sent["Authorization"].removeprefix("Bearer ") not in proxy.logs()

    @pytest.mark.parametrize("size", [0, LIMIT + 1], ids=["no answer", "too large"])
    async def test_an_error_is_logged_without_its_query(self, tmp_path: Path, tasks: str, size: int) -> None:
        upstream = Upstream()
        async with upstream.listening() as url, nginx(tmp_path, url) as proxy, proxy.client() as client:
            reply = await client.post(f"{tasks}?search=zq9", content=b" " * size)
            line = await proxy.logged(request_id=reply.json()["instance"])

            assert line["status"] == str(reply.status_code) in {"502", "413"}
            assert "zq9" not in proxy.logs()

    async def test_plain_http_is_redirected_to_https_and_logged_without_its_query(
        self, proxy: Proxy, user: str
    ) -> None:
        headers = {"Host": "evil.example", "X-Request-ID": f"plain-{user}"}
        async with httpx.AsyncClient(timeout=30) as client:
            url = f"http://127.0.0.1:{proxy.plain_port}/api/auth0%7Cada/tasks?search=zq9"
            reply = await client.post(url, headers=headers)

        assert (reply.status_code, reply.headers["Server"]) == (308, "nginx")
        assert reply.headers["Location"] == f"https://{NAME}/api/auth0%7Cada/tasks?search=zq9"
        assert (await proxy.logged(request_id=f"plain-{user}"))["path"] == "/api/-/tasks"
        assert "zq9" not in proxy.logs()

    async def test_haproxy_accepts_its_file_and_logs_each_request_without_its_path_and_token(
        self, tmp_path: Path, service: str
    ) -> None:
        down = f"http://127.0.0.1:{free_port()}"
        sent = {**bearer("zq9"), "Referer": "https://zq9.example"}
        for name, url, status in (("up", service, 200), ("down", down, 503)):
            directory = tmp_path / name
            directory.mkdir()
            with haproxy(directory, [url, url]) as address:
                async with httpx.AsyncClient(base_url=address, headers=sent, timeout=30) as client:
                    reply = await client.get("/api/zq9/tasks?search=zq9")
                    await client.get("/api/zq9/tasks", headers={"Host": "zq9.example"})
                await exchange(httpx.URL(address), b'GET"zq9 zq9\r\n\r\n')
                log = directory / "server.log"
                await until(partial(_has_lines, log, 3))
            check = [program("haproxy"), "-c", "-q", "-f", str(directory / "haproxy.cfg")]
            checked = await asyncio.to_thread(subprocess.run, check, capture_output=True, text=True, check=True)

            first, refused, malformed = [
                json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")
            ]
            assert (first["request_id"], first["status"]) == (reply.headers["X-Request-ID"], status)
            assert (first["method"], refused["status"], malformed["status"]) == ("GET", 421, 400)
            assert "zq9" not in log.read_text()
            assert checked.stderr == ""


def _has_lines(log: Path, count: int) -> bool:
    return log.read_text().count('"}\n') == count

"""The end of a service by a signal: alone, as one of two behind HAProxy with docs/haproxy.cfg, and as a pod."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import asyncpg
import httpx
import pytest

from tests.deployments import WITHOUT_CHECKS, Load, haproxy
from tests.nginx import Upstream
from tests.servers import free_port
from tests.service import BACKEND, TASKS, Service
from tests.support import REVISION, connected, execute, new_database, until

pytestmark = pytest.mark.unmeasured

# Disables the lines of docs/haproxy.cfg that handle the end of a service.
WITHOUT_RETRIES: Final = {"retries 3": "retries 0", "option redispatch 1": "no option redispatch"}
TASK: Final = f"{TASKS}/019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
COMPLETE: Final = f"{TASK}/complete"
SEEN: Final = {"If-Match": '"2026-11-22T07:30:36.839496Z"'}
ONCE: Final = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
ASK: Final = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % TASKS.encode()
HEAD: Final = (
    b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 16\r\n"
    b"Expect: 100-continue\r\n\r\n" % TASKS.encode()
)
# The revision of a later release.
EXPANSION: Final = f"""
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{REVISION}"


def upgrade() -> None:
    op.add_column("tasks", sa.Column("added", sa.Integer(), server_default="0", nullable=False))
    with op.get_context().autocommit_block():
        op.execute("CREATE INDEX CONCURRENTLY ix_tasks_user_id_added ON tasks (user_id, added)")
"""
# From two old services: the one that is restarted, and whether with the later release. Each release is restarted with
# each, beside each.
RESTARTS: Final = ((0, False), (0, True), (1, False), (0, True), (1, True), (1, True), (1, False), (0, False))
WAITING: Final = "SELECT count(*) FROM pg_locks WHERE NOT granted"

StartService = Callable[..., Service]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def own(dsn: str) -> Iterator[str]:
    """An empty database that the services migrate."""
    with new_database(dsn, "restarts") as own:
        yield own


@pytest.fixture
def start(own: str, tmp_path: Path) -> Iterator[StartService]:
    """Starts a service and waits until it is ready."""
    with ExitStack() as services:

        def start(port: int = 0, workers: int = 1, shutdown_timeout: int = 600, backend: Path = BACKEND) -> Service:
            directory = Path(mkdtemp(prefix="start-", dir=tmp_path))
            settings = {"SHUTDOWN_TIMEOUT": str(shutdown_timeout), "WEB_CONCURRENCY": str(workers)}
            settings["DATABASE_URL"] = own
            service = Service(directory, settings, port=port, module="tests.patient", backend=backend)
            return services.enter_context(service).ready()

        yield start


@asynccontextmanager
async def held(dsn: str) -> AsyncIterator[None]:
    """Lock all tasks: a request that changes a task has to wait."""
    async with connected(dsn) as connection, connection.transaction():
        await connection.execute("SELECT FROM tasks FOR UPDATE")
        yield


@asynccontextmanager
async def opened(service: Service) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def is_refused(service: Service) -> bool:
    """Whether the service refuses new connections."""
    with suppress(ConnectionResetError):  # the port was closed before the connection was accepted
        try:
            async with opened(service):
                return False
        except ConnectionRefusedError:
            return True
    return False


async def end(service: Service) -> int:
    """End the service without a traceback. Returns the exit code."""
    code = await asyncio.to_thread(service.end)
    assert "Traceback" not in service.stdout + service.stderr
    return code


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """Returns the bytes that arrive until the connection is closed."""
    with suppress(ConnectionResetError):  # the connection was closed before the request was sent
        return await reader.read()
    return b""


async def until_served(service: Service) -> None:
    """Wait until the service has received requests."""
    await until(lambda: "POST" in service.stdout)


@pytest.mark.ci
@pytest.mark.timeout(600)
class TestTwoServices:
    @pytest.mark.parametrize(
        ("workers", "changes", "are_lost"),
        [(2, {}, False), (1, WITHOUT_RETRIES, True)],  # TestTwoReleases has one worker
        ids=["two workers", "control without retries"],
    )
    async def test_a_rolling_restart_loses_no_request(
        self, start: StartService, tmp_path: Path, workers: int, changes: dict[str, str], *, are_lost: bool
    ) -> None:
        services = [await asyncio.to_thread(start, workers=workers) for _ in range(2)]
        with haproxy(tmp_path, [service.url for service in services], changes) as url:
            async with Load(url).running() as load:
                await load.full_round()
                for service in services:
                    assert await end(service) == 0
                    successor = await asyncio.to_thread(start, service.port, workers)
                    await until_served(successor)
                    await load.full_round()

        assert bool(load.faults) == are_lost, load.faults[:5]


@pytest.mark.ci
@pytest.mark.timeout(600)
class TestTwoReleases:
    @pytest.fixture
    def later(self, tmp_path: Path) -> Path:
        """The code of a later release."""
        for name in ("backend/app", "alembic"):
            shutil.copytree(BACKEND.parent / name, tmp_path / "later" / name)
        shutil.copy(BACKEND.parent / "alembic.ini", tmp_path / "later")
        (tmp_path / "later/alembic/versions/20261201_add_a_column.py").write_text(EXPANSION)
        return tmp_path / "later/backend"

    async def test_each_release_can_be_restarted_beside_each_other_without_a_lost_request(
        self, start: StartService, tmp_path: Path, own: str, later: Path
    ) -> None:
        services = [await asyncio.to_thread(start) for _ in range(2)]
        are_later, done = [False, False], set()
        with haproxy(tmp_path, [service.url for service in services]) as url:
            async with Load(url).running() as load:
                for number, is_later in RESTARTS:
                    done.add((are_later[number], is_later, are_later[1 - number]))
                    are_later[number] = is_later
                    port, backend = services[number].port, later if is_later else BACKEND
                    assert await end(services[number]) == 0
                    services[number] = await asyncio.to_thread(start, port, backend=backend)
                    await until_served(services[number])
                    await load.full_round()

        assert len(done) == len(RESTARTS) == 8
        assert load.faults == []
        assert await asyncio.to_thread(execute, own, "SELECT version_num FROM tasks_api_version") == [("9999",)]


class Balancer:
    """Passes each connection on to the next of some ports, like a Service of Kubernetes: no checks, no retries.

    One client sends requests all the time, each on a new connection.
    """

    def __init__(self, *ports: int) -> None:
        self.ports = [*ports]
        self.refused = 0
        self._answered = 0

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        ending = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            server = await asyncio.start_server(lambda *ends: group.create_task(self._pass_on(*ends)), "127.0.0.1")
            host, port = server.sockets[0].getsockname()
            client = group.create_task(self._use(f"http://{host}:{port}{TASKS}", ending))
            async with server:
                try:
                    yield
                finally:
                    ending.set()
                    await client

    async def round(self) -> None:
        """Return when each port has received a request that began after this call."""
        goal = self._answered + self.refused + len(self.ports) + 1
        await until(lambda: self._answered + self.refused >= goal)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ports.append(self.ports.pop(0))
        with closing(writer), suppress(ConnectionError):
            service_reader, service_writer = await asyncio.open_connection("127.0.0.1", self.ports[-1])
            with closing(service_writer):
                service_writer.write(await reader.readuntil(b"\r\n\r\n"))
                writer.write(await service_reader.read())
                await writer.drain()

    async def _use(self, url: str, ending: asyncio.Event) -> None:
        async with httpx.AsyncClient(timeout=30, headers={"Connection": "close"}) as client:
            while not ending.is_set():
                try:
                    (await client.get(url)).raise_for_status()
                    self._answered += 1
                except httpx.TransportError:
                    self.refused += 1


@pytest.mark.ci
class TestPods:
    async def test_a_balancer_that_learns_late_of_the_end_of_a_pod_sends_it_refused_requests_only_without_a_pause(
        self, start: StartService
    ) -> None:
        pods = await asyncio.gather(*(asyncio.to_thread(start) for _ in range(3)))
        pausing, hasty, _ = pods
        balancer = Balancer(*(pod.port for pod in pods))
        async with balancer.used():
            await balancer.round()  # during `preStop`
            balancer.ports.remove(pausing.port)
            await balancer.round()
            assert await end(pausing) == 0
            await balancer.round()
            assert balancer.refused == 0

            assert await end(hasty) == 0
            await balancer.round()
            assert balancer.refused > 0


@pytest.mark.ci
class TestProxy:
    """The services behind the proxy receive each request and close the connection without an answer."""

    @pytest.fixture
    async def lost(self) -> Upstream:
        return Upstream()

    @pytest.fixture
    async def proxied(self, lost: Upstream, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
        async with lost.listening() as one, lost.listening() as two:
            with haproxy(tmp_path, [one, two], WITHOUT_CHECKS) as url:
                async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                    yield client

    @pytest.mark.parametrize(
        ("method", "path", "body", "headers"),
        [
            ("GET", TASK, None, {"If-None-Match": "*"}),
            ("POST", TASKS, {"title": "a"}, ONCE),
            ("PUT", TASK, {"title": "a"}, {}),
            ("PATCH", COMPLETE, {"completed": True}, {}),
            ("PATCH", COMPLETE, {"completed": False}, {}),
            ("DELETE", TASK, None, {}),
        ],
    )
    async def test_an_idempotent_request_is_sent_again(
        self, proxied: httpx.AsyncClient, lost: Upstream, method: str, path: str, body: Any, headers: dict[str, str]
    ) -> None:
        await proxied.request(method, path, json=body, headers=headers)

        assert len(lost.arrived) == 4

    @pytest.mark.parametrize(
        ("method", "path", "body", "headers"),
        [
            ("POST", TASKS, {"title": "a"}, {}),
            ("POST", "/mcp", {}, ONCE),
            ("POST", "/svc//mcp//", {}, ONCE),
            ("PUT", TASK, {"title": "a"}, SEEN),
            ("PATCH", COMPLETE, None, {}),
            ("PATCH", COMPLETE, {"complete": True}, {}),
            ("PATCH", COMPLETE, {"completed": True}, SEEN),
            ("DELETE", TASK, None, {"If-None-Match": "*"}),
        ],
    )
    async def test_a_request_that_is_not_idempotent_is_sent_once_and_answered_with_a_problem(
        self, proxied: httpx.AsyncClient, lost: Upstream, method: str, path: str, body: Any, headers: dict[str, str]
    ) -> None:
        reply = await proxied.request(method, path, json=body, headers={"X-Request-ID": "my-request", **headers})

        assert len(lost.arrived) == 1
        assert (reply.status_code, reply.headers["Content-Type"]) == (502, "application/problem+json")
        assert (reply.headers["X-Request-ID"], reply.headers["Retry-After"]) == ("my-request", "1")
        assert (reply.json()["type"], reply.json()["status"]) == ("urn:problem-type:service-unreachable", 502)
        assert reply.json()["instance"] == "my-request"

    async def test_a_request_without_any_service_is_answered_with_a_problem(self, tmp_path: Path) -> None:
        down = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
        with haproxy(tmp_path, down) as url:
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                reply = await client.get(TASKS)

        assert (reply.status_code, reply.headers["Content-Type"]) == (503, "application/problem+json")
        assert reply.json()["instance"] == reply.headers["X-Request-ID"]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.ci)])
class TestEnd:
    async def test_a_request_in_flight_is_answered_and_new_connections_are_refused(
        self, start: StartService, own: str, database: asyncpg.Connection, workers: int
    ) -> None:
        service = await asyncio.to_thread(start, workers=workers)
        task = await asyncio.to_thread(service.create, "Wait")
        async with httpx.AsyncClient(base_url=service.url, timeout=600) as client:
            async with held(own):
                slow = asyncio.create_task(client.put(f"{TASKS}/{task['id']}", json={"title": "Done"}))
                await until(lambda: database.fetchval(WAITING))
                ended = asyncio.create_task(end(service))
                await until(lambda: is_refused(service))
            reply = await slow

        assert (reply.status_code, reply.json()["title"]) == (200, "Done")
        assert await ended == 0

    async def test_a_request_on_an_open_connection_is_answered_or_the_connection_is_closed(
        self, start: StartService, workers: int
    ) -> None:
        service = await asyncio.to_thread(start, workers=workers)
        async with opened(service) as (reader, writer):
            writer.write(ASK)
            await reader.readuntil(b"[]")
            ended = asyncio.create_task(end(service))
            await until(lambda: is_refused(service))
            writer.write(ASK)
            rest = await rest_of(reader)

        assert rest == b"" or (rest.startswith(b"HTTP/1.1 200 OK") and rest.endswith(b"[]"))
        assert await ended == 0

    async def test_a_request_that_is_incomplete_after_the_shutdown_timeout_is_answered_with_a_problem(
        self, start: StartService, workers: int
    ) -> None:
        service = await asyncio.to_thread(start, workers=workers, shutdown_timeout=3)
        async with opened(service) as (reader, writer):
            writer.write(HEAD)
            await reader.readuntil(b"100 Continue\r\n\r\n")
            writer.write(b'{"title"')
            ended = asyncio.create_task(end(service))
            head, _, body = (await rest_of(reader)).partition(b"\r\n\r\n")

        problem = json.loads(body)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert problem["type"] == "urn:problem-type:shutting-down"
        assert f"\r\nx-request-id: {problem['instance']}\r\n" in head.decode().lower()
        assert await ended == 0
        assert [line["problem"] for line in service.lines if "problem" in line] == ["shutting-down"]

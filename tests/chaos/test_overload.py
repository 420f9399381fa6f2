"""More clients than the database can serve: 200 clients on two connections, and rows that another session locks."""

import asyncio
import json
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from secrets import randbelow
from typing import Final, NamedTuple

import asyncpg
import pytest
from sqlalchemy import make_url

from tests.chaos.history import History
from tests.service import Service
from tests.support import SECRET, bearer, execute, until

pytestmark = pytest.mark.ci

CLIENTS: Final = 200
CONNECTIONS: Final = 2
LIMIT: Final = 20  # requests that may wait for the database, in the service that has a limit
DEADLINE: Final = 15  # seconds in which all requests are answered
ROUNDS: Final = 6
GROWTH: Final = 32 * 1024  # KiB
LEAVERS: Final = 1000
AT_ONCE: Final = 100
RST: Final = struct.pack("ii", 1, 0)  # as SO_LINGER: close() sends RST
OVERLOADED: Final = "503 overloaded"
# Refused by the limit, a timeout in the database, a timeout in the service.
REFUSALS: Final = {OVERLOADED, "503 timed-out", "503 outcome-unknown"}
BACKENDS: Final = """
    SELECT state FROM pg_stat_activity WHERE application_name = 'tasks-api' AND datname = current_database()
"""
WAITING: Final = """
    SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()
"""


class Reply(NamedTuple):
    status: int
    head: dict[str, str]
    body: bytes

    @property
    def outcome(self) -> str:
        """The status, with the type of a refusal."""
        if self.status != 503:
            return str(self.status)
        assert self.head["content-type"] == "application/problem+json"
        assert self.head["retry-after"].isdigit()
        return f"503 {json.loads(self.body)['type'].removeprefix('urn:problem-type:')}"


class Client:
    """Opens a connection for each request. With hundreds at once, an HTTP library would take most of the CPU time."""

    def __init__(self, port: int, user: str) -> None:
        self.tasks = f"/api/{user}/tasks"
        self._port = port
        self._token = bearer(user)

    async def get(self, **headers: str) -> Reply:
        return await self.ask("GET", self.tasks, **headers)

    async def post(self, title: str, **headers: str) -> Reply:
        return await self.ask("POST", self.tasks, {"title": title}, **headers)

    async def ask(self, method: str, target: str, body: object = None, **headers: str) -> Reply:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._request(method, target, body, headers))
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        status, *fields = head.decode().split("\r\n")
        names = (field.split(": ", 1) for field in fields)
        return Reply(int(status.split()[1]), {name.lower(): value for name, value in names}, content)

    async def leave(self) -> None:
        """Send a request or a part of one, and reset the connection after a random time."""
        request = self._request("POST", self.tasks, {"title": "Buy oat milk"}, {})
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(request[: randbelow(2 * len(request))])
        await asyncio.sleep(randbelow(30) / 1000)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        writer.transport.abort()

    def _request(self, method: str, target: str, body: object, headers: dict[str, str]) -> bytes:
        content = json.dumps(body).encode() if body else b""
        about = {"Content-Type": "application/json", "Content-Length": len(content)} if body else {}
        fields = {"Host": "localhost", "Connection": "close", **self._token, **about, **headers}
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        return "\r\n".join(lines).encode() + content


@pytest.fixture(scope="session")
def small_dsn(dsn: str) -> str:
    """A database whose connections all belong to the service."""
    execute(dsn, "CREATE DATABASE small")
    return make_url(dsn).set(database="small").render_as_string(hide_password=False)


def settings(dsn: str, **others: str) -> dict[str, str]:
    return {"DATABASE_URL": dsn, "DATABASE_POOL_SIZE": str(CONNECTIONS), "AUTH_JWT_SECRET": SECRET, **others}


@pytest.fixture(scope="module")
def service(small_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), settings(small_dsn)) as service:
        yield service.ready()


@pytest.fixture
def client(service: Service, user: str) -> Client:
    return Client(service.port, user)


@pytest.fixture
async def database(small_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(small_dsn)
    yield connection
    await connection.close()


@asynccontextmanager
async def held(database: asyncpg.Connection) -> AsyncIterator[None]:
    """Have every statement of the service wait until the end of the context."""
    async with database.transaction():
        await database.execute("LOCK TABLE tasks")
        yield


async def at_once(requests: Iterable[Awaitable[Reply]]) -> Counter[str]:
    """Send the requests concurrently. Returns the number of replies for each outcome."""
    async with asyncio.timeout(DEADLINE):
        return Counter(reply.outcome for reply in await asyncio.gather(*requests))


def memory(service: Service) -> int:
    """Returns the resident memory of the service in KiB."""
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(service.process.pid)]))


async def all_wait(database: asyncpg.Connection) -> bool:
    """Whether each connection of the service waits for a lock."""
    return bool(await database.fetchval(WAITING) == CONNECTIONS)


async def is_idle(database: asyncpg.Connection) -> bool:
    """Whether the pool has at most its number of connections, and all are idle."""
    states = [state for [state] in await database.fetch(BACKENDS)]
    return len(states) <= CONNECTIONS and set(states) <= {"idle"}


async def assert_pool_works(client: Client, database: asyncpg.Connection) -> None:
    await until(lambda: is_idle(database))
    assert await at_once(client.get() for _ in range(10 * CONNECTIONS)) == {"200": 10 * CONNECTIONS}


class TestManyClients:
    async def test_every_client_is_answered(
        self,
        service: Service,
        client: Client,
        new_user: Callable[[], str],
        database: asyncpg.Connection,
        record_property: Callable[[str, object], None],
    ) -> None:
        requests = [request for _ in range(CLIENTS // 2) for request in (client.post("Buy oat milk"), client.get())]
        history = History([new_user()])

        async with history.recording(service.url):
            outcomes = await at_once(requests)

        record_property(f"beside {CLIENTS} clients", history.summary())
        assert history.faults() == []
        assert outcomes.keys() <= {"201", "200", OVERLOADED}
        assert outcomes["201"]
        await assert_pool_works(client, database)

    async def test_memory_is_bounded(
        self, service: Service, client: Client, record_property: Callable[[str, object], None]
    ) -> None:
        async def serve() -> int:
            await at_once(client.post("a" * 200) for _ in range(CLIENTS))
            await at_once(client.ask("GET", f"{client.tasks}?limit=20") for _ in range(CLIENTS))
            return memory(service)

        _, _, before, *_, after = [await serve() for _ in range(ROUNDS)]

        record_property("memory", f"{before:,} KiB, then {after:,} KiB")
        assert after - before < GROWTH


class TestHeldRows:
    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, small_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
        with Service(tmp_path_factory.mktemp("hasty"), settings(small_dsn, DATABASE_POOL_TIMEOUT="0.5")) as service:
            yield service.ready()

    async def test_a_change_of_a_locked_row_is_refused_in_time_and_its_statement_ends(
        self, client: Client, database: asyncpg.Connection
    ) -> None:
        task = (await client.post("Buy oat milk")).body
        path = f"{client.tasks}/{json.loads(task)['id']}"

        async with database.transaction():
            await database.execute("SELECT FROM tasks WHERE title = 'Buy oat milk' FOR UPDATE")
            outcomes = await at_once(client.ask("PUT", path, {"title": "Drink it"}) for _ in range(CLIENTS))
            await until(lambda: is_idle(database))

        assert outcomes.keys() <= REFUSALS
        assert len(outcomes) > 1
        await assert_pool_works(client, database)
        assert (await client.ask("GET", path)).body == task


class TestHeldTable:
    async def test_a_request_that_needs_no_connection_does_not_wait_for_one(
        self, client: Client, database: asyncpg.Connection
    ) -> None:
        tasks = client.tasks
        async with held(database):
            waiting = [asyncio.create_task(client.get()) for _ in range(5 * CONNECTIONS)]
            await until(lambda: all_wait(database))
            replies = [
                await client.get(Authorization="Bearer e30.e30.e30"),
                await client.get(**bearer("mallory")),
                await client.post(""),
                await client.post("Buy oat milk", **{"Idempotency-Key": ""}),
                await client.post("Buy oat milk", **{"Content-Type": "text/plain"}),
                await client.ask("GET", f"{tasks}/1"),
                await client.ask("GET", f"{tasks}?limit=0"),
                await client.ask("GET", "/health/live"),
            ]
            assert await all_wait(database)
            assert not any(request.done() for request in waiting)

        assert [reply.status for reply in replies] == [401, 403, 422, 400, 415, 422, 422, 200]
        assert await at_once(waiting) == {"200": 5 * CONNECTIONS}


class TestLimit:
    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, small_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
        with Service(tmp_path_factory.mktemp("limited"), settings(small_dsn, CONCURRENCY_LIMIT=str(LIMIT))) as service:
            yield service.ready()

    async def test_a_request_above_the_limit_is_refused_at_once(
        self, client: Client, database: asyncpg.Connection
    ) -> None:
        async with held(database):
            requests = {asyncio.create_task(client.get()) for _ in range(CLIENTS)}
            await until(lambda: sum(request.done() for request in requests) == CLIENTS - LIMIT)
            refused = {request for request in requests if request.done()}

        assert await at_once(refused) == {OVERLOADED: CLIENTS - LIMIT}
        assert await at_once(requests - refused) == {"200": LIMIT}


class TestClientsThatLeave:
    async def test_aborted_requests_leave_the_pool_intact_and_no_error_in_the_log(
        self, service: Service, client: Client, database: asyncpg.Connection
    ) -> None:
        for _ in range(LEAVERS // AT_ONCE):
            await asyncio.gather(*(client.leave() for _ in range(AT_ONCE)))

        await assert_pool_works(client, database)
        assert [line for line in service.lines if line["level"] not in {"INFO", "WARNING"}] == []
        assert service.stderr == ""

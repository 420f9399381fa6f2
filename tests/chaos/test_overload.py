"""More clients than the database can serve: 200 clients on two connections, and clients that leave."""

import asyncio
import re
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from secrets import randbelow
from typing import Final

import asyncpg
import httpx
import pytest

from tests.chaos.history import History, outcome
from tests.service import Service
from tests.support import SECRET, bearer, connected, new_database, until

pytestmark = pytest.mark.ci

CLIENTS: Final = 200
CONNECTIONS: Final = 2
LIMIT: Final = 150  # requests that may use or wait for the database
SHARE: Final = LIMIT // 2  # of one user
GROWTH: Final = 32 * 1024  # KiB
LEAVERS: Final = 500
AT_ONCE: Final = 100
RST: Final = struct.pack("ii", 1, 0)  # as SO_LINGER: close() sends RST
OVERLOADED: Final = "503 overloaded"
TASK: Final = {"title": "Buy oat milk"}
BACKENDS: Final = """
    SELECT state FROM pg_stat_activity WHERE application_name = 'tasks-api' AND datname = current_database()
"""
WAITING: Final = """
    SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()
"""


@pytest.fixture(scope="module")
def small_dsn(dsn: str) -> Iterator[str]:
    """A database whose connections all belong to the service."""
    with new_database(dsn, "small") as small:
        yield small


@pytest.fixture(scope="module")
def service(small_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    limits = {"DATABASE_POOL_SIZE": str(CONNECTIONS), "CONCURRENCY_LIMIT": str(LIMIT)}
    settings = {"DATABASE_URL": small_dsn, "AUTH_JWT_SECRET": SECRET, **limits}
    with Service(tmp_path_factory.mktemp("service"), settings) as service:
        yield service.ready()


@pytest.fixture
async def client(service: Service, user: str) -> AsyncIterator[httpx.AsyncClient]:
    """Opens a connection for each request."""
    no_reuse = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=service.url, limits=no_reuse, headers=bearer(user), timeout=30) as client:
        yield client


@pytest.fixture
async def database(small_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    async with connected(small_dsn) as connection:
        yield connection


async def at_once(requests: Iterable[Awaitable[httpx.Response]]) -> Counter[str]:
    """Send the requests concurrently. Returns the number of replies for each outcome."""
    return Counter(map(outcome, await asyncio.gather(*requests)))


async def assert_pool_works(client: httpx.AsyncClient, tasks: str, database: asyncpg.Connection) -> None:
    async def is_idle() -> bool:
        states = [state for [state] in await database.fetch(BACKENDS)]
        return len(states) <= CONNECTIONS and set(states) <= {"idle"}

    async def is_unused() -> bool:
        """Whether the user gets all of its share. Requests of clients that left may still wait for a connection."""
        return await at_once(client.get(tasks) for _ in range(SHARE)) == {"200": SHARE}

    await until(is_unused)
    await until(is_idle)


async def test_every_client_is_answered(
    service: Service,
    client: httpx.AsyncClient,
    tasks: str,
    new_user: Callable[[], str],
    database: asyncpg.Connection,
    record_property: Callable[[str, object], None],
) -> None:
    requests = [request for _ in range(CLIENTS // 2) for request in (client.post(tasks, json=TASK), client.get(tasks))]
    history = History([new_user()])

    async with history.recording(service.url):
        outcomes = await at_once(requests)

    record_property(f"beside {CLIENTS} clients", history.summary())
    assert history.faults() == []
    assert outcomes.keys() <= {"201", "200", OVERLOADED}
    assert outcomes["200"] + outcomes["201"] >= SHARE
    await assert_pool_works(client, tasks, database)


async def test_memory_is_bounded(
    service: Service, client: httpx.AsyncClient, tasks: str, record_property: Callable[[str, object], None]
) -> None:
    async def memory_after_load() -> int:
        await at_once(client.post(tasks, json={"title": "a" * 200}) for _ in range(CLIENTS))
        await at_once(client.get(f"{tasks}?limit=20") for _ in range(CLIENTS))
        status = Path(f"/proc/{service.process.pid}/status").read_text()  # noqa: ASYNC240  # it is no real file
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])

    _, before, after = [await memory_after_load() for _ in range(3)]

    record_property("memory", f"{before:,} KiB, then {after:,} KiB")
    assert after - before < GROWTH


async def test_only_requests_above_the_limit_are_refused_and_those_without_a_statement_are_answered_at_once(
    client: httpx.AsyncClient, tasks: str, new_user: Callable[[], str], database: asyncpg.Connection
) -> None:
    async def list_tasks(user: str) -> httpx.Response:
        return await client.get(f"/api/{user}/tasks", headers=bearer(user))

    async def all_wait() -> bool:
        return bool(await database.fetchval(WAITING) == CONNECTIONS)

    async with database.transaction():
        await database.execute("LOCK TABLE tasks")
        # Each client is another user, because one user may not use all of the limit.
        requests = {asyncio.create_task(list_tasks(new_user())) for _ in range(CLIENTS)}
        await until(lambda: sum(request.done() for request in requests) == CLIENTS - LIMIT)
        refused = {request for request in requests if request.done()}
        await until(all_wait)
        replies = [
            await client.get(tasks, headers={"Authorization": "Bearer e30.e30.e30"}),
            await client.get(tasks, headers=bearer("mallory")),
            await client.post(tasks, json={"title": ""}),
            await client.post(tasks, json=TASK, headers={"Idempotency-Key": ""}),
            await client.post(tasks, content="Buy oat milk", headers={"Content-Type": "text/plain"}),
            await client.get(f"{tasks}/1"),
            await client.get("/health/live"),
        ]
        assert not any(request.done() for request in requests - refused)

    assert [reply.status_code for reply in replies] == [401, 403, 422, 400, 415, 404, 200]
    assert await at_once(refused) == {OVERLOADED: CLIENTS - LIMIT}
    assert await at_once(requests - refused) == {"200": LIMIT}


async def test_aborted_requests_leave_the_pool_intact_and_no_error_in_the_log(
    service: Service, client: httpx.AsyncClient, tasks: str, database: asyncpg.Connection
) -> None:
    sent = client.build_request("POST", tasks, json=TASK)
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.headers.items())
    request = f"POST {tasks} HTTP/1.1\r\n{head}\r\n".encode() + sent.content

    async def leave() -> None:
        """Send the request or a part of it, and reset the connection after a random time."""
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(request[: randbelow(2 * len(request))])
        await asyncio.sleep(randbelow(30) / 1000)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        writer.transport.abort()

    for _ in range(LEAVERS // AT_ONCE):
        await asyncio.gather(*(leave() for _ in range(AT_ONCE)))

    await assert_pool_works(client, tasks, database)
    assert [line for line in service.lines if line["level"] not in {"INFO", "WARNING"}] == []
    assert service.stderr == ""

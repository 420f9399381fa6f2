"""How connections are opened while the network or the database does not respond."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from app.core.database.connecting import connect
from app.core.database.dsn import parse_dsn
from tests.faults import FaultProxy, fault_proxy
from tests.support import until


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.core.database.connecting._ATTEMPT_INTERVAL", 0.2)


@pytest.fixture
def proxy(dsn: str) -> Iterator[FaultProxy]:
    with fault_proxy(dsn) as proxy:
        yield proxy


@pytest.fixture
async def first_connection_waits(proxy: FaultProxy) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """The port of a server that forwards its first connection after the event, and closes all later ones."""
    release = asyncio.Event()
    address = options(proxy)
    accepted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        if accepted == 1:
            await release.wait()
            server_reader, server_writer = await asyncio.open_connection(address["host"][0], address["port"][0])
            await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], release
    server.close()
    await server.wait_closed()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


def options(proxy: FaultProxy, **others: Any) -> dict[str, Any]:
    settings = {"server_settings": {"application_name": f"connecting-{id(proxy)}"}}
    return {**parse_dsn(proxy.dsn), **settings, **others}


async def count(database: asyncpg.Connection, proxy: FaultProxy) -> int:
    """The number of connections that the server has from this test."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
    found: int = await database.fetchval(query, f"connecting-{id(proxy)}")
    return found


class TestAttempts:
    async def test_a_second_attempt_succeeds_where_the_packets_of_the_first_are_lost(self, proxy: FaultProxy) -> None:
        proxy.hold()
        opening = asyncio.create_task(connect(**options(proxy)))
        await until(lambda: proxy.accepted)
        proxy.lose()
        proxy.heal()

        connection = await opening

        assert proxy.accepted == 2
        await connection.close()

    async def test_a_single_attempt_times_out_where_its_packets_are_lost(
        self, monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy
    ) -> None:
        monkeypatch.setattr("app.core.database.connecting._ATTEMPTS_MAX", 1)
        proxy.hold()
        opening = asyncio.create_task(connect(**options(proxy, timeout=1)))
        await until(lambda: proxy.accepted)
        proxy.lose()
        proxy.heal()

        with pytest.raises(TimeoutError):
            await opening

    async def test_only_the_first_connection_that_opens_is_kept(
        self, proxy: FaultProxy, database: asyncpg.Connection
    ) -> None:
        proxy.delay = 0.7

        connection = await connect(**options(proxy))

        assert await connection.fetchval("SELECT 1") == 1
        assert proxy.accepted == 3

        async def one_is_open() -> bool:
            return await count(database, proxy) == 1

        await until(one_is_open)
        await connection.close()

    async def test_one_of_several_connections_that_open_at_the_same_moment_is_kept(
        self, proxy: FaultProxy, database: asyncpg.Connection
    ) -> None:
        proxy.hold()
        opening = asyncio.create_task(connect(**options(proxy)))
        await until(lambda: proxy.accepted == 3)
        proxy.heal()

        connection = await opening

        async def one_is_open() -> bool:
            return await count(database, proxy) == 1

        await until(one_is_open)
        await connection.close()

    async def test_a_refused_attempt_does_not_end_one_that_waits(
        self, proxy: FaultProxy, first_connection_waits: tuple[int, asyncio.Event]
    ) -> None:
        port, release = first_connection_waits
        opening = asyncio.create_task(connect(**options(proxy, port=[port])))
        await asyncio.wait([opening], timeout=0.7)
        release.set()

        connection = await opening

        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()

    async def test_another_host_is_tried_beside_an_unresponsive_one(self, proxy: FaultProxy, dsn: str) -> None:
        with fault_proxy(dsn) as unresponsive:
            unresponsive.hold()
            [port], [other_port] = options(unresponsive)["port"], options(proxy)["port"]

            connection = await connect(**options(proxy, host=["127.0.0.1"] * 2, port=[port, other_port]))

            assert (unresponsive.accepted, proxy.accepted) == (1, 1)
            await connection.close()


class TestFailure:
    async def test_a_refused_connection_is_reported_at_once(self, proxy: FaultProxy) -> None:
        with pytest.raises(ConnectionRefusedError):
            await connect(**options(proxy, port=[1]))

    async def test_a_cancelled_attempt_leaves_no_connection_behind(
        self, proxy: FaultProxy, database: asyncpg.Connection
    ) -> None:
        proxy.hold()
        opening = asyncio.create_task(connect(**options(proxy)))
        await until(lambda: proxy.accepted == 2)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        proxy.heal()

        async def none_is_open() -> bool:
            return await count(database, proxy) == 0

        await until(none_is_open)

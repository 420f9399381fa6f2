"""The proxy does what the tests beside this one rely on. Asked by the driver, without the service."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Final

import asyncpg
import pytest

from tests.faults import FaultProxy, fault_proxy
from tests.support import until

Connection = asyncpg.Connection

SOON: Final = 0.2  # seconds
# What the driver says of a connection that ends under it.
GONE: Final = (ConnectionResetError, asyncpg.ConnectionDoesNotExistError)


@pytest.fixture
def proxy(dsn: str) -> Iterator[FaultProxy]:
    with fault_proxy(dsn) as proxy:
        yield proxy


@pytest.fixture
async def through(proxy: FaultProxy) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(proxy.dsn)
    yield connection
    connection.terminate()


async def test_all_is_forwarded(through: Connection) -> None:
    assert await through.fetchval("SELECT repeat('a', 1000000)") == "a" * 1_000_000


async def test_a_delayed_connection_is_accepted_and_says_nothing_for_that_long(proxy: FaultProxy) -> None:
    proxy.delay = SOON
    with pytest.raises(TimeoutError):
        await asyncpg.connect(proxy.dsn, timeout=SOON / 2)
    started = asyncio.get_running_loop().time()
    await (await asyncpg.connect(proxy.dsn)).close()

    assert asyncio.get_running_loop().time() - started >= SOON


async def test_latency_is_added_both_ways(proxy: FaultProxy, through: Connection) -> None:
    proxy.latency = SOON
    started = asyncio.get_running_loop().time()
    await through.execute("SELECT 1")

    assert asyncio.get_running_loop().time() - started >= 2 * SOON


async def test_held_connections_go_on(proxy: FaultProxy, through: Connection) -> None:
    proxy.hold()
    asked = asyncio.create_task(through.fetchval("SELECT 1"))
    assert not (await asyncio.wait([asked], timeout=SOON))[0]
    proxy.heal()

    assert await asked == 1


async def test_lost_connections_do_not_go_on_but_new_ones_do(proxy: FaultProxy, through: Connection) -> None:
    proxy.lose()
    connecting = asyncio.create_task(asyncpg.connect(proxy.dsn))
    asked = asyncio.create_task(through.fetchval("SELECT 1"))
    assert not (await asyncio.wait([asked, connecting], timeout=SOON))[0]
    proxy.heal()

    other = await connecting
    assert await other.fetchval("SELECT 1") == 1
    await other.close()
    assert not asked.done()
    assert not through.is_closed()
    asked.cancel()


async def test_reset_ends_connections_in_the_middle_of_a_statement(proxy: FaultProxy, through: Connection) -> None:
    asked = asyncio.create_task(through.execute("SELECT pg_sleep(60)"))
    await asyncio.wait([asked], timeout=SOON)
    proxy.reset()

    with pytest.raises(GONE):
        await asked


async def test_a_statement_that_is_cut_off_is_carried_out(
    proxy: FaultProxy, through: Connection, database: Connection
) -> None:
    await database.execute("CREATE TABLE cut (number integer)")
    insert = await through.prepare("INSERT INTO cut VALUES ($1)")
    proxy.cut(1)
    with pytest.raises(GONE):
        await insert.fetch(7)

    assert await database.fetchval("SELECT array_agg(number) FROM cut") == [7]
    await database.execute("DROP TABLE cut")
    assert proxy.cut_off == 1


async def test_idle_connections_are_closed_and_others_are_not(proxy: FaultProxy, through: Connection) -> None:
    proxy.idle = SOON
    for _ in range(5):
        await through.execute("SELECT pg_sleep(0.1)")
    assert not through.is_closed()

    await until(through.is_closed)


async def test_where_the_database_is_away_connections_are_reset() -> None:
    with fault_proxy("postgresql://127.0.0.1:1/postgres") as other, pytest.raises(GONE):
        await asyncpg.connect(other.dsn, ssl=False)

"""The fault proxy behaves as the other tests assume. These tests use the driver, without the service."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Final

import asyncpg
import pytest

from tests.faults import FaultProxy, fault_proxy
from tests.support import until

Connection = asyncpg.Connection

SOON: Final = 0.2  # seconds
# Errors of the driver for a connection that was lost.
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


async def test_a_large_result_is_forwarded(through: Connection) -> None:
    assert await through.fetchval("SELECT repeat('a', 1000000)") == "a" * 1_000_000


async def test_a_delayed_connection_is_accepted_but_unresponsive_during_the_delay(proxy: FaultProxy) -> None:
    proxy.delay = SOON
    with pytest.raises(TimeoutError):
        await asyncpg.connect(proxy.dsn, timeout=SOON / 2)
    started = asyncio.get_running_loop().time()
    await (await asyncpg.connect(proxy.dsn)).close()

    assert asyncio.get_running_loop().time() - started >= SOON


async def test_latency_is_added_in_both_directions(proxy: FaultProxy, through: Connection) -> None:
    proxy.latency = SOON
    started = asyncio.get_running_loop().time()
    await through.execute("SELECT 1")

    assert asyncio.get_running_loop().time() - started >= 2 * SOON


async def test_a_held_connection_continues_after_heal(proxy: FaultProxy, through: Connection) -> None:
    proxy.hold()
    asked = asyncio.create_task(through.fetchval("SELECT 1"))
    assert not (await asyncio.wait([asked], timeout=SOON))[0]
    proxy.heal()

    assert await asked == 1


async def test_a_lost_connection_does_not_continue_after_heal_but_a_new_one_works(
    proxy: FaultProxy, through: Connection
) -> None:
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


async def test_reset_ends_a_connection_during_a_statement(proxy: FaultProxy, through: Connection) -> None:
    asked = asyncio.create_task(through.execute("SELECT pg_sleep(60)"))
    await asyncio.wait([asked], timeout=SOON)
    proxy.reset()

    with pytest.raises(GONE):
        await asked


async def test_a_statement_whose_answer_is_cut_off_is_carried_out(
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


async def test_an_idle_connection_is_closed_but_a_used_one_is_not(proxy: FaultProxy, through: Connection) -> None:
    proxy.idle = SOON
    for _ in range(5):
        await through.execute("SELECT pg_sleep(0.1)")
    assert not through.is_closed()

    await until(through.is_closed)


async def test_a_connection_is_reset_while_the_database_is_down() -> None:
    with fault_proxy("postgresql://127.0.0.1:1/postgres") as other, pytest.raises(GONE):
        await asyncpg.connect(other.dsn, ssl=False)

"""The fault proxy behaves as the other tests assume. These tests use the driver, without the service."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import pytest

from tests.faults import FaultProxy
from tests.support import connected

SOON: Final = 0.2  # seconds
# Errors of the driver for a connection that was lost.
GONE: Final = (ConnectionResetError, asyncpg.ConnectionDoesNotExistError)


@pytest.fixture
async def through(network: FaultProxy) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(network.dsn)
    yield connection
    connection.terminate()


async def test_new_connections_are_delayed_and_each_message_has_latency_in_both_directions(
    network: FaultProxy, through: asyncpg.Connection
) -> None:
    network.delay = network.latency = SOON
    with pytest.raises(TimeoutError):
        await asyncpg.connect(network.dsn, timeout=SOON / 2)
    started = asyncio.get_running_loop().time()
    await through.execute("SELECT 1")

    assert asyncio.get_running_loop().time() - started >= 2 * SOON


@pytest.mark.parametrize("is_lost", [False, True], ids=["held", "lost"])
async def test_a_held_connection_continues_after_heal_but_after_a_loss_only_new_ones_work(
    network: FaultProxy, through: asyncpg.Connection, *, is_lost: bool
) -> None:
    (network.lose if is_lost else network.hold)()
    asked = asyncio.create_task(through.fetchval("SELECT 1"))
    assert not (await asyncio.wait([asked], timeout=SOON))[0]
    network.heal()

    async with connected(network.dsn) as other:
        assert await other.fetchval("SELECT 1") == 1
    assert bool((await asyncio.wait([asked], timeout=SOON if is_lost else None))[0]) is not is_lost
    assert not through.is_closed()
    asked.cancel()


async def test_a_statement_whose_answer_is_cut_off_is_carried_out(
    network: FaultProxy, through: asyncpg.Connection, database: asyncpg.Connection
) -> None:
    await database.execute("CREATE TABLE cut (number integer)")
    insert = await through.prepare("INSERT INTO cut VALUES ($1)")
    network.cut(1)
    with pytest.raises(GONE):
        await insert.fetch(7)

    assert await database.fetchval("SELECT array_agg(number) FROM cut") == [7]
    await database.execute("DROP TABLE cut")
    assert network.cut_off == 1

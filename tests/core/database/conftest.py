import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import pytest

from app.core.database import Database
from tests.core.database.support import ACTIVITY
from tests.faults import FaultProxy, fault_proxy
from tests.support import connected, new_database


@pytest.fixture(scope="module")
def own_dsn(dsn: str) -> Iterator[str]:
    """An empty database for one module."""
    with new_database(dsn, "own") as own:
        yield own


@pytest.fixture
async def server(own_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A direct connection to `own_dsn`. At the end the statements of the service end."""
    async with connected(own_dsn) as connection:
        yield connection
        await connection.execute(f"SELECT pg_terminate_backend(pid, 10000) {ACTIVITY}")


@pytest.fixture
def proxy(own_dsn: str) -> Iterator[FaultProxy]:
    with fault_proxy(own_dsn) as proxy:
        yield proxy


@pytest.fixture
async def stored(server: asyncpg.Connection) -> Callable[[], Awaitable[list[str]]]:
    """Returns the names in `item`, a table of the module that is empty at first."""
    await server.execute("TRUNCATE item")

    async def stored() -> list[str]:
        return [name for [name] in await server.fetch("SELECT name FROM item ORDER BY name")]

    return stored


@pytest.fixture
async def make_database(own_dsn: str, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Callable[..., Database]]:
    """Makes databases. At the end no connection may have been lost, no probe may run, and no error may be logged."""
    made: list[Database] = []
    gc.freeze()  # so that a collection takes no time

    def make(dsn: str = own_dsn, **options: Any) -> Database:
        made.append(Database(dsn, **{"pool_size": 1, "pool_timeout": 10, "concurrency_limit": 100, **options}))
        return made[-1]

    yield make
    for db in made:
        await db.close()
    gc.collect()  # warns of a connection that was not returned, and warnings are errors
    tasks = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    assert [name for name in tasks if name.startswith("Database.")] == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture
async def db(make_database: Callable[..., Database]) -> Database:
    """A pool of one connection, so that a test notices if a slot is lost."""
    return make_database()

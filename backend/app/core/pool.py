"""The one pool: connections that are opened when they are needed, and a statement that is run on one of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from weakref import WeakSet

import asyncpg
from sqlalchemy import PoolProxiedConnection, create_pool_from_url, event, exc
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_only, greenlet_spawn

from app.core.connecting import connect
from app.core.errors import DatabaseUnavailableError, OverloadedError, StatementError, TimedOutError
from app.core.faults import meaning

_STATEMENT_TIMEOUT: Final = 4  # seconds; asyncpg's default is to wait for ever
_OPENING_TIMEOUT: Final = 10  # seconds that a request waits, at least, while connections are being opened
_END_TIMEOUT: Final = 2  # seconds in which the server may take note that a statement was given up
_CLOSE_TIMEOUT: Final = 1  # seconds for all connections
_RECYCLE: Final = 240  # seconds; below the five minutes after which Neon suspends


class Pool:
    """Few connections, the last one used first, so that the others age out."""

    def __init__(self, connect_args: dict[str, Any], *, size: int, timeout: float) -> None:
        """`connect_args` are those of `parse_dsn`; `timeout` is in seconds, for a connection that is free."""
        # Without an engine, which asks the server eleven questions before its first connection can be used.
        self._pool = create_pool_from_url(
            "postgresql+asyncpg://",
            connect_args={**connect_args, "command_timeout": _STATEMENT_TIMEOUT, "async_creator_fn": self._connect},
            pool_size=size,
            max_overflow=0,
            recycle=_RECYCLE,
            use_lifo=True,
            reset_on_return=None,
        )
        event.listen(self._pool, "connect", self._mark)
        event.listen(self._pool, "checkout", self._refuse_lost)
        self._free = asyncio.Semaphore(size)
        self._patience = timeout
        self._opening = 0
        self._generation = 0
        self._drivers: WeakSet[asyncpg.Connection] = WeakSet()
        self._ends: set[asyncio.Task[None]] = set()

    async def run(self, sql: str, values: list[Any], *, reads: bool) -> list[asyncpg.Record]:
        """Run one statement, in autocommit. `reads` says that it changes nothing.

        Raises UnavailableError, one of its kinds, with the driver's error as its cause, and StatementError.
        """
        async with self._turn():
            return await greenlet_spawn(self._check_out_and_run, sql, values, reads)

    async def close(self) -> None:
        """Close every connection."""
        ends = [*self._ends, *(asyncio.create_task(_end(driver, _CLOSE_TIMEOUT)) for driver in self._drivers)]
        if ends:
            await asyncio.wait(ends, timeout=_CLOSE_TIMEOUT)
        await greenlet_spawn(self._pool.dispose)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """The pool's own queue does not tell those who wait when a connection could not be made. It is no overload as
        long as connections are being opened: a database that wakes up takes its time.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError:
            await self._wait_for_opening()
        try:
            yield
        finally:
            self._free.release()

    async def _wait_for_opening(self) -> None:
        rest = _OPENING_TIMEOUT - self._patience if self._opening else 0
        try:
            async with asyncio.timeout(rest):
                await self._free.acquire()
        except TimeoutError:
            raise OverloadedError from None

    def _check_out_and_run(self, sql: str, values: list[Any], reads: bool) -> list[asyncpg.Record]:
        try:
            connection = self._pool.connect()
        except Exception as error:
            raise DatabaseUnavailableError from error
        try:
            return self._run_on(connection, sql, values, reads)
        finally:
            if not connection.is_detached:
                connection.close()

    def _run_on(self, connection: PoolProxiedConnection, sql: str, values: list[Any], reads: bool) -> list[Any]:
        driver: Any = connection.driver_connection
        try:
            records: list[asyncpg.Record] = await_only(driver.fetch(sql, *values))
        except asyncio.CancelledError:
            self._give_up(connection, driver)
            raise
        except TimeoutError as error:
            self._give_up(connection, driver)
            self._generation += 1
            raise meaning(error, reads=reads, closed=False) from error
        except Exception as error:
            told = meaning(error, reads=reads, closed=driver.is_closed())
            if isinstance(told, StatementError):
                raise told from None
            if not isinstance(told, TimedOutError):
                connection.invalidate(error)
            raise told from error
        return records

    async def _connect(self, **options: Any) -> asyncpg.Connection:
        self._opening += 1
        try:
            driver = await connect(**options)
        finally:
            self._opening -= 1
        self._drivers.add(driver)
        return driver

    def _mark(self, _: object, entry: ConnectionPoolEntry) -> None:
        entry.info["generation"] = self._generation

    def _refuse_lost(self, dbapi_connection: Any, entry: ConnectionPoolEntry, _: object) -> None:
        """Costs no round trip: asyncpg knows when the server has closed a connection. After one that went dumb
        instead, none that was opened earlier is trusted.
        """
        driver = dbapi_connection.driver_connection
        if entry.info["generation"] != self._generation:
            driver.terminate()  # to close it would wait for the server to agree
        if driver.is_closed():
            raise exc.DisconnectionError

    def _give_up(self, connection: PoolProxiedConnection, driver: Any) -> None:
        """Free the place of a connection at once: to end its statement at the server may take a while."""
        connection.detach()
        end = asyncio.get_running_loop().create_task(_end(driver, _END_TIMEOUT))
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)


async def _end(driver: Any, seconds: float) -> None:
    """Have the server stop what it does for this connection, and close it."""
    with suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        await driver.close(timeout=seconds)

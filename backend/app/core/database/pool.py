"""The one pool: connections that are opened when they are needed, and a statement that is run on one of them."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any, Final, NamedTuple
from weakref import WeakSet

import asyncpg

from app.core.database.connecting import connect
from app.core.database.faults import meaning
from app.core.errors import DatabaseUnavailableError, OverloadedError, StatementError, TimedOutError

_STATEMENT_TIMEOUT: Final = 4  # seconds; asyncpg's default is to wait for ever
_OPENING_TIMEOUT: Final = 10  # seconds that a request waits, at least, while connections are being opened
_END_TIMEOUT: Final = 2  # seconds in which the server may take note that a statement was given up
_CLOSE_TIMEOUT: Final = 1  # seconds for all connections
_AGE_MAX: Final = 240  # seconds; below the five minutes after which Neon suspends


class _Open(NamedTuple):
    """A connection, how many had gone dumb before it was opened, and the loop's time at which it is too old."""

    driver: asyncpg.Connection
    generation: int
    expires: float


class Pool:
    """Few connections, the last one used first, so that the others age out."""

    def __init__(self, connect_args: dict[str, Any], *, size: int, timeout: float) -> None:
        """`connect_args` are those of `parse_dsn`; `timeout` is in seconds, for a connection that is free."""
        self._connect_args = {**connect_args, "command_timeout": _STATEMENT_TIMEOUT}
        self._free = size
        self._queue: deque[asyncio.Future[None]] = deque()
        self._patience = timeout
        self._idle: list[_Open] = []
        self._opening = 0
        self._generation = 0
        self._drivers: WeakSet[asyncpg.Connection] = WeakSet()
        self._ends: set[asyncio.Task[None]] = set()

    async def run(self, sql: str, values: list[Any], *, reads: bool) -> list[asyncpg.Record]:
        """Run one statement, in autocommit. `reads` says that it changes nothing.

        Raises UnavailableError, one of its kinds, with the driver's error as its cause, and StatementError.
        """
        if self._free:
            self._free -= 1
        else:
            await self._turn()
        try:
            return await self._run_on(self._last_used() or await self._open(), sql, values, reads)
        finally:
            self._pass_on()

    async def close(self) -> None:
        """Close every connection."""
        ends = [*self._ends, *(asyncio.create_task(_end(driver, _CLOSE_TIMEOUT)) for driver in self._drivers)]
        if ends:
            await asyncio.wait(ends, timeout=_CLOSE_TIMEOUT)

    async def _turn(self) -> None:
        """Wait until another statement passes its place on. Raises OverloadedError."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        timer = turn.get_loop().call_later(self._patience, self._lose_patience, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not (turn.cancelled() or turn.exception()):  # the place came at the same moment
                self._pass_on()
            raise
        finally:
            timer.cancel()

    def _pass_on(self) -> None:
        """Give the place to the one that has waited longest. asyncio.Semaphore with a timeout is a tenth of a GET."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _lose_patience(self, turn: asyncio.Future[None]) -> None:
        """It is no overload as long as connections are being opened: a database that wakes up takes its time."""
        rest = _OPENING_TIMEOUT - self._patience if self._opening else 0
        if rest > 0:
            timer = turn.get_loop().call_later(rest, _refuse, turn)
            turn.add_done_callback(lambda _: timer.cancel())
        else:
            _refuse(turn)

    def _last_used(self) -> _Open | None:
        """Costs no round trip: asyncpg knows when the server has closed a connection. After one that went dumb
        instead, none that was opened earlier is trusted.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.generation != self._generation:
                connection.driver.terminate()  # to close it would wait for the server to agree
            elif connection.expires < asyncio.get_running_loop().time():
                self._end_later(connection.driver)
            elif not connection.driver.is_closed():
                return connection
        return None

    async def _open(self) -> _Open:
        self._opening += 1
        try:
            driver = await connect(**self._connect_args)
        except Exception as error:
            raise DatabaseUnavailableError from error
        finally:
            self._opening -= 1
        self._drivers.add(driver)
        return _Open(driver, self._generation, asyncio.get_running_loop().time() + _AGE_MAX)

    async def _run_on(self, connection: _Open, sql: str, values: list[Any], reads: bool) -> list[asyncpg.Record]:
        driver = connection.driver
        try:
            records: list[asyncpg.Record] = await driver.fetch(sql, *values)
        except asyncio.CancelledError:
            self._end_later(driver)
            raise
        except TimeoutError as error:
            self._end_later(driver)
            self._generation += 1
            raise meaning(error, reads=reads, closed=False) from error
        except Exception as error:
            told = meaning(error, reads=reads, closed=driver.is_closed())
            if isinstance(told, StatementError):
                self._idle.append(connection)
                raise told from None
            if isinstance(told, TimedOutError):
                self._idle.append(connection)
            else:
                driver.terminate()
            raise told from error
        self._idle.append(connection)
        return records

    def _end_later(self, driver: asyncpg.Connection) -> None:
        """Free the place of a connection at once: to end its statement at the server may take a while."""
        end = asyncio.get_running_loop().create_task(_end(driver, _END_TIMEOUT))
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)


def _refuse(turn: asyncio.Future[None]) -> None:
    with suppress(asyncio.InvalidStateError):  # the place came at the same moment
        turn.set_exception(OverloadedError())


async def _end(driver: asyncpg.Connection, seconds: float) -> None:
    """Have the server stop what it does for this connection, and close it."""
    with suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        await driver.close(timeout=seconds)

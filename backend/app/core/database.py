"""The one engine, and how a statement runs on it: compiled once, in autocommit, by the driver."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import chain, repeat
from typing import Any, Final, NamedTuple

import asyncpg
from sqlalchemy import ClauseElement, PoolProxiedConnection, Select, event, exc, func, literal_column, make_url, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_only, greenlet_spawn

from app.core.connecting import connect
from app.core.dsn import parse_dsn
from app.core.errors import (
    DatabaseUnavailableError,
    OutcomeUnknownError,
    OverloadedError,
    StatementError,
    TimedOutError,
    UnavailableError,
)
from app.core.faults import is_unprepared, may_pass, meaning, sqlstate

_STATEMENT_TIMEOUT: Final = 4  # seconds; asyncpg's default is to wait for ever
_CONNECT_TIMEOUT: Final = 10  # seconds that a request waits, at least, while connections are being opened
_END_TIMEOUT: Final = 2  # seconds in which the server may take note that a statement was given up
_CLOSE_TIMEOUT: Final = 0.8  # seconds for those that are given up, and again for the others
_RECYCLE: Final = 240  # seconds; below the five minutes after which Neon suspends
_RETRY_WITHIN: Final = 5  # seconds; a statement that has waited for longer is not tried again
_RETRY_PAUSE: Final = (0.05, 0.25)  # seconds, from and to: those who were cut off together return one by one
_RETRY_DELAYS: Final = (1, 2, 4, 8, 16)  # seconds between looks at a lost database, then the last one again

_logger = logging.getLogger(__name__)
_DIALECT: Final[Any] = make_url("postgresql+asyncpg://").get_dialect()()


class Statement(NamedTuple):
    """SQL for asyncpg: `$1` stands for the value of the first of `names`. `reads`: it changes nothing."""

    sql: str
    names: tuple[str, ...]
    reads: bool


def statement(clause: ClauseElement) -> Statement:
    """Returns the clause compiled for asyncpg, to be made once and run often."""
    compiled: Any = clause.compile(dialect=_DIALECT)
    return Statement(compiled.string, tuple(compiled.positiontup), isinstance(clause, Select))


def _setting(name: str) -> Any:
    return func.current_setting(literal_column(f"'{name}'"))


_PING: Final = statement(select(_setting("statement_timeout"), _setting("lock_timeout")))


class Database:
    """The pool, and whether the database answered when it was last asked."""

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int,
        pool_timeout: float,
        concurrency_limit: int = 1_000,
        prepares: bool | None = None,
    ) -> None:
        """Connects at the first statement. Raises ValueError for a connection string it cannot use."""
        target = parse_dsn(dsn, prepares=prepares)
        self.warning = target.warning
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            connect_args={
                **target.connect_args,
                "command_timeout": _STATEMENT_TIMEOUT,
                "async_creator_fn": self._connect,
            },
            pool_size=pool_size,
            max_overflow=0,
            pool_recycle=_RECYCLE,
            pool_use_lifo=True,
            pool_reset_on_return=None,
        )
        event.listen(self._engine.sync_engine, "connect", self._mark)
        event.listen(self._engine.sync_engine, "checkout", self._refuse_lost)
        self._free = asyncio.Semaphore(pool_size)
        self._patience = pool_timeout
        self._room = concurrency_limit
        self._opening = 0
        self._generation = 0
        self._ends: set[asyncio.Task[None]] = set()
        self._recovery: asyncio.Task[None] | None = None
        self._answered: bool | None = None
        self._warned = False

    @property
    def reachable(self) -> bool:
        """Whether the database answered when it was last asked."""
        return bool(self._answered)

    async def fetch(self, query: Statement, *, repeatable: bool = False, **values: object) -> list[asyncpg.Record]:
        """Run one statement, committed when it returns.

        It is run once more where a fault may have passed, but not after a change was sent, unless it is `repeatable`:
        does no harm, and returns what it should, if the first one was carried out. Raises UnavailableError, one of its
        kinds, and StatementError.
        """
        if not self._room:
            raise OverloadedError
        self._room -= 1
        try:
            records = await self._run_repeated(query, [values[name] for name in query.names], repeatable=repeatable)
        except UnavailableError as error:
            if isinstance(error, DatabaseUnavailableError):
                self._note(answered=False, cause=error.__cause__)
            if not isinstance(error, OverloadedError):
                self._look()
            raise
        finally:
            self._room += 1
        self._note(answered=True)
        return records

    async def check(self) -> bool:
        """Ask the database once. Returns whether it answered."""
        try:
            [timeouts] = await self.fetch(_PING)
        except OverloadedError:
            return False
        except (UnavailableError, StatementError) as error:
            self._note(answered=False, cause=error.__cause__ or error)
            return False
        if "0" in tuple(timeouts) and not self._warned:
            self._warned = True
            _logger.warning(
                "statement_timeout or lock_timeout is not set for this role: a statement may run on after its request, "
                "see docs/deploy-neon.md"
            )
        return True

    async def close(self) -> None:
        """Close every connection."""
        if self._recovery:
            self._recovery.cancel()
            await asyncio.wait([self._recovery])
        if self._ends:
            await asyncio.wait(self._ends, timeout=_CLOSE_TIMEOUT)
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._engine.dispose()

    async def _run_repeated(self, query: Statement, values: list[Any], *, repeatable: bool) -> list[asyncpg.Record]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _RETRY_WITHIN
        try:
            return await self._run(query, values)
        except UnavailableError as error:
            sent = isinstance(error, OutcomeUnknownError)
            if not may_pass(error) or (sent and not repeatable) or self._answered is False or loop.time() > deadline:
                raise
            first = error
        await asyncio.sleep(random.uniform(*_RETRY_PAUSE))  # noqa: S311  # nobody gains by guessing it
        try:
            return await self._run(query, values)
        except UnavailableError as error:
            raise (first if sent else error) from error.__cause__

    async def _run(self, query: Statement, values: list[Any]) -> list[asyncpg.Record]:
        async with self._connection_to_come():
            return await greenlet_spawn(self._fetch, query, values)

    @asynccontextmanager
    async def _connection_to_come(self) -> AsyncIterator[None]:
        """The pool's own queue does not tell those who wait when a connection could not be made."""
        patience = max(self._patience, _CONNECT_TIMEOUT) if self._opening else self._patience
        try:
            async with asyncio.timeout(patience):
                await self._free.acquire()
        except TimeoutError:
            raise OverloadedError from None
        try:
            yield
        finally:
            self._free.release()

    def _fetch(self, query: Statement, values: list[Any]) -> list[asyncpg.Record]:
        try:
            connection = self._engine.sync_engine.raw_connection()
        except Exception as error:
            raise DatabaseUnavailableError from error
        try:
            return self._fetch_on(connection, query, values)
        finally:
            if not connection.is_detached:
                connection.close()

    def _fetch_on(self, connection: PoolProxiedConnection, query: Statement, values: list[Any]) -> list[asyncpg.Record]:
        driver: Any = connection.driver_connection
        try:
            records: list[asyncpg.Record] = await_only(driver.fetch(query.sql, *values))
        except (TimeoutError, asyncio.CancelledError) as error:
            self._give_up(connection, driver)
            if isinstance(error, asyncio.CancelledError):
                raise
            self._generation += 1
            raise meaning(error, reads=query.reads, closed=False) from error
        except Exception as error:
            told = meaning(error, reads=query.reads, closed=driver.is_closed())
            if isinstance(told, StatementError):
                raise told from None
            if not isinstance(told, TimedOutError):
                connection.invalidate(error)
            raise told from error
        return records

    async def _connect(self, **options: Any) -> asyncpg.Connection:
        self._opening += 1
        try:
            return await connect(**options)
        finally:
            self._opening -= 1

    def _mark(self, _: object, record: ConnectionPoolEntry) -> None:
        record.info["generation"] = self._generation

    def _refuse_lost(self, dbapi_connection: Any, record: ConnectionPoolEntry, _: object) -> None:
        """Costs no round trip: asyncpg knows when the server has closed a connection. After one that went dumb
        instead, none that was opened earlier is trusted.
        """
        driver = dbapi_connection.driver_connection
        if record.info["generation"] != self._generation:
            driver.terminate()  # would otherwise wait for the server to agree
        if driver.is_closed():
            raise exc.DisconnectionError

    def _give_up(self, connection: PoolProxiedConnection, driver: Any) -> None:
        """Free the place of a connection at once: to end its statement at the server may take a while."""
        connection.detach()
        end = asyncio.get_running_loop().create_task(_end(driver))
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)

    def _note(self, *, answered: bool, cause: BaseException | None = None) -> None:
        if answered is not self._answered:
            self._answered = answered
            if answered:
                _logger.info("database reached")
            else:  # the text of a driver's error may hold values and addresses
                _logger.warning("database unavailable: %s %s", type(cause).__name__, sqlstate(cause))
        if is_unprepared(cause):
            _logger.warning("a pooler has lost a prepared statement: set DATABASE_PREPARED_STATEMENTS=off")

    def _look(self) -> None:
        if self._recovery is None or self._recovery.done():
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        """Ask until there is an answer: a replica out of rotation gets no request that would find the database."""
        delays = chain(_RETRY_DELAYS, repeat(_RETRY_DELAYS[-1]))
        while not await self.check():  # noqa: ASYNC110  # pragma: no branch  # no event tells when; coverage.py loses it
            await asyncio.sleep(next(delays))


async def _end(driver: Any) -> None:
    """Have the server stop what it does for this connection, and close it."""
    with suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        await driver.close(timeout=_END_TIMEOUT)

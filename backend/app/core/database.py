"""The one engine, and how a statement runs on it: compiled once, in autocommit, by the driver."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import chain, repeat
from typing import Any, Final, NamedTuple

import asyncpg
from sqlalchemy import ClauseElement, PoolProxiedConnection, event, exc, literal_column, make_url, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only, greenlet_spawn

from app.core.dsn import parse_dsn
from app.core.errors import DatabaseUnavailableError, OverloadedError, StatementError, TimedOutError, UnavailableError

_COMMAND_TIMEOUT: Final = 10  # seconds; asyncpg's default is to wait for ever
_RECYCLE: Final = 240  # seconds; below the five minutes after which Neon suspends
_RETRY_DELAYS: Final = (1, 2, 4, 8, 16)  # seconds between looks at a lost database, then the last one again
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_UNAVAILABLE: Final = ("08", "25006", "53", "57P")  # connection, read-only after a failover, resources, shutdown
_GIVEN_UP: Final = ("40", "55P03", "57014")  # serialization and deadlock, lock timeout, statement timeout

_logger = logging.getLogger(__name__)
_DIALECT: Final[Any] = make_url("postgresql+asyncpg://").get_dialect()()


class Statement(NamedTuple):
    """SQL for asyncpg: `$1` stands for the value of the first of `names`."""

    sql: str
    names: tuple[str, ...]


def statement(clause: ClauseElement) -> Statement:
    """Returns the clause compiled for asyncpg, to be made once and run often."""
    compiled: Any = clause.compile(dialect=_DIALECT)
    return Statement(compiled.string, tuple(compiled.positiontup))


_PING: Final = statement(select(literal_column("1")))


class Database:
    """The pool, and whether the database answered when it was last asked."""

    def __init__(self, dsn: str, *, pool_size: int, pool_timeout: float) -> None:
        """Connects at the first statement. Raises ValueError for a connection string it cannot use."""
        url, connect_args = parse_dsn(dsn)
        self._engine = create_async_engine(
            url,
            connect_args={
                **connect_args,
                "command_timeout": _COMMAND_TIMEOUT,
                "server_settings": {"application_name": "tasks-api"},
            },
            pool_size=pool_size,
            max_overflow=0,
            pool_recycle=_RECYCLE,
            pool_use_lifo=True,
            pool_reset_on_return=None,
        )
        event.listen(self._engine.sync_engine, "checkout", _refuse_closed)
        self._free = asyncio.Semaphore(pool_size)
        self._patience = pool_timeout
        self._recovery: asyncio.Task[None] | None = None
        self._answered: bool | None = None

    @property
    def reachable(self) -> bool:
        """Whether the database answered when it was last asked."""
        return bool(self._answered)

    async def fetch(self, query: Statement, **values: object) -> list[asyncpg.Record]:
        """Run one statement, committed when it returns. Raises UnavailableError, one of its three kinds."""
        try:
            async with self._connection_to_come():
                records = await greenlet_spawn(self._fetch, query.sql, [values[name] for name in query.names])
        except DatabaseUnavailableError as error:
            self._note(answered=False, cause=error.__cause__)
            self._look()
            raise
        except TimedOutError:
            self._look()
            raise
        self._note(answered=True)
        return records

    async def check(self) -> bool:
        """Ask the database once. Returns whether it answered."""
        try:
            await self.fetch(_PING)
        except OverloadedError:
            return False
        except (UnavailableError, StatementError) as error:
            self._note(answered=False, cause=error)
            return False
        return True

    async def close(self) -> None:
        """Close every connection."""
        if self._recovery:
            self._recovery.cancel()
            await asyncio.wait([self._recovery])
        await self._engine.dispose()

    @asynccontextmanager
    async def _connection_to_come(self) -> AsyncIterator[None]:
        """The pool's own queue does not tell those who wait when a connection could not be made."""
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError:
            raise OverloadedError from None
        try:
            yield
        finally:
            self._free.release()

    def _fetch(self, sql: str, values: list[Any]) -> list[asyncpg.Record]:
        try:
            connection = self._engine.sync_engine.raw_connection()
        except Exception as error:
            raise DatabaseUnavailableError from error
        try:
            return _run(connection, sql, values)
        finally:
            connection.close()

    def _note(self, *, answered: bool, cause: BaseException | None = None) -> None:
        if answered is not self._answered:
            self._answered = answered
            if answered:
                _logger.info("database reached")
            else:  # the text of a driver's error may hold values and addresses
                _logger.warning("database unavailable: %s %s", type(cause).__name__, _sqlstate(cause))

    def _look(self) -> None:
        if self._recovery is None or self._recovery.done():
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        """Ask until there is an answer: a replica out of rotation gets no request that would find the database."""
        delays = chain(_RETRY_DELAYS, repeat(_RETRY_DELAYS[-1]))
        while not await self.check():  # noqa: ASYNC110  # pragma: no branch  # no event tells when; coverage.py loses it
            await asyncio.sleep(next(delays))


def _run(connection: PoolProxiedConnection, sql: str, values: Iterable[Any]) -> list[asyncpg.Record]:
    driver: Any = connection.driver_connection
    try:
        records: list[asyncpg.Record] = await_only(driver.fetch(sql, *values))
    except BaseException as error:
        lost = driver.is_closed() or _sqlstate(error).startswith(_UNAVAILABLE)
        if lost or not isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
            connection.invalidate(error)  # a cancelled or timed-out statement leaves it in an unknown state
        if not isinstance(error, Exception):
            raise
        if isinstance(error, TimeoutError) or _sqlstate(error).startswith(_GIVEN_UP):
            raise TimedOutError from error
        if lost or isinstance(error, OSError):
            raise DatabaseUnavailableError from error
        raise StatementError(error) from None
    return records


def _sqlstate(error: BaseException | None) -> str:
    return getattr(error, "sqlstate", None) or ""


def _refuse_closed(dbapi_connection: Any, *_: object) -> None:
    """Costs no round trip: asyncpg knows when the server has closed a connection."""
    if dbapi_connection.driver_connection.is_closed():
        raise exc.DisconnectionError

"""The one engine, and how a statement runs on it: compiled once, in autocommit, by the driver."""

import asyncio
import logging
from collections.abc import Iterable
from itertools import chain, repeat
from typing import Any, Final, NamedTuple

import asyncpg
from sqlalchemy import ClauseElement, PoolProxiedConnection, event, exc, literal_column, make_url, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only, greenlet_spawn

from app.core.dsn import parse_dsn
from app.core.errors import DatabaseUnavailableError, OverloadedError, StatementError, UnavailableError

_CONNECT_TIMEOUT: Final = 10  # seconds; a sleeping Neon compute wakes in less
_COMMAND_TIMEOUT: Final = 10  # seconds; asyncpg's default is to wait for ever
_RECYCLE: Final = 240  # seconds; below the five minutes after which Neon suspends
_RETRY_DELAYS: Final = (1, 2, 4, 8, 16)  # seconds between looks at a lost database, then the last one again
# 08 connection, 53 resources, 57P shutdown: https://www.postgresql.org/docs/current/errcodes-appendix.html
_UNAVAILABLE: Final = ("08", "53", "57P")

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
        url, tls = parse_dsn(dsn)
        self._engine = create_async_engine(
            url,
            connect_args={
                **tls,
                "timeout": _CONNECT_TIMEOUT,
                "command_timeout": _COMMAND_TIMEOUT,
                "server_settings": {"application_name": "tasks-api"},
            },
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=pool_timeout,
            pool_recycle=_RECYCLE,
            pool_use_lifo=True,
            pool_reset_on_return=None,
        )
        event.listen(self._engine.sync_engine, "checkout", _refuse_closed)
        self._recovery: asyncio.Task[None] | None = None
        self.reachable = False

    async def fetch(self, query: Statement, **values: object) -> list[asyncpg.Record]:
        """Run one statement, committed when it returns. Raises UnavailableError, one of the two."""
        try:
            records = await greenlet_spawn(self._fetch, query.sql, [values[name] for name in query.names])
        except DatabaseUnavailableError as error:
            self._lost(error)
            raise
        self.reachable = True
        return records

    async def check(self) -> bool:
        """Ask the database once. Returns whether it answered."""
        try:
            await self.fetch(_PING)
        except UnavailableError:
            return False
        return True

    async def close(self) -> None:
        """Close every connection."""
        if self._recovery:
            self._recovery.cancel()
            await asyncio.wait([self._recovery])
        await self._engine.dispose()

    def _fetch(self, sql: str, values: list[Any]) -> list[asyncpg.Record]:
        try:
            connection = self._engine.sync_engine.raw_connection()
        except exc.TimeoutError:
            raise OverloadedError from None
        except Exception as error:
            raise DatabaseUnavailableError from error
        try:
            return _run(connection, sql, values)
        finally:
            connection.close()

    def _lost(self, error: DatabaseUnavailableError) -> None:
        self.reachable = False
        if self._recovery is None or self._recovery.done():
            cause = error.__cause__
            _logger.warning("database unavailable: %s %s", type(cause).__name__, getattr(cause, "sqlstate", ""))
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        """Look for a lost database: a replica out of rotation gets no request that would find it."""
        for delay in chain(_RETRY_DELAYS, repeat(_RETRY_DELAYS[-1])):
            await asyncio.sleep(delay)
            if await self.check():
                _logger.info("database is back")
                return


def _run(connection: PoolProxiedConnection, sql: str, values: Iterable[Any]) -> list[asyncpg.Record]:
    driver: Any = connection.driver_connection
    try:
        records: list[asyncpg.Record] = await_only(driver.fetch(sql, *values))
    except BaseException as error:
        closed = driver.is_closed()
        if closed or not isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
            connection.invalidate(error)  # a cancelled or timed-out statement leaves it in an unknown state
        if closed or isinstance(error, OSError) or str(getattr(error, "sqlstate", "")).startswith(_UNAVAILABLE):
            raise DatabaseUnavailableError from error
        if isinstance(error, Exception):
            raise StatementError(error) from None
        raise
    return records


def _refuse_closed(dbapi_connection: Any, *_: object) -> None:
    """Costs no round trip: asyncpg knows when the server has closed a connection."""
    if dbapi_connection.driver_connection.is_closed():
        raise exc.DisconnectionError

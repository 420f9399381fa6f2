"""The async engine, two ways to run statements on it, and the state of its database."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
from sqlalchemy import Dialect, Table, event, literal_column, select
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import EmulatedDBAPIException
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.database import faults
from app.core.database.connecting import connect
from app.core.database.dialect import URL
from app.core.database.dsn import parse_dsn
from app.core.database.pool import TIMEOUTS, USER, PoolNumbers, SlotPool, Timeouts
from app.core.database.statement import Statement, statement
from app.core.database.transaction import open_session, transaction
from app.core.errors import (
    DatabaseUnavailableError,
    OutcomeUnknownError,
    OverloadedError,
    StatementError,
    UnavailableError,
    without_text,
)

_RETRY_WITHIN: Final = 5  # seconds; a statement that took longer is not retried
_RETRY_PAUSE: Final = (0.05, 0.25)  # seconds; a random pause, so that requests do not retry together
_MISSING: Final = """
    CASE WHEN to_regclass({name}) IS NULL THEN 'no table ' || {name} ELSE coalesce((
        SELECT 'no column ' || string_agg(wanted || ' ' || type, ', ') || ' in ' || {name} || '; if another program '
            'made the table, see docs/adopt.md'
        FROM unnest(ARRAY[{names}]::text[], ARRAY[{types}]::text[]) AS _ (wanted, type) WHERE (to_regtype(type) = (
            SELECT atttypid FROM pg_attribute WHERE attrelid = to_regclass({name}) AND attname = wanted
        )) IS NOT TRUE
    ), (SELECT 'no right to ' || {name} FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS _ (privilege)
        WHERE NOT has_table_privilege({name}, privilege) LIMIT 1)) END
"""
_NO_TIMEOUTS: Final = (
    "statement_timeout or lock_timeout of the database's role is 0: what is given up may go on there, "
    "see docs/deploy-neon.md"
)

_logger = logging.getLogger(__name__)


class Database:
    """The only engine and its pool. `fetch` runs one precompiled statement, `session` runs a transaction."""

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int,
        pool_timeout: float,
        concurrency_limit: int,
        prepares: bool | None = None,
        tables: Iterable[Table] = (),
        timeouts: Timeouts = TIMEOUTS,
        keeps: bool = False,
    ) -> None:
        """Does not connect before the first statement.

        `pool_timeout` is in seconds. `concurrency_limit` counts running and waiting calls. The database is usable if
        it has `tables` with their columns and types, and its role may read and write them. `keeps` is the setting
        UNKNOWN_FIELDS, for statements that depend on it. Raises ValueError for an invalid connection string.
        """
        self.engine = _create_engine(
            dsn, prepares, timeouts, pool_size=pool_size, waiters_max=concurrency_limit, pool_timeout=pool_timeout
        )
        self.keeps = keeps
        self._pool: Any = self.engine.pool
        self._capacity = concurrency_limit
        self._probing: asyncio.Task[None] | None = None
        settings = ("statement_timeout", "lock_timeout", "transaction_read_only")
        probed = [f"current_setting('{name}')" for name in settings]
        probed += [_missing(table, self.engine.dialect) for table in tables]
        self._probe = statement(select(*map(literal_column, probed)), reads=True)
        self._answered: bool | None = None
        self._unusable = ""
        self._warnings: set[str] = set()

    @property
    def usable(self) -> bool:
        """Whether the database answered last time, is writable, and grants its role the rights to the tables."""
        return bool(self._answered) and not self._unusable

    async def fetch(self, query: Statement, /, *, idempotent: bool = False, **values: object) -> list[asyncpg.Record]:
        """Returns the rows of one statement, which is committed when this returns.

        Retried once after a transient fault. A change that was already sent is retried only if it is `idempotent`: a
        second run changes nothing more and returns the same. Raises a subclass of UnavailableError, StatementError,
        and TypeError for missing or unknown values.
        """
        try:
            arguments = [values[name] for name in query.names]
        except KeyError:
            raise query.mismatch(values) from None
        if len(values) != len(arguments) or query.binders:
            arguments = query.arguments(values)
        self._admit()
        try:
            records = await self._fetch_with_retry(query, arguments, idempotent=idempotent)
        except (UnavailableError, StatementError) as error:
            self._note_error(error)
            raise
        finally:
            self._capacity += 1
        if not self._answered:
            self._note_answer(answered=True)
        return records

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Yields a session for one transaction: committed at the end of the block, rolled back on any exception.

        Nothing is retried. Raises the errors of `fetch`: OutcomeUnknownError if the commit was not answered, the others
        if nothing was changed. Raises ConflictError or InvalidRequestError for a value that the database refuses,
        unless the block catches SQLAlchemy's IntegrityError or DBAPIError, and ConflictError for an object whose row
        another transaction has changed or deleted (SQLAlchemy's StaleDataError).
        """
        self._admit()
        try:
            async with open_session(self.engine) as session, transaction(session):
                yield session
        except (UnavailableError, StatementError) as error:
            self._note_error(error)
            raise
        finally:
            self._capacity += 1

    def pool_numbers(self) -> PoolNumbers:
        """Returns the numbers of connections and waiters. Any thread may call it."""
        return self._pool.numbers()  # type: ignore[no-any-return]

    async def check(self) -> bool:
        """Probe the database once. Returns whether it is usable."""
        try:
            [(statement_timeout, lock_timeout, read_only, *missing)] = await self.fetch(self._probe)
        except OverloadedError:
            return False
        except (UnavailableError, StatementError) as error:
            self._note_answer(answered=False, cause=error.__cause__ or error)
            if text := faults.server_error_text(error):  # the probe has no values that it could quote
                self._warn_once(f"DATABASE_URL: the database refuses to work: {text}")
            return False
        if "0" in {statement_timeout, lock_timeout}:
            self._warn_once(_NO_TIMEOUTS)
        self._note_use("read-only" if read_only == "on" else "; ".join(filter(None, missing)))
        return self.usable

    async def close(self) -> None:
        """Close every connection."""
        if self._probing:
            self._probing.cancel()
            await asyncio.wait([self._probing])
        await self._pool.aclose()

    def _admit(self) -> None:
        """Count a call against `concurrency_limit`. Raises OverloadedError at the limit."""
        if not self._capacity:
            raise OverloadedError
        self._capacity -= 1

    async def _fetch_with_retry(
        self, query: Statement, arguments: list[object], *, idempotent: bool
    ) -> list[asyncpg.Record]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _RETRY_WITHIN
        try:
            return await self._pool.fetch(query.sql, arguments, reads=query.reads)  # type: ignore[no-any-return]
        except UnavailableError as error:
            if not self._may_retry(error, idempotent=idempotent) or loop.time() > deadline:
                raise
            first = error
        await asyncio.sleep(random.uniform(*_RETRY_PAUSE))  # noqa: S311  # nosec B311  # needs no secure random numbers
        try:
            return await self._pool.fetch(query.sql, arguments, reads=query.reads)  # type: ignore[no-any-return]
        except UnavailableError as error:
            translated = first if isinstance(first, OutcomeUnknownError) else error
            raise translated from error.__cause__

    def _may_retry(self, error: UnavailableError, *, idempotent: bool) -> bool:
        """Whether a retry is safe and useful. No retries while the database is down."""
        was_sent = isinstance(error, OutcomeUnknownError)
        return faults.is_transient(error) and (idempotent or not was_sent) and self._answered is not False

    def _note_error(self, error: Exception) -> None:
        """Start to probe the database: it may be down, or a table or a right may be missing.

        Raises DatabaseUnavailableError in the place of a StatementError if something is known to be missing.
        """
        if isinstance(error, OverloadedError) or getattr(error, "refusal", None):
            return
        cause = error.__cause__
        if faults.is_unprepared(cause):
            self._warn_once("a pooler mixes up prepared statements: set DATABASE_PREPARED_STATEMENTS=off")
        elif isinstance(error, DatabaseUnavailableError) or isinstance(cause, TimeoutError):
            self._note_answer(answered=False, cause=cause)
        self._start_probe()
        if self._unusable and isinstance(error, StatementError):
            raise DatabaseUnavailableError from cause

    def _note_answer(self, *, answered: bool, cause: BaseException | None = None) -> None:
        if answered is not self._answered:
            is_first, self._answered = self._answered is None, answered
            if not answered:
                cause = _driver_error(cause)
                text = cause if isinstance(cause, faults.ConnectError) else without_text(cause)
                _logger.warning("database unavailable: %s", text)
            elif not is_first:
                _logger.info("database reached")

    def _note_use(self, reason: str) -> None:
        """Store the reason why a reachable database cannot be used, or an empty string."""
        if reason != self._unusable:
            self._unusable = reason
            if reason:
                self._start_probe()
                _logger.warning("database cannot be used: %s", reason)
            else:
                _logger.info("database can be used")

    def _warn_once(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.add(message)
            _logger.warning(message)

    def _start_probe(self) -> None:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe_until_usable())

    async def _probe_until_usable(self) -> None:
        """A replica that the load balancer has taken out gets no requests, so only a probe notices the recovery."""
        USER.set("")  # the share of the user whose request started it may be used up
        delays = faults.probe_delays()
        while not await self.check():  # noqa: ASYNC110  # pragma: no branch  # no event signals recovery; coverage.py misses the exit
            await asyncio.sleep(next(delays))


def _create_engine(dsn: str, prepares: bool | None, timeouts: Timeouts, **pool_options: float) -> AsyncEngine:
    options = {"async_creator_fn": connect, "command_timeout": timeouts.statement}
    connect_args = parse_dsn(dsn, prepares=prepares) | options
    if connect_args.get("statement_cache_size") == 0:
        connect_args["prepared_statement_cache_size"] = 0  # the same setting for a Session
    engine = create_async_engine(
        URL, connect_args=connect_args, poolclass=SlotPool, timeouts=timeouts, **pool_options, hide_parameters=True
    )
    event.listen(engine.sync_engine, "handle_error", _raise_fault)
    return engine


def _driver_error(error: BaseException | None) -> BaseException | None:
    """Returns the error of asyncpg that SQLAlchemy's adapter has wrapped, or `error` itself."""
    return error.__cause__ or error if isinstance(error, EmulatedDBAPIException) else error


def _raise_fault(context: ExceptionContext) -> None:
    """Raise UnavailableError for a fault in a Session. `context.statement` is None for COMMIT and ROLLBACK."""
    context.invalidate_pool_on_disconnect = False
    error = context.original_exception
    if not isinstance(error, Exception):
        return
    if isinstance(error, TimeoutError):
        context.engine.pool.discard_idle()  # type: ignore[union-attr]  # the pool is a SlotPool
    cause: Any = _driver_error(error)
    translated = faults.translate_error(cause, reads=context.statement is not None, closed=context.is_disconnect)
    if isinstance(translated, UnavailableError):
        raise translated from cause


def _missing(table: Table, dialect: Dialect) -> str:
    """Returns SQL for what the service needs and is missing: a column, its type or a right. NULL if it has all."""
    values = {
        "name": _literal(dialect.identifier_preparer.format_table(table)),
        "names": ",".join(_literal(column.name) for column in table.columns),
        "types": ",".join(_literal(c.type.compile(dialect).partition(" COLLATE ")[0]) for c in table.columns),
    }
    return _MISSING.format(**values)


def _literal(text: str) -> str:
    return "'{}'".format(text.replace("'", "''"))

"""How a statement runs: compiled once, in autocommit, by the driver, and again where a fault has passed."""

import asyncio
import logging
import random
from typing import Any, Final, NamedTuple

import asyncpg
from sqlalchemy import ClauseElement, Select, func, literal_column, make_url, select

from app.core.database.dsn import parse_dsn
from app.core.database.faults import is_unprepared, look_delays, may_pass, sqlstate
from app.core.database.pool import Pool
from app.core.errors import (
    DatabaseUnavailableError,
    OutcomeUnknownError,
    OverloadedError,
    StatementError,
    UnavailableError,
)

_RETRY_WITHIN: Final = 5  # seconds; a statement that has waited for longer is not tried again
_RETRY_PAUSE: Final = (0.05, 0.25)  # seconds, from and to: those who were cut off together return one by one

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


def _may(right: str, table: str) -> Any:
    """NULL where there is no such table."""
    return func.has_table_privilege(func.to_regclass(literal_column(f"'{table}'")), literal_column(f"'{right}'"))


_RIGHTS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
_NO_TIMEOUTS: Final = (
    "statement_timeout or lock_timeout of the database's role is 0: what is given up may go on there, "
    "see docs/deploy-neon.md"
)


class Database:
    """What statements are run on, and whether it can be used, by what it answered when it was last asked."""

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int,
        pool_timeout: float,
        concurrency_limit: int,
        prepares: bool | None = None,
        tables: tuple[str, ...] = (),
    ) -> None:
        """Connects at the first statement. It can be used if `tables` can be read and written.

        Raises ValueError for a connection string it cannot use.
        """
        self._pool = Pool(parse_dsn(dsn, prepares=prepares), size=pool_size, timeout=pool_timeout)
        self._room = concurrency_limit
        self._recovery: asyncio.Task[None] | None = None
        settings = map(_setting, ("statement_timeout", "lock_timeout", "transaction_read_only"))
        self._ping = statement(select(*settings, *(_may(right, table) for table in tables for right in _RIGHTS)))
        self._answered: bool | None = None
        self._unfit: str | None = None
        self._warnings: set[str] = set()

    @property
    def reachable(self) -> bool:
        """Whether the database answered when it was last asked, and can be used."""
        return bool(self._answered) and not self._unfit

    async def fetch(self, query: Statement, *, repeatable: bool = False, **values: object) -> list[asyncpg.Record]:
        """Run one statement, committed when it returns.

        It is run once more where a fault may have passed, but a change that was sent only if it is `repeatable`: if
        it does no harm, and returns what it should, when it was carried out the first time. Raises UnavailableError,
        one of its kinds, and StatementError.
        """
        if not self._room:
            raise OverloadedError
        self._room -= 1
        try:
            records = await self._run_twice_at_most(
                query, [values[name] for name in query.names], repeatable=repeatable
            )
        except OverloadedError:
            raise
        except UnavailableError as error:
            if is_unprepared(error.__cause__):
                self._warn_once("a pooler mixes up prepared statements: set DATABASE_PREPARED_STATEMENTS=off")
            elif isinstance(error, DatabaseUnavailableError) or isinstance(error.__cause__, TimeoutError):
                self._note(answered=False, cause=error.__cause__)
            self._look()
            raise
        except StatementError:
            self._look()  # a table may be gone, or a right to it
            raise
        finally:
            self._room += 1
        self._note(answered=True)
        return records

    async def check(self) -> bool:
        """Ask the database once. Returns whether it can be used."""
        try:
            [(statement_timeout, lock_timeout, read_only, *rights)] = await self.fetch(self._ping)
        except OverloadedError:
            return False
        except (UnavailableError, StatementError) as error:
            self._note(answered=False, cause=error.__cause__ or error)
            return False
        if "0" in {statement_timeout, lock_timeout}:
            self._warn_once(_NO_TIMEOUTS)
        self._note_unfit("read-only" if read_only == "on" else None if all(rights) else "no table, or no right to it")
        return self.reachable

    async def close(self) -> None:
        """Close every connection."""
        if self._recovery:
            self._recovery.cancel()
            await asyncio.wait([self._recovery])
        await self._pool.close()

    async def _run_twice_at_most(
        self, query: Statement, values: list[Any], *, repeatable: bool
    ) -> list[asyncpg.Record]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _RETRY_WITHIN
        try:
            return await self._pool.run(query.sql, values, reads=query.reads)
        except UnavailableError as error:
            if not self._may_run_again(error, repeatable=repeatable) or loop.time() > deadline:
                raise
            first = error
        await asyncio.sleep(random.uniform(*_RETRY_PAUSE))  # noqa: S311  # nosec B311  # nobody gains by guessing it
        try:
            return await self._pool.run(query.sql, values, reads=query.reads)
        except UnavailableError as error:
            told = first if isinstance(first, OutcomeUnknownError) else error
            raise told from error.__cause__

    def _may_run_again(self, error: UnavailableError, *, repeatable: bool) -> bool:
        """While the database is known to be away, each request asks it once."""
        was_sent = isinstance(error, OutcomeUnknownError)
        return may_pass(error) and (repeatable or not was_sent) and self._answered is not False

    def _note(self, *, answered: bool, cause: BaseException | None = None) -> None:
        if answered is not self._answered:
            self._answered = answered
            if answered:
                _logger.info("database reached")
            else:  # the text of a driver's error may hold values and addresses
                _logger.warning("database unavailable: %s %s", type(cause).__name__, sqlstate(cause))

    def _note_unfit(self, reason: str | None) -> None:
        if reason != self._unfit:
            self._unfit = reason
            if reason:
                self._look()
                _logger.warning("database cannot be used: %s", reason)
            else:
                _logger.info("database can be used")

    def _warn_once(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.add(message)
            _logger.warning(message)

    def _look(self) -> None:
        if self._recovery is None or self._recovery.done():
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        """Ask until there is an answer: a replica out of rotation gets no request that would find the database."""
        delays = look_delays()
        while not await self.check():  # noqa: ASYNC110  # pragma: no branch  # no event tells when; coverage.py loses it
            await asyncio.sleep(next(delays))

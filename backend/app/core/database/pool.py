"""The engine's pool. It opens connections on demand and can run one statement without a greenlet.

Subclasses of SQLAlchemy's `Pool` implement checkout and return
(https://docs.sqlalchemy.org/en/21/core/pooling.html). A Session gets its connection from `_do_get`. `SlotPool.fetch`
runs a statement directly on the asyncpg connection. Both share the same slots and limits.
"""

import asyncio
from collections import OrderedDict, deque
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, cast
from weakref import WeakSet

import asyncpg
from sqlalchemy.pool import ConnectionPoolEntry, Pool
from sqlalchemy.util import await_, greenlet_spawn

from app.core.database.faults import translate_error
from app.core.errors import DatabaseUnavailableError, OutcomeUnknownError, OverloadedError, UnavailableError

_CANCEL_TIMEOUT: Final = 2  # seconds to cancel an abandoned statement at the server
_CLOSE_TIMEOUT: Final = 1  # seconds to close all connections
_RESERVE: Final = 3  # free slots for each slot that a user holds; with 1, others waited too long (docs/performance.md)
_OPENED: Final = "opened"
_HOLDER: Final = "holder"

# The user in whose share of the pool the statements of this request run. All requests without a user have one share.
USER: Final[ContextVar[str]] = ContextVar("USER", default="")


class Timeouts(NamedTuple):
    """In seconds."""

    statement: float = 4  # asyncpg waits without limit by default
    opening: float = 10  # the minimum timeout of a waiter while connections are being opened
    age: float = 240  # of a connection; below the five minutes after which Neon suspends


TIMEOUTS: Final = Timeouts()


class PoolNumbers(NamedTuple):
    """How many connections are in use and idle, how many requests wait for one, and the size of the pool."""

    used: int
    idle: int
    pending: int
    size: int


class _Opened(NamedTuple):
    """An open connection, the pool's generation when it was opened, and the loop time in seconds when it expires."""

    record: ConnectionPoolEntry
    driver: asyncpg.Connection
    generation: int
    expires: float


class _Slots:
    """One slot for each connection of the pool, shared between users.

    A user gets another slot only while more than three times as many are free as the user holds. Of 10 slots, one user
    holds at most 3, and two users hold 5. A user may wait once more only while more places are free than the user has.
    Free slots go to the waiting users in turn, and to the waiters of one user in the order of their arrival.
    """

    def __init__(self, size: int, waiters_max: int, timeout: float, opening_timeout: float) -> None:
        """The timeouts are in seconds."""
        self.opening = 0
        self._size = self._free = size
        self._places_max = self._places = waiters_max
        self._held: dict[str, int] = {}
        self._waiters: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._timeout = timeout
        self._opening_timeout = opening_timeout

    async def acquire(self, user: str) -> None:
        """Wait for a slot. Raises OverloadedError after the timeout, or at once if too many calls of the user wait."""
        held = self._held.get(user, 0)
        if _RESERVE * held < self._free:
            self._free -= 1
            self._held[user] = held + 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(user, deque())
        if len(waiters) >= self._places:
            raise OverloadedError
        waiters.append(waiter)
        self._places -= 1
        timer = waiter.get_loop().call_later(self._timeout, self._expire, waiter)
        try:
            await waiter
        except (OverloadedError, asyncio.CancelledError):
            if not (waiter.cancelled() or waiter.exception()):  # it got a slot at the same moment
                self.release(user)
            with suppress(ValueError):  # a release may have removed it already
                waiters.remove(waiter)
            raise
        finally:
            self._places += 1
            timer.cancel()

    def numbers(self, idle: int) -> PoolNumbers:
        return PoolNumbers(self._size - self._free, idle, self._places_max - self._places, self._size)

    def release(self, user: str) -> None:
        """Free the slot, and give it to a waiter if one may have it."""
        self._free += 1
        self._held[user] -= 1
        if not self._held[user]:
            del self._held[user]
        while self._waiters and (user_in_turn := self._user_in_turn()) is not None:
            self._serve(user_in_turn)

    def _user_in_turn(self) -> str | None:
        """Returns the user whose turn it is, among those who wait and may have another slot."""
        return next((user for user in self._waiters if _RESERVE * self._held.get(user, 0) < self._free), None)

    def _serve(self, user: str) -> None:
        """Give a slot to the first waiter of the user, whose next turn comes after those of the others."""
        waiters = self._waiters.pop(user)
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                self._free -= 1
                self._held[user] = self._held.get(user, 0) + 1
                waiter.set_result(None)
                break
        if waiters:
            self._waiters[user] = waiters

    def _expire(self, waiter: asyncio.Future[None]) -> None:
        """Refuse a waiter. Wait longer while connections are being opened: a starting database is not overloaded."""
        rest = self._opening_timeout - self._timeout if self.opening else 0
        if rest > 0:
            timer = waiter.get_loop().call_later(rest, _refuse, waiter)
            waiter.add_done_callback(lambda _: timer.cancel())
        else:
            _refuse(waiter)


class SlotPool(Pool):
    """Reuses the most recently used connection first, so that surplus connections expire."""

    def __init__(
        self,
        creator: Any,
        pool_size: int = 10,
        waiters_max: int = 1_000,
        timeout: float = 5,
        timeouts: Timeouts = TIMEOUTS,
        **options: Any,
    ) -> None:
        """`timeout` is in seconds, for a slot. `options` are those of SQLAlchemy's `Pool`.

        The others are positional because `create_engine` ignores keyword-only parameters.
        """
        super().__init__(creator, **options)
        self._slots = _Slots(pool_size, waiters_max, timeout, timeouts.opening)
        self._age_max = timeouts.age
        self._idle: list[_Opened] = []
        self._generation = 0
        self._drivers: WeakSet[asyncpg.Connection] = WeakSet()
        self._closing: set[asyncio.Task[None]] = set()

    async def fetch(self, sql: str, values: list[Any], *, reads: bool) -> list[asyncpg.Record]:
        """Returns the rows of one statement in autocommit. `reads` means that it changes nothing.

        Raises OverloadedError, DatabaseUnavailableError, or the error that `translate_error` returns. The cause of an
        UnavailableError is the driver's error.
        """
        user = USER.get()
        await self._slots.acquire(user)
        try:
            opened = self._checkout() or cast("_Opened", await greenlet_spawn(self._open))
            return await self._run_on(opened, sql, values, reads)
        finally:
            self._slots.release(user)

    def discard_idle(self) -> None:
        """Discard every connection opened until now at its next checkout, because one of them did not answer."""
        self._generation += 1

    async def aclose(self) -> None:
        """Close every connection, including those in use."""
        for driver in self._drivers:
            self._close_later(driver, _CLOSE_TIMEOUT)
        if self._closing:
            await asyncio.wait(self._closing, timeout=_CLOSE_TIMEOUT)

    def recreate(self) -> "SlotPool":
        """Returns this pool itself, which stays usable after `dispose`. A second pool would double the limits."""
        return self

    def dispose(self) -> None:
        """Close the idle connections in the background. Connections in use are discarded later."""
        self.discard_idle()
        while self._idle:
            self._idle.pop().record.invalidate()

    def numbers(self) -> PoolNumbers:
        """Returns the numbers of this moment. Any thread may call it."""
        return self._slots.numbers(len(self._idle))

    def _do_get(self) -> ConnectionPoolEntry:
        user = USER.get()
        await_(self._slots.acquire(user))
        try:
            record = (self._checkout() or self._open()).record
        except BaseException:
            self._slots.release(user)
            raise
        record.record_info[_HOLDER] = user  # type: ignore[index]  # it is never None
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if record.dbapi_connection:  # None after an invalidation
            self._return_to_idle(record.info[_OPENED], busy=_is_in_use(record.dbapi_connection))
        self._slots.release(record.record_info[_HOLDER])  # type: ignore[index]  # it is never None

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:  # noqa: ARG002  # SQLAlchemy's
        """Close in the background, because an unresponsive server may never confirm."""
        self._close_later(self._dialect.get_driver_connection(connection), _CANCEL_TIMEOUT)

    def _checkout(self) -> _Opened | None:
        """Returns a usable idle connection, or None. Needs no round trip: asyncpg knows if the server has closed it."""
        while self._idle:
            opened = self._idle.pop()
            usable = opened.generation == self._generation and opened.expires > asyncio.get_running_loop().time()
            if usable and not opened.driver.is_closed():
                return opened
            opened.record.invalidate()
        return None

    def _open(self) -> _Opened:
        """Returns a new connection. Must run in a greenlet. Raises DatabaseUnavailableError."""
        self._slots.opening += 1
        try:
            record = self._create_connection()
        except Exception as error:  # noqa: BLE001  # any error means that there is no connection
            raise DatabaseUnavailableError from getattr(error, "driver_exception", error)
        finally:
            self._slots.opening -= 1
        driver: Any = record.driver_connection
        expires = asyncio.get_running_loop().time() + self._age_max
        opened = record.info[_OPENED] = _Opened(record, driver, self._generation, expires)
        self._drivers.add(driver)
        return opened

    async def _run_on(self, opened: _Opened, sql: str, values: list[Any], reads: bool) -> list[asyncpg.Record]:
        try:
            records: list[asyncpg.Record] = await opened.driver.fetch(sql, *values)
        except asyncio.CancelledError:
            opened.record.invalidate()
            raise
        except Exception as error:  # noqa: BLE001  # translated and raised
            translated = self._handle_error(opened, error, reads=reads)
            raise translated from error if isinstance(translated, UnavailableError) else None
        self._return_to_idle(opened)
        return records

    def _return_to_idle(self, opened: _Opened, *, busy: bool = False) -> None:
        """Keep the connection for reuse, unless it is `busy` or has a transaction that SQLAlchemy does not know."""
        if busy or opened.driver.is_in_transaction():
            opened.record.invalidate()
        else:
            self._idle.append(opened)

    def _handle_error(self, opened: _Opened, error: Exception, *, reads: bool) -> Exception:
        """Returns the error to raise. Keeps the connection if it is still usable."""
        translated = translate_error(error, reads=reads, closed=opened.driver.is_closed())
        if isinstance(error, TimeoutError):
            self.discard_idle()
        elif not isinstance(translated, DatabaseUnavailableError | OutcomeUnknownError):
            self._return_to_idle(opened)
            return translated
        opened.record.invalidate()
        return translated

    def _close_later(self, driver: asyncpg.Connection, timeout: float) -> None:
        """Close a connection in the background. Cancelling its statement may take the whole `timeout` (seconds)."""
        closing = asyncio.get_running_loop().create_task(_close(driver, timeout))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _is_in_use(connection: Any) -> bool:
    """Whether a task that outlived its Session still runs a statement on the connection."""
    return bool(connection._execute_mutex.locked())  # noqa: SLF001  # asyncpg has no public property for it


def _refuse(waiter: asyncio.Future[None]) -> None:
    with suppress(asyncio.InvalidStateError):  # it got a slot at the same moment
        waiter.set_exception(OverloadedError())


async def _close(driver: asyncpg.Connection, timeout: float) -> None:  # noqa: ASYNC109  # asyncpg's own name
    """Cancel the running statement at the server and close the connection."""
    with suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        await driver.close(timeout=timeout)

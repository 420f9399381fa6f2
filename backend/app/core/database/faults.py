"""What an error of the driver means: whether the statement was carried out, and whether asking again may help."""

import ssl
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Final

import asyncpg

from app.core.errors import DatabaseUnavailableError, OutcomeUnknownError, StatementError, TimedOutError

_LOOK_DELAYS: Final = (1, 2, 4)  # seconds, then the last one again

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_AWAY: Final = ("08", "53", "57P", "58", "XX000")  # connection, resources, shutdown, disk; Neon that cannot wake up
_UNKNOWN: Final = ("08007", "40003")  # the server itself cannot tell
_READ_ONLY: Final = "25006"  # the old primary, after a failover
_UNPREPARED: Final = ("26000", "42P05")  # a pooler that hands prepared statements to strangers
_FINAL: Final = ("rejected SSL upgrade", "authentication failed")  # asyncpg, and PgBouncer, have no code for it
_CONFLICT: Final = ("40001", "40P01")  # serialization failure, deadlock
_GIVEN_UP: Final = (*_CONFLICT, "55P03", "57014")  # and lock timeout, statement timeout


def sqlstate(error: BaseException | None) -> str:
    """Returns the five characters by which the server told what went wrong, or none. SQLAlchemy wraps some errors."""
    driver_error = getattr(error, "orig", None) or error
    return getattr(driver_error, "sqlstate", None) or ""


def meaning(error: Exception, *, reads: bool, closed: bool) -> Exception:
    """Returns what to raise for the `error` of a statement, which may have closed its connection.

    It is OutcomeUnknownError where the server may have carried out a change, and StatementError where the
    statement itself is wrong.
    """
    state = sqlstate(error)
    if isinstance(error, TimeoutError):
        return TimedOutError() if reads else OutcomeUnknownError()
    was_lost = closed and not isinstance(error, asyncpg.InterfaceError)  # which says that nothing was sent
    if was_lost or isinstance(error, OSError) or state in _UNKNOWN:
        return DatabaseUnavailableError() if reads else OutcomeUnknownError()
    if state in _GIVEN_UP:
        return TimedOutError()
    if closed or state.startswith((*_AWAY, _READ_ONLY, *_UNPREPARED)):
        return DatabaseUnavailableError()
    return StatementError(error)


def may_pass(error: Exception) -> bool:
    """Whether the same statement may succeed at once on another connection. It is not so after a timeout: what was
    too slow once would only take its time again.
    """
    cause = error.__cause__
    if isinstance(error, TimedOutError):
        return sqlstate(cause) in _CONFLICT
    return isinstance(error, DatabaseUnavailableError | OutcomeUnknownError) and not isinstance(cause, TimeoutError)


def is_away(error: BaseException) -> bool:
    """Whether the database may be there later. A wrong password or certificate stays wrong; so does a wrong name, but
    a host whose name is not known yet looks the same, and so does a pooler that cannot reach its server.
    """
    if isinstance(error, ssl.SSLError) or any(words in str(error) for words in _FINAL):
        return False
    return sqlstate(error).startswith(_AWAY) or isinstance(error, OSError)


def look_delays() -> Iterator[float]:
    """Yields, without end, the seconds between looks at a database that is away."""
    return chain(_LOOK_DELAYS, repeat(_LOOK_DELAYS[-1]))


def is_unprepared(error: BaseException | None) -> bool:
    """Whether a prepared statement was not where it had been prepared."""
    return sqlstate(error) in _UNPREPARED

"""The meaning of the driver's errors: whether the statement took effect, and whether a retry may help."""

import errno
import os
import re
import ssl
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from socket import EAI_AGAIN, gaierror
from typing import Final

import asyncpg

from app.core.errors import (
    AppError,
    ConflictError,
    DatabaseUnavailableError,
    FieldError,
    InvalidRequestError,
    OutcomeUnknownError,
    StatementError,
    TimedOutError,
    without_text,
)

_PROBE_DELAYS: Final = (1, 2, 4)  # seconds; the last delay repeats

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_UNAVAILABLE: Final = ("08", "53", "57P", "58", "XX000")  # connection, resources, shutdown, disk; Neon cannot start
_UNKNOWN: Final = ("08007", "40003")  # the server itself does not know the outcome
_READ_ONLY: Final = "25006"  # the old primary, after a failover
_UNPREPARED: Final = ("26000", "42P05")  # a pooler handed the prepared statement to another client
_REFUSING: Final = ("08", "58", "XX000")  # those that may be permanent; poolers use them for every error of their own
_NO_TLS: Final = "rejected SSL upgrade"
_PERMANENT: Final = (  # asyncpg, PgBouncer and Supabase's pooler have no codes for these
    _NO_TLS,
    "authentication failed",
    "statement pooling mode",
    "unsupported startup parameter",
    "Tenant or user not found",
    "AF_UNIX path too long",  # asyncio's, without a number
)
# What the operating system says while the database or the network is down.
_DOWN: Final = {
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EAGAIN),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EADDRNOTAVAIL),
}
_SHORT: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}  # of files or memory, for a while
_NUMBER: Final = re.compile(r"\[Errno (\d+)\]")  # asyncio joins the errors of several addresses to one text
_SERIALIZATION: Final = ("40001", "40P01")  # serialization failure, deadlock
_ABORTED: Final = (*_SERIALIZATION, "55P03", "57014")  # also lock timeout, statement timeout
_CONFLICTING: Final = ("23001", "23503", "23505", "23P01")  # restrict, foreign key, unique, exclusion
# Too long, out of range, no date, no offset, invalid encoding or text, LIMIT or OFFSET below 0; not null and check.
_INVALID: Final = (
    *("22000", "22001", "22003", "22007", "22008", "22009", "22021", "22P02", "22P05", "2201W", "2201X"),
    "23",
)


class ConnectError(OSError):
    """A setting or this machine prevents a connection. The text is a sentence for the operator."""

    def __init__(self, text: str, *, lasts: bool | None) -> None:
        """`lasts` means that waiting is useless. With None this is not known."""
        super().__init__(text)
        self.lasts = lasts


def sqlstate(error: BaseException | None) -> str:
    """Returns the SQLSTATE of an error of asyncpg or SQLAlchemy, or an empty string."""
    driver_error = getattr(error, "orig", None) or error
    return getattr(driver_error, "sqlstate", None) or ""


def translate_error(error: Exception, *, reads: bool, closed: bool) -> Exception:
    """Returns the error to raise for a driver's `error`. `closed` means that the connection is now closed.

    Returns OutcomeUnknownError if the server may have made a change, TimedOutError if the statement was too
    slow or aborted, and DatabaseUnavailableError if the database cannot be used. Every other error is a StatementError:
    the statement or its values are wrong.
    """
    state = sqlstate(error)
    if isinstance(error, TimeoutError):
        return TimedOutError() if reads else OutcomeUnknownError()
    was_lost = closed and not isinstance(error, asyncpg.InterfaceError)  # after an InterfaceError nothing was sent
    if was_lost or isinstance(error, OSError) or state in _UNKNOWN:
        return DatabaseUnavailableError() if reads else OutcomeUnknownError()
    if state in _ABORTED:
        return TimedOutError()
    is_outdated = isinstance(error, asyncpg.InvalidCachedStatementError)  # a type has changed since it was prepared
    if closed or is_outdated or state.startswith((*_UNAVAILABLE, _READ_ONLY, *_UNPREPARED)):
        return DatabaseUnavailableError()
    return StatementError(error, refused_value(error))


def refused_value(error: Exception) -> AppError | None:
    """Returns ConflictError or InvalidRequestError if the database refuses a value of the client, else None.

    PostgreSQL names the column only for NOT NULL.
    """
    state = sqlstate(error)
    refusal: AppError | None = None
    if state in _CONFLICTING:
        refusal = ConflictError()
    elif state.startswith(_INVALID):
        column = getattr(error, "column_name", None)
        refusal = InvalidRequestError([FieldError(f"#/{column}", "is required")] if column else [])
    if refusal:
        refusal.reason = without_text(error)
    return refusal


def is_transient(error: Exception) -> bool:
    """Returns whether an immediate retry on another connection may succeed.

    False after a timeout, because a slow statement would be slow again.
    """
    cause = error.__cause__
    if isinstance(error, TimedOutError):
        return sqlstate(cause) in _SERIALIZATION
    return isinstance(error, DatabaseUnavailableError | OutcomeUnknownError) and not isinstance(cause, TimeoutError)


def connect_error(error: Exception, hosts: Sequence[str]) -> ConnectError | None:
    """Returns what to raise for an error of connecting to one of these hosts. None if the database may just be down.

    A host name may be registered soon, and a name server may be down. A server that is down has no socket (ENOENT).
    """
    names = [host for host in hosts if not host.startswith("/")]
    if _NO_TLS in str(error):  # asyncpg says this of any other answer
        text = f"DATABASE_URL: {' or '.join(names)} has no TLS, which sslmode asks for, or is no PostgreSQL"
        return ConnectError(text, lasts=True)
    if isinstance(error, gaierror | UnicodeError):
        reason, lasts = (error.strerror, None) if isinstance(error, gaierror) else ("it is not well-formed", True)
        text = f"DATABASE_URL: the host {' or '.join(names)} cannot be resolved: {reason}"
        return ConnectError(text, lasts=False if error.args[0] == EAI_AGAIN else lasts)
    numbers = set(map(int, _NUMBER.findall(str(error))))
    if not numbers or numbers & _DOWN or (errno.ENOENT in numbers and len(names) < len(hosts)):
        return None
    reasons = ", ".join(sorted(map(os.strerror, numbers)))
    return ConnectError(f"DATABASE_URL: this machine opens no connection: {reasons}", lasts=numbers.isdisjoint(_SHORT))


def may_recover(error: BaseException) -> bool:
    """Returns whether the database may become available without a change of the settings or of this machine.

    A wrong password or certificate stays wrong. An unknown host name may be registered later, so it counts as
    recoverable. The errors of a pooler that cannot reach its server count as recoverable too.
    """
    if isinstance(error, ConnectError):
        return not error.lasts
    if isinstance(error, ssl.SSLError) or any(words in str(error) for words in _PERMANENT):
        return False
    return sqlstate(error).startswith(_UNAVAILABLE) or isinstance(error, OSError)


def server_error_text(error: BaseException | None) -> str:
    """Returns the text in which a server or a pooler refuses to work, or an empty string if it is starting or full.

    Such a refusal may be permanent. A connection that is lost without an answer is no refusal.
    """
    while error and not getattr(error, "severity", None):  # only an answer of a server has one
        error = error.__cause__
    return str(error) if sqlstate(error).startswith(_REFUSING) else ""


def probe_delays() -> Iterator[float]:
    """Yields, without end, the seconds to wait before the next probe of an unavailable database."""
    return chain(_PROBE_DELAYS, repeat(_PROBE_DELAYS[-1]))


def is_unprepared(error: BaseException | None) -> bool:
    """Returns whether the server lost or mixed up a statement that the driver had prepared."""
    return sqlstate(error) in _UNPREPARED

"""Opens connections despite packet loss, and despite a suspended database that needs time to start.

They do not depend on the home directory: in the whole process asyncpg no longer looks for client certificates in
~/.postgresql. It did so even where nobody asked for them, and an unreadable directory was an error.
"""

import asyncio
import secrets
from itertools import count
from typing import Any, Final

import asyncpg
from asyncpg import connect_utils

from app.core.database.faults import ConnectError, connect_error

connect_utils._dot_postgresql_path = lambda _: None  # type: ignore[attr-defined]  # noqa: SLF001  # see above

_ATTEMPT_INTERVAL: Final = 3  # seconds without an answer before a parallel attempt starts
_ATTEMPTS_MAX: Final = 3

_process: Final = secrets.token_hex(8)
_numbers: Final = count()


async def connect(**options: Any) -> asyncpg.Connection:
    """Returns a connection to a database that stores every character. The options are those of `_open_first`.

    Raises TimeoutError, ConnectError and the errors of `asyncpg.connect`.
    """
    try:
        connection = await _open_first(**options)
    except (OSError, UnicodeError) as error:
        if cause := connect_error(error, options["host"]):
            raise cause from error
        raise
    encoding = getattr(connection.get_settings(), "server_encoding", "UTF8")  # some poolers do not tell it
    if encoding != "UTF8":
        connection.terminate()
        text = f"DATABASE_URL: the database has the encoding {encoding}; create it with ENCODING 'UTF8'"
        raise ConnectError(text, lasts=True)
    return connection


async def _open_first(*, timeout: float, interval: float = _ATTEMPT_INTERVAL, **options: Any) -> asyncpg.Connection:  # noqa: ASYNC109  # asyncpg's
    """Returns the first connection that opens, of up to three parallel attempts.

    After a packet loss, a second attempt is answered at once. A database that is starting answers the first attempt. So
    all attempts run until one opens. In seconds, `timeout` is for all attempts together and `interval` between two.
    """
    attempts: set[asyncio.Task[asyncpg.Connection]] = set()
    started = 0
    try:
        async with asyncio.timeout(timeout):
            while True:
                if started < _ATTEMPTS_MAX:
                    opening = asyncpg.connect(connection_class=_Connection, **_rotated(options, started))
                    attempts.add(asyncio.create_task(opening))
                    started += 1
                done, pending = await asyncio.wait(attempts, timeout=interval, return_when=asyncio.FIRST_COMPLETED)
                if opened := [attempt for attempt in done if not attempt.exception()]:
                    attempts.remove(opened[0])
                    return opened[0].result()
                if not pending:
                    return done.pop().result()
                attempts = pending
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_terminate)
            attempt.cancel()


class _Connection(asyncpg.Connection):
    """asyncpg's connection with two corrections."""

    def _get_unique_id(self, prefix: str) -> str:
        """Returns a name for a prepared statement, unique among processes. asyncpg counts from 1 in each process.

        Behind a pooler that mixes up clients, a process could otherwise run another's statement: a DELETE for a SELECT.
        """
        return f"{prefix}_{_process}_{next(_numbers):x}"

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109  # asyncpg's
        """Raises InFailedSQLTransactionError for a COMMIT that PostgreSQL answers with ROLLBACK.

        PostgreSQL does this after a failed statement in the transaction. asyncpg would report success.
        """
        status: str = await super().execute(query, *args, timeout=timeout)
        if query == "COMMIT;" and status == "ROLLBACK":
            raise asyncpg.InFailedSQLTransactionError("the transaction had failed before and was rolled back")
        return status


def _rotated(options: dict[str, Any], by: int) -> dict[str, Any]:
    """Returns the options with every list, such as the hosts, rotated by `by` items."""
    lists = {name: value for name, value in options.items() if isinstance(value, list)}
    return options | {name: [*value[by:], *value[:by]] for name, value in lists.items()}


def _terminate(attempt: "asyncio.Task[asyncpg.Connection]") -> None:
    if not attempt.cancelled() and not attempt.exception():
        attempt.result().terminate()

"""Opens connections over a network that loses packets, to a database that may have to wake up first."""

import asyncio
import secrets
from itertools import count
from typing import Any, Final

import asyncpg

_ATTEMPT_INTERVAL: Final = 3  # seconds without an answer after which another attempt starts beside the others
_ATTEMPTS_MAX: Final = 3

_process: Final = secrets.token_hex(8)
_numbers: Final = count()


async def connect(*, timeout: float, **options: Any) -> asyncpg.Connection:  # noqa: ASYNC109  # asyncpg's own name
    """Returns the first connection that opens, of up to three attempts. Raises what `asyncpg.connect` raises.

    `timeout` is in seconds, for all attempts together. If the packets of an attempt were lost, a second one is answered
    at once. If the database is waking up, the first attempt is the one that is answered. So all attempts go on.
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
                done, pending = await asyncio.wait(
                    attempts, timeout=_ATTEMPT_INTERVAL, return_when=asyncio.FIRST_COMPLETED
                )
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
    """Corrects asyncpg in two places."""

    def _get_unique_id(self, prefix: str) -> str:
        """Returns a name for a prepared statement that no other process has. asyncpg counts from 1 in each process.

        Behind a pooler that mixes up clients, one process could run the statement of another: a DELETE for a SELECT.
        """
        return f"{prefix}_{_process}_{next(_numbers):x}"

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109  # asyncpg's
        """Raises InFailedSQLTransactionError for a COMMIT that PostgreSQL answers with ROLLBACK.

        It does so for a transaction with a failed statement, and asyncpg would report success.
        """
        status: str = await super().execute(query, *args, timeout=timeout)
        if query == "COMMIT;" and status == "ROLLBACK":
            message = "the transaction had failed before and was rolled back"
            raise asyncpg.InFailedSQLTransactionError(message)
        return status


def _rotated(options: dict[str, Any], by: int) -> dict[str, Any]:
    """Returns the options with another host first, where there are several."""
    lists = {name: value for name, value in options.items() if isinstance(value, list)}
    return options | {name: [*value[by:], *value[:by]] for name, value in lists.items()}


def _terminate(attempt: "asyncio.Task[asyncpg.Connection]") -> None:
    if not attempt.cancelled() and not attempt.exception():
        attempt.result().terminate()

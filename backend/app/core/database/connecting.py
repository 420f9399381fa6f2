"""Opens connections to PostgreSQL where the network, or a database that is asleep, may say nothing for a while."""

import asyncio
import secrets
from itertools import count
from typing import Any, Final

import asyncpg

_PATIENCE: Final = 3  # seconds of silence after which another attempt is begun beside the others
_ATTEMPTS_MAX: Final = 3

_process: Final = secrets.token_hex(8)
_numbers: Final = count()


async def connect(*, timeout: float, **options: Any) -> asyncpg.Connection:  # noqa: ASYNC109  # asyncpg's own name
    """Returns the connection that is open first, of up to three that are tried. Raises what `asyncpg.connect` does.

    An attempt whose packets were lost says nothing until its time is over, while a new one is answered at once;
    but a database that wakes up may say nothing for just as long, so that the first attempt has to go on.
    """
    attempts: set[asyncio.Task[asyncpg.Connection]] = set()
    begun = 0
    try:
        async with asyncio.timeout(timeout):
            while True:
                if begun < _ATTEMPTS_MAX:
                    opening = asyncpg.connect(connection_class=_Connection, **_turned(options, begun))
                    attempts.add(asyncio.create_task(opening))
                    begun += 1
                done, silent = await asyncio.wait(attempts, timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
                if opened := [attempt for attempt in done if not attempt.exception()]:
                    attempts.remove(opened[0])
                    return opened[0].result()
                if not silent:
                    return done.pop().result()
                attempts = silent
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_end)
            attempt.cancel()


class _Connection(asyncpg.Connection):
    """Gives prepared statements names that no other process has. asyncpg counts from 1 in each: behind a pooler that
    cannot keep them apart, one would run the statement of another, a DELETE for a SELECT.
    """

    def _get_unique_id(self, prefix: str) -> str:
        return f"{prefix}_{_process}_{next(_numbers):x}"


def _turned(options: dict[str, Any], by: int) -> dict[str, Any]:
    """Returns the options with another host first, where there are several."""
    lists = {name: value for name, value in options.items() if isinstance(value, list)}
    return options | {name: [*value[by:], *value[:by]] for name, value in lists.items()}


def _end(attempt: "asyncio.Task[asyncpg.Connection]") -> None:
    if not attempt.cancelled() and not attempt.exception():
        attempt.result().terminate()

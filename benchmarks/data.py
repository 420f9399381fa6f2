"""The test data: users with tasks, and the file from which wrk draws its requests."""

import time
from typing import Final

import asyncpg
import jwt
from uuid_utils.compat import uuid7

from benchmarks.subjects import SECRET

USERS: Final = 1_000
TASKS: Final = 20
_COLUMNS: Final = ("user_id", "id", "title", "description")


async def seed(dsn: str) -> str:
    """Fill the table. Returns one line per user: the name, a token and the ids of the tasks."""
    rows, lines = [], []
    for user in (f"user-{number:04}" for number in range(USERS)):
        ids = [uuid7() for _ in range(TASKS)]
        rows += [(user, task_id, f"Task {number}", "The barista one") for number, task_id in enumerate(ids)]
        lines.append(" ".join([user, token(user), *map(str, ids)]))
    connection = await asyncpg.connect(dsn)
    await connection.copy_records_to_table("tasks", records=rows, columns=_COLUMNS)
    await connection.execute("VACUUM ANALYZE tasks")
    await connection.close()
    return "\n".join(lines) + "\n"


async def sweep(dsn: str) -> None:
    """Delete the tasks that the load created, so that the lists keep their length."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("SET statement_timeout = 0")
    await connection.execute("DELETE FROM tasks WHERE title NOT LIKE 'Task %'")
    await connection.execute("VACUUM tasks")
    await connection.close()


def token(user: str) -> str:
    """Returns a token that is valid for ten hours."""
    claims = {"sub": user, "exp": time.time() + 36_000, "iat": time.time(), "name": "Ada", "email": "ada@example.com"}
    return jwt.encode(claims, SECRET, "HS256")

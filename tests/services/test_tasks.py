"""Lists by a sort key that somebody adds. The keys of the service have no NULLs."""

from typing import Any

import asyncpg
import pytest
from sqlmodel import col

from app.core.database import Database
from app.models.task import Task
from app.schemas.task import TaskQuery
from app.services import tasks
from app.services.cursors import SortKey


@pytest.mark.parametrize("sort", ["description", "-description"])
async def test_the_pages_by_a_nullable_key_have_each_task_once(
    dsn: str, database: asyncpg.Connection, user: str, monkeypatch: pytest.MonkeyPatch, sort: Any
) -> None:
    monkeypatch.setitem(tasks.SORT_KEYS, "description", SortKey(col(Task.description).collate("C"), str, nullable=True))
    insert = "INSERT INTO tasks (user_id, id, title, description) VALUES ($1, gen_random_uuid(), 'a', $2)"
    await database.executemany(insert, [(user, text) for text in ("a", "b", None, None, None)])
    db = Database(dsn, pool_size=1, pool_timeout=5, concurrency_limit=10)
    cursor: str | None = ""

    found = []
    while cursor is not None:
        query = TaskQuery.model_construct(sort=sort, limit=2, cursor=cursor)
        page, cursor = await tasks.list_tasks(db, user, query)
        found += page
    await db.close()

    texts = ["b", "a"] if sort.startswith("-") else ["a", "b"]
    assert [task.description for task in found] == [*texts, None, None, None]
    assert len({task.id for task in found}) == 5

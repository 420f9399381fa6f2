"""Lists by a sort key that somebody adds, and what somebody may add for lists by title: an index."""

import re
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy import make_url
from sqlalchemy.dialects.postgresql import dialect
from sqlmodel import col

from app.core.database import Database
from app.core.database.migrations import migrate
from app.models.task import Task
from app.schemas.task import TaskQuery
from app.schemas.words import SORTS
from app.services import tasks
from app.services.cursors import SortKey
from tests.servers import postgres
from tests.support import execute, new_database

# The SQL for what titles sort by.
LOWERED: Final = str(tasks._caseless(sa.column("title", sa.Text)).compile(dialect=dialect()))  # type: ignore[no-untyped-call]  # noqa: SLF001


@pytest.mark.parametrize("sort", ["description", "-description"])
async def test_the_pages_by_a_nullable_key_have_each_task_once(
    dsn: str, database: asyncpg.Connection, user: str, monkeypatch: pytest.MonkeyPatch, sort: Any
) -> None:
    monkeypatch.setitem(tasks.SORT_KEYS, "description", SortKey(col(Task.description).collate("C"), str, nullable=True))
    monkeypatch.setitem(SORTS, sort, sort)
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


@pytest.mark.parametrize("sort", ["title", "-title"])
def test_a_page_by_title_after_a_position_is_one_range_of_an_index_on_the_lower_case(dsn: str, sort: Any) -> None:
    query = tasks._page(sort, frozenset(), resumed=True)  # noqa: SLF001  # the statement that the service runs
    values = {"owner": "ada", "after_key": "B", "after_id": UUID(int=1), "limit": 10, "page_max": 10**6}
    with new_database(dsn, "titles") as own:
        migrate(own)
        execute(own, f"CREATE INDEX ON tasks (user_id, ({LOWERED}), id)")
        for setting in ("enable_sort = off", "enable_bitmapscan = off", "plan_cache_mode = force_generic_plan"):
            execute(own, f"ALTER DATABASE titles SET {setting}")
        plan = execute(own, f"EXPLAIN {query.sql}", *(values[name] for name in query.names))

    text = "\n".join(line for [line] in plan)
    assert re.search(r"Index Cond: \(\(user_id = .*\) AND \(ROW\(.*lower.*lower", text), text
    assert not re.search(r"Sort|Filter: \(ROW", text), text


@pytest.mark.ci
@pytest.mark.parametrize(
    ("locale", "others"),
    [
        ("LOCALE 'C'", ["\xc4rger", "\xe4pfel"]),  # the locale knows only the letters A to Z
        ("LOCALE 'C.UTF-8'", ["\xe4pfel", "\xc4rger"]),
        ("LOCALE 'C.UTF-8' LOCALE_PROVIDER icu ICU_LOCALE 'tr'", ["\xe4pfel", "\xc4rger"]),  # its `I` is not an `i`
    ],
)
def test_the_order_of_titles_in_the_letters_a_to_z_is_the_same_in_every_locale(
    tmp_path: Path, locale: str, others: list[str]
) -> None:
    titles = ["_", "hill", "Index", "item", "JAR", "zoo"]
    with postgres(tmp_path) as server:
        execute(server.dsn, f"CREATE DATABASE located TEMPLATE template0 ENCODING 'UTF8' {locale}")
        located = make_url(server.dsn).set(database="located").render_as_string(hide_password=False)
        shuffled = sorted(titles + others, key=len)
        sql = f"SELECT title FROM unnest($1::text[]) AS title ORDER BY {LOWERED}"  # noqa: S608
        rows = execute(located, sql, shuffled)

    assert [title for [title] in rows] == titles + others

"""Lists by a sort key that somebody adds, and what somebody may add for lists by title: an index."""

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy import make_url
from sqlalchemy.dialects.postgresql import dialect
from sqlmodel import col
from sqlmodel.sql.sqltypes import UTCDateTime

from app.core.database import Database, statement
from app.core.database.migrations import migrate
from app.core.errors import InvalidRequestError
from app.http.fast_lane import RowResponse
from app.models.task import Task, _on_the_wire
from app.schemas.task import UNCONDITIONAL, TaskCreate, TaskQuery
from app.schemas.words import SORTS
from app.services import tasks
from app.services.cursors import Position, SortKey, encode_cursor
from tests.servers import postgres
from tests.support import execute, new_database

# The SQL for what titles sort by.
LOWERED: Final = str(tasks._caseless(sa.column("title", sa.Text)).compile(dialect=dialect()))  # type: ignore[no-untyped-call]  # noqa: SLF001


@pytest.fixture
async def db(dsn: str) -> AsyncIterator[Database]:
    db = Database(dsn, pool_size=1, pool_timeout=5, concurrency_limit=10)
    yield db
    await db.close()


@pytest.mark.parametrize("sort", ["description", "-description"])
async def test_the_pages_by_a_nullable_key_have_each_task_once(
    db: Database, database: asyncpg.Connection, user: str, monkeypatch: pytest.MonkeyPatch, sort: Any
) -> None:
    monkeypatch.setitem(tasks.SORT_KEYS, "description", SortKey(col(Task.description).collate("C"), str, nullable=True))
    monkeypatch.setitem(SORTS, sort, sort)
    insert = "INSERT INTO tasks (user_id, id, title, description) VALUES ($1, gen_random_uuid(), 'a', $2)"
    await database.executemany(insert, [(user, text) for text in ("a", "b", None, None, None)])
    cursor: str | None = ""

    found = []
    while cursor is not None:
        query = TaskQuery.model_construct(sort=sort, limit=2, cursor=cursor)
        page, cursor = await tasks.list_tasks(db, user, query)
        found += page

    texts = ["b", "a"] if sort.startswith("-") else ["a", "b"]
    assert [task.description for task in found] == [*texts, None, None, None]
    assert len({task.id for task in found}) == 5


@pytest.mark.parametrize(
    ("type_", "value", "shown"),
    [
        (sa.Date(), date.max, "9999-12-31"),  # asyncpg sends the last date of Python as the infinite one
        (sa.Date(), None, None),
        (UTCDateTime(), datetime.max.replace(tzinfo=UTC), "9999-12-31T23:59:59.999999Z"),
        (sa.Enum("a", "b", native_enum=False), "b", "b"),
        (sa.Numeric(10, 2), Decimal("1.5"), "1.50"),
        (sa.ARRAY(sa.Uuid()), [UUID(int=1)], [str(UUID(int=1))]),
    ],
)
async def test_a_value_of_any_type_of_column_comes_back_as_it_was_sent(
    db: Database, type_: Any, value: object, shown: object
) -> None:
    stored = sa.cast(tasks._parameter("value", sa.column("c", type_)), type_).label("c")  # noqa: SLF001
    query = statement(sa.select(_on_the_wire(stored), stored.is_(None)), reads=True)

    [[found, is_null]] = await db.fetch(query, value=value)

    assert json.loads(bytes(RowResponse(found).body)) == shown
    assert is_null == (value is None)


@pytest.mark.parametrize("operation", ["create", "update", "list", "forged cursor"])
async def test_a_value_that_only_the_database_refuses_is_a_refusal_and_no_defect(
    db: Database, user: str, operation: str
) -> None:
    blank = TaskCreate.model_construct(title=" ")
    query = TaskQuery.model_construct(limit=2**63)
    cursor = encode_cursor(Position("\0", UUID(int=1)), "title caseless", repr((user, {})))
    forged = TaskQuery.model_construct(sort="title", cursor=cursor)
    task = (await tasks.create_task(db, user, TaskCreate(title="a"))).task
    run: dict[str, Any] = {
        "create": lambda: tasks.create_task(db, user, blank),
        "update": lambda: tasks.update_task(db, user, UUID(task.id), {"title": " "}, UNCONDITIONAL),
        "list": lambda: tasks.list_tasks(db, user, query),
        "forged cursor": lambda: tasks.list_tasks(db, user, forged),
    }

    with pytest.raises(InvalidRequestError) as refused:
        await run[operation]()

    assert refused.value.detail == "One of the values is not allowed."


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

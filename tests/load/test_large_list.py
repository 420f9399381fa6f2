"""A user with many tasks: the last page costs as much as the first page."""

import json
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, Final, NamedTuple

import asyncpg
import pytest

from app.models.task import LONG_COLUMNS
from app.schemas.words import Sort
from app.services.cursors import Position
from app.services.tasks import _page  # the statement that the service runs
from tests.support import connected

COUNT: Final = 20_000
LIMIT: Final = 200
OWNER: Final = "collector"
INDEX: Final = "ix_tasks_user_id_created_at_id"
# In a small table, PostgreSQL may prefer a sort. It still sorts if the statement does not allow an index scan in order.
PREFER_INDEX: Final = "SET enable_sort = off; SET enable_seqscan = off; SET enable_bitmapscan = off"
INSERT: Final = """
    INSERT INTO tasks (user_id, id, title, description, completed, created_at, updated_at)
    SELECT $1, gen_random_uuid(), 'Task ' || n, 'One of many', n % 2 = 0, moment, moment
    FROM (
        SELECT n, timestamptz '2026-01-01' + (n / 2 + n * 7919 % 997) * interval '1 second' AS moment
        FROM generate_series(1, $2) AS n
    ) AS spread
"""


@pytest.fixture(scope="module")
async def collection(dsn: str) -> list[Position]:
    """The positions of the tasks, newest first. Some were created at the same moment. The ids are random."""
    async with connected(dsn) as connection:
        await connection.execute(INSERT, OWNER, COUNT)
        await connection.execute("VACUUM ANALYZE tasks")
        query = "SELECT created_at, id FROM tasks WHERE user_id = $1 ORDER BY created_at DESC, id DESC"
        return [Position(*row) for row in await connection.fetch(query, OWNER)]


class Cost(NamedTuple):
    """The plan of one page, and the number of blocks that PostgreSQL read for it."""

    nodes: list[str]
    indexes: set[str]
    blocks: int


async def explain(connection: asyncpg.Connection, query: str, values: Iterable[object]) -> Cost:
    """Run a prepared statement, as the driver does."""
    literals = ", ".join(f"'{value}'" for value in values)
    await connection.execute(f"PREPARE page AS {query}")
    plan = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE page({literals})")
    await connection.execute("DEALLOCATE page")
    top = json.loads(plan)[0]["Plan"]
    nodes = list(_nodes(top))
    return Cost(
        [node["Node Type"] for node in nodes],
        {node["Index Name"] for node in nodes if "Index Name" in node},
        top["Shared Hit Blocks"] + top["Shared Read Blocks"],
    )


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


# PostgreSQL plans a prepared statement for its values at first, and may use a generic plan later.
@pytest.mark.parametrize("planning", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("sort", ["-created_at", "created_at"])
async def test_the_first_middle_and_last_page_use_the_index_at_the_same_cost(
    database: asyncpg.Connection, collection: list[Position], sort: Sort, planning: str
) -> None:
    await database.execute(f"SET plan_cache_mode = {planning}; {PREFER_INDEX}")
    ordered = collection if sort == "-created_at" else collection[::-1]
    values = {"owner": OWNER, "limit": LIMIT, "page_max": 10**9}
    costs = []

    for start in (0, COUNT // 2, COUNT - LIMIT):
        resumed = {"after_key": ordered[start - 1].key, "after_id": ordered[start - 1].id} if start else {}
        statement = _page(sort, frozenset(), resumed=bool(resumed))
        costs.append(await explain(database, statement.sql, [(values | resumed)[name] for name in statement.names]))

    assert [cost.nodes for cost in costs] == [
        ["Subquery Scan", "WindowAgg", "Subquery Scan", "Limit", "Index Scan"]
    ] * 3
    assert [cost.indexes for cost in costs] == [{INDEX}] * 3
    blocks = [cost.blocks for cost in costs]
    assert max(blocks) < 1.1 * min(blocks)


async def test_an_offset_costs_far_more_on_the_last_page(
    database: asyncpg.Connection, collection: list[Position]
) -> None:
    """The positive control of the test above."""
    await database.execute(PREFER_INDEX)
    statement = _page("-created_at", frozenset(), resumed=False)
    with_offset = statement.sql.replace("LIMIT", f"OFFSET {len(collection) - LIMIT} LIMIT")

    first, last = [await explain(database, sql, [OWNER, LIMIT, 10**9]) for sql in (statement.sql, with_offset)]

    assert last.blocks > 50 * first.blocks


@pytest.mark.usefixtures("collection")
async def test_the_database_sends_no_row_after_the_texts_exceed_the_maximum(database: asyncpg.Connection) -> None:
    rows = await database.fetch(_page("-created_at", frozenset(), resumed=False).sql, OWNER, LIMIT, 1_000)

    sizes = [sum(len(row[name] or "") for name in LONG_COLUMNS) for row in rows]
    assert sum(sizes[:-1]) <= 1_000 < sum(sizes)
    assert [row["page weight"] for row in rows] == [*accumulate(sizes)]

"""Each statement of the services reads one partition where `tasks` is partitioned by the owner. So a distributed
database (Citus, YugabyteDB, CockroachDB) can spread the table over machines.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any, Final, get_args
from uuid import UUID

import asyncpg
import pytest

from app.core.database import Statement
from app.core.database.migrations import migrate
from app.schemas.task import Sort
from app.services import tasks
from tests.deployments import PARTITIONS, partition
from tests.support import connected, new_database

TASK_ID: Final = UUID("019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa")
NOW: Final = datetime(2026, 11, 25, tzinfo=UTC)
VALUES: Final[dict[str, Any]] = {
    "owner": "ada",
    "task_id": TASK_ID,
    "match": None,
    "none_match": [NOW.isoformat()],
    "new_title": "Buy oat milk",
    "new_description": None,
    "sets_description": True,
    "new_completed": False,
    "status": True,
    "completed": True,
    "search": "%milk%",
    "after_id": TASK_ID,
    "limit": 21,
}
PAGES: Final = [
    tasks._page(sort, frozenset(filters), resumed=resumed)  # noqa: SLF001  # the only statements made on demand
    for sort in get_args(Sort)
    for filters in ((), (*tasks._FILTERS,))  # noqa: SLF001
    for resumed in (False, True)
]
STATEMENTS: Final = [*PAGES, *(value for value in vars(tasks).values() if isinstance(value, Statement))]
# The statements that have to find rows.
SEARCHES: Final = [query for query in STATEMENTS if not query.sql.startswith("INSERT")]


@pytest.fixture
def partitioned(dsn: str) -> Iterator[str]:
    with new_database(dsn, "partitioned") as partitioned:
        migrate(partitioned)
        partition(partitioned)
        yield partitioned


@pytest.fixture
async def connection(partitioned: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that plans a sequential scan only where no index can be used."""
    async with connected(partitioned) as connection:
        await connection.execute("SET enable_seqscan = off")
        yield connection


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


async def scans(connection: asyncpg.Connection, sql: str, names: tuple[str, ...]) -> list[str]:
    """Returns the kind of scan for each partition that the statement reads."""
    by_title = re.search(r"WHERE.* COLLATE .*ORDER BY", sql, re.DOTALL)
    values = {**VALUES, "after_key": "Buy" if by_title else NOW}
    plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {sql}", *(values[name] for name in names))
    read = [
        node for node in nodes(json.loads(plan)[0]["Plan"]) if "Scan" in node["Node Type"] and "Relation Name" in node
    ]
    return [node["Node Type"] for node in read]


async def test_each_statement_reads_one_partition_by_an_index_and_all_without_the_owner(
    connection: asyncpg.Connection,
) -> None:
    for query in SEARCHES:
        unowned = re.sub(r"tasks\.user_id = (\$\d+::\w+)", r"\1 IS NOT NULL", query.sql)

        assert await scans(connection, query.sql, query.names) in (["Index Scan"], ["Bitmap Heap Scan"]), query.sql
        assert len(await scans(connection, unowned, query.names)) == PARTITIONS, query.sql

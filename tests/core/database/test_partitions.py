"""Each statement of the services reads one partition where `tasks` is partitioned by the owner. So a distributed
database (Citus, YugabyteDB, CockroachDB) can spread the table over machines.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import pytest

from app.core.database import statement
from app.core.database.migrations import migrate
from tests.deployments import PARTITIONS, partition
from tests.services.test_statements import SERVICES, made_by
from tests.support import new_database

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
STATEMENTS: Final = {statement(clause, reads=False) for path in SERVICES for clause, _ in made_by(path)}
# The statements that have to find rows.
SEARCHES: Final = sorted(query for query in STATEMENTS if not query.sql.startswith("INSERT"))


@pytest.fixture
def partitioned(dsn: str) -> Iterator[str]:
    with new_database(dsn, "partitioned") as partitioned:
        migrate(partitioned)
        partition(partitioned)
        yield partitioned


@pytest.fixture
async def connection(partitioned: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that plans a sequential scan only where no index can be used."""
    connection = await asyncpg.connect(partitioned, server_settings={"enable_seqscan": "off"})
    yield connection
    await connection.close()


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

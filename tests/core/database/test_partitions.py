"""Each statement of the services touches one partition where `tasks` is partitioned by the owner. So a distributed
database (Citus, YugabyteDB, CockroachDB) can spread the table over machines.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.core.database import Statement, statement
from app.core.database.migrations import migrate
from tests.deployments import PARTITIONS, partition
from tests.services.test_statements import SERVICES, made_by
from tests.support import execute, new_database

pytestmark = pytest.mark.ci

OWNER: Final = "user-1"
TASK_ID: Final = UUID("019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa")
NOW: Final = datetime(2026, 11, 25, tzinfo=UTC)
VALUES: Final[dict[str, Any]] = {
    "owner": OWNER,
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
# 320 users with 40 tasks each.
FILL: Final = """
    INSERT INTO tasks (user_id, id, title, completed)
    SELECT 'user-' || owner, gen_random_uuid(), 'Buy oat milk', task % 2 = 0
    FROM generate_series(1, 320) AS owner, generate_series(1, 40) AS task
"""
STATEMENTS: Final = {statement(clause, reads=False) for path in SERVICES for clause, _ in made_by(path)}
# The statements that have to find rows.
SEARCHES: Final = sorted(query for query in STATEMENTS if not query.sql.startswith("INSERT"))

LOCKED: Final = """
    SELECT count(*) FROM pg_locks JOIN pg_inherits ON relation = inhrelid
    WHERE pid = pg_backend_pid() AND inhparent = 'tasks'::regclass
"""


@pytest.fixture(scope="module")
def partitioned(dsn: str) -> Iterator[str]:
    """A database whose table is partitioned, with tasks of many users."""
    with new_database(dsn, "partitioned") as partitioned:
        migrate(partitioned)
        partition(partitioned)
        execute(partitioned, FILL)
        execute(partitioned, "INSERT INTO tasks (user_id, id, title) VALUES ($1, $2, 'Drink milk')", OWNER, TASK_ID)
        execute(partitioned, "ANALYZE tasks")
        yield partitioned


@pytest.fixture
async def connection(partitioned: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection whose changes are rolled back."""
    connection = await asyncpg.connect(partitioned)
    transaction = connection.transaction()
    await transaction.start()
    yield connection
    await transaction.rollback()
    await connection.close()


def values(query: Statement, **others: object) -> list[Any]:
    """Returns the values of the parameters: those of VALUES unless `others` has another."""
    by_title = re.search(r"WHERE.* COLLATE .*ORDER BY", query.sql, re.DOTALL)
    known = {**VALUES, "after_key": "Buy" if by_title else NOW, **others}
    return [known[name] for name in query.names]


def literal(value: object) -> str:
    """Returns the SQL literal of a value."""
    if value is None:
        return "NULL"
    return "'{" + ", ".join(map(str, value)) + "}'" if isinstance(value, list) else f"'{value}'"


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def unowned(query: Statement) -> Statement:
    """Returns the statement without its condition on the owner."""
    sql, count = re.subn(r"tasks\.user_id = (\$\d+::\w+)", r"\1 IS NOT NULL", query.sql)
    assert count == 1
    return query._replace(sql=sql)


async def scanned(connection: asyncpg.Connection, query: Statement) -> list[str]:
    """Returns the kind of scan for each partition that a statement reads, if it is planned once for all values."""
    await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    await connection.execute(f"SAVEPOINT before; PREPARE it AS {query.sql}")
    literals = ", ".join(map(literal, values(query)))
    explained = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE it({literals})")
    await connection.execute("DEALLOCATE it; ROLLBACK TO before")
    found = [node for node in nodes(json.loads(explained)[0]["Plan"]) if "Scan" in node["Node Type"]]
    read = [node for node in found if node.get("Relation Name", "").startswith("tasks_") and node["Actual Loops"]]
    return [node["Node Type"] for node in read]


def test_the_searches_include_every_kind_of_statement() -> None:
    assert {query.sql.split()[0] for query in SEARCHES} == {"SELECT", "UPDATE", "DELETE"}


async def test_each_statement_reads_one_partition_by_an_index(connection: asyncpg.Connection) -> None:
    found = {query.sql: await scanned(connection, query) for query in SEARCHES}

    assert {sql: kinds for sql, kinds in found.items() if kinds not in (["Index Scan"], ["Bitmap Heap Scan"])} == {}


async def test_each_statement_without_the_owner_reads_all_partitions(connection: asyncpg.Connection) -> None:
    """The positive control of the test above."""
    found = {query.sql: await scanned(connection, unowned(query)) for query in SEARCHES[:: len(SEARCHES) // 8]}

    assert {sql: kinds for sql, kinds in found.items() if len(kinds) != PARTITIONS} == {}


@pytest.mark.parametrize(("owners", "partitions"), [(["user-1"], 1), (["user-1", "user-2"], 2)])
async def test_a_creation_locks_one_partition(
    connection: asyncpg.Connection, owners: list[str], partitions: int
) -> None:
    [creation] = STATEMENTS - {*SEARCHES}
    for owner in owners:
        assert len(await connection.fetch(creation.sql, *values(creation, owner=owner, task_id=uuid4()))) == 1

    assert await connection.fetchval(LOCKED) == partitions

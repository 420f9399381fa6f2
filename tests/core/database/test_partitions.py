"""Each statement of the services touches one partition where `tasks` is partitioned by the owner. So a distributed
database (Citus, YugabyteDB, CockroachDB) can spread the table over machines.
"""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, get_args
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.core.database import Statement, statement
from app.core.database.migrations import migrate
from app.schemas.task import Sort
from app.services import tasks
from tests.deployments import PARTITIONS, partition
from tests.services.test_statements import SERVICES, made_by
from tests.support import execute, new_database

USERS: Final = 320
TASKS: Final = 40  # for each user
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
FILL: Final = """
    INSERT INTO tasks (user_id, id, title, completed)
    SELECT 'user-' || owner, gen_random_uuid(), 'Buy oat milk', task % 2 = 0
    FROM generate_series(1, $1) AS owner, generate_series(1, $2) AS task
"""
STATEMENTS: Final = {statement(clause, reads=False) for path in SERVICES for clause, _ in made_by(path)}
# The statements that have to find rows.
SEARCHES: Final = sorted(query for query in STATEMENTS if not query.sql.startswith("INSERT"))

LOCKED: Final = """
    SELECT count(*) FROM pg_locks JOIN pg_inherits ON relation = inhrelid
    WHERE pid = pg_backend_pid() AND inhparent = 'tasks'::regclass
"""

Explain = Callable[[asyncpg.Connection, Statement], Awaitable[Any]]


@pytest.fixture(scope="module")
def partitioned(dsn: str) -> Iterator[str]:
    """A database whose table is partitioned, with tasks of many users."""
    with new_database(dsn, "partitioned") as partitioned:
        migrate(partitioned)
        partition(partitioned)
        execute(partitioned, FILL, USERS, TASKS)
        execute(partitioned, "INSERT INTO tasks (user_id, id, title) VALUES ($1, $2, 'Drink milk')", OWNER, TASK_ID)
        execute(partitioned, "ANALYZE tasks")
        yield partitioned


@pytest.fixture
async def connection(partitioned: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(partitioned)
    yield connection
    await connection.close()


@asynccontextmanager
async def rolled_back(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Roll everything back at the end."""
    transaction = connection.transaction()
    await transaction.start()
    yield
    await transaction.rollback()


async def custom_plan(connection: asyncpg.Connection, query: Statement) -> Any:
    """Returns the plan of a statement that is planned for its values."""
    explained = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query.sql}", *values(query))
    return json.loads(explained)[0]["Plan"]


async def generic_plan(connection: asyncpg.Connection, query: Statement) -> Any:
    """Returns the plan of a statement that is planned once for all values."""
    await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE it AS {query.sql}")
    literals = ", ".join(map(literal, values(query)))
    explained = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE it({literals})")
    await connection.execute("DEALLOCATE it")
    return json.loads(explained)[0]["Plan"]


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


async def scanned(connection: asyncpg.Connection, explain: Explain, query: Statement) -> list[str]:
    """Returns the kind of scan for each partition that a statement reads."""
    async with rolled_back(connection):
        plan = await explain(connection, query)
    found = [node for node in nodes(plan) if node.get("Relation Name", "").startswith("tasks_")]
    return [node["Node Type"] for node in found if "Scan" in node["Node Type"] and node["Actual Loops"]]


class TestSearches:
    def test_the_searches_include_every_kind_of_statement(self) -> None:
        assert {query.sql.split()[0] for query in SEARCHES} == {"SELECT", "UPDATE", "DELETE"}
        assert len(SEARCHES) > len(get_args(Sort)) * 2 ** len(tasks._FILTERS) * 2  # noqa: SLF001  # pages, and the rest

    @pytest.mark.parametrize("explain", [custom_plan, generic_plan])
    async def test_each_statement_reads_one_partition_by_an_index(
        self, connection: asyncpg.Connection, explain: Explain
    ) -> None:
        found = [(query.sql, await scanned(connection, explain, query)) for query in SEARCHES]

        assert [(sql, kinds) for sql, kinds in found if kinds not in (["Index Scan"], ["Bitmap Heap Scan"])] == []

    @pytest.mark.parametrize("explain", [custom_plan, generic_plan])
    async def test_each_statement_without_the_owner_reads_all_partitions(
        self, connection: asyncpg.Connection, explain: Explain
    ) -> None:
        """The positive control of the test above."""
        found = [(query.sql, await scanned(connection, explain, unowned(query))) for query in SEARCHES]

        assert [(sql, kinds) for sql, kinds in found if len(kinds) != PARTITIONS] == []


class TestCreation:
    async def test_a_creation_locks_one_partition(self, connection: asyncpg.Connection) -> None:
        [creation] = STATEMENTS - {*SEARCHES}
        async with rolled_back(connection):
            records = await connection.fetch(creation.sql, *values(creation, task_id=uuid4()))
            locked = await connection.fetchval(LOCKED)

        assert (len(records), locked) == (1, 1)

    async def test_creations_for_two_owners_lock_two_partitions(self, connection: asyncpg.Connection) -> None:
        """The positive control of the test above."""
        [creation] = STATEMENTS - {*SEARCHES}
        async with rolled_back(connection):
            for owner in ("user-1", "user-2"):
                await connection.fetch(creation.sql, *values(creation, owner=owner))
            locked = await connection.fetchval(LOCKED)

        assert locked == 2


class TestRows:
    async def test_the_tasks_of_a_user_share_a_partition_and_users_are_spread(
        self, connection: asyncpg.Connection
    ) -> None:
        places = await connection.fetch("SELECT DISTINCT user_id, tableoid::regclass::text FROM tasks")

        assert len(places) == USERS
        assert len({place for _, place in places}) == PARTITIONS

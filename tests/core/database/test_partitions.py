"""Each statement of the services reads one partition where `tasks` is partitioned by the owner. So a distributed
database (Citus, YugabyteDB, CockroachDB) can spread the table over machines.
"""

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final, get_args
from uuid import UUID

import asyncpg
import pytest

from app.core.database import Statement
from app.core.database.migrations import migrate
from app.schemas.words import Sort
from app.services import tasks
from tests.deployments import PARTITIONS, partition
from tests.support import connected, execute, new_database

TASK_ID: Final = UUID("019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa")
NOW: Final = "2026-11-25T00:00:00.000000Z"
VALUES: Final[dict[str, Any]] = {"match": None, "none_match": [NOW], "search": "milk", "limit": 21, "page_max": 10**6}
# By type, of the other parameters that are compared with a column, such as a filter that somebody adds.
SAMPLES: Final[dict[str, Any]] = {
    **dict.fromkeys(("text", "varchar"), NOW),
    **dict.fromkeys(("int2", "int4", "int8", "float4", "float8", "numeric"), 1),
    "bool": True,
    "uuid": TASK_ID,
    "text[]": [NOW],
}
FOREIGN_KEY: Final = "FOREIGN KEY (user_id, task_id) REFERENCES tasks (user_id, id)"  # of a table that extends ours
PAGES: Final = [
    tasks._page(sort, frozenset(filters), resumed=resumed)  # noqa: SLF001  # the only statements made on demand
    for sort in get_args(Sort)
    for filters in ((), (*tasks._FILTERS,))  # noqa: SLF001
    for resumed in (False, True)
]
NAMED: Final = [value for value in vars(tasks).values() if isinstance(value, tuple)]
PAIRS: Final = [value for value in NAMED if not isinstance(value, Statement)]  # without and with KEPT_COLUMN
STATEMENTS: Final = [query for query in chain(PAGES, NAMED, *PAIRS) if isinstance(query, Statement)]
COMPARED: Final = {"owner", "task_id", "after_key", "after_id", *tasks._FILTERS}  # noqa: SLF001
SEARCHES: Final = [query for query in STATEMENTS if not query.sql.startswith("INSERT")]


async def scans(database: asyncpg.Connection, sql: str, names: tuple[str, ...]) -> list[str]:
    """Returns the line of the plan for each scan of a partition."""
    query = await database.prepare(f"EXPLAIN {sql}")
    values = [
        VALUES[name] if name in VALUES else SAMPLES[parameter.name] if name in COMPARED else None
        for name, parameter in zip(names, query.get_parameters(), strict=True)
    ]
    plan = await query.fetch(*values)
    return [line for [line] in plan if re.search(r"Scan .*on tasks_\d+ ", line)]


@pytest.fixture
def partitioned(dsn: str) -> Iterator[str]:
    with new_database(dsn, "partitioned") as partitioned:
        migrate(partitioned)
        execute(partitioned, f"CREATE TABLE extension (user_id text, task_id uuid, {FOREIGN_KEY} ON DELETE CASCADE)")
        partition(partitioned)
        yield partitioned


async def test_each_statement_reads_one_partition_by_an_index_and_all_without_the_owner(partitioned: str) -> None:
    async with connected(partitioned) as database:
        await database.execute("SET enable_seqscan = off")  # or a plan could have a sequential scan beside an index
        for query in SEARCHES:
            unowned = re.sub(r"tasks\.user_id = (\$\d+::\w+)", r"\1 IS NOT NULL", query.sql)

            [scan] = await scans(database, query.sql, query.names)
            assert re.search("(Index|Bitmap Heap) Scan", scan), query.sql
            assert len(await scans(database, unowned, query.names)) == PARTITIONS, query.sql

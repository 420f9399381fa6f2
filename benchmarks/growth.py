"""`python -m benchmarks.growth`: the cost of a request on a small and on a large table. Writes docs/performance.md.

The same process of the service is measured twice: on a small table, and after `--rows` rows have been added.
"""

import asyncio
import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import httpx

from app.core.database import Statement
from app.schemas.task import LIMIT_MAX
from app.services.tasks import _COMPLETE, _CREATE, _GET, PAGE_MAX, _page  # the statements that the service executes
from benchmarks.data import sweep, token
from benchmarks.load import Load, Sample, measure, medians
from benchmarks.rig import Database, database, run, table
from benchmarks.subjects import Running, running, service

DRAWN: Final = 300  # users whose requests wrk sends
IDS: Final = 100  # tasks per user; together they lie in more blocks than shared_buffers holds
LIMIT: Final = 20  # tasks per page
FAR: Final = 25  # pages that precede the far page
TASKS: Final = 1_000  # tasks per user of the large table
WAVE: Final = 1_000  # users per INSERT; a single INSERT for all users takes twice as long
LISTS: Final = tuple(limit for limit in (20, 200, 1_000) if limit <= LIMIT_MAX)

STATEMENTS: Final = {  # by operation
    "get": _GET[False],
    "first page": _page("-created_at", frozenset(), resumed=False),
    "far page": _page("-created_at", frozenset(), resumed=True),
    "toggle": _COMPLETE[False],
    "create": _CREATE[False],
}
PLANNING: Final = ("force_custom_plan", "force_generic_plan")  # PostgreSQL chooses either for a prepared statement
# The cost of these plan nodes grows with the table or with the number of tasks of a user.
REFUSED: Final = ("Seq Scan", "Bitmap", "Sort")

# The tasks of a user are scattered, as if all users had added tasks in turn. Ids and times increase together.
_FILL: Final = """
    INSERT INTO tasks (user_id, id, title, description, completed, created_at, updated_at)
    SELECT $1::text || '-' || $2::int + n % $3::int, uuidv7(moment - clock_timestamp()), 'Task ' || n / $3::int,
        'The barista one', n % 3 = 0, moment, moment
    FROM (
        SELECT n, now() - interval '60 days' + n / $3::int * interval '1 minute' AS moment
        FROM generate_series(0, $3::int * $4::int - 1) AS n
    ) AS spread
"""
_IDS: Final = "SELECT id FROM tasks WHERE user_id = $1 ORDER BY hashtext(id::text) LIMIT $2"
_POSITION: Final = """
    SELECT created_at, id FROM tasks WHERE user_id = $1 ORDER BY created_at DESC, id DESC OFFSET $2 LIMIT 1
"""


class Group(NamedTuple):
    """Users who have the same number of tasks. Their names are the name of the group and a number."""

    name: str
    users: int
    tasks: int  # per user


# One task more than a page holds, so that the first page links to a second. The collector has enough for a far page.
SMALL: Final = (Group("small", 10, LIMIT + 1), Group("collector", 1, TASKS))


class User(NamedTuple):
    """A user with a token and the ids of some of their tasks."""

    name: str
    token: str
    ids: list[UUID]


class Result(NamedTuple):
    """The medians and plans by operation, the medians of lists by page size, and the memory of the service."""

    small: dict[str, Sample]
    large: dict[str, Sample]
    lists: dict[str, Sample]
    plans: dict[str, str]
    memory: list[float]  # resident MiB: at the start, after the small table, after the large one
    filling: float  # seconds


def main() -> None:
    """Measure, print the tables, and write them into the page. Exits with one sentence if a plan is refused."""
    run("growth", __doc__, {"rows": 10_000_000, "rounds": 3, "seconds": 3}, _report)


def compare(rows: int, rounds: int, seconds: int) -> Result:
    """Returns the measurements before and after `rows` rows were added."""
    with database() as db, running(service(), db.directory, DATABASE_URL=db.dsn) as live:
        memory = [_memory(live)]
        fill(db.dsn, SMALL)
        small = _measure_all(live, db, _loads(live, db, *SMALL), rounds, seconds)
        asyncio.run(sweep(db.dsn))
        memory.append(_memory(live))
        group, filling = _fill_up(db.dsn, rows)
        plans = asyncio.run(explain(db.dsn, f"{group.name}-0"))
        _exit_if_refused(plans)
        lists = _measure_all(live, db, _lists(db, group), rounds, seconds)
        large = _measure_all(live, db, _loads(live, db, group, group), rounds, seconds)
        return Result(small, large, lists, plans, [*memory, _memory(live)], filling)


def fill(dsn: str, groups: Iterable[Group]) -> None:
    """Add the users and their tasks. Vacuum and checkpoint run here, so that they do not disturb the measurement."""

    async def run_all() -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute("SET statement_timeout = 0")
        for name, users, tasks in groups:
            for first in range(0, users, WAVE):
                await connection.execute(_FILL, name, first, min(WAVE, users - first), tasks)
        await connection.execute("VACUUM ANALYZE tasks")
        await connection.execute("CHECKPOINT")
        await connection.close()

    asyncio.run(run_all())


async def explain(dsn: str, owner: str) -> dict[str, str]:
    """Returns a summary of the plan of each statement. `owner` needs enough tasks for a far page."""
    connection = await asyncpg.connect(dsn)
    [(moment, task_id)] = await connection.fetch(_POSITION, owner, LIMIT * FAR - 1)
    values = {"owner": owner, "task_id": task_id, "new_title": "Buy oat milk", "new_completed": False}
    values |= {"limit": LIMIT + 1, "page_max": PAGE_MAX, "after_key": moment, "after_id": task_id}
    plans = {name: await _plans(connection, statement, values) for name, statement in STATEMENTS.items()}
    await connection.close()
    return plans


def complaint(operation: str, plan: str) -> str | None:
    """Returns why a plan, as `explain` summarises it, is refused, or None."""
    if not any(word in plan for word in REFUSED):
        return None
    return f"{operation} is not answered from an index alone: {plan}"


def _fill_up(dsn: str, rows: int) -> tuple[Group, float]:
    """Fill the large table. Returns the group that was added, and how many seconds that took."""
    started = time.monotonic()
    group = _filled(rows)
    fill(dsn, [group])
    seconds = time.monotonic() - started
    print(f"filled in {seconds:.0f} s", file=sys.stderr)
    return group, seconds


def _filled(rows: int) -> Group:
    return Group("user", max(rows // TASKS, 1), TASKS)


async def _draw(dsn: str, group: Group) -> list[User]:
    """Returns some users of a group, spread evenly over it."""
    connection = await asyncpg.connect(dsn)
    users = []
    for number in range(0, group.users, max(group.users // DRAWN, 1)):
        name = f"{group.name}-{number}"
        ids = [record["id"] for record in await connection.fetch(_IDS, name, IDS)]
        users.append(User(name, token(name), ids))
    await connection.close()
    return users


def _loads(live: Running, db: Database, group: Group, collectors: Group) -> dict[str, Load]:
    """Returns the load of each operation for users of `group`. The far page belongs to one of `collectors`."""
    users = asyncio.run(_draw(db.dsn, group))
    collector = asyncio.run(_draw(db.dsn, collectors))[-1]
    lines = [" ".join([user.name, user.token, *map(str, user.ids)]) for user in users]
    far = f"{_far_page(live, collector)} {collector.token}"
    return {
        "get": db.write("get", "users", lines),
        "first page": _pages(db, users, LIMIT),
        "far page": db.write("page", "far", [far]),
        "toggle": db.write("toggle", "users", lines),
        "create": db.write("create", "users", lines),  # must be the last, because it adds rows
    }


def _lists(db: Database, group: Group) -> dict[str, Load]:
    users = asyncio.run(_draw(db.dsn, group))
    return {f"{limit:,}": _pages(db, users, limit) for limit in LISTS}


def _pages(db: Database, users: list[User], limit: int) -> Load:
    paths = [f"/api/{user.name}/tasks?limit={limit} {user.token}" for user in users]
    return db.write("page", f"pages of {limit}", paths)


def _far_page(live: Running, user: User) -> str:
    """Returns the path of the far page, found by following the links to the next page."""
    path = f"/api/{user.name}/tasks?limit={LIMIT}"
    headers = {"Authorization": f"Bearer {user.token}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{live.port}", headers=headers) as client:
        for _ in range(FAR):
            path = client.get(path).raise_for_status().links["next"]["url"]
    return path


def _measure_all(live: Running, db: Database, loads: dict[str, Load], rounds: int, seconds: int) -> dict[str, Sample]:
    """Returns the medians by operation. The operations do not take turns, because `create` would lengthen the pages."""
    results = {}
    for name, load in loads.items():
        warm_up = measure(live, load, db.postmaster, seconds=1)
        measured = [measure(live, load, db.postmaster, seconds=seconds) for _ in range(rounds)]
        results[name] = medians(measured or [warm_up])
    return results


def _memory(live: Running) -> float:
    return float(live.process.memory_info().rss / 2**20)


async def _plans(connection: asyncpg.Connection, statement: Statement, values: dict[str, Any]) -> str:
    """Returns a summary of the custom plan of a statement and, where it differs, of its generic plan."""
    literals = ", ".join(_literal(values.get(name)) for name in statement.names)
    plans = []
    for planning in PLANNING:
        await connection.execute(f"SET plan_cache_mode = {planning}; PREPARE it AS {statement.sql}")
        explained = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE it({literals})")
        await connection.execute("DEALLOCATE it")
        plans.append(", ".join(_scans(json.loads(explained)[0]["Plan"])))
    return "; for any values ".join(dict.fromkeys(plans))


def _literal(value: object) -> str:
    return "NULL" if value is None else f"'{value}'"


def _scans(node: dict[str, Any]) -> Iterator[str]:
    """Yields the scans and sorts of a plan, and the indexes by which an INSERT finds conflicts."""
    kind = node["Node Type"]
    if indexes := node.get("Conflict Arbiter Indexes"):
        yield f"Insert, conflicts by {', '.join(indexes)}"
    if "Index Name" in node:
        yield f"{kind} using {node['Index Name']}"
    elif "Scan" in kind or "Sort" in kind:
        yield kind
    for child in node.get("Plans", ()):
        yield from _scans(child)


def _exit_if_refused(plans: dict[str, str]) -> None:
    for operation, plan in plans.items():
        if wrong := complaint(operation, plan):
            sys.exit(wrong)


def _report(given: Namespace) -> str:
    result = compare(given.rows, given.rounds, given.seconds)
    return f"{_sizes(given.rows, result)}\n\n{_growth_table(result)}\n\n{_list_table(result)}"


def _sizes(rows: int, result: Result) -> str:
    small = sum(group.users * group.tasks for group in SMALL)
    large = small + _filled(rows).users * TASKS
    start, before, after = result.memory
    return (
        f"{small:,} rows, then {large:,}, filled in {result.filling:.0f} s. Resident memory of the service: "
        f"{start:.0f} MiB when it had started, {before:.0f} after the small table, {after:.0f} after the large one."
    )


def _growth_table(result: Result) -> str:
    head = ["operation", "CPU, µs, small", "large", "database CPU, µs, small", "large", "p50, ms, small / large"]
    rows = []
    for operation, plan in result.plans.items():
        small, large = result.small[operation], result.large[operation]
        costs = (small.cpu, large.cpu, small.database_cpu, large.database_cpu)
        rows.append((operation, *(f"{cost:.0f}" for cost in costs), f"{small.p50:.1f} / {large.p50:.1f}", plan))
    return table([*head, "plan, large"], rows)


def _list_table(result: Result) -> str:
    head = ["tasks on the page", "CPU, µs", "CPU, µs, for a task", "database CPU, µs", "p50, ms"]
    rows = []
    for limit, each in zip(LISTS, result.lists.values(), strict=True):
        costs = (f"{each.cpu:.0f}", f"{each.cpu / limit:.1f}", f"{each.database_cpu:.0f}", f"{each.p50:.1f}")
        rows.append((f"{limit:,}", *costs))
    return table(head, rows)


if __name__ == "__main__":
    main()

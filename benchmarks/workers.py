"""`python -m benchmarks.workers`: the gain of a second worker, and start-up time. Writes docs/performance.md."""

import asyncio
import subprocess
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import asyncpg

from benchmarks.data import seed
from benchmarks.load import Load, Sample, measure, medians
from benchmarks.rig import Database, database, run, table
from benchmarks.subjects import POOL_SIZE, STARTED_WITHIN, environment_of, running, service

WORKERS: Final = (1, 2)
OPERATIONS: Final = ("get", "toggle")
CONNECTIONS: Final = 32  # of wrk: more than the pools of all workers have together
DEAREST: Final = 10  # packages in the table of imports
_OPEN: Final = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


class Served(NamedTuple):
    """The result of one operation with a number of workers, and the connections of PostgreSQL at the end."""

    workers: int
    operation: str
    sample: Sample
    connections: int


class Import(NamedTuple):
    """A line of `-X importtime`: a module, its depth of nesting, and microseconds without and with its own imports."""

    name: str
    depth: int
    own: int
    cumulative: int

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


def main() -> None:
    """Measure, print the tables, and write them into the page."""
    run("workers", __doc__, {"rounds": 5, "seconds": 3}, _report)


def serve(db: Database, load: Path, workers: int, rounds: int, seconds: int) -> Iterator[Served]:
    """Start the service with a number of workers, and yield the result of each operation."""
    with running(service(), db.directory, DATABASE_URL=db.dsn, WEB_CONCURRENCY=str(workers)) as live:
        _await_workers(db.dsn, workers)
        for operation in OPERATIONS:
            sent = Load(operation, load)
            samples = [  # the first round warms up
                measure(live, sent, db.postmaster, seconds=seconds, connections=CONNECTIONS) for _ in range(rounds + 1)
            ]
            yield Served(workers, operation, medians(samples[1:] or samples), _connections(db.dsn))


def start(directory: Path, **environment: str) -> float:
    """Start the service and stop it again. Returns the seconds until its first answer."""
    started = time.perf_counter()
    with running(service(), directory, **environment):
        return time.perf_counter() - started


def imports() -> list[Import]:
    """Returns the modules that `import app.main` loads. Each module follows those that it imports."""
    command = [sys.executable, "-X", "importtime", "-c", "import app.main"]
    done = subprocess.run(command, env=environment_of(service()), capture_output=True, text=True, check=True)  # noqa: S603  # our own command
    lines = [
        line.removeprefix("import time:").split("|")
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    ][1:]
    found = [_import(*line) for line in lines]
    first = next(number for number, each in enumerate(found) if each.depth == 0 and each.package == "site") + 1
    return found[first:]


def dearest(found: list[Import]) -> dict[str, tuple[int, int]]:
    """Returns the most expensive packages, and for each the microseconds without and with the imports of others.

    An import counts for the package that is the first to need it.
    """
    own: defaultdict[str, int] = defaultdict(int)
    cumulative: defaultdict[str, int] = defaultdict(int)
    above: list[Import] = []
    for each in reversed(found):  # reversed, a module comes before its imports
        del above[each.depth :]
        own[each.package] += each.own
        if each.package not in {importer.package for importer in above}:
            cumulative[each.package] += each.cumulative
        above.append(each)
    ranked = sorted(own, key=own.__getitem__, reverse=True)[:DEAREST]
    return {package: (own[package], cumulative[package]) for package in ranked}


def _report(given: Namespace) -> str:
    with database() as db:
        rounds = max(given.rounds, 1)
        return "\n\n".join((_workers(db, given), _starts(db, rounds), _imports(rounds)))


def _workers(db: Database, given: Namespace) -> str:
    load = db.directory / "users"
    load.write_text(asyncio.run(seed(db.dsn)))
    head = ("workers", "operation", "requests/s", "CPU, µs", "database CPU, µs", "p99, ms", "connections", "at most")
    rows = []
    for workers in WORKERS:
        for each in serve(db, load, workers, given.rounds, given.seconds):
            sample = each.sample
            costs = (f"{sample.rate:,.0f}", f"{sample.cpu:.0f}", f"{sample.database_cpu:.0f}", f"{sample.p99:.1f}")
            most = str(workers * POOL_SIZE)
            rows.append((str(workers), each.operation, *costs, str(each.connections), most))
    return table(head, rows)


def _starts(db: Database, rounds: int) -> str:
    embedded = {"EMBEDDED_POSTGRES_DIR": str(db.directory / "embedded")}
    start(db.directory, **embedded)  # initdb is not measured
    kinds = {"DATABASE_URL, migrated": {"DATABASE_URL": db.dsn}, "embedded, data there": embedded}
    rows = []
    for name, environment in kinds.items():
        times = [start(db.directory, **environment) for _ in range(rounds)]
        rows.append((name, f"{median(times):.2f}", f"{min(times):.2f}", f"{max(times):.2f}"))
    return table(("start", "to the first answer, s", "fastest", "slowest"), rows)


def _imports(rounds: int) -> str:
    runs = sorted((imports() for _ in range(rounds)), key=_total)
    middle = runs[len(runs) // 2]
    rows = [(name, _milliseconds(own), _milliseconds(all_)) for name, (own, all_) in dearest(middle).items()]
    head = f"`import app.main` takes {_milliseconds(_total(middle))} ms, {len(middle)} modules. By package:"
    return f"{head}\n\n{table(('package', 'its modules, ms', 'with what they are the first to import, ms'), rows)}"


def _total(found: list[Import]) -> int:
    return sum(each.own for each in found)


def _milliseconds(microseconds: int) -> str:
    return f"{microseconds / 1e3:.0f}"


def _import(own: str, cumulative: str, name: str) -> Import:
    """Returns a parsed line. Each level of nesting is an indentation by two spaces."""
    module = name.strip()
    return Import(module, (len(name) - len(module) - 1) // 2, int(own), int(cumulative))


def _connections(dsn: str) -> int:
    async def count() -> int:
        connection = await asyncpg.connect(dsn)
        found: int = await connection.fetchval(_OPEN)
        await connection.close()
        return found

    return asyncio.run(count())


def _await_workers(dsn: str, workers: int) -> None:
    """Wait until every worker has opened a connection, which each does before it serves."""
    deadline = time.monotonic() + STARTED_WITHIN
    while _connections(dsn) < workers:
        if time.monotonic() > deadline:
            message = f"There are not {workers} workers."
            raise RuntimeError(message)
        time.sleep(0.1)


if __name__ == "__main__":
    main()

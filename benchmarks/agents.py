"""`python -m benchmarks.agents`: the cost of a tool call beside the PATCH. Writes docs/performance.md."""

import asyncio
from argparse import Namespace
from collections import defaultdict
from statistics import median
from typing import Final

from benchmarks.data import seed
from benchmarks.load import CONNECTIONS, Sample, measure, medians
from benchmarks.rig import database, run, table
from benchmarks.subjects import running, service

CLIENTS: Final = [1, CONNECTIONS]
# What completes a task, and what requests.lua calls it.
CALLS: Final = {
    "PATCH": "set",
    "complete_task, 2026-07-28": "call 2026-07-28",
    "complete_task, 2025-11-25": "call 2025-11-25",
}
HEAD: Final = ("completes a task", "connections", "CPU, µs", "times the PATCH", "database CPU, µs", "requests/s", "MiB")


def main() -> None:
    """Measure, print the table, and write it into the page."""
    run("agents", __doc__, {"rounds": 5, "seconds": 2, "clients": CLIENTS}, _report)


def _report(given: Namespace) -> str:
    samples: defaultdict[tuple[int, str], list[Sample]] = defaultdict(list)
    with database() as db, running(service(), db.directory, DATABASE_URL=db.dsn, MCP="on") as live:
        lines = asyncio.run(seed(db.dsn)).splitlines()
        loads = {name: db.write(operation, "users", lines) for name, operation in CALLS.items()}
        for _ in range(given.rounds + 1):
            for clients in given.clients:
                for name, load in loads.items():
                    sample = measure(live, load, db.postmaster, seconds=given.seconds, connections=clients)
                    samples[clients, name].append(sample)
    return table(HEAD, [(name, str(clients), *_row(samples, clients, name)) for clients, name in samples])


def _row(samples: dict[tuple[int, str], list[Sample]], clients: int, name: str) -> list[str]:
    """Returns the medians of the rounds without the first one, which warms up."""
    patch, own = [samples[clients, each][1:] or samples[clients, each] for each in ("PATCH", name)]
    each = medians(own)
    ratio = median(call.cpu / other.cpu for call, other in zip(own, patch, strict=True))
    return [f"{each.cpu:.0f}", f"{ratio:.1f}", f"{each.database_cpu:.0f}", f"{each.rate:,.0f}", f"{each.memory:.0f}"]


if __name__ == "__main__":
    main()

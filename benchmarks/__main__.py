"""`make bench`: the service beside what others write, on one database, in one run. Writes docs/performance.md."""

import asyncio
import platform
import sys
from argparse import Namespace
from contextlib import ExitStack
from statistics import median
from typing import Final

from benchmarks.data import seed, sweep
from benchmarks.load import CONNECTIONS, OPERATIONS, Load, Sample, measure, medians
from benchmarks.rig import database, run, table
from benchmarks.subjects import Subject, baselines, running, service

CLIENTS: Final = (1, CONNECTIONS)  # connections: a service that is hardly busy, and one that has all it can do
HEAD: Final = (
    "connections",
    "CPU, µs",
    "the service's CPU is",
    "database CPU, µs",
    "requests/s",
    "p50, ms",
    "p99, ms",
    "MiB",
)
Samples = dict[tuple[str, int, str], list[Sample]]  # by operation, connections and subject


def main() -> None:
    """Measure, print the tables, and put them in the page, in the place of those of the same Python."""
    version = ".".join(platform.python_version_tuple()[:2])
    run(version, __doc__, {"rounds": 5, "seconds": 2}, _report)


def compare(subjects: list[Subject], *, rounds: int, seconds: int) -> Samples:
    """Returns what each subject needed for each operation, one after the other in each round."""
    samples: Samples = {}
    with database() as db, ExitStack() as stack:
        requests = db.directory / "requests"
        requests.write_text(asyncio.run(seed(db.dsn)))
        live = [stack.enter_context(running(subject, db.directory, DATABASE_URL=db.dsn)) for subject in subjects]
        cases = [(operation, clients, each) for operation in OPERATIONS for clients in CLIENTS for each in live]
        for number in range(rounds + 1):
            for operation, clients, each in cases:
                load = Load(operation, requests)
                sample = measure(each, load, db.postmaster, seconds=seconds, connections=clients)
                if number:  # the first round warms up
                    samples.setdefault((operation, clients, each.name), []).append(sample)
            asyncio.run(sweep(db.dsn))
            print(f"round {number} of {rounds}", file=sys.stderr)
    return samples


def _report(given: Namespace) -> str:
    subjects = [service(), *baselines()]
    samples = compare(subjects, rounds=given.rounds, seconds=given.seconds)
    return "\n\n".join(_table(samples, operation, subjects) for operation in OPERATIONS)


def _table(samples: Samples, operation: str, subjects: list[Subject]) -> str:
    rows = []
    for clients in CLIENTS:
        ours, *_ = every = [samples[operation, clients, subject.name] for subject in subjects]
        rows += [
            (subject.name, str(clients), *_row(ours, theirs)) for subject, theirs in zip(subjects, every, strict=True)
        ]
    return table((operation, *HEAD), rows)


def _row(ours: list[Sample], theirs: list[Sample]) -> list[str]:
    """Returns the medians; the ratio is the service's CPU through the subject's, the median of those of the rounds."""
    ratio = median(our.cpu / their.cpu for our, their in zip(ours, theirs, strict=True))
    each = medians(theirs)
    costs = [f"{each.cpu:.0f}", f"{ratio:.2f} of it", f"{each.database_cpu:.0f}", f"{each.rate:,.0f}"]
    return [*costs, f"{each.p50:.1f}", f"{each.p99:.1f}", f"{each.memory:.0f}"]


if __name__ == "__main__":
    main()

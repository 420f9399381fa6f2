"""`python -m benchmarks`: compare the service with the baselines on one database. Writes docs/performance.md."""

import platform
from argparse import Namespace
from statistics import median
from typing import Final

from benchmarks.load import CONNECTIONS, Sample, medians
from benchmarks.rig import Samples, compare, database, run, table
from benchmarks.subjects import OPERATIONS, Subject, baselines, service

CLIENTS: Final = [1, CONNECTIONS]  # connections: an almost idle service, and a saturated one
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


def main() -> None:
    """Measure, print the tables, and write them into the section of the page for this version of Python."""
    version = ".".join(platform.python_version_tuple()[:2])
    run(version, __doc__, {"rounds": 5, "seconds": 2, "clients": CLIENTS}, _report)


def _report(given: Namespace) -> str:
    subjects = [service(), *baselines()]
    with database() as db:
        samples = compare(db, subjects, given.clients, rounds=given.rounds, seconds=given.seconds)
    return "\n\n".join(_table(samples, operation, given.clients, subjects) for operation in OPERATIONS)


def _table(samples: Samples, operation: str, connections: list[int], subjects: list[Subject]) -> str:
    rows = []
    for clients in connections:
        ours, *_ = every = [samples.get((operation, clients, subject.name), []) for subject in subjects]
        rows += [
            (subject.name, str(clients), *_row(ours, theirs)) for subject, theirs in zip(subjects, every, strict=True)
        ]
    return table((operation, *HEAD), rows)


def _row(ours: list[Sample], theirs: list[Sample]) -> list[str]:
    """Returns the medians of the rounds, or dashes for a subject that lacks the operation.

    The ratio is the service's CPU time divided by the subject's in the same round.
    """
    if not theirs:
        return ["-"] * (len(HEAD) - 1)
    ratio = median(our.cpu / their.cpu for our, their in zip(ours, theirs, strict=True))
    each = medians(theirs)
    costs = [f"{each.cpu:.0f}", f"{ratio:.2f} of it", f"{each.database_cpu:.0f}", f"{each.rate:,.0f}"]
    return [*costs, f"{each.p50:.1f}", f"{each.p99:.1f}", f"{each.memory:.0f}"]


if __name__ == "__main__":
    main()

"""`make bench`: the service beside what others write, on one database, in one run. Writes docs/performance.md."""

import argparse
import asyncio
import platform
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

import psutil

from app.core.embedded import embedded_postgres
from app.core.migrations import migrate
from benchmarks.data import seed, sweep
from benchmarks.load import OPERATIONS, Sample, measure
from benchmarks.subjects import Subject, baselines, running, service

PAGE: Final = Path("docs/performance.md")
Samples = dict[tuple[str, str], list[Sample]]  # by operation and subject


def main() -> None:
    """Measure, print the tables, and put them in the page, in the place of those of the same Python."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=3, help="of each operation of each subject, in each round")
    arguments.add_argument("--page", type=Path, default=PAGE)
    given = arguments.parse_args()
    subjects = [service(), *baselines()]
    started = time.monotonic()
    samples = compare(subjects, rounds=given.rounds, seconds=given.seconds)
    tables = "\n\n".join(_table(samples, operation, subjects) for operation in OPERATIONS)
    version = ".".join(platform.python_version_tuple()[:2])
    head = (
        f"Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}, {given.rounds} rounds of {given.seconds} s "
        f"for each, {time.monotonic() - started:.0f} s in all. {_machine()}"
    )
    given.page.write_text(_replaced(given.page.read_text(), version, f"{head}\n\n{tables}"))
    print(f"{head}\n\n{tables}")


def compare(subjects: list[Subject], *, rounds: int, seconds: int) -> Samples:
    """Returns what each subject needed for each operation, one after the other in each round."""
    samples: Samples = {}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name, ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)  # the server runs under an account of its own
        dsn = stack.enter_context(embedded_postgres(directory / "postgres"))
        postmaster = psutil.Process(int((directory / "postgres" / "postmaster.pid").read_text().split()[0]))
        migrate(dsn)
        requests = directory / "requests"
        requests.write_text(asyncio.run(seed(dsn)))
        live = [stack.enter_context(running(subject, dsn, directory)) for subject in subjects]
        for number in range(rounds + 1):
            for operation in OPERATIONS:
                for subject in live:
                    sample = measure(subject, operation, requests, seconds=seconds, postmaster=postmaster)
                    if number:  # the first round warms up
                        samples.setdefault((operation, subject.name), []).append(sample)
            asyncio.run(sweep(dsn))
            print(f"round {number} of {rounds}", file=sys.stderr)
    return samples


def _table(samples: Samples, operation: str, subjects: list[Subject]) -> str:
    """Returns the medians; a ratio is the service's CPU through the subject's, the median of those of the rounds."""
    lines = [
        f"| {operation} | CPU, µs | the service's CPU is | database CPU, µs | requests/s | p50, ms | p99, ms | MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours = samples[operation, subjects[0].name]
    for subject in subjects:
        theirs = samples[operation, subject.name]
        ratio = median(our.cpu / their.cpu for our, their in zip(ours, theirs, strict=True))
        each = Sample(*(median(values) for values in zip(*theirs, strict=True)))
        lines.append(
            f"| {subject.name} | {each.cpu:.0f} | {ratio:.2f} of it | {each.database_cpu:.0f} | {each.rate:,.0f} "
            f"| {each.p50:.1f} | {each.p99:.1f} | {each.memory:.0f} |"
        )
    return "\n".join(lines)


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}."


def _replaced(page: str, version: str, text: str) -> str:
    """Returns `page` with `text` between the two marks of this version of Python."""
    begin, end = f"<!-- begin {version} -->", f"<!-- end {version} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        message = f"{begin} and {end} are not in the page."
        raise ValueError(message)
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


if __name__ == "__main__":
    main()

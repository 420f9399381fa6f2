"""What the benchmarks share: a database, rounds of measurement, and their sections of docs/performance.md."""

import asyncio
import platform
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from app.core.database.migrations import migrate
from app.server.embedded import embedded_postgres
from benchmarks.data import seed, sweep
from benchmarks.load import Load, Sample, measure
from benchmarks.subjects import OPERATIONS, Running, Subject, running

PAGE: Final = Path("docs/performance.md")

Key = tuple[str, int, str]  # operation, number of connections, name of the subject
Cases = dict[Key, tuple[Running, Load]]
Samples = dict[Key, list[Sample]]
Options = Mapping[str, int | list[int]]  # options of the command line and their defaults


class Database(NamedTuple):
    """A migrated PostgreSQL, and a directory for loads and logs."""

    dsn: str
    postmaster: psutil.Process
    directory: Path

    def write(self, operation: str, name: str, lines: Iterable[str]) -> Load:
        """Returns a load that draws from these lines."""
        requests = self.directory / name
        requests.write_text("".join(f"{line}\n" for line in lines))
        return Load(operation, requests)


@contextmanager
def database() -> Iterator[Database]:
    """Yields an embedded PostgreSQL, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL runs under another account when this process is root
        with embedded_postgres(directory / "postgres") as dsn:
            migrate(dsn)
            pid = (directory / "postgres" / "postmaster.pid").read_text().split()[0]
            yield Database(dsn, psutil.Process(int(pid)), directory)


def compare(db: Database, subjects: list[Subject], clients: Sequence[int], *, rounds: int, seconds: int) -> Samples:
    """Returns the samples of every subject. The subjects take turns in each round, so all meet the same conditions."""
    samples: Samples = defaultdict(list)
    with ExitStack() as stack:
        cases = _start(stack, db, subjects, clients)
        for number in range(rounds + 1):
            for key, sample in _measure_once(db, cases, seconds).items():
                if number or not rounds:  # round 0 warms up, and counts if it is the only one
                    samples[key].append(sample)
            print(f"round {number} of {rounds}", file=sys.stderr)
    return dict(samples)


def run(name: str, description: str | None, options: Options, report: Callable[[Namespace], str]) -> None:
    """Read the command line, print what `report` returns, and write it between the marks of `name` in the page.

    Exits with one sentence on stderr if wrk or the marks are missing.
    """
    arguments = ArgumentParser(description=description)
    for option, default in options.items():
        several = "+" if isinstance(default, list) else None
        arguments.add_argument(f"--{option}", type=int, nargs=several, default=default, help=f"default: {default}")
    arguments.add_argument("--page", type=Path, default=PAGE)
    given = arguments.parse_args()
    _exit_if_it_cannot_run(name, given.page)
    started = time.monotonic()
    text = report(given)
    text = f"{_head(given, time.monotonic() - started)}\n\n{text}"
    given.page.write_text(_replaced(given.page.read_text(), name, text))
    print(text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _start(stack: ExitStack, db: Database, subjects: list[Subject], clients: Sequence[int]) -> Cases:
    """Seed the table and start the subjects. Returns the cases in the order of measurement."""
    requests = db.directory / "requests"
    requests.write_text(asyncio.run(seed(db.dsn)))
    live = [(each, stack.enter_context(running(each, db.directory, DATABASE_URL=db.dsn))) for each in subjects]
    return {
        (operation, connections, subject.name): (each, Load(subject.sends[operation], requests))
        for operation in OPERATIONS
        for connections in clients
        for subject, each in live
        if operation in subject.sends
    }


def _measure_once(db: Database, cases: Cases, seconds: int) -> dict[Key, Sample]:
    samples = {
        key: measure(live, load, db.postmaster, seconds=seconds, connections=key[1])
        for key, (live, load) in cases.items()
    }
    asyncio.run(sweep(db.dsn))
    return samples


def _exit_if_it_cannot_run(name: str, page: Path) -> None:
    if not shutil.which("wrk"):
        sys.exit("wrk is not on the PATH; it sends the load: https://github.com/wg/wrk")
    try:
        _replaced(page.read_text(), name, "")
    except (OSError, ValueError) as error:
        sys.exit(f"{page} cannot be written: {error}")


def _head(given: Namespace, seconds: float) -> str:
    return (
        f"Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}, {given.rounds} rounds of {given.seconds} s "
        f"for each, {seconds:.0f} s in all. {_machine()}"
    )


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}."


def _replaced(page: str, name: str, text: str) -> str:
    """Returns `page` with `text` between the marks of `name`. Raises ValueError if the marks are missing."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        message = f"{begin} and {end} are not in the page."
        raise ValueError(message)
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"

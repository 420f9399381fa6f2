"""`python -m benchmarks.distance`: throughput and latency at a distance from the database. Writes docs/performance.md.

The service has its default settings, except for the pool sizes that `--pool-sizes` compares.
"""

import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import make_url

from app.core.config import Settings
from benchmarks.load import medians
from benchmarks.rig import Samples, compare, database, run, table
from benchmarks.subjects import service

ROUND_TRIP: Final = 2  # milliseconds
CONNECTIONS: Final = 64  # of wrk
POOL_SIZE: Final[int] = Settings.model_fields["database_pool_size"].default
HEAD: Final = ("operation", "pool size", "requests/s", "p50, ms", "p99, ms")


def main() -> None:
    """Measure, print the table, and write it into the page."""
    run("distance", __doc__, {"rounds": 5, "seconds": 2, "pool-sizes": [POOL_SIZE]}, _report)


@contextmanager
def distant(dsn: str, milliseconds: float) -> Iterator[str]:
    """Yields the DSN of a proxy in front of the same database, at a round trip of `milliseconds`."""
    url = make_url(dsn)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        arguments = (listener.fileno(), f"{url.query['host']}/.s.PGSQL.{url.query['port']}", milliseconds / 2_000)
        command = [sys.executable, "-m", "benchmarks.delay", *map(str, arguments)]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()])  # noqa: S603  # our own command
    try:
        url = url.set(host="127.0.0.1", port=port, query={"sslmode": "disable"})
        yield url.render_as_string(hide_password=False)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _report(given: Namespace) -> str:
    subjects = [service(size)._replace(name=str(size)) for size in given.pool_sizes]
    with database() as db, distant(db.dsn, ROUND_TRIP) as dsn:
        far = db._replace(dsn=dsn)
        samples = compare(far, subjects, [CONNECTIONS], rounds=given.rounds, seconds=given.seconds)
    title = f"At a round trip of {ROUND_TRIP} ms to the database, over {CONNECTIONS} connections:"
    return f"{title}\n\n{_table(samples)}"


def _table(samples: Samples) -> str:
    rows = []
    for (operation, _, pool_size), each in samples.items():
        sample = medians(each)
        rows.append((operation, pool_size, f"{sample.rate:,.0f}", f"{sample.p50:.1f}", f"{sample.p99:.1f}"))
    return table(HEAD, rows)


if __name__ == "__main__":
    main()

"""`python -m benchmarks.fairness`: latency for one user while another sends expensive requests.

Writes docs/performance.md. The other user has 1,000 tasks of the maximum size, and sends at a fixed rate whether the
replies come or not.
"""

import asyncio
import multiprocessing
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection
from statistics import median, quantiles
from typing import Final, NamedTuple

import asyncpg

from benchmarks.data import token
from benchmarks.rig import Database, database, run, table
from benchmarks.subjects import Running, running, service

RATE: Final = 20  # requests a second of the greedy user
PAUSE: Final = 0.005  # seconds between two requests of the bystander
TASKS: Final = 1_000  # of the greedy user
_FILL: Final = """
    INSERT INTO tasks (user_id, id, title, description)
    SELECT 'greedy', gen_random_uuid(), 'Task ' || n, repeat($1, 5000) FROM generate_series(1, $2::int) AS n
    UNION ALL SELECT 'bystander', gen_random_uuid(), 'Buy oat milk', NULL
"""
_SEARCH: Final = f"?search={'a' * 199}b"

# The text of which the greedy user's descriptions consist, and the request.
ATTACKS: Final = {
    "nothing": ("a", None),
    "a search that nearly matches at each position": ("a", f"GET /api/greedy/tasks{_SEARCH}"),
    "a list of control characters": ("\x01", "GET /api/greedy/tasks"),
    "HEAD of that list": ("\x01", "HEAD /api/greedy/tasks"),
}


class Latency(NamedTuple):
    """The latencies of the bystander in milliseconds, and how many requests failed."""

    p50: float
    p99: float
    failed: int


def main() -> None:
    """Measure, print the table, and write it into the page."""
    run("fairness", __doc__, {"rounds": 5, "seconds": 5}, _report)


def _report(given: Namespace) -> str:
    with database() as db, running(service(), db.directory, DATABASE_URL=db.dsn) as live:
        latencies: dict[str, list[Latency]] = {name: [] for name in ATTACKS}
        for _ in range(max(given.rounds, 1)):
            for name, (text, request) in ATTACKS.items():
                path = asyncio.run(_fill(db, text))
                with _greedy(live, request):
                    latencies[name].append(_bystander(live, path, given.seconds))
    return table(("the other user sends", "p50, ms", "p99, ms", "p99, times that alone", "failed"), _rows(latencies))


async def _fill(db: Database, text: str) -> str:
    """Replace all tasks. Returns the path of the bystander's task."""
    connection = await asyncpg.connect(db.dsn)
    await connection.execute("SET statement_timeout = 0")
    await connection.execute("TRUNCATE tasks")
    await connection.execute(_FILL, text, TASKS)
    await connection.execute("VACUUM ANALYZE tasks")
    task_id = await connection.fetchval("SELECT id FROM tasks WHERE user_id = 'bystander'")
    await connection.close()
    return f"/api/bystander/tasks/{task_id}"


@contextmanager
def _greedy(live: Running, request: str | None) -> Iterator[None]:
    """Send the request at RATE from another process."""
    if not request:
        yield
        return
    process = multiprocessing.Process(target=lambda: asyncio.run(_flood(live.port, request, token("greedy"))))
    process.start()
    time.sleep(1)  # until the load is steady
    yield
    process.kill()
    process.join()


async def _flood(port: int, request: str, bearer: str) -> None:
    head = f"{request} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {bearer}\r\nConnection: close\r\n\r\n"
    sending = set()
    while True:
        sending.add(asyncio.create_task(_send(port, head.encode())))
        sending = {task for task in sending if not task.done()}
        await asyncio.sleep(1 / RATE)


async def _send(port: int, request: bytes) -> None:
    with suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        while await reader.read(1_048_576):
            pass
        writer.close()


def _bystander(live: Running, path: str, seconds: float) -> Latency:
    """Read one task again and again."""
    connection = HTTPConnection("127.0.0.1", live.port)
    latencies, failed, end = [], 0, time.monotonic() + seconds
    while (started := time.monotonic()) < end:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token('bystander')}"})
        reply = connection.getresponse()
        reply.read()
        failed += reply.status != HTTPStatus.OK
        latencies.append((time.monotonic() - started) * 1_000)
        time.sleep(PAUSE)
    connection.close()
    percentiles = quantiles(latencies, n=100)
    return Latency(percentiles[49], percentiles[98], failed)


def _rows(latencies: dict[str, list[Latency]]) -> Iterator[tuple[str, ...]]:
    alone = latencies["nothing"]
    for name, each in latencies.items():
        ratio = median(one.p99 / other.p99 for one, other in zip(each, alone, strict=True))
        p50, p99 = median(one.p50 for one in each), median(one.p99 for one in each)
        yield name, f"{p50:.1f}", f"{p99:.1f}", f"{ratio:.1f}", str(sum(one.failed for one in each))


if __name__ == "__main__":
    main()

"""Load on one subject and its cost: wrk sends the requests, the operating system counts the CPU time."""

import json
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import psutil

from benchmarks.subjects import Running

CONNECTIONS: Final = 16  # of wrk: more than a pool has
_SCRIPT: Final = Path(__file__).with_name("requests.lua")


class Load(NamedTuple):
    """An operation of requests.lua, and the file from which wrk draws its requests."""

    operation: str
    requests: Path


class Sample(NamedTuple):
    """One round: CPU in µs per request, requests per second, latencies in ms, and MiB of the largest process."""

    cpu: float
    database_cpu: float
    rate: float
    p50: float
    p99: float
    memory: float


def measure(
    subject: Running, load: Load, postmaster: psutil.Process, *, seconds: int, connections: int = CONNECTIONS
) -> Sample:
    """Send `load` and return its cost. Raises RuntimeError if any request failed."""
    before = _cpu(subject.process), _cpu(postmaster)
    reply = _wrk(subject.port, load, seconds, connections)
    after = _cpu(subject.process), _cpu(postmaster)
    if reply["failed"] or not reply["requests"]:
        message = f"{subject.name}, {load.operation} of {load.requests.name}: {reply}"
        raise RuntimeError(message)
    count = reply["requests"]
    return Sample(
        cpu=(after[0] - before[0]) / count * 1e6,
        database_cpu=(after[1] - before[1]) / count * 1e6,
        rate=count / reply["seconds"],
        p50=reply["p50"] / 1e3,
        p99=reply["p99"] / 1e3,
        memory=max(process.memory_info().rss for process in subject.tree()) / 2**20,
    )


def medians(samples: Iterable[Sample]) -> Sample:
    """Returns the median of each figure."""
    return Sample(*map(median, zip(*samples, strict=True)))


def _wrk(port: int, load: Load, seconds: int, connections: int) -> dict[str, float]:
    command = ["wrk", "--threads=1", f"--connections={connections}", f"--duration={seconds}s", "--timeout=10s"]
    command += [f"--script={_SCRIPT}", f"http://127.0.0.1:{port}", "--", *map(str, load)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  # our own command
    reply: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return reply


def _cpu(root: psutil.Process) -> float:
    """Returns the user and system time of a process tree in seconds, including children that have ended."""
    times = root.cpu_times()
    total: float = times.user + times.system + times.children_user + times.children_system
    for process in root.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total

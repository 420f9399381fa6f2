"""A load on one subject, and what it costs: wrk sends it, the operating system counts."""

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from benchmarks.subjects import Running

OPERATIONS: Final = ("get", "list", "toggle", "create")
CONNECTIONS: Final = 16
_SCRIPT: Final = Path(__file__).with_name("requests.lua")


class Sample(NamedTuple):
    """One round. CPU in microseconds per request, latencies in milliseconds, memory in MiB per process."""

    cpu: float
    database_cpu: float
    rate: float
    p50: float
    p99: float
    memory: float


def measure(subject: Running, operation: str, requests: Path, *, seconds: int, postmaster: psutil.Process) -> Sample:
    """Returns what `operation` cost. Raises RuntimeError if any request failed."""
    before = _cpu(subject.process), _cpu(postmaster)
    reply = _wrk(subject.port, operation, requests, seconds)
    after = _cpu(subject.process), _cpu(postmaster)
    if reply["failed"] or not reply["requests"]:
        message = f"{subject.name}, {operation}: {reply}"
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


def _wrk(port: int, operation: str, requests: Path, seconds: int) -> dict[str, float]:
    command = ["wrk", "--threads=1", f"--connections={CONNECTIONS}", f"--duration={seconds}s", "--timeout=10s"]
    command += [f"--script={_SCRIPT}", f"http://127.0.0.1:{port}", "--", operation, str(requests)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  # our own command
    reply: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return reply


def _cpu(root: psutil.Process) -> float:
    """Returns the user and system time of a process tree, in seconds, with what has ended in it."""
    times = root.cpu_times()
    total: float = times.user + times.system + times.children_user + times.children_system
    for process in root.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total

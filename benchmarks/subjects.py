"""What is measured: the service, and the same operations as others write them, each a process on its own port."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import psutil
from tests.servers import free_port

SECRET: Final = os.urandom(32).hex()
FASTIFY: Final = Path(__file__).with_name("fastify")
POOL_SIZE: Final = 10  # connections; so many have the others too


class Subject(NamedTuple):
    """A name for the table, a command, and what it is told by its environment. `SECRET` signs the tokens."""

    name: str
    command: list[str]
    environment: dict[str, str]


class Running(NamedTuple):
    """A subject that answers."""

    name: str
    port: int
    process: psutil.Process

    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


def service() -> Subject:
    """The service as it is deployed: tokens are checked, each request has an id and a line in the log."""
    expected = {"AUTH_JWT_SECRET": SECRET, "AUTH_ISSUER": "unchecked", "AUTH_AUDIENCE": "unchecked"}
    return Subject(
        "Tasks API",
        [sys.executable, "-m", "app"],
        {"PYTHONPATH": "backend", "DATABASE_POOL_SIZE": str(POOL_SIZE), **expected},
    )


def baselines() -> Iterator[Subject]:
    """What others write. Fastify is there once as it is, and once with a token checked and a line logged."""
    idiom = [sys.executable, "-m", "uvicorn", "benchmarks.idiom:app", "--no-access-log", "--log-level=warning"]
    yield Subject("common idiom", idiom, {})
    if (FASTIFY / "node_modules").exists():
        node = ["node", str(FASTIFY / "server.mjs")]
        yield Subject("Fastify", node, {})
        yield Subject("Fastify, tokens and log", node, {"JWT_SECRET": SECRET})


@contextmanager
def running(subject: Subject, dsn: str, directory: Path) -> Iterator[Running]:
    """Yields the subject when it answers, and ends it. What it prints goes to a file, as a log does."""
    port = free_port()
    given = environment_of(subject, DATABASE_URL=dsn, PORT=str(port), UVICORN_PORT=str(port))
    with (directory / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(subject.command, env=given, stdout=log, stderr=log)  # noqa: S603  # our own
        try:
            _await_answer(process, port)
            yield Running(subject.name, port, psutil.Process(process.pid))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)


def environment_of(subject: Subject, **others: str) -> Mapping[str, str]:
    """Returns what a subject is told, and the little that it needs of this environment."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"NODE_ENV": "production"} | subject.environment | others


def _await_answer(process: "subprocess.Popen[bytes]", port: int) -> None:
    while process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health/live")
        except httpx.TransportError:
            time.sleep(0.02)
        else:
            return
    message = f"{process.args!r} ended at once."
    raise RuntimeError(message)

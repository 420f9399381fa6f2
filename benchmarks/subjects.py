"""What is measured: the service, and the same operations as others write them, each a process on its own port."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import psutil
from tests.servers import free_port

SECRET: Final = os.urandom(32).hex()
FASTIFY: Final = Path(__file__).with_name("fastify")
POOL_SIZE: Final = 10  # connections; so many have the others too
STARTED_WITHIN: Final = 60  # seconds
OPERATIONS: Final = ("get", "list", "toggle", "create")
_TASKS: Final = MappingProxyType({operation: operation for operation in OPERATIONS})


class Subject(NamedTuple):
    """A name for the table, a command, and what it is told by its environment. `SECRET` signs the tokens."""

    name: str
    command: list[str]
    environment: dict[str, str]
    sends: Mapping[str, str] = _TASKS  # by operation of the tables, the operation of requests.lua


class Running(NamedTuple):
    """A subject that answers."""

    name: str
    port: int
    process: psutil.Process

    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


def service(pool_size: int = POOL_SIZE) -> Subject:
    """The service as it is deployed: tokens are checked, each request has an id and a line in the log."""
    expected = {"AUTH_JWT_SECRET": SECRET, "AUTH_ISSUER": "unchecked", "AUTH_AUDIENCE": "unchecked"}
    return Subject(
        "Tasks API",
        [sys.executable, "-m", "app"],
        {"PYTHONPATH": "backend", "DATABASE_POOL_SIZE": str(pool_size), **expected},
    )


def baselines() -> Iterator[Subject]:
    """What others write. Fastify is there once as it is, and once with a token checked and a line logged."""
    yield Subject("common idiom", _uvicorn("benchmarks.idiom:app"), {})
    yield Subject("FastAPI's hello world", _uvicorn("benchmarks.hello:app"), {}, {"get": "root"})
    if (FASTIFY / "node_modules").exists():
        node = ["node", str(FASTIFY / "server.mjs")]
        yield Subject("Fastify", node, {})
        yield Subject("Fastify, tokens and log", node, {"JWT_SECRET": SECRET})


@contextmanager
def running(subject: Subject, directory: Path, **environment: str) -> Iterator[Running]:
    """Yields the subject when it answers, and ends it. What it prints goes to a file, as a log does."""
    port = free_port()
    given = environment_of(subject, PORT=str(port), UVICORN_PORT=str(port), **environment)
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


def _uvicorn(app: str) -> list[str]:
    options = ["--loop=uvloop", "--http=httptools", "--no-access-log", "--log-level=warning"]
    return [sys.executable, "-m", "uvicorn", app, *options]


def _await_answer(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + STARTED_WITHIN
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            message = f"{process.args!r} does not answer."
            raise RuntimeError(message)
        time.sleep(0.005)


def _answers(port: int) -> bool:
    """Returns whether there is an answer, 404 where a subject has no such page. A client that takes longer to be made
    than the standard library's would be measured as well.
    """
    with suppress(OSError, HTTPException), closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("GET", "/health/live")
        return connection.getresponse().status < HTTPStatus.INTERNAL_SERVER_ERROR
    return False

"""The subjects of measurement: the service and the baselines, each a process on its own port."""

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
POOL_SIZE: Final = 10  # connections; the baselines have the same number
STARTED_WITHIN: Final = 60  # seconds
OPERATIONS: Final = ("get", "list", "toggle", "create")
_TASKS: Final = MappingProxyType({operation: operation for operation in OPERATIONS})


class Subject(NamedTuple):
    """A program to measure: its name in the tables, its command and its environment."""

    name: str
    command: list[str]
    environment: dict[str, str]
    sends: Mapping[str, str] = _TASKS  # operations that it has, and what requests.lua calls them


class Running(NamedTuple):
    """A subject that has started and accepts requests."""

    name: str
    port: int
    process: psutil.Process

    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


def service(pool_size: int = POOL_SIZE) -> Subject:
    """The service as it is deployed: it checks tokens, and each request has an id and a log line."""
    expected = {"AUTH_JWT_SECRET": SECRET, "AUTH_ISSUER": "unchecked", "AUTH_AUDIENCE": "unchecked"}
    return Subject(
        "Tasks API",
        [sys.executable, "-m", "app"],
        {"PYTHONPATH": "backend", "DATABASE_POOL_SIZE": str(pool_size), **expected},
    )


def baselines() -> Iterator[Subject]:
    """The baselines. Fastify is measured twice: as delivered, and with token check and access log like the service."""
    yield Subject("common idiom", _uvicorn("benchmarks.idiom:app"), {})
    yield Subject("FastAPI's hello world", _uvicorn("benchmarks.hello:app"), {}, {"get": "root"})
    if (FASTIFY / "node_modules/.package-lock.json").exists():
        node = ["node", str(FASTIFY / "server.mjs")]
        yield Subject("Fastify", node, {})
        yield Subject("Fastify, tokens and log", node, {"JWT_SECRET": SECRET})


@contextmanager
def running(subject: Subject, directory: Path, **environment: str) -> Iterator[Running]:
    """Start the subject, yield it once it answers, and stop it at the end. Its output goes to a log file."""
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
    """Returns the environment of a subject: its own variables, `others`, and a few of the current process."""
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
    """Returns whether the subject answers, be it with 404 because it has no such route.

    `http.client` is used because start-up time is measured too, and other clients take longer to set up.
    """
    with suppress(OSError, HTTPException), closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("GET", "/health/live")
        return connection.getresponse().status < HTTPStatus.INTERNAL_SERVER_ERROR
    return False

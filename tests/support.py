"""Helpers of several test modules."""

import asyncio
import logging
import os
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from inspect import isawaitable
from time import time
from typing import Any, Final, NoReturn, TypeVar

import asyncpg
import httpx
import jwt
import pytest
import uvicorn
from alembic.script import ScriptDirectory
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import make_url
from starlette.types import ASGIApp

from app.core.config import Settings
from app.core.database.migrations import alembic_config
from app.http.middleware import RequestMiddleware
from app.main import create_app
from app.server.protocol import SERVER_OPTIONS

Handler = TypeVar("Handler", bound=logging.Handler)

# The newest revision of the database.
REVISION: Final = str(ScriptDirectory.from_config(alembic_config()).get_current_head())
# The secret that signs tokens, another one in each run.
SECRET: Final = secrets.token_hex(32)


def token(user: str, **claims: object) -> str:
    """Returns a token of `user` for a service with SECRET. It expires in an hour unless `claims` has an `exp`."""
    return jwt.encode({"sub": user, "exp": time() + 3_600, **claims}, SECRET, "HS256")


def bearer(user: str, **claims: object) -> dict[str, str]:
    """The header that carries such a token."""
    return {"Authorization": f"Bearer {token(user, **claims)}"}


def outermost(app: ASGIApp, api: FastAPI | None = None) -> RequestMiddleware:
    """The middleware of a service around an application, without a database."""
    settings = make_settings("postgresql://localhost/none", auth_jwt_secret=SECRET)
    return RequestMiddleware(app, api or FastAPI(), settings, cors={})


def make_settings(dsn: str, **others: Any) -> Settings:
    """Settings that depend on no environment and no .env file."""
    return Settings(_env_file=None, database_url=SecretStr(dsn), **others)


@asynccontextmanager
async def serving(
    settings: Settings, extend: Callable[[FastAPI], object] = lambda _: None, *, port: int = 0
) -> AsyncIterator[str]:
    """Yields the address of a service that runs in this process, with a real HTTP server. `extend` adds to it."""
    app = create_app(settings, bounded=True)
    extend(app)
    server = _server(app, port)
    running = asyncio.create_task(server.serve())
    while not server.started:
        assert not running.done(), running
        await asyncio.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await running


@contextmanager
def serving_in_thread(settings: Settings) -> Iterator[str]:
    """Yields the address of a service in a thread. Hypothesis runs its state machines without an event loop."""
    server = _server(create_app(settings, bounded=True))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


def _server(app: FastAPI, port: int = 0) -> uvicorn.Server:
    """It ends although a failed test has left an incomplete request."""
    timeouts: dict[str, Any] = {"timeout_keep_alive": 75, "timeout_graceful_shutdown": 10}
    return uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, **timeouts, **SERVER_OPTIONS))


async def until(condition: Callable[[], object]) -> None:
    """Poll `condition`, a function or a coroutine function, until its result is true. There is no event to wait for."""
    async with asyncio.timeout(30):
        while not (await result if isawaitable(result := condition()) else result):  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.01)


@contextmanager
def handling(handler: Handler, caplog: pytest.LogCaptureFixture) -> Iterator[Handler]:
    """Pass all log records to `handler`, except those of the HTTP client."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.WARNING, "httpx")
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


async def exchange(url: httpx.URL, request: bytes) -> tuple[int, bytes, bytes]:
    """Send bytes that httpx would refuse or correct. Returns the status, the head in lower case, and the body."""
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(request)
    async with asyncio.timeout(30):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), head.lower(), body


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Yields a direct connection to the database. It has no timeouts, because the machine may be busy."""
    connection = await asyncpg.connect(dsn, server_settings={"statement_timeout": "0", "lock_timeout": "0"})
    try:
        yield connection
    finally:
        await connection.close()


def execute(dsn: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Run a statement on a new connection to the database."""

    async def run() -> list[tuple[Any, ...]]:
        async with connected(dsn) as connection:
            return [tuple(record) for record in await connection.fetch(sql, *values)]

    return asyncio.run(run())


# The template of a database in this encoding.
LATIN1: Final = "template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'"


@contextmanager
def new_database(dsn: str, name: str, template: str = "template1") -> Iterator[str]:
    """Yields the connection string of a copy of a database on the server of `dsn`. It is dropped at the end.

    The server ends no statement there early, because the machine may be busy.
    """
    execute(dsn, f"CREATE DATABASE {name} TEMPLATE {template}")
    for timeout in ("statement_timeout", "lock_timeout"):
        execute(dsn, f"ALTER DATABASE {name} SET {timeout} = '1h'")
    yield make_url(dsn).set(database=name).render_as_string(hide_password=False)
    execute(dsn, f"DROP DATABASE {name} WITH (FORCE)")


def full_pipe() -> tuple[int, int]:
    """Returns the reading and the writing end of a pipe in which there is no room left."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"\n")
    os.set_blocking(writer, True)
    return reader, writer


def unresolved(*_: object, **__: object) -> NoReturn:
    """In the place of `socket.getaddrinfo`, for a name that nobody knows."""
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def pointers(refusal: httpx.Response) -> list[str]:
    """The fields that a refusal names."""
    assert refusal.status_code == 422, refusal.text
    assert refusal.headers["Content-Type"] == "application/problem+json"
    return [error["pointer"] for error in refusal.json()["errors"]]


def short(value: object) -> str:
    """The id of a test case in the output."""
    return ascii(value)[:24]

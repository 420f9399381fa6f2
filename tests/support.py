"""What tests of more than one module do."""

import asyncio
import logging
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from inspect import isawaitable
from time import time
from typing import Any, Final, TypeVar

import asyncpg
import httpx
import jwt
import pytest
import uvicorn
from pydantic import SecretStr
from sqlalchemy import make_url

from app.core.config import Settings
from app.main import create_app
from app.server.protocol import SERVER_OPTIONS

Handler = TypeVar("Handler", bound=logging.Handler)

# A secret that tokens are signed with, and no other run has.
SECRET: Final = secrets.token_hex(32)


def token(user: str, **claims: object) -> str:
    """Proves to a service with SECRET to be `user`, for 15 minutes unless `claims` say otherwise."""
    return jwt.encode({"sub": user, "exp": time() + 900, **claims}, SECRET, "HS256")


def bearer(user: str, **claims: object) -> dict[str, str]:
    """The header that carries such a token."""
    return {"Authorization": f"Bearer {token(user, **claims)}"}


def make_settings(dsn: str, **others: Any) -> Settings:
    """Settings that depend on no environment and no .env file."""
    return Settings(_env_file=None, database_url=SecretStr(dsn), **others)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """Yields the address of a service of its own, with a real server in front, in this process."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_config=None, **SERVER_OPTIONS))
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
    """Yields the address of a service in a thread: Hypothesis runs its machines without an event loop."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_config=None, **SERVER_OPTIONS))
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


async def until(condition: Callable[[], object]) -> None:
    """Return when `condition`, a function or a coroutine function, gives something true, as no event tells."""
    async with asyncio.timeout(30):
        while not (await result if isawaitable(result := condition()) else result):  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.01)


@contextmanager
def handling(handler: Handler, caplog: pytest.LogCaptureFixture) -> Iterator[Handler]:
    """Have `handler` get all that is logged, but by the client that asks."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.WARNING, "httpx")
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


async def exchange(url: httpx.URL, request: bytes) -> tuple[int, bytes, bytes]:
    """Send bytes as they are: httpx would refuse or mend them. Returns status, head in lower case, and body."""
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(request)
    async with asyncio.timeout(10):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), head.lower(), body


def execute(dsn: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Run a statement past the service, on a connection of its own."""

    async def run() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(dsn)
        try:
            return [tuple(record) for record in await connection.fetch(sql, *values)]
        finally:
            await connection.close()

    return asyncio.run(run())


@contextmanager
def new_database(dsn: str, name: str) -> Iterator[str]:
    """Yields the connection string of an empty database beside that of `dsn`, which is dropped at the end."""
    execute(dsn, f"CREATE DATABASE {name}")
    yield make_url(dsn).set(database=name).render_as_string(hide_password=False)
    execute(dsn, f"DROP DATABASE {name} WITH (FORCE)")


def pointers(refusal: httpx.Response) -> list[str]:
    """The fields that a refusal names."""
    assert refusal.status_code == 422, refusal.text
    assert refusal.headers["Content-Type"] == "application/problem+json"
    return [error["pointer"] for error in refusal.json()["errors"]]


def short(value: object) -> str:
    """The name of a case in the output."""
    return ascii(value)[:24]

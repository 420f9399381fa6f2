"""What tests of more than one module do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import uvicorn
from pydantic import SecretStr

from app.core.config import Settings
from app.main import create_app


def make_settings(dsn: str, **others: Any) -> Settings:
    """Settings that depend on no environment and no .env file."""
    return Settings(_env_file=None, database_url=SecretStr(dsn), **others)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """Yields the address of a service of its own, with a real server in front, in this process."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_config=None, access_log=False))
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


def pointers(refusal: httpx.Response) -> list[str]:
    """The fields that a refusal names."""
    assert refusal.status_code == 422, refusal.text
    assert refusal.headers["Content-Type"] == "application/problem+json"
    return [error["pointer"] for error in refusal.json()["errors"]]


def short(value: object) -> str:
    """The name of a case in the output."""
    return ascii(value)[:24]

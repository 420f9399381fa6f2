"""Connections that are open when the service shuts down."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from sqlalchemy import make_url

from app.core.config import Settings
from tests.support import make_settings, serving, until

OWN: Final = "FROM pg_stat_activity WHERE application_name = 'shutdown'"
BEGINNING, REST = b"GET /health/live HTTP/1.1\r\nHost: loc", b"alhost\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]


@asynccontextmanager
async def ending(settings: Settings) -> AsyncIterator[tuple[Connect, Callable[[], Awaitable[None]]]]:
    """Yields a function that connects, and one that shuts down and returns once connections are refused."""
    service = serving(settings)
    host, _, port = (await service.__aenter__()).removeprefix("http://").partition(":")
    tasks: list[asyncio.Task[object]] = []

    async def connect() -> Streams:
        return await asyncio.open_connection(host, int(port))

    async def is_refused() -> bool:
        try:
            _, writer = await connect()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # the port was closed before it was accepted
            return False
        writer.close()
        return False

    async def end() -> None:
        tasks.append(asyncio.create_task(service.__aexit__(None, None, None)))
        await until(is_refused)

    try:
        yield connect, end
    finally:
        await asyncio.wait(tasks or [asyncio.create_task(service.__aexit__(None, None, None))])


async def answer(streams: Streams) -> bytes:
    """Returns the reply, in lower case, once the service has closed the connection."""
    reply = await streams[0].read()
    streams[1].close()
    return reply.lower()


async def test_a_partially_received_request_is_served_and_its_connection_closed(settings: Settings) -> None:
    async with ending(settings) as (connect, end):
        streams = await connect()
        streams[1].write(BEGINNING)
        await end()
        streams[1].write(REST)

        reply = await answer(streams)

    assert reply.startswith(b"http/1.1 200 ok")
    assert b"connection: close" in reply


async def test_a_request_begun_on_an_idle_connection_is_served_after_idle_connections_are_closed(
    settings: Settings,
) -> None:
    async def is_served() -> bool:
        async with ending(settings) as (connect, end):
            idle, begun = await connect(), await connect()
            begun[1].write(BEGINNING + REST)
            await begun[0].readuntil(b'{"status":"live"')
            await end()
            begun[1].write(BEGINNING)
            assert await answer(idle) == b""
            begun[1].write(REST)
            return b"connection: close" in await answer(begun)

    await until(is_served)  # on a busy machine, the beginning may be sent too late


async def test_the_connections_to_the_database_are_closed(dsn: str, database: asyncpg.Connection) -> None:
    named = make_url(dsn).update_query_dict({"application_name": "shutdown"})
    async with serving(make_settings(named.render_as_string(hide_password=False))):
        assert await database.fetchval(f"SELECT count(*) {OWN}") == 1
    try:
        await until(lambda: database.fetchval(f"SELECT count(*) = 0 {OWN}"))
    finally:
        await database.execute(f"SELECT pg_terminate_backend(pid) {OWN}")  # an open one would keep the event loop open

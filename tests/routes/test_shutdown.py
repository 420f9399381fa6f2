"""Connections that are open when the service is told to end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from app.core.config import Settings
from tests.support import serving, until

BEGINNING, REST = b"GET /health/live HTTP/1.1\r\nHost: loc", b"alhost\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]


@asynccontextmanager
async def ending(settings: Settings) -> AsyncIterator[tuple[Connect, Callable[[], Awaitable[None]]]]:
    """Yields what makes a connection, and what returns when the service has been told to end."""
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
    """Returns the reply, in lower case, at the end of its connection."""
    async with asyncio.timeout(10):
        reply = await streams[0].read()
    streams[1].close()
    return reply.lower()


async def test_a_request_that_has_begun_to_arrive_is_served_and_its_connection_closed(settings: Settings) -> None:
    async with ending(settings) as (connect, end):
        streams = await connect()
        streams[1].write(BEGINNING)
        await end()
        streams[1].write(REST)

        reply = await answer(streams)

    assert reply.startswith(b"http/1.1 200 ok")
    assert b"connection: close" in reply


async def test_so_is_one_that_begins_on_an_idle_connection_and_takes_longer_than_the_last_call(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr("app.server.protocol.LINGER", 0.05)
    async with ending(settings) as (connect, end):
        reader, writer = await connect()
        writer.write(BEGINNING + REST)
        await reader.readuntil(b'{"status":"live"}')
        await end()
        writer.write(BEGINNING)
        await asyncio.sleep(0.2)  # until the last call is over
        writer.write(REST)

        reply = await answer((reader, writer))

    assert b"connection: close" in reply


async def test_an_idle_connection_is_closed(settings: Settings) -> None:
    async with ending(settings) as (connect, end):
        streams = await connect()
        await end()

        assert await answer(streams) == b""

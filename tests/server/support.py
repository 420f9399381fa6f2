"""A connection for bytes that no HTTP client sends."""

import asyncio
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple, SupportsIndex

import asyncpg
import httpx

from tests.support import until

LIVE: Final = b"/health/live"
TASKS: Final = b"/api/ada/tasks"
HOST: Final = b"Host: localhost\r\n"
CLOSE: Final = b"Connection: close\r\n"
JSON: Final = b"Content-Type: application/json\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"


class Recorder(asyncio.StreamReader):
    """Keeps the bytes that arrived before a reset. After a reset, StreamReader only raises an error."""

    def __init__(self) -> None:
        super().__init__()
        self.content = bytearray()

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self.content += bytes(data)
        super().feed_data(data)


class Connection(NamedTuple):
    """A connection that stays open until the service closes it."""

    reader: Recorder
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, url: str) -> "Connection":
        loop, address, reader = asyncio.get_running_loop(), httpx.URL(url), Recorder()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, address.host, address.port or 80)
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def send(self, *pieces: bytes) -> None:
        """Send until the service closes the connection."""
        with suppress(ConnectionError, RuntimeError):  # uvloop raises RuntimeError once closed
            for piece in pieces:
                self.writer.write(piece)
                await self.writer.drain()

    async def ask(self, request: bytes) -> httpx.Response:
        """Returns the reply, which has a Content-Length."""
        await self.send(request)
        async with asyncio.timeout(20):
            start = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)", start.lower())
            assert length
            [reply] = _parse(start + await self.reader.readexactly(int(length[1])))
        self.reader.content.clear()
        return reply

    async def end(self) -> list[httpx.Response]:
        """Returns the replies until the service closes the connection."""
        async with asyncio.timeout(20):
            with suppress(ConnectionError):  # the service did not read the rest
                while await self.reader.read(1_048_576):
                    pass
        self.writer.close()
        return _parse(bytes(self.reader.content))


def _parse(content: bytes) -> list[httpx.Response]:
    """Returns every reply. Fails if a reply is truncated or followed by other bytes."""
    replies = []
    while content:
        start, end, content = content.partition(b"\r\n\r\n")
        assert end, start
        line, *fields = start.decode("ascii").split("\r\n")
        assert re.fullmatch(r"HTTP/1\.1 [1-5]\d\d [A-Za-z ]+", line)
        headers = httpx.Headers([(name, value) for name, _, value in (field.partition(": ") for field in fields)])
        size = int(headers.get("Content-Length", "0"))
        assert len(content) >= size
        replies.append(httpx.Response(int(line.split()[1]), headers=headers, content=content[:size]))
        content = content[size:]
    return replies


async def converse(url: str, *pieces: bytes) -> list[httpx.Response]:
    """Send bytes as they are until the service closes the connection. Returns its replies."""
    connection = await Connection.open(url)
    sending = asyncio.create_task(connection.send(*pieces))
    replies = await connection.end()
    await sending
    return replies


def head(method: bytes, target: bytes, *fields: bytes) -> bytes:
    return b"%s %s HTTP/1.1\r\n%s%s\r\n" % (method, target, HOST, b"".join(fields))


def post(*fields: bytes, path: bytes = TASKS) -> bytes:
    """The head of a request with a JSON body."""
    return head(b"POST", path, JSON, *fields)


def assert_refusal(reply: httpx.Response, status: int) -> None:
    """Check the status, headers and body of a refusal that ends the connection."""
    assert reply.status_code == status
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.json()["instance"] == reply.headers["X-Request-ID"]
    assert reply.headers["Connection"] == "close"


async def assert_alive(url: str) -> None:
    """Check that another client is still served."""
    [reply] = await converse(url, head(b"GET", LIVE, CLOSE))
    assert (reply.status_code, reply.content) == (200, b'{"status":"live"}')


async def waits_for_a_lock(database: asyncpg.Connection) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'tasks-api'"
    await until(lambda: database.fetchval(query))

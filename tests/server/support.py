"""A connection for bytes that no HTTP client sends."""

import asyncio
import re
import socket
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Final

import asyncpg
import httpx

from tests.support import until

LIVE: Final = b"/health/live"
TASKS: Final = b"/api/ada/tasks"
HOST: Final = b"Host: localhost\r\n"
CLOSE: Final = b"Connection: close\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"


class Connection:
    """A connection that stays open until the service or the test closes it."""

    def __init__(self, url: str) -> None:
        address = httpx.URL(url)
        self.socket = socket.create_connection((address.host, address.port))
        self.socket.setblocking(False)  # noqa: FBT003  # it takes no keyword

    async def send(self, *pieces: bytes) -> None:
        with suppress(ConnectionError):  # the service has closed the connection
            for piece in pieces:
                await asyncio.get_running_loop().sock_sendall(self.socket, piece)

    async def ask(self, request: bytes) -> httpx.Response:
        """Send a request on a connection that stays open. Returns the reply."""
        await self.send(request)
        content, replies = b"", list[httpx.Response]()
        async with asyncio.timeout(20):
            while not replies:
                content += await self._receive()
                replies, rest = _parse(content)
        assert (len(replies), rest) == (1, b"")
        return replies[0]

    async def end(self, *sending: asyncio.Task[None]) -> list[httpx.Response]:
        """Returns the replies until the service closes the connection. The last one has to be complete."""
        content = bytearray()
        with self.socket:
            async with asyncio.timeout(20):
                with suppress(ConnectionError):  # the service did not read the rest
                    while data := await self._receive():
                        content += data
                await asyncio.gather(*sending)  # which fails now
        replies, rest = _parse(bytes(content))
        assert rest == b""
        return replies

    async def _receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, 65_536)


def _parse(content: bytes) -> tuple[list[httpx.Response], bytes]:
    """Returns the complete replies, and the rest."""
    replies = []
    while b"\r\n\r\n" in content:
        start, _, rest = content.partition(b"\r\n\r\n")
        line, *fields = start.decode("ascii").split("\r\n")
        assert re.fullmatch(r"HTTP/1\.1 [1-5]\d\d [A-Za-z ]+", line)
        headers = dict(field.split(": ", 1) for field in fields)
        size = int(httpx.Headers(headers).get("Content-Length", "0"))
        if len(rest) < size:
            break
        replies.append(httpx.Response(int(line.split()[1]), headers=headers, content=rest[:size]))
        content = rest[size:]
    return replies, content


async def converse(url: str, *pieces: bytes) -> list[httpx.Response]:
    """Send bytes as they are until the service closes the connection. Returns its replies."""
    connection = Connection(url)
    return await connection.end(asyncio.create_task(connection.send(*pieces)))


def head(method: bytes, target: bytes, *fields: bytes) -> bytes:
    return b"%s %s HTTP/1.1\r\n%s%s\r\n" % (method, target, HOST, b"".join(fields))


def post(*fields: bytes, path: bytes = TASKS) -> bytes:
    """The head of a request with a JSON body."""
    return head(b"POST", path, b"Content-Type: application/json\r\n", *fields)


def assert_refusal(reply: httpx.Response, status: int) -> None:
    """Check the status, headers and body of a refusal that ends the connection."""
    assert reply.status_code == status
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.json()["instance"] == reply.headers["X-Request-ID"]
    assert reply.headers["Connection"] == "close"
    assert parsedate_to_datetime(reply.headers["Date"])  # RFC 9110 section 6.6.1


async def waits_for_a_lock(database: asyncpg.Connection) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'tasks-api'"
    await until(lambda: database.fetchval(query))

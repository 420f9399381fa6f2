"""An issuer on a loopback address, which publishes keys and answers in any way that a test chooses."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Self

from tests.support import until

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def raw(content: bytes) -> Answer:
    """Answers with exactly these bytes."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()

    return answer


def reply(body: bytes, status: str = "200 OK", **headers: str) -> Answer:
    """Answers with this body, status and headers. A header's name has underscores for hyphens."""
    fields = {"content_length": str(len(body)), "content_type": "application/json", "connection": "close", **headers}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items()]
    return raw(f"HTTP/1.1 {status}\r\n{''.join(lines)}\r\n".encode() + body)


def key_set(*members: object) -> Answer:
    """Answers with a key set that has these members."""
    return reply(json.dumps({"keys": members}).encode())


async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Never answers, and ends when the client closes the connection."""
    await reader.read()


class Held:
    """Delays its answers until `release` is called. `waiting` is the number of requests."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._released = asyncio.Event()
        self.waiting = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.waiting += 1
        await self._released.wait()
        await self._answer(reader, writer)

    def release(self) -> None:
        self._released.set()


class Issuer:
    """A server that gives `answer` to every request. It keeps the head of each request."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[str] = []
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/.well-known/jwks.json"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        await until(lambda: self.connections == 0)

    def stop(self) -> None:
        """Refuse new connections."""
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            await self.answer(reader, writer)
        except (OSError, EOFError):
            pass  # the client closed the connection
        finally:
            writer.close()
            self.connections -= 1

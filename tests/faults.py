"""A proxy between the service and its database that can imitate faults of a network."""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from sqlalchemy import make_url

_CHUNK: Final = 65_536
_RST: Final = struct.pack("ii", 1, 0)  # as SO_LINGER: close() sends RST


class _Link:
    """One connection: the client's end and, once it is open, the server's."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.ends = [client]
        self.task = asyncio.current_task()
        self.answer_is_cut = False

    def close(self) -> None:
        for end in self.ends:
            end.close()

    def reset(self) -> None:
        for end in self.ends:
            with suppress(OSError):  # already closed
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
            end.transport.abort()


class FaultProxy:
    """Forwards connections to the database of `dsn`. It runs in a thread of its own, and any thread may control it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn  # once the proxy runs: the same database through the proxy
        self.accepted = 0  # number of connections so far
        self.messages = 0  # number of messages from clients so far; those that are sent together count as one
        self.cut_off = 0  # number of statements so far whose answer was withheld
        self.delay = 0.0  # seconds before a new connection is forwarded: a cold start
        self.refuses = False  # whether new connections are reset at once
        self.latency = 0.0  # seconds by which each message is delayed
        self._database = make_url(dsn)
        self._cuts = 0
        self._links: set[_Link] = set()
        self._lost: list[_Link] = []

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._links)

    def hold(self) -> None:
        """Drop all packets and notify neither end, as a firewall does. Connections continue after `heal`."""
        self._call(self._passable.clear)

    def lose(self) -> None:
        """Like `hold`, but the present connections never continue. New ones work after `heal`."""
        self._call(self._passable.clear)
        self._call(self._forget)

    def heal(self) -> None:
        """End `hold` or `lose`."""
        self._call(self._passable.set)
        self._call(self._end_lost)

    def close(self) -> None:
        """Close every connection, as some databases do with idle ones."""
        self._call(lambda: self._end(_Link.close))

    def reset(self) -> None:
        """Send RST to both ends of every connection."""
        self._call(lambda: self._end(_Link.reset))

    def cut(self, statements: int) -> None:
        """Forward the next statements, but reset their connections when the server answers."""
        self._cuts = statements

    def run(self, started: threading.Event) -> None:
        asyncio.run(self._serve(started))

    def stop(self) -> None:
        self._call(self._stopping.set)

    def _call(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._passable = asyncio.Event()
        self._passable.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        query = {name: value for name, value in self._database.query.items() if name not in {"host", "port"}}
        here = self._database.set(host="127.0.0.1", port=server.sockets[0].getsockname()[1], query=query)
        self.dsn = here.render_as_string(hide_password=False)
        started.set()
        await self._stopping.wait()
        # asyncio loses track of a connection that it accepts at the moment of close().
        self._loop.remove_reader(server.sockets[0].fileno())
        await asyncio.sleep(0.02)
        server.close()
        for link in (*self._links, *self._lost):
            link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(writer)
        self._links.add(link)
        with suppress(asyncio.CancelledError):  # lost
            await self._forward(link, reader)
        self._links.discard(link)

    async def _forward(self, link: _Link, reader: asyncio.StreamReader) -> None:
        await asyncio.sleep(self.delay)
        await self._passable.wait()
        try:
            if self.refuses:
                raise ConnectionResetError
            server_reader, server_writer = await self._connect()
        except OSError:
            link.reset()
            return
        link.ends.append(server_writer)
        await asyncio.gather(
            self._pump(link, reader, server_writer), self._pump(link, server_reader, link.ends[0], answers=True)
        )

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host = str(self._database.query.get("host") or self._database.host)
        port = int(str(self._database.query.get("port") or self._database.port or 5432))
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                self.messages += not answers
                await asyncio.sleep(self.latency)
                await self._passable.wait()
                if answers and link.answer_is_cut:
                    self.cut_off += 1
                    link.reset()
                    return
                if self._cuts and not answers and _executes(data):
                    self._cuts -= 1
                    link.answer_is_cut = True
                writer.write(data)
                await writer.drain()
        await self._passable.wait()
        link.close()

    def _end(self, how: Callable[[_Link], None]) -> None:
        for link in self._links:
            how(link)

    def _forget(self) -> None:
        self._lost += self._links
        for link in self._links:
            assert link.task
            link.task.cancel()

    def _end_lost(self) -> None:
        """Close lost connections at the server, as tcp_keepalives_idle does. Otherwise they would use up its limit."""
        for link in self._lost:
            for end in link.ends[1:]:
                end.transport.abort()


@contextmanager
def fault_proxy(dsn: str) -> Iterator[FaultProxy]:
    """Yields a proxy that forwards everything until a test changes it."""
    proxy = FaultProxy(dsn)
    started = threading.Event()
    thread = threading.Thread(target=proxy.run, args=[started])
    thread.start()
    started.wait()
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join()


def _executes(data: bytes) -> bool:
    """Whether these messages of PostgreSQL's protocol contain Execute or Query. Either one runs a statement."""
    while data:
        if data[:1] in {b"E", b"Q"}:
            return True
        data = data[1 + int.from_bytes(data[1:5]) :]
    return False

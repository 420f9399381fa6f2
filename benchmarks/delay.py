"""A TCP proxy in front of PostgreSQL that adds latency and does not limit bandwidth.

It runs in a process of its own, which uses the standard library only.
"""

import asyncio
import selectors
import socket
import sys
from collections import deque


class End(asyncio.Protocol):
    """One end of a connection. What it receives is written to `peer`, the other end, `delay` seconds later.

    Each chunk has its own timer, so the chunks of a burst wait at the same time. Each timer releases the oldest chunk,
    so the order is kept even where two timers are due at the same instant.
    """

    peer: asyncio.WriteTransport

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._held: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        """Hold `data`. An empty chunk stands for the end of the connection."""
        self._held.append(data)
        self._loop.call_later(self._delay, self._release)

    def connection_lost(self, _: Exception | None) -> None:
        self.data_received(b"")

    def _release(self) -> None:
        if data := self._held.popleft():
            self.peer.write(data)
        else:
            self.peer.close()


async def forward(listener: socket.socket, path: str, delay: float) -> None:
    """Connect each client of `listener` to the Unix socket at `path`. Runs until it is cancelled."""
    loop = asyncio.get_running_loop()
    listener.settimeout(0)
    while True:
        accepted, _ = await loop.sock_accept(listener)
        to_server, server = await loop.create_unix_connection(lambda: End(delay), path)
        to_client, client = await loop.connect_accepted_socket(lambda: End(delay), accepted)
        server.peer, client.peer = to_client, to_server


def main() -> None:
    """Serve until SIGTERM. Arguments: descriptor of the listening socket, path of PostgreSQL's socket, delay."""
    descriptor, path, delay = sys.argv[1:]
    # epoll and poll round a timeout up to a whole millisecond, which is as long as the delay; select does not.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(forward(socket.socket(fileno=int(descriptor)), path, float(delay)))


if __name__ == "__main__":
    main()

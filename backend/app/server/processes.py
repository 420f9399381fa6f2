"""The server, and the parent of several workers. Each process ends in time, even if another one is stuck."""

import logging
import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import wait
from socket import socket
from typing import Any, Final

import uvicorn
from uvicorn.supervisors import Multiprocess, multiprocess

from app.core.stopping import end_in_time, note_signals

CLOSING_TIME: Final = 2  # seconds of SHUTDOWN_TIMEOUT reserved for closing connections

_logger = logging.getLogger("app")


class Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals as uvicorn does, also those that were noted before. All of them are noted."""
        with super().capture_signals():
            note_signals()
            yield

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Shut down. Unlike uvicorn, end the application also after a second Ctrl+C, or it would log a traceback."""
        await super().shutdown(sockets)
        if self.force_exit:
            for task in self.server_state.tasks:
                task.cancel()
            await self.lifespan.shutdown()


class _Worker(multiprocess.Process):
    """uvicorn's worker, but it ends in time and with its parent, which does not block while a ping is unanswered."""

    _pinged_at: float | None = None  # the time of the unanswered ping

    def start(self) -> None:
        """Start without SIGINT. Ctrl+C reaches a worker too, and would end its imports with a traceback."""
        _mask_interrupt("SIG_BLOCK")
        try:
            super().start()
        finally:
            _mask_interrupt("SIG_UNBLOCK")

    def target(self, sockets: list[socket] | None = None) -> None:
        note_signals()
        _mask_interrupt("SIG_UNBLOCK")
        end_in_time((self.config.timeout_graceful_shutdown or 0) + CLOSING_TIME)
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        self._server = Server(self.config)
        super().target(sockets)

    def is_alive(self, timeout: float = 5) -> bool:
        """Returns whether the process runs and answers each ping within `timeout`."""
        if not self.process.is_alive():
            return False
        if self._pinged_at and self.parent_conn.poll():
            self.parent_conn.recv()
            self._pinged_at = None
        if not self._pinged_at:
            self._pinged_at = time.monotonic()
            self.parent_conn.send(b"ping")
        return time.monotonic() < self._pinged_at + timeout


multiprocess.Process = _Worker  # type: ignore[misc]  # uvicorn's supervisor has no parameter for it


class Workers(Multiprocess):
    """uvicorn's supervisor, but it closes the socket before it stops the workers, and kills those that are stuck.

    uvicorn keeps the socket open until the last worker has ended. The system would accept new connections in that time
    and reset them, because no worker serves them.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config, sockets=[config.bind_socket()])
        note_signals()

    def terminate_all(self) -> None:
        for sock in self.sockets:
            sock.close()
        super().terminate_all()

    def join_all(self) -> None:
        deadline = time.monotonic() + (self.config.timeout_graceful_shutdown or 0) + CLOSING_TIME / 2
        for worker in self.processes:
            worker.process.join(max(0, deadline - time.monotonic()))
            if worker.process.is_alive():
                _logger.error("worker [%d] does not end and is killed", worker.pid)
                worker.process.kill()
        super().join_all()

    def handle_hup(self) -> None:
        self.should_exit.set()  # stop, as with one worker


def _mask_interrupt(how: str) -> None:
    """Block or unblock SIGINT."""
    if hasattr(signal, "pthread_sigmask"):  # pragma: no branch  # Windows has no signal masks
        resource_tracker.ensure_running()  # its start unblocks the signal
        signal.pthread_sigmask(getattr(signal, how), {signal.SIGINT})


def _stop_with_parent() -> None:
    """Stop as on SIGTERM when the parent is killed. The worker would otherwise keep the port open."""
    parent: Any = parent_process()
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)

"""The server, and the parent of several workers. Each process ends in time, even if another one is stuck."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import wait
from socket import socket
from typing import Any, Final

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess, multiprocess

from app.core.errors import StartupError
from app.core.stopping import end_in_time, note_signals, requested
from app.server.listening import check_listening, refusal

CLOSING_TIME: Final = 2  # seconds of SHUTDOWN_TIMEOUT reserved for closing connections

_CHECK_INTERVAL: Final = 0.5  # seconds between two checks of a worker, as uvicorn has it
_READY: Final = "Ready. Open %s (Ctrl+C ends)"

_logger = logging.getLogger("app")


def serve(config: uvicorn.Config, sockets: list[socket], page: str) -> None:
    """Serve on bound sockets until a signal. `page` is the URL to open. Raises StartupError."""
    if config.workers > 1:
        Workers(config, sockets, page).run()
    else:
        Server(config, page).run(sockets)


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, page: str = "") -> None:
        super().__init__(config)
        self._page = page

    async def startup(self, sockets: list[socket] | None = None) -> None:
        try:
            await super().startup(sockets)
            check_listening(sockets or ())  # because uvloop hides that it cannot listen
        except OSError as error:
            await self.lifespan.shutdown()
            raise refusal(error, self.config.host, self.config.port) from None
        if self._page and not self.should_exit:
            _logger.info(_READY, self._page)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals as uvicorn does, also those that were noted before. All of them are noted."""
        with super().capture_signals():
            note_signals()
            yield

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Shut down. Unlike uvicorn, end the application also after a second Ctrl+C, or it would log a traceback."""
        if self.server_state.tasks:
            _logger.info("finishing the requests in progress (Ctrl+C aborts them)")
        await super().shutdown(sockets)
        if self.force_exit:
            for task in self.server_state.tasks:
                task.cancel()
            await self.lifespan.shutdown()


class _Worker(multiprocess.Process):
    """uvicorn's worker, but it ends in time, and when its parent ends. An unanswered ping does not block the parent."""

    serves = False  # has said so in its answer to a ping
    _checks = 0  # since the unanswered ping; seconds would also pass while the parent itself gets no CPU time

    def start(self) -> None:
        """Start without SIGINT. Ctrl+C reaches a worker too, and would end its first imports with a traceback."""
        _mask_interrupt("SIG_BLOCK")
        try:
            super().start()
        finally:
            _mask_interrupt("SIG_UNBLOCK")

    def target(self, sockets: list[socket] | None = None) -> None:
        _mask_interrupt("SIG_UNBLOCK")
        end_in_time((self.config.timeout_graceful_shutdown or 0) + CLOSING_TIME)
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        self._server = Server(self.config)
        try:
            self.config.load()  # imports the application; until then, a signal ends the worker at once
            note_signals()
            super().target(sockets)
        except StartupError as error:
            _logger.error(error)  # noqa: TRY400  # its sentence is enough
            sys.exit(STARTUP_FAILURE)

    def is_alive(self, timeout: float = 5) -> bool:
        """Returns whether the process runs, and once it serves, answers each ping within `timeout`. Logs if not.

        A worker that does not serve yet imports, which takes minutes if it has a small share of a CPU.
        """
        is_alive = self._answers(timeout)
        if not is_alive and self.exitcode != STARTUP_FAILURE:
            code = {"exit_code": self.exitcode}  # -9 after SIGKILL, as by the kernel if memory is short; None if stuck
            _logger.warning("worker [%d] has ended or is stuck, and is replaced", self.pid, extra=code)
        return is_alive

    def _answers(self, timeout: float) -> bool:
        if not self.process.is_alive():
            return False
        if self._checks and self.parent_conn.poll():
            self.serves = self.parent_conn.recv()
            self._checks = 0
        if not self._checks:
            self.parent_conn.send(b"ping")
        self._checks += 1
        return not self.serves or self._checks * _CHECK_INTERVAL <= timeout


multiprocess.Process = _Worker  # type: ignore[misc]  # uvicorn's supervisor has no parameter for it


class Workers(Multiprocess):
    """uvicorn's supervisor, but it closes the socket before it stops the workers, and kills those that are stuck.

    uvicorn keeps the socket open until the last worker has ended. The system would accept new connections in that time
    and reset them, because no worker serves them.
    """

    processes: list[_Worker]  # type: ignore[assignment]  # see above

    def __init__(self, config: uvicorn.Config, sockets: list[socket], page: str) -> None:
        super().__init__(config, sockets)
        self._page = page
        note_signals()

    def run(self) -> None:
        threading.Thread(target=self._wake_at_signal, daemon=True).start()
        super().run()
        if any(worker.exitcode == STARTUP_FAILURE for worker in self.processes):
            raise StartupError("The workers cannot start; the log has the reason.")

    def keep_subprocess_alive(self) -> None:
        super().keep_subprocess_alive()
        if self._page and any(worker.serves for worker in self.processes):
            _logger.info(_READY, self._page)
            self._page = ""

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

    def _wake_at_signal(self) -> None:
        """Wake the parent at once, because a signal to the whole process group has already stopped the workers."""
        requested.wait()
        self.should_exit.set()

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

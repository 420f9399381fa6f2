"""`python -m app`: start the embedded PostgreSQL if DATABASE_URL is unset, migrate, serve."""

import logging.config
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import uvicorn
from uvicorn.supervisors import Multiprocess

from app.core.config import Settings, load_settings
from app.core.database.migrations import migrate
from app.core.errors import StartupError
from app.core.logging import log_config
from app.server.embedded import embedded_postgres
from app.server.protocol import SERVER_OPTIONS

_CLOSING_TIME: Final = 2  # seconds of SHUTDOWN_TIMEOUT reserved for closing connections
_STARTING_TIME: Final = 30  # seconds until uvicorn replaces a worker that does not answer; a worker imports first

_logger = logging.getLogger("app")


def main() -> None:
    """Serve until SIGINT or SIGTERM. If the service cannot start, exit with one sentence on stderr."""
    logging.config.dictConfig(log_config())
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))  # the terminal was closed
    try:
        settings = load_settings()
        for warning in settings.warnings:
            _logger.warning(warning)
        with _database(settings):
            _serve(settings)
    except StartupError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:  # pragma: no cover  # Ctrl+C before uvicorn handles it
        sys.exit(130)


@contextmanager
def _database(settings: Settings) -> Iterator[None]:
    """Migrate the database. Without a configured database, run an embedded one and set DATABASE_URL for the workers."""
    if settings.migration_dsn:
        migrate(settings.migration_dsn)
        yield
    else:
        with embedded_postgres(settings.embedded_postgres_dir) as dsn:
            migrate(dsn)
            os.environ["DATABASE_URL"] = dsn
            yield


def _serve(settings: Settings) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    _logger.info("docs will be at http://%s:%d/docs", host, settings.port)
    config = uvicorn.Config(
        "app.main:create_bounded_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.web_concurrency,
        log_config=log_config(),
        timeout_worker_healthcheck=_STARTING_TIME,
        timeout_graceful_shutdown=settings.shutdown_timeout - _CLOSING_TIME,
        **SERVER_OPTIONS,
    )
    if config.workers > 1:
        _Workers(config, sockets=[config.bind_socket()]).run()
    else:
        server = uvicorn.Server(config)
        server.run()
        if not server.started:  # pragma: no cover  # the application failed to start; uvicorn has logged why
            sys.exit(1)


class _Workers(Multiprocess):
    """uvicorn's supervisor, but it closes the socket before it stops the workers.

    uvicorn keeps the socket open until the last worker has ended. The system would accept new connections in that time
    and reset them, because no worker serves them.
    """

    def terminate_all(self) -> None:
        for sock in self.sockets:
            sock.close()
        super().terminate_all()

    def handle_hup(self) -> None:
        self.should_exit.set()  # stop, as with one worker


def _exit(_signal: int, _frame: FrameType | None) -> None:
    """Exit on SIGTERM through the stack, so that the embedded PostgreSQL is stopped."""
    sys.exit(0)


if __name__ == "__main__":  # pragma: no branch  # it is never imported
    main()

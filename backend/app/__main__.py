"""`python -m app`: start the embedded PostgreSQL if DATABASE_URL is unset, migrate, serve."""

import os
import sys

for _number, _name in enumerate(("stdin", "stdout", "stderr")):
    if getattr(sys, _name) is None:  # It is closed. A socket would get its number, and log lines would go there.
        setattr(sys, _name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if _number else "r"))
        os.set_inheritable(_number, True)  # noqa: FBT003  # it takes no keyword

from app.core.stopping import Stopped, check, end_in_time, note_signals

note_signals()  # before the other imports, which Ctrl+C would end with a traceback

import logging.config
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from app.core.config import Settings, load_settings
from app.core.database.migrations import migrate
from app.core.errors import StartupError
from app.core.logging import log_config
from app.server.embedded import embedded_postgres
from app.server.processes import CLOSING_TIME, Server, Workers
from app.server.protocol import SERVER_OPTIONS

_INTERRUPTED: Final = 130  # the exit code after Ctrl+C
_STARTING_TIME: Final = 30  # seconds until uvicorn replaces a worker that does not answer; a worker imports first

_logger = logging.getLogger("app")


def main() -> None:
    """Serve until a signal. If the service cannot start, exit with one sentence on stderr."""
    logging.config.dictConfig(log_config())
    try:
        settings = load_settings()
        end_in_time(settings.shutdown_timeout)
        for warning in settings.warnings:
            _logger.warning(warning)
        with _database(settings):
            check()
            _serve(settings)
        check()
    except StartupError as error:
        sys.exit(str(error))
    except Stopped as stopped:
        sys.exit(_INTERRUPTED if stopped.code == _INTERRUPTED else 0)


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
        timeout_graceful_shutdown=settings.shutdown_timeout - CLOSING_TIME,
        **SERVER_OPTIONS,
    )
    if config.workers > 1:
        Workers(config).run()
    else:
        Server(config).run()


if __name__ == "__main__":  # pragma: no branch  # it is never imported
    main()

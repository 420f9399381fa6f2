"""`python -m app`: start the embedded PostgreSQL if DATABASE_URL is unset, migrate, serve."""

import os
import sys

for _number, _name in enumerate(("stdin", "stdout", "stderr")):
    if getattr(sys, _name) is None:  # It is closed. A socket would get its number, and log lines would go there.
        setattr(sys, _name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if _number else "r"))
        os.set_inheritable(_number, True)  # noqa: FBT003  # it takes no keyword

from app.core.stopping import Stopped, cause, check, end_in_time, exit_at_signals, ignore_signals, note_signals

exit_at_signals()  # Ctrl+C would end the other imports with a traceback, and a container would ignore SIGTERM

try:
    from opentelemetry import propagate  # noqa: F401  # FastAPI imports it, and it reads the variable
except ValueError as error:
    sys.exit(f"OTEL_PROPAGATORS: {error}")

import logging.config
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from app.core.config import Settings, load_settings
from app.core.database.migrations import migrate
from app.core.errors import StartupError
from app.core.logging import log_config
from app.server.command import log_summary, read_arguments
from app.server.embedded import embedded_postgres
from app.server.listening import bind, page, raise_file_limit
from app.server.processes import CLOSING_TIME, serve
from app.server.protocol import SERVER_OPTIONS

_LOADING_TIME: Final = 3  # seconds from a signal to the exit while the settings are read, which may ask DNS

_logger = logging.getLogger("app")


def main() -> None:
    """Serve until a signal. If the service cannot start, exit with one sentence on stderr."""
    note_signals()
    read_arguments(sys.argv[1:])
    end_in_time(_LOADING_TIME)
    try:
        settings = load_settings()  # its warnings go to stderr, like its errors: the format of the log is not yet known
        logging.config.dictConfig(log_config(settings.log_level, settings.log_format))
        end_in_time(settings.shutdown_timeout)
        raise_file_limit()
        sockets = bind(settings.host, settings.port)
        log_summary(settings)
        for warning in settings.warnings:
            _logger.warning(warning)
        with _database(settings):
            check()
            serve(_config(settings), sockets, page(settings.host, sockets, settings.root_path))
    except StartupError as error:
        sys.exit(str(error))
    except Stopped:
        pass
    ignore_signals()
    _logger.info("Stopped by %s.", cause())


@contextmanager
def _database(settings: Settings) -> Iterator[None]:
    """Migrate the database. Without a configured database, run an embedded one and set DATABASE_URL for the workers."""
    if settings.migration_dsn:
        migrate(settings.migration_dsn)
        yield
    else:
        with embedded_postgres(settings.embedded_postgres_path) as dsn:
            migrate(dsn)
            os.environ["DATABASE_URL"] = dsn
            yield


def _config(settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        "app.main:create_bounded_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.web_concurrency,
        log_config=log_config(settings.log_level, settings.log_format),
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=settings.shutdown_timeout - CLOSING_TIME,
        **SERVER_OPTIONS,
    )


if __name__ == "__main__":  # pragma: no branch  # it is never imported
    main()

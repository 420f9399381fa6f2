"""Logs: one JSON object a line on stdout, or plain lines when stdout is a terminal."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from time import time
from typing import Any, Final, TextIO

import orjson

# What every record has; anything else was given as `extra`. `color_message` is uvicorn's message with colours.
_OF_RECORDS: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}
_OF_REQUESTS: Final = ("request_id", "method", "route", "status", "duration_ms")
_MESSAGE: Final = "%s %s %s in %.1f ms"

_requests = logging.getLogger("app.requests")

RequestLog = Callable[[str, str, str | None, int | None, float], None]


class JsonFormatter(logging.Formatter):
    """Writes level, logger, message, time and what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        line |= {name: value for name, value in vars(record).items() if name not in _OF_RECORDS}
        line["time"] = _time(record.created)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # lone surrogates, long integers, keys that are no text: orjson refuses them
            return json.dumps(line, default=str, skipkeys=True)


def request_log() -> RequestLog:
    """Returns what logs a request, by its id, method, route, status, and duration in milliseconds.

    Where one stream of JSON lines is all that would get it, it writes there: the way through `logging` is a tenth of a
    GET. What is added to the loggers later than this gets nothing then.
    """
    match [*_handlers_of(_requests)]:
        case [logging.StreamHandler(formatter=JsonFormatter(), level=logging.NOTSET, filters=[]) as only]:
            return partial(_write_request, only.stream)
    return _log_request


def _handlers_of(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    while logger:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _log_request(request_id: str, method: str, route: str | None, status: int | None, duration_ms: float) -> None:
    extra = dict(zip(_OF_REQUESTS, (request_id, method, route, status, round(duration_ms, 3)), strict=True))
    _requests.info(_MESSAGE, method, route or "(no route)", status, duration_ms, extra=extra)


def _write_request(
    stream: TextIO, request_id: str, method: str, route: str | None, status: int | None, duration_ms: float
) -> None:
    if not _requests.isEnabledFor(logging.INFO):
        return
    line = {
        "level": "INFO",
        "logger": _requests.name,
        "message": _MESSAGE % (method, route or "(no route)", status, duration_ms),
        "request_id": request_id,
        "method": method,
        "route": route,
        "status": status,
        "duration_ms": round(duration_ms, 3),
        "time": _time(time()),
    }
    try:
        stream.write(orjson.dumps(line).decode() + "\n")
        stream.flush()
    except (OSError, ValueError):  # no space, or closed: `logging` knows how to tell
        _log_request(request_id, method, route, status, duration_ms)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def log_config() -> dict[str, Any]:
    """Returns the configuration for `logging.config.dictConfig`, picklable for uvicorn's workers."""
    chosen = "terminal" if sys.stdout.isatty() else "json"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {"()": JsonFormatter},
            "terminal": {"format": "%(asctime)s %(levelname)-7s %(message)s", "datefmt": "%H:%M:%S"},
        },
        "handlers": {
            "stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": chosen},
        },
        "loggers": {"httpx": {"level": "WARNING"}},  # it would name the URL of the keys and quote the reply
        "root": {"level": "INFO", "handlers": ["stdout"]},
    }

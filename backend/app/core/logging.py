"""Logs: one JSON object a line on stdout, or plain lines when stdout is a terminal."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from time import time
from typing import Any, Final

import orjson

# What every record has; anything else was given as `extra`. `color_message` is uvicorn's message with colours.
_OF_RECORDS: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}

_requests = logging.getLogger("app.requests")


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


def request_log() -> Callable[[dict[str, Any]], None]:
    """Returns what logs a request, given `request_id`, `method`, `route`, `status` and `duration_ms`.

    Where one stream of JSON lines is all that would get it, it writes there: the way through `logging` is a tenth of a
    GET. Handlers and formatters that are set later than this are not asked then.
    """
    handlers = [*_handlers_of(_requests)]
    kinds = [(type(handler), type(handler.formatter)) for handler in handlers]
    return partial(_write, handlers[0]) if kinds == [(logging.StreamHandler, JsonFormatter)] else _log


def _handlers_of(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    while logger:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _log(request: dict[str, Any]) -> None:
    _requests.info(_message(request), extra=request)


def _write(handler: Any, request: dict[str, Any]) -> None:
    if handler.level or handler.filters or _requests.filters:
        _log(request)
    elif _requests.isEnabledFor(logging.INFO):
        head = {"level": "INFO", "logger": _requests.name, "message": _message(request)}
        line = orjson.dumps({**head, **request, "time": _time(time())}).decode()
        try:
            handler.stream.write(line + "\n")
            handler.stream.flush()
        except (OSError, ValueError):  # no space, or closed
            handler.handleError(logging.makeLogRecord({"msg": line}))


def _message(request: dict[str, Any]) -> str:
    route = request["route"] or "(no route)"
    return f"{request['method']} {route} {request['status']} in {request['duration_ms']:.1f} ms"


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

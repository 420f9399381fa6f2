"""Logs to stdout: one JSON object per line, or plain text if stdout is a terminal."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from time import time
from typing import Any, Final

import orjson

# The attributes that are not `extra` fields. `color_message` is the message of uvicorn with terminal colours.
_RECORD_ATTRIBUTES: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}

_requests = logging.getLogger("app.requests")


class JsonFormatter(logging.Formatter):
    """Writes level, logger, message, time, the traceback and the `extra` fields as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        line |= {name: value for name, value in vars(record).items() if name not in _RECORD_ATTRIBUTES}
        line["time"] = _timestamp(record.created)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # orjson refuses lone surrogates, integers above 64 bits and keys that are not text
            return json.dumps(line, default=str, skipkeys=True)


def request_log() -> Callable[[dict[str, Any]], None]:
    """Returns a function that logs one request, given `request_id`, `method`, `route`, `status` and `duration_ms`.

    If the only handler is a stream handler with a JsonFormatter, the function writes to the stream directly, because
    a call through `logging` costs a tenth of a GET. Handlers and formatters that are set later are then ignored.
    """
    handlers = [*_handlers(_requests)]
    kinds = [(type(handler), type(handler.formatter)) for handler in handlers]
    return partial(_write, handlers[0]) if kinds == [(logging.StreamHandler, JsonFormatter)] else _log


def _handlers(logger: logging.Logger | None) -> Iterator[logging.Handler]:
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
        line = orjson.dumps({**head, **request, "time": _timestamp(time())}).decode()
        try:
            handler.stream.write(line + "\n")
            handler.stream.flush()
        except (OSError, ValueError):  # the disk is full, or the stream is closed
            handler.handleError(logging.makeLogRecord({"msg": line}))


def _message(request: dict[str, Any]) -> str:
    route = request["route"] or "(no route)"
    return f"{request['method']} {route} {request['status']} in {request['duration_ms']:.1f} ms"


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def log_config() -> dict[str, Any]:
    """Returns the configuration for `logging.config.dictConfig`, picklable for uvicorn's workers."""
    formatter = "terminal" if sys.stdout.isatty() else "json"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {"()": JsonFormatter},
            "terminal": {"format": "%(asctime)s %(levelname)-7s %(message)s", "datefmt": "%H:%M:%S"},
        },
        "handlers": {
            "stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": formatter},
        },
        "loggers": {"httpx": {"level": "WARNING"}},  # at INFO it logs the URL of the keys and quotes the reply
        "root": {"level": "INFO", "handlers": ["stdout"]},
    }

"""Logs: one JSON object a line on stdout, or plain lines when stdout is a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

import orjson

# What every record has; anything else was given as `extra`. `color_message` is uvicorn's message with colours.
_OF_RECORDS: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """Writes level, logger, message, time and what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        line |= {name: value for name, value in vars(record).items() if name not in _OF_RECORDS}
        line["time"] = datetime.fromtimestamp(record.created, UTC).isoformat()
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # lone surrogates, long integers, keys that are no text: orjson refuses them
            return json.dumps(line, default=str, skipkeys=True)


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

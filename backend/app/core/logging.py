"""Logs to stdout: one JSON object per line, or plain text if stdout is a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

import orjson

# The attributes that are not `extra` fields. `color_message` is the message of uvicorn with terminal colours.
_RECORD_ATTRIBUTES: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """Writes level, logger, message, time, the traceback and the `extra` fields as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        line |= {name: value for name, value in vars(record).items() if name not in _RECORD_ATTRIBUTES}
        line["time"] = datetime.fromtimestamp(record.created, UTC).isoformat()
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # orjson refuses lone surrogates, integers above 64 bits and keys that are not text
            return json.dumps(line, default=str, skipkeys=True)


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

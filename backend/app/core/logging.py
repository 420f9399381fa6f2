"""Logs: one JSON object a line on stdout, or plain lines when stdout is a terminal."""

import sys
from typing import Any, Final

from pythonjsonlogger.core import RESERVED_ATTRS

_OMITTED: Final = [*RESERVED_ATTRS, "color_message"]  # uvicorn's message again, with terminal colours


def log_config() -> dict[str, Any]:
    """Returns the configuration for `logging.config.dictConfig`, picklable for uvicorn's workers."""
    chosen = "terminal" if sys.stdout.isatty() else "json"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {
                "()": "pythonjsonlogger.json.JsonFormatter",
                "fmt": ["levelname", "name", "message"],
                "rename_fields": {"levelname": "level", "name": "logger"},
                "timestamp": "time",
                "reserved_attrs": _OMITTED,
            },
            "terminal": {"format": "%(asctime)s %(levelname)-7s %(message)s", "datefmt": "%H:%M:%S"},
        },
        "handlers": {
            "stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": chosen},
        },
        "loggers": {"httpx": {"level": "WARNING"}},  # it would name the URL of the keys and quote the reply
        "root": {"level": "INFO", "handlers": ["stdout"]},
    }

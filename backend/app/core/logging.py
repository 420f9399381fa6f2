"""Logs to stdout: one JSON object per line, or plain text if stdout is a terminal."""

import json
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from queue import SimpleQueue
from typing import Any, Final, TextIO

import orjson

# The attributes that are not `extra` fields. `color_message` is the message of uvicorn with terminal colours.
_RECORD_ATTRIBUTES: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}

_WAITING_MAX: Final = 10_000  # lines
_CLOSING_TIME: Final = 1  # seconds
_BATCH_TIME: Final = 0.01  # seconds in which lines are collected; a thread switch for each line would cost more
_RETRY_TIME: Final = 1  # seconds
_END: Final = b""
# At INFO, httpx logs the URL of the keys and quotes the reply. The others report each step of a start.
QUIET: Final = ("httpx", "uvicorn", "alembic")


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


class LogHandler(logging.Handler):
    """Writes lines in a thread, so that a reader who stalls does not stop the event loop.

    `_WAITING_MAX` lines wait in memory, besides those that are being written. Further lines are dropped and counted. A
    later line says how many.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._descriptor = stream.fileno()
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._dropped = 0
        self._writer = threading.Thread(target=self._write_lines, daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.put(self.format(record).encode(errors="backslashreplace"))
        except Exception:  # noqa: BLE001  # as logging's own handlers do
            self.handleError(record)

    def put(self, line: bytes) -> None:
        """Write the line soon."""
        if self._lines.qsize() < _WAITING_MAX:
            self._lines.put(line + b"\n")
        else:
            self._dropped += 1

    def close(self) -> None:
        """Write the waiting lines, if their reader takes them in time."""
        self._lines.put(_END)
        self._writer.join(_CLOSING_TIME)
        super().close()

    def _write_lines(self) -> None:
        told = 0
        lines: list[bytes] = []
        while _END not in lines:
            lines = [self._lines.get(), *(self._lines.get() for _ in range(self._lines.qsize()))]
            count = self._dropped - told  # after these lines, before those that are put from now on
            for line in lines:
                self._write(line)
            if count:
                told += count
                message = f"{count} log lines were dropped because the log could not be written"
                record = logging.LogRecord(__name__, logging.WARNING, "", 0, message, None, None)
                self._write(self.format(record).encode() + b"\n")
            time.sleep(_BATCH_TIME)

    def _write(self, line: bytes) -> None:
        """Write a line with one call, so that a pipe takes all of it. Repeated while the disk is full."""
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except OSError as error:
                _report(f"The log cannot be written: {error.strerror}.")
                time.sleep(_RETRY_TIME)


@cache
def _report(fault: str) -> None:
    """Write a fault of the log to stderr, once."""
    with suppress(OSError):
        sys.stderr.write(f"{fault}\n")


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
        "handlers": {"stdout": {"()": LogHandler, "stream": "ext://sys.stdout", "formatter": formatter}},
        "loggers": {name: {"level": "WARNING"} for name in QUIET},
        "root": {"level": "INFO", "handlers": ["stdout"]},
    }

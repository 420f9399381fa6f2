"""Logs to stdout: one JSON object per line, or text for people."""

import json
import logging
import os
import re
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
RECORD_ATTRIBUTES: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}

_WAITING_MAX: Final = 10_000  # lines
_CLOSING_TIME: Final = 1  # seconds
_BATCH_TIME: Final = 0.01  # seconds in which lines are collected; a thread switch for each line would cost more
_RETRY_TIME: Final = 1  # seconds
_END: Final = b""
# httpx, httpcore and urllib3 log the URLs of keys and collector and quote replies, SQLAlchemy logs each lost connection
# under the name of the pool, and the others report each step of a start.
QUIET: Final = ("httpx", "httpcore", "urllib3", "app.core.database.pool", "uvicorn", "alembic", "mcp")


class JsonFormatter(logging.Formatter):
    """Writes level, logger, message, time, the traceback and the `extra` fields as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        line |= _extra(record)
        line["time"] = datetime.fromtimestamp(record.created, UTC).isoformat()
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # orjson refuses lone surrogates, integers above 64 bits and keys that are not text
            return json.dumps(line, default=str, skipkeys=True)


class TextFormatter(logging.Formatter):
    """Writes time, level, message and the `extra` fields that the message does not name, for people.

    Control characters are escaped, and the lines of a traceback are indented: what a client sends must neither steer a
    terminal nor begin a line.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return "\n  ".join(map(_printable, super().format(record).split("\n")))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name in logging.Formatter
        extra = {name: value for name, value in _extra(record).items() if f"%({name})" not in str(record.msg)}
        fields = [f"{name}={_word(value)}" for name, value in extra.items()]
        return _printable(" ".join([super().formatMessage(record), *fields]))


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in RECORD_ATTRIBUTES}


def _word(value: object) -> str:
    """Returns a value as one word, in quotation marks if it could be taken for several."""
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[\s"=]', text) or not text else text


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


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
            line = self.format(record).encode(errors="backslashreplace")
            if self._lines.qsize() < _WAITING_MAX:
                self._lines.put(line + b"\n")
            else:
                self._dropped += 1
        except Exception:  # noqa: BLE001  # as logging's own handlers do
            self.handleError(record)

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


def log_config(level: str, log_format: str) -> dict[str, Any]:
    """Returns the configuration for `logging.config.dictConfig`, picklable for uvicorn's workers."""
    if log_format == "auto":
        log_format = "text" if sys.stdout.isatty() else "json"
    minimum = logging.getLevelNamesMapping()[level.upper()]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}, "text": {"()": TextFormatter}},
        "handlers": {"stdout": {"()": LogHandler, "stream": "ext://sys.stdout", "formatter": log_format}},
        "loggers": {name: {"level": max(logging.WARNING, minimum)} for name in QUIET},
        "root": {"level": minimum, "handlers": ["stdout"]},
    }

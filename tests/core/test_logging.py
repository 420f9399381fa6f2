"""The format of the log, the request log's direct way to stdout, and a log that cannot be written."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Final, TextIO
from unittest.mock import patch

import pytest

from app.core import logging as app_logging
from app.core.logging import JsonFormatter, LogHandler, log_config
from app.http.middleware import log_request
from tests.support import full_pipe

REQUEST: Final = {"request_id": "mine", "method": "GET", "route": None, "status": 404, "duration_ms": 1.235}
MESSAGE: Final = "GET (no route) 404 in 1.2 ms"


class Marking(JsonFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"marked: {super().format(record)}"


class MarkingHandler(LogHandler):
    def format(self, record: logging.LogRecord) -> str:
        return f"marked: {super().format(record)}"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@contextmanager
def only(
    log: Path, kind: type[LogHandler] = LogHandler, formatter: type[JsonFormatter] = JsonFormatter
) -> Iterator[tuple[LogHandler, TextIO]]:
    """Write only to the file. At the end it is complete. pytest adds its handlers between a fixture and its test."""
    level = logging.root.level
    logging.root.setLevel(logging.INFO)
    with log.open("w") as stream:
        handler = kind(stream)
        handler.setFormatter(formatter())
        with patch.object(logging.root, "handlers", [handler]):
            yield handler, stream
        handler.close()
    logging.root.setLevel(level)


def parsed(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


class TestFormat:
    def test_a_terminal_gets_text_and_everything_else_json(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdout", StringIO())
        assert log_config()["handlers"]["stdout"]["formatter"] == "json"

        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert log_config()["handlers"]["stdout"]["formatter"] == "terminal"

    @pytest.mark.parametrize("odd", ["\ud800", 2**64, Path("x"), {1: "one"}, {(1, 2): "two"}])
    def test_a_value_that_json_cannot_represent_is_logged(self, odd: object) -> None:
        record = logging.makeLogRecord({"msg": f"{odd}", "args": (), "odd": odd})

        line = json.loads(JsonFormatter().format(record))

        assert (line["message"], "odd" in line) == (str(odd), True)
        assert datetime.fromisoformat(line["time"]).tzinfo


class TestDirectLogLine:
    """A log line is written directly, without `logging`, if its only destination is one stream of JSON lines."""

    @pytest.fixture
    def no_logging(self, monkeypatch: pytest.MonkeyPatch) -> None:
        logger = logging.getLogger("app.requests")
        monkeypatch.setattr(logger, "info", lambda *_, **__: pytest.fail("It went through logging."))

    @pytest.mark.usefixtures("no_logging")
    @pytest.mark.parametrize("route", ["/api/{user_id}/tasks", None])
    def test_the_direct_log_line_equals_that_of_logging(self, log: Path, route: str | None) -> None:
        with only(log):
            message = MESSAGE.replace("(no route)", route or "(no route)")
            logging.getLogger("app.requests").log(logging.INFO, message, extra=REQUEST | {"route": route})
            log_request(REQUEST | {"route": route})

        logged, written = parsed(log)
        assert list(written) == list(logged)
        assert logged.pop("time") <= written.pop("time")
        assert written == logged

    @pytest.mark.parametrize("name", [None, "app", "app.requests"])
    def test_another_handler_also_gets_the_log_line(self, log: Path, name: str | None) -> None:
        other, logger = logging.StreamHandler(StringIO()), logging.getLogger(name)
        with only(log):
            logger.addHandler(other)
            log_request(REQUEST)
            logger.removeHandler(other)

        assert [line["message"] for line in parsed(log)] == [MESSAGE]
        assert other.stream.getvalue() == f"{MESSAGE}\n"

    @pytest.mark.parametrize("custom", [partial(only, formatter=Marking), partial(only, kind=MarkingHandler)])
    def test_a_custom_handler_or_formatter_writes_its_own_format(self, log: Path, custom: Any) -> None:
        with custom(log):
            log_request(REQUEST)

        assert log.read_text().startswith("marked: ")

    @pytest.mark.parametrize(
        "change",
        [
            lambda handler, _: handler.setLevel(logging.WARNING),
            lambda handler, _: handler.addFilter(lambda _: False),
            lambda _, patch: patch.setattr(logging.getLogger("app.requests"), "filters", [lambda _: False]),
            lambda _, patch: patch.setattr(logging.getLogger("app.requests"), "disabled", True),
            lambda _, patch: patch.setattr(logging.getLogger("app.requests"), "propagate", False),
            lambda _, patch: patch.setattr(logging.getLogger("app"), "propagate", False),
        ],
        ids=["level", "filter", "filter of the logger", "disabled", "no propagation", "none of the parent"],
    )
    def test_the_root_handler_gets_no_line_that_logging_would_not_give_it(
        self, log: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[LogHandler, pytest.MonkeyPatch], object]
    ) -> None:
        with only(log) as (handler, _):
            change(handler, monkeypatch)
            log_request(REQUEST)

        assert log.read_text() == ""


class TestWriter:
    def test_lines_that_find_no_place_while_the_reader_stalls_are_dropped_and_counted_and_no_line_is_cut(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(app_logging, "_WAITING_MAX", 100)
        reader, writer = full_pipe()
        with os.fdopen(writer, "w") as stream:
            handler = LogHandler(stream)
            handler.setFormatter(JsonFormatter())
            for number in range(1_000):
                handler.emit(logging.makeLogRecord({"msg": f"{number:0200}"}))
            read, emitted = b"", 1_000
            while b"later" not in read:
                handler.emit(logging.makeLogRecord({"msg": "later"}))
                emitted += 1
                read += os.read(reader, 65_536)
            handler.close()
        read += os.read(reader, 65_536)
        os.close(reader)

        messages = [json.loads(line)["message"] for line in read.decode().splitlines() if line]
        numbers = [int(message) for message in messages if message.isdigit()]
        told = [message.split()[0] for message in messages if " log lines were dropped because " in message]
        assert numbers == sorted({*numbers})
        assert len(numbers) + messages.count("later") + sum(map(int, told)) == emitted
        assert 0 < len(told) < 10  # one for each time that no line found a place, not one for each line

    def test_a_full_disk_is_reported_on_stderr_once_and_no_log_line_is_lost_or_repeated(
        self, log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(app_logging, "_RETRY_TIME", 0.01)
        with only(log) as (handler, output), log.open("a") as space, Path("/dev/full").open("w") as full:
            os.dup2(full.fileno(), output.fileno())
            handler.put(b"while it is full")
            deadline = time.monotonic() + 30
            while not (reported := capsys.readouterr().err) and time.monotonic() < deadline:
                time.sleep(0.01)
            os.dup2(space.fileno(), output.fileno())
            handler.put(b"mine")

        assert reported == "The log cannot be written: No space left on device.\n"
        assert log.read_text().splitlines() == ["while it is full", "mine"]

    def test_a_record_that_cannot_be_formatted_is_reported_on_stderr(
        self, log: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with only(log):
            logging.getLogger("app").info("%d", "no number")
            logging.getLogger("app").info("later")

        assert "--- Logging error ---" in capsys.readouterr().err
        assert [line["message"] for line in parsed(log)] == ["later"]

"""The formats of the log, the hooks that get the line of a request, and a log that cannot be written."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from io import StringIO
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TextIO
from unittest.mock import patch

import pytest

from app.core import logging as app_logging
from app.core.logging import JsonFormatter, LogHandler, TextFormatter, log_config
from app.http.middleware import log_request
from tests.support import full_pipe

REQUEST: Final = {"request_id": "mine", "method": "GET", "route": None, "status": 404, "duration_ms": 1.235}
MESSAGE: Final = "GET (no route) 404 in 1.2 ms"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@contextmanager
def only(log: Path) -> Iterator[tuple[LogHandler, TextIO]]:
    """Write only to the file. At the end it is complete. pytest adds its handlers between a fixture and its test."""
    level = logging.root.level
    logging.root.setLevel(logging.INFO)
    with log.open("w") as stream:
        handler = LogHandler(stream)
        handler.setFormatter(JsonFormatter())
        with patch.object(logging.root, "handlers", [handler]):
            yield handler, stream
        handler.close()
    logging.root.setLevel(level)


def parsed(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


class TestFormat:
    @pytest.mark.parametrize(
        ("style", "on_terminal", "elsewhere"),
        [("auto", "text", "json"), ("json", "json", "json"), ("text", "text", "text")],
    )
    def test_auto_is_text_on_a_terminal_and_json_elsewhere_and_the_others_are_what_they_say(
        self, monkeypatch: pytest.MonkeyPatch, style: str, on_terminal: str, elsewhere: str
    ) -> None:
        monkeypatch.setattr(sys, "stdout", StringIO())
        assert log_config("info", style)["handlers"]["stdout"]["formatter"] == elsewhere

        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert log_config("info", style)["handlers"]["stdout"]["formatter"] == on_terminal

    @pytest.mark.parametrize(("level", "quiet"), [("debug", 30), ("info", 30), ("warning", 30), ("error", 40)])
    def test_a_level_holds_for_all_loggers_but_libraries_that_tell_too_much_begin_at_warning(
        self, level: str, quiet: int
    ) -> None:
        config = log_config(level, "json")

        assert config["root"]["level"] == getattr(logging, level.upper())
        assert {each["level"] for each in config["loggers"].values()} == {quiet}

    @pytest.mark.parametrize("odd", ["\ud800", 2**64, Path("x"), {1: "one"}, {(1, 2): "two"}])
    def test_a_value_that_json_cannot_represent_is_logged(self, odd: object) -> None:
        record = logging.makeLogRecord({"msg": f"{odd}", "args": (), "odd": odd})

        line = json.loads(JsonFormatter().format(record))

        assert (line["message"], "odd" in line) == (str(odd), True)
        assert datetime.fromisoformat(line["time"]).tzinfo


class TestText:
    def test_fields_follow_the_message_unless_it_names_them(self) -> None:
        extra = {"method": "GET", "fields": ["title", "completed"], "origin": 'http://x" a=b', "no": ""}
        record = logging.makeLogRecord({"levelname": "INFO", "msg": "%(method)s /", "args": extra, **extra})

        assert TextFormatter().format(record)[8:] == (
            r' INFO    GET / fields=title,completed origin="http://x\" a=b" no=""'
        )

    def test_what_a_client_sends_neither_steers_a_terminal_nor_begins_a_line(self) -> None:
        hostile = "\x1b[2J\x9b1A\r\n12:00:00 INFO forged\u202e\ud800"
        fault = None, RuntimeError(hostile), None
        record = logging.makeLogRecord({"msg": hostile, "sent": hostile, "exc_info": fault})

        first, *traceback = TextFormatter().format(record).split("\n")
        assert all(line.isprintable() for line in (first, *traceback))
        assert first.count("INFO forged") == 2
        assert traceback == [r"  RuntimeError: \x1b[2J\x9b1A\r", r"  12:00:00 INFO forged\u202e\ud800"]


class TestRequestLine:
    """Monitoring agents hook into `logging` in these ways, most of them after the service has configured its log."""

    @pytest.mark.parametrize("name", [None, "app", "app.requests"])
    def test_a_handler_that_is_added_later_also_gets_the_line(self, log: Path, name: str | None) -> None:
        other, logger = logging.StreamHandler(StringIO()), logging.getLogger(name)
        with only(log):
            logger.addHandler(other)
            log_request(REQUEST)
            logger.removeHandler(other)

        assert [line["message"] for line in parsed(log)] == [MESSAGE]
        assert other.stream.getvalue() == f"{MESSAGE}\n"

    @pytest.mark.parametrize("hook", ["_logRecordFactory", "Logger.makeRecord", "Logger.callHandlers"])
    def test_a_record_factory_and_patched_methods_of_loggers_can_add_to_the_line(
        self, log: Path, monkeypatch: pytest.MonkeyPatch, hook: str
    ) -> None:
        original = attrgetter(hook)(logging)

        def marking(*args: Any, **options: Any) -> Any:
            record = original(*args, **options)
            record.trace_id = "mine"
            return record

        def marking_first(logger: logging.Logger, record: logging.LogRecord) -> None:
            record.trace_id = "mine"
            original(logger, record)

        with only(log):
            monkeypatch.setattr(f"logging.{hook}", marking_first if hook == "Logger.callHandlers" else marking)
            log_request(REQUEST)

        assert [line["trace_id"] for line in parsed(log)] == ["mine"]


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
            handler.emit(logging.makeLogRecord({"msg": "while it is full"}))
            deadline = time.monotonic() + 30
            while not (reported := capsys.readouterr().err) and time.monotonic() < deadline:
                time.sleep(0.01)
            os.dup2(space.fileno(), output.fileno())
            handler.emit(logging.makeLogRecord({"msg": "mine"}))

        assert reported == "The log cannot be written: No space left on device.\n"
        assert [line["message"] for line in parsed(log)] == ["while it is full", "mine"]

    def test_a_record_that_cannot_be_formatted_is_reported_on_stderr(
        self, log: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with only(log):
            logging.getLogger("app").info("%d", "no number")
            logging.getLogger("app").info("later")

        assert "--- Logging error ---" in capsys.readouterr().err
        assert [line["message"] for line in parsed(log)] == ["later"]

"""The format of the log, and the request log's direct way to stdout."""

import errno
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final
from unittest.mock import patch

import pytest

from app.core.logging import JsonFormatter, log_config
from app.http.middleware import log_request

REQUEST: Final = {"request_id": "mine", "method": "GET", "route": None, "status": 404, "duration_ms": 1.235}
MESSAGE: Final = "GET (no route) 404 in 1.2 ms"


class Stream(io.StringIO):
    """A text file. On a full disk, its text stays in the buffer and is written once there is space."""

    full = False
    flushed = 0

    def flush(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.flushed += 1


Handler = logging.StreamHandler[Stream]


class Marking(JsonFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"marked: {super().format(record)}"


class MarkingHandler(Handler):
    def format(self, record: logging.LogRecord) -> str:
        return f"marked: {super().format(record)}"


@contextmanager
def only(handler: Handler) -> Iterator[Stream]:
    """Make this the only root handler. pytest adds its own handlers between a fixture and its test."""
    level = logging.root.level
    logging.root.setLevel(logging.INFO)
    with patch.object(logging.root, "handlers", [handler]):
        yield handler.stream
    logging.root.setLevel(level)


def json_lines(kind: type[Handler] = logging.StreamHandler, formatter: type[JsonFormatter] = JsonFormatter) -> Handler:
    """Returns a handler like that of `log_config`."""
    handler = kind(Stream())
    handler.setFormatter(formatter())
    return handler


class TestFormat:
    def test_a_terminal_gets_text_and_everything_else_json(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdout", Stream())
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
    def test_the_direct_log_line_equals_that_of_logging(self, route: str | None) -> None:
        with only(json_lines()) as stream:
            message = MESSAGE.replace("(no route)", route or "(no route)")
            logging.getLogger("app.requests").log(logging.INFO, message, extra=REQUEST | {"route": route})
            log_request(REQUEST | {"route": route})

        logged, written = map(json.loads, stream.getvalue().splitlines())
        assert list(written) == list(logged)
        assert logged.pop("time") <= written.pop("time")
        assert written == logged
        assert stream.flushed == 2

    @pytest.mark.parametrize("name", [None, "app", "app.requests"])
    def test_another_handler_also_gets_the_log_line(self, name: str | None) -> None:
        other, logger = logging.StreamHandler(Stream()), logging.getLogger(name)
        with only(json_lines()) as stream:
            logger.addHandler(other)
            log_request(REQUEST)
            logger.removeHandler(other)

        assert json.loads(stream.getvalue())["message"] == MESSAGE
        assert other.stream.getvalue() == f"{MESSAGE}\n"

    @pytest.mark.parametrize("handler", [json_lines(formatter=Marking), json_lines(kind=MarkingHandler)])
    def test_a_custom_handler_or_formatter_writes_its_own_format(self, handler: Handler) -> None:
        with only(handler) as stream:
            log_request(REQUEST)

        assert stream.getvalue().startswith("marked: ")

    @pytest.mark.parametrize(
        "change",
        [
            lambda handler, _: handler.setLevel(logging.WARNING),
            lambda handler, _: handler.addFilter(lambda _: False),
            lambda handler, _: handler.setStream(Stream()),
            lambda _, patch: patch.setattr(logging.getLogger("app.requests"), "filters", [lambda _: False]),
            lambda _, patch: patch.setattr(logging.getLogger("app.requests"), "disabled", True),
            lambda _, patch: patch.setattr(logging.getLogger("app.requests"), "propagate", False),
            lambda _, patch: patch.setattr(logging.getLogger("app"), "propagate", False),
        ],
        ids=["level", "filter", "stream", "filter of the logger", "disabled", "no propagation", "none of the parent"],
    )
    def test_the_root_handler_gets_no_line_that_logging_would_not_give_it(
        self, monkeypatch: pytest.MonkeyPatch, change: Callable[[Handler, pytest.MonkeyPatch], object]
    ) -> None:
        handler = json_lines()
        with only(handler) as stream:
            change(handler, monkeypatch)
            log_request(REQUEST)

        assert stream.getvalue() == ""

    @pytest.mark.usefixtures("no_logging")
    def test_a_full_disk_and_a_closed_stream_are_reported_on_stderr_and_no_log_line_is_lost_or_repeated(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with only(json_lines()) as stream:
            stream.full = True
            log_request(REQUEST | {"request_id": "while it is full"})
            stream.full = False
            log_request(REQUEST)
            written = [json.loads(line)["request_id"] for line in stream.getvalue().splitlines()]
            assert "No space left on device" in capsys.readouterr().err
            stream.close()
            log_request(REQUEST)

        assert "I/O operation on closed file" in capsys.readouterr().err
        assert written == ["while it is full", "mine"]

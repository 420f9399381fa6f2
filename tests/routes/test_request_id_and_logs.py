"""Each request has an id and one log line. The line reports the outcome and repeats nothing of the request."""

import asyncio
import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from logging.config import DictConfigurator
from pathlib import Path
from typing import Any, Final, NoReturn
from unittest.mock import patch

import asyncpg
import httpx
import pytest

from app.core.logging import JsonFormatter, log_config
from app.http.middleware import log_request
from tests.support import exchange, handling

ROOT: Final = Path(__file__).parents[2]
MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
TASKS: Final = "/api/ada/tasks"
TASK: Final = f"{TASKS}/{MISSING}"
MADE: Final = re.compile(r"[0-9a-f]{32}")
LIVE: Final = "/health/live"


class Log(logging.Handler):
    """Keeps the lines in the production format."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(DictConfigurator({}).configure_formatter(log_config()["formatters"]["json"]))
        self.lines: list[str] = []
        self._requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
        if record.name == "app.requests" and record.levelno == logging.INFO:
            self._requests.put_nowait(json.loads(self.lines[-1]))

    async def request(self) -> dict[str, Any]:
        """Returns the parsed line of the next request."""
        async with asyncio.timeout(10):
            return await self._requests.get()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    with handling(Log(), caplog) as log:
        yield log


async def _defect(*_: object) -> NoReturn:
    raise RuntimeError("first line\nsecond line")


class TestRequestId:
    @pytest.mark.parametrize("sent", ["a", "a" * 128, "01K9-z_Z.=@+", MISSING])
    async def test_a_valid_request_id_is_kept(self, client: httpx.AsyncClient, sent: str) -> None:
        reply = await client.get(TASK, headers={"X-Request-ID": sent})

        assert reply.headers.get_list("X-Request-ID") == [sent]
        assert reply.json()["instance"] == sent

    @pytest.mark.parametrize(
        "sent", [b"", b"a" * 129, b"a b", b"a\tb", b"a,b", b"a/b", b"<a>", b'"a"', "é".encode(), "é".encode("latin-1")]
    )
    async def test_an_invalid_request_id_is_replaced(self, client: httpx.AsyncClient, sent: bytes) -> None:
        reply = await client.get(TASK, headers=[(b"X-Request-ID", sent)])

        [made] = reply.headers.get_list("X-Request-ID")
        assert MADE.fullmatch(made)
        assert reply.json()["instance"] == made

    async def test_each_request_without_an_id_gets_a_unique_id(self, client: httpx.AsyncClient) -> None:
        made = [(await client.get(LIVE)).headers["X-Request-ID"] for _ in range(3)]

        assert len(set(made)) == 3
        assert all(map(MADE.fullmatch, made))

    async def test_the_first_of_two_request_ids_is_used(self, client: httpx.AsyncClient) -> None:
        reply = await client.get(LIVE, headers=[("X-Request-ID", "one"), ("X-Request-ID", "two")])

        assert reply.headers.get_list("X-Request-ID") == ["one"]

    @pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r", b"\r\n ", b"\0"])
    async def test_a_request_id_cannot_inject_a_reply_header(self, client: httpx.AsyncClient, end: bytes) -> None:
        fields = b"Host: localhost\r\nConnection: close\r\nX-Request-ID: a%sSet-Cookie: b\r\n" % end
        request = b"GET /health/live HTTP/1.1\r\n%s\r\n" % fields

        assert b"set-cookie" not in b"".join((await exchange(client.base_url, request))[1:])

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", TASKS, 200),
            ("HEAD", TASKS, 200),
            ("GET", TASK, 404),
            ("GET", "/nope", 404),
            ("PUT", TASKS, 405),
            ("POST", TASKS, 422),
            ("GET", "/", 307),
            ("GET", "/docs", 200),
            ("GET", "/docs/assets/swagger-ui.css", 200),
            ("GET", "/docs/assets/nope", 404),
            ("GET", "/openapi.json", 200),
            ("GET", LIVE, 200),
            ("OPTIONS", TASKS, 200),
        ],
    )
    async def test_every_reply_has_the_request_id(
        self, client: httpx.AsyncClient, method: str, path: str, status: int
    ) -> None:
        headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "GET", "X-Request-ID": "mine"}

        reply = await client.request(method, path, headers=headers)

        assert (reply.status_code, reply.headers["X-Request-ID"]) == (status, "mine")


class TestLogLine:
    @pytest.mark.parametrize(
        ("method", "path", "route", "status"),
        [
            ("GET", TASKS, "/api/{user_id}/tasks", 200),
            ("HEAD", TASKS, "/api/{user_id}/tasks", 200),
            ("POST", TASKS, "/api/{user_id}/tasks", 422),
            ("PATCH", TASKS, "/api/{user_id}/tasks", 405),
            ("GET", TASK, "/api/{user_id}/tasks/{task_id}", 404),
            ("PUT", TASK, "/api/{user_id}/tasks/{task_id}", 422),
            ("DELETE", TASK, "/api/{user_id}/tasks/{task_id}", 404),
            ("PATCH", f"{TASK}/complete", "/api/{user_id}/tasks/{task_id}/complete", 404),
            ("GET", "/docs", "/docs", 200),
            ("GET", LIVE, LIVE, 200),
            ("GET", "/nope", None, 404),
            ("OPTIONS", TASKS, None, 200),
        ],
    )
    async def test_the_log_line_has_method_route_status_and_duration(
        self, client: httpx.AsyncClient, log: Log, method: str, path: str, *, route: str | None, status: int
    ) -> None:
        before = datetime.now().astimezone()
        headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "GET"}
        reply = await client.request(method, path, headers=headers)

        line = await log.request()
        assert before <= datetime.fromisoformat(line.pop("time")) <= before + timedelta(minutes=1)
        assert 0 < line.pop("duration_ms") < 60_000
        assert line.pop("message").startswith(f"{method} {route or '(no route)'} {status} in ")
        assert line == {
            "level": "INFO",
            "logger": "app.requests",
            "request_id": reply.headers["X-Request-ID"],
            "method": method,
            "route": route,
            "status": status,
        }

    async def test_each_request_writes_exactly_one_log_line(self, client: httpx.AsyncClient, log: Log) -> None:
        replies = [await client.get(path) for path in (TASKS, TASK, "/nope", LIVE, "/docs")]

        logged = [(await log.request())["request_id"] for _ in replies]
        assert logged == [reply.headers["X-Request-ID"] for reply in replies]
        assert len(log.lines) == len(replies)

    async def test_a_request_writes_no_log_line_at_level_warning(
        self, client: httpx.AsyncClient, log: Log, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "app.requests")
        await client.get(LIVE)
        caplog.set_level(logging.INFO, "app.requests")
        reply = await client.get(LIVE)

        assert (await log.request())["request_id"] == reply.headers["X-Request-ID"]
        assert len(log.lines) == 1

    async def test_a_defect_writes_a_separate_log_line_with_the_same_request_id(
        self, client: httpx.AsyncClient, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.services.tasks.get_task", _defect)

        await client.get(TASK, headers={"X-Request-ID": "mine"})

        assert (await log.request())["status"] == 500
        assert not [line for line in log.lines if "\n" in line]
        defect, request = map(json.loads, log.lines)
        assert (defect["level"], defect["request_id"], request["request_id"]) == ("ERROR", "mine", "mine")
        assert "RuntimeError: first line\nsecond line" in defect["exc_info"]

    async def test_a_client_that_disconnects_during_its_body_is_logged_as_400(
        self, client: httpx.AsyncClient, log: Log
    ) -> None:
        fields = b"Content-Type: application/json\r\nContent-Length: 99"
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b'POST /api/ada/tasks HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n{"title": ' % fields)
        await writer.drain()
        writer.close()

        assert (await log.request())["status"] == 400
        assert len(log.lines) == 1


MARK: Final = "zq9"
OWNER: Final = f"/api/{MARK}-owner/tasks"


class TestPrivacy:
    """The log has more readers than the tasks."""

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", OWNER),
            ("GET", f"{OWNER}?limit={MARK}"),
            ("POST", OWNER),
            ("PATCH", OWNER),
            ("GET", f"{OWNER}/{MISSING}"),
            ("GET", f"{OWNER}/{MARK}"),
            ("PUT", f"{OWNER}/{MISSING}"),
            ("DELETE", f"{OWNER}/{MISSING}"),
            ("PATCH", f"{OWNER}/{MISSING}/complete"),
            ("GET", f"/{MARK}"),
            ("GET", f"/docs/assets/{MARK}"),
        ],
    )
    @pytest.mark.parametrize("content", [f'{{"title": "{MARK}", "{MARK}": 1}}', MARK], ids=["task", "invalid JSON"])
    async def test_no_log_line_repeats_the_request(
        self, client: httpx.AsyncClient, log: Log, method: str, path: str, content: str
    ) -> None:
        headers = {
            "Authorization": f"Bearer {MARK}",
            "Content-Type": "application/json",
            "Cookie": f"session={MARK}",
            "Idempotency-Key": MARK,
            "Prefer": MARK,
            "User-Agent": MARK,
            "X-Request-ID": f"{MARK}!",
        }

        await client.request(method, path, params={"search": MARK}, headers=headers, content=content)

        await log.request()
        assert not [line for line in log.lines if MARK in line.lower()]

    async def test_the_log_line_of_a_failed_statement_does_not_repeat_the_request(
        self, client: httpx.AsyncClient, database: asyncpg.Connection, log: Log, tasks: str
    ) -> None:
        """PostgreSQL's own message about a violated constraint quotes the whole row."""
        await database.execute(f"ALTER TABLE tasks ADD CONSTRAINT passing CHECK (title <> '{MARK}') NOT VALID")
        try:
            reply = await client.post(tasks, json={"title": MARK})
        finally:
            await database.execute("ALTER TABLE tasks DROP CONSTRAINT passing")

        assert reply.status_code == 500
        assert "CheckViolationError 23514" in log.lines[0]
        assert not [line for line in log.lines if MARK in line.lower()]


class TestHead:
    @pytest.mark.parametrize(
        "path", [TASKS, TASK, LIVE, "/health/ready", "/openapi.json", "/docs", "/docs/assets/swagger-ui.css", "/"]
    )
    async def test_head_returns_the_headers_of_get_without_a_body(self, client: httpx.AsyncClient, path: str) -> None:
        head, get = [
            await exchange(
                client.base_url,
                b"%s %s HTTP/1.1\r\nHost: a\r\nX-Request-ID: a\r\nConnection: close\r\n\r\n" % (method, path.encode()),
            )
            for method in (b"HEAD", b"GET")
        ]

        assert without_date(head[1]) == without_date(get[1])
        assert head[2] == b""


def without_date(head: bytes) -> bytes:
    return re.sub(rb"\r\ndate: [^\r]+", b"", head)


def test_the_configuration_writes_a_defect_as_one_json_line_to_stdout() -> None:
    script = """
import logging.config
from app.core.logging import log_config
logging.config.dictConfig(log_config())
try:
    raise RuntimeError("first line\\nsecond line")
except RuntimeError:
    logging.getLogger("app").exception("a defect", extra={"request_id": "mine"})
"""
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": "backend"}

    run = subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=environment, text=True)

    [line] = map(json.loads, run.stdout.splitlines())
    assert (line["level"], line["message"], line["request_id"]) == ("ERROR", "a defect", "mine")
    assert "RuntimeError: first line\nsecond line" in line["exc_info"]
    assert run.stderr == ""


@pytest.mark.parametrize("odd", ["\ud800", 2**64, Path("x"), {1: "one"}, {(1, 2): "two"}])
def test_a_value_that_json_cannot_represent_is_logged(odd: object) -> None:
    record = logging.makeLogRecord({"msg": f"{odd}", "args": (), "odd": odd})

    line = json.loads(JsonFormatter().format(record))

    assert line["message"] == str(odd)
    assert datetime.fromisoformat(line["time"]).tzinfo


class Stream(io.StringIO):
    """A text file. On a full disk, its text stays in the buffer and is written once there is space."""

    full = False
    flushed = 0

    def flush(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.flushed += 1


Handler = logging.StreamHandler[Stream]
REQUEST: Final = {"request_id": "mine", "method": "GET", "route": None, "status": 404, "duration_ms": 1.235}
MESSAGE: Final = "GET (no route) 404 in 1.2 ms"


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


class Marking(JsonFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"marked: {super().format(record)}"


class Upper(logging.StreamHandler[Stream]):
    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage().upper()


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

    @pytest.mark.usefixtures("no_logging")
    def test_no_direct_log_line_is_written_at_level_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        with only(json_lines()) as stream:
            caplog.set_level(logging.WARNING, "app.requests")
            log_request(REQUEST)

        assert stream.getvalue() == ""

    @pytest.mark.parametrize("name", [None, "app", "app.requests"])
    def test_another_handler_also_gets_the_log_line(self, monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
        other, logger = logging.StreamHandler(Stream()), logging.getLogger(name)
        with only(json_lines()) as stream:
            monkeypatch.setattr(logger, "handlers", [*logger.handlers, other])
            log_request(REQUEST)
            monkeypatch.undo()

        assert json.loads(stream.getvalue())["message"] == MESSAGE
        assert other.stream.getvalue() == f"{MESSAGE}\n"

    def test_the_root_handler_gets_no_log_line_if_the_logger_does_not_propagate(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own, logger = json_lines(), logging.getLogger("app.requests")
        with only(json_lines()) as stream:
            monkeypatch.setattr(logger, "handlers", [own])
            monkeypatch.setattr(logger, "propagate", False)
            log_request(REQUEST)

        assert stream.getvalue() == ""
        assert json.loads(own.stream.getvalue())["message"] == MESSAGE

    @pytest.mark.parametrize(
        ("handler", "line"),
        [
            (json_lines(formatter=Marking), "marked: "),
            (json_lines(kind=Upper), MESSAGE.upper()),
            (logging.StreamHandler(Stream()), MESSAGE),
        ],
        ids=["custom formatter", "custom handler", "no formatter"],
    )
    def test_a_custom_handler_or_formatter_writes_its_own_format(self, handler: Handler, line: str) -> None:
        with only(handler) as stream:
            log_request(REQUEST)

        assert stream.getvalue().startswith(line)

    @pytest.mark.parametrize(
        "change",
        [
            lambda handler: handler.setLevel(logging.WARNING),
            lambda handler: handler.addFilter(lambda _: False),
            lambda _: logging.getLogger("app.requests").addFilter(refuse),
            lambda handler: handler.setStream(Stream()),
        ],
        ids=["level", "filter", "filter of the logger", "stream"],
    )
    def test_a_changed_level_filter_or_stream_applies_at_any_time(self, change: Callable[[Handler], object]) -> None:
        handler = json_lines()
        with only(handler) as stream:
            change(handler)
            log_request(REQUEST)
        logging.getLogger("app.requests").removeFilter(refuse)

        assert stream.getvalue() == ""

    @pytest.mark.usefixtures("no_logging")
    def test_a_full_disk_is_reported_on_stderr_and_no_log_line_is_lost_or_repeated(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with only(json_lines()) as stream:
            stream.full = True
            log_request(REQUEST | {"request_id": "while it is full"})
            stream.full = False
            log_request(REQUEST)

        assert "No space left on device" in capsys.readouterr().err
        assert [json.loads(line)["request_id"] for line in stream.getvalue().splitlines()] == [
            "while it is full",
            "mine",
        ]

    @pytest.mark.usefixtures("no_logging")
    def test_a_closed_stream_is_reported_on_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        with only(json_lines()) as stream:
            stream.close()
            log_request(REQUEST)

        assert "I/O operation on closed file" in capsys.readouterr().err


def refuse(_: logging.LogRecord) -> bool:
    return False

"""What a request costs, counted in calls of functions, Python's and C's, from its first byte to its line in the log.

Noise changes times, but not these numbers, which are the same in every run. After a change that is meant to change
them, `COST=write .venv/bin/python -m pytest tests/test_cost.py` writes those of the Python that it is run with.
"""

import asyncio
import io
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple
from unittest.mock import patch

import pytest
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from app.core.config import Settings
from app.core.logging import JsonFormatter
from app.main import create_app
from app.server.protocol import SERVER_OPTIONS, BoundedProtocol
from tests.support import SECRET, make_settings, token

NUMBERS: Final = Path(__file__).with_name("cost.json")
COMMAND: Final = "COST=write .venv/bin/python -m pytest tests/test_cost.py"
VERSION: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
OPERATIONS: Final = ("get", "list", "toggle", "create")
TOLERANCE: Final = 0.03
TASKS: Final = 20
WARM_UP: Final = 50  # requests
COUNTED: Final = 20  # requests; the cheapest is taken, as others may have run what no request calls, such as finalizers
NEW_TASK: Final = '{"title": "Buy oat milk", "description": "The barista one"}'

Calls = Counter[str]  # how often each function was called, by its name
Wrap = Callable[[ASGIApp], ASGIApp]


class Measured(NamedTuple):
    """The calls of a request of each operation, and the log."""

    calls: dict[str, Calls]
    lines: list[dict[str, Any]]


class Wire(asyncio.Transport):
    """Takes what the server's side of a connection writes, as a socket would."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes | bytearray | memoryview] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False


class Client:
    """Sends a user's requests, one after the other, over one connection."""

    def __init__(self, protocol: BoundedProtocol, user: str) -> None:
        self._protocol = protocol
        self._wire = Wire()
        self._path = f"/api/{user}/tasks"
        self._head = f"Host: localhost\r\nAccept: application/json\r\nAuthorization: Bearer {token(user)}\r\n"
        protocol.connection_made(self._wire)

    def request(self, method: str, path: str = "", body: str = "") -> bytes:
        """Returns the bytes of one. `path` goes on where that of the user's tasks ends."""
        entity = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        return f"{method} {self._path}{path} HTTP/1.1\r\n{self._head}{entity}\r\n{body}".encode()

    async def send(self, request: bytes, calls: Calls | None = None) -> Any:
        """Returns the body of the reply, and adds to `calls` what is called in this thread until there is one."""
        self._wire.written.clear()
        with counting(calls):
            self._protocol.data_received(request)
            [answering] = self._protocol.tasks
            await answering
        head, _, body = b"".join(self._wire.written).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 20"), head + body
        return json.loads(body)

    async def count(self, request: bytes) -> Calls:
        """Returns what it calls once everything is warm."""
        for _ in range(WARM_UP):
            await self.send(request)
        counts: list[Calls] = [Counter() for _ in range(COUNTED)]
        for calls in counts:
            await self.send(request, calls)
        return min(counts, key=Counter.total)


@contextmanager
def counting(calls: Calls | None) -> Iterator[None]:
    before = sys.getprofile()
    sys.setprofile(before if calls is None else partial(note, calls))
    try:
        yield
    finally:
        sys.setprofile(before)


def note(calls: Calls, frame: FrameType, event: str, function: Any) -> None:
    """Count one call. A function of C is named after the module that calls it: most of them are everywhere."""
    module = frame.f_globals.get("__name__")
    if event == "call":
        calls[f"{module}.{frame.f_code.co_qualname}"] += 1
    elif event == "c_call":
        calls[f"{function.__qualname__} in {module}"] += 1


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """Yields what gets the log instead of all that pytest has it go to."""
    root, log = logging.getLogger(), io.StringIO()
    level, handler = root.level, logging.StreamHandler(log)
    handler.setFormatter(JsonFormatter())
    root.setLevel(logging.INFO)
    try:
        with patch.object(root, "handlers", [handler]):
            yield log
    finally:
        root.setLevel(level)


@asynccontextmanager
async def connected(settings: Settings, wrap: Wrap, user: str) -> AsyncIterator[Client]:
    """Yields a client of the service as it is served, but for the socket between them."""
    app = create_app(settings)
    config = uvicorn.Config(wrap(app), log_config=None, **SERVER_OPTIONS)
    async with app.router.lifespan_context(app) as state:
        yield Client(BoundedProtocol(config, ServerState(), dict(state or {})), user)


async def count_all(settings: Settings, wrap: Wrap, user: str) -> dict[str, Calls]:
    async with connected(settings, wrap, user) as client:
        create = client.request("POST", body=NEW_TASK)
        tasks = [await client.send(create) for _ in range(TASKS)]
        task = tasks[0]["id"]
        requests = {
            "get": client.request("GET", f"/{task}"),
            "list": client.request("GET", f"?limit={TASKS}"),
            "toggle": client.request("PATCH", f"/{task}/complete"),
            "create": create,  # the last, so that there is one page of tasks before
        }
        return {operation: await client.count(requests[operation]) for operation in OPERATIONS}


def measure(settings: Settings, user: str, wrap: Wrap = lambda app: app) -> Measured:
    with logged() as log:
        calls = uvloop.run(count_all(settings, wrap, user))
    return Measured(calls, [json.loads(line) for line in log.getvalue().splitlines()])


def complaint(operation: str, calls: Calls, committed: int) -> str | None:
    """Returns what is wrong with a number, None if it is about the one that is committed."""
    counted, most, least = calls.total(), committed * (1 + TOLERANCE), committed * (1 - TOLERANCE)
    if counted < least:
        return f"{operation}: {counted} calls instead of {committed}. Commit the better number: {COMMAND}"
    if counted > most:
        often = "\n".join(f"{count:5} {name}" for name, count in calls.most_common(30))
        return f"{operation}: {counted} calls, more than {most:.0f}; {committed} are committed. Called most:\n{often}"
    return None


@pytest.fixture(scope="module")
def settings(dsn: str) -> Settings:
    return make_settings(dsn, auth_jwt_secret=SECRET)


@pytest.fixture(scope="module")
def measured(settings: Settings) -> Measured:
    return measure(settings, "counted")


@pytest.fixture(scope="module")
def committed(measured: Measured) -> dict[str, int]:
    """The numbers for this version of Python."""
    numbers: dict[str, dict[str, int]] = json.loads(NUMBERS.read_text())
    if os.environ.get("COST") == "write":
        numbers[VERSION] = {operation: calls.total() for operation, calls in measured.calls.items()}
        NUMBERS.write_text(json.dumps(dict(sorted(numbers.items())), indent=2) + "\n")
    return numbers.get(VERSION) or pytest.skip(f"No numbers are committed for Python {VERSION}: {COMMAND}")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_request_calls_as_many_functions_as_before(
    operation: str, measured: Measured, committed: dict[str, int]
) -> None:
    assert not (wrong := complaint(operation, measured.calls[operation], committed[operation])), wrong


def test_counted_requests_are_logged_with_an_id(measured: Measured) -> None:
    lines = [line for line in measured.lines if line["logger"] == "app.requests"]

    assert len(lines) == TASKS + len(OPERATIONS) * (WARM_UP + COUNTED)
    assert len({line["request_id"] for line in lines}) == len(lines)


class Layer:
    """Does nothing, in a hundred calls, and passes the request on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(100):
            self.idle()
        await self._app(scope, receive, send)

    def idle(self) -> None:
        pass


@pytest.fixture(scope="module")
def layered(settings: Settings) -> Measured:
    return measure(settings, "layered", Layer)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_layer_more_is_found_to_the_call(operation: str, measured: Measured, layered: Measured) -> None:
    less, more = measured.calls[operation], layered.calls[operation]
    added = more - less

    # How often a coroutine is resumed is a matter of what is awaited inside.
    assert added.keys() == {f"{__name__}.Layer.idle", f"{__name__}.Layer.__call__"}
    assert added[f"{__name__}.Layer.idle"] == 100
    assert less <= more
    assert "Layer.idle" in str(complaint(operation, more, less.total()))


@pytest.mark.parametrize(
    ("counted", "wrong"), [(96, "Commit the better number"), (97, ""), (103, ""), (104, "more than 103")]
)
def test_three_percent_are_let_pass(counted: int, wrong: str) -> None:
    assert wrong in (complaint("get", Counter({"f": counted}), 100) or "")
    assert bool(complaint("get", Counter({"f": counted}), 100)) == bool(wrong)

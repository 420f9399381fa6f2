"""The cost of a request: the number of Python and C function calls from its first byte to its log line.

These numbers are the same in every run, whereas times vary. After a deliberate change of cost,
`COST=write .venv/bin/python -m pytest tests/test_cost.py` writes the numbers for the Python version that runs it.
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
COUNTED: Final = 20  # requests; the cheapest counts, because others may include calls of finalizers
NEW_TASK: Final = '{"title": "Buy oat milk", "description": "The barista one"}'

Calls = Counter[str]  # the number of calls by function name
Wrap = Callable[[ASGIApp], ASGIApp]


class Measured(NamedTuple):
    """The calls of one request per operation, and the log lines."""

    calls: dict[str, Calls]
    lines: list[dict[str, Any]]


class Wire(asyncio.Transport):
    """Stores the bytes that the server writes, in place of a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes | bytearray | memoryview] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False


class Client:
    """Sends a user's requests sequentially over one connection."""

    def __init__(self, protocol: BoundedProtocol, user: str) -> None:
        self._protocol = protocol
        self._wire = Wire()
        self._path = f"/api/{user}/tasks"
        self._head = f"Host: localhost\r\nAccept: application/json\r\nAuthorization: Bearer {token(user)}\r\n"
        protocol.connection_made(self._wire)

    def request(self, method: str, path: str = "", body: str = "") -> bytes:
        """Returns the bytes of a request. `path` is appended to the path of the user's tasks."""
        entity = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        return f"{method} {self._path}{path} HTTP/1.1\r\n{self._head}{entity}\r\n{body}".encode()

    async def send(self, request: bytes, calls: Calls | None = None) -> Any:
        """Returns the body of the reply. `calls` counts this thread's function calls until the reply is complete."""
        self._wire.written.clear()
        with counting(calls):
            self._protocol.data_received(request)
            [answering] = self._protocol.tasks
            await answering
        head, _, body = b"".join(self._wire.written).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 20"), head + body
        return json.loads(body)

    async def count(self, request: bytes) -> Calls:
        """Returns the calls of a request after the warm-up."""
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
    """Count one call. The name of a C function includes the calling module, because most modules call the same ones."""
    module = frame.f_globals.get("__name__")
    if event == "call":
        calls[f"{module}.{frame.f_code.co_qualname}"] += 1
    elif event == "c_call":
        calls[f"{function.__qualname__} in {module}"] += 1


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """Yields a buffer that receives the log instead of pytest's handlers."""
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
    """Yields a client of the service, which runs as in production but without a socket."""
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
            "create": create,  # last, so that the requests before it see one page of tasks
        }
        return {operation: await client.count(requests[operation]) for operation in OPERATIONS}


def measure(settings: Settings, user: str, wrap: Wrap = lambda app: app) -> Measured:
    with logged() as log:
        calls = uvloop.run(count_all(settings, wrap, user))
    return Measured(calls, [json.loads(line) for line in log.getvalue().splitlines()])


def deviation(operation: str, calls: Calls, committed: int) -> str | None:
    """Returns a message if the number differs from the committed number by more than the tolerance."""
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
    """The committed numbers for this version of Python."""
    numbers: dict[str, dict[str, int]] = json.loads(NUMBERS.read_text())
    if os.environ.get("COST") == "write":
        numbers[VERSION] = {operation: calls.total() for operation, calls in measured.calls.items()}
        NUMBERS.write_text(json.dumps(dict(sorted(numbers.items())), indent=2) + "\n")
    return numbers.get(VERSION) or pytest.skip(f"No numbers are committed for Python {VERSION}: {COMMAND}")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_request_makes_as_many_calls_as_committed(
    operation: str, measured: Measured, committed: dict[str, int]
) -> None:
    assert not (message := deviation(operation, measured.calls[operation], committed[operation])), message


def test_counted_requests_are_logged_with_an_id(measured: Measured) -> None:
    lines = [line for line in measured.lines if line["logger"] == "app.requests"]

    assert len(lines) == TASKS + len(OPERATIONS) * (WARM_UP + COUNTED)
    assert len({line["request_id"] for line in lines}) == len(lines)


class Layer:
    """Middleware that makes a hundred calls without effect for each request."""

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
def test_an_additional_layer_adds_exactly_its_own_calls(operation: str, measured: Measured, layered: Measured) -> None:
    less, more = measured.calls[operation], layered.calls[operation]
    added = more - less

    # Each resumption of a coroutine counts as a call, so the number of calls of `__call__` varies.
    assert added.keys() == {f"{__name__}.Layer.idle", f"{__name__}.Layer.__call__"}
    assert added[f"{__name__}.Layer.idle"] == 100
    assert less <= more
    assert "Layer.idle" in str(deviation(operation, more, less.total()))


@pytest.mark.parametrize(
    ("counted", "message"), [(96, "Commit the better number"), (97, ""), (103, ""), (104, "more than 103")]
)
def test_a_deviation_of_three_percent_is_accepted(counted: int, message: str) -> None:
    assert message in (deviation("get", Counter({"f": counted}), 100) or "")
    assert bool(deviation("get", Counter({"f": counted}), 100)) == bool(message)

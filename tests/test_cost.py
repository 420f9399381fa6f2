"""The cost of a request: the number of Python and C function calls from its first byte to its log line.

The number hardly differs between runs, whereas times vary. Python 3.11 makes the most calls, some 5 % more than 3.13.
"""

import asyncio
import json
import logging
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
import uvicorn
import uvloop
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from app.core.config import Settings
from app.core.logging import JsonFormatter, LogHandler
from app.main import create_app
from app.schemas.task import TaskResponse
from app.server.protocol import SERVER_OPTIONS, BoundedProtocol
from tests.agents import MODERN, call
from tests.support import SECRET, make_settings, token

MOST_CALLS: Final = {"get": 358, "toggle": 372, "create": 420, "list": 493, "call": 985}
MOST_CALLS_OF_A_FIELD: Final = 10  # for each field beyond the seven
REPEATED: Final = 20  # times; the cheapest request counts, because the first fill caches and others run finalizers
NEW_TASK: Final = '{"title": "Buy oat milk", "description": "The barista one"}'


class Wire(asyncio.Transport):
    """Stores the bytes that the server writes, in place of a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False


class Client:
    """Sends a user's requests over one connection to a service that runs as in production, but without a socket."""

    def __init__(self, app: ASGIApp, state: dict[str, Any], **headers: str) -> None:
        self._wire = Wire()
        self._protocol = BoundedProtocol(uvicorn.Config(app, log_config=None, **SERVER_OPTIONS), ServerState(), state)
        self._protocol.connection_made(self._wire)
        sent = {"Host": "localhost", "Accept": "application/json", "Authorization": f"Bearer {token('counted')}"}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in (sent | headers).items())

    async def send(self, line: str, body: str = "", note: Any = None) -> Any:
        """Returns the JSON of the reply. `note` is the profiler until the reply is complete."""
        entity = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        request = f"{line} HTTP/1.1\r\n{self._head}{entity}\r\n{body}".encode()
        self._wire.written, before = b"", sys.getprofile()
        sys.setprofile(note or before)
        self._protocol.data_received(request)
        [answering] = self._protocol.tasks
        await answering
        sys.setprofile(before)
        head, _, body = self._wire.written.decode().partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 20"), head + body
        return json.loads(body)

    async def count(self, line: str, body: str = "") -> Counter[str]:
        """Returns the function calls of a request by name."""
        counts: list[Counter[str]] = [Counter() for _ in range(REPEATED)]
        for calls in counts:
            await self.send(line, body, partial(note, calls))
        return min(counts, key=Counter.total)


def note(calls: Counter[str], frame: FrameType, event: str, function: Any) -> None:
    if event in {"call", "c_call"}:
        calls[frame.f_code.co_qualname if event == "call" else function.__qualname__] += 1


async def count_all(settings: Settings) -> dict[str, Counter[str]]:
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:
        client = Client(app, dict(state or {}))
        tasks = "/api/counted/tasks"
        task = f"{tasks}/{(await client.send(f'POST {tasks}', NEW_TASK))['id']}"
        headers, message = call(MODERN, "complete_task", task_id=task.removeprefix(f"{tasks}/"))
        agent = Client(app, dict(state or {}), **headers)
        return {
            "get": await client.count(f"GET {task}"),
            "toggle": await client.count(f"PATCH {task}/complete"),
            "create": await client.count(f"POST {tasks}", NEW_TASK),
            "call": await agent.count("POST /mcp", json.dumps(message)),
            "list": await client.count(f"GET {tasks}?limit=20"),  # last, so that there is a next page
        }


def test_no_operation_makes_more_calls_than_allowed_from_its_first_byte_to_its_log_line(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with (tmp_path / "log").open("w") as log:
        handler = LogHandler(log)  # as in production
        handler.setFormatter(JsonFormatter())
        monkeypatch.setattr("logging.root.handlers", [handler])
        counted = uvloop.run(count_all(make_settings(dsn, auth_jwt_secret=SECRET, mcp="on")))
        handler.close()

    added = MOST_CALLS_OF_A_FIELD * (len(TaskResponse.model_fields) - 7)
    for operation, most in MOST_CALLS.items():
        calls = counted[operation]
        assert calls.total() <= most + added, f"{operation}: {calls.most_common(30)}"
        assert (
            calls["BoundedProtocol.data_received"] == calls["LogHandler.emit"] == 1
        )  # the first byte and the log line

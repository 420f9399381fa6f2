"""100,000 calls of tools leave nothing behind: the service keeps no session, no task and no memory."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import cycle, islice
from typing import Any, Final

import psutil
import pytest
from starlette.types import Message, Scope

from app.main import create_app
from tests.agents import LEGACY, MODERN, SETTINGS, call, message, token_of
from tests.support import make_settings

pytestmark = pytest.mark.ci

CALLS: Final = 100_000
WARM_UP: Final = 20_000  # calls, until caches and the allocator have their size
AT_ONCE: Final = 100
GROWTH: Final = 100 * (CALLS - WARM_UP)  # bytes; a session, which the SDK keeps for other servers, has some thousand
# Most calls are of the kind that takes the least time, and need no statement.
UNKNOWN: Final = {"task_id": "none"}
CLIENT: Final = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "agent", "version": "1"}}
HELLO: Final = message(LEGACY, "initialize", **CLIENT)
REQUESTS: Final = [
    *[call(MODERN, "complete_task", **UNKNOWN)] * 36,
    call(MODERN, "list_tasks"),
    HELLO,
    call(LEGACY, "complete_task", **UNKNOWN),
    call(LEGACY, "list_tasks"),
]

Send = Callable[[dict[str, str], dict[str, Any]], Awaitable[None]]


@pytest.fixture
async def state(dsn: str) -> AsyncIterator[dict[str, Any]]:
    """The state of an application that has started, and the application. A server would take most of the time."""
    app = create_app(make_settings(dsn, **SETTINGS), bounded=True)
    async with app.router.lifespan_context(app) as state:
        yield {**(state or {}), "app": app}


@pytest.fixture
def send(state: dict[str, Any]) -> Send:
    """Sends a request for a tool, which is answered with a result."""
    token = token_of("ada")

    async def send(headers: dict[str, str], body: dict[str, Any]) -> None:
        fields = [(name.lower().encode(), value.encode()) for name, value in {**headers, **token}.items()]
        scope: Scope = {"type": "http", "method": "POST", "path": "/mcp", "raw_path": b"/mcp", "query_string": b""}
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": json.dumps(body).encode()}

        async def keep(part: Message) -> None:
            sent.append(part)

        await state["app"]({**scope, "headers": fields, "state": {**state}}, receive, keep)
        assert "result" in json.loads(sent[1]["body"]), sent

    return send


async def tasks_after(requests: Iterator[Awaitable[None]]) -> int:
    """Returns the number of tasks of the event loop that are left after these requests."""
    while at_once := list(islice(requests, AT_ONCE)):
        await asyncio.gather(*at_once)
    for _ in range(10):  # an answered call may end in the next turns of the event loop
        await asyncio.sleep(0)
    gc.collect()
    return len(asyncio.all_tasks())


@pytest.mark.timeout(600)
async def test_100_000_calls_keep_no_task_and_no_memory(send: Send, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    mixed = cycle(REQUESTS)
    process = psutil.Process()

    async def run(count: int) -> tuple[int, int]:
        tasks = await tasks_after(send(*request) for request in islice(mixed, count))
        return tasks, process.memory_info().rss

    before, _ = await run(0)
    warm, used = await run(WARM_UP)
    after, grown = await run(CALLS - WARM_UP)

    assert before == warm == after
    assert grown - used < GROWTH
    assert caplog.records == []


async def test_sessions_would_be_counted(send: Send, state: dict[str, Any]) -> None:
    """The positive control of the test above."""
    before = await tasks_after(iter([]))
    state["mcp"].stateless = False

    assert await tasks_after(send(*HELLO) for _ in range(AT_ONCE)) >= before + AT_ONCE

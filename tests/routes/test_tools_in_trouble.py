"""Calls of tools whose client leaves, whose service ends, and whose database fails end as requests of REST do."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock
from uuid import UUID

import asyncpg
import httpx
import pytest
from mcp_types import CallToolRequestParams

from app.core.errors import InternalError
from app.http.remarks import REMARKS
from app.routes.mcp import _call_tool
from tests.calls import ERAS, MODERN, call, message, send
from tests.faults import FaultProxy, fault_proxy
from tests.server.support import Connection, waits_for_a_lock
from tests.service import Service
from tests.support import SECRET, bearer, connected, make_settings, serving, until
from tests.test_rolling_restart import WAITING, is_refused

Client = httpx.AsyncClient
Tool = Callable[..., Awaitable[Any]]
each_era = pytest.mark.parametrize("era", ERAS)


@pytest.fixture
def network(dsn: str) -> Iterator[FaultProxy]:
    with fault_proxy(dsn) as network:
        yield network


@pytest.fixture
async def client(network: FaultProxy, user: str) -> AsyncIterator[Client]:
    """A client of a service with one connection to the database. It opens a connection for each request."""
    settings = make_settings(network.dsn, database_pool_size=1, auth_jwt_secret=SECRET, mcp="on")
    limits = httpx.Limits(max_keepalive_connections=0)
    async with (
        serving(settings) as url,
        Client(base_url=url, timeout=30, limits=limits, headers=bearer(user)) as client,
    ):
        yield client


@pytest.fixture
def tool(client: Client, era: str) -> Tool:
    """Calls a tool. Returns the content of the result, or the text of an error."""

    async def tool(name: str, **arguments: Any) -> Any:
        return await send(client, {}, era, name, **arguments)

    return tool


@each_era
class TestClientThatLeaves:
    async def test_its_change_is_made_and_no_task_no_connection_in_use_and_no_error_are_left(
        self, client: Client, database: asyncpg.Connection, user: str, tool: Tool, caplog: Any, era: str
    ) -> None:
        before = len(asyncio.all_tasks())
        task = (await tool("add_task", title="a"))["task_id"]
        headers, body = call(era, "update_task", task_id=task, title="b")
        request = client.build_request("POST", "/mcp", headers=headers, content=body)
        lines = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        connection = Connection(str(client.base_url))

        async with database.transaction():
            await database.execute("SELECT FROM tasks WHERE user_id = $1 FOR UPDATE", user)
            await connection.send(f"POST /mcp HTTP/1.1\r\n{lines}\r\n{body}".encode())
            await waits_for_a_lock(database)
            assert len(asyncio.all_tasks()) > before
            connection.socket.close()
        await until(lambda: len(asyncio.all_tasks()) == before)

        [changed] = (await tool("list_tasks"))["tasks"]  # by the only connection
        assert changed["title"] == "b"
        assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


class Panic(BaseException):
    """As compiled libraries raise it."""


@each_era
@pytest.mark.parametrize(
    "deletion", [AsyncMock(side_effect=Panic), AsyncMock(return_value=SimpleNamespace(id=object(), title=""))]
)
async def test_a_panic_and_a_result_that_is_no_json_are_errors_of_a_kind_and_later_calls_are_served(
    deletion: AsyncMock, tool: Tool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("app.services.tasks.delete_task", deletion)
        failed = await tool("delete_task", task_id=str(UUID(int=0)))

    assert failed == f"internal-error: {InternalError.detail}"
    assert [record.getMessage() for record in caplog.records if record.exc_info] == ["unexpected error"]
    assert (await tool("add_task", title="a"))["status"] == "created"


@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit])
async def test_an_exception_that_ends_a_task_or_a_program_is_no_defect(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.services.tasks.list_tasks", AsyncMock(side_effect=kind))
    scope = {"headers": [], "fastapi": {}, REMARKS: {}, "state": {"database": None, "user_id": "ada"}}
    context: Any = SimpleNamespace(request=SimpleNamespace(scope=scope))

    with pytest.raises(kind):
        await _call_tool(context, CallToolRequestParams(name="list_tasks"))


@each_era
class TestDatabase:
    async def test_while_it_is_down_calls_are_errors_of_a_kind_and_then_they_succeed(
        self, client: Client, network: FaultProxy, user: str, tool: Tool, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        await tool("add_task", title="a")
        network.refuses = True
        network.reset()

        caplog.clear()
        down = await tool("list_tasks")
        [line] = [vars(record) for record in caplog.records if record.name == "app.requests"]
        by_rest = (await client.get(f"/api/{user}/tasks")).json()
        network.refuses = False
        await until(lambda: succeeds(tool))

        assert by_rest["type"] == "urn:problem-type:database-unavailable"
        assert (line["levelname"], line["problem"]) == ("WARNING", "database-unavailable")  # as by REST
        assert down == f"database-unavailable: {by_rest['detail']}"

    async def test_a_call_whose_answer_is_lost_is_retried_if_it_may_be_repeated_and_else_its_outcome_is_unknown(
        self, network: FaultProxy, tool: Tool
    ) -> None:
        network.cut(1)
        task = await tool("add_task", title="a")
        network.cut(1)
        completed = await tool("complete_task", task_id=task["task_id"])
        [listed] = (await tool("list_tasks"))["tasks"]
        network.cut(1)
        updated = await tool("update_task", task_id=listed["id"], title="b", if_updated_at=listed["updated_at"])

        assert completed["status"] == "completed"
        assert updated.startswith("outcome-unknown: ")
        assert [task["title"] for task in (await tool("list_tasks"))["tasks"]] == ["b"]


async def succeeds(tool: Tool) -> bool:
    return isinstance(await tool("list_tasks"), dict)


async def test_a_subscription_is_refused_at_once(client: Client) -> None:
    """Its answer would be a stream. The SDK then waits for the client to leave, beside the handler that refuses it."""
    headers, body = message(MODERN, "subscriptions/listen", notifications={})
    before = len(asyncio.all_tasks())

    reply = await client.post("/mcp", headers=headers, content=body)

    assert (reply.status_code, reply.json()["error"]["code"]) == (404, -32601)
    await until(lambda: len(asyncio.all_tasks()) == before)


@asynccontextmanager
async def ending(dsn: str, directory: Path, user: str, seconds: int) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Yields a change by REST and one by each revision, for whose task they wait while the service gets SIGTERM.

    They may go on at the end. Then the service has ended well.
    """
    settings = {"DATABASE_URL": dsn, "AUTH_JWT_SECRET": SECRET, "MCP": "on", "SHUTDOWN_TIMEOUT": str(seconds)}
    with Service(directory, settings, module="tests.patient") as service:
        async with (
            Client(base_url=(await asyncio.to_thread(service.ready)).url, timeout=600, headers=bearer(user)) as client,
            connected(dsn) as database,
        ):
            path = f"/api/{user}/tasks"
            task = (await client.post(path, json={"title": "a"})).raise_for_status().json()["id"]
            calls = [call(era, "update_task", task_id=task, title="b") for era in ERAS]
            async with database.transaction():
                await database.execute("SELECT FROM tasks WHERE user_id = $1 FOR UPDATE", user)
                changes = [client.put(f"{path}/{task}", json={"title": "b"})]
                changes += [client.post("/mcp", headers=headers, content=body) for headers, body in calls]
                changing = [asyncio.create_task(change) for change in changes]
                await until(lambda: database.fetchval(f"{WAITING} HAVING count(*) = 3"))
                service.process.terminate()
                await until(lambda: is_refused(service))
                yield changing
            await asyncio.wait(changing)
        assert await asyncio.to_thread(service.process.wait, 60) == 0
        assert (service.stderr, "Traceback" in service.stdout) == ("", False)


class TestEnd:
    @pytest.mark.ci
    async def test_calls_in_flight_are_answered(self, dsn: str, tmp_path: Path, user: str) -> None:
        async with ending(dsn, tmp_path, user, seconds=600) as changing:
            pass

        assert [change.result().status_code for change in changing] == [200] * 3
        assert [change.result().json()["result"]["structuredContent"]["title"] for change in changing[1:]] == ["b"] * 2

    async def test_calls_that_take_longer_than_the_shutdown_timeout_are_answered_with_the_problem_of_rest(
        self, dsn: str, tmp_path: Path, user: str
    ) -> None:
        async with ending(dsn, tmp_path, user, seconds=3) as changing:
            await asyncio.wait(changing)

        assert [change.result().status_code for change in changing] == [503] * 3
        assert {change.result().json()["type"] for change in changing} == {"urn:problem-type:shutting-down"}

"""Calls of tools whose client leaves, whose service ends, and whose database fails end as requests of REST do."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import AsyncMock

import asyncpg
import httpx
import pytest
from mcp_types import CallToolRequestParams

from app.http.remarks import REMARKS
from app.routes.mcp import _call_tool
from tests.agents import ERAS, SETTINGS, Agent, call, client_of, token_of
from tests.faults import FaultProxy
from tests.server.support import Connection, waits_for_a_lock
from tests.service import Service
from tests.support import make_settings, until
from tests.test_rolling_restart import WAITING, is_refused

LOCK: Final = "SELECT FROM tasks WHERE user_id = $1 FOR UPDATE"


@pytest.fixture
async def agents(network: FaultProxy) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service with one connection to the database."""
    async with client_of(make_settings(network.dsn, database_pool_size=1, **SETTINGS)) as client:
        yield client


async def test_the_change_of_a_client_that_leaves_is_made_and_no_task_no_connection_in_use_and_no_error_are_left(
    agent: Agent, database: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    before = len(asyncio.all_tasks())
    task = (await agent.done("add_task", title="a"))["task_id"]
    headers, body = call(agent.era, "update_task", task_id=task, title="b")
    request = agent.client.build_request("POST", "/mcp", headers=token_of(agent.user) | headers, json=body)
    lines = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    connection = Connection(str(agent.client.base_url))

    async with database.transaction():
        await database.execute(LOCK, agent.user)
        await connection.send(f"POST /mcp HTTP/1.1\r\n{lines}\r\n".encode() + request.content)
        await waits_for_a_lock(database)
        assert len(asyncio.all_tasks()) > before
        connection.socket.close()
    await until(lambda: len(asyncio.all_tasks()) == before)

    [changed] = (await agent.done("list_tasks"))["tasks"]  # by the only connection
    assert changed["title"] == "b"
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit])
async def test_an_exception_that_ends_a_task_or_a_program_is_no_defect(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.services.tasks.list_tasks", AsyncMock(side_effect=kind))
    scope = {"headers": [], "fastapi": {}, REMARKS: {}, "state": {"database": None, "user_id": "ada"}}
    context: Any = SimpleNamespace(request=SimpleNamespace(scope=scope))

    with pytest.raises(kind):
        await _call_tool(context, CallToolRequestParams(name="list_tasks"))


async def test_while_the_database_is_down_calls_are_errors_of_a_kind_and_then_they_succeed(
    agent: Agent, network: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await agent.done("add_task", title="a")
    network.refuses = True
    network.reset()

    async def succeeds() -> bool:
        return (await agent.call("list_tasks")).content is not None

    caplog.clear()
    down = await agent.error("list_tasks")
    [line] = [vars(record) for record in caplog.records if record.name == "app.requests"]
    by_rest = (await agent.rest("GET")).json()
    network.refuses = False
    await until(succeeds)

    assert by_rest["type"] == "urn:problem-type:database-unavailable"
    assert (line["levelname"], line["problem"]) == ("WARNING", "database-unavailable")  # as by REST
    assert down == f"database-unavailable: {by_rest['detail']}"


async def test_a_call_whose_answer_is_lost_is_retried_if_it_may_be_repeated_and_else_its_outcome_is_unknown(
    agent: Agent, network: FaultProxy
) -> None:
    network.cut(1)
    task = await agent.done("add_task", title="a")
    network.cut(1)
    await agent.done("complete_task", task_id=task["task_id"])
    [listed] = await agent.tasks()
    network.cut(1)
    change = {"task_id": listed["id"], "title": "b", "if_updated_at": listed["updated_at"]}

    assert (await agent.error("update_task", **change)).startswith("outcome-unknown: ")
    assert [task["title"] for task in await agent.tasks()] == ["b"]


async def test_a_subscription_is_refused_at_once(agents: httpx.AsyncClient) -> None:
    """Its answer would be a stream. The SDK then waits for the client to leave, beside the handler that refuses it."""
    before = len(asyncio.all_tasks())

    reply = await Agent(agents, "ada").send("subscriptions/listen", notifications={"toolsListChanged": True})

    assert (reply.status_code, reply.json()["error"]["code"]) == (404, -32601)
    await until(lambda: len(asyncio.all_tasks()) == before)


@pytest.mark.ci
@pytest.mark.parametrize(("seconds", "status"), [(600, 200), (3, 503)])
async def test_when_a_service_ends_its_calls_are_answered_and_those_that_take_longer_have_the_problem_of_rest(
    dsn: str, database: asyncpg.Connection, tmp_path: Path, user: str, seconds: int, status: int
) -> None:
    settings = {name.upper(): value for name, value in SETTINGS.items()}
    settings |= {"DATABASE_URL": dsn, "SHUTDOWN_TIMEOUT": str(seconds)}
    with Service(tmp_path, settings, module="tests.patient") as service:
        await asyncio.to_thread(service.ready)
        async with httpx.AsyncClient(base_url=service.url, timeout=600) as client:
            agents = [Agent(client, user, era) for era in ERAS]
            change = {"task_id": (await agents[0].done("add_task", title="a"))["task_id"], "title": "b"}
            async with database.transaction():
                await database.execute(LOCK, user)
                changes = [agent.send("tools/call", name="update_task", arguments=change) for agent in agents]
                changes.append(agents[0].rest("PUT", f"/{change['task_id']}", json=change))
                changing = [asyncio.create_task(each) for each in changes]
                await until(lambda: database.fetchval(f"{WAITING} HAVING count(*) = 3"))
                service.process.terminate()
                await until(lambda: is_refused(service))
                if status == 503:
                    await asyncio.wait(changing)
            replies = await asyncio.gather(*changing)
        assert await asyncio.to_thread(service.process.wait, 60) == 0
        assert (service.stderr, "Traceback" in service.stdout) == ("", False)

    assert [reply.status_code for reply in replies] == [status] * 3
    if status == 503:
        assert {reply.json()["type"] for reply in replies} == {"urn:problem-type:shutting-down"}
    else:
        assert [reply.json()["result"]["structuredContent"]["title"] for reply in replies[:2]] == ["b"] * 2

"""Calls of tools in both revisions of the protocol beside REST: users are not mixed, no change is lost, shares hold."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import asyncpg
import httpx
import pytest

from app.core.config import Settings
from tests.agents import ERAS, SETTINGS, Agent, client_of
from tests.conftest import Serve
from tests.support import make_settings, until

pytestmark = pytest.mark.unmeasured

Task = dict[str, Any]

REST: Final = "REST"
WAYS: Final = (*ERAS, REST)
USERS: Final = 10
OF_EACH: Final = 5  # times that each user sends each request, in each way
APPENDS: Final = 4


@pytest.fixture
async def agents(configure: Callable[..., Settings], serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(configure(**SETTINGS, database_pool_timeout=60), serve) as client:
        yield client


async def add(agent: Agent, title: str) -> None:
    if agent.era == REST:
        (await agent.rest("POST", json={"title": title})).raise_for_status()
    else:
        await agent.done("add_task", title=title)


async def listed(agent: Agent) -> list[Task]:
    return await agent.tasks() if agent.era == REST else list((await agent.done("list_tasks"))["tasks"])


async def is_renamed(agent: Agent, task: Task, title: str, version: str | None) -> bool:
    """Rename the task, unless it has changed since this version."""
    if agent.era == REST:
        condition = {"If-Match": f'"{version}"'} if version else {}
        return (await agent.rest("PUT", f"/{task['id']}", json={"title": title}, headers=condition)).is_success
    outcome = await agent.call("update_task", task_id=task["id"], title=title, if_updated_at=version)
    assert outcome.content or outcome.texts[0].startswith("precondition-failed: ")
    return outcome.content is not None


@pytest.mark.ci
async def test_500_calls_at_once_beside_rest_are_all_applied_and_mix_no_users(
    agents: httpx.AsyncClient, new_user: Callable[[], str]
) -> None:
    users = [[Agent(agents, user, way) for way in WAYS] for user in (new_user() for _ in range(USERS))]
    seen: set[tuple[str, str]] = set()  # users, and the owners of the tasks in their lists

    async def look(agent: Agent) -> None:
        seen.update((agent.user, task["user_id"]) for task in await listed(agent))

    requests: list[Awaitable[Any]] = []
    for ways in users:
        await add(ways[0], "shared")
        [shared] = await listed(ways[0])
        for number in range(OF_EACH):
            # Ten calls of tools, and two requests by REST.
            requests += [add(agent, f"{agent.era} {number}") for agent in ways]
            requests += [look(agent) for agent in ways]
            requests += [agent.done("complete_task", task_id=shared["id"]) for agent in ways[:2] * 3]
    await asyncio.gather(*requests)

    assert seen == {(user.user, user.user) for user, *_ in users}
    added = sorted(["shared", *(f"{way} {number}" for way in WAYS for number in range(OF_EACH))])
    for user, *_ in users:
        tasks = await user.tasks()
        assert sorted(task["title"] for task in tasks) == added
        assert [task["title"] for task in tasks if task["completed"]] == ["shared"]


@pytest.mark.parametrize("is_checked", [True, False], ids=["with the version", "positive control"])
async def test_no_change_is_lost_if_tools_and_rest_send_the_version_that_they_have_seen(
    agents: httpx.AsyncClient, user: str, *, is_checked: bool
) -> None:
    async def append(agent: Agent, letter: str) -> None:
        for _ in range(APPENDS):
            renamed = False
            while not renamed:
                [task] = await listed(agent)
                version = task["updated_at"] if is_checked else None
                renamed = await is_renamed(agent, task, task["title"] + letter, version)

    appending = [Agent(agents, user, way) for way in WAYS * 2]
    await add(appending[0], "-")
    await asyncio.gather(*(append(*each) for each in zip(appending, "abcdef", strict=True)))

    [task] = await appending[0].tasks()
    assert (sorted(task["title"]) == sorted("-" + "abcdef" * APPENDS)) is is_checked


@pytest.mark.parametrize("era", ERAS)
async def test_calls_of_a_user_that_are_stuck_do_not_keep_others_waiting_and_those_above_its_share_are_overloaded(
    dsn: str, database: asyncpg.Connection, user: str, era: str
) -> None:
    limits = {"database_pool_size": 2, "database_pool_timeout": 60, "concurrency_limit": 8}
    async with client_of(make_settings(dsn, **SETTINGS, **limits)) as client:
        greedy = Agent(client, user, era)
        change = {"task_id": (await greedy.done("add_task", title="a"))["task_id"], "title": "b"}
        async with database.transaction():
            await database.execute("SELECT FROM tasks WHERE user_id = $1 FOR UPDATE", user)
            calls = [asyncio.create_task(greedy.call("update_task", **change)) for _ in range(50)]
            await until(lambda: sum(call.done() for call in calls) == 45)  # one runs, and four wait
            by_rest = await greedy.rest("GET")
            created = await greedy.eve.rest("POST", json={"title": "c"})
            shown = await greedy.eve.done("list_tasks")
        refusals = Counter(text for content, [text] in await asyncio.gather(*calls) if content is None)

    assert (by_rest.status_code, created.status_code, shown["tasks"]) == (503, 201, [created.json()])
    assert refusals == {f"overloaded: {by_rest.json()['detail']}": 45}

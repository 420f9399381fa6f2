"""Under load, no toggle is lost, and no user sees or changes another user's tasks."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from itertools import cycle, pairwise, product
from operator import itemgetter
from typing import Any, Final, NamedTuple

import asyncpg
import httpx
import pytest

CLIENTS: Final = 50
TOGGLES: Final = 1_000
MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"

Client = httpx.AsyncClient
Task = dict[str, Any]
Work = Callable[[Client], Awaitable[Any]]
Observation = tuple[int, str, frozenset[tuple[str, str]]]


@pytest.fixture(scope="module")
async def clients(base_url: str) -> AsyncIterator[list[Client]]:
    """Clients, each with its own connection."""
    context = ssl.create_default_context()  # unused, but slow to create fifty times
    async with AsyncExitStack() as stack:
        made = [Client(base_url=base_url, timeout=60, verify=context) for _ in range(CLIENTS)]
        yield [await stack.enter_async_context(client) for client in made]


async def share(clients: list[Client], works: Iterable[Work]) -> list[Any]:
    """Run all pieces of work, shared among the concurrent clients. Returns the results."""
    pieces = iter(works)
    results: list[Any] = []

    async def serve(client: Client) -> None:
        results.extend([await work(client) for work in pieces])

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(serve(client))
    return results


def create(owner: str) -> Work:
    async def work(client: Client) -> Task:
        reply = await client.post(f"/api/{owner}/tasks", json={"title": f"A secret of {owner}"})
        assert reply.status_code == 201
        task: Task = reply.json()
        assert task["user_id"] == owner
        return task

    return work


def read_tasks(owner: str) -> Work:
    """List the tasks, and read one of them."""

    async def work(client: Client) -> None:
        tasks = (await client.get(f"/api/{owner}/tasks")).json()
        one = (await client.get(f"/api/{owner}/tasks/{tasks[-1]['id']}")).json()
        assert {task["user_id"] for task in (*tasks, one)} == {owner}

    return work


def toggle(task: Task) -> Work:
    async def work(client: Client) -> Task:
        reply = await client.patch(f"/api/{task['user_id']}/tasks/{task['id']}/complete")
        assert reply.status_code == 200
        toggled: Task = reply.json()
        assert toggled["user_id"] == task["user_id"]
        return toggled

    return work


def read_flip_write(task: Task) -> Work:
    """What a client without the toggle operation does."""

    async def work(client: Client) -> Task:
        path = f"/api/{task['user_id']}/tasks/{task['id']}"
        completed = (await client.get(path)).json()["completed"]
        flipped: Task = (await client.put(path, json={"completed": not completed})).json()
        return flipped

    return work


def alternate(replies: list[Task]) -> bool:
    """Whether the state alternates from version to version, and no version occurs twice."""
    return all(
        earlier["updated_at"] < later["updated_at"] and earlier["completed"] != later["completed"]
        for earlier, later in pairwise(sorted(replies, key=itemgetter("updated_at")))
    )


async def test_a_thousand_concurrent_toggles_are_all_applied_during_concurrent_reads(
    clients: list[Client], new_user: Callable[[], str]
) -> None:
    ada, bob = new_user(), new_user()
    tasks = await share(clients, [create(owner) for owner in (ada, bob) for _ in range(200)])
    task = next(task for task in tasks if task["user_id"] == ada)
    reads = [read_tasks(owner) for owner in (ada, bob) for _ in range(TOGGLES // 20)]

    results = await share(clients, [work for read in reads for work in (read, *[toggle(task)] * 10)])

    replies = [result for result in results if result]
    assert len(replies) == TOGGLES
    assert alternate(replies)
    after = (await clients[0].get(f"/api/{ada}/tasks/{task['id']}")).json()
    assert after["completed"] is False
    assert after["updated_at"] == max(reply["updated_at"] for reply in replies)


async def test_read_flip_and_write_loses_updates_under_a_fifth_of_the_load(
    clients: list[Client], task: dict[str, Any]
) -> None:
    """The positive control of the test above."""
    replies = await share(clients, [read_flip_write(task)] * (TOGGLES // 5))

    assert len(replies) == TOGGLES // 5
    assert not alternate(replies)


class Attempt(NamedTuple):
    """A request for a task. "current" in a header stands for the task's own entity tag."""

    method: str
    suffix: str = ""
    json: Task | None = None
    headers: tuple[tuple[str, str], ...] = ()


IF_CURRENT: Final = (("If-Match", "current"),)
IF_ANY: Final = (("If-Match", "*"),)
ATTEMPTS: Final = (
    Attempt("GET"),
    Attempt("GET", headers=(("If-None-Match", "current"),)),
    Attempt("PUT", json={"title": "Stolen", "completed": True}),
    Attempt("PUT", json={}, headers=IF_CURRENT),
    Attempt("PATCH", "/complete"),
    Attempt("PATCH", "/complete", {"completed": True}, IF_CURRENT),
    Attempt("DELETE"),
    Attempt("DELETE", headers=IF_ANY),
)


def reach(user: str, task: Task, number: int) -> Work:
    """Request a task that is missing or another user's. Returns everything that the reply reveals."""
    method, suffix, content, conditions = ATTEMPTS[number]
    tag = f'"{task["updated_at"]}"'
    headers = {name: value.replace("current", tag) for name, value in conditions}

    async def work(client: Client) -> tuple[int, Observation]:
        reply = await client.request(method, f"/api/{user}/tasks/{task['id']}{suffix}", json=content, headers=headers)
        observed = {name: value for name, value in reply.headers.items() if name not in {"date", "x-request-id"}}
        return number, (
            reply.status_code,
            reply.text.replace(reply.headers["X-Request-ID"], ""),
            frozenset(observed.items()),
        )

    return work


async def test_a_foreign_task_gets_the_reply_of_a_missing_task_and_is_not_changed(
    clients: list[Client], database: asyncpg.Connection, new_user: Callable[[], str]
) -> None:
    owners = [new_user() for _ in range(3)]
    tasks = await share(clients, [create(owner) for owner in owners for _ in range(8)])

    async def fingerprint() -> str:
        query = "SELECT md5(string_agg(t::text, '\n' ORDER BY t.id)) FROM tasks t WHERE t.id = ANY($1)"
        digest: str = await database.fetchval(query, [task["id"] for task in tasks])
        return digest

    before = await fingerprint()
    missing = {"id": MISSING, "user_id": None, "updated_at": tasks[0]["updated_at"]}
    foreign = [(user, task) for task, user in product([*tasks, missing], owners) if task["user_id"] != user]
    reaches = [reach(user, task, number) for user, task in foreign for number in range(len(ATTEMPTS))]
    ordinary = cycle([*map(read_tasks, owners), *map(create, owners)])
    results = await share(clients, [work for pair in zip(reaches, ordinary, strict=False) for work in pair])

    observed = {result for result in results if isinstance(result, tuple)}
    assert sorted(number for number, _ in observed) == list(range(len(ATTEMPTS)))  # one reply each
    for number, (status, problem, _) in observed:
        assert status == (412 if ATTEMPTS[number].headers == IF_ANY else 404)
        assert json.loads(problem)["detail"] == "There is no such task."
    assert await fingerprint() == before

    await share(clients, [toggle(tasks[0])])
    assert await fingerprint() != before

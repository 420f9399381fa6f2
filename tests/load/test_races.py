"""Concurrent writes: with If-Match no update is lost, and with Idempotency-Key no task is created twice."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable
from itertools import repeat
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx
import pytest

Client = httpx.AsyncClient
Task = dict[str, Any]

CLIENTS: Final = 20
LETTERS: Final = "abcde"  # one client for each letter
APPENDS: Final = 4
ONCE: Final = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}


def if_match(seen: Task) -> dict[str, str]:
    return {"If-Match": f'"{seen["updated_at"]}"'}


def made(replies: Iterable[httpx.Response]) -> list[httpx.Response]:
    """The replies to the requests that created a task."""
    return [reply for reply in replies if reply.status_code == 201 and "Idempotent-Replayed" not in reply.headers]


async def at_once(requests: Iterable[Awaitable[httpx.Response]]) -> tuple[list[httpx.Response], Counter[int]]:
    """Returns the replies, and the number of replies with each status."""
    replies = await asyncio.gather(*requests)
    return replies, Counter(reply.status_code for reply in replies)


class TestIfMatch:
    async def test_one_of_many_clients_with_the_same_version_updates_the_task(
        self, client: Client, path: str, task: Task
    ) -> None:
        replies, statuses = await at_once(
            client.put(path, json={"title": f"Title {number}"}, headers=if_match(task)) for number in range(CLIENTS)
        )

        assert statuses == {200: 1, 412: CLIENTS - 1}
        [winner] = [reply for reply in replies if reply.status_code == 200]
        assert (await client.get(path)).json() == winner.json()
        assert {reply.headers["ETag"] for reply in replies} == {winner.headers["ETag"]}

    async def test_one_of_many_clients_with_the_same_version_toggles_the_task(
        self, client: Client, path: str, task: Task
    ) -> None:
        _, statuses = await at_once(client.patch(f"{path}/complete", headers=if_match(task)) for _ in range(CLIENTS))

        assert statuses == {200: 1, 412: CLIENTS - 1}
        assert (await client.get(path)).json()["completed"] is True

    async def test_one_of_many_clients_with_the_same_version_deletes_the_task(
        self, client: Client, path: str, task: Task
    ) -> None:
        _, statuses = await at_once(client.delete(path, headers=if_match(task)) for _ in range(CLIENTS))

        assert statuses[204] == 1
        assert statuses[404] + statuses[412] == CLIENTS - 1

    async def test_one_of_many_clients_with_the_same_version_updates_or_deletes_the_task(
        self, client: Client, path: str, task: Task
    ) -> None:
        seen = if_match(task)

        _, statuses = await at_once(
            request
            for _ in range(CLIENTS // 2)
            for request in (client.put(path, json={"title": "b"}, headers=seen), client.delete(path, headers=seen))
        )

        assert statuses[200] + statuses[204] == 1
        assert statuses[404] + statuses[412] == CLIENTS - 1
        assert (await client.get(path)).status_code == (200 if statuses[200] else 404)

    async def test_a_write_that_waited_for_the_row_still_checks_its_version(
        self, database: asyncpg.Connection, client: Client, path: str, task: Task
    ) -> None:
        """The timing is fixed here: both writes wait for the row before either may proceed."""
        async with database.transaction(), asyncio.timeout(10):
            await database.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", UUID(task["id"]))
            update = client.put(path, json={"title": "b"}, headers=if_match(task))
            toggle = client.patch(f"{path}/complete", headers=if_match(task))
            writes = [asyncio.create_task(write) for write in (update, toggle)]
            while await database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < len(writes):
                assert not any(write.done() for write in writes)

        _, statuses = await at_once(writes)

        assert statuses == {200: 1, 412: 1}

    async def test_all_clients_write_without_if_match(self, client: Client, path: str) -> None:
        """The positive control of the tests above."""
        _, updates = await at_once(client.put(path, json={"title": "b"}) for _ in range(CLIENTS))
        _, toggles = await at_once(client.patch(f"{path}/complete") for _ in range(CLIENTS))

        assert updates == toggles == {200: CLIENTS}


async def append(client: Client, seen: Task, letter: str, *, conditional: bool) -> None:
    """Append the letter to the description APPENDS times, as a client that has `seen` the task. Reread after a 412."""
    path = f"/api/{seen['user_id']}/tasks/{seen['id']}"
    for _ in repeat(None, APPENDS):
        while True:
            longer = {"description": seen["description"] + letter}
            reply = await client.put(path, json=longer, headers=if_match(seen) if conditional else {})
            if reply.status_code != 412:
                break
            seen = (await client.get(path)).json()
        seen = reply.json()


@pytest.mark.parametrize("conditional", [True, False], ids=["with If-Match", "control without If-Match"])
async def test_only_if_match_prevents_lost_updates(client: Client, tasks: str, conditional: bool) -> None:
    seen = (await client.post(tasks, json={"title": "a", "description": ""})).json()

    async with asyncio.TaskGroup() as group:
        for letter in LETTERS:
            group.create_task(append(client, seen, letter, conditional=conditional))

    [after] = (await client.get(tasks)).json()
    assert (sorted(after["description"]) == sorted(LETTERS * APPENDS)) == conditional


class TestIdempotencyKey:
    async def test_concurrent_creations_with_one_key_create_and_return_one_task(
        self, client: Client, tasks: str
    ) -> None:
        replies, statuses = await at_once(client.post(tasks, json={"title": "a"}, headers=ONCE) for _ in range(CLIENTS))

        assert statuses == {201: CLIENTS}
        assert len(made(replies)) == 1
        assert len({reply.content for reply in replies}) == 1
        assert (await client.get(tasks)).json() == [replies[0].json()]

    async def test_concurrent_creations_without_a_key_create_one_task_each(self, client: Client, tasks: str) -> None:
        """The positive control of the test above."""
        replies, _ = await at_once(client.post(tasks, json={"title": "a"}) for _ in range(CLIENTS))

        assert len(made(replies)) == CLIENTS
        assert len((await client.get(tasks)).json()) == CLIENTS

    async def test_concurrent_creations_of_different_tasks_with_one_key_create_one_task(
        self, client: Client, tasks: str
    ) -> None:
        replies, statuses = await at_once(
            client.post(tasks, json={"title": f"Title {number}"}, headers=ONCE) for number in range(CLIENTS)
        )

        assert statuses == {201: 1, 422: CLIENTS - 1}
        assert (await client.get(tasks)).json() == [made(replies)[0].json()]

    async def test_a_task_created_during_deletes_is_deleted_once_or_still_exists(
        self, client: Client, tasks: str
    ) -> None:
        first = await client.post(tasks, json={"title": "a"}, headers=ONCE)

        replies, statuses = await at_once(
            request
            for _ in range(CLIENTS)
            for request in (
                client.post(tasks, json={"title": "a"}, headers=ONCE),
                client.delete(first.headers["Location"]),
            )
        )

        assert (statuses[201], statuses[204] + statuses[404]) == (CLIENTS, CLIENTS)
        assert 1 + len(made(replies)) - statuses[204] == len((await client.get(tasks)).json())

"""Concurrent writes: with If-Match no update is lost, and with Idempotency-Key no task is created twice."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable
from itertools import cycle, islice, repeat
from typing import Any, Final

import httpx
import pytest

pytestmark = pytest.mark.unmeasured

Client = httpx.AsyncClient
Task = dict[str, Any]
Write = tuple[str, str, Task | None]

CLIENTS: Final = 20
LETTERS: Final = "abcde"  # one client for each letter
APPENDS: Final = 4
ONCE: Final = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
UPDATE: Final[Write] = ("PUT", "", {"title": "b"})
TOGGLE: Final[Write] = ("PATCH", "/complete", None)
DELETE: Final[Write] = ("DELETE", "", None)


def tag(seen: Task) -> str:
    return f'"{seen["updated_at"]}"'


def made(replies: Iterable[httpx.Response]) -> list[httpx.Response]:
    """The replies to the requests that created a task."""
    return [reply for reply in replies if reply.status_code == 201 and "Idempotent-Replayed" not in reply.headers]


async def at_once(requests: Iterable[Awaitable[httpx.Response]]) -> tuple[list[httpx.Response], Counter[int]]:
    """Returns the replies, and the number of replies with each status."""
    replies = await asyncio.gather(*requests)
    return replies, Counter(reply.status_code for reply in replies)


class TestIfMatch:
    @pytest.mark.parametrize("writes", [[UPDATE], [TOGGLE], [DELETE], [UPDATE, TOGGLE, DELETE]], ids=str)
    async def test_one_of_many_clients_with_the_same_version_changes_the_task(
        self, client: Client, path: str, task: Task, writes: list[Write]
    ) -> None:
        replies, statuses = await at_once(
            client.request(method, path + suffix, json=body, headers={"If-Match": tag(task)})
            for method, suffix, body in islice(cycle(writes), CLIENTS)
        )

        [winner] = [reply for reply in replies if reply.is_success]
        after = await client.get(path)
        assert statuses[404] + statuses[412] == CLIENTS - 1
        assert after.status_code == (404 if winner.status_code == 204 else 200)
        assert winner.status_code == 204 or after.json() == winner.json()

    async def test_all_clients_write_without_if_match(self, client: Client, path: str) -> None:
        """The positive control of the test above."""
        for method, suffix, body in (UPDATE, TOGGLE):
            _, statuses = await at_once(client.request(method, path + suffix, json=body) for _ in range(CLIENTS))
            assert statuses == {200: CLIENTS}


async def append(client: Client, seen: Task, letter: str, *, conditional: bool) -> None:
    """Append the letter to the description APPENDS times, as a client that has `seen` the task. Reread after a 412."""
    path = f"/api/{seen['user_id']}/tasks/{seen['id']}"
    for _ in repeat(None, APPENDS):
        while True:
            longer = {"description": seen["description"] + letter}
            reply = await client.put(path, json=longer, headers={"If-Match": tag(seen)} if conditional else {})
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
    @pytest.mark.parametrize(("headers", "number"), [(ONCE, 1), ({}, CLIENTS)], ids=["with key", "control without key"])
    async def test_only_a_key_makes_concurrent_creations_create_one_task(
        self, client: Client, tasks: str, headers: dict[str, str], number: int
    ) -> None:
        replies, statuses = await at_once(
            client.post(tasks, json={"title": "a"}, headers=headers) for _ in range(CLIENTS)
        )

        assert statuses == {201: CLIENTS}
        assert len(made(replies)) == len({reply.content for reply in replies}) == number
        assert len((await client.get(tasks)).json()) == number

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
        path = (await client.post(tasks, json={"title": "a"}, headers=ONCE)).headers["Location"]

        replies, statuses = await at_once(
            request
            for _ in range(CLIENTS)
            for request in (client.post(tasks, json={"title": "a"}, headers=ONCE), client.delete(path))
        )

        assert (statuses[201], statuses[204] + statuses[404]) == (CLIENTS, CLIENTS)
        assert 1 + len(made(replies)) - statuses[204] == len((await client.get(tasks)).json())

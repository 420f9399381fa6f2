"""If-Match under load: of clients that saw the same version one writes, so no update is lost."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable
from itertools import repeat
from typing import Any, Final

import httpx
import pytest

Client = httpx.AsyncClient
Task = dict[str, Any]

CLIENTS: Final = 20
LETTERS: Final = "abcde"  # a client each
APPENDS: Final = 4


def if_match(seen: Task) -> dict[str, str]:
    return {"If-Match": f'"{seen["updated_at"]}"'}


async def at_once(requests: Iterable[Awaitable[httpx.Response]]) -> tuple[list[httpx.Response], Counter[int]]:
    """Returns the replies, and how often each status is among them."""
    replies = await asyncio.gather(*requests)
    return replies, Counter(reply.status_code for reply in replies)


class TestOfClientsThatSawTheSameVersion:
    async def test_one_updates_the_task(self, client: Client, path: str, task: Task) -> None:
        replies, statuses = await at_once(
            client.put(path, json={"title": f"Title {number}"}, headers=if_match(task)) for number in range(CLIENTS)
        )

        assert statuses == {200: 1, 412: CLIENTS - 1}
        [winner] = [reply for reply in replies if reply.status_code == 200]
        assert (await client.get(path)).json() == winner.json()
        assert {reply.headers["ETag"] for reply in replies} == {winner.headers["ETag"]}

    async def test_one_toggles_it(self, client: Client, path: str, task: Task) -> None:
        _, statuses = await at_once(client.patch(f"{path}/complete", headers=if_match(task)) for _ in range(CLIENTS))

        assert statuses == {200: 1, 412: CLIENTS - 1}
        assert (await client.get(path)).json()["completed"] is True

    async def test_one_deletes_it(self, client: Client, path: str, task: Task) -> None:
        _, statuses = await at_once(client.delete(path, headers=if_match(task)) for _ in range(CLIENTS))

        assert statuses[204] == 1
        assert statuses[404] + statuses[412] == CLIENTS - 1

    async def test_one_updates_or_deletes_it(self, client: Client, path: str, task: Task) -> None:
        """Whichever is first: the other is told that the task changed, or that it is gone."""
        headers = if_match(task)
        updates = (client.put(path, json={"title": "Buy soy milk"}, headers=headers) for _ in range(CLIENTS // 2))
        deletions = (client.delete(path, headers=headers) for _ in range(CLIENTS // 2))

        _, statuses = await at_once(request for pair in zip(updates, deletions, strict=True) for request in pair)

        assert statuses[200] + statuses[204] == 1
        assert statuses[404] + statuses[412] == CLIENTS - 1
        assert (await client.get(path)).status_code == (200 if statuses[200] else 404)

    async def test_all_write_without_if_match(self, client: Client, path: str) -> None:
        """The positive control of the tests above."""
        _, updates = await at_once(client.put(path, json={"title": "Buy soy milk"}) for _ in range(CLIENTS))
        _, toggles = await at_once(client.patch(f"{path}/complete") for _ in range(CLIENTS))

        assert updates == toggles == {200: CLIENTS}


async def append(client: Client, seen: Task, letter: str, *, conditional: bool) -> None:
    """Add the letter to the description some times, as a client that has `seen` the task; look again after a 412."""
    path = f"/api/{seen['user_id']}/tasks/{seen['id']}"
    for _ in repeat(None, APPENDS):
        while True:
            longer = {"description": seen["description"] + letter}
            reply = await client.put(path, json=longer, headers=if_match(seen) if conditional else {})
            if reply.status_code != 412:
                break
            seen = (await client.get(path)).json()
        seen = reply.json()


@pytest.mark.parametrize("conditional", [True, False], ids=["with If-Match", "control without"])
async def test_read_modify_and_write_loses_no_update(client: Client, tasks: str, conditional: bool) -> None:
    seen = (await client.post(tasks, json={"title": "Buy oat milk", "description": ""})).json()

    async with asyncio.TaskGroup() as group:
        for letter in LETTERS:
            group.create_task(append(client, seen, letter, conditional=conditional))

    [after] = (await client.get(tasks)).json()
    assert (sorted(after["description"]) == sorted(LETTERS * APPENDS)) == conditional

"""PUT /api/{user_id}/tasks/{task_id}. See test_fields_of_tasks.py for the values that it refuses."""

from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest


@pytest.mark.parametrize(
    "changes",
    [
        {"title": "Buy two oat milks"},
        {"description": "Any brand"},
        {"description": ""},
        {"description": None},
        {"completed": True},
        {"title": "Buy soy milk", "description": None, "completed": True},
    ],
)
async def test_an_update_changes_the_sent_fields_and_keeps_the_others(
    client: httpx.AsyncClient, path: str, task: dict[str, Any], changes: dict[str, Any]
) -> None:
    reply = await client.put(path, json=changes)

    changed = reply.json()
    assert reply.status_code == 200
    assert changed == task | changes | {"updated_at": changed["updated_at"]}
    assert changed["updated_at"] > task["updated_at"]
    assert (await client.get(path)).json() == changed


async def test_a_later_update_keeps_a_completed_state_and_a_cleared_description(
    client: httpx.AsyncClient, path: str
) -> None:
    before = (await client.put(path, json={"completed": True, "description": None})).json()

    after = (await client.put(path, json={"title": "Buy soy milk"})).json()

    assert after == before | {"title": "Buy soy milk", "updated_at": after["updated_at"]}


@pytest.mark.parametrize("completed", [True, False])
async def test_a_state_of_null_keeps_the_state(client: httpx.AsyncClient, path: str, completed: bool) -> None:
    before = (await client.put(path, json={"completed": completed})).json()

    unchanged = await client.put(path, json={"completed": None}, headers={"Prefer": "handling=strict"})
    renamed = await client.put(path, json={"completed": None, "title": "Buy soy milk"})

    assert unchanged.json() == before
    assert renamed.json() == before | {"title": "Buy soy milk", "updated_at": renamed.json()["updated_at"]}


@pytest.mark.parametrize("body", [{}, {"mood": "high"}, {"id": str(uuid4()), "created_at": None}])
async def test_an_update_without_a_known_field_changes_nothing(
    client: httpx.AsyncClient, path: str, task: dict[str, Any], body: dict[str, Any]
) -> None:
    reply = await client.put(path, json=body)

    assert (reply.status_code, reply.json()) == (200, task)
    assert reply.headers.get("Ignored-Fields", "") == ", ".join(body)
    assert (await client.get(path)).json() == task


async def test_a_whole_task_can_be_sent_back(client: httpx.AsyncClient, path: str, task: dict[str, Any]) -> None:
    reply = await client.put(path, json=task | {"title": "Buy soy milk", "user_id": "somebody"})

    assert reply.json() == task | {"title": "Buy soy milk", "updated_at": reply.json()["updated_at"]}
    assert reply.headers["Ignored-Fields"] == "id, user_id, created_at, updated_at"


async def test_updated_at_increases_with_every_update_even_if_the_clock_is_behind(
    database: asyncpg.Connection, client: httpx.AsyncClient, path: str, task: dict[str, Any]
) -> None:
    ahead = "UPDATE tasks SET updated_at = '2100-01-01 00:00:00.999999Z' WHERE id = $1"
    await database.execute(ahead, UUID(task["id"]))

    times = [(await client.put(path, json={"title": "Buy soy milk"})).json()["updated_at"] for _ in range(2)]

    assert times == ["2100-01-01T00:00:01.000000Z", "2100-01-01T00:00:01.000001Z"]

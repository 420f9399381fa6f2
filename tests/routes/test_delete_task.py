"""DELETE /api/{user_id}/tasks/{task_id}."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest


async def test_a_delete_returns_204_without_a_body(client: httpx.AsyncClient, tasks: str, task: dict[str, Any]) -> None:
    reply = await client.delete(f"{tasks}/{task['id']}")

    assert reply.status_code == 204
    assert reply.content == b""


@pytest.mark.parametrize(("method", "suffix"), [("GET", ""), ("PUT", ""), ("PATCH", "/complete"), ("DELETE", "")])
async def test_every_operation_on_a_deleted_task_is_404(
    client: httpx.AsyncClient, tasks: str, task: dict[str, Any], method: str, suffix: str
) -> None:
    await client.delete(f"{tasks}/{task['id']}")

    reply = await client.request(method, f"{tasks}/{task['id']}{suffix}", json={"completed": True})

    assert reply.status_code == 404
    assert reply.json()["type"] == "urn:problem-type:task-not-found"


async def test_a_delete_removes_only_its_task_from_the_list(
    client: httpx.AsyncClient, tasks: str, task: dict[str, Any]
) -> None:
    kept = (await client.post(tasks, json={"title": task["title"]})).json()

    await client.delete(f"{tasks}/{task['id']}")

    assert (await client.get(tasks)).json() == [kept]


async def test_deleting_a_missing_task_is_404(client: httpx.AsyncClient, tasks: str, task: dict[str, Any]) -> None:
    reply = await client.delete(f"{tasks}/{uuid4()}")

    assert reply.status_code == 404
    assert (await client.get(tasks)).json() == [task]


async def test_deleting_another_user_s_task_gives_the_404_of_a_missing_task(
    client: httpx.AsyncClient, new_user: Callable[[], str], tasks: str, task: dict[str, Any]
) -> None:
    own = f"/api/{new_user()}/tasks"

    foreign, missing = [await client.delete(f"{own}/{task_id}") for task_id in (task["id"], uuid4())]

    assert foreign.status_code == missing.status_code == 404
    assert foreign.json() | {"instance": ""} == missing.json() | {"instance": ""}
    assert (await client.get(f"{tasks}/{task['id']}")).json() == task


async def test_invalid_user_and_task_ids_are_refused(client: httpx.AsyncClient) -> None:
    reply = await client.delete("/api/a%20b/tasks/1")

    assert reply.status_code == 422
    assert [error["pointer"] for error in reply.json()["errors"]] == ["path/user_id", "path/task_id"]

"""Operations on a task that does not exist, was deleted or belongs to another user, and on malformed ids."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.support import pointers

pytestmark = pytest.mark.parametrize(
    ("method", "suffix", "body"),
    [
        ("GET", "", None),
        ("PUT", "", {"title": "Mine now"}),
        ("PUT", "", {}),
        ("PUT", "", {"priority": "high"}),
        ("PATCH", "/complete", None),
        ("PATCH", "/complete", {"completed": True}),
        ("DELETE", "", None),
    ],
)


async def test_a_missing_task_is_404_and_is_not_created(
    client: httpx.AsyncClient, tasks: str, task: dict[str, Any], method: str, suffix: str, body: object
) -> None:
    reply = await client.request(method, f"{tasks}/{uuid4()}{suffix}", json=body)

    assert reply.status_code == 404
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.json() == {
        "type": "urn:problem-type:task-not-found",
        "title": "Not found",
        "status": 404,
        "detail": "There is no such task.",
        "instance": reply.headers["X-Request-ID"],
    }
    assert (await client.get(tasks)).json() == [task]


async def test_a_deleted_task_is_404(
    client: httpx.AsyncClient, path: str, method: str, suffix: str, body: object
) -> None:
    await client.delete(path)

    assert (await client.request(method, path + suffix, json=body)).status_code == 404


async def test_another_user_s_task_gives_the_404_of_a_missing_task_and_is_not_changed(
    client: httpx.AsyncClient,
    new_user: Callable[[], str],
    path: str,
    task: dict[str, Any],
    *,
    method: str,
    suffix: str,
    body: object,
) -> None:
    own = f"/api/{new_user()}/tasks"

    foreign, missing = [
        await client.request(method, f"{own}/{item}{suffix}", json=body) for item in (task["id"], uuid4())
    ]

    assert foreign.status_code == missing.status_code == 404
    assert foreign.json() | {"instance": ""} == missing.json() | {"instance": ""}
    assert foreign.headers.keys() == missing.headers.keys()
    assert (await client.get(path)).json() == task


async def test_malformed_ids_of_user_and_task_are_refused(
    client: httpx.AsyncClient, method: str, suffix: str, body: object
) -> None:
    reply = await client.request(method, f"/api/a%20b/tasks/1{suffix}", json=body)

    assert pointers(reply) == ["path/user_id", "path/task_id"]

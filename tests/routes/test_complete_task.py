"""PATCH /api/{user_id}/tasks/{task_id}/complete."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

_JSON = {"Content-Type": "application/json"}


@pytest.fixture
def path(tasks: str, task: dict[str, Any]) -> str:
    """The path that completes this user's open task."""
    return f"{tasks}/{task['id']}/complete"


class TestToggle:
    @pytest.mark.parametrize(
        ("content", "headers"),
        [
            (None, {}),
            (None, _JSON),
            (b"", _JSON),
            (b"", {"Content-Type": "text/plain"}),
            (b"{}", _JSON),
            (b"null", _JSON),  # what axios sends for `patch(url, null)`
            (b'{"priority": "high"}', _JSON),
        ],
        ids=["no body", "no body as JSON", "empty as JSON", "empty as text", "{}", "null", "unknown field"],
    )
    async def test_each_request_without_a_state_toggles_the_task(
        self, client: httpx.AsyncClient, path: str, content: bytes | None, headers: dict[str, str]
    ) -> None:
        replies = [await client.patch(path, content=content, headers=headers) for _ in range(3)]

        assert [reply.status_code for reply in replies] == [200, 200, 200]
        assert [reply.json()["completed"] for reply in replies] == [True, False, True]

    async def test_a_toggle_returns_the_stored_task(
        self, client: httpx.AsyncClient, tasks: str, path: str, task: dict[str, Any]
    ) -> None:
        toggled = (await client.patch(path)).json()

        assert toggled == task | {"completed": True, "updated_at": toggled["updated_at"]}
        assert (await client.get(f"{tasks}/{task['id']}")).json() == toggled

    async def test_updated_at_increases_with_every_toggle(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any]
    ) -> None:
        toggled = [(await client.patch(path)).json() for _ in range(20)]

        times = [task["updated_at"], *(item["updated_at"] for item in toggled)]
        assert times == sorted(set(times))
        assert {item["created_at"] for item in toggled} == {task["created_at"]}

    async def test_updated_at_increases_even_if_the_clock_is_behind(
        self, database: asyncpg.Connection, client: httpx.AsyncClient, path: str, task: dict[str, Any]
    ) -> None:
        ahead = "UPDATE tasks SET updated_at = '2100-01-01 00:00:00Z' WHERE id = $1"
        await database.execute(ahead, UUID(task["id"]))

        times = [(await client.patch(path)).json()["updated_at"] for _ in range(2)]

        assert times == ["2100-01-01T00:00:00.000001Z", "2100-01-01T00:00:00.000002Z"]


class TestSet:
    @pytest.mark.parametrize("completed", [True, False])
    async def test_setting_a_state_is_idempotent(self, client: httpx.AsyncClient, path: str, completed: bool) -> None:
        replies = [await client.patch(path, json={"completed": completed}) for _ in range(3)]

        assert [reply.status_code for reply in replies] == [200, 200, 200]
        assert [reply.json()["completed"] for reply in replies] == [completed] * 3

    async def test_a_completed_task_can_be_reopened(self, client: httpx.AsyncClient, path: str) -> None:
        await client.patch(path, json={"completed": True})

        assert (await client.patch(path, json={"completed": False})).json()["completed"] is False

    async def test_fields_other_than_completed_are_ignored(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any]
    ) -> None:
        reply = await client.patch(path, json={"completed": True, "title": "Other", "description": None})

        changed = reply.json()
        assert changed == task | {"completed": True, "updated_at": changed["updated_at"]}
        assert reply.headers["Ignored-Fields"] == "title, description"

    @pytest.mark.parametrize("completed", [None, 0, 1, "true", "false", "yes", "", [], {}])
    async def test_a_state_other_than_true_or_false_is_refused(
        self, client: httpx.AsyncClient, tasks: str, path: str, task: dict[str, Any], completed: object
    ) -> None:
        reply = await client.patch(path, json={"completed": completed})

        assert reply.status_code == 422
        assert [error["pointer"] for error in reply.json()["errors"]] == ["#/completed"]
        assert (await client.get(f"{tasks}/{task['id']}")).json() == task


_BODIES = [None, {"completed": True}]


@pytest.mark.parametrize("body", _BODIES)
async def test_completing_a_missing_task_is_404(client: httpx.AsyncClient, tasks: str, body: object) -> None:
    reply = await client.patch(f"{tasks}/{uuid4()}/complete", json=body)

    assert reply.status_code == 404
    assert reply.json()["type"] == "urn:problem-type:task-not-found"


@pytest.mark.parametrize("body", _BODIES)
async def test_completing_another_user_s_task_gives_the_404_of_a_missing_task(
    client: httpx.AsyncClient, new_user: Callable[[], str], tasks: str, task: dict[str, Any], body: object
) -> None:
    own = f"/api/{new_user()}/tasks"

    foreign, missing = [await client.patch(f"{own}/{item}/complete", json=body) for item in (task["id"], uuid4())]

    assert foreign.status_code == missing.status_code == 404
    assert foreign.json() | {"instance": ""} == missing.json() | {"instance": ""}
    assert (await client.get(f"{tasks}/{task['id']}")).json() == task


async def test_invalid_user_and_task_ids_are_refused(client: httpx.AsyncClient) -> None:
    reply = await client.patch("/api/a%20b/tasks/1/complete")

    assert reply.status_code == 422
    assert [error["pointer"] for error in reply.json()["errors"]] == ["path/user_id", "path/task_id"]

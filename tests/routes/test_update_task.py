"""PUT /api/{user_id}/tasks/{task_id}."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

_INVALID: dict[str, list[object]] = {
    "title": [None, "", " \t\n", "\u3000\u2003", "x" * 201, "\U0001f600" * 201, "a\0b", 1, True, [], {}],
    "description": ["x" * 5_001, "a\0b", 1, False, [], {}],
    "completed": [None, 0, 1, "true", "yes", "", [], {}],
}


class TestMerge:
    @pytest.mark.parametrize(
        "changes",
        [
            {"title": "Buy two oat milks"},
            {"description": "Any brand"},
            {"description": ""},
            {"description": None},
            {"completed": True},
            {"title": "Buy soy milk", "completed": True},
            {"title": "Buy soy milk", "description": None, "completed": True},
        ],
    )
    async def test_an_update_changes_the_sent_fields_and_keeps_the_rest(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any], changes: dict[str, Any]
    ) -> None:
        reply = await client.put(path, json=changes)

        changed = reply.json()
        assert reply.status_code == 200
        assert changed == task | changes | {"updated_at": changed["updated_at"]}
        assert changed["updated_at"] > task["updated_at"]
        assert (await client.get(path)).json() == changed

    async def test_an_update_without_a_state_keeps_a_task_completed(self, client: httpx.AsyncClient, path: str) -> None:
        await client.put(path, json={"completed": True})

        assert (await client.put(path, json={"title": "Buy soy milk"})).json()["completed"] is True

    async def test_an_update_without_a_description_keeps_it_cleared(self, client: httpx.AsyncClient, path: str) -> None:
        await client.put(path, json={"description": None})

        assert (await client.put(path, json={"title": "Buy soy milk"})).json()["description"] is None

    @pytest.mark.parametrize("body", [{}, {"priority": "high"}, {"id": str(uuid4()), "created_at": None}])
    async def test_an_update_without_a_known_field_changes_nothing(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any], body: dict[str, Any]
    ) -> None:
        reply = await client.put(path, json=body)

        assert reply.status_code == 200
        assert reply.json() == task
        assert reply.headers.get("Ignored-Fields", "") == ", ".join(body)
        assert (await client.get(path)).json() == task

    async def test_a_whole_task_can_be_sent_back(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any]
    ) -> None:
        reply = await client.put(path, json=task | {"title": "Buy soy milk", "user_id": "somebody"})

        changed = reply.json()
        assert changed == task | {"title": "Buy soy milk", "updated_at": changed["updated_at"]}
        assert reply.headers["Ignored-Fields"] == "id, user_id, created_at, updated_at"


class TestTimes:
    async def test_every_change_increases_updated_at_and_keeps_created_at(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any]
    ) -> None:
        changed = [(await client.put(path, json={"title": f"Title {number}"})).json() for number in range(20)]

        times = [task["updated_at"], *(item["updated_at"] for item in changed)]
        assert times == sorted(set(times))
        assert {item["created_at"] for item in changed} == {task["created_at"]}

    async def test_updated_at_increases_even_if_the_clock_is_behind(
        self, database: asyncpg.Connection, client: httpx.AsyncClient, path: str, task: dict[str, Any]
    ) -> None:
        ahead = "UPDATE tasks SET updated_at = '2100-01-01 00:00:00.999999Z' WHERE id = $1"
        await database.execute(ahead, UUID(task["id"]))

        reply = await client.put(path, json={"title": "Buy soy milk"})

        assert reply.json()["updated_at"] == "2100-01-01T00:00:01.000000Z"


class TestRules:
    @pytest.mark.parametrize(
        "changes",
        [
            {"title": "x"},
            {"title": "\U0001f600" * 200},
            {"title": "e\u0301" * 100},
            {"title": "line one\nline two\tafter a tab"},
            {"description": "\U0001f600" * 5_000},
        ],
        ids=["short", "200 emoji", "200 combined", "control characters", "5,000 emoji"],
    )
    async def test_values_up_to_the_limits_are_stored(
        self, client: httpx.AsyncClient, path: str, changes: dict[str, str]
    ) -> None:
        reply = await client.put(path, json=changes)

        assert reply.status_code == 200
        assert changes.items() <= (await client.get(path)).json().items()

    @pytest.mark.parametrize(
        ("field", "value"),
        [(field, value) for field, values in _INVALID.items() for value in values],
        ids=lambda value: ascii(value)[:24],
    )
    async def test_an_invalid_value_is_refused_and_changes_nothing(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any], field: str, value: object
    ) -> None:
        valid = {"title": "Buy soy milk", "description": "Any brand", "completed": True}

        reply = await client.put(path, json=valid | {field: value})

        assert reply.status_code == 422
        assert [error["pointer"] for error in reply.json()["errors"]] == [f"#/{field}"]
        assert (await client.get(path)).json() == task

    async def test_a_refusal_names_every_invalid_field(self, client: httpx.AsyncClient, path: str) -> None:
        reply = await client.put(path, json={"title": None, "description": 1, "completed": "yes"})

        assert [error["pointer"] for error in reply.json()["errors"]] == ["#/title", "#/description", "#/completed"]

    async def test_an_update_requires_a_body(self, client: httpx.AsyncClient, path: str) -> None:
        reply = await client.put(path)

        assert reply.status_code == 422
        assert reply.json()["errors"] == [{"pointer": "#", "detail": "is required"}]

    async def test_invalid_user_and_task_ids_are_refused(self, client: httpx.AsyncClient) -> None:
        reply = await client.put("/api/a%20b/tasks/1", json={"title": "Buy soy milk"})

        assert reply.status_code == 422
        assert [error["pointer"] for error in reply.json()["errors"]] == ["path/user_id", "path/task_id"]


_BODIES = [{"title": "Mine now"}, {}, {"priority": "high"}]


@pytest.mark.parametrize("body", _BODIES)
async def test_updating_a_missing_task_is_404_and_creates_no_task(
    client: httpx.AsyncClient, tasks: str, body: dict[str, str]
) -> None:
    reply = await client.put(f"{tasks}/{uuid4()}", json=body)

    assert reply.status_code == 404
    assert reply.json()["type"] == "urn:problem-type:task-not-found"
    assert (await client.get(tasks)).json() == []


@pytest.mark.parametrize("body", _BODIES)
async def test_updating_another_user_s_task_gives_the_404_of_a_missing_task(
    client: httpx.AsyncClient, new_user: Callable[[], str], path: str, task: dict[str, Any], body: dict[str, str]
) -> None:
    own = f"/api/{new_user()}/tasks"

    foreign, missing = [await client.put(f"{own}/{item}", json=body) for item in (task["id"], uuid4())]

    assert foreign.status_code == missing.status_code == 404
    assert foreign.json() | {"instance": ""} == missing.json() | {"instance": ""}
    assert (await client.get(path)).json() == task

"""PATCH /api/{user_id}/tasks/{task_id}/complete. See test_missing_tasks.py for tasks that do not exist."""

from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from tests.support import pointers

_JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (None, {}),
        (None, _JSON),
        (b"", {"Content-Type": "text/plain"}),
        (b"{}", _JSON),
        (b"null", _JSON),  # what axios sends for `patch(url, null)`
        (b'{"completed": null}', _JSON),  # what generated clients send for a field that is not set
    ],
    ids=["no body", "no body as JSON", "empty as text", "{}", "null", "null as the state"],
)
async def test_each_request_without_a_state_toggles_the_task(
    client: httpx.AsyncClient, path: str, task: dict[str, Any], content: bytes | None, headers: dict[str, str]
) -> None:
    replies = [await client.patch(f"{path}/complete", content=content, headers=headers) for _ in range(3)]

    toggled = [reply.json() for reply in replies]
    assert [reply.status_code for reply in replies] == [200, 200, 200]
    assert [item["completed"] for item in toggled] == [True, False, True]
    assert task["updated_at"] < toggled[0]["updated_at"] < toggled[1]["updated_at"] < toggled[2]["updated_at"]
    assert toggled[2] == task | {"completed": True, "updated_at": toggled[2]["updated_at"]}
    assert (await client.get(path)).json() == toggled[2]


async def test_updated_at_increases_with_every_toggle_even_if_the_clock_is_behind(
    database: asyncpg.Connection, client: httpx.AsyncClient, path: str, task: dict[str, Any]
) -> None:
    ahead = "UPDATE tasks SET updated_at = '2100-01-01 00:00:00Z' WHERE id = $1"
    await database.execute(ahead, UUID(task["id"]))

    times = [(await client.patch(f"{path}/complete")).json()["updated_at"] for _ in range(2)]

    assert times == ["2100-01-01T00:00:00.000001Z", "2100-01-01T00:00:00.000002Z"]


@pytest.mark.parametrize("completed", [True, False])
async def test_setting_a_state_is_idempotent(
    client: httpx.AsyncClient, path: str, task: dict[str, Any], completed: bool
) -> None:
    await client.put(path, json={"completed": not completed})

    replies = [await client.patch(f"{path}/complete", json={"completed": completed}) for _ in range(2)]

    assert [reply.status_code for reply in replies] == [200, 200]
    assert [reply.json() for reply in replies] == [
        task | {"completed": completed, "updated_at": reply.json()["updated_at"]} for reply in replies
    ]


async def test_fields_other_than_completed_are_ignored(
    client: httpx.AsyncClient, path: str, task: dict[str, Any]
) -> None:
    reply = await client.patch(f"{path}/complete", json={"completed": True, "title": "Other", "description": None})

    assert reply.json() == task | {"completed": True, "updated_at": reply.json()["updated_at"]}
    assert reply.headers["Ignored-Fields"] == "title, description"


@pytest.mark.parametrize("completed", [True, False])
@pytest.mark.parametrize(
    ("query", "body"),
    [("{}", None), ("{}", {}), ("{}", {"completed": None}), ("{}", "same"), ("{}&verbose=1", None), ("", "same")],
)
async def test_the_state_may_be_in_the_query_in_the_body_or_in_both(
    client: httpx.AsyncClient, path: str, completed: bool, query: str, body: object
) -> None:
    url = f"{path}/complete?" + query.format(f"completed={str(completed).title()}")
    sent = {"completed": completed} if body == "same" else body

    replies = [await client.patch(url, json=sent) for _ in range(2)]

    assert [(reply.status_code, reply.json()["completed"]) for reply in replies] == [(200, completed)] * 2
    assert [reply.headers.get("Ignored-Fields") for reply in replies] == ["verbose" if "verbose" in url else None] * 2


@pytest.mark.parametrize(
    ("query", "body", "named"),
    [
        ("", {"is_completed": False}, ["#/is_completed"]),
        ("", {"done": True, "status": "completed"}, ["#/done", "#/status"]),
        ("", {"completed": None, "is_completed": False}, ["#/is_completed"]),
        ("", {"Completed": False}, ["#/Completed"]),
        ("is_completed=false", None, ["query/is_completed"]),
        ("done=true", {}, ["query/done"]),
        ("Completed=false", {"completed": None}, ["query/Completed"]),
        ("done=1", {"done": True}, ["#/done", "query/done"]),
        ("completed=true", {"is_completed": False}, ["#/is_completed"]),
        ("completed=", None, ["query/completed"]),
        ("completed=no", None, ["query/completed"]),
        ("completed=null", {"completed": True}, ["query/completed"]),
        ("completed=false", {"completed": True}, ["query/completed"]),
        ("completed=1", {"completed": False}, ["query/completed"]),
        *(("", body, ["#"]) for body in (False, True, 0, "false", "", [], [{"completed": False}])),
    ],
)
async def test_what_may_be_meant_as_a_state_never_toggles(
    client: httpx.AsyncClient, path: str, task: dict[str, Any], *, query: str, body: object, named: list[str]
) -> None:
    for headers in ({}, {"Prefer": "handling=lenient"}, {"Prefer": "handling=strict"}):
        assert pointers(await client.patch(f"{path}/complete?{query}", json=body, headers=headers)) == named
    assert (await client.get(path)).json() == task


@pytest.mark.parametrize("completed", [0, 1, "true", "", [], {}])
async def test_a_state_other_than_true_or_false_is_refused(
    client: httpx.AsyncClient, path: str, task: dict[str, Any], completed: object
) -> None:
    assert pointers(await client.patch(f"{path}/complete", json={"completed": completed})) == ["#/completed"]
    assert (await client.get(path)).json() == task

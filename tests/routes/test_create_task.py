"""POST /api/{user_id}/tasks. See test_fields_of_tasks.py for the values that it refuses."""

import string
from typing import Any
from urllib.parse import quote
from uuid import UUID

import asyncpg
import httpx
import pytest

from app.schemas.task import TaskResponse
from tests.support import pointers, short

_ALPHABET = string.ascii_letters + string.digits + "_-|.:@+=~"


class TestReply:
    async def test_a_task_needs_only_a_title(self, client: httpx.AsyncClient, user: str, tasks: str) -> None:
        reply = await client.post(tasks, json={"title": "Buy oat milk"})

        created = reply.json()
        assert reply.status_code == 201
        assert [*created] == [*TaskResponse.model_fields]
        assert (
            created.items()
            >= {
                "id": created["id"],
                "user_id": user,
                "title": "Buy oat milk",
                "description": None,
                "completed": False,
                "created_at": created["created_at"],
                "updated_at": created["created_at"],
            }.items()
        )
        assert (str(UUID(created["id"])), UUID(created["id"]).version) == (created["id"], 7)

    async def test_all_three_writable_fields_are_stored(self, client: httpx.AsyncClient, tasks: str) -> None:
        sent = {"title": "Buy oat milk", "description": "The barista one", "completed": True}

        reply = await client.post(tasks, json=sent)

        assert sent.items() <= reply.json().items()

    async def test_a_state_of_null_is_as_if_absent(self, client: httpx.AsyncClient, tasks: str) -> None:
        headers = {"Idempotency-Key": "once", "Prefer": "handling=strict"}
        bodies: list[dict[str, object]] = [{"title": "a", "completed": None}, {"title": "a"}]

        replies = [await client.post(tasks, json=body, headers=headers) for body in bodies]

        assert [reply.status_code for reply in replies] == [201, 201]
        assert replies[0].json() == replies[1].json()
        assert replies[0].json()["completed"] is False

    async def test_the_times_of_a_new_task_come_from_the_database_clock(
        self, database: asyncpg.Connection, client: httpx.AsyncClient, tasks: str
    ) -> None:
        before = await database.fetchval("SELECT now()")
        created = (await client.post(tasks, json={"title": "Buy oat milk"})).json()
        after = await database.fetchval("SELECT now()")

        stored = await database.fetchval("SELECT created_at FROM tasks WHERE id = $1", UUID(created["id"]))
        assert before <= stored <= after
        assert created["created_at"] == stored.isoformat(timespec="microseconds").replace("+00:00", "Z")

    async def test_the_location_header_is_the_path_of_the_new_task(self, client: httpx.AsyncClient, tasks: str) -> None:
        reply = await client.post(tasks, json={"title": "Buy oat milk"})

        assert reply.headers["Location"] == f"{tasks}/{reply.json()['id']}"
        assert (await client.get(reply.headers["Location"])).json() == reply.json()

    async def test_two_identical_requests_create_two_tasks(self, client: httpx.AsyncClient, tasks: str) -> None:
        first, second = [(await client.post(tasks, json={"title": "Buy oat milk"})).json() for _ in range(2)]

        assert first["id"] != second["id"]
        assert (await client.get(tasks)).json() == [second, first]

    async def test_fields_that_the_server_generates_are_ignored(
        self, client: httpx.AsyncClient, user: str, tasks: str, task: dict[str, Any]
    ) -> None:
        long_ago = "2000-01-01T00:00:00.000000Z"
        made = {"id": task["id"], "user_id": "somebody", "created_at": long_ago, "updated_at": long_ago}

        reply = await client.post(tasks, json={"title": "Mine", **made})

        created = reply.json()
        assert created["user_id"] == user
        assert not made.items() & created.items()
        assert reply.headers["Ignored-Fields"] == "id, user_id, created_at, updated_at"


class TestUserId:
    @pytest.mark.parametrize("user_id", ["a", _ALPHABET, "auth0|64f1c0ffee64f1c0ffee64f1", "u" * 128], ids=short)
    @pytest.mark.parametrize("spelling", ["raw", "percent-encoded"])
    async def test_every_allowed_user_id_works_raw_and_percent_encoded(
        self, client: httpx.AsyncClient, user_id: str, spelling: str
    ) -> None:
        spelled = user_id if spelling == "raw" else "".join(f"%{ord(letter):02X}" for letter in user_id)
        target = f"/api/{spelled}/tasks".encode()

        reply = await client.post("/", json={"title": "Buy oat milk"}, extensions={"target": target})

        assert reply.status_code == 201
        assert reply.json()["user_id"] == user_id
        assert set(reply.headers["Location"]) <= set(string.ascii_letters + string.digits + "/%._~-")
        found = await client.get("/", extensions={"target": reply.headers["Location"].encode()})
        assert found.json() == reply.json()

    async def test_user_ids_are_case_sensitive(
        self, client: httpx.AsyncClient, user: str, tasks: str, task: dict[str, Any]
    ) -> None:
        assert (await client.get(f"/api/{user.upper()}/tasks")).json() == []
        assert (await client.get(tasks)).json() == [task]

    async def test_a_user_id_with_any_other_character_or_more_than_128_characters_is_refused(
        self, client: httpx.AsyncClient
    ) -> None:
        others = [quote(character) for character in map(chr, range(128)) if character not in _ALPHABET + "/"]
        wrong = [
            "u" * 129,
            "a%0A",
            "a'b",
            *(f"a{other}b" for other in [*others, "%C3%A9", "%D9%A3", "%E2%80%8B", "%FF"]),
        ]

        for user_id in wrong:
            target = f"/api/{user_id}/tasks".encode()
            reply = await client.post("/", json={"title": "Buy oat milk"}, extensions={"target": target})
            assert pointers(reply) == ["path/user_id"], user_id

    @pytest.mark.parametrize("path", ["/api//tasks", "/api/a%2Fb/tasks", "/api/a/b/tasks"])
    async def test_an_empty_user_id_or_a_user_id_with_a_slash_has_no_route(
        self, client: httpx.AsyncClient, path: str
    ) -> None:
        reply = await client.post("/", json={"title": "Buy oat milk"}, extensions={"target": path.encode()})

        assert reply.status_code == 404
        assert reply.json()["type"] == "urn:problem-type:route-not-found"

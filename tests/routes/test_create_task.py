"""POST /api/{user_id}/tasks."""

import re
import string
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from tests.support import pointers, short

_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_ALPHABET = string.ascii_letters + string.digits + "_-|.:@+=~"
_USER_IDS = {
    "Better Auth": "k3JQ9zVb1TnYxW7sRfHcLmP2dAeU8gKo",
    "Auth0": "auth0|64f1c0ffee64f1c0ffee64f1",
    "Google through Auth0": "google-oauth2|103547991597142817347",
    "Clerk": "user_2abcDEFghiJKLmnoPQRstuVWXyz",
    "UUID": "7f9c24e8-3b12-4e5f-9c1a-2d8e6f0b4a17",
    "e-mail": "ada.lovelace+todo@example.com",
    "DID": "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK",
    "base64": "YWRhCg==",
    "all characters": _ALPHABET,
    "one character": "a",
    "128 characters": "u" * 128,
}
_WRONG_USER_IDS = {
    "129 characters": "u" * 129,
    "space": "a%20b",
    "NUL": "a%00b",
    "newline": "a%0Ab",
    "newline at the end": "a%0A",
    "non-ASCII letter": "%C3%A9",
    "non-ASCII digit": "%D9%A3",
    "zero-width space": "a%E2%80%8Bb",
    "invalid UTF-8": "a%FFb",
    "percent sign": "a%25b",
    "semicolon": "a;b",
    "comma": "a,b",
    "quote": "a'b",
    "asterisk": "a*b",
    "backslash": "a%5Cb",
}
_WHITE_SPACE = (
    *(" ", "\t", "\n", "\r\n", "\v", "\f", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u2029", "\u202f"),
    *("\u205f", "\u3000", " \t\u3000\n" * 50),
)


class TestReply:
    async def test_a_task_needs_only_a_title(self, client: httpx.AsyncClient, user: str, tasks: str) -> None:
        reply = await client.post(tasks, json={"title": "Buy oat milk"})

        created = reply.json()
        assert reply.status_code == 201
        assert created == {
            "id": created["id"],
            "user_id": user,
            "title": "Buy oat milk",
            "description": None,
            "completed": False,
            "created_at": created["created_at"],
            "updated_at": created["updated_at"],
        }

    async def test_all_three_writable_fields_are_stored(self, client: httpx.AsyncClient, tasks: str) -> None:
        sent = {"title": "Buy oat milk", "description": "The barista one", "completed": True}

        reply = await client.post(tasks, json=sent)

        assert sent.items() <= reply.json().items()

    async def test_the_id_of_a_new_task_is_a_uuid_of_version_7(self, task: dict[str, Any]) -> None:
        assert UUID(task["id"]).version == 7
        assert str(UUID(task["id"])) == task["id"]

    async def test_both_times_of_a_new_task_are_equal_and_in_utc_with_microseconds(self, task: dict[str, Any]) -> None:
        assert _TIMESTAMP.fullmatch(task["created_at"])
        assert task["updated_at"] == task["created_at"]

    async def test_the_times_of_a_new_task_come_from_the_database_clock(
        self, database: asyncpg.Connection, client: httpx.AsyncClient, tasks: str
    ) -> None:
        before = await database.fetchval("SELECT now()")
        reply = await client.post(tasks, json={"title": "Buy oat milk"})
        after = await database.fetchval("SELECT now()")

        stored = await database.fetchval("SELECT created_at FROM tasks WHERE id = $1", UUID(reply.json()["id"]))
        assert before <= stored <= after
        assert reply.json()["created_at"] == stored.isoformat(timespec="microseconds").replace("+00:00", "Z")

    async def test_the_location_header_is_the_path_of_the_new_task(self, client: httpx.AsyncClient, tasks: str) -> None:
        reply = await client.post(tasks, json={"title": "Buy oat milk"})

        assert reply.headers["Location"] == f"{tasks}/{reply.json()['id']}"
        assert (await client.get(reply.headers["Location"])).json() == reply.json()

    async def test_two_identical_requests_create_two_tasks(self, client: httpx.AsyncClient, tasks: str) -> None:
        replies = [await client.post(tasks, json={"title": "Buy oat milk"}) for _ in range(2)]

        listed = (await client.get(tasks)).json()
        assert listed == [reply.json() for reply in reversed(replies)]
        assert listed[0]["id"] != listed[1]["id"]

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


class TestTitle:
    @pytest.mark.parametrize(
        "title",
        [
            "x",
            "x" * 200,
            "\U0001f600" * 200,
            "e\u0301" * 100,
            "\u540d" * 200,
            "\U0010ffff",
            "line one\nline two\tafter a tab",
            "  spaces at both ends  ",
            "\u200bzero width",
            "\x01\x1b[31m\x7f",
            "\u202ereversed",
            "'; DROP TABLE tasks; --",
            "<script>alert(1)</script>",
            "%s {0} $1 \\ \"quoted\" 'quoted'",
        ],
        ids=short,
    )
    async def test_a_title_of_up_to_200_code_points_is_stored_unchanged(
        self, client: httpx.AsyncClient, tasks: str, title: str
    ) -> None:
        reply = await client.post(tasks, json={"title": title})

        assert reply.status_code == 201
        assert (await client.get(reply.headers["Location"])).json()["title"] == title

    @pytest.mark.parametrize(
        "title",
        ["", "x" * 201, "\U0001f600" * 201, "e\u0301" * 100 + "x", "x" * 60_000, "\0", "a\0b", *_WHITE_SPACE],
        ids=short,
    )
    async def test_an_empty_blank_or_long_title_or_a_title_with_nul_is_refused(
        self, client: httpx.AsyncClient, tasks: str, title: str
    ) -> None:
        assert pointers(await client.post(tasks, json={"title": title})) == ["#/title"]
        assert (await client.get(tasks)).json() == []

    @pytest.mark.parametrize("title", [None, 0, 1, 1.5, True, [], ["a"], {}, {"a": "b"}])
    async def test_a_title_that_is_not_a_string_is_refused(
        self, client: httpx.AsyncClient, tasks: str, title: object
    ) -> None:
        assert pointers(await client.post(tasks, json={"title": title})) == ["#/title"]

    async def test_a_title_is_required(self, client: httpx.AsyncClient, tasks: str) -> None:
        reply = await client.post(tasks, json={"description": "The barista one"})

        assert pointers(reply) == ["#/title"]
        assert reply.json()["detail"] == "title: is required"

    async def test_a_creation_requires_a_body(self, client: httpx.AsyncClient, tasks: str) -> None:
        assert pointers(await client.post(tasks)) == ["#"]


class TestDescription:
    @pytest.mark.parametrize(
        "description", [None, "", " ", "x" * 5_000, "\U0001f600" * 5_000, "one\r\ntwo\tthree"], ids=short
    )
    async def test_a_null_description_or_up_to_5000_code_points_are_stored_unchanged(
        self, client: httpx.AsyncClient, tasks: str, description: str | None
    ) -> None:
        reply = await client.post(tasks, json={"title": "Buy oat milk", "description": description})

        assert reply.status_code == 201
        assert (await client.get(reply.headers["Location"])).json()["description"] == description

    @pytest.mark.parametrize(
        "description", ["x" * 5_001, "\U0001f600" * 5_001, "a\0b", 0, 1.5, False, [], {}], ids=short
    )
    async def test_a_long_description_or_one_with_nul_or_of_another_type_is_refused(
        self, client: httpx.AsyncClient, tasks: str, description: object
    ) -> None:
        reply = await client.post(tasks, json={"title": "Buy oat milk", "description": description})

        assert pointers(reply) == ["#/description"]


@pytest.mark.parametrize("completed", [None, 0, 1, "true", "yes", "", [], {}])
async def test_a_state_other_than_true_or_false_is_refused(
    client: httpx.AsyncClient, tasks: str, completed: object
) -> None:
    reply = await client.post(tasks, json={"title": "Buy oat milk", "completed": completed})

    assert pointers(reply) == ["#/completed"]


async def test_a_refusal_names_every_invalid_field_and_quotes_no_value(client: httpx.AsyncClient, tasks: str) -> None:
    reply = await client.post(tasks, json={"title": ["oat milk"], "description": 4711, "completed": "perhaps"})

    assert pointers(reply) == ["#/title", "#/description", "#/completed"]
    assert all(name in reply.json()["detail"] for name in ("title", "description", "completed"))
    assert not re.search("oat milk|4711|perhaps", reply.text)


class TestUserId:
    @pytest.mark.parametrize("user_id", _USER_IDS.values(), ids=_USER_IDS)
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
        listed = (await client.get(f"/api/{user.upper()}/tasks")).json()

        assert listed == []
        assert (await client.get(tasks)).json() == [task]

    @pytest.mark.parametrize("user_id", _WRONG_USER_IDS.values(), ids=_WRONG_USER_IDS)
    async def test_a_user_id_with_other_characters_or_lengths_is_refused(
        self, client: httpx.AsyncClient, user_id: str
    ) -> None:
        target = f"/api/{user_id}/tasks".encode()

        reply = await client.post("/", json={"title": "Buy oat milk"}, extensions={"target": target})

        assert pointers(reply) == ["path/user_id"]

    @pytest.mark.parametrize("path", ["/api//tasks", "/api/a%2Fb/tasks", "/api/a/b/tasks"])
    async def test_an_empty_user_id_or_a_user_id_with_a_slash_has_no_route(
        self, client: httpx.AsyncClient, path: str
    ) -> None:
        reply = await client.post("/", json={"title": "Buy oat milk"}, extensions={"target": path.encode()})

        assert reply.status_code == 404
        assert reply.json()["type"] == "urn:problem-type:route-not-found"

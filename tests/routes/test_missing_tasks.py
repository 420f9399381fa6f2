"""Operations on a task that does not exist, was deleted or belongs to another user, and on malformed ids."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest

from tests.support import bearer, make_settings, pointers, serving

pytestmark = pytest.mark.parametrize(
    ("method", "suffix", "body"),
    [
        ("GET", "", None),
        ("PUT", "", {"title": "Mine now"}),
        ("PUT", "", {}),
        ("PUT", "", {"mood": "high"}),
        ("PATCH", "/complete", None),
        ("PATCH", "/complete", {"completed": True}),
        ("DELETE", "", None),
    ],
)

NO_UUIDS: Final = (
    *("999", "-1", "new", "undefined", "null", "%00", "%FF", "%2e%2E", "%20", "a%20b", "1;2", "%D9%A0", "g" * 32),
    *("0" * 33, "0" * 5_000, "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa%09"),
)
CONDITIONS: Final = (
    {"If-Match": "*"},
    {"If-Match": '"1"', "If-None-Match": "*", "Prefer": "handling=lenient"},
)


@pytest.fixture(scope="module")
async def unready() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service whose database is down."""
    async with (
        serving(make_settings("postgresql://postgres@127.0.0.1:1/postgres")) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client


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


async def test_a_task_id_that_is_no_uuid_gives_the_404_of_a_missing_task_without_a_database(
    unready: httpx.AsyncClient, method: str, suffix: str, body: object
) -> None:
    for task_id, headers in (*((each, {}) for each in NO_UUIDS), *(("999", each) for each in CONDITIONS)):
        target = f"/api/ada/tasks/{task_id}{suffix}".encode()
        reply = await unready.request(method, "/", json=body, headers=headers, extensions={"target": target})

        assert (reply.status_code, reply.json()["type"]) == (404, "urn:problem-type:task-not-found"), target
        assert reply.json()["detail"] == "There is no such task."


async def test_a_task_id_that_is_no_uuid_is_404_with_strict_handling_too(
    client: httpx.AsyncClient, tasks: str, method: str, suffix: str, body: object
) -> None:
    replies = [
        await client.request(method, f"{tasks}/{task_id}{suffix}", json=body, headers={"Prefer": "handling=strict"})
        for task_id in ("999", uuid4())
    ]

    assert replies[0].status_code == replies[1].status_code == (422 if body == {"mood": "high"} else 404)
    assert replies[0].json() | {"instance": ""} == replies[1].json() | {"instance": ""}


async def test_a_task_id_that_is_no_uuid_is_403_in_the_path_of_another_user(
    secured_url: str, user: str, method: str, suffix: str, body: object
) -> None:
    async with httpx.AsyncClient(base_url=secured_url, headers=bearer(user)) as client:
        replies = [await client.request(method, f"/api/{each}/tasks/1{suffix}", json=body) for each in ("ada", user)]

    assert [reply.status_code for reply in replies] == [403, 404]


async def test_a_malformed_user_id_is_refused(
    client: httpx.AsyncClient, method: str, suffix: str, body: object
) -> None:
    assert pointers(await client.request(method, f"/api/a%20b/tasks/{uuid4()}{suffix}", json=body)) == ["path/user_id"]

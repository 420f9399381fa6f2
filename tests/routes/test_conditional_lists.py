"""The ETag of a list, and If-None-Match with it."""

from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest

from tests.support import short

Client = httpx.AsyncClient
Task = dict[str, Any]
Change = tuple[str, str, Task | None]

# Changes to the second of three tasks.
CHANGES: Final[dict[str, Change]] = {
    "update": ("PUT", "", {"title": "b again"}),
    "update to the same": ("PUT", "", {"title": "b"}),
    "toggle": ("PATCH", "/complete", None),
    "delete": ("DELETE", "", None),
}


@pytest.fixture
async def made(client: Client, tasks: str) -> list[Task]:
    """Three tasks of this user, oldest first."""
    return [(await client.post(tasks, json={"title": title})).json() for title in "abc"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("template", ['W/"{}"', '"{}"', '"{}",W/"a"', "*", 'W/"{}-gzip"', '"{}-br"'])
@pytest.mark.parametrize("query", ["", "?search=nothing"])
async def test_a_list_with_a_matching_tag_is_304(
    client: Client, tasks: str, made: list[Task], *, method: str, template: str, query: str
) -> None:
    current = (await client.get(tasks + query)).headers["ETag"]
    assert current.startswith('W/"')
    await client.put(f"{tasks}/{made[0]['id']}", json={})
    condition = template.replace("{}", current[3:-1])

    reply = await client.request(method, tasks + query, headers={"If-None-Match": condition})

    assert (reply.status_code, reply.content) == (304, b"")
    assert (reply.headers["ETag"], reply.headers["Cache-Control"]) == (current, "private, no-cache")
    assert "Content-Type" not in reply.headers


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("condition", ['"a"', 'W/"a", "b"', "", "a", '"*"', 'W/"'], ids=short)
async def test_a_list_is_sent_for_another_or_a_malformed_tag(client: Client, tasks: str, condition: str) -> None:
    reply = await client.get(tasks, headers={"If-None-Match": condition})
    head = await client.head(tasks, headers={"If-None-Match": condition})

    assert (reply.status_code, head.status_code) == (200, 200)
    assert [task["title"] for task in reply.json()] == ["c", "b", "a"]
    assert reply.headers["ETag"] == head.headers["ETag"]
    assert reply.headers["Cache-Control"] == "private, no-cache"


@pytest.mark.parametrize("query", ["", "?limit=2", "?search=b"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_list_is_sent_again_after_a_listed_task_changes(
    client: Client, tasks: str, made: list[Task], *, change: Change, query: str
) -> None:
    method, suffix, body = change
    before = await client.get(tasks + query)
    await client.request(method, f"{tasks}/{made[1]['id']}{suffix}", json=body)

    after = await client.get(tasks + query, headers={"If-None-Match": before.headers["ETag"]})

    assert after.status_code == 200
    assert after.text != before.text
    assert after.headers["ETag"] != before.headers["ETag"]


@pytest.mark.usefixtures("made")
async def test_a_page_is_sent_again_once_it_has_a_next_page(client: Client, tasks: str) -> None:
    query = {"sort": "created_at", "limit": "3"}
    last = await client.get(tasks, params=query)
    await client.post(tasks, json={"title": "d"})

    followed = await client.get(tasks, params=query, headers={"If-None-Match": last.headers["ETag"]})

    assert "next" not in last.links
    assert (followed.status_code, followed.json()) == (200, last.json())
    assert "next" in followed.links


async def test_lists_of_equal_tasks_of_two_users_have_different_tags(
    client: Client, tasks: str, new_user: Callable[[], str]
) -> None:
    made = [await client.post(path, json={"title": "a"}) for path in (tasks, f"/api/{new_user()}/tasks")]

    tags = [(await client.get(reply.headers["Location"].rpartition("/")[0])).headers["ETag"] for reply in made]

    assert tags[0] != tags[1]

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


async def etag(client: Client, path: str) -> str:
    reply = await client.get(path)
    assert reply.status_code == 200
    assert reply.headers["ETag"].startswith('W/"')
    return reply.headers["ETag"]


@pytest.mark.usefixtures("made")
class TestUnchangedList:
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize("template", ["W/{}", "{}", '"a", W/{}', '{},W/"a"', "*"])
    async def test_a_list_with_a_matching_tag_is_304(
        self, client: Client, tasks: str, method: str, template: str
    ) -> None:
        current = await etag(client, tasks)
        condition = template.replace("{}", current.removeprefix("W/"))

        reply = await client.request(method, tasks, headers={"If-None-Match": condition})

        assert (reply.status_code, reply.content) == (304, b"")
        assert (reply.headers["ETag"], reply.headers["Cache-Control"]) == (current, "private, no-cache")
        assert "Content-Type" not in reply.headers

    @pytest.mark.parametrize("condition", ['"a"', 'W/"a", "b"', "", "a", '"*"', 'W/"'], ids=short)
    async def test_a_list_is_sent_for_another_or_a_malformed_tag(
        self, client: Client, tasks: str, condition: str
    ) -> None:
        reply = await client.get(tasks, headers={"If-None-Match": condition})

        assert reply.status_code == 200
        assert [task["title"] for task in reply.json()] == ["c", "b", "a"]

    async def test_an_empty_list_with_a_matching_tag_is_304(self, client: Client, new_user: Callable[[], str]) -> None:
        own = f"/api/{new_user()}/tasks"

        reply = await client.get(own, headers={"If-None-Match": await etag(client, own)})

        assert reply.status_code == 304

    async def test_head_of_a_list_has_the_etag_of_get(self, client: Client, tasks: str) -> None:
        assert (await client.head(tasks)).headers["ETag"] == await etag(client, tasks)

    async def test_a_list_is_private_and_must_be_revalidated(self, client: Client, tasks: str) -> None:
        assert (await client.get(tasks)).headers["Cache-Control"] == "private, no-cache"

    async def test_an_update_without_fields_keeps_the_tag_of_the_list(
        self, client: Client, tasks: str, made: list[Task]
    ) -> None:
        before = await etag(client, tasks)

        await client.put(f"{tasks}/{made[0]['id']}", json={})

        assert await etag(client, tasks) == before


class TestChangedList:
    @pytest.mark.parametrize("query", ["", "?limit=2", "?search=b"])
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    async def test_a_list_is_sent_again_after_a_listed_task_changes(
        self, client: Client, tasks: str, made: list[Task], *, change: Change, query: str
    ) -> None:
        method, suffix, body = change
        before = await client.get(tasks + query)
        await client.request(method, f"{tasks}/{made[1]['id']}{suffix}", json=body)

        after = await client.get(tasks + query, headers={"If-None-Match": before.headers["ETag"]})

        assert after.status_code == 200
        assert after.text != before.text
        assert after.headers["ETag"] != before.headers["ETag"]

    async def test_a_list_is_sent_again_after_a_task_is_created(self, client: Client, tasks: str, task: Task) -> None:
        before = await etag(client, tasks)
        created = (await client.post(tasks, json={"title": task["title"]})).json()

        after = await client.get(tasks, headers={"If-None-Match": before})

        assert after.json() == [created, task]

    @pytest.mark.usefixtures("made")
    async def test_a_page_is_sent_again_once_it_has_a_next_page(self, client: Client, tasks: str) -> None:
        query = {"sort": "created_at", "limit": "3"}
        last = await client.get(tasks, params=query)
        await client.post(tasks, json={"title": "d"})

        followed = await client.get(tasks, params=query, headers={"If-None-Match": last.headers["ETag"]})

        assert "next" not in last.links
        assert (followed.status_code, followed.json()) == (200, last.json())
        assert "next" in followed.links

    @pytest.mark.usefixtures("made")
    async def test_different_pages_filters_and_orders_have_different_tags(self, client: Client, tasks: str) -> None:
        queries = ["", "?limit=1", "?limit=2", "?sort=title", "?sort=title&limit=2", "?search=b", "?status=completed"]

        replies = [await client.get(tasks + query) for query in queries]

        assert len({reply.text for reply in replies}) == len(queries)
        assert len({reply.headers["ETag"] for reply in replies}) == len(queries)

    @pytest.mark.usefixtures("made")
    async def test_a_list_does_not_match_the_tag_of_another_user_s_list(
        self, client: Client, tasks: str, new_user: Callable[[], str]
    ) -> None:
        own = f"/api/{new_user()}/tasks"
        await client.post(own, json={"title": "a"})

        reply = await client.get(own, headers={"If-None-Match": await etag(client, tasks)})

        assert (reply.status_code, len(reply.json())) == (200, 1)

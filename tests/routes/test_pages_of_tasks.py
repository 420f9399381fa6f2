"""The pages of GET /api/{user_id}/tasks: the link to the next page, and its cursor."""

import string
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import get_args
from uuid import UUID, uuid4

import asyncpg
import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.schemas.words import Sort
from app.services.cursors import _with_checksum
from tests.routes.support import Tasks, add, listed, titles_of
from tests.support import pointers

pytestmark = pytest.mark.unmeasured

_SORTS = get_args(Sort)
# The sort keys and states repeat, so that many tasks share each of them.
_INSERT = """
INSERT INTO tasks (user_id, id, title, completed, created_at, updated_at)
SELECT $1, gen_random_uuid(), 'Task ' || n % 5, n % 2 = 0,
       '2026-11-22Z'::timestamptz + n % 6 * interval '1 second',
       '2026-11-23Z'::timestamptz + n % 7 * interval '1 second'
FROM generate_series(1, $2) AS n
"""

_ODD_TIMES = [  # in their order
    *("-infinity", "4713-01-01 00:00:00Z BC", "0044-03-15 12:00:00Z BC", "0001-12-31 23:59:59.999999Z BC"),
    *("0001-01-01 00:00:00Z", "0001-01-01 00:00:00.000001Z", "2026-11-22 09:30:00Z"),
    *("9999-12-31 23:59:59.999998Z", "9999-12-31 23:59:59.999999Z", "10000-01-01 00:00:00Z"),
    *("294276-12-31 23:59:59.999999Z", "infinity"),
]


async def _pages(client: httpx.AsyncClient, tasks: str, **query: object) -> AsyncIterator[Tasks]:
    """Follows `Link` to the last page."""
    url: str | None = str(httpx.URL(tasks, params={name: str(value) for name, value in query.items()}))
    while url:
        reply = await client.get(url)
        assert reply.status_code == 200, reply.text
        yield reply.json()
        url = reply.links.get("next", {}).get("url")


async def _cursor(client: httpx.AsyncClient, tasks: str, **query: object) -> str:
    reply = await client.get(tasks, params={"limit": "1", **{name: str(value) for name, value in query.items()}})
    return httpx.URL(reply.links["next"]["url"]).params["cursor"]


class TestLink:
    async def test_the_default_limit_is_1000(
        self, database: asyncpg.Connection, client: httpx.AsyncClient, user: str, tasks: str
    ) -> None:
        await database.execute(_INSERT, user, 1_001)

        default, asked = [await client.get(f"{tasks}{query}") for query in ("", "?limit=1000")]

        assert len(default.json()) == 1_000
        assert default.json() == asked.json()
        assert len((await client.get(default.links["next"]["url"])).json()) == 1

    @pytest.mark.parametrize(("limit", "number", "more"), [(1, 1, True), (2, 2, True), (3, 3, False), (4, 3, False)])
    async def test_a_list_has_a_next_link_only_if_there_are_more_tasks(
        self, client: httpx.AsyncClient, tasks: str, limit: int, number: int, more: bool
    ) -> None:
        added = await add(client, tasks, *"abc")

        reply = await client.get(tasks, params={"limit": limit})

        assert reply.json() == added[::-1][:number]
        assert ("Link" in reply.headers) == more

    async def test_the_next_link_is_relative_and_keeps_the_other_parameters(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        await add(client, tasks, "50% & more = \xe9", "50% & less = \xe9", completed=True)
        query = {"status": "completed", "completed": "true", "search": "50% & ", "sort": "title", "limit": "1"}

        reply = await client.get(tasks, params=query)

        link = httpx.URL(reply.links["next"]["url"])
        assert reply.links["next"]["rel"] == "next"
        assert (link.is_relative_url, link.path) == (True, tasks)
        assert dict(link.params) == query | {"cursor": link.params["cursor"]}
        assert [task["title"] for task in (await client.get(str(link))).json()] == ["50% & more = \xe9"]

    async def test_the_next_link_has_each_value_of_a_repeated_parameter(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        await add(client, tasks, *"ab")

        reply = await client.get(f"{tasks}?status=completed&status=pending&limit=1")

        assert httpx.URL(reply.links["next"]["url"]).params.get_list("status") == ["completed", "pending"]

    async def test_the_next_link_omits_unknown_parameters_and_the_previous_cursor(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        await add(client, tasks, *"abc")
        query = {"limit": "1", "cursor": await _cursor(client, tasks), "verbose": "x" * 9_000}

        reply = await client.get(tasks, params=query)

        link = httpx.URL(reply.links["next"]["url"])
        assert reply.headers["Ignored-Fields"] == "verbose"
        assert [name for name, _ in link.params.multi_items()] == ["limit", "cursor"]
        assert [task["title"] for task in (await client.get(str(link))).json()] == ["a"]

    @pytest.mark.parametrize("shape", ["auth0|{}", "~{}+tag@example.com:a=b"])
    async def test_the_next_link_works_for_a_percent_encoded_user_id(
        self, client: httpx.AsyncClient, user: str, shape: str
    ) -> None:
        tasks = "/api/" + "".join(f"%{ord(letter):02X}" for letter in shape.format(user)) + "/tasks"
        added = await add(client, tasks, *"abc")

        pages = [page async for page in _pages(client, tasks, limit=1)]
        url = (await client.get(tasks, params={"limit": 1})).links["next"]["url"]

        assert pages == [[task] for task in reversed(added)]
        assert set(url) <= set(string.ascii_letters + string.digits + "/?&=%._~-")


class TestWeight:
    @pytest.mark.parametrize(("character", "lengths"), [("\U0001f600", [51, 9]), ("\x01", [34, 26]), ("a", [60])])
    async def test_a_page_has_at_most_1_mib_of_json(
        self,
        database: asyncpg.Connection,
        client: httpx.AsyncClient,
        user: str,
        tasks: str,
        character: str,
        lengths: list[int],
    ) -> None:
        await database.execute(_INSERT, user, 60)
        await database.execute("UPDATE tasks SET description = repeat($2, 5000) WHERE user_id = $1", user, character)

        pages = [page async for page in _pages(client, tasks)]

        assert [len(page) for page in pages] == lengths
        assert len({task["id"] for page in pages for task in page}) == 60

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(sizes=st.lists(st.integers(1, 30), max_size=12), sort=st.sampled_from(_SORTS), limit=st.integers(1, 12))
    async def test_pages_are_as_large_as_the_limits_allow_and_have_every_task_once(
        self,
        database: asyncpg.Connection,
        client: httpx.AsyncClient,
        new_user: Callable[[], str],
        monkeypatch: pytest.MonkeyPatch,
        *,
        sizes: list[int],
        sort: str,
        limit: int,
    ) -> None:
        monkeypatch.setattr("app.services.tasks.list_tasks.__defaults__", (600,))
        user, insert = new_user(), "INSERT INTO tasks (user_id, id, title, description) VALUES ($1, $2, $3, $4)"
        texts = [(uuid4(), "\xe9" * (size // 3 + 1), "\x02" * (size // 2) or None) for size in sizes]
        await database.executemany(insert, [(user, *text) for text in texts])

        pages = [page async for page in _pages(client, f"/api/{user}/tasks", sort=sort, limit=limit)]

        assert sorted(task["id"] for page in pages for task in page) == sorted(str(text[0]) for text in texts)
        for page, following in pairwise(pages):
            assert len(page) == 1 or len(orjson.dumps(page)) <= 600
            assert len(page) == limit or len(orjson.dumps([*page, following[0]])) > 600


class TestCursor:
    @pytest.mark.parametrize(
        "query",
        [{"sort": "created_at"}, {"sort": "title"}, {"status": "pending"}, {"completed": "false"}, {"search": "a"}],
    )
    async def test_a_cursor_of_another_filter_or_order_is_refused(
        self, client: httpx.AsyncClient, tasks: str, query: dict[str, str]
    ) -> None:
        await add(client, tasks, "aa", "ab")
        with_query, without = await _cursor(client, tasks, **query), await _cursor(client, tasks)

        assert pointers(await client.get(tasks, params={"cursor": with_query})) == ["query/cursor"]
        assert pointers(await client.get(tasks, params={"cursor": without, **query})) == ["query/cursor"]
        assert await titles_of(client, tasks, cursor=without) == ["aa"]

    async def test_a_cursor_of_another_search_or_another_user_is_refused(
        self, client: httpx.AsyncClient, new_user: Callable[[], str], tasks: str
    ) -> None:
        other = f"/api/{new_user()}/tasks"
        await add(client, other, "aa", "ab")
        cursor = await _cursor(client, other, search="a")

        assert await titles_of(client, other, cursor=cursor, search="a") == ["aa"]
        assert pointers(await client.get(other, params={"cursor": cursor, "search": "b"})) == ["query/cursor"]
        assert pointers(await client.get(tasks, params={"cursor": cursor, "search": "a"})) == ["query/cursor"]

    async def test_a_changed_shortened_or_lengthened_cursor_is_refused(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        await add(client, tasks, "a", "b")
        cursor = await _cursor(client, tasks)
        swapped = [cursor[:at] + ("B" if letter == "A" else "A") + cursor[at + 1 :] for at, letter in enumerate(cursor)]
        changed = [*swapped, cursor[1:], cursor[:-1], *(cursor + more for more in ("=", "A", "AAAA", " ", "\n", "\0"))]

        for text in changed:
            assert pointers(await client.get(tasks, params={"cursor": text})) == ["query/cursor"], text

    @pytest.mark.parametrize("sort", ["title", "-title"])
    async def test_a_cursor_of_a_release_that_sorted_titles_by_code_point_is_refused(
        self, client: httpx.AsyncClient, user: str, tasks: str, sort: str
    ) -> None:
        [first, _] = await add(client, tasks, "a", "B")
        before = _with_checksum(UUID(first["id"]).bytes + b"a", sort, repr((user, {})))

        assert pointers(await client.get(tasks, params={"sort": sort, "cursor": before})) == ["query/cursor"]

    async def test_an_empty_cursor_gives_the_first_page_and_the_page_size_may_change(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        longest = "\U0001f600" * 200
        await add(client, tasks, longest, *"abcd")
        cursor = await _cursor(client, tasks, cursor="", sort="-title")

        assert await titles_of(client, tasks, limit=3, cursor=cursor, sort="-title") == ["d", "c", "b"]


async def _churn(client: httpx.AsyncClient, tasks: str, touched: list[str]) -> None:
    """Insert three tasks, update two, delete one, which moves others in the list. "!" sorts before them, "~" after."""
    touched += [task["id"] for task in await add(client, tasks, "!", "~", "~")]
    await client.put(f"{tasks}/{touched.pop(0)}", json={"title": f"! {len(touched)}"})
    await client.patch(f"{tasks}/{touched.pop(0)}/complete")
    await client.delete(f"{tasks}/{touched.pop(0)}")


class TestWalk:
    @pytest.fixture
    async def sixty_tasks(
        self, database: asyncpg.Connection, client: httpx.AsyncClient, user: str, tasks: str
    ) -> Tasks:
        """60 tasks of this user, many with the same title and times."""
        await database.execute(_INSERT, user, 60)
        return await listed(client, tasks)

    @staticmethod
    def ordered(tasks: Tasks, sort: str) -> Tasks:
        key = sort.removeprefix("-")
        return sorted(tasks, key=lambda task: (task[key], UUID(task["id"])), reverse=sort.startswith("-"))

    @pytest.mark.parametrize("query", [{}, {"status": "pending"}, {"search": "TASK", "completed": "true"}])
    @pytest.mark.parametrize("sort", _SORTS)
    async def test_the_pages_have_every_task_once_and_tasks_with_equal_keys_in_the_order_of_their_ids(
        self, client: httpx.AsyncClient, tasks: str, sixty_tasks: Tasks, sort: str, query: dict[str, str]
    ) -> None:
        matching = await listed(client, tasks, **query)

        pages = [page async for page in _pages(client, tasks, limit=7, sort=sort, **query)]

        assert len(matching) == (30 if query else len(sixty_tasks))
        assert [task for page in pages for task in page] == self.ordered(matching, sort)
        assert [len(page) for page in pages[:-1]] == [7] * (len(matching) // 7)

    @pytest.mark.parametrize("sort", ["created_at", "-created_at", "updated_at", "-updated_at"])
    async def test_the_pages_have_every_task_once_whatever_times_somebody_has_imported(
        self, database: asyncpg.Connection, client: httpx.AsyncClient, user: str, tasks: str, sort: str
    ) -> None:
        """The driver writes the first and the last `datetime` as infinity, and cannot read other years at all."""
        insert = (
            "INSERT INTO tasks (user_id, id, title, created_at, updated_at) SELECT $1, gen_random_uuid(), $2, at, at"
        )
        for time in _ODD_TIMES:  # two of each
            await database.execute(
                f"{insert} FROM generate_series(1, 2), CAST($3::text AS timestamptz) AS at", user, time, time
            )
        ordered = [time for time in _ODD_TIMES for _ in range(2)]

        for limit in (1, 3):
            walked: list[str] = []
            async for page in _pages(client, tasks, limit=limit, sort=sort):
                walked += [task["title"] for task in page]
                assert len(walked) <= len(ordered)
            assert walked == (ordered[::-1] if sort.startswith("-") else ordered)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        titles=st.lists(
            st.text(st.sampled_from("aAbB\u0130\u0131\u1e9e\xdf\u03a3\u03c3\u03c2\xe9\xc9\u01c5 "), max_size=4)
            | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=199),
            max_size=12,
        ),
        sort=st.sampled_from(["title", "-title"]),
    )
    async def test_pages_of_any_size_have_each_title_once_in_the_order_of_the_database(
        self,
        database: asyncpg.Connection,
        client: httpx.AsyncClient,
        new_user: Callable[[], str],
        *,
        titles: list[str],
        sort: str,
    ) -> None:
        user, insert = new_user(), "INSERT INTO tasks (user_id, id, title) VALUES ($1, gen_random_uuid(), $2)"
        await database.executemany(insert, [(user, f"{title}.") for title in titles])
        way = "DESC" if sort == "-title" else "ASC"
        lowered = f'lower(lower(title COLLATE "C") COLLATE "default") COLLATE "C" {way}, id {way}'
        sql = f"SELECT id::text FROM tasks WHERE user_id = $1 ORDER BY {lowered}"  # noqa: S608
        ordered = [record[0] for record in await database.fetch(sql, user)]

        for limit in (1, 3):
            pages = [page async for page in _pages(client, f"/api/{user}/tasks", sort=sort, limit=limit)]
            assert [task["id"] for page in pages for task in page] == ordered

    @pytest.mark.parametrize("sort", _SORTS)
    async def test_changes_between_the_pages_neither_repeat_nor_skip_an_untouched_task(
        self, client: httpx.AsyncClient, tasks: str, sixty_tasks: Tasks, sort: str
    ) -> None:
        everything = self.ordered(sixty_tasks, sort)
        untouched = [task for number, task in enumerate(everything) if number % 3]
        touched, walked = [task["id"] for task in everything[::3]], []

        async for page in _pages(client, tasks, limit=11, sort=sort):
            walked += page
            await _churn(client, tasks, touched)

        assert [task for task in walked if task in untouched] == untouched

    async def test_the_same_changes_make_paging_by_offset_repeat_or_skip_tasks(
        self, client: httpx.AsyncClient, tasks: str, sixty_tasks: Tasks
    ) -> None:
        """Shows that the test above can fail."""
        untouched = [task for number, task in enumerate(sixty_tasks) if number % 3]
        touched, walked = [task["id"] for task in sixty_tasks[::3]], []

        for offset in range(0, 70, 7):
            walked += (await listed(client, tasks))[offset : offset + 7]
            await _churn(client, tasks, touched)

        assert [task for task in walked if task in untouched] != untouched

"""GET /api/{user_id}/tasks."""

import asyncio
import string
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import count
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from tests.support import pointers, short

_SORTS = ("created_at", "-created_at", "updated_at", "-updated_at", "title", "-title")
_BASE64 = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
# The sort keys and states repeat, so that many tasks share each of them.
_INSERT = """
INSERT INTO tasks (user_id, id, title, completed, created_at, updated_at)
SELECT $1, gen_random_uuid(), 'Task ' || n % 5, n % 2 = 0,
       '2026-11-22Z'::timestamptz + n % 6 * interval '1 second',
       '2026-11-23Z'::timestamptz + n % 7 * interval '1 second'
FROM generate_series(1, $2) AS n
"""

Tasks = list[dict[str, Any]]


@pytest.fixture
async def sixty_tasks(database: asyncpg.Connection, user: str) -> None:
    """Gives this user 60 tasks, many with the same title and times."""
    await database.execute(_INSERT, user, 60)


async def _add(client: httpx.AsyncClient, tasks: str, *titles: str, **others: object) -> Tasks:
    return [(await client.post(tasks, json={"title": title, **others})).json() for title in titles]


async def _list(client: httpx.AsyncClient, tasks: str, **query: object) -> Tasks:
    reply = await client.get(tasks, params={name: str(value) for name, value in query.items()})
    assert reply.status_code == 200, reply.text
    listed: Tasks = reply.json()
    return listed


async def _titles(client: httpx.AsyncClient, tasks: str, **query: object) -> list[str]:
    return [task["title"] for task in await _list(client, tasks, **query)]


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


def _ordered(tasks: Tasks, sort: str) -> Tasks:
    key = sort.removeprefix("-")
    return sorted(tasks, key=lambda task: (task[key], UUID(task["id"])), reverse=sort.startswith("-"))


class TestReply:
    async def test_a_list_is_a_bare_array(self, client: httpx.AsyncClient, tasks: str, task: dict[str, Any]) -> None:
        reply = await client.get(tasks)

        assert reply.status_code == 200
        assert reply.headers["Content-Type"] == "application/json"
        assert reply.json() == [task]

    async def test_a_user_without_tasks_has_an_empty_list(self, client: httpx.AsyncClient, tasks: str) -> None:
        reply = await client.get(tasks)

        assert (reply.status_code, reply.json()) == (200, [])
        assert "Link" not in reply.headers

    async def test_a_list_has_only_the_tasks_of_its_user(
        self, client: httpx.AsyncClient, new_user: Callable[[], str], tasks: str, task: dict[str, Any]
    ) -> None:
        other = f"/api/{new_user()}/tasks"
        theirs = await _add(client, other, task["title"])

        assert await _list(client, tasks, search=task["title"]) == [task]
        assert await _list(client, other, search=task["title"]) == theirs

    async def test_a_malformed_user_id_is_refused(self, client: httpx.AsyncClient) -> None:
        assert pointers(await client.get("/api/a%20b/tasks")) == ["path/user_id"]


class TestOrder:
    async def test_the_newest_task_comes_first_by_default(self, client: httpx.AsyncClient, tasks: str) -> None:
        added = await _add(client, tasks, *"cabdfe")

        assert await _list(client, tasks) == added[::-1]
        assert await _list(client, tasks, sort="-created_at") == added[::-1]
        assert await _list(client, tasks, sort="created_at") == added

    async def test_the_last_changed_task_comes_first_in_descending_order_of_updated_at(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        first, second, third = await _add(client, tasks, *"abc")
        await client.patch(f"{tasks}/{second['id']}/complete")
        await client.put(f"{tasks}/{first['id']}", json={"description": "changed last"})
        changes = [first["id"], second["id"], third["id"]]

        assert [task["id"] for task in await _list(client, tasks, sort="-updated_at")] == changes
        assert [task["id"] for task in await _list(client, tasks, sort="updated_at")] == changes[::-1]

    async def test_titles_sort_by_code_point(self, client: httpx.AsyncClient, tasks: str) -> None:
        titles = ["10", "2", "A", "Z", "_", "a", "a b", "a-b", "aa", "b", "\xc4pfel", "\xe9", "\uff5e", "\U0001f600"]
        await _add(client, tasks, *reversed(titles))

        assert await _titles(client, tasks, sort="title") == titles
        assert await _titles(client, tasks, sort="-title") == titles[::-1]

    @pytest.mark.usefixtures("sixty_tasks")
    @pytest.mark.parametrize("sort", _SORTS)
    async def test_tasks_with_equal_sort_keys_are_ordered_by_id(
        self, client: httpx.AsyncClient, tasks: str, sort: str
    ) -> None:
        listed = await _list(client, tasks, sort=sort)

        assert len(listed) == 60
        assert listed == _ordered(listed, sort)

    @pytest.mark.parametrize("sort", ["", "id", "Title", "+title", "--title", "title ", "title,created_at", "\0"])
    async def test_an_unknown_order_is_refused(self, client: httpx.AsyncClient, tasks: str, sort: str) -> None:
        assert pointers(await client.get(tasks, params={"sort": sort})) == ["query/sort"]


class TestFilters:
    @pytest.mark.parametrize(
        ("query", "titles"),
        [
            ("", ["done pie", "open pie", "done cake", "open cake"]),
            ("status=all", ["done pie", "open pie", "done cake", "open cake"]),
            ("status=pending", ["open pie", "open cake"]),
            ("status=completed", ["done pie", "done cake"]),
            *((f"completed={word}", ["done pie", "done cake"]) for word in ("true", "True", "TRUE", "1")),
            *((f"completed={word}", ["open pie", "open cake"]) for word in ("false", "False", "FALSE", "0")),
            ("search=cake", ["done cake", "open cake"]),
            ("status=completed&completed=true", ["done pie", "done cake"]),
            ("status=all&completed=false", ["open pie", "open cake"]),
            ("status=pending&completed=true", []),
            ("status=pending&search=cake", ["open cake"]),
            ("completed=true&search=pie", ["done pie"]),
            ("status=completed&completed=true&search=pie&sort=title&limit=5", ["done pie"]),
            ("search=cake&sort=title", ["done cake", "open cake"]),
            ("search=pie&limit=1", ["done pie"]),
        ],
    )
    async def test_filters_work_alone_and_combined(
        self, client: httpx.AsyncClient, tasks: str, query: str, titles: list[str]
    ) -> None:
        for food in ("cake", "pie"):
            await _add(client, tasks, f"open {food}")
            await _add(client, tasks, f"done {food}", completed=True)

        assert [task["title"] for task in (await client.get(f"{tasks}?{query}")).json()] == titles

    @pytest.mark.parametrize("status", ["", "ALL", "done", "open", "pending ", "true", "\0"])
    async def test_an_unknown_status_is_refused(self, client: httpx.AsyncClient, tasks: str, status: str) -> None:
        assert pointers(await client.get(tasks, params={"status": status})) == ["query/status"]

    @pytest.mark.parametrize("completed", ["", "yes", "no", "on", "2", "null", " true", "\0"])
    async def test_a_completed_filter_that_is_not_a_boolean_is_refused(
        self, client: httpx.AsyncClient, tasks: str, completed: str
    ) -> None:
        reply = await client.get(tasks, params={"completed": completed})

        assert pointers(reply) == ["query/completed"]
        assert reply.json()["detail"] == "completed: must be true or false"

    async def test_a_refusal_names_every_invalid_parameter_and_quotes_no_value(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        reply = await client.get(tasks, params=dict.fromkeys(("status", "completed", "sort", "limit"), "perhaps"))

        assert pointers(reply) == ["query/status", "query/completed", "query/sort", "query/limit"]
        assert "perhaps" not in reply.text


class TestSearch:
    @pytest.mark.parametrize(
        ("search", "found"),
        [
            ("milk", True),
            ("MILK", True),
            ("mIlK", True),
            ("y oat m", True),
            ("Buy oat milk", True),
            ("milky", False),
            ("buy milk", False),
            ("barista", True),
            ("BARISTA", True),
            ("one 100%", True),
            ("milkThe", False),
        ],
    )
    async def test_a_search_finds_a_substring_of_title_or_description_in_any_case(
        self, client: httpx.AsyncClient, tasks: str, search: str, found: bool
    ) -> None:
        await _add(client, tasks, "Buy oat milk", description="The Barista one 100%")
        await _add(client, tasks, "Sleep")

        assert await _titles(client, tasks, search=search) == ["Buy oat milk"] * found

    @pytest.mark.parametrize(
        ("search", "titles"),
        [
            ("%", ["100% sure"]),
            ("_", ["snake_case"]),
            ("\\", ["C:\\temp"]),
            ("\\t", ["C:\\temp"]),
            ("0%", ["100% sure"]),
            ("e_c", ["snake_case"]),
            ("%%", []),
            ("__", []),
            ("\\%", []),
            ("1%e", []),
            ("'", ["it's"]),
            ("*", []),
            (".", []),
        ],
    )
    async def test_a_search_has_no_wildcards(
        self, client: httpx.AsyncClient, tasks: str, search: str, titles: list[str]
    ) -> None:
        await _add(client, tasks, "100% sure", "snake_case", "C:\\temp", "it's", "plain")

        assert await _titles(client, tasks, search=search) == titles

    @pytest.mark.parametrize(
        ("title", "search"),
        [
            ("Caf\xc9", "caf\xe9"),
            ("caf\xe9", "CAF\xc9"),
            ("\u0416\u0423\u041a", "\u0436\u0443\u043a"),
            ("\u03a9mega", "\u03c9MEGA"),
            ("\u540d\u524d", "\u524d"),
            ("party \U0001f389", "\U0001f389"),
            ("line one\nline two", "ONE\nLINE"),
        ],
    )
    async def test_a_search_ignores_case_in_every_script(
        self, client: httpx.AsyncClient, tasks: str, title: str, search: str
    ) -> None:
        await _add(client, tasks, title, "other")

        assert await _titles(client, tasks, search=search) == [title]

    async def test_an_empty_search_finds_every_task(self, client: httpx.AsyncClient, tasks: str) -> None:
        await _add(client, tasks, "with", description="a description")
        await _add(client, tasks, "without")

        assert await _titles(client, tasks, search="") == ["without", "with"]

    async def test_a_search_for_white_space_finds_white_space(self, client: httpx.AsyncClient, tasks: str) -> None:
        await _add(client, tasks, "two words", "one")

        assert await _titles(client, tasks, search=" ") == ["two words"]

    @pytest.mark.parametrize("search", ["x" * 200, "\U0001f600" * 200, "%" * 200, "\\" * 200], ids=short)
    async def test_a_search_may_have_200_characters(self, client: httpx.AsyncClient, tasks: str, search: str) -> None:
        await _add(client, tasks, search, "other")

        assert await _titles(client, tasks, search=search) == [search]

    @pytest.mark.parametrize("search", ["x" * 201, "a\0b"], ids=short)
    async def test_a_long_search_or_a_search_with_nul_is_refused(
        self, client: httpx.AsyncClient, tasks: str, search: str
    ) -> None:
        assert pointers(await client.get(tasks, params={"search": search})) == ["query/search"]


class TestLimit:
    async def test_the_default_limit_is_1000(
        self, database: asyncpg.Connection, client: httpx.AsyncClient, user: str, tasks: str
    ) -> None:
        await database.execute(_INSERT, user, 1_001)

        default, asked = [await client.get(f"{tasks}{query}") for query in ("", "?limit=1000")]

        assert len(default.json()) == 1_000
        assert default.json() == asked.json()
        assert len((await client.get(default.links["next"]["url"])).json()) == 1

    @pytest.mark.parametrize(
        ("limit", "number", "more"), [(1, 1, True), (2, 2, True), (3, 3, False), (4, 3, False), (1_000, 3, False)]
    )
    async def test_a_list_has_a_next_link_only_if_there_are_more_tasks(
        self, client: httpx.AsyncClient, tasks: str, limit: int, number: int, more: bool
    ) -> None:
        added = await _add(client, tasks, *"abc")

        reply = await client.get(tasks, params={"limit": limit})

        assert reply.json() == added[::-1][:number]
        assert ("Link" in reply.headers) == more

    @pytest.mark.parametrize(
        "limit",
        [
            "0",
            "-1",
            "1001",
            "abc",
            "",
            "1e2",
            "0x10",
            "1.5",
            "5.0",
            "1_0",
            "+5",
            " 5",
            "\N{ARABIC-INDIC DIGIT FIVE}",
            "9" * 30,
            "\0",
        ],
    )
    async def test_a_limit_outside_1_to_1000_is_refused(
        self, client: httpx.AsyncClient, tasks: str, limit: str
    ) -> None:
        assert pointers(await client.get(tasks, params={"limit": limit})) == ["query/limit"]


class TestLink:
    async def test_the_next_link_is_relative_and_keeps_the_other_parameters(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        await _add(client, tasks, "50% & more = \xe9", "50% & less = \xe9", completed=True)
        query = {"status": "completed", "completed": "true", "search": "50% & ", "sort": "title", "limit": "1"}

        reply = await client.get(tasks, params=query)

        link = httpx.URL(reply.links["next"]["url"])
        assert reply.links["next"]["rel"] == "next"
        assert (link.is_relative_url, link.path) == (True, tasks)
        assert dict(link.params) == query | {"cursor": link.params["cursor"]}
        assert [task["title"] for task in (await client.get(str(link))).json()] == ["50% & more = \xe9"]

    async def test_the_next_link_omits_unknown_parameters(self, client: httpx.AsyncClient, tasks: str) -> None:
        await _add(client, tasks, *"ab")

        reply = await client.get(tasks, params={"limit": 1, "verbose": "x" * 9_000})

        assert reply.headers["Ignored-Fields"] == "verbose"
        assert httpx.URL(reply.links["next"]["url"]).params.keys() == {"limit", "cursor"}

    async def test_the_next_link_replaces_the_previous_cursor(self, client: httpx.AsyncClient, tasks: str) -> None:
        await _add(client, tasks, *"abc")
        first = await client.get(tasks, params={"limit": 1})

        second = await client.get(first.links["next"]["url"])

        assert len(httpx.URL(second.links["next"]["url"]).params.get_list("cursor")) == 1
        assert [task["title"] for task in (await client.get(second.links["next"]["url"])).json()] == ["a"]

    async def test_the_page_size_may_change_between_pages(self, client: httpx.AsyncClient, tasks: str) -> None:
        await _add(client, tasks, *"abcde")
        cursor = await _cursor(client, tasks)

        assert await _titles(client, tasks, limit=3, cursor=cursor) == ["d", "c", "b"]

    @pytest.mark.parametrize("shape", ["auth0|{}", "{}@example.com", "{}+tag@example.com", "~{}:a=b"])
    async def test_the_next_link_works_for_a_percent_encoded_user_id(
        self, client: httpx.AsyncClient, user: str, shape: str
    ) -> None:
        tasks = "/api/" + "".join(f"%{ord(letter):02X}" for letter in shape.format(user)) + "/tasks"
        added = await _add(client, tasks, *"abc")

        pages = [page async for page in _pages(client, tasks, limit=1)]
        url = (await client.get(tasks, params={"limit": 1})).links["next"]["url"]

        assert pages == [[task] for task in reversed(added)]
        assert set(url) <= set(string.ascii_letters + string.digits + "/?&=%._~-")
        assert {task["user_id"] for task in added} == {shape.format(user)}


class TestCursor:
    @pytest.mark.parametrize(
        "query",
        [
            {"sort": "created_at"},
            {"sort": "title"},
            {"status": "pending"},
            {"completed": "false"},
            {"search": "a"},
        ],
    )
    async def test_a_cursor_of_another_filter_or_order_is_refused(
        self, client: httpx.AsyncClient, tasks: str, query: dict[str, str]
    ) -> None:
        await _add(client, tasks, "aa", "ab")
        with_query, without = await _cursor(client, tasks, **query), await _cursor(client, tasks)

        assert pointers(await client.get(tasks, params={"cursor": with_query})) == ["query/cursor"]
        assert pointers(await client.get(tasks, params={"cursor": without, **query})) == ["query/cursor"]
        assert await _titles(client, tasks, cursor=without) == ["aa"]

    async def test_a_cursor_of_another_search_is_refused(self, client: httpx.AsyncClient, tasks: str) -> None:
        await _add(client, tasks, "aa", "ab")
        cursor = await _cursor(client, tasks, search="a")

        assert pointers(await client.get(tasks, params={"cursor": cursor, "search": "b"})) == ["query/cursor"]

    async def test_a_cursor_of_another_user_is_refused(
        self, client: httpx.AsyncClient, new_user: Callable[[], str], tasks: str
    ) -> None:
        other = f"/api/{new_user()}/tasks"
        await _add(client, other, "aa", "ab")
        cursor = await _cursor(client, other)

        assert pointers(await client.get(tasks, params={"cursor": cursor})) == ["query/cursor"]

    @pytest.mark.parametrize("sort", ["-created_at", "title"])
    async def test_a_cursor_with_any_changed_character_is_refused(
        self, client: httpx.AsyncClient, tasks: str, sort: str
    ) -> None:
        await _add(client, tasks, "a", "bb", "ccc")
        cursor = await _cursor(client, tasks, sort=sort)
        neighbours = dict(zip(_BASE64, _BASE64[1:] + _BASE64[0], strict=True))
        changed = [cursor[:at] + neighbours[letter] + cursor[at + 1 :] for at, letter in enumerate(cursor)]

        replies = [await client.get(tasks, params={"sort": sort, "cursor": text}) for text in changed]

        assert [text for text, reply in zip(changed, replies, strict=True) if reply.status_code != 422] == []

    async def test_a_shortened_or_lengthened_cursor_is_refused(self, client: httpx.AsyncClient, tasks: str) -> None:
        await _add(client, tasks, "a", "b")
        cursor = await _cursor(client, tasks)
        changed = [
            *(cursor[:end] for end in range(1, len(cursor))),
            *(cursor + more for more in ("=", "==", "A", "AAAA", " ", "\n", "\0", "\xe9")),
            *(more + cursor for more in ("=", "A", "AAAA", " ", "\n")),
        ]

        replies = [await client.get(tasks, params={"cursor": text}) for text in changed]

        assert [text for text, reply in zip(changed, replies, strict=True) if reply.status_code != 422] == []

    @pytest.mark.parametrize(
        "cursor",
        ["x", "1", "null", "\xe9", "\U0001f600", "\0", "a+b/c", "=" * 4, "A" * 2_048, "A" * 2_049, "A" * 30_000],
        ids=short,
    )
    async def test_an_invented_cursor_is_refused(
        self, client: httpx.AsyncClient, tasks: str, task: dict[str, Any], cursor: str
    ) -> None:
        reply = await client.get(tasks, params={"cursor": cursor})

        assert pointers(reply) == ["query/cursor"]
        assert task["id"] not in reply.text

    async def test_an_empty_cursor_gives_the_first_page(self, client: httpx.AsyncClient, tasks: str) -> None:
        await _add(client, tasks, *"abc")

        assert await _titles(client, tasks, cursor="") == ["c", "b", "a"]

    @pytest.mark.parametrize("sort", _SORTS)
    async def test_a_cursor_works_after_its_task_is_deleted(
        self, client: httpx.AsyncClient, tasks: str, sort: str
    ) -> None:
        await _add(client, tasks, *"abc")
        ordered = await _list(client, tasks, sort=sort)
        cursor = await _cursor(client, tasks, sort=sort)

        await client.delete(f"{tasks}/{ordered[0]['id']}")

        assert await _list(client, tasks, sort=sort, cursor=cursor) == ordered[1:]

    async def test_a_cursor_for_the_longest_title_works(self, client: httpx.AsyncClient, tasks: str) -> None:
        titles = ["\U0001f600" * 200, "\U0001f601" * 200]
        await _add(client, tasks, *titles)

        cursor = await _cursor(client, tasks, sort="title")

        assert await _titles(client, tasks, sort="title", cursor=cursor) == titles[1:]


class _Churn:
    """Inserts, updates and deletes tasks of one user, which moves other tasks in the list."""

    def __init__(self, client: httpx.AsyncClient, tasks: str, touched: Iterable[dict[str, Any]]) -> None:
        self._client, self._tasks = client, tasks
        self._ids = [task["id"] for task in touched]
        self._numbers = count()
        self.changes = 0

    async def __call__(self) -> None:
        """Insert three tasks, update two, delete one. "!" sorts before the titles of the others, "~" after them."""
        number = next(self._numbers)
        title = f"{'~' if number % 3 else '!'} {number}"
        added = await _add(self._client, self._tasks, "!", "~", title)
        updated, other, deleted = (self._ids.pop(0) for _ in range(3))
        self._ids += [*(task["id"] for task in added), updated, other]
        replies = [
            await self._client.put(f"{self._tasks}/{updated}", json={"title": title}),
            await self._client.patch(f"{self._tasks}/{other}/complete"),
            await self._client.delete(f"{self._tasks}/{deleted}"),
        ]
        assert [reply.status_code for reply in replies] == [200, 200, 204]
        self.changes += 6


@pytest.mark.usefixtures("sixty_tasks")
class TestWalk:
    @pytest.mark.parametrize("query", [{}, {"status": "pending"}, {"search": "TASK"}, {"completed": "true"}])
    @pytest.mark.parametrize("sort", _SORTS)
    async def test_the_pages_have_every_task_exactly_once_and_in_order(
        self, client: httpx.AsyncClient, tasks: str, sort: str, query: dict[str, str]
    ) -> None:
        matching = await _list(client, tasks, **query)

        pages = [page async for page in _pages(client, tasks, limit=7, sort=sort, **query)]

        assert [task for page in pages for task in page] == _ordered(matching, sort)
        assert [len(page) for page in pages[:-1]] == [7] * (len(matching) // 7)

    @pytest.mark.parametrize("sort", _SORTS)
    async def test_changes_between_the_pages_neither_repeat_nor_skip_an_untouched_task(
        self, client: httpx.AsyncClient, tasks: str, sort: str
    ) -> None:
        everything = _ordered(await _list(client, tasks), sort)
        touched, untouched = everything[::3], [task for task in everything if task not in everything[::3]]
        churn, walked = _Churn(client, tasks, touched), []

        async for page in _pages(client, tasks, limit=7, sort=sort):
            walked += page
            await churn()

        assert [task for task in walked if task in untouched] == untouched
        assert churn.changes >= 6 * 6

    async def test_the_same_changes_make_paging_by_offset_repeat_or_skip_tasks(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        """Shows that the test above can fail."""
        everything = await _list(client, tasks)
        untouched = [task for task in everything if task not in everything[::3]]
        churn, walked = _Churn(client, tasks, everything[::3]), []

        for offset in range(0, 140, 7):
            walked += (await _list(client, tasks))[offset : offset + 7]
            await churn()

        assert [task for task in walked if task in untouched] != untouched

    @pytest.mark.parametrize("sort", ["-created_at", "title"])
    async def test_concurrent_changes_neither_repeat_nor_skip_an_untouched_task(
        self, client: httpx.AsyncClient, tasks: str, sort: str
    ) -> None:
        everything = _ordered(await _list(client, tasks), sort)
        untouched = [task for task in everything if task not in everything[::3]]
        churn = _Churn(client, tasks, everything[::3])

        async with asyncio.TaskGroup() as group:
            churning = group.create_task(_forever(churn))
            while churn.changes < 60:
                walked = [task async for page in _pages(client, tasks, limit=7, sort=sort) for task in page]
                assert [task for task in walked if task in untouched] == untouched
            churning.cancel()


async def _forever(act: Callable[[], Awaitable[None]]) -> None:
    while True:
        await act()

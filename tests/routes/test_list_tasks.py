"""GET /api/{user_id}/tasks: its filters and its order. See test_pages_of_tasks.py for its pages."""

import string
from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.routes.support import add, listed, titles_of
from tests.support import pointers, short


class TestReply:
    async def test_a_list_is_a_bare_array_without_a_link_if_there_are_no_more_tasks(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        empty = await client.get(tasks)
        [task] = await add(client, tasks, "Buy oat milk")
        reply = await client.get(tasks)

        assert (empty.status_code, reply.status_code) == (200, 200)
        assert (empty.json(), reply.json()) == ([], [task])
        assert reply.headers["Content-Type"] == "application/json"
        assert not {"link"} & {*empty.headers, *reply.headers}

    async def test_a_list_has_only_the_tasks_of_its_user(
        self, client: httpx.AsyncClient, new_user: Callable[[], str], tasks: str, task: dict[str, Any]
    ) -> None:
        other = f"/api/{new_user()}/tasks"
        theirs = await add(client, other, task["title"])

        assert await listed(client, tasks, search=task["title"]) == [task]
        assert await listed(client, other, search=task["title"]) == theirs

    async def test_a_malformed_user_id_is_refused(self, client: httpx.AsyncClient) -> None:
        assert pointers(await client.get("/api/a%20b/tasks")) == ["path/user_id"]


class TestOrder:
    async def test_the_newest_task_comes_first_by_default(self, client: httpx.AsyncClient, tasks: str) -> None:
        added = await add(client, tasks, *"abc")

        assert await listed(client, tasks) == added[::-1]
        assert await listed(client, tasks, sort="-created_at") == added[::-1]
        assert await listed(client, tasks, sort="created_at") == added

    async def test_the_last_changed_task_comes_first_in_descending_order_of_updated_at(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        first, second, _ = await add(client, tasks, *"abc")
        await client.patch(f"{tasks}/{second['id']}/complete")
        await client.put(f"{tasks}/{first['id']}", json={"description": "changed last"})

        assert await titles_of(client, tasks, sort="-updated_at") == ["a", "b", "c"]
        assert await titles_of(client, tasks, sort="updated_at") == ["c", "b", "a"]

    async def test_titles_sort_without_regard_to_case_then_by_code_point(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        latin = ["10", "2", "_", "alpha", "Beta", "beta b", "Beta-b", "betaa", "Gamma", "z", "\xe4pfel", "\xc4rger"]
        titles = [*latin, "\u0430\u0431", "\u0411\u0430", "\u0432", "\uff5e", "\U0001f600"]
        await add(client, tasks, *reversed(titles))

        assert await titles_of(client, tasks, sort="title") == titles
        assert await titles_of(client, tasks, sort="-title") == titles[::-1]

    async def test_titles_that_differ_only_in_case_are_in_the_order_of_their_ids(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        added = await add(client, tasks, "b", "B", "a", "A", "b")

        assert await titles_of(client, tasks, sort="title") == ["a", "A", "b", "B", "b"]
        assert await listed(client, tasks, sort="-title") == [added[at] for at in (4, 1, 0, 3, 2)]


# Words for an order, and that order. `verbose` stands for no word at all.
ORDERS: Final = {
    "-created_at": (
        *("sort=created", "sort=-created", "sort=date", "sort=DATE", "sort=created_at&order=desc", "order=desc"),
        *("sort_by=created", "sort=&sort_by=", "order=&sort_order=", "sort=created_at&sort_order=DESC", "verbose=1"),
        *("sort_by=created_at&sort=desc", "sort=desc", "sort=undefined&order=null", "sort=newest"),
    ),
    "created_at": (
        *("sort=created_at", "sort=Created_At", "sort=created&order=asc", "sort=-created_at&order=asc", "order=asc"),
        *("sort_by=created_at", "sort=date&sort_order=ASC", "sort_by=created_at&sort=", "sort=-date&order=asc"),
        *("sort=ASC", "sort=oldest", "sort=createdAt"),
    ),
    "-updated_at": ("sort=updated", "sort=-updated", "sort_by=updated_at&order=desc", "sort=updated&order=sideways"),
    "updated_at": ("sort=updated&order=asc", "sort_by=updated&sort_order=asc&order=", "sort=updated_at&order="),
    "title": (
        *("sort=Title", "sort=title&order=asc", "sort_by=title", "sort=-title&order=asc", "sort=asc&sort_by=title"),
        "sort=title&sort_by=priority",
    ),
    "-title": (
        *("sort=title&order=desc", "sort_by=-title", "sort=title&order=desc&sort_order=asc", "sort=desc&sort_by=title"),
        "sort=title&order=sideways&sort_order=desc",
    ),
}


class TestWords:
    @pytest.fixture
    async def mixed(self, client: httpx.AsyncClient, tasks: str) -> None:
        """Four tasks in another order by each key."""
        added = await add(client, tasks, "b", "D", "a", "C")
        for at in (0, 3, 2, 1):
            await client.patch(f"{tasks}/{added[at]['id']}/complete")

    @pytest.mark.usefixtures("mixed")
    @pytest.mark.parametrize("order", ORDERS)
    async def test_the_words_for_an_order_are_the_same_list_and_share_their_cursors(
        self, client: httpx.AsyncClient, tasks: str, order: str
    ) -> None:
        titles = await titles_of(client, tasks, sort=order)
        first = await client.get(tasks, params={"sort": order, "limit": 2})
        cursor = httpx.URL(first.links["next"]["url"]).params["cursor"]

        for words in ORDERS[order]:
            page = await client.get(f"{tasks}?{words}&limit=2")
            rest = await client.get(page.links["next"]["url"])
            resumed = await client.get(f"{tasks}?{words}&cursor={cursor}")

            assert [task["title"] for task in page.json() + rest.json()] == titles, words
            assert resumed.json() == rest.json(), words

    async def test_each_order_is_another_one(self, client: httpx.AsyncClient, tasks: str, mixed: None) -> None:
        """The control of the test above."""
        assert mixed is None
        assert len({(*await titles_of(client, tasks, sort=order),) for order in ORDERS}) == len(ORDERS)

    @pytest.mark.parametrize(
        ("query", "ignored"),
        [
            *((f"sort={field}", "sort") for field in ("priority", "-x_date", "id", "+title", "--title", "title,id")),
            ("sort_by=priority", "sort_by"),
            ("sort=priority&order=asc", "sort"),
            ("sort=priority&sort_by=x_date&order=asc", "sort, sort_by"),
            ("sort_by=x_date&order=asc", "sort_by"),
            (f"sort={'x' * 300}", "sort"),
            ("order=sideways", "order"),
            ("sort_order=1", "sort_order"),
            ("sort=\u0130&verbose=1", "sort, verbose"),
        ],
    )
    async def test_an_order_that_this_list_does_not_know_is_the_default_order_and_named(
        self, client: httpx.AsyncClient, tasks: str, query: str, ignored: str
    ) -> None:
        added = await add(client, tasks, *"bac")

        lenient = await client.get(f"{tasks}?{query}&limit=2")
        rest = await client.get(lenient.links["next"]["url"])
        strict = await client.get(f"{tasks}?{query}", headers={"Prefer": "handling=strict"})

        assert lenient.json() + rest.json() == added[::-1]
        assert lenient.headers["Ignored-Fields"] == ignored
        assert pointers(strict) == [f"query/{name}" for name in ignored.split(", ")]
        assert strict.json()["detail"].startswith(f"{ignored.partition(',')[0]}: is not one that this list knows")

    @pytest.mark.parametrize("query", ["sort=date&order=DESC", "sort_by=Updated&sort_order=", "status=Done", "sort="])
    async def test_the_words_are_known_with_strict_handling(
        self, client: httpx.AsyncClient, tasks: str, query: str
    ) -> None:
        reply = await client.get(f"{tasks}?{query}", headers={"Prefer": "handling=strict"})

        assert (reply.status_code, "Ignored-Fields" in reply.headers) == (200, False)

    @pytest.mark.parametrize(
        ("titles", "words"),
        [
            (["done", "open"], ["", "all", "All", "undefined", "null"]),
            (["open"], ["pending", "Pending", "active", "ACTIVE", "incomplete", "open", "todo"]),
            (["done"], ["completed", "Completed", "complete", "done"]),
        ],
    )
    async def test_the_words_for_a_state_are_the_same_list_and_share_their_cursors(
        self, client: httpx.AsyncClient, tasks: str, titles: list[str], words: list[str]
    ) -> None:
        await add(client, tasks, "open", "open")
        await add(client, tasks, "done", "done", completed=True)
        first = await client.get(tasks, params={"status": words[1], "limit": 1})
        cursor = httpx.URL(first.links["next"]["url"]).params["cursor"]

        for word in words:
            assert sorted({*await titles_of(client, tasks, status=word)}) == titles
            assert await titles_of(client, tasks, status=word, cursor=cursor, limit=1) == titles[:1]

    @pytest.mark.parametrize("value", ["", "undefined", "null"])
    async def test_a_parameter_that_javascript_has_not_set_is_as_if_absent(
        self, client: httpx.AsyncClient, tasks: str, value: str
    ) -> None:
        added = await add(client, tasks, "open", "done")
        names = ["status", "completed", "sort", "sort_by", "order", "sort_order", "limit"]
        texts = [] if value else ["search", "q", "cursor"]

        params = dict.fromkeys([*names, *texts], value)
        reply = await client.get(tasks, params=params, headers={"Prefer": "handling=strict"})

        assert reply.json() == added[::-1]


class TestFilters:
    @pytest.mark.parametrize(
        ("query", "titles"),
        [
            ("", ["done pie", "open pie", "done cake", "open cake"]),
            ("status=all&search=", ["done pie", "open pie", "done cake", "open cake"]),
            ("status=pending", ["open pie", "open cake"]),
            ("status=completed", ["done pie", "done cake"]),
            *((f"completed={word}", ["done pie", "done cake"]) for word in ("true", "True", "1")),
            *((f"completed={word}", ["open pie", "open cake"]) for word in ("false", "FALSE", "0")),
            ("status=pending&completed=true", []),
            ("search=cake", ["done cake", "open cake"]),
            ("status=completed&completed=true&search=pie&sort=title&limit=5", ["done pie"]),
            ("search=pie&limit=1", ["done pie"]),
        ],
    )
    async def test_filters_work_alone_and_combined(
        self, client: httpx.AsyncClient, tasks: str, query: str, titles: list[str]
    ) -> None:
        for food in ("cake", "pie"):
            await add(client, tasks, f"open {food}")
            await add(client, tasks, f"done {food}", completed=True)

        assert [task["title"] for task in (await client.get(f"{tasks}?{query}")).json()] == titles

    @pytest.mark.parametrize(
        ("search", "titles"),
        [
            ("MILK", ["Buy oat milk"]),
            ("y oat m", ["Buy oat milk"]),
            ("milky", []),
            ("milkThe", []),  # title and description are searched separately
            ("BARISTA", ["Buy oat milk"]),
            (" ", ["100% sure", "Buy oat milk"]),
            ("%", ["100% sure"]),
            ("_", ["snake_case"]),
            ("\\", ["C:\\temp"]),
            ("\\t", ["C:\\temp"]),
            ("e_c", ["snake_case"]),
            ("1%e", []),
            ("\\%", []),
            ("'", ["it's"]),
            *((pattern, []) for pattern in (".", "^b", "milk$", "(?i)milk", "***=milk", "[", "*", "m{1}ilk", "\\y")),
            ("caf\xe9", ["CAF\xc9\nlatte"]),
            ("\xc9\nLATTE", ["CAF\xc9\nlatte"]),
            ("\u0436\u0443", ["\u0416\u0423\u041a"]),
            ("\u524d", ["\u540d\u524d"]),
        ],
    )
    async def test_a_search_finds_a_substring_in_any_case_and_has_no_wildcards(
        self, client: httpx.AsyncClient, tasks: str, search: str, titles: list[str]
    ) -> None:
        await add(client, tasks, "Buy oat milk", description="The Barista one")
        await add(client, tasks, "100% sure", "snake_case", "C:\\temp", "it's")
        await add(client, tasks, "CAF\xc9\nlatte", "\u0416\u0423\u041a", "\u540d\u524d")

        assert await titles_of(client, tasks, search=search) == titles
        assert await titles_of(client, tasks, q=search) == titles

    @pytest.mark.parametrize(
        ("stored", "search"),
        [
            ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2"),  # a final sigma, and its capital
            ("\u03bf\u03b4\u03bf\u03c2", "\u039f\u0394\u039f\u03a3"),
            ("\u03bf\u03b4\u03bf\u03c2", "\u03bf\u03b4\u03bf\u03c3"),
            ("caf\xe9s", "CAFE\u0301"),  # decomposed
            ("cafe\u0301s", "CAF\xc9"),
            ("\xe9e\u0301", "e\u0301\xe9"),  # both forms in one text
            ("o\u0302\u0323", "o\u0302\u0323"),  # marks in an order that Unicode does not use
            ("cafe\u0301", "cafe"),
            ("\uac01", "\u1100\u1161\u11a8"),
            *(("\u01c5", each) for each in "\u01c4\u01c5\u01c6"),  # a letter with a third case, the title case
            ("\u1f88", "\u1f80"),
        ],
        ids=short,
    )
    async def test_a_search_finds_other_spellings_of_the_same_letters(
        self, client: httpx.AsyncClient, tasks: str, stored: str, search: str
    ) -> None:
        await add(client, tasks, stored, "other")

        assert await titles_of(client, tasks, search=search) == [stored]

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200)
        | st.text(string.punctuation + " \n\t", min_size=1, max_size=50)
    )
    async def test_a_search_finds_any_text_as_it_is_stored(
        self, client: httpx.AsyncClient, new_user: Callable[[], str], text: str
    ) -> None:
        tasks = f"/api/{new_user()}/tasks"
        await add(client, tasks, "a", description=f"before{text}after")

        assert await titles_of(client, tasks, search=text) == ["a"]

    @pytest.mark.parametrize("search", ["\U0001f600" * 200, "%" * 200, "\\" * 200], ids=short)
    async def test_a_search_may_have_200_characters(self, client: httpx.AsyncClient, tasks: str, search: str) -> None:
        await add(client, tasks, search, "other")

        assert await titles_of(client, tasks, search=search) == [search]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("status", value) for value in ("pending ", "in progress", "\0")),
            *(("completed", value) for value in ("yes", "2", "Null", " true", "\0")),
            *((name, value) for name in ("search", "q") for value in ("x" * 201, "a\0b")),
            *((name, value) for name in ("sort", "sort_by", "order", "sort_order") for value in ("\0", "a\0")),
            *(("limit", value) for value in ("0", "-1", "1001", "5.0", "1_0", "+5", " 5", "\u0665", "9" * 30)),
            *(("cursor", value) for value in ("x", "a+b/c", "=" * 4, "A" * 2_048, "A" * 2_049, "\0", "\U0001f600")),
        ],
        ids=short,
    )
    async def test_an_invalid_parameter_is_refused(
        self, client: httpx.AsyncClient, tasks: str, name: str, value: str
    ) -> None:
        assert pointers(await client.get(tasks, params={name: value})) == [f"query/{name}"]

    async def test_a_refusal_names_every_invalid_parameter_and_quotes_no_value(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        reply = await client.get(tasks, params=dict.fromkeys(("status", "completed", "limit"), "perhaps"))

        assert pointers(reply) == ["query/status", "query/completed", "query/limit"]
        assert reply.json()["detail"] == (
            "status: is not one that this list knows; completed: must be true or false; limit: must be a whole number"
        )

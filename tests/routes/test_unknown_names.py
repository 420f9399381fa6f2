"""Unknown fields and parameters: ignored and named in `Ignored-Fields`, or refused with `Prefer: handling=strict`."""

from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support import pointers, short

STRICT: Final = {"Prefer": "handling=strict"}


class TestOperation:
    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("GET", "", None),
            ("POST", "", {"title": "Other"}),
            ("GET", "/{id}", None),
            ("PUT", "/{id}", {"title": "Other"}),
            ("PATCH", "/{id}/complete", {"completed": True}),
            ("DELETE", "/{id}", None),
        ],
    )
    async def test_each_operation_names_unknown_names_or_with_strict_handling_refuses_them(
        self,
        client: httpx.AsyncClient,
        tasks: str,
        task: dict[str, Any],
        method: str,
        path: str,
        body: dict[str, object] | None,
    ) -> None:
        url = tasks + path.format(**task) + "?verbose=1&v&verbose=2"
        wrong = body and body | {"mood": [{"x": "\0"}], "id": 1}

        refused = await client.request(method, url, json=wrong, headers=STRICT)
        unchanged = (await client.get(tasks)).json() == [task]
        ignored = await client.request(method, url, json=wrong)

        assert pointers(refused) == [*(["#/mood", "#/id"] if body else []), "query/verbose", "query/v"]
        assert refused.headers["Preference-Applied"] == "handling=strict"
        assert "Ignored-Fields" not in refused.headers
        assert (ignored.is_success, unchanged) == (True, True)
        assert ignored.headers["Ignored-Fields"] == ("mood, id, " if body else "") + "verbose, v"
        assert "Preference-Applied" not in ignored.headers

    async def test_known_names_are_accepted_with_strict_handling(self, client: httpx.AsyncClient, tasks: str) -> None:
        body = {"title": "Buy oat milk", "description": None, "completed": False}
        query = {"status": "all", "search": "", "sort": "title", "limit": "1", "completed": "true", "cursor": ""}

        created = await client.post(tasks, json=body, headers=STRICT)
        listed = await client.get(tasks, params=query)
        misplaced = await client.post(tasks, json=body, params=query)

        assert (created.status_code, created.headers["Preference-Applied"]) == (201, "handling=strict")
        assert (listed.status_code, "Ignored-Fields" in listed.headers) == (200, False)
        assert misplaced.headers["Ignored-Fields"] == ", ".join(query)

    async def test_an_error_names_the_ignored_names_that_may_have_caused_it(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        mistyped = await client.post(tasks, json={"titel": "Buy oat milk"}, headers={"Prefer": "handling=lenient"})
        missing = await client.delete(f"{tasks}/{uuid4()}?force=1")

        assert (mistyped.status_code, mistyped.headers["Ignored-Fields"]) == (422, "titel")
        assert mistyped.headers["Preference-Applied"] == "handling=lenient"
        assert (missing.status_code, missing.headers["Ignored-Fields"]) == (404, "force")


class TestNames:
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
    @example(name="a\r\nSet-Cookie: b=c, d")
    @example(name="")
    @example(name="\1%41/b~c~1")
    @example(name="x" * 60_000)
    @example(name="ab\xe9" * 100)
    async def test_the_first_40_bytes_of_a_name_are_shown_encoded_and_cut_between_characters(
        self, client: httpx.AsyncClient, tasks: str, name: str
    ) -> None:
        shown = name.encode()[:40].decode(errors="ignore")

        ignored = await client.post(tasks, json={"title": "a", name: 1})
        refused = await client.post(tasks, json={"title": "a", name: 1}, headers=STRICT)
        in_query = await client.get("/", extensions={"target": f"{tasks}?{quote(name, safe='')}=".encode()[:30_000]})

        assert ignored.headers["Ignored-Fields"] == in_query.headers["Ignored-Fields"] == quote(shown, safe="")
        assert pointers(refused) == ["#/" + quote(shown.replace("~", "~0").replace("/", "~1"))]

    @pytest.mark.parametrize("headers", [{}, {"Prefer": "handling=lenient"}])
    @pytest.mark.parametrize("name", ["\0", "a\0b", "a" * 60 + "\0"], ids=ascii)
    async def test_a_name_with_a_nul_is_refused(
        self, client: httpx.AsyncClient, tasks: str, name: str, headers: dict[str, str]
    ) -> None:
        in_body = await client.post(tasks, json={"title": "a", "mood": 1, name: 1}, headers=headers)
        in_query = await client.get(f"{tasks}?mood=1&{quote(name)}=1", headers=headers)

        shown = quote(name[:40])
        assert (pointers(in_body), pointers(in_query)) == ([f"#/{shown}"], [f"query/{shown}"])
        assert in_body.json()["errors"][0]["detail"] == "must not contain a NUL character"
        assert in_body.headers.get("Preference-Applied") == headers.get("Prefer")
        assert (await client.get(tasks)).json() == []

    async def test_at_most_20_names_are_shown(self, client: httpx.AsyncClient, tasks: str) -> None:
        names = [f"{number:x}" for number in range(0x100, 0x1100)]
        sent = {"title": "a", **dict.fromkeys(names, 0)}

        ignored = await client.post(tasks, json=sent)
        refused = await client.post(tasks, json=sent, headers=STRICT)

        assert (ignored.status_code, ignored.headers["Ignored-Fields"]) == (201, ", ".join(names[:20]))
        assert pointers(refused) == [f"#/{name}" for name in names[:20]]


class TestPages:
    @pytest.mark.parametrize("headers", [{}, STRICT], ids=["lenient", "strict"])
    @pytest.mark.parametrize(
        "query",
        [
            *("page=2", "offset=1", "skip=20", "Page=2", "_page=2", "page_number=3", "pageNumber=3", "page_no=2"),
            *("%24skip=1", "page%5Bnumber%5D=2", "page%5Boffset%5D=5", "page-index=2", "page=1&page=2"),
            *("page=%202", "page=2.0", "page=1e3", "page=%D9%A2", "page=" + "9" * 5_000, "offset=Infinity"),
        ],
        ids=short,
    )
    async def test_a_later_page_is_refused_with_a_word_about_the_link(
        self, client: httpx.AsyncClient, tasks: str, query: str, headers: dict[str, str]
    ) -> None:
        name = query.partition("=")[0]

        reply = await client.get(f"{tasks}?limit=1&{query}&verbose=1", headers=headers)

        assert pointers(reply) == [f"query/{name}", *(["query/verbose"] if headers else [])]
        assert "the header Link" in reply.json()["errors"][0]["detail"]

    @pytest.mark.parametrize(
        "query",
        [
            *("page=1", "offset=0", "skip=0", "page=0", "page=", "page=undefined", "page=NaN", "offset=-1", "page=%00"),
            *("per_page=5", "page_size=10", "pages=2", "start=2026", "homepage=2", "page=2&page=1"),
        ],
    )
    async def test_the_first_page_and_what_is_no_page_are_ignored_as_any_unknown_name(
        self, client: httpx.AsyncClient, tasks: str, task: dict[str, Any], query: str
    ) -> None:
        lenient, strict = [await client.get(f"{tasks}?{query}", headers=headers) for headers in ({}, STRICT)]

        name = query.partition("=")[0]
        assert (lenient.json(), lenient.headers["Ignored-Fields"]) == ([task], name)
        assert (pointers(strict), strict.json()["errors"][0]["detail"]) == ([f"query/{name}"], "is not known here")

    async def test_a_page_is_ignored_where_there_are_no_pages(
        self, client: httpx.AsyncClient, tasks: str, path: str
    ) -> None:
        replies = [await client.get(f"{path}?page=2"), await client.post(f"{tasks}?page=2", json={"title": "a"})]

        assert [reply.status_code for reply in replies] == [200, 201]
        assert [reply.headers["Ignored-Fields"] for reply in replies] == ["page"] * 2


class TestPrefer:
    @pytest.mark.parametrize(
        ("lines", "applied"),
        [
            (['Handling = "STRICT"'], "strict"),
            (["handling=strict; level=9"], "strict"),
            (["return=minimal; x=y,, wait=5,handling=strict"], "strict"),
            (["handling=strict, handling=lenient"], "strict"),
            (["handling=lenient", "handling=strict"], "lenient"),
            (["handling=loose, handling=strict"], None),
            (['wait="1, handling=strict"'], None),
            (['wait="1; handling=strict"'], None),
            (['wait="\\", handling=strict"'], None),
            (['wait="\\\\", handling=strict'], "strict"),
            (['x="a,b;c", handling = "st\\rict";level="9,"'], "strict"),
            (['x="a', "handling=strict"], "strict"),
            (['wait="' + '\\"' * 10_000], None),
            (["handling=" + " " * 10_000 + '"'], None),
            (['handling="strict'], None),
            (["handling, handling=strict"], None),
            (["handling"], None),
            (["nothandling=strict"], None),
            ([""], None),
        ],
    )
    async def test_the_first_handling_preference_of_all_header_lines_applies(
        self, client: httpx.AsyncClient, tasks: str, lines: list[str], applied: str | None
    ) -> None:
        headers = [("Prefer", line) for line in lines]

        reply = await client.get(tasks, params={"mood": "high"}, headers=headers)

        assert reply.status_code == (422 if applied == "strict" else 200)
        assert reply.headers.get("Preference-Applied") == (applied and f"handling={applied}")
        assert reply.headers.get("Ignored-Fields") == (None if applied == "strict" else "mood")

"""Unknown fields and parameters: ignored and named in `Ignored-Fields`, or refused with `Prefer: handling=strict`."""

from typing import Any, Final, NamedTuple
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support import pointers

STRICT: Final = {"Prefer": "handling=strict"}


class Operation(NamedTuple):
    """An operation on a task, with a valid body."""

    method: str
    suffix: str = ""
    body: dict[str, object] | None = None


OPERATIONS: Final = (
    Operation("GET"),
    Operation("PUT", "", {"title": "Other"}),
    Operation("PATCH", "/complete", {"completed": True}),
    Operation("DELETE"),
)


class TestLenient:
    async def test_unknown_names_in_body_and_query_are_ignored_and_named(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        body = {"title": "Buy oat milk", "priority": "high", "status": [{"x": "\0"}]}

        reply = await client.post(tasks, params={"notify": "me", "limit": "nonsense"}, json=body)

        assert reply.status_code == 201
        assert reply.headers["Ignored-Fields"] == "priority, status, notify, limit"
        assert "Preference-Applied" not in reply.headers

    async def test_a_request_without_unknown_names_gets_no_ignored_fields(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        body = {"title": "Buy oat milk", "description": None, "completed": False}
        query = {"status": "all", "search": "", "sort": "title", "limit": "1", "completed": "true", "cursor": ""}

        replies = [await client.post(tasks, json=body), await client.get(tasks, params=query)]

        assert [reply.status_code for reply in replies] == [201, 200]
        assert not any("Ignored-Fields" in reply.headers for reply in replies)

    async def test_a_repeated_unknown_parameter_of_the_list_is_named_once(
        self, client: httpx.AsyncClient, tasks: str, task: dict[str, Any]
    ) -> None:
        reply = await client.get(f"{tasks}?priority=high&q=milk&priority=low")

        assert reply.json() == [task]
        assert reply.headers["Ignored-Fields"] == "priority, q"

    @pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.method)
    async def test_each_operation_on_a_task_names_its_unknown_parameters(
        self, client: httpx.AsyncClient, path: str, operation: Operation
    ) -> None:
        method, suffix, body = operation

        reply = await client.request(method, f"{path}{suffix}?verbose", json=body)

        assert reply.is_success
        assert reply.headers["Ignored-Fields"] == "verbose"

    async def test_an_error_names_the_ignored_names_that_may_have_caused_it(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        mistyped = await client.post(tasks, json={"titel": "Buy oat milk"}, headers={"Prefer": "handling=lenient"})
        missing = await client.delete(f"{tasks}/{uuid4()}?force=1")

        assert (mistyped.status_code, mistyped.headers["Ignored-Fields"]) == (422, "titel")
        assert mistyped.headers["Preference-Applied"] == "handling=lenient"
        assert (missing.status_code, missing.headers["Ignored-Fields"]) == (404, "force")


class TestStrict:
    async def test_strict_handling_refuses_unknown_names_and_changes_nothing(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        body = {"title": "Buy oat milk", "priority": "high"}

        reply = await client.post(tasks, params={"notify": "me"}, json=body, headers=STRICT)

        assert pointers(reply) == ["#/priority", "query/notify"]
        assert reply.headers["Preference-Applied"] == "handling=strict"
        assert "Ignored-Fields" not in reply.headers
        assert (await client.get(tasks)).json() == []

    async def test_strict_handling_accepts_known_names_and_is_confirmed(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        reply = await client.post(tasks, json={"title": "Buy oat milk"}, headers=STRICT)

        assert (reply.status_code, reply.headers["Preference-Applied"]) == (201, "handling=strict")

    async def test_strict_handling_refuses_an_unknown_parameter_of_the_list(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        reply = await client.get(tasks, params={"status": "all", "priority": "high"}, headers=STRICT)

        assert pointers(reply) == ["query/priority"]

    @pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.method)
    async def test_strict_handling_refuses_unknown_names_of_each_operation_on_a_task(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any], operation: Operation
    ) -> None:
        method, suffix, body = operation
        wrong = body and body | {"priority": "high"}

        reply = await client.request(method, f"{path}{suffix}?verbose=1", json=wrong, headers=STRICT)

        assert pointers(reply) == [*(["#/priority"] if body else []), "query/verbose"]
        assert (await client.get(path)).json() == task


class TestNames:
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
    @example(name="a\r\nSet-Cookie: b=c, d")
    @example(name="")
    @example(name="\0%41/b~c~1")
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

    @pytest.mark.parametrize("place", ["body", "query"])
    async def test_at_most_20_names_are_shown(self, client: httpx.AsyncClient, tasks: str, place: str) -> None:
        names = [f"{number:x}" for number in range(0x100, 0x1100)]
        sent = {"title": "a"} | (dict.fromkeys(names, 0) if place == "body" else {})
        url = tasks if place == "body" else f"{tasks}?{'&'.join(names)}"

        ignored = await client.post("/", json=sent, extensions={"target": url.encode()})
        refused = await client.post("/", json=sent, extensions={"target": url.encode()}, headers=STRICT)

        assert (ignored.status_code, ignored.headers["Ignored-Fields"]) == (201, ", ".join(names[:20]))
        prefix = "#/" if place == "body" else "query/"
        assert pointers(refused) == [prefix + name for name in names[:20]]


class TestPrefer:
    @pytest.mark.parametrize(
        ("lines", "applied"),
        [
            (["handling=strict"], "strict"),
            (["handling=lenient"], "lenient"),
            (['Handling = "STRICT"'], "strict"),
            (["handling=strict; level=9"], "strict"),
            (["return=minimal; x=y,, wait=5,handling=strict"], "strict"),
            (["respond-async", "handling=strict"], "strict"),
            (["handling=strict, handling=lenient"], "strict"),
            (["handling=lenient", "handling=strict"], "lenient"),
            (["handling=loose, handling=strict"], None),
            (["handling"], None),
            (["nothandling=strict"], None),
            (["strict"], None),
            ([""], None),
        ],
    )
    async def test_the_first_handling_preference_of_all_header_lines_applies(
        self, client: httpx.AsyncClient, tasks: str, lines: list[str], applied: str | None
    ) -> None:
        headers = [("Prefer", line) for line in lines]

        reply = await client.get(tasks, params={"priority": "high"}, headers=headers)

        assert reply.status_code == (422 if applied == "strict" else 200)
        assert reply.headers.get("Preference-Applied") == (applied and f"handling={applied}")
        assert reply.headers.get("Ignored-Fields") == (None if applied == "strict" else "priority")

    async def test_lenient_handling_refuses_an_invalid_value(self, client: httpx.AsyncClient, tasks: str) -> None:
        reply = await client.get(tasks, params={"limit": 0, "x": 1}, headers={"Prefer": "handling=lenient"})

        assert pointers(reply) == ["query/limit"]

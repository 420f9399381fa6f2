"""`UNKNOWN_FIELDS=keep`: unknown fields of POST and PUT are stored with the task and given back, as sent."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from itertools import count
from typing import Any, ClassVar, Final
from uuid import uuid4

import asyncpg
import httpx
import pytest
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from hypothesis import HealthCheck, Phase, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule, run_state_machine_as_test
from pydantic import BaseModel

from app.core.config import Settings
from app.http.fast_lane import FastLane, JSONRoute
from app.routes.deps import KeptFields
from app.schemas.task import TaskResponse
from tests.conftest import Serve
from tests.http.support import BASE, extended
from tests.support import SECRET, pointers, serving_in_thread, short

Client = httpx.AsyncClient
Task = dict[str, Any]

OWN: Final = [*TaskResponse.model_fields]
SENT: Final[Task] = {
    "mood": "high",
    "moon": None,
    "marks": ["home", "shop"],
    "_x": {"b": [True, 1, 0.1, {}], "a": "\u2028\x01\\u0000"},
    "items": 18446744073709551615,
}
TOO_MUCH: Final = "body: a task may keep 20 unknown fields and 4,096 bytes of them at most"

NAMES: Final = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,39}", fullmatch=True).filter(lambda name: name not in OWN)
NUMBERS: Final = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False, width=32)
TEXTS: Final = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
VALUES: Final = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXTS, values, max_size=3),
    max_leaves=5,
)
FIELDS: Final = st.dictionaries(st.sampled_from(["mood", "marks", "_x", "items"]) | NAMES, VALUES, max_size=4)
_runs = count()


@pytest.fixture(scope="module")
async def url(configure: Callable[..., Settings], serve: Serve) -> AsyncIterator[str]:
    async with serve(configure(unknown_fields="keep")) as url:
        yield url


@pytest.fixture(scope="module")
async def keeping(url: str) -> AsyncIterator[Client]:
    """A client of a service that keeps unknown fields. `client` is one of a service that ignores them."""
    async with Client(base_url=url, timeout=30, limits=httpx.Limits(max_keepalive_connections=0)) as keeping:
        yield keeping


class Thing(BaseModel):
    first: int


def typed(value: Any) -> Any:
    """The value as JSON means it: 1 equals 1.0, but not `True`. A number is the one in its text, not the double."""
    if isinstance(value, dict):
        return {name: typed(part) for name, part in value.items()}
    if isinstance(value, list):
        return [*map(typed, value)]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (Decimal(repr(value)),) if is_number else value


def kept(reply: httpx.Response) -> Any:
    """What follows the own fields of the task in a reply."""
    assert reply.is_success, reply.text
    assert [*reply.json()][: len(OWN)] == OWN
    return {name: value for name, value in reply.json().items() if name not in OWN}


def body(value: str, name: str = "title", other: object = "a") -> str:
    """A body whose `mood` is written as it is in `value`."""
    return f'{{"{name}": {json.dumps(other)}, "mood": {value}}}'


async def send(client: Client, method: str, path: str, raw: str, **headers: str) -> httpx.Response:
    """Send JSON that Python's encoder would write in another way."""
    return await client.request(method, path, content=raw, headers={"Content-Type": "application/json", **headers})


class TestKept:
    @pytest.mark.parametrize("enabled", [True, False], ids=["lane", "fastapi"])
    async def test_every_reply_with_the_task_has_the_fields_after_its_own(
        self, keeping: Client, tasks: str, monkeypatch: pytest.MonkeyPatch, enabled: bool
    ) -> None:
        monkeypatch.setattr(FastLane, "enabled", enabled and FastLane.enabled)
        key = {"Idempotency-Key": "a"}
        created = await keeping.post(tasks, json={"title": "a", **SENT}, headers=key)
        path = created.headers["Location"]

        replayed = await keeping.post(tasks, json={**SENT, "title": "a"}, headers=key)
        read, toggled = await keeping.get(path), await keeping.patch(f"{path}/complete")
        renamed = await keeping.put(path, json={"title": "b"})
        [listed] = (await keeping.get(tasks)).json()

        for reply in (created, replayed, read, toggled, renamed):
            assert typed(kept(reply)) == typed(SENT)
            assert "Ignored-Fields" not in reply.headers
        assert replayed.headers["Idempotent-Replayed"] == "true"
        assert listed == renamed.json()
        assert [*listed][: len(OWN)] == OWN

    async def test_a_task_without_them_has_exactly_its_own_fields(
        self, keeping: Client, database: asyncpg.Connection, user: str, tasks: str
    ) -> None:
        created = await keeping.post(tasks, json={"title": "a"})
        changed = await keeping.put(created.headers["Location"], json={"title": "b"})

        assert [*created.json()] == [*changed.json()] == OWN
        assert await database.fetchval("SELECT kept_fields FROM tasks WHERE user_id = $1", user) is None

    async def test_put_merges_name_by_name_and_null_is_a_value(self, keeping: Client, tasks: str) -> None:
        path = (await keeping.post(tasks, json={"title": "a"})).headers["Location"]

        first = await keeping.put(path, json={"a": {"x": 1}, "b": 1})
        second = await keeping.put(path, json={"a": {"y": 2}, "b": None})

        assert (kept(first), kept(second)) == ({"a": {"x": 1}, "b": 1}, {"a": {"y": 2}, "b": None})
        assert second.json()["title"] == "a"

    async def test_a_put_with_only_unknown_fields_is_a_change(self, keeping: Client, tasks: str) -> None:
        created = await keeping.post(tasks, json={"title": "a"})
        path, tag = created.headers["Location"], {"If-Match": created.headers["ETag"]}

        changed = await keeping.put(path, json={"mood": "high"}, headers=tag)
        again = await keeping.put(path, json={"mood": "low"}, headers=tag)
        unchanged = await keeping.put(path, json={"id": "x"})

        assert (changed.status_code, again.status_code) == (200, 412)
        assert changed.json()["updated_at"] > created.json()["updated_at"]
        assert unchanged.json() == changed.json()

    async def test_the_other_fields_of_a_task_that_is_sent_back_are_ignored_and_named(
        self, keeping: Client, tasks: str
    ) -> None:
        created = await keeping.post(tasks, json={"title": "a", "mood": "high"})

        whole = created.json() | {"id": "x", "user_id": "eve", "title": "b"}
        changed = await keeping.put(created.headers["Location"] + "?verbose=1", json=whole)

        assert changed.headers["Ignored-Fields"] == "id, user_id, created_at, updated_at, verbose"
        assert changed.json() == created.json() | {"title": "b", "updated_at": changed.json()["updated_at"]}

    async def test_complete_and_strict_handling_keep_nothing(self, keeping: Client, tasks: str) -> None:
        path = (await keeping.post(tasks, json={"title": "a"})).headers["Location"]
        strict = {"Prefer": "handling=strict"}

        toggled = await keeping.patch(f"{path}/complete", json={"completed": True, "mood": "high"})
        refused = [await keeping.put(path, json={"mood": 1}, headers=strict)]
        refused += [await keeping.post(tasks, json={"title": "a", "mood": 1}, headers=strict)]

        assert (kept(toggled), toggled.headers["Ignored-Fields"]) == ({}, "mood")
        assert [pointers(reply) for reply in refused] == [["#/mood"]] * 2
        assert (await keeping.get(tasks)).json() == [toggled.json()]

    async def test_a_search_does_not_find_them(self, keeping: Client, tasks: str) -> None:
        await keeping.post(tasks, json={"title": "a", "mood": "high"})

        assert (await keeping.get(tasks, params={"search": "high"})).json() == []
        assert len((await keeping.get(tasks, params={"mood": "low"})).json()) == 1

    async def test_a_page_counts_their_bytes(
        self, keeping: Client, tasks: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.services.tasks.list_tasks.__defaults__", (6_000,))
        for _ in range(3):
            await keeping.post(tasks, json={"title": "a", "note": "n" * 2_500})

        first = await keeping.get(tasks)
        second = await keeping.get(first.links["next"]["url"])

        assert (len(first.json()), len(second.json()), "next" in second.links) == (2, 1, False)
        assert len(first.content) <= 6_000


class TestSwitch:
    async def test_off_hides_the_fields_and_a_put_keeps_them_so_that_on_gives_them_back(
        self, keeping: Client, client: Client, tasks: str
    ) -> None:
        created = await keeping.post(tasks, json={"title": "a", **SENT})
        path = created.headers["Location"]

        off = [await client.get(path), await client.put(path, json={"title": "b", "mood": "low"})]
        off += [await client.patch(f"{path}/complete")]
        listed = (await client.get(tasks)).json()

        assert [[*reply.json()] for reply in off] == [OWN] * 3
        assert off[1].headers["Ignored-Fields"] == "mood"
        assert listed == [off[-1].json()]
        assert typed(kept(await keeping.get(path))) == typed(SENT)

    async def test_a_change_removes_kept_values_of_the_names_it_sets(
        self, database: asyncpg.Connection, keeping: Client, user: str, path: str
    ) -> None:
        """So the UPDATE of docs/extend.md, which moves kept values, only moves newer ones. A null may set nothing."""
        older = """UPDATE tasks SET kept_fields = '{"completed": "x", "description": "y", "b": 2}' WHERE user_id = $1"""
        await database.execute(older, user)
        stored = "SELECT kept_fields::text FROM tasks WHERE user_id = $1"

        await keeping.put(path, json={"completed": None, "c": 3})
        assert json.loads(await database.fetchval(stored, user)).keys() == {"completed", "description", "b", "c"}
        await keeping.put(path, json={"description": None})
        assert json.loads(await database.fetchval(stored, user)) == {"completed": "x", "b": 2, "c": 3}
        await database.execute("""UPDATE tasks SET kept_fields = '{"title": "x"}' WHERE user_id = $1""", user)
        await keeping.put(path, json={"title": "newer"})
        assert await database.fetchval(stored, user) is None

    async def test_a_field_of_the_task_wins_over_a_kept_one_of_the_same_name(
        self, keeping: Client, database: asyncpg.Connection, user: str, tasks: str
    ) -> None:
        """A field that a later release has as a column."""
        created = await keeping.post(tasks, json={"title": "a", "mood": 1})
        await database.execute("""UPDATE tasks SET kept_fields = '{"title": "x", "b": 2}' WHERE user_id = $1""", user)

        assert (await keeping.get(created.headers["Location"])).json() == {
            **{name: created.json()[name] for name in OWN},
            "b": 2,
        }

    async def test_a_put_of_a_field_of_the_task_removes_the_kept_one_which_is_older(
        self, keeping: Client, database: asyncpg.Connection, user: str, tasks: str
    ) -> None:
        """Otherwise the kept one of an earlier release would replace it when the kept ones are moved to the column."""
        path = (await keeping.post(tasks, json={"title": "a"})).headers["Location"]
        stored = []
        for body in ({"completed": None}, {"description": None}, {"title": "b", "mood": 1}, {"completed": True}):
            kept = '{"title": "x", "description": "x", "completed": "x"}'
            await database.execute("UPDATE tasks SET kept_fields = $2 WHERE user_id = $1", user, kept)
            await keeping.put(path, json=body)
            text = await database.fetchval("SELECT kept_fields FROM tasks WHERE user_id = $1", user)
            stored.append(sorted(json.loads(text)))
        await database.execute("""UPDATE tasks SET kept_fields = '{"title": "x"}' WHERE user_id = $1""", user)
        await keeping.put(path, json={"title": "c"})

        assert stored == [
            ["completed", "description", "title"],
            ["completed", "title"],
            ["completed", "description", "mood"],
            ["description", "title"],
        ]
        assert await database.fetchval("SELECT kept_fields FROM tasks WHERE user_id = $1", user) is None

    async def test_the_document_says_so(self, keeping: Client, client: Client) -> None:
        on, off = [(await each.get("/openapi.json")).json() for each in (keeping, client)]

        for name, schema in on["components"]["schemas"].items():
            is_open = schema.pop("additionalProperties", None) is True
            assert is_open is (name in {"TaskCreate", "TaskUpdate", "TaskResponse"}), name
        assert on["info"].pop("description") != off["info"].pop("description")
        assert on == off


class TestOtherRoutes:
    @pytest.mark.parametrize("enabled", [True, False], ids=["lane", "fastapi"])
    async def test_a_route_keeps_unknown_fields_if_it_takes_them(
        self, configure: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, enabled: bool
    ) -> None:
        monkeypatch.setattr(FastLane, "enabled", enabled and FastLane.enabled)
        router = APIRouter(prefix=BASE, route_class=JSONRoute)

        @router.post("/kept")
        async def keep(body: Thing, kept: KeptFields) -> Response:
            return JSONResponse([body.first, kept])

        @router.post("/ignored")
        async def ignore(body: Thing) -> Response:
            return JSONResponse([body.first])

        settings = configure(unknown_fields="keep", auth_jwt_secret=SECRET)
        async with extended(settings, lambda app: app.include_router(router)) as client:
            replies = [
                await client.post(f"/api/ada/things/{n}", json={"first": 1, "b": 2}) for n in ("kept", "ignored")
            ]

        assert [reply.json() for reply in replies] == [[1, {"b": 2}], [1]]
        assert [reply.headers.get("Ignored-Fields") for reply in replies] == [None, "b"]


class TestIdempotencyKey:
    @pytest.mark.parametrize(
        ("first", "again", "same"),
        [
            ('{"a": [100, 1], "b": 2}', '{"b": 2.0, "a": [1e2, 1]}', True),
            ('{"a": 1}', '{"a": true}', False),
            ('{"a": [0]}', '{"a": [false]}', False),
            ('{"a": null}', "{}", False),
            ("{}", '{"a": 1}', False),
            ('{"a": 9007199254740993}', '{"a": 9007199254740992}', False),
        ],
        ids=short,
    )
    async def test_the_same_key_needs_the_same_kept_fields(
        self, keeping: Client, tasks: str, first: str, again: str, same: bool
    ) -> None:
        bodies = [
            json.dumps({"title": "a"})[:-1] + ("," if len(each) > 2 else "") + each[1:] for each in (first, again)
        ]

        _, second = [await send(keeping, "POST", tasks, body, **{"Idempotency-Key": "a"}) for body in bodies]

        assert second.status_code == (201 if same else 422), second.text


class TestBounds:
    @pytest.mark.parametrize("name", ["due-date", "1st", "a" * 41, "", "a b", "é", "a\n"], ids=short)
    async def test_a_name_that_cannot_be_kept_is_refused(self, keeping: Client, tasks: str, name: str) -> None:
        [pointer] = pointers(await keeping.post(tasks, json={"title": "a", "mood": 1, name: 1}))

        assert httpx.URL(pointer).fragment == "/" + name[:40].replace("\n", "\n")

    @pytest.mark.parametrize(
        "value",
        [
            *("1e400", "-1e400", "[{'x': 1e999}]"),
            *(r"'\u0000'", r"{'a\u0000': 1}", r"['\\\u0000']"),
        ],
        ids=short,
    )
    async def test_a_value_that_cannot_be_stored_is_refused(
        self, keeping: Client, tasks: str, path: str, value: str
    ) -> None:
        value = value.replace("'", '"')

        for method, url in (("POST", tasks), ("PUT", path)):
            refused = await send(keeping, method, url, body(value))
            assert pointers(refused) == ["#/mood"]
            ignored = await send(keeping, "PATCH", f"{path}/complete", body(value, "completed", other=True))
            assert ignored.status_code == 200

    @pytest.mark.parametrize(
        ("value", "as_python"),
        [
            *[("1e2", 100), ("1E+22", 1e22), ("10000000000000000000000", 1e22), ("-0.0", 0), ("0.10", 0.1)],
            *[("5e-324", 5e-324), ("1.7976931348623157e308", 1.7976931348623157e308), ("1.0", 1), ("-0", 0)],
            *[('{"a": 1, "a": 2}', {"a": 2}), (r'"\ud83d\ude00"', "😀"), (r'"\\u0000"', "\\u0000")],
            *[(f"{2**64}", 2**64), (f"{-(2**70)}", -(2**70)), ("[" * 150 + "]" * 150, None), ("9" * 4_000, None)],
            *[("1e-400", 0), ("0.10000000000000000555", 0.1)],  # as doubles, which most clients read anyway
        ],
        ids=short,
    )
    async def test_a_value_is_given_back_however_it_was_written(
        self, keeping: Client, tasks: str, value: str, as_python: Any
    ) -> None:
        created = await send(keeping, "POST", tasks, body(value))

        [listed] = (await keeping.get(tasks)).json()
        assert listed == created.json()
        assert typed(listed["mood"]) == typed(json.loads(value) if as_python is None else as_python)

    @pytest.mark.parametrize("value", [r'"\ud800"', "[" * 250 + "]" * 250, "NaN", "9" * 5_000], ids=short)
    async def test_what_is_no_json_for_the_service_is_400(self, keeping: Client, tasks: str, value: str) -> None:
        assert (await send(keeping, "POST", tasks, body(value))).status_code == 400

    @pytest.mark.parametrize("content", ["12345678901234567890.1234567890123", "[" * 1_500 + "]" * 1_500], ids=short)
    async def test_what_another_program_has_stored_is_given_back_unchanged(
        self, keeping: Client, database: asyncpg.Connection, user: str, tasks: str, content: str
    ) -> None:
        await keeping.post(tasks, json={"title": "a"})
        stored = f'{{"n": {content}}}'
        await database.execute("UPDATE tasks SET kept_fields = $1 WHERE user_id = $2", stored, user)

        assert (await keeping.get(tasks)).text.endswith(f', "n": {content}}}]')

    async def test_20_names_and_4096_bytes_are_kept_and_not_one_more(self, keeping: Client, tasks: str) -> None:
        names: Task = {f"f{number}": number for number in range(20)}
        largest = {"note": "é" * ((4_096 - len('{"note": ""}')) // 2)}

        assert kept(await keeping.post(tasks, json={"title": "a", **names})) == names
        assert kept(await keeping.post(tasks, json={"title": "a", **largest})) == largest
        for more in (names | {"one_more": 1}, {"note": largest["note"] + "n"}, {f"a{n}": 0 for n in range(6_000)}):
            refused = await keeping.post(tasks, json={"title": "a", **more})
            assert (pointers(refused), refused.json()["detail"]) == (["#"], TOO_MUCH)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"a": "x" * 3_000}, {"b": "x" * 3_000}),
            ({f"a{number}": 1 for number in range(15)}, {f"b{number}": 1 for number in range(15)}),
        ],
        ids=["bytes", "names"],
    )
    async def test_of_two_concurrent_puts_that_fit_only_alone_one_is_refused(
        self, keeping: Client, tasks: str, one: Task, other: Task
    ) -> None:
        for _ in range(5):
            path = (await keeping.post(tasks, json={"title": "a"})).headers["Location"]

            replies = await asyncio.gather(*[keeping.put(path, json={"title": "b", **each}) for each in (one, other)])

            [winner], [loser] = ([reply for reply in replies if reply.is_success is done] for done in (True, False))
            assert (pointers(loser), loser.json()["detail"]) == (["#"], TOO_MUCH)
            assert (await keeping.get(path)).json() == winner.json()
            assert kept(winner) in (one, other)
            assert len(kept(await keeping.put(path, json=dict.fromkeys(kept(winner), 1)))) == len(kept(winner))

    async def test_numbers_that_postgresql_writes_with_more_digits_count_with_these(
        self, keeping: Client, tasks: str
    ) -> None:
        refused = await keeping.post(tasks, json={"title": "a", "far": [1e308] * 14})

        assert (pointers(refused), refused.json()["detail"]) == (["#"], TOO_MUCH)
        assert (await keeping.get(tasks)).json() == []

    @pytest.mark.parametrize("value", ["[]", "1", "null"])
    async def test_the_table_accepts_only_objects(self, database: asyncpg.Connection, task: Task, value: str) -> None:
        with pytest.raises(asyncpg.SQLJsonObjectNotFoundError):
            await database.execute("UPDATE tasks SET kept_fields = $2 WHERE user_id = $1", task["user_id"], value)


class TestFuzz:
    @hypothesis_settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(body=st.text('{}[]":,0123456789.eE+-\\u titleab\0\ud800', max_size=60), value=VALUES)
    @example(body='{"title":"a","b":1e', value=None)
    async def test_no_body_is_a_500(self, keeping: Client, tasks: str, body: str, value: Any) -> None:
        content = body.encode(errors="surrogatepass")
        json_bodies = [content, b'{"title": "a", "b": %s}' % content, json.dumps({"title": "a", "b": [value]}).encode()]
        for each in json_bodies:
            reply = await keeping.post(tasks, content=each, headers={"Content-Type": "application/json"})
            assert reply.status_code in {201, 400, 422}, reply.text


class KeepingMachine(RuleBasedStateMachine):
    """`stored` is the model: the kept fields by the path of the task."""

    paths = Bundle("paths")
    client: ClassVar[httpx.Client]

    def __init__(self) -> None:
        super().__init__()
        self.tasks = f"/api/kept-{next(_runs)}/tasks"
        self.stored: dict[str, Task] = {}
        self.sent: dict[str, tuple[Task, Task]] = {}

    def check(self, reply: httpx.Response, path: str) -> None:
        assert typed(kept(reply)) == typed(self.stored[path])

    @rule(target=paths, fields=FIELDS)
    def create(self, fields: Task) -> str:
        headers, body = {"Idempotency-Key": str(uuid4())}, {"title": "a", **fields}
        reply = self.client.post(self.tasks, json=body, headers=headers)
        path: str = reply.headers["Location"]
        self.stored[path], self.sent[path] = fields, (headers, body)
        self.check(reply, path)
        return path

    @rule(path=paths, fields=FIELDS)
    def merge(self, path: str, fields: Task) -> None:
        merged = self.stored[path] | fields
        if len(merged) <= 6:  # so that they have less than 4 KiB
            self.stored[path] = merged
            self.check(self.client.put(path, json=fields), path)

    @rule(path=paths)
    def toggle(self, path: str) -> None:
        self.check(self.client.patch(f"{path}/complete", json={}), path)

    @rule(path=paths)
    def replay(self, path: str) -> None:
        headers, body = self.sent[path]
        self.check(self.client.post(self.tasks, json=body, headers=headers), path)

    @rule(path=paths)
    def read(self, path: str) -> None:
        self.check(self.client.get(path), path)

    @rule(path=consumes(paths))
    def delete(self, path: str) -> None:
        assert self.client.delete(path).status_code == 204
        del self.stored[path]

    @rule()
    def list_all(self) -> None:
        listed = {f"{self.tasks}/{task['id']}": task for task in self.client.get(self.tasks).json()}
        found = {path: {n: v for n, v in task.items() if n not in OWN} for path, task in listed.items()}
        assert typed(found) == typed(self.stored)


def run_machine(configure: Callable[..., Settings], **settings: str) -> None:
    with (
        serving_in_thread(configure(**settings)) as url,
        httpx.Client(base_url=url, timeout=30) as KeepingMachine.client,
    ):
        run_state_machine_as_test(
            KeepingMachine,
            settings=hypothesis_settings(
                max_examples=10,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],  # shrinking is thousands of requests
            ),
        )


def test_what_was_sent_comes_back_in_any_sequence_of_requests(configure: Callable[..., Settings]) -> None:
    run_machine(configure, unknown_fields="keep")


def test_the_model_notices_lost_fields(configure: Callable[..., Settings]) -> None:
    """The positive control of the test above."""
    with pytest.raises(AssertionError):
        run_machine(configure)

"""Idempotency-Key on POST: a creation that is safe to repeat."""

import json
import re
from collections.abc import Callable
from typing import Any, Final
from uuid import RFC_4122, UUID, uuid4

import httpx
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.core.config import Settings
from app.services import tasks as services
from tests.support import exchange, pointers, serving, short

Client = httpx.AsyncClient
Task = dict[str, Any]

KEY: Final = "8e03978e-40d5-43e8-bc93-6894a57f9324"
BODY: Final = {"title": "Buy oat milk"}
PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F)))
DIFFERENT_BODIES: Final = [
    {"title": "Buy soy milk"},
    {"title": "Buy oat milk "},
    {"description": ""},
    {"description": "The barista one"},
    {"completed": True},
]

hostile: Final = hypothesis_settings(
    max_examples=30,
    deadline=None,  # the machine may be busy
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # all examples may share one user
)
bodies: Final = st.fixed_dictionaries(
    {"title": st.sampled_from(["a", "b"])},
    optional={"description": st.sampled_from([None, "", "a"]), "completed": st.booleans(), "priority": st.integers()},
)
keys: Final = st.text(PRINTABLE, min_size=1, max_size=255).filter(str.strip)


async def post(client: Client, tasks: str, key: str = KEY, **fields: object) -> httpx.Response:
    return await client.post(tasks, json=BODY | fields, headers={"Idempotency-Key": key})


def replayed(reply: httpx.Response) -> bool:
    """Whether the reply has a task that an earlier request created."""
    assert reply.status_code == 201, reply.text
    assert reply.headers["Location"] == f"/api/{reply.json()['user_id']}/tasks/{reply.json()['id']}"
    assert reply.headers["ETag"] == f'"{reply.json()["updated_at"]}"'
    assert reply.headers.get("Idempotent-Replayed") in {None, "true"}
    return "Idempotent-Replayed" in reply.headers


def quoted(key: str) -> str:
    """The key as a string of RFC 8941 section 3.3.3."""
    return '"' + re.sub(r'(["\\])', r"\\\1", key) + '"'


async def send(client: Client, tasks: str, *lines: bytes) -> tuple[int, bytes]:
    """Create a task with these header lines, which httpx would correct. Returns status and body."""
    keys = b"".join(b"Idempotency-Key: %s\r\n" % line for line in lines)
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" % tasks.encode()
    fields = b"Content-Type: application/json\r\nContent-Length: 14\r\n"
    status, _, body = await exchange(client.base_url, b'%s%s%s\r\n{"title": "a"}' % (head, fields, keys))
    return status, body


def content(body: Task) -> tuple[object, ...]:
    return body["title"], body.get("description"), body.get("completed", False)


class TestReplay:
    async def test_the_first_request_with_a_key_creates_the_task(self, client: Client, tasks: str) -> None:
        reply = await post(client, tasks, description="The barista one")

        assert not replayed(reply)
        assert reply.json().items() >= {"title": "Buy oat milk", "description": "The barista one"}.items()
        assert reply.json()["updated_at"] == reply.json()["created_at"]
        assert (await client.get(tasks)).json() == [reply.json()]

    async def test_each_repetition_returns_the_same_task_and_creates_none(self, client: Client, tasks: str) -> None:
        first, *others = [await post(client, tasks) for _ in range(4)]

        assert not replayed(first)
        assert all(map(replayed, others))
        assert {reply.content for reply in others} == {first.content}
        assert (await client.get(tasks)).json() == [first.json()]

    @hostile
    @given(body=bodies, again=bodies)
    @example(body={"title": "a"}, again={"title": "a", "description": None, "completed": False, "priority": 1})
    async def test_a_repetition_must_have_the_content_of_the_stored_task(
        self, client: Client, tasks: str, body: Task, again: Task
    ) -> None:
        key = str(uuid4())
        first = await post(client, tasks, key, **body)

        second = await post(client, tasks, key, **again)

        assert second.status_code == (201 if content(body) == content(again) else 422)
        assert second.status_code == 422 or (replayed(second) and second.json() == first.json())

    async def test_the_id_of_a_task_with_a_key_is_a_uuid_of_version_5(self, client: Client, tasks: str) -> None:
        task_id = (await post(client, tasks)).json()["id"]

        assert (UUID(task_id).version, UUID(task_id).variant) == (5, RFC_4122)
        assert str(UUID(task_id)) == task_id


class TestAnotherBody:
    @pytest.mark.parametrize("fields", DIFFERENT_BODIES, ids=short)
    async def test_another_body_is_refused_while_the_task_is_unchanged(
        self, client: Client, tasks: str, fields: Task
    ) -> None:
        first = await post(client, tasks)

        refusals = [await post(client, tasks, **fields) for _ in range(2)]

        assert [pointers(reply) for reply in refusals] == [["header/Idempotency-Key"]] * 2
        assert not any("Idempotent-Replayed" in reply.headers or KEY in reply.text for reply in refusals)
        assert (await client.get(tasks)).json() == [first.json()]
        assert replayed(await post(client, tasks))

    @pytest.mark.parametrize("fields", [{}, *DIFFERENT_BODIES], ids=short)
    async def test_a_repetition_after_a_change_returns_the_current_task(
        self, client: Client, tasks: str, fields: Task
    ) -> None:
        path = (await post(client, tasks)).headers["Location"]
        changed = (await client.patch(f"{path}/complete")).json()

        reply = await post(client, tasks, **fields)

        assert replayed(reply)
        assert reply.json() == changed
        assert (await client.get(tasks)).json() == [changed]

    async def test_an_update_to_the_same_value_counts_as_a_change(self, client: Client, tasks: str) -> None:
        path = (await post(client, tasks)).headers["Location"]
        changed = (await client.put(path, json=BODY)).json()

        reply = await post(client, tasks, title="Buy soy milk")

        assert replayed(reply)
        assert reply.json() == changed

    async def test_an_update_without_fields_does_not_count_as_a_change(self, client: Client, tasks: str) -> None:
        path = (await post(client, tasks)).headers["Location"]
        await client.put(path, json={})

        assert pointers(await post(client, tasks, title="Buy soy milk")) == ["header/Idempotency-Key"]


@pytest.mark.parametrize("fields", [{}, {"title": "Buy soy milk"}], ids=short)
async def test_the_key_of_a_deleted_task_creates_a_new_task_with_the_same_id(
    client: Client, tasks: str, fields: Task
) -> None:
    first = await post(client, tasks)
    await client.delete(first.headers["Location"])

    second, third = [await post(client, tasks, **fields) for _ in range(2)]

    assert (replayed(second), replayed(third)) == (False, True)
    assert second.json()["id"] == first.json()["id"]
    assert second.json()["created_at"] > first.json()["created_at"]
    assert second.json().items() >= (BODY | fields).items()


async def test_a_task_deleted_during_a_repetition_is_created_again(
    monkeypatch: pytest.MonkeyPatch, client: Client, tasks: str
) -> None:
    first = await post(client, tasks)
    get_task = services.get_task

    async def delete_first(*arguments: Any) -> Any:
        await client.delete(first.headers["Location"])
        return await get_task(*arguments)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(services, "get_task", delete_first)
        second = await post(client, tasks)

    assert (second.status_code, replayed(second)) == (201, False)
    assert second.json()["created_at"] > first.json()["created_at"]


class TestKey:
    @hostile
    @given(key=keys)
    @example(key="\\")
    @example(key='"')
    @example(key='"' * 255)
    @example(key="\\" * 255)
    @example(key=" a ")
    @example(key='a"b\\c')
    async def test_any_printable_key_can_be_quoted(self, client: Client, new_user: Callable[[], str], key: str) -> None:
        tasks = f"/api/{new_user()}/tasks"
        plain = key.strip() == key and not key.startswith('"')

        first = await post(client, tasks, key if plain else quoted(key))

        assert not replayed(first)
        assert replayed(await post(client, tasks, quoted(key)))

    @pytest.mark.parametrize("key", ["a", "a" * 255, PRINTABLE.strip(), (PRINTABLE[1:] * 3)[:255], "a, b", "%00", "*"])
    async def test_a_bare_key_equals_the_quoted_key(self, client: Client, tasks: str, key: str) -> None:
        replies = [await post(client, tasks, spelled) for spelled in (key, quoted(key))]

        assert [replayed(reply) for reply in replies] == [False, True]

    @pytest.mark.parametrize("line", [b" \tabc\t ", b'\t"abc" '])
    async def test_white_space_around_a_key_is_ignored(self, client: Client, tasks: str, line: bytes) -> None:
        status, body = await send(client, tasks, line)

        assert status == 201
        assert (await post(client, tasks, "abc", title="a")).content == body

    @pytest.mark.parametrize(
        ("key", "other"),
        [
            ("abc", "ABC"),
            ("a b", "a  b"),
            ("a b", "a+b"),
            ("a", "%61"),
            ("1", "01"),
            ("a" * 254 + "b", "a" * 254 + "c"),
            ("b" + "a" * 254, "c" + "a" * 254),
            ("a" * 254, "a" * 255),
            (r"a\b", r"a\\b"),
            (KEY, KEY.replace("-", "")),
        ],
        ids=short,
    )
    async def test_slightly_different_keys_create_different_tasks(
        self, client: Client, tasks: str, key: str, other: str
    ) -> None:
        first, second = [await post(client, tasks, spelled) for spelled in (key, other)]

        assert not replayed(second)
        assert first.json()["id"] != second.json()["id"]

    @pytest.mark.parametrize(
        "lines",
        [
            *([b""], [b" \t "], [b'""'], [b"k" * 256], [b'"%s"' % (b"k" * 256)], [b"k" * 30_000]),
            *([b'"secret'], [b'"'], [b'"secret"secret"'], [b'"secret" secret'], [b'"secret\\"'], [b'"secret\\r"']),
            *([b"secret\tkkkk"], [b'"secret\tkkkk"'], [b"secret\x80"], [b"secret\xff"], ["secret\u00ed".encode()]),
            *([b"secret", b"secret"], [b"secret", b"other"], [b"", b"secret"], [b'"secret"', b'"secret"']),
        ],
        ids=short,
    )
    async def test_a_malformed_key_is_refused_and_not_repeated(
        self, client: Client, tasks: str, lines: list[bytes]
    ) -> None:
        status, body = await send(client, tasks, *lines)

        problem = json.loads(body)
        assert (status, problem["type"]) == (400, "urn:problem-type:malformed-header")
        assert "Idempotency-Key" in problem["detail"]
        assert not re.search(b"secret|kkkk", body)
        assert (await client.get(tasks)).json() == []

    @pytest.mark.parametrize("template", [b'"a%ca"', b"a%c"])
    async def test_a_key_with_a_byte_outside_printable_ascii_is_refused(
        self, client: Client, tasks: str, template: bytes
    ) -> None:
        unprintable = set(range(256)) - set(PRINTABLE.encode()) - set(b"\t\r\n")

        replies = [await send(client, tasks, template % byte) for byte in unprintable]

        assert {status for status, _ in replies} == {400}
        assert all(b"malformed-header" in body or b"malformed-request" in body for _, body in replies)
        assert (await client.get(tasks)).json() == []


class TestUsers:
    async def test_the_same_key_of_two_users_creates_two_tasks(
        self, client: Client, new_user: Callable[[], str]
    ) -> None:
        ada, bob = [f"/api/{new_user()}/tasks" for _ in range(2)]

        first, second = [await post(client, tasks) for tasks in (ada, bob)]

        assert (replayed(first), replayed(second)) == (False, False)
        assert first.json()["id"] != second.json()["id"]
        assert (await client.get(ada)).json() == [first.json()]
        assert (await client.get(bob)).json() == [second.json()]

    @pytest.mark.parametrize("between", ["", *"_-|.:@+=~"])
    async def test_users_and_keys_that_join_to_the_same_text_do_not_collide(
        self, client: Client, new_user: Callable[[], str], between: str
    ) -> None:
        user = new_user()

        first = await post(client, f"/api/{user}/tasks", f"a{between}b")
        second = await post(client, f"/api/{user}{between}a/tasks", "b")

        assert first.json()["id"] != second.json()["id"]


class TestRefusedRequest:
    @pytest.mark.parametrize(
        ("body", "headers", "status"),
        [
            (b'{"title": ""}', {}, 422),
            (b"{}", {}, 422),
            (b'{"title": "a", "priority": 1}', {"Prefer": "handling=strict"}, 422),
            (b'{"title": "a"', {}, 400),
            (b'{"title": "a"}', {"Content-Type": "text/plain"}, 415),
            (b'{"title": "%s"}' % (b"a" * 70_000), {}, 413),
        ],
        ids=short,
    )
    async def test_a_refused_request_does_not_use_up_its_key(
        self, client: Client, tasks: str, body: bytes, headers: dict[str, str], status: int
    ) -> None:
        headers = {"Idempotency-Key": KEY, "Content-Type": "application/json"} | headers
        refusals = [await client.post(tasks, content=body, headers=headers) for _ in range(2)]

        reply = await post(client, tasks)

        assert [refusal.status_code for refusal in refusals] == [status] * 2
        assert not replayed(reply)
        assert (await client.get(tasks)).json() == [reply.json()]

    async def test_an_unknown_field_is_refused_before_the_key_is_checked(self, client: Client, tasks: str) -> None:
        await post(client, tasks)
        headers = {"Idempotency-Key": KEY, "Prefer": "handling=strict"}

        reply = await client.post(tasks, json={"title": "Buy soy milk", "priority": "high"}, headers=headers)

        assert pointers(reply) == ["#/priority"]

    async def test_a_repetition_also_names_ignored_fields(self, client: Client, tasks: str) -> None:
        replies = [await post(client, tasks, priority="high") for _ in range(2)]

        assert [replayed(reply) for reply in replies] == [False, True]
        assert [reply.headers["Ignored-Fields"] for reply in replies] == ["priority"] * 2


async def test_another_process_of_the_service_recognizes_the_key(
    client: Client, settings: Settings, tasks: str
) -> None:
    first = await post(client, tasks)

    async with serving(settings) as url, httpx.AsyncClient(base_url=url) as elsewhere:
        second = await post(elsewhere, tasks)

    assert replayed(second)
    assert second.content == first.content

"""Idempotency-Key on POST: a creation that is safe to repeat."""

import json
import re
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID, uuid4, uuid5

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.services import tasks as services
from tests.support import exchange, pointers, short

Client = httpx.AsyncClient
Task = dict[str, Any]

KEY: Final = "8e03978e-40d5-43e8-bc93-6894a57f9324"
BODY: Final = {"title": "Buy oat milk"}
PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F)))

hostile: Final = settings(
    max_examples=30,
    deadline=None,  # the machine may be busy
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # all examples may share one user
)
bodies: Final = st.fixed_dictionaries(
    {"title": st.sampled_from(["a", "b"])},
    optional={"description": st.sampled_from([None, "", "a"]), "completed": st.booleans(), "mood": st.integers()},
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
    async def test_each_repetition_returns_the_first_task_and_creates_none(self, client: Client, tasks: str) -> None:
        sent = {"description": "The barista one", "mood": "high"}
        first, *others = [await post(client, tasks, **sent) for _ in range(3)]

        assert [replayed(reply) for reply in (first, *others)] == [False, True, True]
        assert first.json().items() >= {"title": "Buy oat milk", "description": "The barista one"}.items()
        assert {reply.content for reply in others} == {first.content}
        assert {reply.headers["Ignored-Fields"] for reply in (first, *others)} == {"mood"}
        assert (await client.get(tasks)).json() == [first.json()]

    async def test_every_process_and_release_derives_the_same_id_from_user_and_key(
        self, client: Client, user: str, tasks: str
    ) -> None:
        """No other user has this id, because the space between the two cannot be in a user id."""
        created = (await post(client, tasks)).json()

        assert created["id"] == str(uuid5(UUID("6e0c4a3a-6c27-4d0b-9a53-0b6a9c1f7d11"), f"{user} {KEY}"))

    @hostile
    @given(body=bodies, again=bodies)
    @example(body={"title": "a"}, again={"title": "a", "description": None, "completed": False, "mood": 1})
    @example(body={"title": "a"}, again={"title": "b"})
    @example(body={"title": "a"}, again={"title": "a", "description": ""})
    @example(body={"title": "a"}, again={"title": "a", "completed": True})
    async def test_a_repetition_must_have_the_content_of_the_stored_task(
        self, client: Client, tasks: str, body: Task, again: Task
    ) -> None:
        key = str(uuid4())
        first = await post(client, tasks, key, **body)

        second = await post(client, tasks, key, **again)

        if content(body) == content(again):
            assert replayed(second)
            assert second.json() == first.json()
        else:
            assert pointers(second) == ["header/Idempotency-Key"]
            assert second.json()["detail"].startswith("This task was saved before, with other content.")
            assert key not in second.text
            unchanged = await client.put(first.headers["Location"], json={})  # does not count as a change
            assert unchanged.json() == first.json()
            assert pointers(await post(client, tasks, key, **again)) == ["header/Idempotency-Key"]

    @pytest.mark.parametrize("change", [{"completed": True}, BODY], ids=["other value", "same value"])
    async def test_a_repetition_with_any_content_returns_the_task_after_a_change(
        self, client: Client, tasks: str, change: Task
    ) -> None:
        path = (await post(client, tasks)).headers["Location"]
        changed = (await client.put(path, json=change)).json()

        for title in ("Buy oat milk", "Buy soy milk"):
            reply = await post(client, tasks, title=title)
            assert replayed(reply)
            assert reply.json() == changed

    async def test_the_key_of_a_deleted_task_creates_a_new_task_with_the_same_id(
        self, client: Client, tasks: str
    ) -> None:
        first = await post(client, tasks)
        await client.delete(first.headers["Location"])

        second, third = [await post(client, tasks, title="Buy soy milk") for _ in range(2)]

        assert (replayed(second), replayed(third)) == (False, True)
        assert (second.json()["id"], second.json()["title"]) == (first.json()["id"], "Buy soy milk")
        assert second.json()["created_at"] > first.json()["created_at"]

    async def test_a_task_deleted_during_a_repetition_is_created_again(
        self, monkeypatch: pytest.MonkeyPatch, client: Client, tasks: str
    ) -> None:
        first = await post(client, tasks)
        earlier = services._earlier  # noqa: SLF001

        async def delete_first(*arguments: Any) -> Any:
            await client.delete(first.headers["Location"])
            return await earlier(*arguments)

        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(services, "_earlier", delete_first)
            second = await post(client, tasks, title="Buy soy milk")

        assert not replayed(second)
        assert second.json()["created_at"] > first.json()["created_at"]

    @pytest.mark.parametrize(
        ("body", "headers", "status"),
        [
            (b'{"title": ""}', {}, 422),
            (b'{"title": "a", "mood": 1}', {"Prefer": "handling=strict"}, 422),
            (b'{"title": "a"', {}, 400),
            (b'{"title": "a"}', {"Content-Type": "text/plain"}, 415),
        ],
        ids=short,
    )
    async def test_a_refused_request_does_not_use_up_its_key(
        self, client: Client, tasks: str, body: bytes, headers: dict[str, str], status: int
    ) -> None:
        headers = {"Idempotency-Key": KEY, "Content-Type": "application/json"} | headers
        refused = await client.post(tasks, content=body, headers=headers)

        assert refused.status_code == status
        assert not replayed(await post(client, tasks))


class TestKey:
    @hostile
    @given(key=keys)
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

    async def test_white_space_around_a_key_is_ignored(self, client: Client, tasks: str) -> None:
        bodies = [(await send(client, tasks, line))[1] for line in (b"abc", b" \tabc\t ", b'\t"abc" ')]

        assert len(set(bodies)) == len((await client.get(tasks)).json()) == 1

    @pytest.mark.parametrize(
        ("key", "other"),
        [("abc", "ABC"), ("a b", "a  b"), ("a", "%61"), ("a" * 254 + "b", "a" * 254 + "c"), (r"a\b", r"a\\b")],
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
            *([b""], [b" \t "], [b'""'], [b"k" * 256], [b'"%s"' % (b"k" * 256)]),
            *([b'"secret'], [b'"'], [b'"secret"secret"'], [b'"secret" secret'], [b'"secret\\"'], [b'"secret\\r"']),
            *([b"secret", b"secret"], [b"", b"secret"], [b'"secret"', b'"other"']),
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

    @pytest.mark.parametrize("template", [b'"a%ca"', b"a%ca"])
    async def test_a_key_with_a_byte_outside_printable_ascii_is_refused(
        self, client: Client, tasks: str, template: bytes
    ) -> None:
        unprintable = set(range(256)) - set(PRINTABLE.encode()) - set(b"\r\n")

        replies = [await send(client, tasks, template % byte) for byte in unprintable]

        assert {status for status, _ in replies} == {400}
        assert all(b"malformed-header" in body or b"malformed-request" in body for _, body in replies)
        assert (await client.get(tasks)).json() == []

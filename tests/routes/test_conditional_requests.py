"""ETag, If-Match and If-None-Match of one task (RFC 9110 section 13)."""

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support import exchange, short

Client = httpx.AsyncClient
Task = dict[str, Any]
Lines = tuple[str, ...]


class Operation(NamedTuple):
    """A request for one task."""

    method: str
    suffix: str = ""
    body: Task | None = None

    async def __call__(
        self, client: Client, path: str, headers: list[tuple[bytes, bytes]] | dict[str, str] | None = None
    ) -> httpx.Response:
        return await client.request(self.method, path + self.suffix, json=self.body, headers=headers)

    def __str__(self) -> str:
        return f"{self.method} {self.body or ''}"


GET: Final = Operation("GET")
HEAD: Final = Operation("HEAD")
RENAME: Final = Operation("PUT", body={"title": "Buy soy milk"})
EMPTY_UPDATE: Final = Operation("PUT", body={})
TOGGLE: Final = Operation("PATCH", "/complete")
COMPLETE: Final = Operation("PATCH", "/complete", {"completed": True})
DELETE: Final = Operation("DELETE")
READS: Final = [GET, HEAD]
WRITES: Final = [RENAME, EMPTY_UPDATE, TOGGLE, COMPLETE, DELETE]
OPERATIONS: Final = [*READS, *WRITES]

OTHER_TAG: Final = '"2026-11-22T09:30:00.123456Z"'
# Header lines; {} stands for the task's `updated_at`.
MATCHES: Final[list[Lines]] = [
    ('"{}"',),
    ('"a", "{}"',),
    ('"{}","a"',),
    ('W/"a" ,\t"{}"',),
    (', ,"{}",,',),
    ('"a,b","","{}"',),
    ('"a\\","{}"',),  # a backslash escapes nothing in a tag
    ('"\u00ff","{}"',),
    ('"a"', '"{}"'),
    ('"{}"', '"a", "b"'),
]
WEAK_MATCHES: Final[list[Lines]] = [('W/"{}"',), ('"a", W/"{}"',), ('"a"', 'W/"{}"')]
MISMATCHES: Final[list[Lines]] = [
    (OTHER_TAG,),
    ('"a", "b"', '"c"'),
    ('""',),
    ('"*"',),
    ("",),
    (",",),
    ("{}",),
    ('"{}',),
    ('{}"',),
    ("'{}'",),
    ('"a{}"',),
    ('"{}0"',),
    ('"a,{},b"',),
    ('w/"{}"',),
    ('W/ "{}"',),
    ('"now"',),
    ('"infinity"',),
    ('"9999999-01-01T00:00:00.000000Z"',),
    ('"2026-02-30T24:61:61.000000Z"',),
    ('"0000-01-01T00:00:00.000000Z"',),
    ("null", "undefined"),
    ("\u00ff\u00fe",),
    ('\u00a0"{}"\u00a0',),
    (", ".join(f'"{number}"' for number in range(3_000)),),
]
# The same time in another notation is a different tag.
NOTATIONS: Final[dict[str, Callable[[str], str]]] = {
    "lower case": str.lower,
    "offset": lambda time: time.replace("Z", "+00:00"),
    "nanoseconds": lambda time: time.replace("Z", "000Z"),
    "no zone": lambda time: time.replace("Z", ""),
}

hostile: Final = settings(
    max_examples=30,
    deadline=None,  # the machine may be busy
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # all examples may share one task
)
opaque: Final = st.text([chr(code) for code in (0x21, *range(0x23, 0x7F), *range(0x80, 0x100))], max_size=6)
any_tags: Final = st.lists(st.tuples(st.sampled_from(["", "W/"]), st.just("{}") | opaque), max_size=6)
any_line: Final = st.lists(
    st.sampled_from([b'"', b"W/", b",", b" ", b"\\", b"2026-11-22T09:30:00.123456Z"]) | st.binary(max_size=9)
).map(lambda parts: b"".join(parts).translate(None, b"\r\n*"))


def tag(task: Task) -> str:
    return f'"{task["updated_at"]}"'


def header(name: str, lines: Lines, task: Task) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), line.replace("{}", task["updated_at"]).encode("latin-1")) for line in lines]


def check_refused(reply: httpx.Response, task: Task) -> None:
    """The reply is 412 and has the current tag."""
    assert reply.status_code == 412, reply.text
    assert reply.headers["ETag"] == tag(task)
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.request.method == "HEAD" or reply.json()["type"] == "urn:problem-type:precondition-failed"


def check_not_modified(reply: httpx.Response, task: Task) -> None:
    """The reply is 304 and has only headers."""
    assert (reply.status_code, reply.content) == (304, b"")
    assert (reply.headers["ETag"], reply.headers["Cache-Control"]) == (tag(task), "private, no-cache")
    assert "Content-Type" not in reply.headers


class TestTag:
    async def test_the_etag_of_a_new_task_is_its_quoted_updated_at(self, client: Client, tasks: str) -> None:
        reply = await client.post(tasks, json={"title": "Buy oat milk"})

        assert reply.headers["ETag"] == tag(reply.json())

    @pytest.mark.parametrize("operation", [GET, RENAME, EMPTY_UPDATE, TOGGLE, COMPLETE])
    async def test_the_etag_of_a_reply_with_a_task_is_the_quoted_updated_at(
        self, client: Client, path: str, operation: Operation
    ) -> None:
        reply = await operation(client, path)

        assert reply.headers["ETag"] == tag(reply.json())

    async def test_head_of_a_task_has_its_etag(self, client: Client, path: str, task: Task) -> None:
        assert (await client.head(path)).headers["ETag"] == tag(task)

    async def test_the_etag_can_be_derived_from_a_listed_task(self, client: Client, tasks: str, path: str) -> None:
        changed = await TOGGLE(client, path)

        [listed] = (await client.get(tasks)).json()
        assert changed.headers["ETag"] == tag(listed)

    async def test_the_etag_changes_only_when_the_task_changes(self, client: Client, path: str) -> None:
        done = [RENAME, GET, RENAME, EMPTY_UPDATE, TOGGLE, HEAD, COMPLETE, COMPLETE]

        tags = [(await operation(client, path)).headers["ETag"] for operation in done]

        assert len(set(tags)) == 5
        assert (tags[0], tags[2], tags[4]) == (tags[1], tags[3], tags[5])

    async def test_a_task_is_private_and_must_be_revalidated(self, client: Client, path: str) -> None:
        assert (await client.get(path)).headers["Cache-Control"] == "private, no-cache"


class TestIfNoneMatchOnReads:
    @pytest.mark.parametrize("lines", [*MATCHES, *WEAK_MATCHES, ("*",)], ids=short)
    async def test_a_task_with_a_matching_tag_is_304(self, client: Client, path: str, task: Task, lines: Lines) -> None:
        check_not_modified(await GET(client, path, header("If-None-Match", lines, task)), task)

    @pytest.mark.parametrize("lines", MISMATCHES, ids=short)
    async def test_a_task_is_sent_for_another_or_a_malformed_tag(
        self, client: Client, path: str, task: Task, lines: Lines
    ) -> None:
        reply = await GET(client, path, header("If-None-Match", lines, task))

        assert (reply.status_code, reply.headers["ETag"], reply.json()) == (200, tag(task), task)

    async def test_if_none_match_applies_to_head_as_to_get(self, client: Client, path: str, task: Task) -> None:
        check_not_modified(await HEAD(client, path, {"If-None-Match": tag(task)}), task)
        check_not_modified(await HEAD(client, path, {"If-None-Match": "*"}), task)
        assert (await HEAD(client, path, {"If-None-Match": OTHER_TAG})).status_code == 200

    async def test_a_changed_task_is_sent_again(self, client: Client, path: str, task: Task) -> None:
        changed = await TOGGLE(client, path)

        reply = await GET(client, path, {"If-None-Match": tag(task)})

        assert (reply.status_code, reply.json()) == (200, changed.json())

    @pytest.mark.parametrize("line", ["*", '"{}"', OTHER_TAG, "a"], ids=short)
    async def test_a_read_of_a_missing_or_another_user_s_task_is_404_for_any_tag(
        self, client: Client, new_user: Callable[[], str], task: Task, line: str
    ) -> None:
        own, headers = f"/api/{new_user()}/tasks", header("If-None-Match", (line,), task)

        replies = [await read(client, f"{own}/{item}", headers) for read in READS for item in (task["id"], uuid4())]

        assert {(reply.status_code, "ETag" in reply.headers) for reply in replies} == {(404, False)}


class TestIfMatch:
    @pytest.mark.parametrize("line", ['"{}"', "*"])
    @pytest.mark.parametrize("operation", OPERATIONS, ids=str)
    async def test_the_current_tag_or_a_star_allows_every_operation(
        self, client: Client, path: str, task: Task, operation: Operation, line: str
    ) -> None:
        reply = await operation(client, path, header("If-Match", (line,), task))

        after = (await client.get(path)).headers.get("ETag")
        assert reply.status_code == (204 if operation is DELETE else 200)
        assert reply.headers.get("ETag") == after
        assert (after == tag(task)) == (operation in [*READS, EMPTY_UPDATE])

    @pytest.mark.parametrize("lines", MATCHES, ids=short)
    async def test_the_current_tag_matches_anywhere_in_a_list(
        self, client: Client, path: str, task: Task, lines: Lines
    ) -> None:
        assert (await RENAME(client, path, header("If-Match", lines, task))).status_code == 200

    @pytest.mark.parametrize("operation", OPERATIONS, ids=str)
    async def test_a_stale_malformed_or_weak_tag_is_412_for_every_operation(
        self, client: Client, path: str, task: Task, operation: Operation
    ) -> None:
        changed = (await TOGGLE(client, path)).json()

        for line in (tag(task), "", changed["updated_at"], "W/" + tag(changed)):
            check_refused(await operation(client, path, {"If-Match": line}), changed)
        assert (await client.get(path)).json() == changed

    @pytest.mark.parametrize("lines", [*MISMATCHES, *WEAK_MATCHES], ids=short)
    async def test_a_delete_with_any_other_tag_is_412(
        self, client: Client, path: str, task: Task, lines: Lines
    ) -> None:
        check_refused(await DELETE(client, path, header("If-Match", lines, task)), task)
        assert (await client.get(path)).json() == task

    @hostile
    @given(line=any_line)
    @example(line=b"\xff" * 9_000)
    async def test_a_delete_with_arbitrary_bytes_as_its_tag_is_refused(
        self, client: Client, task: Task, path: str, line: bytes
    ) -> None:
        request = b"DELETE %s HTTP/1.1\r\nHost: localhost\r\nIf-Match: %s\r\nConnection: close\r\n\r\n" % (
            path.encode(),
            line,
        )

        status, _, body = await exchange(client.base_url, request)

        assert status == 412 or (status, json.loads(body)["type"]) == (400, "urn:problem-type:malformed-request")
        assert (await client.get(path)).json() == task

    @pytest.mark.parametrize("rewrite", NOTATIONS.values(), ids=NOTATIONS)
    async def test_tags_are_compared_as_text_and_not_as_times(
        self, client: Client, path: str, task: Task, rewrite: Callable[[str], str]
    ) -> None:
        check_refused(await RENAME(client, path, {"If-Match": rewrite(tag(task))}), task)

    @pytest.mark.parametrize(("line", "status"), [('"{}"', 404), (OTHER_TAG, 404), ("a", 404), ("*", 412)], ids=short)
    async def test_a_missing_or_another_user_s_task_is_404_for_a_tag_and_412_for_a_star(
        self, client: Client, new_user: Callable[[], str], task: Task, *, line: str, status: int
    ) -> None:
        own, headers = f"/api/{new_user()}/tasks", header("If-Match", (line,), task)
        paths = [f"{own}/{task['id']}", f"{own}/{uuid4()}"]

        replies = [await operation(client, path, headers) for operation in OPERATIONS for path in paths]

        assert {(reply.status_code, "ETag" in reply.headers) for reply in replies} == {(status, False)}
        assert (await client.get(f"/api/{task['user_id']}/tasks/{task['id']}")).json() == task


@pytest.mark.parametrize("operation", WRITES, ids=str)
class TestIfNoneMatchOnWrites:
    async def test_a_write_with_the_current_tag_or_a_star_is_412(
        self, client: Client, path: str, task: Task, operation: Operation
    ) -> None:
        for line in (tag(task), "W/" + tag(task), f'"a", {tag(task)}', "*", "*,", "*, *"):
            check_refused(await operation(client, path, {"If-None-Match": line}), task)
        assert (await client.get(path)).json() == task

    @pytest.mark.parametrize("line", [OTHER_TAG, "a"], ids=short)
    async def test_a_write_with_another_or_a_malformed_tag_succeeds(
        self, client: Client, path: str, operation: Operation, line: str
    ) -> None:
        reply = await operation(client, path, {"If-None-Match": line})

        assert reply.status_code == (204 if operation is DELETE else 200)

    @pytest.mark.parametrize("line", [OTHER_TAG, "*"])
    async def test_a_conditional_write_to_a_missing_task_is_404(
        self, client: Client, tasks: str, operation: Operation, line: str
    ) -> None:
        assert (await operation(client, f"{tasks}/{uuid4()}", {"If-None-Match": line})).status_code == 404


class TestBothHeaders:
    @pytest.mark.parametrize("operation", OPERATIONS, ids=str)
    async def test_if_match_is_evaluated_before_if_none_match(
        self, client: Client, path: str, task: Task, operation: Operation
    ) -> None:
        check_refused(await operation(client, path, {"If-Match": OTHER_TAG, "If-None-Match": tag(task)}), task)
        check_refused(await operation(client, path, {"If-Match": OTHER_TAG, "If-None-Match": OTHER_TAG}), task)

    @pytest.mark.parametrize("operation", OPERATIONS, ids=str)
    async def test_if_none_match_is_evaluated_if_if_match_holds(
        self, client: Client, path: str, task: Task, operation: Operation
    ) -> None:
        refused = await operation(client, path, {"If-Match": tag(task), "If-None-Match": tag(task)})
        done = await operation(client, path, {"If-Match": tag(task), "If-None-Match": OTHER_TAG})

        assert refused.status_code == (304 if operation in READS else 412)
        assert done.status_code == (204 if operation is DELETE else 200)

    @hostile
    @given(tags=any_tags, separator=st.sampled_from([",", ", ", " ,\t", ",,"]))
    @example(tags=[("", "{}")], separator=",")
    @example(tags=[("", ","), ("W/", "{}"), ("", "W/")], separator=",")
    async def test_if_match_compares_tags_strongly_and_if_none_match_weakly(
        self, client: Client, path: str, task: Task, *, tags: list[tuple[str, str]], separator: str
    ) -> None:
        lines = (separator.join(f'{weak}"{text}"' for weak, text in tags),)

        if_match = await GET(client, path, header("If-Match", lines, task))
        if_none_match = await GET(client, path, header("If-None-Match", lines, task))

        assert if_match.status_code == (200 if ("", "{}") in tags else 412)
        assert if_none_match.status_code == (304 if "{}" in [text for _, text in tags] else 200)

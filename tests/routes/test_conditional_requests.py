"""ETag, If-Match and If-None-Match of one task (RFC 9110 section 13)."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support import short

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

CHANGED: Final = "The task has been changed in the meantime. Please load it again."
NOT_AS_EXPECTED: Final = "The task is not in the expected state. Please load it again."
NO_VERSION: Final = (
    "If-Match must have the version of the task in double quotes: its updated_at exactly as it was received, with all "
    "six decimals."
)
OTHER_TAG: Final = '"2026-11-22T09:30:00.123456Z"'
# Header lines; {} stands for the task's `updated_at`.
MATCHES: Final[list[Lines]] = [
    ('"{}"',),
    ('W/"a" ,\t"{}"',),
    (', ,"{}",,',),
    ('"a,b","","{}"',),
    ('"a\\","{}"',),  # a backslash escapes nothing in a tag
    ('"\u00ff","{}"',),
    ('"a"', '"{}"'),
    ('W/"a", W/"{}"',),
    ('"{}--gzip"',),  # as Jetty writes it
    ('W/"{}-br", "a"',),
]
# The current tag as proxies that compress write it.
TOUCHED: Final = ['W/"{}"', '"{}-gzip"', '"{}-br"', '"{}-zstd"', 'W/"{}-gzip"']
MISMATCHES: Final[list[Lines]] = [
    (OTHER_TAG,),
    ('"a", "b"', '""'),
    ('"*"',),
    ("",),
    (",",),
    ("{}",),
    ('"{}',),
    ('{}"',),
    ('"{}0"',),
    ('"{}"0',),
    ('"a,{},b"',),
    ('"a,"{}",b"',),
    ('"a,*,b"',),
    ('w/"{}"',),
    ('W/ "{}"',),
    ('W/W/"{}"',),
    ('W/"a"',),
    ('"{}-a"',),
    ('"{}gzip"',),
    ('"{}-gzip-gzip"',),
    ('"{}"-gzip',),
    ('{}-gzip"',),
    ('"2026-02-30T24:61:61.000000Z"',),
    ('"0000-01-01T00:00:00.000000Z"',),
    ("\u00ff\u00fe",),
    ('\u00a0"{}"\u00a0',),
    (", ".join(f'"{number}"' for number in range(3_000)),),
]

hostile: Final = settings(
    max_examples=30,
    deadline=None,  # the machine may be busy
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # all examples may share one task
)
opaque: Final = st.text([chr(code) for code in (0x21, *range(0x23, 0x7F), *range(0x80, 0x100))], max_size=6)
any_tags: Final = st.lists(st.tuples(st.sampled_from(["", "W/"]), st.just("{}") | opaque), max_size=6)


def tag(task: Task) -> str:
    return f'"{task["updated_at"]}"'


def header(name: str, lines: Lines, task: Task) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), line.replace("{}", task["updated_at"]).encode("latin-1")) for line in lines]


def check_done(reply: httpx.Response) -> None:
    assert reply.status_code == (204 if reply.request.method == "DELETE" else 200), reply.text


def check_refused(reply: httpx.Response, task: Task) -> None:
    """The reply is 412 and has the current tag."""
    assert reply.status_code == 412, reply.text
    assert reply.headers["ETag"] == tag(task)
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.request.method == "HEAD" or reply.json()["type"] == "urn:problem-type:precondition-failed"


def check_not_modified(reply: httpx.Response, task: Task) -> None:
    """The reply is 304 and has only headers."""
    assert (reply.status_code, reply.content) == (304, b"")
    assert (reply.headers["ETag"], reply.headers["Cache-Control"]) == (tag(task), "no-store")
    assert "Content-Type" not in reply.headers


class TestTag:
    async def test_the_etag_of_every_reply_with_a_task_is_its_quoted_updated_at(
        self, client: Client, tasks: str, path: str, task: Task
    ) -> None:
        assert (await client.head(path)).headers["ETag"] == tag(task)
        created = await client.post(tasks, json={"title": "Buy oat milk"})
        for reply in (created, *[await operation(client, path) for operation in OPERATIONS[2:-1]]):
            assert reply.headers["ETag"] == tag(reply.json())

    async def test_the_etag_changes_with_every_write_and_only_then(self, client: Client, path: str) -> None:
        done = [RENAME, GET, RENAME, EMPTY_UPDATE, TOGGLE, HEAD, COMPLETE, COMPLETE]

        tags = [(await operation(client, path)).headers["ETag"] for operation in done]

        assert len(set(tags)) == 5
        assert (tags[0], tags[2], tags[4]) == (tags[1], tags[3], tags[5])

    async def test_no_cache_keeps_a_task_because_its_tag_stays_when_a_release_adds_a_field(
        self, client: Client, path: str
    ) -> None:
        assert (await client.get(path)).headers["Cache-Control"] == "no-store"


class TestMatching:
    @pytest.mark.parametrize("lines", MATCHES, ids=short)
    async def test_the_current_tag_matches_anywhere_in_a_list(
        self, client: Client, path: str, task: Task, lines: Lines
    ) -> None:
        for read in READS:
            check_not_modified(await read(client, path, header("If-None-Match", lines, task)), task)
        check_done(await DELETE(client, path, header("If-Match", lines, task)))

    @pytest.mark.parametrize("lines", MISMATCHES, ids=short)
    async def test_another_or_a_malformed_tag_does_not_match(
        self, client: Client, path: str, task: Task, lines: Lines
    ) -> None:
        reply = await GET(client, path, header("If-None-Match", lines, task))

        assert (reply.status_code, reply.headers["ETag"], reply.json()) == (200, tag(task), task)
        check_refused(await DELETE(client, path, header("If-Match", lines, task)), task)

    async def test_a_star_within_a_tag_refuses_no_change(self, client: Client, path: str) -> None:
        check_done(await RENAME(client, path, {"If-None-Match": '"a,*,b"'}))

    @pytest.mark.parametrize(
        "spell",
        [
            lambda time: time,
            lambda time: f"'{time}'",
            lambda time: f'"{time}", {time}',
            lambda time: f'"{time[:-4]}Z"',  # as JavaScript's `toISOString` makes it
            lambda time: f'"{time[:-4]}Z", "a"',
            lambda time: f'W/"{time[:-1]}+00:00"',
            lambda time: f'"{time[:-1]}"',
            lambda time: f'"{time[:-1]}000Z"',
            lambda time: f'"{time.lower()}"',
            lambda _: 'W/"c0ffee"',
            lambda _: "",
        ],
    )
    async def test_a_412_for_a_tag_that_no_task_can_have_says_what_a_tag_is(
        self, client: Client, path: str, task: Task, spell: Callable[[str], str]
    ) -> None:
        sent = spell(task["updated_at"].replace("2", "1", 1))  # of an earlier time

        for operation in OPERATIONS:
            reply = await operation(client, path, {"If-Match": sent})

            check_refused(reply, task)
            assert operation is HEAD or reply.json()["detail"] == NO_VERSION

    async def test_a_412_for_a_change_in_the_meantime_speaks_to_the_user(
        self, client: Client, path: str, task: Task
    ) -> None:
        current = (await TOGGLE(client, path)).json()
        stale = [("If-Match", touched.replace("{}", task["updated_at"])) for touched in ['"{}"', *TOUCHED]]
        early = [("If-None-Match", line) for line in (tag(current), "*")]

        for (name, line), detail in [
            *((each, CHANGED) for each in stale),
            *((each, NOT_AS_EXPECTED) for each in early),
        ]:
            reply = await RENAME(client, path, {name: line})

            check_refused(reply, current)
            assert reply.json()["detail"] == detail

    @hostile
    @given(tags=any_tags, separator=st.sampled_from([",", ", ", " ,\t", ",,"]))
    @example(tags=[("", "{}")], separator=",")
    @example(tags=[("W/", "{}")], separator=",")
    @example(tags=[("", ","), ("W/", "{}"), ("", "W/")], separator=",")
    async def test_a_tag_matches_weak_or_strong(
        self, client: Client, path: str, task: Task, *, tags: list[tuple[str, str]], separator: str
    ) -> None:
        lines = (separator.join(f'{weak}"{text}"' for weak, text in tags),)

        if_match = await GET(client, path, header("If-Match", lines, task))
        if_none_match = await GET(client, path, header("If-None-Match", lines, task))

        is_among = "{}" in [text for _, text in tags]
        assert (if_match.status_code, if_none_match.status_code) == ((200, 304) if is_among else (412, 200))


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
class TestOperations:
    async def test_if_match_allows_the_current_tag_and_refuses_a_stale_tag(
        self, client: Client, path: str, task: Task, operation: Operation
    ) -> None:
        current = (await TOGGLE(client, path)).json()

        for line in (tag(task), "", "W/" + tag(task)):
            check_refused(await operation(client, path, {"If-Match": line}), current)
        assert (await client.get(path)).json() == current
        if operation is not DELETE:
            check_done(await operation(client, path, {"If-Match": "*"}))
        check_done(await operation(client, path, {"If-Match": (await HEAD(client, path)).headers["ETag"]}))

    @pytest.mark.parametrize("touched", TOUCHED)
    async def test_a_tag_that_a_proxy_has_changed_names_the_same_version(
        self, client: Client, path: str, task: Task, operation: Operation, touched: str
    ) -> None:
        current = (await TOGGLE(client, path)).json()
        stale, same = (touched.replace("{}", each["updated_at"]) for each in (task, current))
        check = check_not_modified if operation in READS else check_refused

        check_refused(await operation(client, path, {"If-Match": stale}), current)
        check(await operation(client, path, {"If-None-Match": same}), current)
        check_done(await operation(client, path, {"If-Match": same, "If-None-Match": stale}))

    async def test_if_none_match_refuses_the_current_tag_and_allows_a_stale_tag(
        self, client: Client, path: str, task: Task, operation: Operation
    ) -> None:
        current = (await TOGGLE(client, path)).json()
        check = check_not_modified if operation in READS else check_refused

        lines = ["*", tag(current), "W/" + tag(current), f'"a", {tag(current)}']
        for line in lines if operation in READS else [*lines, "*, *"]:  # malformed, and so prevents a write
            check(await operation(client, path, {"If-None-Match": line}), current)
        assert (await client.get(path)).json() == current
        check_done(await operation(client, path, {"If-None-Match": tag(task)}))

    async def test_if_match_is_evaluated_before_if_none_match(
        self, client: Client, path: str, task: Task, operation: Operation
    ) -> None:
        async def send(match: str, none_match: str) -> httpx.Response:
            return await operation(client, path, {"If-Match": match, "If-None-Match": none_match})

        for none_match in (tag(task), OTHER_TAG, "*"):
            check_refused(await send(OTHER_TAG, none_match), task)
        assert (await send(tag(task), tag(task))).status_code == (304 if operation in READS else 412)
        check_done(await send(tag(task), OTHER_TAG))

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            *(({"If-Match": line}, 404) for line in ("{}", OTHER_TAG, "a")),
            *(({"If-None-Match": line}, 404) for line in ("{}", OTHER_TAG, "a", "*")),
            ({"If-Match": "*"}, 412),
            ({"If-Match": "*", "If-None-Match": "*"}, 412),
        ],
        ids=short,
    )
    async def test_a_missing_or_another_user_s_task_is_404_but_412_for_if_match_with_a_star(
        self,
        client: Client,
        new_user: Callable[[], str],
        path: str,
        task: Task,
        operation: Operation,
        *,
        headers: dict[str, str],
        status: int,
    ) -> None:
        own = f"/api/{new_user()}/tasks"
        sent = {name: line.replace("{}", tag(task)) for name, line in headers.items()}

        replies = [await operation(client, f"{own}/{item}", sent) for item in (task["id"], uuid4())]

        assert {(reply.status_code, "ETag" in reply.headers) for reply in replies} == {(status, False)}
        assert (await client.get(path)).json() == task

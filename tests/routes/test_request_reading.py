"""How requests are read: preferences, unknown names, media types, JSON, and the size of bodies."""

import asyncio
import gzip
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import product
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote
from uuid import uuid4

import httpx
import pytest

from tests.support import pointers

Raw = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_JSON: Final = {"Content-Type": "application/json"}
_STRICT: Final = {"Prefer": "handling=strict"}
_LIMIT: Final = 65_536
_BODY: Final = b'{"title": "Buy oat milk"}'
_HOSTILE_NAMES: Final = {
    "newline": "a\r\nSet-Cookie: b=c",
    "comma": "a, b",
    "NUL": "\0",
    "empty": "",
    "quotes": "\"'",
    "percent": "%41%",
    "pointer": "a/b~c~1",
    "Chinese": "\u540d\u524d",
    "emoji": "\U0001f984",
    "dunder": "__proto__",
    "other case": "Titles",
}


class _Operation(NamedTuple):
    """An operation on a task, with a valid body."""

    method: str
    suffix: str = ""
    body: dict[str, object] | None = None


_WITH_BODY: Final = [_Operation("PUT", "", {"title": "Other"}), _Operation("PATCH", "/complete", {"completed": True})]
_OPERATIONS: Final = [_Operation("GET"), *_WITH_BODY, _Operation("DELETE")]


async def _chunked(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def _sent(content: bytes, framing: str) -> bytes | AsyncIterator[bytes]:
    """The body, with a Content-Length or in chunks."""
    if framing == "length":
        return content
    return _chunked(*(content[start : start + 16_384] for start in range(0, len(content), 16_384)))


def _name(operation: _Operation) -> str:
    return operation.method


class TestUnknownNames:
    async def test_unknown_names_in_body_and_query_are_ignored_and_named(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        body = {"title": "Buy oat milk", "priority": "high", "tags": ["home"]}

        reply = await client.post(tasks, params={"notify": "me", "page": 2}, json=body)

        assert reply.status_code == 201
        assert reply.headers["Ignored-Fields"] == "priority, tags, notify, page"
        assert "Preference-Applied" not in reply.headers

    async def test_a_request_without_unknown_names_gets_no_ignored_fields(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        body = {"title": "Buy oat milk", "description": None, "completed": False}
        query = {"status": "all", "search": "", "sort": "title", "limit": "1", "completed": "true", "cursor": ""}

        replies = [await client.post(tasks, json=body), await client.get(tasks, params=query)]

        assert [reply.status_code for reply in replies] == [201, 200]
        assert not any("Ignored-Fields" in reply.headers for reply in replies)

    async def test_a_name_of_another_operation_is_unknown(self, client: httpx.AsyncClient, tasks: str) -> None:
        reply = await client.post(tasks, params={"limit": "nonsense"}, json={"title": "Buy oat milk", "status": []})

        assert reply.status_code == 201
        assert reply.headers["Ignored-Fields"] == "status, limit"

    async def test_the_list_names_its_unknown_parameters(
        self, client: httpx.AsyncClient, tasks: str, task: dict[str, Any]
    ) -> None:
        reply = await client.get(f"{tasks}?priority=high&q=milk&priority=low")

        assert reply.json() == [task]
        assert reply.headers["Ignored-Fields"] == "priority, q"

    @pytest.mark.parametrize("operation", _OPERATIONS, ids=_name)
    async def test_each_operation_on_a_task_names_its_unknown_parameters(
        self, client: httpx.AsyncClient, path: str, operation: _Operation
    ) -> None:
        method, suffix, body = operation

        reply = await client.request(method, f"{path}{suffix}?verbose", json=body)

        assert reply.is_success
        assert reply.headers["Ignored-Fields"] == "verbose"

    @pytest.mark.parametrize("name", _HOSTILE_NAMES.values(), ids=_HOSTILE_NAMES)
    @pytest.mark.parametrize("place", ["body", "query"])
    async def test_a_hostile_name_is_percent_encoded(
        self, client: httpx.AsyncClient, tasks: str, name: str, place: str
    ) -> None:
        query = {name: "1"} if place == "query" else {}
        body = {"title": "Buy oat milk"} | ({name: "1"} if place == "body" else {})

        reply = await client.post(tasks, params=query, json=body)

        assert reply.status_code == 201
        assert [unquote(item, errors="strict") for item in reply.headers["Ignored-Fields"].split(", ")] == [name]
        assert "Set-Cookie" not in reply.headers

    @pytest.mark.parametrize(
        "name",
        ["x" * 60_000, "\u540d" * 100, "a" + "\U0001f984" * 100, "ab\xe9" * 100],
        ids=["x", "\u540d", "a\U0001f984", "ab\xe9"],
    )
    async def test_a_long_name_is_cut_between_characters(
        self, client: httpx.AsyncClient, tasks: str, name: str
    ) -> None:
        content = json.dumps({"title": "a", name: 1}, ensure_ascii=False)

        named = (await client.post(tasks, content=content, headers=_JSON)).headers["Ignored-Fields"]
        (pointer,) = pointers(await client.post(tasks, content=content, headers=_JSON | _STRICT))

        shown = unquote(named, errors="strict")
        assert name.startswith(shown)
        assert 5 <= len(shown) < len(name)
        assert (named, pointer) == (quote(shown, safe=""), f"#/{quote(shown)}")

    async def test_thousands_of_unknown_fields_give_a_bounded_header(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        body = {"title": "Buy oat milk"} | {f"{number:x}": 0 for number in range(6_000)}

        reply = await client.post(tasks, content=json.dumps(body, separators=(",", ":")), headers=_JSON)

        assert reply.status_code == 201
        names = reply.headers["Ignored-Fields"].split(", ")
        assert len(names) >= 10
        assert set(names) <= body.keys()
        assert len(reply.headers["Ignored-Fields"]) < 4_096

    @pytest.mark.parametrize(("prefer", "status"), [("handling=lenient", 200), ("handling=strict", 422)])
    async def test_five_thousand_unknown_parameters_give_a_bounded_reply(
        self, client: httpx.AsyncClient, tasks: str, prefer: str, status: int
    ) -> None:
        names = "&".join(f"{number:x}" for number in range(5_000))

        reply = await client.get("/", headers={"Prefer": prefer}, extensions={"target": f"{tasks}?{names}".encode()})

        assert reply.status_code == status
        assert len(str(reply.headers)) + len(reply.content) < 16_384

    async def test_the_value_of_an_unknown_field_is_not_validated(self, client: httpx.AsyncClient, tasks: str) -> None:
        content = b'{"title": "a", "x": ' + b"[" * 100 + b'"\\u0000", 1e400' + b"]" * 100 + b"}"

        reply = await client.post(tasks, content=content, headers=_JSON)

        assert reply.status_code == 201
        assert reply.headers["Ignored-Fields"] == "x"


class TestNamesInErrors:
    """An error names ignored names too, because a mistyped name may have caused it."""

    async def test_a_422_names_the_ignored_fields(self, client: httpx.AsyncClient, tasks: str) -> None:
        reply = await client.post(tasks, json={"titel": "Buy oat milk"})

        assert (reply.status_code, reply.headers["Ignored-Fields"]) == (422, "titel")

    async def test_a_404_names_the_ignored_parameters(self, client: httpx.AsyncClient, tasks: str) -> None:
        reply = await client.delete(f"{tasks}/{uuid4()}?force=1")

        assert (reply.status_code, reply.headers["Ignored-Fields"]) == (404, "force")

    @pytest.mark.parametrize("handling", ["strict", "lenient"])
    async def test_a_422_confirms_the_preference(self, client: httpx.AsyncClient, tasks: str, handling: str) -> None:
        reply = await client.post(tasks, json={"title": ""}, headers={"Prefer": f"handling={handling}"})

        assert (reply.status_code, reply.headers["Preference-Applied"]) == (422, f"handling={handling}")


class TestPrefer:
    async def test_strict_handling_refuses_unknown_names_and_is_confirmed(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        body = {"title": "Buy oat milk", "priority": "high", "a/b~c": 1}

        reply = await client.post(tasks, params={"notify": "me"}, json=body, headers=_STRICT)

        assert pointers(reply) == ["#/priority", "#/a~1b~0c", "query/notify"]
        assert reply.headers["Preference-Applied"] == "handling=strict"
        assert "Ignored-Fields" not in reply.headers
        assert (await client.get(tasks)).json() == []

    async def test_strict_handling_accepts_known_names_and_is_confirmed(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        reply = await client.post(tasks, json={"title": "Buy oat milk"}, headers=_STRICT)

        assert reply.status_code == 201
        assert reply.headers["Preference-Applied"] == "handling=strict"

    async def test_strict_handling_refuses_an_unknown_parameter_of_the_list(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        reply = await client.get(tasks, params={"status": "all", "priority": "high"}, headers=_STRICT)

        assert pointers(reply) == ["query/priority"]
        assert reply.headers["Preference-Applied"] == "handling=strict"

    @pytest.mark.parametrize("operation", _OPERATIONS, ids=_name)
    async def test_strict_handling_refuses_an_unknown_parameter_of_each_operation_on_a_task(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any], operation: _Operation
    ) -> None:
        method, suffix, body = operation

        reply = await client.request(method, f"{path}{suffix}?verbose=1", json=body, headers=_STRICT)

        assert pointers(reply) == ["query/verbose"]
        assert (await client.get(path)).json() == task

    @pytest.mark.parametrize("operation", _WITH_BODY, ids=_name)
    async def test_strict_handling_refuses_an_unknown_field_and_changes_nothing(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any], operation: _Operation
    ) -> None:
        method, suffix, body = operation
        unknown = {"priority": "high"}

        reply = await client.request(method, f"{path}{suffix}", json=(body or {}) | unknown, headers=_STRICT)

        assert pointers(reply) == ["#/priority"]
        assert (await client.get(path)).json() == task

    @pytest.mark.parametrize("name", _HOSTILE_NAMES.values(), ids=_HOSTILE_NAMES)
    async def test_strict_handling_points_to_a_hostile_name(
        self, client: httpx.AsyncClient, tasks: str, name: str
    ) -> None:
        reply = await client.post(tasks, json={"title": "Buy oat milk", name: 1}, headers=_STRICT)

        (pointer,) = pointers(reply)
        assert pointer.startswith("#/")
        assert unquote(pointer[2:], errors="strict").replace("~1", "/").replace("~0", "~") == name

    @pytest.mark.parametrize(
        ("lines", "applied"),
        [
            (["handling=strict"], "strict"),
            (["handling=lenient"], "lenient"),
            (['handling="strict"'], "strict"),
            (["Handling=STRICT"], "strict"),
            (["handling = strict"], "strict"),
            (["handling=strict; level=9"], "strict"),
            (["handling=strict;"], "strict"),
            (["respond-async, handling=strict"], "strict"),
            (["return=minimal; x=y, wait=5,handling=strict"], "strict"),
            ([",, handling=strict"], "strict"),
            (["respond-async", "handling=strict"], "strict"),
            (["handling=strict", "respond-async"], "strict"),
            (["handling=strict, handling=lenient"], "strict"),
            (["handling=lenient, handling=strict"], "lenient"),
            (["handling=lenient", "handling=strict"], "lenient"),
            (["handling=strict", "handling=lenient"], "strict"),
            (["handling=loose, handling=strict"], None),
            (["handling=loose"], None),
            (["handling"], None),
            (["handling="], None),
            (["nothandling=strict"], None),
            (["respond-async"], None),
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


class TestMediaType:
    @pytest.mark.parametrize(
        "content_type",
        [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            'application/json;charset="UTF-8"',
            "application/json ; version=1",
            "application/json;",
            "application/merge-patch+json",
            "application/vnd.api+json",
            "application/ld+json; charset=utf-8",
        ],
    )
    async def test_a_json_media_type_is_accepted(
        self, client: httpx.AsyncClient, tasks: str, content_type: str
    ) -> None:
        reply = await client.post(tasks, content=_BODY, headers={"Content-Type": content_type})

        assert (reply.status_code, reply.json()["title"]) == (201, "Buy oat milk")

    @pytest.mark.parametrize("operation", _WITH_BODY, ids=_name)
    async def test_a_merge_patch_is_accepted(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any], operation: _Operation
    ) -> None:
        method, suffix, body = operation
        headers = {"Content-Type": "application/merge-patch+json"}

        reply = await client.request(method, f"{path}{suffix}", json=body, headers=headers)

        assert reply.status_code == 200
        assert reply.json()["updated_at"] > task["updated_at"]

    @pytest.mark.parametrize(
        "content_type",
        [
            None,
            "",
            "json",
            "*/*",
            "text/json",
            "text/plain",
            "text/plain; charset=application/json",
            "application/jsonp",
            "application/json, application/json",
            "application/octet-stream",
            "application/x-www-form-urlencoded",
            "application/x-ndjson",
            "multipart/form-data; boundary=x",
        ],
    )
    async def test_another_media_type_is_415_and_creates_no_task(
        self, client: httpx.AsyncClient, tasks: str, content_type: str | None
    ) -> None:
        headers = {} if content_type is None else {"Content-Type": content_type}

        reply = await client.post(tasks, content=_BODY, headers=headers)

        assert reply.status_code == 415
        assert reply.json()["type"] == "urn:problem-type:unsupported-media-type"
        assert (await client.get(tasks)).json() == []

    @pytest.mark.parametrize("operation", _WITH_BODY, ids=_name)
    async def test_a_text_body_is_415_and_changes_nothing(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any], operation: _Operation
    ) -> None:
        method, suffix, body = operation
        headers = {"Content-Type": "text/plain"}

        reply = await client.request(method, f"{path}{suffix}", content=json.dumps(body), headers=headers)

        assert reply.status_code == 415
        assert (await client.get(path)).json() == task

    @pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "br", "zstd", "gzip, gzip"])
    async def test_a_compressed_body_is_415(self, client: httpx.AsyncClient, tasks: str, coding: str) -> None:
        headers = _JSON | {"Content-Encoding": coding}

        reply = await client.post(tasks, content=gzip.compress(_BODY), headers=headers)

        assert reply.status_code == 415
        assert "uncompressed" in reply.json()["detail"]

    async def test_a_body_with_the_identity_coding_is_read(self, client: httpx.AsyncClient, tasks: str) -> None:
        reply = await client.post(tasks, content=_BODY, headers=_JSON | {"Content-Encoding": "identity"})

        assert reply.status_code == 201

    async def test_a_charset_parameter_does_not_make_latin_1_valid_json(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        headers = {"Content-Type": "application/json; charset=latin-1"}

        reply = await client.post(tasks, content='{"title": "Caf\xe9"}'.encode("latin-1"), headers=headers)

        assert reply.status_code == 400


_MALFORMED: Final = {
    "truncated": b'{"title": "a"',
    "truncated string": b'{"title": "a',
    "truncated escape": b'{"title": "\\u00',
    "truncated word": b"nul",
    "white space only": b" \n",
    "NUL only": b"\0",
    "NaN": b'{"title": "a", "x": NaN}',
    "Infinity": b'{"title": "a", "x": Infinity}',
    "-Infinity": b'{"title": "a", "x": -Infinity}',
    "lone surrogate": b'{"title": "\\ud800"}',
    "lone low surrogate": b'{"title": "\\udc00 a"}',
    "surrogates in the wrong order": b'{"title": "\\ude00\\ud83d"}',
    "lone surrogate in a name": b'{"title": "a", "\\ud800": 1}',
    "surrogate as UTF-8": b'{"title": "\xed\xa0\x80"}',
    "deep array": b"[" * 10_000 + b"]" * 10_000,
    "deep array, unclosed": b"[" * 60_000,
    "deep object in a field": b'{"title": "a", "x": ' + b'{"x": ' * 5_000 + b"1" + b"}" * 5_000 + b"}",
    "invalid UTF-8": b'{"title": "\xff"}',
    "overlong UTF-8": b'{"title": "\xc0\xaf"}',
    "truncated UTF-8": b'{"title": "\xe5\x90"}',
    "UTF-16": '{"title": "a"}'.encode("utf-16"),
    "UTF-32": '{"title": "a"}'.encode("utf-32-le"),
    "BOM": b"\xef\xbb\xbf" + _BODY,
    "two values": _BODY + _BODY,
    "trailing word": _BODY + b" x",
    "trailing NUL": _BODY + b"\0",
    "trailing comma": b'{"title": "a",}',
    "5,000 digits": b'{"title": "a", "x": ' + b"1" * 5_000 + b"}",
    "leading zero": b'{"title": "a", "x": 01}',
    "hexadecimal": b'{"title": "a", "x": 0x1}',
    "single quotes": b"{'title': 'a'}",
    "bare name": b'{title: "a"}',
    "number as a name": b"{1: 2}",
    "comment": b'{"title": "a" /* b */}',
    "raw newline in a string": b'{"title": "a\nb"}',
    "raw NUL in a string": b'{"title": "a\0b"}',
    "unknown escape": b'{"title": "\\x41"}',
    "a form": b"title=a&completed=true",
    "a pickle": b"\x80\x04K\x01.",
}


class TestJson:
    @pytest.mark.parametrize("content", _MALFORMED.values(), ids=_MALFORMED)
    async def test_malformed_json_is_400_and_creates_no_task(
        self, client: httpx.AsyncClient, tasks: str, content: bytes
    ) -> None:
        reply = await client.post(tasks, content=content, headers=_JSON)

        assert reply.status_code == 400
        assert reply.headers["Content-Type"] == "application/problem+json"
        assert reply.json()["type"] == "urn:problem-type:malformed-body"
        assert len(reply.content) < 1_024
        assert (await client.get(tasks)).json() == []

    @pytest.mark.parametrize("content", [b'{"title": "hunter2', b"hunter2", b'{"a": hunter2}', b'{hunter2: "a"}'])
    async def test_the_reply_does_not_repeat_malformed_json(
        self, client: httpx.AsyncClient, tasks: str, content: bytes
    ) -> None:
        reply = await client.post(tasks, content=content, headers=_JSON)

        assert reply.status_code == 400
        assert "hunter2" not in reply.text

    @pytest.mark.parametrize("operation", _WITH_BODY, ids=_name)
    async def test_malformed_json_changes_no_task(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any], operation: _Operation
    ) -> None:
        url = f"{path}{operation.suffix}"

        reply = await client.request(operation.method, url, content=b'{"completed": true', headers=_JSON)

        assert reply.status_code == 400
        assert (await client.get(path)).json() == task

    @pytest.mark.parametrize("content", [b"[]", b'[{"title": "a"}]', b'"a"', b'""', b"0", b"1.5", b"1e400", b"true"])
    async def test_json_other_than_an_object_is_422(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any], content: bytes
    ) -> None:
        targets = [("POST", path.removesuffix(f"/{task['id']}")), ("PUT", path), ("PATCH", f"{path}/complete")]

        replies = [await client.request(method, url, content=content, headers=_JSON) for method, url in targets]

        assert [pointers(reply) for reply in replies] == [["#"]] * 3
        assert {reply.json()["errors"][0]["detail"] for reply in replies} == {"must be a JSON object"}
        assert (await client.get(path)).json() == task

    async def test_null_is_422_where_a_body_is_required(
        self, client: httpx.AsyncClient, tasks: str, task: dict[str, Any]
    ) -> None:
        created = await client.post(tasks, content=b"null", headers=_JSON)
        updated = await client.put(f"{tasks}/{task['id']}", content=b"null", headers=_JSON)

        assert pointers(created) == pointers(updated) == ["#"]

    async def test_the_last_of_duplicate_names_wins(self, client: httpx.AsyncClient, tasks: str) -> None:
        content = b'{"title": 1, "completed": true, "title": "first", "title": "last", "completed": false}'

        reply = await client.post(tasks, content=content, headers=_JSON)

        assert reply.status_code == 201
        assert (reply.json()["title"], reply.json()["completed"]) == ("last", False)

    @pytest.mark.parametrize(
        ("content", "title"),
        [
            (b'{"title": "\\ud83e\\udd84"}', "\U0001f984"),
            (b'{"title": "\\u00e9\\n\\t\\/"}', "\xe9\n\t/"),
            (b'{"t\\u0069tle": "a"}', "a"),
            (b' \r\n\t{ "title" : "a" }\n ', "a"),
            (b'{"title": "a", "x": 1e400, "y": -0.0, "z": ' + b"1" * 4_000 + b"}", "a"),
        ],
    )
    async def test_escapes_white_space_and_large_numbers_are_read(
        self, client: httpx.AsyncClient, tasks: str, content: bytes, title: str
    ) -> None:
        reply = await client.post(tasks, content=content, headers=_JSON)

        assert (reply.status_code, reply.json()["title"]) == (201, title)


@pytest.mark.parametrize("framing", ["length", "chunked"])
class TestBodySize:
    async def test_a_body_of_65536_bytes_is_read(self, client: httpx.AsyncClient, tasks: str, framing: str) -> None:
        content = _BODY.ljust(_LIMIT)

        reply = await client.post(tasks, content=_sent(content, framing), headers=_JSON)

        assert (reply.status_code, reply.json()["title"]) == (201, "Buy oat milk")

    @pytest.mark.parametrize("size", [_LIMIT + 1, 10_000_000])
    async def test_a_body_above_65536_bytes_is_413_and_creates_no_task(
        self, client: httpx.AsyncClient, tasks: str, framing: str, size: int
    ) -> None:
        content = _BODY.ljust(size)

        reply = await client.post(tasks, content=_sent(content, framing), headers=_JSON)

        assert reply.status_code == 413
        assert reply.headers["Content-Type"] == "application/problem+json"
        assert reply.json()["detail"] == "A request body may have 65,536 bytes at most."
        assert (await client.get(tasks)).json() == []

    @pytest.mark.parametrize("operation", _WITH_BODY, ids=_name)
    async def test_every_operation_with_a_body_has_the_same_size_limit(
        self, client: httpx.AsyncClient, path: str, framing: str, operation: _Operation
    ) -> None:
        method, suffix, body = operation
        contents = [json.dumps(body).encode().ljust(size) for size in (_LIMIT + 1, _LIMIT)]

        replies = [
            await client.request(method, f"{path}{suffix}", content=_sent(content, framing), headers=_JSON)
            for content in contents
        ]

        assert [reply.status_code for reply in replies] == [413, 200]

    @pytest.mark.parametrize("content", [b"not json", b"[1]", b"x" * 10_000_000], ids=["text", "array", "10 MB"])
    async def test_an_operation_without_a_body_ignores_a_sent_body(
        self, client: httpx.AsyncClient, tasks: str, path: str, framing: str, content: bytes
    ) -> None:
        replies = [
            await client.request(method, url, content=_sent(content, framing), headers=_JSON | _STRICT)
            for method, url in (("GET", tasks), ("GET", path), ("DELETE", path), ("DELETE", path))
        ]

        assert [reply.status_code for reply in replies] == [200, 200, 204, 404]

    async def test_an_empty_body_counts_as_no_body(self, client: httpx.AsyncClient, path: str, framing: str) -> None:
        reply = await client.patch(f"{path}/complete", content=_sent(b"", framing), headers=_JSON)

        assert reply.json()["completed"] is True


class _Lines(logging.Handler):
    """The service's log records of its requests, in order of arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = asyncio.Queue[Any]()

    def emit(self, record: logging.LogRecord) -> None:
        self.queue.put_nowait(record)


@pytest.fixture
def lines() -> Iterator[_Lines]:
    logger, handler = logging.getLogger("app.requests"), _Lines()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
async def raw(client: httpx.AsyncClient) -> AsyncIterator[Raw]:
    """A connection to the service, for bytes that no client library sends."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    yield reader, writer
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


_PARTIAL_BODIES: Final = {
    "part of the length": b'Content-Length: 100\r\n\r\n{"title": "a"}',
    "no byte": b"Content-Length: 100\r\n\r\n",
    "no last chunk": b'Transfer-Encoding: chunked\r\n\r\ne\r\n{"title": "a"}\r\n',
    "part of a chunk": b'Transfer-Encoding: chunked\r\n\r\n64\r\n{"title": "a"}',
}


class TestRawConnections:
    @pytest.mark.parametrize("stop", list(product(_PARTIAL_BODIES, ("close", "abort"))), ids=" then ".join)
    async def test_an_incomplete_body_creates_no_task_and_affects_no_other_request(
        self, client: httpx.AsyncClient, raw: Raw, tasks: str, lines: _Lines, stop: tuple[str, str]
    ) -> None:
        partial, ending = stop
        _, writer = raw
        writer.write(_head(tasks) + _PARTIAL_BODIES[partial])
        await writer.drain()
        alive = await client.get(tasks)

        writer.transport.abort() if ending == "abort" else writer.close()
        seen = [await asyncio.wait_for(lines.queue.get(), 30) for _ in range(2)]

        assert alive.status_code == 200
        assert sorted((line.method, line.status) for line in seen) == [("GET", 200), ("POST", 400)]
        assert (await client.get(tasks)).json() == []

    @pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
    async def test_a_content_length_over_the_limit_is_413_before_the_body_is_sent(
        self, raw: Raw, tasks: str, expect: bytes
    ) -> None:
        reader, writer = raw
        writer.write(_head(tasks) + expect + b"Content-Length: 10000000\r\n\r\n")

        status = await asyncio.wait_for(reader.readline(), 30)

        assert status.startswith(b"HTTP/1.1 413 ")

    async def test_a_connection_stays_usable_after_a_refused_body(self, raw: Raw, tasks: str) -> None:
        reader, writer = raw
        size = _LIMIT + 1
        writer.write(_head(tasks) + f"Content-Length: {size}\r\n\r\n".encode() + _BODY.ljust(size))
        writer.write(_head(tasks) + f"Content-Length: {len(_BODY)}\r\nConnection: close\r\n\r\n".encode() + _BODY)

        replies = await asyncio.wait_for(reader.read(), 30)

        assert re.findall(rb"HTTP/1.1 (\d+)", replies) == [b"413", b"201"]


def _head(path: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()


async def test_an_update_of_a_missing_task_with_unknown_names_is_404(client: httpx.AsyncClient, tasks: str) -> None:
    reply = await client.put(f"{tasks}/{uuid4()}?verbose", json={"priority": "high"})

    assert reply.status_code == 404

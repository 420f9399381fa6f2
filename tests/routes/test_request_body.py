"""How the body of a request is read: media types, JSON, and its size."""

import asyncio
import re
from codecs import BOM_UTF8
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest

from tests.support import pointers

JSON: Final = {"Content-Type": "application/json"}
LIMIT: Final = 65_536
BODY: Final = b'{"title": "Buy oat milk", "completed": true}'


def sent(content: bytes, framing: str) -> bytes | AsyncIterator[bytes]:
    """The body, with a Content-Length or in chunks."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 16_384):
            yield content[start : start + 16_384]

    return content if framing == "length" else chunks()


class TestMediaType:
    @pytest.mark.parametrize(
        "content_type",
        ["Application/JSON", 'application/json;charset="UTF-8"', "application/json ;", "application/merge-patch+json"],
    )
    async def test_a_json_media_type_is_accepted(
        self, client: httpx.AsyncClient, tasks: str, content_type: str
    ) -> None:
        headers = {"Content-Type": content_type, "Content-Encoding": "identity"}

        assert (await client.post(tasks, content=BODY, headers=headers)).status_code == 201

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            *(
                {"Content-Type": content_type}
                for content_type in ("", "json", "*/*", "text/json", "text/plain; charset=application/json")
            ),
            *(
                {"Content-Type": f"application/{subtype}"}
                for subtype in ("jsonp", "json/x", "a/b+json", "json, application/json")
            ),
            *(JSON | {"Content-Encoding": coding} for coding in ("GZIP", "br", "identity, gzip")),
        ],
    )
    async def test_another_media_type_and_a_compressed_body_are_415(
        self, client: httpx.AsyncClient, tasks: str, headers: dict[str, str]
    ) -> None:
        reply = await client.post(tasks, content=BODY, headers=headers)

        assert (reply.status_code, reply.headers["Accept"]) == (415, "application/json")
        assert reply.json()["type"] == "urn:problem-type:unsupported-media-type"
        assert "uncompressed" in reply.json()["detail"]
        assert (await client.get(tasks)).json() == []


MALFORMED: Final = {
    "truncated": b'{"title": "a"',
    "white space only": b" \n",
    "NaN": b'{"title": "a", "x": NaN}',
    "Infinity": b'{"title": "a", "x": -Infinity}',
    "lone surrogate": b'{"title": "\\ud800"}',
    "surrogate as UTF-8": b'{"title": "\xed\xa0\x80"}',
    "deep array": b"[" * 10_000 + b"]" * 10_000,
    "deep object in a field": b'{"title": "a", "x": ' + b'{"x": ' * 5_000 + b"1" + b"}" * 5_000 + b"}",
    "latin-1": b'{"title": "\xe9"}',
    "UTF-16": '{"title": "a"}'.encode("utf-16"),
    **{f"UTF-{bits} without a BOM": '{"title": "a"}'.encode(f"utf-{bits}-le") for bits in (16, 32)},
    "only a BOM": BOM_UTF8,
    "two BOMs": BOM_UTF8 * 2 + BODY,
    "BOM at the end": BODY + BOM_UTF8,
    "two values": BODY + BODY,
    "trailing comma": b'{"title": "a",}',
    "5,000 digits": b'{"title": "a", "x": ' + b"1" * 5_000 + b"}",
    "bare name": b"{hunter2: 1}",
    "raw newline in a string": b'{"title": "hunter2\nb"}',
    "a word": b"hunter2",
}


class TestJson:
    @pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
    async def test_malformed_json_is_400_and_the_reply_does_not_repeat_it(
        self, client: httpx.AsyncClient, tasks: str, content: bytes
    ) -> None:
        reply = await client.post(tasks, content=content, headers=JSON)

        assert (reply.status_code, reply.json()["type"]) == (400, "urn:problem-type:malformed-body")
        assert len(reply.content) < 1_024
        assert "hunter2" not in reply.text
        assert (await client.get(tasks)).json() == []

    @pytest.mark.parametrize("content", [b"[%s]" % BODY, b'""', b"1e400", b"true", b"null"])
    async def test_json_other_than_an_object_is_422(
        self, client: httpx.AsyncClient, tasks: str, content: bytes
    ) -> None:
        reply = await client.post(tasks, content=content, headers=JSON)

        assert pointers(reply) == ["#"]
        assert content == b"null" or reply.json()["detail"] == "body: must be a JSON object"

    @pytest.mark.parametrize(
        ("content", "title"),
        [
            (b'{"title": "\\ud83e\\udd84\\u00e9\\n\\t\\/"}', "\U0001f984\xe9\n\t/"),
            (b' \r\n\t{ "t\\u0069tle" : "a" }\n ', "a"),
            (b'{"title": "a", "x": 1e400, "y": [-0.0, "\\u0000"], "z": ' + b"1" * 4_000 + b"}", "a"),
            (b'{"title": "a", "x": ' + b"[" * 150 + b"]" * 150 + b"}", "a"),
            (b'{"title": 1, "title": "first", "title": "last"}', "last"),
            (BOM_UTF8 + b'{"title": "a\xef\xbb\xbf"}', "a\ufeff"),
        ],
        ids=["escapes", "white space", "numbers", "nested arrays", "duplicate names", "BOM"],
    )
    async def test_unusual_json_is_read(
        self, client: httpx.AsyncClient, tasks: str, content: bytes, title: str
    ) -> None:
        reply = await client.post(tasks, content=content, headers=JSON)

        assert (reply.status_code, reply.json()["title"]) == (201, title)


@pytest.mark.parametrize("framing", ["length", "chunked"])
class TestBodySize:
    async def test_a_body_of_65536_bytes_is_read(self, client: httpx.AsyncClient, tasks: str, framing: str) -> None:
        reply = await client.post(tasks, content=sent(BODY.ljust(LIMIT), framing), headers=JSON)

        assert (reply.status_code, reply.json()["completed"]) == (201, True)

    async def test_a_body_above_65536_bytes_is_413_and_changes_nothing(
        self, client: httpx.AsyncClient, tasks: str, task: dict[str, Any], framing: str
    ) -> None:
        for method, url in (("POST", tasks), ("PUT", f"{tasks}/{task['id']}")):
            reply = await client.request(method, url, content=sent(BODY.ljust(LIMIT + 1), framing), headers=JSON)

            assert (reply.status_code, reply.json()["type"]) == (413, "urn:problem-type:body-too-large")
            assert reply.json()["detail"] == "This is too large: the limit is 65,536 bytes."
        assert (await client.get(tasks)).json() == [task]

    async def test_an_operation_without_a_body_ignores_a_sent_body(
        self, client: httpx.AsyncClient, tasks: str, path: str, framing: str
    ) -> None:
        content, headers = b"x" * LIMIT, {"Prefer": "handling=strict"}

        replies = [
            await client.request(method, url, content=sent(content, framing), headers=headers)
            for method, url in (("GET", tasks), ("GET", path), ("DELETE", path), ("DELETE", path))
        ]

        assert [reply.status_code for reply in replies] == [200, 200, 204, 404]

    async def test_an_empty_body_counts_as_no_body(self, client: httpx.AsyncClient, path: str, framing: str) -> None:
        reply = await client.patch(f"{path}/complete", content=sent(b"", framing), headers=JSON)

        assert reply.json()["completed"] is True


async def test_a_connection_stays_usable_after_a_refused_body(client: httpx.AsyncClient, tasks: str) -> None:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    head = f"POST {tasks} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    for size in (LIMIT + 1, LIMIT):
        writer.write(head + b"Content-Length: %d\r\n\r\n" % size + BODY.ljust(size))
    writer.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

    replies = await asyncio.wait_for(reader.read(), 30)

    assert re.findall(rb"HTTP/1.1 (\d+)", replies) == [b"413", b"201", b"200"]
    writer.close()

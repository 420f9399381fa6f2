"""Malformed bytes get a 4xx reply or a closed connection. They cost little and give access to no tasks."""

import asyncio
import ctypes
import gc
import json
import re
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, SupportsIndex

import asyncpg
import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.server import protocol
from tests.support import bearer, short, until

LIVE: Final = b"/health/live"
HOST: Final = b"Host: localhost\r\n"
CLOSE: Final = b"Connection: close\r\n"
JSON: Final = b"Content-Type: application/json\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"


class Reply(NamedTuple):
    """One reply, with its headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def head(method: bytes, target: bytes, *fields: bytes) -> bytes:
    return b"%s %s HTTP/1.1\r\n%s%s\r\n" % (method, target, HOST, b"".join(fields))


def parse(content: bytes) -> list[Reply]:
    """Returns every reply. Fails if a reply is truncated or followed by other bytes."""
    replies = []
    while content:
        start, end, content = content.partition(b"\r\n\r\n")
        assert end, start
        line, *fields = start.decode("ascii").split("\r\n")
        assert re.fullmatch(r"HTTP/1\.1 [1-5]\d\d [A-Za-z ]+", line)
        headers = dict(field.lower().split(": ", 1) for field in fields)
        size = int(headers.get("content-length", "0"))
        assert len(content) >= size
        replies.append(Reply(int(line.split()[1]), headers, content[:size]))
        content = content[size:]
    return replies


class Recorder(asyncio.StreamReader):
    """Keeps the bytes that arrived before a reset. After a reset, StreamReader only raises an error."""

    def __init__(self) -> None:
        super().__init__()
        self.content = bytearray()

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self.content += bytes(data)
        super().feed_data(data)


class Connection(NamedTuple):
    """A connection that stays open until the service closes it."""

    reader: Recorder
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, url: str) -> "Connection":
        loop, address = asyncio.get_running_loop(), httpx.URL(url)
        reader = Recorder()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, address.host, address.port or 80)
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def send(self, *pieces: bytes) -> None:
        """Send until the service closes the connection."""
        with suppress(ConnectionError, RuntimeError):  # uvloop raises RuntimeError once closed
            for piece in pieces:
                self.writer.write(piece)
                await self.writer.drain()

    async def ask(self, request: bytes) -> Reply:
        """Returns the reply, which has a Content-Length."""
        await self.send(request)
        async with asyncio.timeout(20):
            start = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)", start.lower())
            assert length
            [reply] = parse(start + await self.reader.readexactly(int(length[1])))
        self.reader.content.clear()
        return reply

    async def end(self) -> list[Reply]:
        """Returns the replies until the service closes the connection."""
        async with asyncio.timeout(20):
            with suppress(ConnectionError):  # the service did not read the rest
                while await self.reader.read(65_536):
                    pass
        self.writer.close()
        return parse(bytes(self.reader.content))


async def converse(url: str, *pieces: bytes) -> list[Reply]:
    """Send bytes as they are until the service closes the connection. Returns its replies."""
    connection = await Connection.open(url)
    sending = asyncio.create_task(connection.send(*pieces))
    replies = await connection.end()
    await sending
    return replies


def assert_refusal(reply: Reply, *statuses: int) -> None:
    """Check the status, headers and body of a refusal that ends the connection."""
    assert reply.status in statuses or (not statuses and 400 <= reply.status < 500)
    assert reply.headers["content-type"] == "application/problem+json"
    assert json.loads(reply.body)["instance"] == reply.headers["x-request-id"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["connection"] == "close"
    assert "server" not in reply.headers


async def assert_alive(url: str) -> None:
    """Check that another client is still served."""
    [reply] = await converse(url, head(b"GET", LIVE, CLOSE))
    assert (reply.status, reply.body) == (200, b'{"status":"live"}')


@pytest.fixture(params=["open", "secured"])
def url(request: pytest.FixtureRequest, base_url: str, secured_url: str) -> str:
    return base_url if request.param == "open" else secured_url


MALFORMED: Final = (
    b"nonsense\r\n\r\n",
    b"\0" * 100 + b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.9\r\n",
    # the request line
    b"GET /health/live\r\n\r\n",
    b"GET /health/live HTTP/0.9\r\n%s\r\n" % HOST,
    b"GET /health/live HTTP/1.2\r\n%s\r\n" % HOST,
    b"GET /health/live HTTP/2.0\r\n%s\r\n" % HOST,
    b"GET /health/live HTTP/9.9\r\n%s\r\n" % HOST,
    b"GET /health/live HTTP/1.1x\r\n%s\r\n" % HOST,
    b"GET /health/live HTTP/01.1\r\n%s\r\n" % HOST,
    b"GET /health/live http/1.1\r\n%s\r\n" % HOST,
    b"GET\t/health/live\tHTTP/1.1\r\n%s\r\n" % HOST,
    b"GET /health/live\tHTTP/1.1\r\n%s\r\n" % HOST,
    b"GET HTTP/1.1\r\n%s\r\n" % HOST,
    b" GET /health/live HTTP/1.1\r\n%s\r\n" % HOST,
    b"GET /health/live HTTP/1.1 \r\n%s\r\n" % HOST,
    b"GET health/live HTTP/1.1\r\n%s\r\n" % HOST,
    b"GET /health/\xff HTTP/1.1\r\n%s\r\n" % HOST,
    b"GET /health/\0 HTTP/1.1\r\n%s\r\n" % HOST,
    b"GET http:// HTTP/1.1\r\n%s\r\n" % HOST,
    b"GET http://localhost HTTP/1.1\r\n%s\r\n" % HOST,
    b"CONNECT localhost:443 HTTP/1.1\r\n%s\r\n" % HOST,
    b"get /health/live HTTP/1.1\r\n%s\r\n" % HOST,
    b"FOO /health/live HTTP/1.1\r\n%s\r\n" % HOST,
    b"GET\0 /health/live HTTP/1.1\r\n%s\r\n" % HOST,
    # line ends
    b"GET /health/live HTTP/1.1\n%s\n" % HOST.replace(b"\r", b""),
    b"GET /health/live HTTP/1.1\r%s\r" % HOST.replace(b"\n", b""),
    head(b"GET", LIVE, b"X: a\nSet-Cookie: b\r\n"),
    head(b"GET", LIVE, b"X: a\rSet-Cookie: b\r\n"),
    head(b"GET", LIVE, b"X: a\r\n b\r\n"),
    head(b"GET", LIVE, b"X: a\r\n\tb\r\n"),
    # headers
    head(b"GET", LIVE, b"X : a\r\n"),
    head(b"GET", LIVE, b": a\r\n"),
    head(b"GET", LIVE, b"X\r\n"),
    head(b"GET", LIVE, b"X\0: a\r\n"),
    head(b"GET", LIVE, b"X\t: a\r\n"),
    head(b"GET", LIVE, b"X\xff: a\r\n"),
    head(b"GET", LIVE, b"X(): a\r\n"),
    head(b"GET", LIVE, b"X: a\0\r\n"),
    head(b"GET", LIVE, b"X: a\x0bb\r\n"),
    head(b"GET", LIVE, b"X: \x1b[31m\r\n"),
    head(b"GET", LIVE, b"X: \x7f\r\n"),
    b"GET /health/live HTTP/1.1\r\n X: a\r\n%s\r\n" % HOST,
    # the host
    b"GET /health/live HTTP/1.1\r\n\r\n",
    head(b"GET", LIVE, HOST),
    head(b"GET", LIVE, b"Host: elsewhere\r\n"),
    # the length of the body
    *(
        head(b"POST", b"/api/ada/tasks", JSON, b"Content-Length: %s\r\n" % length) + b"a"
        for length in (b"", b"a", b"-1", b"+1", b"1 1", b"0x1", b"1_0", b"1,1", b"1, 1", b"1.0", b"9" * 30, b"\xb2")
    ),
    *(
        head(b"POST", b"/api/ada/tasks", JSON, *(b"Content-Length: %d\r\n" % length for length in lengths)) + b"a"
        for lengths in ((1, 1), (1, 2), (0, 1))
    ),
    *(
        head(b"POST", b"/api/ada/tasks", JSON, *fields) + b"0\r\n\r\n"
        for fields in (
            (b"Content-Length: 5\r\n", CHUNKED),
            (CHUNKED, b"Content-Length: 5\r\n"),
            (b"Content-Length: 5\r\n", b"Transfer-Encoding: identity\r\n"),
            (b"Content-Length: 5\r\n", b"Transfer-Encoding:\r\n"),
            (CHUNKED, CHUNKED),
            (CHUNKED, b"Transfer-Encoding: identity\r\n"),
            (b"Transfer-Encoding: chunked, identity\r\n",),
            (b"Transfer-Encoding:\r\n chunked\r\n",),
            (b"Transfer-Encoding: \x0bchunked\r\n",),
            (b"Transfer-Encoding : chunked\r\n",),
        )
    ),
)


class TestMalformedRequest:
    @pytest.mark.parametrize("content", MALFORMED, ids=lambda content: ascii(content.replace(HOST, b""))[:60])
    async def test_a_malformed_request_is_400_and_ends_the_connection(self, url: str, content: bytes) -> None:
        [reply] = await converse(url, content)

        assert_refusal(reply, 400)
        assert json.loads(reply.body)["type"] == "urn:problem-type:malformed-request"
        await assert_alive(url)

    @pytest.mark.parametrize("content", MALFORMED[::6], ids=short)
    async def test_a_malformed_request_sent_byte_by_byte_is_400(self, base_url: str, content: bytes) -> None:
        replies = await converse(base_url, *(bytes([byte]) for byte in content))

        assert [reply.status for reply in replies] == [400]

    async def test_a_malformed_request_is_logged_with_the_request_id_of_its_reply(
        self, base_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("INFO", "app.requests"):
            [reply] = await converse(base_url, MALFORMED[0])

        [line] = [record for record in caplog.records if "refused" in record.getMessage()]
        assert line.__dict__["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"GET /health/live HTTP/1.0\r\n%s\r\n" % HOST, 200),
        (b"\r\n\r\n" + head(b"GET", LIVE, CLOSE), 200),
        (b"GET  /health/live  HTTP/1.1\r\n%s%s\r\n" % (HOST, CLOSE), 200),
        (head(b"GET", b"http://elsewhere/health/live", CLOSE), 200),
        (head(b"GET", LIVE, b"X: a\tb\r\n", CLOSE), 200),
        (head(b"GET", LIVE, b"X: \xff\r\n", CLOSE), 200),
        (head(b"GET", LIVE, b"X:\r\n", CLOSE), 200),
        (head(b"GET", LIVE, b"X: %s\r\n" % (b"a" * 30_000), CLOSE), 200),
        (head(b"GET", LIVE, *[b"X: a\r\n"] * 97, CLOSE), 200),
        (head(b"GET", LIVE, b"Upgrade: h2c\r\nConnection: Upgrade, close\r\n"), 200),
        (head(b"OPTIONS", b"*", CLOSE), 404),
        (head(b"GET", b"*", CLOSE), 404),
    ],
    ids=short,
)
async def test_an_unusual_but_valid_request_is_answered(url: str, content: bytes, expected: int) -> None:
    [reply] = await converse(url, content)

    assert reply.status == expected
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND", "SOURCE", "PURGE", "CONNECT", "QUERY", "M-SEARCH"])
@pytest.mark.parametrize("path", ["/api/ada/tasks", "/health/live"])
async def test_an_unsupported_method_is_refused_without_an_echo(url: str, method: str, path: str) -> None:
    [reply] = await converse(url, head(method.encode(), path.encode(), b"X-Echo: zq9\r\n", CLOSE))

    assert_refusal(reply, 400, 405)
    assert b"zq9" not in reply.body


class TestChunks:
    @pytest.mark.parametrize(
        "size", [b"-1", b"0x1", b"+1", b" 1", b"1 ", b"1_0", b"g", b"", b"f" * 17, b"1\n", b"\xb2", b"1;a\0", b"\t1"]
    )
    async def test_a_malformed_chunk_size_ends_the_connection(self, url: str, size: bytes) -> None:
        request = head(b"POST", b"/api/ada/tasks", JSON, CHUNKED)

        replies = await converse(url, request + size + b"\r\na\r\n0\r\n\r\n")

        assert len(replies) <= 1
        for reply in replies:
            assert_refusal(reply)
        await assert_alive(url)

    @pytest.mark.parametrize("size", [b"10001", b"ffffffffffffffe"], ids=short)
    async def test_a_large_chunk_is_413_once_the_body_limit_is_exceeded(self, base_url: str, size: bytes) -> None:
        request = head(b"POST", b"/api/ada/tasks", JSON, CHUNKED, CLOSE)

        replies = await converse(base_url, request + size + b"\r\n", b"a" * 65_537)

        assert [reply.status for reply in replies] == [413]

    async def test_valid_chunks_are_read(self, base_url: str, tasks: str) -> None:
        request = head(b"POST", tasks.encode(), JSON, CHUNKED, CLOSE)

        [reply] = await converse(base_url, request + b'c;a=b\r\n{"title": "a\r\n0002\r\n"}\r\n0\r\nX: a\r\n\r\n')

        assert (reply.status, json.loads(reply.body)["title"]) == (201, "a")


class TestSmuggling:
    """A hidden request is not executed: a proxy may have forwarded it as a part of another user's request."""

    @pytest.mark.parametrize(
        ("fields", "before"),
        [
            (b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
            (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
            (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", b"0\r\n\r\n"),
            (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
            (b"Transfer-Encoding: identity\r\n", b""),
            (b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
            (b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
            (b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"),
            (b"Content-Length: 0\r\nContent-Length: 200\r\n", b""),
            (b"Content-Length: 200\r\nContent-Length: 0\r\n", b""),
            (b"Content-Length: +0\r\n", b""),
            (b"Content-Length : 0\r\n", b""),
            (b"Content-Length: 0\n", b""),
            (b"Content-Length: 0,200\r\n", b""),
            (b"Transfer-Encoding: chunked\r\n", b"0\n\n"),
            (b"Transfer-Encoding: chunked\r\n", b"0\r\n\n"),
            (b"Transfer-Encoding: chunked\r\n", b"0;\n\r\n\r\n"),
            (b"Transfer-Encoding: chunked\r\n", b"00000000000000000000000000g\r\n\r\n"),
            (b"Content-Length: 200\r\n", b""),
            (b"X: a\r\rY: ", b""),
        ],
        ids=lambda value: short(value.replace(b"Transfer-Encoding", b"TE").replace(b"Content-Length", b"CL")),
    )
    async def test_a_hidden_request_is_not_executed(
        self,
        client: httpx.AsyncClient,
        base_url: str,
        path: str,
        *,
        fields: bytes,
        before: bytes,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(protocol, "REQUEST_TIMEOUT", 0.2)  # some requests wait for more bytes
        hidden = head(b"DELETE", path.encode())

        replies = await converse(base_url, head(b"POST", b"/api/ada/tasks", JSON, fields) + before + hidden)

        assert len(replies) <= 1
        for reply in replies:
            assert_refusal(reply)
        assert (await client.get(path)).status_code == 200

    async def test_a_pipelined_request_is_executed(self, client: httpx.AsyncClient, base_url: str, path: str) -> None:
        first = head(b"POST", b"/api/ada/tasks", JSON, b"Content-Length: 0\r\n")

        replies = await converse(base_url, first + head(b"DELETE", path.encode(), CLOSE))

        assert [reply.status for reply in replies] == [422, 204]
        assert (await client.get(path)).status_code == 404

    @pytest.mark.parametrize("coding", [b"xchunked", b"identity", b"gzip", b"gzip, chunked", b"chunked;a=b"], ids=short)
    async def test_a_request_without_a_defined_body_length_is_400(
        self, client: httpx.AsyncClient, base_url: str, path: str, coding: bytes
    ) -> None:
        request = head(b"DELETE", path.encode(), b"Transfer-Encoding: %s\r\n" % coding, CLOSE)

        replies = await converse(base_url, request + b"0\r\n\r\n")

        assert [reply.status for reply in replies] == [400]
        assert (await client.get(path)).status_code == 200


class TestPipelining:
    async def test_pipelined_requests_are_answered_in_order(self, url: str) -> None:
        requests = [
            head(b"GET", LIVE if number % 2 else b"/nope", b"X-Request-ID: %d\r\n" % number) for number in range(40)
        ]

        replies = await converse(url, b"".join(requests) + head(b"GET", LIVE, CLOSE))

        assert [reply.status for reply in replies] == [404, 200] * 20 + [200]
        assert [reply.headers["x-request-id"] for reply in replies[:-1]] == [str(number) for number in range(40)]

    @pytest.mark.parametrize(
        "garbage",
        [b"GARBAGE\r\n\r\n", head(b"GET", LIVE, b"Host: b\r\n"), head(b"GET", LIVE, b"X: a\r\n" * 5_000)],
        ids=short,
    )
    async def test_garbage_after_a_request_does_not_replace_its_reply(self, url: str, garbage: bytes) -> None:
        [first, *others] = await converse(url, head(b"GET", LIVE) + garbage)

        assert (first.status, first.body) == (200, b'{"status":"live"}')
        assert [reply.status for reply in others if reply.status not in {400, 431}] == []
        assert len(others) <= 1

    @pytest.mark.parametrize(
        "garbage",
        [b"GARBAGE\r\n\r\n", head(b"POST", b"/api/ada/tasks", JSON, CHUNKED) + b"ZZ\r\n", head(b"GET", LIVE) * 200],
        ids=short,
    )
    async def test_garbage_after_a_slow_request_does_not_replace_its_reply(
        self, base_url: str, database: asyncpg.Connection, path: str, garbage: bytes
    ) -> None:
        connection = await Connection.open(base_url)
        async with database.transaction():
            await database.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", path.rpartition("/")[2])
            await connection.send(head(b"PATCH", path.encode() + b"/complete") + garbage)
            await waits_for_a_lock(database)
            await connection.send(head(b"DELETE", path.encode()))

        [reply, *others] = await connection.end()
        assert (reply.status, json.loads(reply.body)["completed"]) == (200, True)
        assert [other.body for other in others] == [b'{"status":"live"}'] * len(others)
        assert len(others) < 200

    @pytest.mark.parametrize("rest", [b"x\r\n", b"1;" + b"a" * 40_000], ids=short)
    async def test_an_answered_request_gets_no_second_reply_for_the_rest_of_its_body(
        self, secured_url: str, rest: bytes
    ) -> None:
        connection = await Connection.open(secured_url)
        first = await connection.ask(head(b"POST", b"/api/ada/tasks", JSON, CHUNKED))

        await connection.send(rest)

        assert (first.status, await connection.end()) == (401, [])


TASKS_OF_5_KB: Final = """
    INSERT INTO tasks (user_id, id, title, description)
    SELECT $1, gen_random_uuid(), 'a', repeat('a', 5000) FROM generate_series(1, 1000)
"""


class TestTrailer:
    """A trailer field is not a header (RFC 9110 section 6.5.1)."""

    @pytest.mark.parametrize("together", [True, False], ids=["in one piece", "in two pieces"])
    async def test_a_token_in_a_trailer_is_ignored(self, secured_url: str, *, together: bool) -> None:
        [field] = [f"{name}: {value}\r\n".encode() for name, value in bearer("ada").items()]
        request = head(b"POST", b"/api/ada/tasks", JSON, CHUNKED, CLOSE)
        body = b'e\r\n{"title": "a"}\r\n0\r\n%s\r\n' % field

        [reply] = await converse(secured_url, *([request + body] if together else [request, body]))

        assert (reply.status, reply.headers["www-authenticate"]) == (401, 'bearer realm="tasks"')

    @pytest.mark.parametrize("field", [b"X-Request-ID: late\r\n", b"Host: b\r\n", b"Prefer: handling=strict\r\n"])
    async def test_another_trailer_field_is_ignored(self, base_url: str, tasks: str, field: bytes) -> None:
        request = head(b"POST", tasks.encode(), JSON, CHUNKED, CLOSE)

        [reply] = await converse(base_url, request + b'e\r\n{"title": "a"}\r\n0\r\n%s\r\n' % field)

        assert reply.status == 201
        assert reply.headers["x-request-id"] != "late"
        assert "preference-applied" not in reply.headers


class TestSlowReader:
    REPLIES: Final = 30

    @pytest.mark.usefixtures("short_request_timeout")
    @pytest.mark.parametrize("is_small", [True, False])
    @pytest.mark.parametrize("is_aborted", [True, False])
    async def test_a_connection_is_aborted_if_the_client_does_not_read_the_last_reply(
        self,
        base_url: str,
        database: asyncpg.Connection,
        user: str,
        monkeypatch: pytest.MonkeyPatch,
        *,
        is_aborted: bool,
        is_small: bool,
    ) -> None:
        await database.execute(TASKS_OF_5_KB, user)
        if is_small:  # as if the rest were too small to pause the service
            monkeypatch.setattr(protocol.BoundedProtocol, "pause_writing", HttpToolsProtocol.pause_writing)
        if is_aborted:
            monkeypatch.setattr(protocol, "REPLY_TIMEOUT", 0.1)
        taken = await read_late(base_url, head(b"GET", b"/api/%s/tasks" % user.encode(), CLOSE))

        assert taken.endswith(b"]") is not is_aborted

    @pytest.mark.usefixtures("short_request_timeout")
    @pytest.mark.parametrize("is_aborted", [True, False])
    async def test_a_connection_is_aborted_if_the_client_reads_no_replies(
        self, base_url: str, monkeypatch: pytest.MonkeyPatch, *, is_aborted: bool
    ) -> None:
        if is_aborted:
            monkeypatch.setattr(protocol, "REPLY_TIMEOUT", 0.1)
        taken = await read_late(base_url, head(b"GET", b"/docs/assets/swagger-ui-bundle.js") * self.REPLIES)

        complete = taken.count(b"HTTP/1.1 200 OK") == self.REPLIES
        assert complete is not is_aborted


async def read_late(url: str, request: bytes) -> bytes:
    """Read nothing for two request timeouts. Returns all bytes that the service sends."""
    connection = await Connection.open(url)
    connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # every socket transport has it
    await connection.send(request)
    await request_timeout(url)
    await request_timeout(url)
    connection.writer.transport.resume_reading()  # type: ignore[attr-defined]  # see above
    async with asyncio.timeout(60):
        with suppress(ConnectionError):
            while await connection.reader.read(1_048_576):
                pass
    connection.writer.close()
    return bytes(connection.reader.content)


async def waits_for_a_lock(database: asyncpg.Connection) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'tasks-api'"
    await until(lambda: database.fetchval(query))


@pytest.fixture
def short_request_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request timeout is shorter than the timeout of the test client."""
    monkeypatch.setattr(protocol, "REQUEST_TIMEOUT", 0.2)


async def drip(url: str, content: bytes, before: bytes = b"") -> list[Reply]:
    """Send byte by byte, slowly, until the service closes the connection. Returns its replies."""
    connection = await Connection.open(url)
    await connection.send(before)

    async def send() -> None:
        for byte in content:
            await connection.send(bytes([byte]))
            await asyncio.sleep(0.01)  # this delay is the attack and waits for nothing

    sending = asyncio.create_task(send())
    replies = await connection.end()
    sending.cancel()
    return replies


async def request_timeout(url: str) -> None:
    """Wait for one request timeout of the service."""
    assert await converse(url) == []


@pytest.mark.usefixtures("short_request_timeout")
class TestRequestTimeout:
    @pytest.mark.parametrize(
        "content",
        [b"G", b"GET /health", b"GET /health/live HTTP/1.1\r\n", head(b"GET", LIVE)[:-2], head(b"GET", LIVE)[:-1]],
        ids=short,
    )
    async def test_an_incomplete_head_is_408(self, url: str, content: bytes) -> None:
        [reply] = await converse(url, content)

        assert_refusal(reply, 408)

    @pytest.mark.parametrize("content", [b"", b"\r\n"], ids=short)
    async def test_a_connection_without_a_request_is_closed_without_a_reply(self, url: str, content: bytes) -> None:
        assert await converse(url, content) == []

    @pytest.mark.parametrize(
        "content",
        [
            head(b"POST", b"/api/ada/tasks", JSON, b"Content-Length: 99\r\n") + b'{"title": "a',
            head(b"POST", b"/api/ada/tasks", JSON, CHUNKED) + b'9\r\n{"title',
            head(b"POST", b"/api/ada/tasks", JSON, CHUNKED) + b"0\r\n",
            head(b"POST", b"/api/ada/tasks", JSON, CHUNKED) + b"0\r\nX: a\r\n",
        ],
        ids=short,
    )
    async def test_an_incomplete_body_is_408(self, url: str, content: bytes) -> None:
        [reply] = await converse(url, content)

        assert reply.status in {408, 401}  # without a token the service does not wait for the body

    async def test_an_incomplete_second_head_has_more_time_than_an_idle_connection(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep_alive = property(lambda _: 0.05, lambda *_: None)  # in production 5 s, with a request timeout of 30 s
        monkeypatch.setattr(protocol.BoundedProtocol, "timeout_keep_alive", keep_alive, raising=False)

        replies = await converse(url, head(b"GET", LIVE) + head(b"GET", LIVE)[:-1])

        assert [reply.status for reply in replies] == [200, 408]

    async def test_a_head_sent_too_slowly_is_408(self, url: str) -> None:
        [reply] = await drip(url, head(b"GET", LIVE, b"X: %s\r\n" % (b"a" * 30_000)))

        assert_refusal(reply, 408)

    async def test_a_body_sent_too_slowly_is_408(self, base_url: str, tasks: str, client: httpx.AsyncClient) -> None:
        request = head(b"POST", tasks.encode(), JSON, b"Content-Length: 60000\r\n")

        [reply] = await drip(base_url, b" " * 60_000, before=request)

        assert_refusal(reply, 408)
        assert (await client.get(tasks)).json() == []

    async def test_a_connection_that_idles_after_a_late_body_is_closed(self, secured_url: str) -> None:
        connection = await Connection.open(secured_url)
        reply = await connection.ask(head(b"POST", b"/api/ada/tasks", JSON, b"Content-Length: 2\r\n"))

        await connection.send(b"{}")

        assert (reply.status, await connection.end()) == (401, [])

    async def test_an_idle_connection_between_requests_stays_open(self, url: str) -> None:
        connection = await Connection.open(url)
        first = await connection.ask(head(b"GET", LIVE))

        await request_timeout(url)

        assert (first.status, (await connection.ask(head(b"GET", LIVE))).status) == (200, 200)
        connection.writer.close()

    async def test_many_requests_on_one_connection_may_exceed_the_timeout_of_one_request(self, url: str) -> None:
        connection = await Connection.open(url)
        passed = asyncio.create_task(request_timeout(url))

        while not passed.done():
            assert (await connection.ask(head(b"GET", LIVE))).status == 200
        connection.writer.close()

    async def test_the_request_timeout_does_not_limit_the_processing_time(
        self, base_url: str, database: asyncpg.Connection, path: str
    ) -> None:
        async with database.transaction():
            await database.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", path.rpartition("/")[2])
            request = head(b"PUT", path.encode(), JSON, b"Content-Length: 14\r\n", CLOSE) + b'{"title": "b"}'
            talking = asyncio.create_task(converse(base_url, request))
            await waits_for_a_lock(database)
            await request_timeout(base_url)

        [reply] = await talking
        assert (reply.status, json.loads(reply.body)["title"]) == (200, "b")

    async def test_an_incomplete_second_request_is_408(self, url: str) -> None:
        [first, second] = await converse(url, head(b"GET", LIVE) + b"GET /health")

        assert first.status == 200
        assert_refusal(second, 408)


class TestDisconnect:
    @pytest.mark.parametrize(
        "content",
        [b"", b"GET /health", head(b"GET", LIVE)[:-2], head(b"POST", b"/api/ada/tasks", JSON, CHUNKED) + b"9\r\n{"],
        ids=short,
    )
    async def test_an_incomplete_request_of_a_half_closed_connection_is_not_waited_for(
        self, url: str, content: bytes
    ) -> None:
        connection = await Connection.open(url)
        await connection.send(content)
        connection.writer.write_eof()

        replies = await connection.end()

        assert [reply.status for reply in replies] in ([], [401])

    @pytest.mark.parametrize(
        "content", [b"GET /health", head(b"GET", LIVE), head(b"POST", b"/api/ada/tasks", JSON, CHUNKED)], ids=short
    )
    async def test_a_connection_reset_does_not_affect_other_clients(self, url: str, content: bytes) -> None:
        connection = await Connection.open(url)
        abrupt: socket.socket = connection.writer.get_extra_info("socket")
        abrupt.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await connection.send(content)

        connection.writer.transport.abort()

        await assert_alive(url)


FLOOD: Final = 2_000_000  # bytes
CHUNKED_POST: Final = head(b"POST", b"/api/ada/tasks", JSON, CHUNKED)
FLOODS: Final = {
    "a long header": [head(b"GET", LIVE)[:-2] + b"X: " + b"a" * FLOOD],
    "a long header in pieces": [head(b"GET", LIVE)[:-2] + b"X: ", *[b"a" * 1_000] * (FLOOD // 1_000)],
    "a long name": [head(b"GET", LIVE)[:-2] + b"a" * FLOOD],
    "100,000 headers": [head(b"GET", LIVE)[:-2] + b"".join(b"X-%d: a\r\n" % number for number in range(100_000))],
    "100,000 headers in pieces": [head(b"GET", LIVE)[:-2], *[b"X: a\r\n" * 100] * 1_000],
    "a long path": [b"GET /" + b"a" * FLOOD],
    "a long path in pieces": [b"GET /", *[b"a" * 1_000] * (FLOOD // 1_000)],
    "a long query": [b"GET /api/ada/tasks?search=" + b"a" * FLOOD],
    "a long method": [b"G" * FLOOD],
    "blank lines": [b"\r\n" * (FLOOD // 2)],
    "a long chunk extension": [CHUNKED_POST + b"1;", *[b"a" * 1_000] * (FLOOD // 1_000)],
    "many chunk extensions": [CHUNKED_POST, *[b"1;%s\r\na\r\n" % (b"a" * 30_000)] * (3 * FLOOD // 30_000)],
    "zeros before a chunk size": [CHUNKED_POST + b"0" * FLOOD],
    "trailers": [CHUNKED_POST + b"0\r\n", *[b"X: a\r\n" * 100] * (FLOOD // 600)],
    "trailers in one piece with a body": [CHUNKED_POST + b"1\r\n{\r\n0\r\n" + b"X:\r\n" * 60_000],
    "a long trailer": [CHUNKED_POST + b"0\r\nX: " + b"a" * FLOOD],
    "a long body": [head(b"POST", b"/api/ada/tasks", JSON, b"Content-Length: 999999999\r\n"), *[b"a" * 65_536] * 500],
    "a long body in chunks": [CHUNKED_POST, *[b"10000\r\n%s\r\n" % (b"a" * 65_536)] * 500],
}
CLIENTS: Final = 20
GROWTH: Final = 24  # MiB, including the memory of the clients; the clients together send at least 40 MB


class Memory:
    """The peak memory of this process, which includes the service."""

    _refs: Final = Path("/proc/self/clear_refs")
    known: Final = _refs.exists()

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # memory that earlier tests freed would hide growth
        self._refs.write_text("5")  # see proc_pid_clear_refs(5)
        self._before = self._peak()

    @property
    def growth(self) -> float:
        return (self._peak() - self._before) / 1024

    @staticmethod
    def _peak() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.skipif(not Memory.known, reason="only Linux has clear_refs")
@pytest.mark.usefixtures("short_request_timeout")
class TestFlood:
    @pytest.mark.parametrize("flood", FLOODS)
    async def test_a_flood_is_refused_within_a_memory_limit(self, url: str, flood: str) -> None:
        memory = Memory()

        talks = await asyncio.gather(*(converse(url, *FLOODS[flood]) for _ in range(CLIENTS)))

        assert memory.growth < GROWTH
        for replies in talks:
            assert len(replies) <= 1
            assert not [reply for reply in replies if not 400 <= reply.status < 500]
        await assert_alive(url)

    async def test_trailers_in_one_piece_with_the_body_are_limited(self, base_url: str) -> None:
        body = b'c\r\n{"title":""}\r\n0\r\n'
        request = head(b"POST", b"/api/ada/tasks", JSON, CHUNKED, b"Connection: close\r\n") + body

        [small] = await converse(base_url, request + b"X: a\r\n" * 10 + b"\r\n")
        [large] = await converse(base_url, request + b"X: a\r\n" * (protocol.HEAD_MAX // 2 + 1) + b"\r\n")
        [endless] = await converse(base_url, request + b"X: a\r\n" * (protocol.HEAD_MAX // 2 + 2))

        assert_refusal(large, 431)
        assert_refusal(endless, 431)
        assert small.status == 422

    async def test_the_memory_measurement_detects_kept_requests(self, base_url: str) -> None:
        memory = Memory()
        kept = []
        for _ in range(CLIENTS):
            kept.append(b"a" * FLOOD)
            await assert_alive(base_url)

        assert memory.growth > len(kept) * FLOOD / 1024**2 - 8 > GROWTH

    @pytest.mark.parametrize(
        "flood", [name for name in FLOODS if "header" in name or name in {"a long path", "a long query", "a long name"}]
    )
    async def test_a_head_that_is_too_large_is_431(self, base_url: str, flood: str) -> None:
        [reply] = await converse(base_url, *FLOODS[flood])

        assert_refusal(reply, 431)

    async def test_an_incomplete_head_with_too_many_headers_is_431(self, base_url: str) -> None:
        [reply] = await converse(base_url, head(b"GET", LIVE)[:-2] + b"X:\r\n" * (protocol.HEADERS_MAX + 1))

        assert_refusal(reply, 431)

    @pytest.mark.parametrize(
        "fields",
        [
            (b"X: %s\r\n" % (b"a" * 33_000),),
            (b"%s: a\r\n" % (b"a" * 33_000),),
            (b"X: %s\r\n" % (b"a" * 400),) * 90,
            (b"X: a\r\n",) * 101,
        ],
        ids=short,
    )
    async def test_a_head_slightly_over_the_limit_is_431(self, base_url: str, fields: tuple[bytes, ...]) -> None:
        [reply] = await converse(base_url, head(b"GET", LIVE, *fields))

        assert_refusal(reply, 431)


class TestTarget:
    """However the path is written, a token opens only its own user's tasks."""

    @pytest.mark.parametrize(
        "template",
        [
            "/api/{other}/tasks",
            "/api/{escaped}/tasks",
            "/api/{user}/../{other}/tasks",
            "/api/{user}/tasks/../../{other}/tasks",
            "/api/{user}/%2e%2e/{other}/tasks",
            "/api/{user}/%2E%2E/{other}/tasks",
            "/api/{user}%2F..%2F{other}/tasks",
            "/api/{user}%2f%2e%2e%2f{other}/tasks",
            "/api/{user}%252F..%252F{other}/tasks",
            "/api/{user}%5C..%5C{other}/tasks",
            "/api/{user}\\..\\{other}/tasks",
            "/api/{user}..;/{other}/tasks",
            "/api/{user};/../{other}/tasks",
            "/api/{other};{user}/tasks",
            "/api/{other}%00{user}/tasks",
            "/api/{user}%00{other}/tasks",
            "/api/{other}%0d%0aX-User-Id:{user}/tasks",
            "/api/{user}%FF/tasks",
            "/api/{user}%C0%AF..%C0%AF{other}/tasks",
            "/api/{other}%20/tasks",
            "/api/%20{other}/tasks",
            "/api/{other}/tasks?user_id={user}",
            "/api/{other}/tasks#/api/{user}/tasks",
            "//api/{other}/tasks",
            "/api//{other}/tasks",
            "/api/{other}//tasks",
            "/./api/{other}/tasks",
            "/api/./{other}/tasks",
            "http://localhost/api/{other}/tasks",
            "http://{user}@localhost/api/{other}/tasks",
            "https://localhost:1/api/{other}/tasks/{task_id}",
            "/api/{other}/tasks/{task_id}",
            "/api/{user}/tasks/{task_id}",
            "/api/{user}/tasks/..%2F..%2F{other}%2Ftasks%2F{task_id}",
            "/api/{user}/tasks/%2e%2e/%2e%2e/{other}/tasks/{task_id}",
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    async def test_no_path_spelling_reaches_another_users_tasks(
        self,
        client: httpx.AsyncClient,
        secured_url: str,
        new_user: Callable[[], str],
        task: dict[str, Any],
        method: str,
        template: str,
    ) -> None:
        user, other = new_user(), task["user_id"]
        escaped = "".join(f"%{ord(letter):02X}" for letter in other)
        target = template.format(user=user, other=other, escaped=escaped, task_id=task["id"])

        [reply] = await converse(secured_url, head(method.encode(), target.encode(), authorization(user), CLOSE))

        assert_refusal(reply)
        assert task["title"].encode() not in reply.body
        assert (await client.get(f"/api/{other}/tasks")).json() == [task]

    @pytest.mark.parametrize(
        "template", ["/api/{other}/tasks", "/api/{escaped}/tasks", "http://localhost/api/{other}/tasks"]
    )
    async def test_the_owners_token_reaches_the_owners_tasks(
        self, secured_url: str, task: dict[str, Any], template: str
    ) -> None:
        other = task["user_id"]
        escaped = "".join(f"%{ord(letter):02X}" for letter in other)
        target = template.format(other=other, escaped=escaped)

        [reply] = await converse(secured_url, head(b"GET", target.encode(), authorization(other), CLOSE))

        assert (reply.status, json.loads(reply.body)) == (200, [task])

    @pytest.mark.parametrize(
        "segment",
        [
            "%",
            "%z",
            "%00",
            "%0d%0aSet-Cookie:%20a",
            "%FF",
            "%C0%AF",
            "%ED%A0%80",
            "%252F",
            "%2F",
            "..;",
            "\\",
            "a" * 9_000,
        ],
        ids=short,
    )
    @pytest.mark.parametrize("template", ["/{}", "/api/{}/tasks", "/api/ada/tasks/{}", "/docs/assets/{}"])
    async def test_an_unusual_path_segment_is_refused_and_not_repeated(
        self, base_url: str, template: str, segment: str
    ) -> None:
        [reply] = await converse(base_url, head(b"GET", template.format(segment).encode(), CLOSE))

        assert_refusal(reply)
        assert "set-cookie" not in reply.headers


def authorization(user: str) -> bytes:
    return f"Authorization: {bearer(user)['Authorization']}\r\n".encode()


OVERRIDES: Final = {
    "X-HTTP-Method-Override": "DELETE",
    "X-HTTP-Method": "DELETE",
    "X-Method-Override": "DELETE",
    "X-Original-URL": "/api/other/tasks",
    "X-Rewrite-URL": "/api/other/tasks",
    "X-Original-Method": "DELETE",
    "X-User-Id": "other",
    "X-Forwarded-User": "other",
    "X-Remote-User": "other",
    "X-Forwarded-For": "203.0.113.7",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Proto": "gopher",
    "X-Script-Name": "/evil",
    "Forwarded": "for=203.0.113.7;host=evil.example;proto=https",
    "X-Real-IP": "203.0.113.7",
    "Via": "1.1 evil.example",
}


class TestOverrides:
    """Headers and parameters that some frameworks and proxies obey."""

    @pytest.mark.parametrize("name", OVERRIDES)
    async def test_an_override_header_has_no_effect(
        self, secured_url: str, user: str, task: dict[str, Any], name: str
    ) -> None:
        headers = bearer(user)
        async with httpx.AsyncClient(base_url=secured_url) as client:
            plain = await client.get(f"/api/{user}/tasks", headers=headers)
            reply = await client.get(f"/api/{user}/tasks", headers={**headers, name: OVERRIDES[name]})
            created = await client.post(
                f"/api/{user}/tasks", headers={**headers, name: OVERRIDES[name]}, json={"title": "a"}
            )

        assert (plain.json(), plain.status_code) == ([task], 200)
        assert same(reply) == same(plain)
        assert created.status_code == 201
        assert created.headers["Location"] == f"/api/{user}/tasks/{created.json()['id']}"

    @pytest.mark.parametrize("name", OVERRIDES)
    async def test_an_override_header_does_not_replace_a_token(self, secured_url: str, user: str, name: str) -> None:
        async with httpx.AsyncClient(base_url=secured_url) as client:
            missing = await client.get("/api/other/tasks", headers={name: OVERRIDES[name]})
            foreign = await client.get("/api/other/tasks", headers={**bearer(user), name: OVERRIDES[name]})

        assert (missing.status_code, foreign.status_code) == (401, 403)

    @pytest.mark.parametrize(
        "query", ["_method=DELETE", "method=DELETE", "X-HTTP-Method-Override=DELETE", "user_id=other"]
    )
    async def test_an_override_parameter_is_ignored_and_named(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any], query: str
    ) -> None:
        reply = await client.get(f"{path}?{query}")

        assert (reply.status_code, reply.json()) == (200, task)
        assert reply.headers["Ignored-Fields"] == query.partition("=")[0]
        assert (await client.get(path)).status_code == 200

    async def test_a_form_with_a_method_field_is_415(self, client: httpx.AsyncClient, tasks: str, path: str) -> None:
        reply = await client.post(tasks, data={"_method": "DELETE", "title": "a"})

        assert reply.status_code == 415
        assert (await client.get(path)).status_code == 200


def same(reply: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """The parts of a reply that do not change with every request."""
    headers = {name: value for name, value in reply.headers.items() if name not in {"date", "x-request-id"}}
    return reply.status_code, reply.content, headers


class TestExpect:
    EXPECT: Final = b"Expect: 100-continue\r\nContent-Length: 14\r\n"

    async def test_a_request_without_a_token_gets_no_100_continue(self, secured_url: str) -> None:
        [reply] = await converse(secured_url, head(b"POST", b"/api/ada/tasks", JSON, self.EXPECT, CLOSE))

        assert_refusal(reply, 401)

    async def test_a_request_with_a_token_gets_100_continue(self, secured_url: str, user: str) -> None:
        path = f"/api/{user}/tasks".encode()
        connection = await Connection.open(secured_url)
        await connection.send(head(b"POST", path, JSON, authorization(user), self.EXPECT, CLOSE))
        async with asyncio.timeout(20):
            await connection.reader.readuntil(b"\r\n\r\n")
        await connection.send(b'{"title": "a"}')

        assert [reply.status for reply in await connection.end()] == [100, 201]

    async def test_a_too_large_body_is_413_before_it_is_sent(self, base_url: str) -> None:
        fields = b"Content-Length: 99999999\r\nExpect: 100-continue\r\n"

        [reply] = await converse(base_url, head(b"POST", b"/api/ada/tasks", JSON, fields, CLOSE))

        assert_refusal(reply, 413)


class TestUpgrade:
    WEBSOCKET: Final = (
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    H2C: Final = b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"

    @pytest.mark.parametrize("fields", [WEBSOCKET, H2C, b"Upgrade: TLS/1.3\r\n"], ids=short)
    async def test_an_upgrade_request_stays_http_and_needs_a_token(self, secured_url: str, fields: bytes) -> None:
        connection = await Connection.open(secured_url)

        first = await connection.ask(head(b"GET", b"/api/ada/tasks", fields, b"Connection: Upgrade\r\n"))
        second = await connection.ask(head(b"GET", LIVE, CLOSE))

        assert (first.status, second.status) == (401, 200)
        assert "upgrade" not in first.headers
        connection.writer.close()

    @pytest.mark.parametrize("fields", [WEBSOCKET, H2C], ids=short)
    async def test_the_body_of_an_upgrade_request_is_read(self, base_url: str, tasks: str, fields: bytes) -> None:
        request = head(b"POST", tasks.encode(), JSON, fields, b"Connection: Upgrade, close\r\nContent-Length: 14\r\n")

        [reply] = await converse(base_url, request + b'{"title": "a"}')

        assert reply.status == 201

    @pytest.mark.usefixtures("short_request_timeout")
    @pytest.mark.parametrize("fields", [WEBSOCKET, H2C], ids=short)
    async def test_an_upgrade_request_without_its_body_is_408(self, base_url: str, tasks: str, fields: bytes) -> None:
        request = head(b"POST", tasks.encode(), JSON, fields, b"Connection: Upgrade\r\nContent-Length: 14\r\n")

        [reply] = await converse(base_url, request)

        assert_refusal(reply, 408)

    @pytest.mark.parametrize(("method", "status"), [(b"POST", 400), (b"CONNECT", 405)])
    @pytest.mark.parametrize("fields", [WEBSOCKET, H2C], ids=short)
    async def test_the_body_of_an_upgrade_request_is_not_executed_as_a_request(
        self, client: httpx.AsyncClient, base_url: str, path: str, *, method: bytes, status: int, fields: bytes
    ) -> None:
        hidden = head(b"DELETE", path.encode())
        length = b"Content-Length: %d\r\n" % len(hidden)
        connection = await Connection.open(base_url)
        await connection.send(head(method, b"/api/ada/tasks", JSON, fields, b"Connection: Upgrade\r\n", length))

        await connection.send(hidden)

        assert [reply.status for reply in await connection.end()] == [status]
        assert (await client.get(path)).status_code == 200

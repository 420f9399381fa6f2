"""Where a request begins and ends: an ambiguous one is refused, and its connection is closed."""

import asyncio
import logging
from typing import Any
from unittest.mock import Mock

import asyncpg
import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from app.http.middleware import REFUSAL
from app.http.problems import install_error_handlers
from app.server.protocol import BoundedProtocol
from tests.server.support import (
    CHUNKED,
    CLOSE,
    HOST,
    LIVE,
    TASKS,
    Connection,
    assert_refusal,
    converse,
    head,
    post,
    waits_for_a_lock,
)
from tests.support import exchange, outermost, short

MALFORMED = (
    b"nonsense\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # TLS
    b"GET /health/live\r\n\r\n",
    b"GET /health/live HTTP/1.1\r\n\r\n",
    *(b"GET /health/live HTTP/%s\r\n%s\r\n" % (version, HOST) for version in (b"0.0", b"0.9", b"1.", b"x")),
    *(head(b"GET", target) for target in (b"health/live", b"/health/\xff", b"http:///health/live", b"*")),
    *(
        head(b"GET", b"%s/health/live" % origin)
        for origin in (
            b"ftp://localhost",
            b"http://me@localhost",
            b"http://localhost:x",
            b"http://[::1",
            b"http://a%62",
        )
    ),
    *(head(method, LIVE) for method in (b" GET", b"G@T", b"GET\t")),
    *(head(b"GET", LIVE).replace(b"\r\n", end) for end in (b"\n", b"\r")),
    *(head(b"GET", LIVE, b"X: a%sSet-Cookie: b\r\n" % end) for end in (b"\n", b"\r", b"\r\n ", b"\0")),
    *(head(b"GET", LIVE, field) for field in (b"X : a\r\n", b"X\r\n", b"X\xff: a\r\n", b"X: \x1b[31m\r\n", HOST)),
    b"GET /health/live HTTP/1.0\r\n%s%s\r\n" % (HOST, HOST),
)
NOT_IMPLEMENTED = (
    *(head(method, LIVE) for method in (b"FOO", b"get", b"GETS", b"X-Y", b"DESCRIBE", b"GE", b"\r\nFOO")),
    *(head(b"CONNECT", target) for target in (b"localhost:443", b"http://localhost/")),
)
UNSUPPORTED_VERSIONS = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",  # the preface of HTTP/2
    *(b"GET /health/live HTTP/%s\r\n%s\r\n" % (version, HOST) for version in (b"2.0", b"2.1", b"3.0", b"9.9", b"2")),
    b"POST / HTTP/2.0\r\n%s%s\r\n0\r\n\r\n" % (HOST, CHUNKED),
)
LENGTHS = (b"", b"-1", b"+0", b"0x0", b"0,200", b"9" * 30, b"\xb2", b"0\r\nContent-Length: 0")
CODINGS = (
    *(b"chunked\t", b"chunked ", b"chunked, identity", b"chunked, chunked", b"chunked;a=b", b"\r\n chunked"),
    *(b"gzip, ", b"g zip, chunked"),
)
UNKNOWN_CODINGS = (b"xchunked", b"identity", b"gzip, chunked", b"gzip\r\nTransfer-Encoding: chunked")
SIZES = (b"-1", b"0x0", b" 0", b"0_0", b"", b"f" * 17, b"0\n", b"0;a\0")
END = b"0\r\n\r\n"
EXPECTING = post(b"Content-Length: 2\r\n", b"Expect: 100-continue\r\n")
AMBIGUOUS = (  # the status, the headers, and the beginning of the body, before a hidden request
    *((501, b"Transfer-Encoding: %s\r\n" % coding, END) for coding in UNKNOWN_CODINGS),
    *((400, b"Content-Length: %s\r\n" % length, b"") for length in LENGTHS),
    *((400, field, b"") for field in (b"Content-Length : 0\r\n", b"Content-Length: 0\n", b"X: a\r\rY: ")),
    *((400, b"Transfer-Encoding: %s\r\n" % coding, END) for coding in CODINGS),
    *((400, b"Content-Length: 5\r\nTransfer-Encoding: %s\r\n" % each, END) for each in (b"chunked", b"identity", b"")),
    (400, b"Transfer-Encoding: gzip\r\nContent-Length: 5\r\n", END),
    *((400, CHUNKED + field, END) for field in (b"Content-Length: 5\r\n", CHUNKED, b"Transfer-Encoding: identity\r\n")),
    (400, b"Transfer-Encoding : chunked\r\n", END),
    *((400, CHUNKED, size + b"\r\n\r\n") for size in SIZES),
    *((400, CHUNKED, end) for end in (b"0\n\n", b"0\r\n\n")),
)


@pytest.mark.parametrize("content", MALFORMED, ids=lambda content: ascii(content.replace(HOST, b""))[:60])
async def test_a_malformed_request_is_400_and_ends_the_connection(base_url: str, content: bytes) -> None:
    [reply] = await converse(base_url, content)

    assert_refusal(reply, 400)
    assert reply.json()["type"] == "urn:problem-type:malformed-request"


@pytest.mark.parametrize("content", NOT_IMPLEMENTED, ids=short)
async def test_a_method_that_no_resource_supports_is_501_and_ends_the_connection(base_url: str, content: bytes) -> None:
    [reply] = await converse(base_url, content)

    assert_refusal(reply, 501)
    assert reply.json()["type"] == "urn:problem-type:not-implemented"


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([b"F", b"~", b"O", b" / HTTP/1.1\r\n"], 501),
        ([b"GET", b"S / HTTP/1.1\r\n"], 501),
        ([b"GE", b" / HTTP/1.1\r\n"], 501),
        ([b"DESC", b"RIBE ", b"/", b" HTTP/1.1\r\n"], 501),
        ([b"G", b"@T / HTTP/1.1\r\n"], 400),
        ([b"GET", b"\t/ HTTP/1.1\r\n"], 400),
        ([b"PRI * HT", b"TP/2.0\r\n\r\n", b"SM\r\n\r\n"], 505),
        ([b"GET / HTTP/", b"2", b".0\r\n", HOST, b"\r\n"], 505),
    ],
    ids=short,
)
async def test_a_refusal_does_not_depend_on_how_the_bytes_arrive(pieces: list[bytes], status: int) -> None:
    refusals: list[int] = []

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        refusals.append(scope[REFUSAL].status)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    connection = opened(app)
    for piece in pieces:
        connection.data_received(piece)
    await asyncio.gather(*connection.tasks)

    assert refusals == [status]
    connection.connection_lost(None)


@pytest.mark.parametrize("content", UNSUPPORTED_VERSIONS, ids=short)
async def test_another_major_version_is_505_and_ends_the_connection(base_url: str, content: bytes) -> None:
    [reply] = await converse(base_url, content)

    assert_refusal(reply, 505)
    assert reply.json()["type"] == "urn:problem-type:http-version-not-supported"


@pytest.mark.parametrize(
    "content",
    [head(b"HEAD", LIVE, HOST), head(b"HEAD", b"health/live"), head(b"HEAD", LIVE, CHUNKED) + b"ZZ"],
    ids=short,
)
async def test_a_refused_head_request_gets_no_body(secured_url: str, content: bytes) -> None:
    status, fields, body = await exchange(httpx.URL(secured_url), content)

    assert (status, body) == (400, b"")
    assert b"\r\ncontent-type: application/problem+json\r\n" in fields


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"GET /health/live HTTP/1.0\r\n%s\r\n" % HOST, 200),
        (b"\r\n\r\n" + head(b"GET", LIVE, CLOSE), 200),
        (b"GET /health/live HTTP/1.2\r\n%s%s\r\n" % (HOST, CLOSE), 200),
        (b"GET  /health/live HTTP/1.9\r\n%s%s\r\n" % (HOST, CLOSE), 200),
        (head(b"GET", b"http://localhost/health/live", CLOSE), 200),
        (head(b"GET", b"HTTPS://127.0.0.1:8000/health/live", CLOSE), 200),
        (head(b"GET", b"http://[::1]:80//health/live", CLOSE), 200),
        (head(b"GET", b"http://localhost", CLOSE), 307),
        (head(b"GET", b"http://localhost?a=/b://c", CLOSE), 307),
        (head(b"GET", LIVE, b"X: \xff\r\n", CLOSE), 200),
        (head(b"GET", LIVE, b"X:\r\n", CLOSE), 200),
        (head(b"OPTIONS", b"*", CLOSE), 404),
        (head(b"TRACE", LIVE, CLOSE), 405),
        (head(b"PROPFIND", TASKS, CLOSE), 405),
    ],
    ids=short,
)
async def test_an_unusual_but_valid_request_is_answered(base_url: str, content: bytes, expected: int) -> None:
    [reply] = await converse(base_url, content)

    assert reply.status_code == expected


def opened(app: ASGIApp) -> Any:
    """Returns a connection whose transport only records its calls."""
    connection = BoundedProtocol(uvicorn.Config(app, log_config=None), ServerState(), {})
    connection.connection_made(Mock(**{"get_extra_info.return_value": None, "is_closing.return_value": False}))
    return connection


async def test_white_space_around_a_value_is_no_part_of_it(base_url: str, tasks: str) -> None:
    """RFC 9110 section 5.5. The parser does not remove what follows the value."""
    sent = {"Host": "localhost", "X-Request-ID": "mine", "Expect": "100-continue", "Connection": "close"}
    fields = "".join(f"{name}:\t {value} \t\r\n" for name, value in sent.items())
    start = f"POST {tasks} HTTP/1.1\r\n{fields}Content-Type: application/json\r\nContent-Length: 13\r\n\r\n"

    interim, reply = await converse(base_url, start.encode(), b'{"title":"x"}')

    assert (interim.status_code, reply.status_code, reply.headers["X-Request-ID"]) == (100, 201, "mine")


class TestSmuggling:
    """A hidden request is not executed: a proxy may have forwarded it as a part of another user's request."""

    @pytest.mark.parametrize(
        ("status", "fields", "before"),
        AMBIGUOUS,
        ids=short,
    )
    async def test_a_request_hidden_in_an_ambiguous_body_is_not_executed(
        self, client: httpx.AsyncClient, base_url: str, path: str, status: int, fields: bytes, before: bytes
    ) -> None:
        [reply] = await converse(base_url, post(fields) + before + head(b"DELETE", path.encode()))

        assert_refusal(reply, status)
        assert (await client.get(path)).status_code == 200

    async def test_a_pipelined_request_is_executed(self, client: httpx.AsyncClient, base_url: str, path: str) -> None:
        replies = await converse(base_url, post(b"Content-Length: 0\r\n") + head(b"DELETE", path.encode(), CLOSE))

        assert [reply.status_code for reply in replies] == [422, 204]
        assert (await client.get(path)).status_code == 404

    @pytest.mark.parametrize("trailer", [b"X: a", b"X-Request-ID: late", b"Host: b", b"Prefer: handling=strict"])
    async def test_a_body_of_valid_chunks_is_read_and_its_trailer_ignored(
        self, base_url: str, tasks: str, trailer: bytes
    ) -> None:
        body = b'c;a=b\r\n{"title": "a\r\n0002\r\n"}\r\n0\r\n%s\r\n\r\n' % trailer

        [reply] = await converse(base_url, post(b"Transfer-Encoding: Chunked\r\n", CLOSE, path=tasks.encode()) + body)

        assert (reply.status_code, reply.json()["title"]) == (201, "a")
        assert reply.headers["X-Request-ID"] != "late"
        assert "Preference-Applied" not in reply.headers


class TestPipelining:
    @pytest.mark.parametrize(
        ("rest", "others"),
        [
            (b"GARBAGE\r\n\r\n", 0),
            (post(CHUNKED) + b"ZZ\r\n", 0),
            (head(b"GET", LIVE) + post(CHUNKED) + b"ZZ\r\n", 1),
            (head(b"GET", LIVE) + head(b"GET", LIVE, HOST), 1),
            (head(b"GET", LIVE) * 101, 100),
        ],
        ids=["no request", "malformed body", "request with a malformed body", "ambiguous request", "101 requests"],
    )
    async def test_a_refused_pipelined_request_does_not_replace_the_replies_to_earlier_requests(
        self, base_url: str, database: asyncpg.Connection, path: str, rest: bytes, others: int
    ) -> None:
        connection = Connection(base_url)
        async with database.transaction():
            await database.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", path.rpartition("/")[2])
            await connection.send(head(b"PATCH", path.encode() + b"/complete") + rest)
            await waits_for_a_lock(database)
            await connection.send(head(b"DELETE", path.encode()))

        [reply, *later] = replies = await connection.end()
        assert (reply.status_code, reply.json()["completed"]) == (200, True)
        assert [other.json()["status"] for other in later] == ["live"] * others
        assert replies[-1].headers["Connection"] == "close"

    @pytest.mark.parametrize("is_early", [False, True])
    @pytest.mark.parametrize(
        "trailer", [b"Connection: close", b"Connection: foo, close", b"Proxy-Connection: close", b"Upgrade: h2c"]
    )
    async def test_a_request_behind_a_trailer_is_answered(
        self, secured_url: str, trailer: bytes, *, is_early: bool
    ) -> None:
        connection = Connection(secured_url)
        beginning, rest = post(CHUNKED), b"1\r\n0\r\n0\r\n%s\r\n\r\n" % trailer

        first = await connection.ask(beginning if is_early else beginning + rest)
        await connection.send((rest if is_early else b"") + head(b"GET", LIVE, CLOSE))

        [second] = await connection.end()
        assert (first.status_code, second.status_code) == (401, 200)
        assert "Connection" not in first.headers

    @pytest.mark.parametrize("rest", [b"x\r\n", b"1;" + b"a" * 40_000], ids=short)
    async def test_an_answered_request_gets_no_second_reply_for_the_rest_of_its_body(
        self, secured_url: str, rest: bytes
    ) -> None:
        connection = Connection(secured_url)
        first = await connection.ask(post(CHUNKED))

        await connection.send(rest)

        assert (first.status_code, await connection.end()) == (401, [])

    async def test_a_request_refused_in_its_body_does_not_also_get_the_reply_of_the_application(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "app.requests")

        async def app(_scope: Scope, receive: Receive, send: Send) -> None:
            assert (await receive())["type"] == "http.disconnect"  # the body is refused
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        api = FastAPI()
        install_error_handlers(api)
        connection = opened(outermost(app, api))  # the client reads slowly, so that closing takes a while

        connection.data_received(post(CHUNKED))
        await asyncio.sleep(0)  # until the application waits for the body
        connection.data_received(b"ZZ\r\n")
        await asyncio.gather(*connection.tasks)

        written = b"".join(call.args[0] for call in connection.transport.write.call_args_list)
        assert written.startswith(b"HTTP/1.1 400 ")
        assert written.count(b"HTTP/1.1 ") == 1
        first, second = [vars(record) for record in caplog.records]
        assert first["request_id"] == second["request_id"]
        assert {first["problem"], second["problem"]} == {"malformed-request"}
        assert first["path"] == second["path"]
        connection.connection_lost(None)


class TestExpectation:
    """`Expect: 100-continue` (RFC 9110 section 10.1.1)."""

    async def test_a_reply_in_the_place_of_100_continue_ends_the_connection(self, secured_url: str) -> None:
        without, (complete, *_) = [
            await converse(secured_url, *pieces)
            for pieces in ([EXPECTING], [EXPECTING + b"{}" + head(b"GET", LIVE, CLOSE)])
        ]

        assert [(reply.status_code, reply.headers["Connection"]) for reply in without] == [(401, "close")]
        assert (complete.status_code, "Connection" in complete.headers) == (401, False)

    @pytest.mark.parametrize(("version", "statuses"), [(b"1.1", [100, 422]), (b"1.2", [100, 422]), (b"1.0", [422])])
    async def test_only_http_1_1_and_later_gets_100_continue(
        self, base_url: str, version: bytes, statuses: list[int]
    ) -> None:
        request = EXPECTING.replace(b"1.1", version).replace(HOST, HOST + CLOSE)

        assert [reply.status_code for reply in await converse(base_url, request + b"{}")] == statuses


@pytest.mark.parametrize(
    "fields",
    [
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    ],
    ids=short,
)
class TestUpgrade:
    async def test_an_upgrade_request_stays_http_and_needs_a_token(self, secured_url: str, fields: bytes) -> None:
        connection = Connection(secured_url)

        first = await connection.ask(head(b"GET", TASKS, fields, b"Connection: Upgrade\r\n"))
        second = await connection.ask(head(b"GET", LIVE))

        assert (first.status_code, second.status_code) == (401, 200)
        assert "Upgrade" not in first.headers
        connection.socket.close()

    @pytest.mark.parametrize("is_split", [False, True])
    @pytest.mark.parametrize(("method", "status"), [(b"POST", 201), (b"CONNECT", 405)])
    async def test_the_body_of_an_upgrade_request_is_not_read_as_another_request(
        self, base_url: str, tasks: str, fields: bytes, *, method: bytes, status: int, is_split: bool
    ) -> None:
        lines = b"Content-Type: application/json\r\nConnection: Upgrade\r\nContent-Length: 14\r\n"
        request, body = head(method, tasks.encode(), fields, lines), b'{"title": "a"}'

        [reply] = await converse(base_url, *([request, body] if is_split else [request + body]))

        assert (reply.status_code, reply.headers["Connection"]) == (status, "close")

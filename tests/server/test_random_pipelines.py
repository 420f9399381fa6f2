"""Random requests behind each other: each gets its own reply in order, or the last reply says `Connection: close`.

The service's timeouts are hours, so that a dropped request is found because the service waits for nothing but bytes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from http.client import HTTPResponse
from io import BytesIO
from typing import Any, ClassVar, Final, NamedTuple

import pytest
from httptools import HttpParserUpgrade
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core.config import Settings
from app.server.protocol import SERVER_OPTIONS, BoundedProtocol
from tests.server.support import CHUNKED, CLOSE, HOST, LIVE, Connection
from tests.support import SECRET, serving, token

pytestmark = pytest.mark.unmeasured

EXPECT: Final = b"Expect: 100-continue\r\n"
UPGRADE: Final = (b"Connection: Upgrade\r\n", b"Upgrade: h2c\r\n")
CLOSING: Final = (CLOSE, b"Connection: foo, close\r\n", b"Proxy-Connection: close\r\n")
# The rest of a body, after which a request is refused.
BROKEN: Final = (
    b"ZZ\r\n",
    b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"0\r\nContent-Length: 5\r\n\r\n",
    b"0\r\nX : a\r\n\r\n",
)
METHODS: Final = (b"GET", b"GET", b"HEAD", b"POST", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT")
TARGETS: Final = (LIVE, b"/api/pipeline/tasks?limit=1", b"/nope", b"http://localhost?a", b"/api%2Fada")
HIDDEN: Final = b"GET /health/live HTTP/1.1\r\nX-Request-ID: hidden\r\nHost: localhost\r\n\r\n"
CONTENTS: Final = (b'{"title": "a"}', HIDDEN, b"x" * 9_000)
AUTHORIZED: Final = b"Authorization: Bearer %s\r\n" % token("pipeline").encode()


class Watched(BoundedProtocol):
    """Tells whether the service waits for more bytes of a client."""

    by_client: ClassVar[dict[Any, "Watched"]] = {}
    timeout_keep_alive = property(lambda _: 3_600, lambda *_: None)
    received = 0
    lost = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.by_client[transport.get_extra_info("peername")] = self

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        super().data_received(data)

    def _ignore_upgrade(self, upgrade: HttpParserUpgrade, data: bytes) -> None:
        self.received -= len(data) - upgrade.args[0]  # is received again
        super()._ignore_upgrade(upgrade, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        super().connection_lost(exc)

    def has_read(self, size: int) -> bool:
        return self.lost or self.received == size

    def has_settled(self, size: int) -> bool:
        """Whether the service does nothing for this client, its only one, until more bytes arrive."""
        return self.lost or (self.received == size and not self.tasks and not self.transport.is_closing())


class Asked(NamedTuple):
    """A request in two pieces. `number` is in its `X-Request-ID`."""

    number: int
    method: bytes
    head: bytes
    body: bytes
    is_broken: bool
    waits: bool  # sends its body only after `100 Continue`
    cuts: list[float]  # where the client pauses
    is_joined: bool  # the client does not pause after the request


class Reply(NamedTuple):
    request_id: str | None
    status: int
    closes: bool


HEAD_FIELDS: Final = (*[AUTHORIZED, b"Content-Type: application/json\r\n", b"X: \xff\r\n"] * 3, EXPECT, *UPGRADE, CLOSE)
TRAILERS: Final = (*UPGRADE, *CLOSING, EXPECT, HOST, b"X: a\r\n", AUTHORIZED)


def rarely(draw: st.DrawFn, *, one_in: int) -> bool:
    return draw(st.integers(1, one_in)) == one_in


def chunked(draw: st.DrawFn, content: bytes, end: bytes) -> bytes:
    at, extension = draw(st.integers(1, len(content))), draw(st.sampled_from([b"", b";a=b", b';a="b"']))
    pieces = [piece for piece in (content[:at], content[at:]) if piece]
    return b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces) + end


def ask(draw: st.DrawFn, number: int) -> Asked:
    method, target = draw(st.sampled_from(METHODS)), draw(st.sampled_from(TARGETS))
    version = b"1.0" if rarely(draw, one_in=15) else b"1.1"
    fields = draw(st.lists(st.sampled_from(HEAD_FIELDS), max_size=3, unique=True))
    content, body, is_broken = draw(st.sampled_from(CONTENTS)), b"", False
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    if framing == "length":
        fields.append(b"Content-Length: %d\r\n" % len(content))
        body = content
    elif framing == "chunked":
        fields.append(CHUNKED)
        is_broken = rarely(draw, one_in=5) or version == b"1.0"
        trailers = b"".join(draw(st.lists(st.sampled_from(TRAILERS), max_size=2)))
        body = chunked(draw, content, draw(st.sampled_from(BROKEN)) if is_broken else b"0\r\n%s\r\n" % trailers)
    if rarely(draw, one_in=15):
        fields, is_broken = [*fields, b"X: a\r\n", b"Y : a\r\n"], True
    head = b"%s %s HTTP/%s\r\nX-Request-ID: %d\r\n%s" % (method, target, version, number, HOST)
    waits = EXPECT in fields and version == b"1.1" and bool(body) and draw(st.booleans())
    cuts = draw(st.just([]) | st.lists(st.floats(0, 1), max_size=2).map(sorted))
    return Asked(number, method, head + b"".join(fields) + b"\r\n", body, is_broken, waits, cuts, draw(st.booleans()))


@st.composite
def pipelines(draw: st.DrawFn) -> list[Asked]:
    return [ask(draw, number) for number in range(draw(st.integers(2, 6)))]


class Client(Connection):
    """Sends requests in pieces, until the service closes the connection."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._sent = 0
        self._waiting = b""

    async def converse(self, asked: Sequence[Asked]) -> tuple[list[Reply], bool]:
        """Returns the replies, and whether the service has closed the connection."""
        watched = await self._watched()
        content = bytearray()
        reading = asyncio.create_task(self._read(content))
        for request in asked:
            if request.waits:
                await self._flush(watched)
                await spin(lambda: watched.has_settled(self._sent))
                await self._send_after_100_continue(request, watched, content)
            else:
                await self._send_in_pieces(request, watched)
        await self._flush(watched)
        await spin(lambda: watched.has_settled(self._sent))
        closed = watched.lost
        with suppress(OSError):
            self.socket.shutdown(1)  # the service has answered everything, and closes the connection now
        await reading
        self.socket.close()
        return [*parsed(bytes(content), [request.method for request in asked])], closed

    async def _watched(self) -> Watched:
        await spin(lambda: self.socket.getsockname() in Watched.by_client)
        return Watched.by_client.pop(self.socket.getsockname())

    async def _read(self, content: bytearray) -> None:
        with suppress(ConnectionError):
            while data := await self._receive():
                content += data

    async def _send_after_100_continue(self, request: Asked, watched: Watched, content: bytearray) -> None:
        before = content.count(b" 100 Continue\r\n")
        self._waiting = request.head
        await self._flush(watched)
        await spin(lambda: watched.has_settled(self._sent) or content.count(b" 100 Continue\r\n") > before)
        if content.count(b" 100 Continue\r\n") > before:
            self._waiting = request.body

    async def _send_in_pieces(self, request: Asked, watched: Watched) -> None:
        content, begin = request.head + request.body, 0
        for cut in (int(cut * len(content)) for cut in request.cuts):
            self._waiting += content[begin:cut]
            begin = cut
            await self._flush(watched)
        self._waiting += content[begin:]
        if not request.is_joined:
            await self._flush(watched)

    async def _flush(self, watched: Watched) -> None:
        await self.send(self._waiting)
        self._sent += len(self._waiting)
        self._waiting = b""
        await spin(lambda: watched.has_read(self._sent))
        for _ in range(5):
            await asyncio.sleep(0)  # the service may answer before the next piece


async def spin(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # the service has no event for it
            await asyncio.sleep(0)


class Stream(BytesIO):
    """A socket for HTTPResponse, which would close it after one reply."""

    def makefile(self, _mode: str) -> "Stream":
        return self

    def close(self) -> None: ...


def parsed(content: bytes, methods: Sequence[bytes]) -> Iterator[Reply]:
    stream = Stream(content)
    for method in methods:
        if stream.tell() < len(content):
            reply = HTTPResponse(stream, method=method.decode())  # type: ignore[arg-type]
            reply.begin()
            reply.read()
            yield Reply(reply.headers["X-Request-ID"], reply.status, reply.headers["Connection"] == "close")
    assert stream.read() == b""


def fault(asked: Sequence[Asked], replies: Sequence[Reply], *, closed: bool) -> str | None:
    """Returns what is wrong with the replies."""
    if [reply.request_id for reply in replies] != [str(request.number) for request in asked[: len(replies)]]:
        return "a reply is not that of its request"
    if any(reply.closes for reply in replies[:-1]):
        return "a reply follows the last one"
    says = bool(replies) and replies[-1].closes
    if says != closed:
        # It cannot be said if the reply was sent before the rest of the body, which is malformed.
        is_early = closed and asked[len(replies) - 1].is_broken
        return None if is_early else "the connection is closed without notice, or stays open in spite of it"
    return None if closed or len(replies) == len(asked) else "a request is not answered"


random: Final = settings(
    max_examples=100,
    deadline=None,  # the machine may be busy
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
async def service(configure: Callable[..., Settings]) -> AsyncIterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SERVER_OPTIONS, "http", Watched)
        patch.setattr("app.server.protocol.REQUEST_TIMEOUT", 3_600)
        async with serving(configure(auth_jwt_secret=SECRET)) as url:
            yield url


@random
@given(asked=pipelines())
async def test_each_request_is_answered_in_order_or_the_last_reply_says_that_the_connection_ends(
    service: str, asked: list[Asked]
) -> None:
    replies, closed = await Client(service).converse(asked)

    assert fault(asked, replies, closed=closed) is None, replies


def let_the_parser_decide(connection: BoundedProtocol) -> None:
    connection.parser.set_dangerous_leniencies(lenient_keep_alive=False)


def rely_on_the_body(connection: BoundedProtocol) -> None:
    connection.cycle.keep_alive = connection.parser.should_keep_alive()


def refuse_silently(connection: BoundedProtocol) -> None:
    earlier = connection._earlier if connection._in_body else connection.cycle  # noqa: SLF001
    earlier.keep_alive = True  # type: ignore[union-attr]  # or the connection is closed


@pytest.fixture
def found() -> Iterator[list[str]]:
    """The faults of all examples, of which there has to be one."""
    faults: list[str] = []
    yield faults
    assert faults


@pytest.mark.ci
@pytest.mark.parametrize(
    ("after", "defect"),
    [
        ("connection_made", let_the_parser_decide),
        ("on_headers_complete", rely_on_the_body),
        ("_refuse", refuse_silently),
    ],
)
@settings(random, derandomize=True)
@given(asked=pipelines())
async def test_a_protocol_with_a_defect_is_found(
    service: str, found: list[str], after: str, defect: Callable[[BoundedProtocol], None], asked: list[Asked]
) -> None:
    method = getattr(BoundedProtocol, after)

    def spoilt(self: BoundedProtocol, *arguments: Any) -> None:
        method(self, *arguments)
        defect(self)

    if not found:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BoundedProtocol, after, spoilt)
            replies, closed = await Client(service).converse(asked)
        found += filter(None, [fault(asked, replies, closed=closed)])

"""Bounds of a request: its head, its headers, its trailer, its body. A flood costs little memory."""

import asyncio
import ctypes
import gc
from pathlib import Path
from typing import Final

import pytest

from tests.server.support import (
    CHUNKED,
    CLOSE,
    LIVE,
    Connection,
    assert_alive,
    assert_refusal,
    converse,
    head,
    post,
)

SMALL: Final = b"X: a\r\n"
FLOOD: Final = 2_000_000  # bytes
PIECES: Final = [b"a" * 1_000] * (FLOOD // 1_000)
LARGE_HEADS: Final = {
    "a long header": [head(b"GET", LIVE)[:-2] + b"X: " + b"a" * FLOOD],
    "a long header in pieces": [head(b"GET", LIVE)[:-2] + b"X: ", *PIECES],
    "a long name": [head(b"GET", LIVE)[:-2] + b"a" * FLOOD],
    "100,000 headers in pieces": [head(b"GET", LIVE)[:-2], *[SMALL * 100] * 1_000],
    "101 headers": [head(b"GET", LIVE)[:-2] + b"X:\r\n" * 101],
    "a long path": [b"GET /" + b"a" * FLOOD],
    "a long path in pieces": [b"GET /", *PIECES],
}


def sized(size: int) -> bytes:
    """A request whose target and headers, without the separators, have this many bytes."""
    others = len(LIVE) + len("HostlocalhostConnectioncloseX")
    return head(b"GET", LIVE, CLOSE, b"X: %s\r\n" % (b"a" * (size - others)))


class TestHead:
    @pytest.mark.parametrize(("size", "status"), [(32_768, 200), (32_769, 431)])
    async def test_a_head_may_have_32768_bytes(self, base_url: str, size: int, status: int) -> None:
        [reply] = await converse(base_url, sized(size))

        assert reply.status_code == status

    @pytest.mark.parametrize(("count", "status"), [(100, 200), (101, 431)])
    async def test_a_request_may_have_100_headers(self, base_url: str, count: int, status: int) -> None:
        [reply] = await converse(base_url, head(b"GET", LIVE, CLOSE, SMALL * (count - 2)))

        assert reply.status_code == status

    @pytest.mark.parametrize("pieces", LARGE_HEADS.values(), ids=LARGE_HEADS)
    async def test_a_head_is_431_before_it_is_complete(self, base_url: str, pieces: list[bytes]) -> None:
        [reply] = await converse(base_url, *pieces)

        assert_refusal(reply, 431)


class TestTrailer:
    @pytest.mark.parametrize(("size", "status"), [(32_768, 422), (32_769, 431)])
    async def test_a_trailer_in_one_piece_with_the_body_may_have_32768_bytes(
        self, base_url: str, size: int, status: int
    ) -> None:
        body = b'c\r\n{"title":""}\r\n0\r\nX: %s\r\n\r\n' % (b"a" * (size - 1))

        [reply] = await converse(base_url, post(CHUNKED, CLOSE) + body)

        assert reply.status_code == status

    async def test_two_bodies_on_one_connection_have_a_trailer_each(self, base_url: str) -> None:
        request = post(CHUNKED) + b'c\r\n{"title":""}\r\n0\r\nX: %s\r\n\r\n' % (b"a" * 20_000)
        connection = Connection(base_url)

        assert [(await connection.ask(request)).status_code for _ in range(2)] == [422, 422]
        connection.socket.close()


class TestBody:
    @pytest.mark.parametrize("size", [b"10001", b"ffffffffffffffe"])
    async def test_a_large_chunk_is_413_once_the_body_limit_is_exceeded(self, base_url: str, size: bytes) -> None:
        [reply] = await converse(base_url, post(CHUNKED, CLOSE) + size + b"\r\n", b"a" * 65_537)

        assert reply.status_code == 413

    @pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
    async def test_a_content_length_over_the_limit_is_413_before_the_body_is_sent(
        self, base_url: str, expect: bytes
    ) -> None:
        [reply] = await converse(base_url, post(b"Content-Length: 65537\r\n", expect, CLOSE))

        assert_refusal(reply, 413)


FLOODS: Final = LARGE_HEADS | {
    "a long method": [b"G" * FLOOD],
    "blank lines": [b"\r\n" * (FLOOD // 2)],
    "a long chunk extension": [post(CHUNKED) + b"1;", *PIECES],
    "many chunk extensions": [post(CHUNKED), *[b"1;%s\r\na\r\n" % (b"a" * 30_000)] * (3 * FLOOD // 30_000)],
    "zeros before a chunk size": [post(CHUNKED) + b"0" * FLOOD],
    "trailers": [post(CHUNKED) + b"0\r\n", *[SMALL * 100] * (FLOOD // 600)],
    "trailers in one piece with a body": [post(CHUNKED) + b"1\r\n{\r\n0\r\n" + b"X:\r\n" * 60_000],
    "a long body": [post(b"Content-Length: 999999999\r\n"), *[b"a" * 65_536] * 200],
    "a long body in chunks": [post(CHUNKED), *[b"10000\r\n%s\r\n" % (b"a" * 65_536)] * 200],
}
CLIENTS: Final = 20
GROWTH: Final = 24  # MiB, including the memory of the clients; the clients together send at least 40 MB


class Memory:
    """The peak memory of this process, which includes the service."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # memory that earlier tests freed would hide growth
        Path("/proc/self/clear_refs").write_text("5")  # see proc_pid_clear_refs(5)
        self._before = self._peak()

    @property
    def growth(self) -> float:
        return (self._peak() - self._before) / 1024

    @staticmethod
    def _peak() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])


class TestFlood:
    @pytest.mark.parametrize("pieces", FLOODS.values(), ids=FLOODS)
    async def test_a_flood_is_refused_within_a_memory_limit(
        self, base_url: str, pieces: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.server.protocol.REQUEST_TIMEOUT", 0.2)  # some of these requests never end
        memory = Memory()

        talks = await asyncio.gather(*(converse(base_url, *pieces) for _ in range(CLIENTS)))

        assert memory.growth < GROWTH
        for replies in talks:
            assert len(replies) <= 1
            assert [reply for reply in replies if not 400 <= reply.status_code < 500] == []
        await assert_alive(base_url)

    async def test_the_memory_measurement_detects_kept_requests(self, base_url: str) -> None:
        memory = Memory()
        kept = []
        for _ in range(CLIENTS):
            kept.append(b"a" * FLOOD)
            await assert_alive(base_url)

        assert memory.growth > len(kept) * FLOOD / 1024**2 - 8 > GROWTH

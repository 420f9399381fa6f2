"""Bounds of a request: its head, its headers, its trailer, its body."""

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
PIECES: Final = [b"a" * 1_000] * 2_000
FLOODS: Final = {
    "a long header": [head(b"GET", LIVE)[:-2] + b"X: ", *PIECES],
    "a long name": [head(b"GET", LIVE)[:-2], *PIECES],
    "many headers": [head(b"GET", LIVE)[:-2], *[SMALL * 100] * 1_000],
    "101 headers": [head(b"GET", LIVE)[:-2] + b"X:\r\n" * 101],
    "a long path": [b"GET /", *PIECES],
    "a long path in one piece": [b"GET /" + b"a" * 2_000_000],
    "blank lines": [b"\r\n" * 1_000_000],
    "a long chunk extension": [post(CHUNKED) + b"1;", *PIECES],
    "zeros before a chunk size": [post(CHUNKED) + b"0" * 2_000_000],
    "trailers": [post(CHUNKED) + b"0\r\n", *[SMALL * 100] * 3_000],
    "trailers in one piece with a body": [post(CHUNKED) + b"1\r\n{\r\n0\r\n" + b"X:\r\n" * 60_000],
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


@pytest.mark.parametrize("pieces", FLOODS.values(), ids=FLOODS)
async def test_a_flood_is_431_before_it_ends(base_url: str, pieces: list[bytes]) -> None:
    [reply] = await converse(base_url, *pieces)

    assert_refusal(reply, 431)
    await assert_alive(base_url)


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

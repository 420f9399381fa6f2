"""Bounds of a request: its head, its headers, its trailer, its body."""

from typing import Final

import pytest

from tests.server.support import (
    CHUNKED,
    CLOSE,
    LIVE,
    Connection,
    assert_refusal,
    converse,
    head,
    post,
)

SMALL: Final = b"X: a\r\n"
OTHERS: Final = len(LIVE) + len("HostlocalhostConnectioncloseX")  # without the separators
PIECES: Final = [b"a" * 1_000] * 2_000
FLOODS: Final = {
    "a long header": [head(b"GET", LIVE)[:-2] + b"X: ", *PIECES],
    "101 headers": [head(b"GET", LIVE)[:-2] + b"X:\r\n" * 101],
    "a long path": [b"GET /" + b"a" * 2_000_000],
    "blank lines": [b"\r\n" * 1_000_000],
    "a long chunk extension": [post(CHUNKED) + b"1;", *PIECES],
    "trailers": [post(CHUNKED) + b"0\r\n", *[SMALL * 100] * 3_000],
}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"X: %s\r\n" % (b"a" * (32_768 - OTHERS)), 200),
        (b"X: %s\r\n" % (b"a" * (32_769 - OTHERS)), 431),
        (SMALL * 98, 200),
        (SMALL * 99, 431),
    ],
    ids=["32768 bytes", "32769 bytes", "100 headers", "101 headers"],
)
async def test_a_head_may_have_32768_bytes_and_100_headers(base_url: str, fields: bytes, status: int) -> None:
    [reply] = await converse(base_url, head(b"GET", LIVE, CLOSE, fields))

    assert reply.status_code == status


@pytest.mark.parametrize("pieces", FLOODS.values(), ids=FLOODS)
async def test_a_flood_is_431_before_it_ends(base_url: str, pieces: list[bytes]) -> None:
    [reply] = await converse(base_url, *pieces)

    assert_refusal(reply, 431)


@pytest.mark.parametrize(("size", "status"), [(32_768, 422), (32_769, 431)])
async def test_each_trailer_in_one_piece_with_its_body_may_have_32768_bytes(
    base_url: str, size: int, status: int
) -> None:
    connection = Connection(base_url)
    requests = [post(CHUNKED) + b'c\r\n{"title":""}\r\n0\r\nX: %s\r\n\r\n' % (b"a" * (n - 1)) for n in (20_000, size)]

    assert [(await connection.ask(request)).status_code for request in requests] == [422, status]
    connection.socket.close()


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (b"Content-Length: 65537\r\n", b""),
        (b"Content-Length: 65537\r\nExpect: 100-continue\r\n", b""),
        (CHUNKED, b"ffffffffffffffe\r\n" + b"a" * 65_537),
    ],
    ids=["length", "expectation", "chunk"],
)
async def test_a_body_over_the_limit_is_413_before_it_is_complete(base_url: str, fields: bytes, body: bytes) -> None:
    [reply] = await converse(base_url, post(fields, CLOSE) + body)

    assert_refusal(reply, 413)

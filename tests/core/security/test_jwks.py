"""The client of an issuer's key set: finding a key, refreshing the set, and replies of a hostile server."""

import asyncio
import gc
import gzip
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import time
from typing import Any, Final, Self

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.utils import base64url_encode

import app
from app.core.config import Settings
from app.core.errors import IssuerUnavailableError
from app.core.security.jwks import JwksClient, _read_keys, check_jwks_url
from app.core.security.tokens import Key
from tests.support import make_settings, serving, short, until

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Jwk = dict[str, Any]

GIGABYTE: Final = 2**30
SIZE_MAX: Final = 65_536
KEYS_MAX: Final = 32
LIVE: Final = "/health/live"
READY: Final = "/health/ready"


def b64(value: bytes) -> str:
    return base64url_encode(value).decode()


def b64_int(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def rsa(bits: int, exponent: int = 65_537) -> Jwk:
    """A made-up public key of this size. Generating a real key of a large size would take long."""
    return {"kty": "RSA", "n": b64_int(2 ** (bits - 1) + 1), "e": b64_int(exponent)}


def elliptic(curve: ec.EllipticCurve) -> Jwk:
    return ECAlgorithm.to_jwk(ec.generate_private_key(curve).public_key(), as_dict=True)


def edwards(private: Ed25519PrivateKey | Ed448PrivateKey) -> Jwk:
    """The public key as Better Auth publishes it: without `alg` and `use`."""
    jwk = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
    return {name: jwk[name] for name in ("kty", "crv", "x")}


PRIVATE: Final = Ed25519PrivateKey.generate()
OTHER_PRIVATE: Final = Ed25519PrivateKey.generate()
ED: Final = edwards(PRIVATE)
OTHER_ED: Final = edwards(OTHER_PRIVATE)
EC: Final = elliptic(ec.SECP256R1())
RSA: Final = rsa(2_048)
OF_KIND: Final = {"EdDSA": ED, "ES256": EC, "RS256": RSA}

KEY: Final = {**ED, "kid": "a"}
OTHER_KEY: Final = {**OTHER_ED, "kid": "b"}
HEADER: Final = {"kid": "a", "alg": "EdDSA"}
OTHER_HEADER: Final = {"kid": "b", "alg": "EdDSA"}


def unknown(number: int) -> dict[str, str]:
    """The header of a token whose key no issuer publishes."""
    return {"kid": f"unknown-{number}", "alg": "EdDSA"}


def raw(content: bytes) -> Answer:
    """Answers with exactly these bytes."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()

    return answer


def reply(body: bytes, status: str = "200 OK", **headers: str) -> Answer:
    """Answers with this body, status and headers. A header's name has underscores for hyphens."""
    fields = {"content_length": str(len(body)), "content_type": "application/json", "connection": "close", **headers}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items()]
    return raw(f"HTTP/1.1 {status}\r\n{''.join(lines)}\r\n".encode() + body)


def document(*members: object) -> Answer:
    """Answers with a key set that has these members."""
    return reply(json.dumps({"keys": members}).encode())


async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Never answers, and ends when the client closes the connection."""
    await reader.read()


async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers one byte at a time, without end. No pause is long enough for a read timeout."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await _drip(b" ", writer)


async def drip_head(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with a header that never ends."""
    writer.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
    await _drip(b"a", writer)


async def _drip(byte: bytes, writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(byte)
        await writer.drain()
        await asyncio.sleep(0.005)


class Flood:
    """Sends a gigabyte unless the client stops reading, and counts the bytes."""

    def __init__(self, head: bytes, piece: bytes) -> None:
        self._head = head
        self._piece = piece
        self.sent = 0

    async def __call__(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._head)
        while self.sent < GIGABYTE:
            writer.write(self._piece)
            await writer.drain()
            self.sent += len(self._piece)


class Held:
    """Delays its answers until `release` is called, and counts the requests."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._released = asyncio.Event()
        self.waiting = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.waiting += 1
        await self._released.wait()
        await self._answer(reader, writer)

    def release(self) -> None:
        self._released.set()


class Issuer:
    """A server whose answer a test chooses. It keeps the head of each request."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[str] = []
        self.connections = 0
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        await until(lambda: self.connections == 0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/.well-known/jwks.json"

    async def start(self) -> None:
        """Listen. Another start uses the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Refuse new connections."""
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            await self.answer(reader, writer)
        except (OSError, EOFError):
            pass  # the client closed the connection
        finally:
            writer.close()
            self.connections -= 1


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def until_asked_again(issuer: Issuer) -> None:
    """Wait for two requests: the second one shows that the client has read the answer to the first."""
    asked = len(issuer.requests)
    await until(lambda: len(issuer.requests) >= asked + 2)


@asynccontextmanager
async def fetched(issuer: Issuer) -> AsyncIterator[JwksClient]:
    """A client that has fetched the keys."""
    async with JwksClient(issuer.url) as keys:
        await until(lambda: keys.ready)
        yield keys


async def found(keys: JwksClient, header: Mapping[str, Any]) -> Key:
    key = await keys.find(header)
    assert key is not None
    return key


def running_methods() -> list[str]:
    """The methods of JwksClient that run as tasks."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith("JwksClient.")]


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer that publishes KEY."""
    async with Issuer(document(KEY)) as issuer:
        yield issuer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("app.core.security.jwks.monotonic", clock)
    return clock


@pytest.fixture
def fast_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are fetched every 10 ms."""
    for name in ("_REFRESH", "_RETRY", "_FIRST_RETRY"):
        monkeypatch.setattr(f"app.core.security.jwks.{name}", 0.01)


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.core.security.jwks._TIMEOUT", 0.3)


@pytest.fixture(autouse=True)
def no_error_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Asyncio logs the exception of a task that nobody awaited, once the task is collected."""
    gc.freeze()  # the collection below skips older objects
    yield
    gc.collect()
    gc.unfreeze()
    records = caplog.get_records("call") + caplog.records
    assert [record.getMessage() for record in records if record.levelno >= logging.ERROR] == []


class TestFind:
    async def test_a_key_is_found_by_name_and_algorithm(self, issuer: Issuer) -> None:
        async with fetched(issuer) as keys:
            assert await keys.find(HEADER) == Key("EdDSA", PRIVATE.public_key(), "a")

    async def test_keys_are_fetched_before_the_first_search(self, issuer: Issuer) -> None:
        async with fetched(issuer):
            assert len(issuer.requests) == 1

    async def test_a_search_waits_for_the_first_fetch(self, issuer: Issuer) -> None:
        async with JwksClient(issuer.url) as keys:
            assert await keys.find(HEADER)

    async def test_finding_a_known_key_sends_no_request(self, issuer: Issuer) -> None:
        async with fetched(issuer) as keys:
            for _ in range(100):
                await found(keys, HEADER)

        assert len(issuer.requests) == 1

    @pytest.mark.parametrize(("algorithm", "jwk"), OF_KIND.items(), ids=OF_KIND)
    async def test_a_key_is_found_only_with_its_own_algorithm(self, issuer: Issuer, algorithm: str, jwk: Jwk) -> None:
        """The token does not choose the algorithm."""
        issuer.answer = document(jwk | {"kid": "a", "use": "sig", "alg": algorithm, "key_ops": ["verify"]})

        async with fetched(issuer) as keys:
            assert (await found(keys, {"kid": "a", "alg": algorithm})).algorithm == algorithm
            for other in ({*OF_KIND} - {algorithm}) | {"HS256", "none", "PS256", "ES384", "", algorithm.lower()}:
                assert await keys.find({"kid": "a", "alg": other}) is None
                assert await keys.find({"alg": other}) is None

    async def test_keys_of_different_kinds_may_share_a_name(self, issuer: Issuer) -> None:
        issuer.answer = document(*(jwk | {"kid": "a"} for jwk in OF_KIND.values()))

        async with fetched(issuer) as keys:
            for algorithm in OF_KIND:
                assert (await found(keys, {"kid": "a", "alg": algorithm})).algorithm == algorithm

    @pytest.mark.parametrize("kid", ["a", None], ids=["named", "unnamed"])
    async def test_a_header_without_a_name_finds_the_only_key_of_its_kind(
        self, issuer: Issuer, kid: str | None
    ) -> None:
        issuer.answer = document(ED | {"kid": kid}, EC | {"kid": "b"})

        async with fetched(issuer) as keys:
            assert await keys.find({"alg": "EdDSA"}) == Key("EdDSA", PRIVATE.public_key(), kid)

    async def test_a_header_without_a_name_finds_neither_of_two_named_keys(self, issuer: Issuer) -> None:
        issuer.answer = document(KEY, OTHER_KEY)

        async with fetched(issuer) as keys:
            assert await keys.find({"alg": "EdDSA"}) is None

    async def test_a_header_with_a_name_does_not_find_an_unnamed_key(self, issuer: Issuer) -> None:
        issuer.answer = document(ED)

        async with fetched(issuer) as keys:
            assert await keys.find(HEADER) is None

    async def test_the_first_of_two_keys_with_the_same_name_is_found(self, issuer: Issuer) -> None:
        issuer.answer = document(KEY, OTHER_KEY | {"kid": "a"})

        async with fetched(issuer) as keys:
            assert await keys.find(HEADER) == Key("EdDSA", PRIVATE.public_key(), "a")

    async def test_a_header_without_a_name_finds_neither_of_two_unnamed_keys(self, issuer: Issuer) -> None:
        issuer.answer = document(ED, OTHER_ED)

        async with fetched(issuer) as keys:
            assert await keys.find({"alg": "EdDSA"}) is None

    @pytest.mark.parametrize("members", [{"use": None}, {"alg": None}, {"alg": "Ed25519"}, {"use": "sig"}], ids=short)
    async def test_use_and_alg_of_a_key_are_optional_and_alg_may_be_the_new_name(
        self, issuer: Issuer, members: dict[str, str]
    ) -> None:
        issuer.answer = document(KEY | members)

        async with fetched(issuer) as keys:
            assert await keys.find(HEADER) == Key("EdDSA", PRIVATE.public_key(), "a")

    @pytest.mark.usefixtures("fast_refresh")
    async def test_an_empty_key_set_replaces_the_known_keys(self, issuer: Issuer) -> None:
        async with fetched(issuer) as keys:
            issuer.answer = document()
            await until(lambda: keys.generation == 2)
            assert (await keys.find(HEADER), keys.ready) == (None, True)

            issuer.answer = document(KEY)
            await until(lambda: keys.generation == 3)
            assert await keys.find(HEADER)

    @pytest.mark.parametrize("header", [{}, {"kid": "a"}, {"kid": "a", "alg": ["EdDSA"]}, {"alg": {}}], ids=short)
    async def test_a_header_without_a_valid_algorithm_finds_no_key(
        self, issuer: Issuer, header: dict[str, Any]
    ) -> None:
        async with fetched(issuer) as keys:
            assert await keys.find(header) is None


class TestSingleFlight:
    async def test_50_searches_before_the_first_keys_share_one_request(self, issuer: Issuer) -> None:
        issuer.answer = held = Held(issuer.answer)

        async with JwksClient(issuer.url) as keys:
            waiting = [asyncio.create_task(keys.find(HEADER)) for _ in range(50)]
            await until(lambda: held.waiting)
            held.release()
            assert await asyncio.gather(*waiting) == [await found(keys, HEADER)] * 50

        assert len(issuer.requests) == 1

    async def test_50_searches_for_a_new_key_share_one_request(self, issuer: Issuer) -> None:
        async with fetched(issuer) as keys:
            issuer.answer = document(KEY, OTHER_KEY)
            new = await asyncio.gather(*(keys.find(OTHER_HEADER) for _ in range(50)))
            assert new == [await found(keys, OTHER_HEADER)] * 50

        assert len(issuer.requests) == 2

    async def test_a_cancelled_search_does_not_cancel_the_first_fetch(self, issuer: Issuer) -> None:
        issuer.answer = held = Held(issuer.answer)

        async with JwksClient(issuer.url) as keys:
            first, *others = [asyncio.create_task(keys.find(HEADER)) for _ in range(3)]
            await until(lambda: held.waiting)
            first.cancel()
            await asyncio.wait([first])
            held.release()
            assert all(await asyncio.gather(*others))

        assert len(issuer.requests) == 1

    async def test_a_cancelled_search_does_not_cancel_the_fetch_that_it_started(self, issuer: Issuer) -> None:
        async with fetched(issuer) as keys:
            issuer.answer = held = Held(document(OTHER_KEY))
            first, *others = [asyncio.create_task(keys.find(OTHER_HEADER)) for _ in range(3)]
            await until(lambda: held.waiting)
            first.cancel()
            await asyncio.wait([first])
            held.release()
            assert all(await asyncio.gather(*others))

        assert len(issuer.requests) == 2


@pytest.mark.usefixtures("clock")
class TestUnknownKeys:
    async def test_100_concurrent_searches_for_unknown_keys_send_one_request(self, issuer: Issuer) -> None:
        async with fetched(issuer) as keys:
            assert await asyncio.gather(*(keys.find(unknown(number)) for number in range(100))) == [None] * 100

        assert len(issuer.requests) == 2

    @pytest.mark.parametrize("answer", [document(KEY), reply(b"", "500 Oops"), raw(b"")], ids=["good", "500", "close"])
    async def test_100_successive_searches_for_unknown_keys_send_one_request(
        self, issuer: Issuer, answer: Answer
    ) -> None:
        """A failed fetch counts too."""
        async with fetched(issuer) as keys:
            issuer.answer = answer
            for number in range(100):
                assert await keys.find(unknown(number)) is None

        assert len(issuer.requests) == 2

    async def test_unknown_names_missing_names_and_other_algorithms_share_one_request(self, issuer: Issuer) -> None:
        async with fetched(issuer) as keys:
            for header in (unknown(1), {"alg": "RS256"}, {"kid": "a", "alg": "HS256"}, {"kid": "a"}):
                assert await keys.find(header) is None

        assert len(issuer.requests) == 2

    @pytest.mark.parametrize("answer", [document(KEY), reply(b"", "500 Oops")], ids=["good", "500"])
    async def test_an_unknown_key_sends_another_request_after_30_seconds(
        self, issuer: Issuer, clock: Clock, answer: Answer
    ) -> None:
        async with fetched(issuer) as keys:
            issuer.answer = answer
            asked = []
            for seconds in (0, 29.9, 0.1, 0, 29.9, 0.1):
                clock.now += seconds
                await keys.find(unknown(1))
                await keys.find(unknown(2))
                asked.append(len(issuer.requests))

        assert asked == [2, 2, 3, 3, 3, 4]

    async def test_a_new_key_is_found_by_its_first_search(self, issuer: Issuer) -> None:
        async with fetched(issuer) as keys:
            issuer.answer = document(OTHER_KEY)
            assert (await found(keys, OTHER_HEADER)).material == OTHER_PRIVATE.public_key()
            assert await keys.find(HEADER) is None

    async def test_finding_a_known_key_does_not_wait_for_a_running_fetch(self, issuer: Issuer) -> None:
        async with fetched(issuer) as keys:
            issuer.answer = held = Held(issuer.answer)
            search = asyncio.create_task(keys.find(unknown(1)))
            await until(lambda: held.waiting)
            assert await keys.find(HEADER)
            assert not search.done()
            held.release()
            assert await search is None

    async def test_a_search_for_a_new_key_waits_for_a_running_fetch(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.core.security.jwks._REFRESH", 0.01)
        async with fetched(issuer) as keys:
            await keys.find(unknown(1))
            issuer.answer = held = Held(document(OTHER_KEY))
            await until(lambda: held.waiting)
            search = asyncio.create_task(keys.find(OTHER_HEADER))
            await asyncio.sleep(0)
            held.release()
            assert await search


@pytest.mark.usefixtures("fast_refresh")
class TestBackground:
    async def test_keys_are_refreshed_without_a_search(self, issuer: Issuer) -> None:
        async with fetched(issuer) as keys:
            issuer.answer = document(OTHER_KEY)
            await until(lambda: keys.generation == 2)
            assert await keys.find(OTHER_HEADER)
            assert await keys.find(HEADER) is None

    @pytest.mark.parametrize(
        "answer", [document(KEY, EC), document(KEY | {"name": "x"}, EC)], ids=["the same document", "another member"]
    )
    async def test_the_generation_stays_while_the_keys_are_the_same(self, issuer: Issuer, answer: Answer) -> None:
        issuer.answer = document(KEY, EC)
        async with fetched(issuer) as keys:
            issuer.answer = answer
            await until_asked_again(issuer)
            assert keys.generation == 1

    @pytest.mark.parametrize(
        "answer",
        [document(KEY, OTHER_KEY), document(OTHER_ED | {"kid": "a"}), document(ED | {"kid": "c"})],
        ids=["another key", "another key of the same name", "another name"],
    )
    async def test_the_generation_changes_with_the_keys(self, issuer: Issuer, answer: Answer) -> None:
        async with fetched(issuer) as keys:
            issuer.answer = answer
            await until(lambda: keys.generation == 2)
            await until_asked_again(issuer)
            assert keys.generation == 2

    async def test_keys_stay_in_use_while_the_issuer_is_down(self, issuer: Issuer) -> None:
        async with fetched(issuer) as keys:
            issuer.stop()
            for number in range(20):
                assert await keys.find(unknown(number)) is None
            assert (await found(keys, HEADER), keys.ready) == (Key("EdDSA", PRIVATE.public_key(), "a"), True)
            issuer.answer = document(OTHER_KEY)
            await issuer.start()
            await until(lambda: keys.generation == 2)
            assert await keys.find(OTHER_HEADER)

    async def test_every_search_raises_until_keys_are_fetched(self, issuer: Issuer) -> None:
        issuer.answer = document()
        async with JwksClient(issuer.url) as keys:
            await until_asked_again(issuer)
            for header in (HEADER, unknown(1), {"alg": "EdDSA"}, {}):
                with pytest.raises(IssuerUnavailableError):
                    await keys.find(header)

        assert (keys.ready, keys.generation) == (False, 0)


class TestRetry:
    async def test_a_failed_first_fetch_is_retried(self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.core.security.jwks._FIRST_RETRY", 0.01)
        issuer.answer = reply(b"", "500 Oops")
        async with JwksClient(issuer.url) as keys:
            await until_asked_again(issuer)
            issuer.answer = document(KEY)
            await until(lambda: keys.ready)

    async def test_a_failed_refresh_is_retried(self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("_REFRESH", "_RETRY"):
            monkeypatch.setattr(f"app.core.security.jwks.{name}", 0.01)
        async with fetched(issuer) as keys:
            issuer.answer = reply(b"", "500 Oops")
            await until_asked_again(issuer)
            issuer.answer = document(OTHER_KEY)
            await until(lambda: keys.generation == 2)


GOOD: Final = json.dumps({"keys": [KEY]}).encode()
CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WELL_SENT: Final = {
    "with Content-Length": reply(GOOD),
    "in chunks": raw(CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + b"0\r\n\r\n"),
    "until the connection ends": raw(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD),
    "over HTTP/1.0": raw(b"HTTP/1.0 200 OK\r\n\r\n" + GOOD),
    "after an interim response": raw(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" + GOOD),
    "as text/plain": reply(GOOD, content_type="text/plain"),
    "of the largest size": reply(GOOD.ljust(SIZE_MAX)),
    "with the largest number of keys": document(*[{}] * (KEYS_MAX - 1), KEY),
    "with two sets, the last one good": reply(b'{"keys": [], ' + GOOD[1:]),
    "among unusable members": document(None, [], "a", 1, {}, KEY, OTHER_KEY | {"kid": 1}),
}
# Replies that give no keys and do no harm.
BADLY_SENT: Final = {
    "never": hang,
    "a byte at a time": drip,
    "a head a byte at a time": drip_head,
    "nothing": raw(b""),
    "half a head": raw(b"HTTP/1.1 200 O"),
    "half a body": reply(GOOD, content_length=str(len(GOOD) + 1)),
    "half of the chunks": raw(CHUNKED + b"%x\r\n" % len(GOOD) + GOOD + b"\r\n"),
    "not HTTP": raw(b"SSH-2.0-OpenSSH_9.2\r\n" + GOOD),
    "two lengths": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n" + GOOD),
    "10,000 headers": raw(b"HTTP/1.1 200 OK\r\n" + b"X-Header: value\r\n" * 10_000 + b"\r\n" + GOOD),
    "one byte too long": reply(GOOD.ljust(SIZE_MAX + 1)),
    "one key too many": document(*[{}] * KEYS_MAX, KEY),
    "10,000 keys": document(*[{}] * 9_999, KEY),
    "compressed": reply(gzip.compress(GOOD), content_encoding="gzip"),
    "labelled as compressed": reply(GOOD, content_encoding="br"),
    "HTML": reply(b"<!doctype html><title>Sign in</title>", content_type="text/html"),
    "no body": reply(b""),
    "half of the JSON": reply(GOOD[:-1]),
    "a byte after the JSON": reply(GOOD + b"}"),
    "invalid UTF-8": reply(GOOD[:-1] + b', "\xff": 1}'),
    "UTF-16": reply(GOOD.decode().encode("utf-16")),
    "half a surrogate pair": reply(GOOD[:-1] + b', "a": "\\ud800"}'),
    "deeply nested": reply(b'{"keys":' + b"[" * 60_000),
    "a long number": reply(GOOD[:-1] + b', "a": ' + b"9" * 60_000 + b"}"),
    "not an object": reply(b"[%s]" % GOOD),
    "null": reply(b"null"),
    "no keys": reply(b"{}"),
    "two sets, the first one good": reply(GOOD[:-1] + b', "keys": {}}'),
    "keys in an object": reply(json.dumps({"keys": {"a": KEY}}).encode()),
    "keys in a string": reply(json.dumps({"keys": json.dumps([KEY])}).encode()),
    "null for the keys": reply(b'{"keys": null}'),
    **{
        status: reply(GOOD, status)
        for status in ("201 Created", "206 Partial Content", "400 Bad Request", "401 Unauthorized", "404 Not Found")
    },
    **{status: reply(GOOD, status) for status in ("500 Oops", "503 Service Unavailable", "599 ", "204 No Content")},
}


@pytest.mark.usefixtures("fast_refresh")
class TestReply:
    @pytest.mark.parametrize("answer", WELL_SENT.values(), ids=WELL_SENT)
    async def test_a_valid_reply_gives_its_keys(self, issuer: Issuer, answer: Answer) -> None:
        issuer.answer = answer

        async with fetched(issuer) as keys:
            assert await keys.find(HEADER) == Key("EdDSA", PRIVATE.public_key(), "a")

    @pytest.mark.usefixtures("short_timeout")
    @pytest.mark.parametrize("answer", BADLY_SENT.values(), ids=BADLY_SENT)
    async def test_an_invalid_reply_gives_no_keys_and_a_later_valid_one_does(
        self, issuer: Issuer, answer: Answer
    ) -> None:
        issuer.answer = answer

        async with JwksClient(issuer.url) as keys:
            await until_asked_again(issuer)
            with pytest.raises(IssuerUnavailableError):
                await keys.find(HEADER)
            issuer.answer = document(KEY)
            await until(lambda: keys.ready)
            assert await keys.find(HEADER)

    @pytest.mark.usefixtures("short_timeout")
    @pytest.mark.parametrize("answer", BADLY_SENT.values(), ids=BADLY_SENT)
    async def test_an_invalid_reply_does_not_change_the_known_keys(self, issuer: Issuer, answer: Answer) -> None:
        async with fetched(issuer) as keys:
            issuer.answer = answer
            await until_asked_again(issuer)
            assert await keys.find(HEADER) == Key("EdDSA", PRIVATE.public_key(), "a")
            assert keys.generation == 1
            issuer.answer = document(OTHER_KEY)
            await until(lambda: keys.generation == 2)

    @pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
    async def test_a_redirect_is_not_followed(self, issuer: Issuer, status: int) -> None:
        async with Issuer(document(KEY)) as target, JwksClient(issuer.url) as keys:
            issuer.answer = reply(GOOD, f"{status} Elsewhere", location=target.url)
            await until_asked_again(issuer)
            issuer.answer = reply(b"", f"{status} Elsewhere", location=target.url, refresh=f"0; url={target.url}")
            await until_asked_again(issuer)

            assert (keys.ready, target.requests) == (False, [])


class TestFlood:
    """How much of a gigabyte a server can send. The kernel buffers some megabytes for both sides."""

    @pytest.mark.parametrize(
        ("head", "piece"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n", b" " * 65_536),
            (b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65_536),
            (CHUNKED, b"10000\r\n" + b" " * 65_536 + b"\r\n"),
            (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", gzip.compress(bytes(2**24))),
            (b"HTTP/1.1 500 Oops\r\nContent-Length: 1073741824\r\n\r\n", b" " * 65_536),
            (b"HTTP/1.1 200 OK\r\n", b"X-Header: value\r\n" * 4_096),
            (b"HTTP/1.1 200 OK\r\nX-Header: ", b"a" * 65_536),
        ],
        ids=["length", "no length", "chunks", "compressed", "500", "headers", "header"],
    )
    async def test_the_client_stops_reading_a_reply_of_a_gigabyte(
        self, issuer: Issuer, head: bytes, piece: bytes
    ) -> None:
        issuer.answer = flood = Flood(head, piece)

        async with JwksClient(issuer.url) as keys:
            await until(lambda: issuer.requests and not issuer.connections)

        assert not keys.ready
        assert flood.sent < GIGABYTE / 32

    async def test_the_server_counts_what_a_client_without_limits_reads(self, issuer: Issuer) -> None:
        """A control: the bytes that the server counts are bytes that it could send."""
        issuer.answer = flood = Flood(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65_536)

        async with httpx.AsyncClient() as client, client.stream("GET", issuer.url) as stream:
            pieces = stream.aiter_raw()
            while flood.sent < GIGABYTE / 16:
                await anext(pieces)


class TestRequest:
    async def test_a_request_asks_for_an_uncompressed_reply(self, issuer: Issuer) -> None:
        async with fetched(issuer):
            lines = issuer.requests[0].lower().split("\r\n")

        assert lines[0] == "get /.well-known/jwks.json http/1.1"
        assert "accept-encoding: identity" in lines
        assert "accept: application/json" in lines

    @pytest.mark.usefixtures("fast_refresh")
    async def test_a_cookie_of_the_issuer_is_not_kept(self, issuer: Issuer) -> None:
        """A server that sets a new cookie in each reply would fill the memory."""
        issuer.answer = reply(GOOD, set_cookie="a=b; Path=/; Max-Age=1000000")

        async with fetched(issuer):
            await until_asked_again(issuer)

        assert not any("cookie" in request.lower() for request in issuer.requests)

    async def test_an_issuer_on_this_machine_is_asked_without_a_proxy(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Plain HTTP is allowed there because it does not leave the machine."""
        async with Issuer(document(OTHER_KEY)) as proxy:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, proxy.url)
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.delenv(name, raising=False)
            async with fetched(issuer):
                assert (len(issuer.requests), proxy.requests) == (1, [])


X: Final = ED["x"]
OFF_CURVE: Final = b64_int(2**255 + 1)
OUT_OF_FIELD: Final = b64(b"\xff" * 32)
NO_TEXT: Final[list[Any]] = [False, True, 0, 1, 1.5, [], ["a"], {}, {"a": {}}]
ODD: Final[list[Any]] = [None, "", "a", "\0", "\U0001f418", *NO_TEXT]
PRIVATE_OF_KIND: Final = {
    "EdDSA": OKPAlgorithm.to_jwk(PRIVATE, as_dict=True),
    "ES256": ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True),
    "RS256": RSAAlgorithm.to_jwk(generate_private_key(65_537, 2_048), as_dict=True),
}
# Members that are not usable as keys for signatures with one of the three algorithms.
UNUSABLE: Final[dict[str, list[Any]]] = {
    "a shared secret": [{"kty": "oct", "k": b64(bytes(32))}],
    "a shared secret called EdDSA": [{"kty": "oct", "k": b64(bytes(32)), "alg": "EdDSA", "crv": "Ed25519", "x": X}],
    "for encryption": [jwk | {"use": "enc"} for jwk in OF_KIND.values()],
    **{
        f"{name} with its private half": [private | {"key_ops": ["verify"]}]
        for name, private in PRIVATE_OF_KIND.items()
    },
    "with the private half of another key": [jwk | {"d": X} for jwk in OF_KIND.values()],
    "with null for the private half": [jwk | {"d": None} for jwk in OF_KIND.values()],
    "for signing": [ED | {"key_ops": value} for value in (["sign"], ["verify", "sign"], "verify", *ODD)],
    **{f"RSA of {bits} bits": [rsa(bits)] for bits in (512, 1_024, 2_040, 2_047, 8_193, 16_384, 60_000)},
    **{f"RSA with exponent {exponent}": [rsa(2_048, exponent)] for exponent in (1, 2, 65_536, 2**2_047 + 3)},
    "RSA without a modulus": [{"kty": "RSA", "e": "AQAB"}],
    "RSA without an exponent": [{"kty": "RSA", "n": RSA["n"]}],
    "RSA on a curve": [RSA | {"crv": value} for value in ("P-256", *ODD) if value is not None],
    "P-384": [elliptic(ec.SECP384R1())],
    "P-521": [elliptic(ec.SECP521R1())],
    "secp256k1": [elliptic(ec.SECP256K1())],
    "P-256 called P-384": [EC | {"crv": "P-384"}],
    "P-384 called P-256": [elliptic(ec.SECP384R1()) | {"crv": "P-256"}],
    "EC without a curve": [{name: EC[name] for name in ("kty", "x", "y")}],
    "EC on the curve of another kind": [EC | {"crv": "Ed25519"}],
    "EC without y": [{name: EC[name] for name in ("kty", "crv", "x")}],
    "EC off the curve": [EC | {"x": OFF_CURVE, "y": OFF_CURVE}],
    "EC out of the field": [EC | {"x": OUT_OF_FIELD, "y": OUT_OF_FIELD}],
    "EC at infinity": [EC | {"x": b64(bytes(32)), "y": b64(bytes(32))}],
    "Ed448": [edwards(Ed448PrivateKey.generate())],
    "Ed448 called Ed25519": [edwards(Ed448PrivateKey.generate()) | {"crv": "Ed25519"}],
    "X25519": [ED | {"crv": "X25519", "x": b64(X25519PrivateKey.generate().public_key().public_bytes_raw())}],
    "Ed25519 of another size": [ED | {"x": b64(bytes(size))} for size in (0, 31, 33, 1_000)],
    "Ed25519 without x": [{"kty": "OKP", "crv": "Ed25519"}],
    "Ed25519 without a curve": [{"kty": "OKP", "x": X}],
    "Ed25519 without a key type": [{"crv": "Ed25519", "x": X}],
    "invalid base64": [ED | {"x": X + more} for more in ("A", "AA", "AAA")],
    **{
        f"{name} called {algorithm}": [jwk | {"alg": algorithm}]
        for name, jwk in OF_KIND.items()
        for algorithm in ("HS256", "none", "PS256", "ES384", "eddsa", *(other for other in OF_KIND if other != name))
    },
    "with a name that is not a string": [ED | {"kid": value} for value in NO_TEXT],
    **{f"with an invalid {name}": [ED | {name: value} for value in ODD] for name in ("kty", "crv", "x")},
    **{
        f"with an invalid {name}": [ED | {name: value} for value in ODD if value is not None] for name in ("alg", "use")
    },
    **{f"EC with an invalid {name}": [EC | {name: value} for value in ODD] for name in ("kty", "crv", "x", "y")},
    **{f"RSA with an invalid {name}": [RSA | {name: value} for value in ODD] for name in ("kty", "n", "e")},
    "not an object": [*ODD, [KEY], json.dumps(KEY)],
    "an empty object": [{}],
}


class TestMembers:
    @pytest.mark.usefixtures("fast_refresh")
    @pytest.mark.parametrize("unusable", UNUSABLE.values(), ids=UNUSABLE)
    async def test_a_set_of_unusable_members_gives_no_keys(self, issuer: Issuer, unusable: list[Any]) -> None:
        issuer.answer = document(*unusable)

        async with JwksClient(issuer.url) as keys:
            await until_asked_again(issuer)
            with pytest.raises(IssuerUnavailableError):
                await keys.find(HEADER)

    @pytest.mark.usefixtures("clock")
    @pytest.mark.parametrize("unusable", UNUSABLE.values(), ids=UNUSABLE)
    async def test_a_usable_key_beside_an_unusable_member_is_found(self, issuer: Issuer, unusable: list[Any]) -> None:
        issuer.answer = document(*unusable, OTHER_KEY)

        async with fetched(issuer) as keys:
            assert await keys.find({"alg": "EdDSA"}) == Key("EdDSA", OTHER_PRIVATE.public_key(), "b")
            for algorithm in ("ES256", "RS256", "HS256", "none", None):
                assert await keys.find({"alg": algorithm}) is None

    @pytest.mark.parametrize(
        ("algorithm", "jwk"),
        [
            *OF_KIND.items(),
            ("RS256", rsa(8_192)),
            ("RS256", rsa(2_048, 3)),
            ("RS256", RSA | {"x5t": "a", "x5u": "http://127.0.0.1:1/", "jku": "http://127.0.0.1:1/", "x": [{}]}),
            ("EdDSA", ED | {"kid": ""}),
            ("EdDSA", ED | {"kid": "\0\U0001f418" * 1_000}),
            ("EdDSA", ED | {"use": "sig", "alg": "EdDSA", "key_ops": ["verify"], "exp": 1}),
        ],
        ids=short,
    )
    async def test_a_usable_key_is_found(self, issuer: Issuer, algorithm: str, jwk: Jwk) -> None:
        issuer.answer = document(jwk)

        async with fetched(issuer) as keys:
            assert (await found(keys, {"alg": algorithm, **jwk})).algorithm == algorithm


any_text: Final = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
any_json: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text | st.just("keys"), inner, max_size=3),
    max_leaves=8,
)
names: Final = st.sampled_from(["kty", "crv", "x", "y", "n", "e", "d", "p", "oth", "alg", "use", "kid", "key_ops", "k"])
values: Final = any_json | st.sampled_from([value for jwk in OF_KIND.values() for value in jwk.values()])
any_member: Final = st.builds(
    lambda jwk, others: {**jwk, **others}, st.sampled_from([ED, EC, RSA, {}]), st.dictionaries(names | any_text, values)
)
hostile: Final = hypothesis_settings(max_examples=300, deadline=None)


class TestReadKeys:
    """Calls `_read_keys`, because a request for each example would take long. The client handles its ValueError."""

    @hostile
    @given(content=any_json.map(json.dumps).map(str.encode) | st.binary())
    @example(content=b'{"keys": [{"kty": "RSA", "crv": {}}]}')
    @example(content=b"[" * 100_000)
    @example(content=b'{"keys": [{"kty": %s}]}' % (b"9" * 5_000))
    @example(content=b'{"keys": [{"kty": "\\udfff"}]}')
    def test_any_document_gives_keys_or_a_value_error(self, content: bytes) -> None:
        with suppress(ValueError):
            assert len(_read_keys(content)) <= KEYS_MAX

    @hostile
    @given(member=any_json | any_member)
    @example(member={"kty": "RSA", "crv": []})
    @example(member={**ED, "kid": {}})
    def test_any_member_leaves_the_others_usable(self, member: object) -> None:
        keys = _read_keys(json.dumps({"keys": [member, EC | {"kid": "good"}]}).encode())

        assert (keys[-1].kid, keys[-1].algorithm) == ("good", "ES256")
        assert len(keys) <= 2


class TestLog:
    @pytest.fixture(autouse=True)
    def info_is_captured(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "app")

    @pytest.mark.usefixtures("fast_refresh")
    async def test_an_outage_logs_one_warning_for_each_reason_and_one_line_at_its_end(
        self, issuer: Issuer, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with fetched(issuer) as keys:
            for answer in (reply(b"", "500 Oops"), reply(b"{"), raw(b"SSH-2.0"), raw(b"")):
                issuer.answer = answer
                await until_asked_again(issuer)
            await keys.find(unknown(1))
            issuer.answer = document(KEY)
            await until_asked_again(issuer)

        lines = [(record.levelname, record.getMessage().partition(":")[0]) for record in caplog.records]
        again = ("INFO", "keys of the issuer fetched")
        assert lines == [again, *[("WARNING", "keys of the issuer not fetched")] * 3, again]
        assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
            *("", "status 500", "ValueError", "RemoteProtocolError", "")
        ]

    @pytest.mark.usefixtures("fast_refresh")
    async def test_an_outage_at_the_start_logs_one_warning(
        self, issuer: Issuer, caplog: pytest.LogCaptureFixture
    ) -> None:
        issuer.answer = reply(b"")
        async with JwksClient(issuer.url):
            await until_asked_again(issuer)

        assert [record.levelname for record in caplog.records] == ["WARNING"]

    @pytest.mark.usefixtures("fast_refresh")
    @pytest.mark.parametrize(
        "answer",
        [
            reply(b"s3cret", "500 s3cret", s3cret="s3cret"),
            reply(b"s3cret"),
            reply(b'{"keys": [{"kid": "s3cret"}], "s3cret": s3cret}'),
            reply(b'{"s3cret": 1}'),
            document(ED | {"kid": "s3cret", "x": "s3cret"}),
            raw(b"s3cret\r\n\r\n"),
            raw(b"HTTP/1.1 200 OK\r\ns3cret\r\n\r\n"),
        ],
    )
    async def test_the_warning_does_not_quote_the_reply(
        self, issuer: Issuer, caplog: pytest.LogCaptureFixture, answer: Answer
    ) -> None:
        issuer.answer = answer
        async with JwksClient(issuer.url):
            await until_asked_again(issuer)

        assert "keys of the issuer not fetched" in caplog.text
        assert "s3cret" not in caplog.text

    async def test_the_log_contains_neither_the_query_of_the_url_nor_the_reply(self, dsn: str, issuer: Issuer) -> None:
        """The query may contain an API key."""
        issuer.answer = reply(GOOD, "200 s3cret", s3cret="s3cret")
        log = await log_of_service(dsn, issuer.url + "?apikey=s3cret", "keys of the issuer fetched")

        assert "apikey=s3cret" in issuer.requests[0]
        assert "s3cret" not in log


async def log_of_service(dsn: str, jwks_url: str, last: str) -> str:
    """Run the service until a line of its log contains `last`, stop it, and return the log."""
    names = {name.upper() for name in Settings.model_fields}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"DATABASE_URL": dsn, "PORT": str(free_port()), "PYTHONPATH": str(Path(app.__file__).parents[1])}
    environment |= {"AUTH_JWKS_URL": jwks_url, "AUTH_ISSUER": "unchecked", "AUTH_AUDIENCE": "unchecked"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app", env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout
    log = b""
    while last.encode() not in log and (line := await process.stdout.readline()):
        log += line
    process.terminate()
    rest, _ = await process.communicate()
    assert last.encode() in log, log
    return (log + rest).decode()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class TestClose:
    @pytest.mark.parametrize("answer", [document(KEY), hang, drip, reply(b"")], ids=["good", "hang", "drip", "bad"])
    async def test_closing_ends_all_tasks_and_connections(self, issuer: Issuer, answer: Answer) -> None:
        issuer.answer = answer
        async with JwksClient(issuer.url):
            await until(lambda: issuer.requests)
            assert "JwksClient._keep_fresh" in running_methods()

        assert running_methods() == []
        await until(lambda: issuer.connections == 0)

    async def test_closing_before_the_first_fetch_sends_no_request(self, issuer: Issuer) -> None:
        async with JwksClient(issuer.url):
            pass

        assert (running_methods(), issuer.requests) == ([], [])

    async def test_closing_ends_a_running_search(self, issuer: Issuer) -> None:
        async with fetched(issuer) as keys:
            issuer.answer = held = Held(issuer.answer)
            search = asyncio.create_task(keys.find(unknown(1)))
            await until(lambda: held.waiting)
            assert len(running_methods()) == 3
        held.release()

        assert await search is None
        assert running_methods() == []

    async def test_closing_fails_a_search_that_waits_for_the_first_keys(self, issuer: Issuer) -> None:
        issuer.answer = hang
        async with JwksClient(issuer.url) as keys:
            await until(lambda: issuer.requests)
            search = asyncio.create_task(keys.find(HEADER))
            await asyncio.sleep(0)

        with pytest.raises(IssuerUnavailableError):
            await search


@asynccontextmanager
async def client_of(dsn: str, issuer: Issuer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that trusts this issuer."""
    settings = make_settings(dsn, auth_jwks_url=issuer.url, auth_issuer="unchecked", auth_audience="unchecked")
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


def signed(user: str, private: Ed25519PrivateKey = PRIVATE, **header: object) -> dict[str, str]:
    """The Authorization header of this user. The token's `kid` is that of KEY unless `header` has another."""
    fields = {name: value for name, value in {"kid": "a", **header}.items() if value is not None}
    return {"Authorization": "Bearer " + jwt.encode({"sub": user, "exp": time() + 900}, private, "EdDSA", fields)}


async def until_ready(client: httpx.AsyncClient) -> None:
    async def is_ready() -> bool:
        return (await client.get(READY)).is_success

    await until(is_ready)


def kind_of(refusal: httpx.Response) -> tuple[int, str]:
    """Status and type of a problem."""
    kind: str = refusal.json()["type"]
    return refusal.status_code, kind.removeprefix("urn:problem-type:")


class TestService:
    @pytest.mark.parametrize("kid", ["a", None], ids=["named", "unnamed"])
    async def test_a_token_of_the_issuer_is_accepted(
        self, dsn: str, issuer: Issuer, user: str, tasks: str, kid: str | None
    ) -> None:
        async with client_of(dsn, issuer) as client:
            await until_ready(client)
            assert (await client.get(tasks, headers=signed(user, kid=kid))).status_code == 200
            refusal = await client.get(tasks, headers=signed(user, OTHER_PRIVATE, kid=kid))
            assert kind_of(refusal) == (401, "token-invalid")

    async def test_a_key_in_the_header_of_a_token_is_neither_used_nor_fetched(
        self, dsn: str, issuer: Issuer, user: str, tasks: str
    ) -> None:
        async with Issuer(document(OTHER_KEY)) as target, client_of(dsn, issuer) as client:
            await until_ready(client)
            for kid in ("a", "b"):
                headers = signed(user, OTHER_PRIVATE, kid=kid, jku=target.url, x5u=target.url, jwk={**OTHER_KEY})
                assert kind_of(await client.get(tasks, headers=headers)) == (401, "token-invalid")
            assert target.requests == []

    @pytest.mark.usefixtures("clock")
    async def test_100_tokens_with_unknown_keys_cause_one_request(
        self, dsn: str, issuer: Issuer, user: str, tasks: str
    ) -> None:
        async with client_of(dsn, issuer) as client:
            await until_ready(client)
            for number in range(100):
                refusal = await client.get(tasks, headers=signed(user, kid=f"unknown-{number}"))
                assert kind_of(refusal) == (401, "token-invalid")

        assert len(issuer.requests) == 2

    async def test_a_key_rotation_takes_effect_without_a_restart(
        self, dsn: str, issuer: Issuer, user: str, tasks: str
    ) -> None:
        """A cached token is refused once its key is withdrawn."""
        old = signed(user)
        async with client_of(dsn, issuer) as client:
            await until_ready(client)
            assert (await client.get(tasks, headers=old)).status_code == 200
            issuer.answer = document(OTHER_KEY)
            assert (await client.get(tasks, headers=signed(user, OTHER_PRIVATE, kid="b"))).status_code == 200
            assert kind_of(await client.get(tasks, headers=old)) == (401, "token-invalid")

    @pytest.mark.usefixtures("fast_refresh")
    async def test_new_tokens_are_accepted_while_the_issuer_is_down(
        self, dsn: str, issuer: Issuer, user: str, tasks: str
    ) -> None:
        async with client_of(dsn, issuer) as client:
            await until_ready(client)
            issuer.answer = reply(b"", "500 Oops")
            await until_asked_again(issuer)
            assert (await client.get(tasks, headers=signed(user))).status_code == 200
            assert (await client.get(READY)).status_code == 200


@pytest.mark.usefixtures("fast_refresh")
class TestServiceWithoutKeys:
    @pytest.fixture(params=["refused", "500", "no keys"])
    async def down(self, issuer: Issuer, request: pytest.FixtureRequest) -> Issuer:
        """An issuer that gives no keys."""
        issuer.answer = document() if request.param == "no keys" else reply(b"", "500 Oops")
        if request.param == "refused":
            issuer.stop()
        return issuer

    @pytest.mark.parametrize(
        ("method", "path"),
        [("GET", ""), ("POST", ""), ("GET", "/1"), ("PUT", "/1"), ("DELETE", "/1"), ("PATCH", "/1/complete")],
    )
    async def test_a_request_with_a_token_is_503_while_there_are_no_keys(
        self, dsn: str, down: Issuer, user: str, tasks: str, *, method: str, path: str
    ) -> None:
        async with client_of(dsn, down) as client:
            for kid in ("a", "unknown", None):
                refusal = await client.request(method, tasks + path, headers=signed(user, kid=kid))

                assert kind_of(refusal) == (503, "issuer-unavailable")
                assert int(refusal.headers["Retry-After"]) > 0
                assert "WWW-Authenticate" not in refusal.headers

    async def test_a_missing_or_malformed_token_is_401_while_there_are_no_keys(
        self, dsn: str, down: Issuer, tasks: str
    ) -> None:
        async with client_of(dsn, down) as client:
            assert kind_of(await client.get(tasks)) == (401, "token-missing")
            assert kind_of(await client.get(tasks, headers={"Authorization": "Bearer a.b"})) == (401, "token-invalid")

    async def test_the_service_is_live_but_not_ready_while_there_are_no_keys(self, dsn: str, down: Issuer) -> None:
        async with client_of(dsn, down) as client:
            assert (await client.get(LIVE)).status_code == 200
            unready = await client.get(READY)

        assert kind_of(unready) == (503, "issuer-unavailable")
        assert int(unready.headers["Retry-After"]) > 0

    async def test_the_service_recovers_when_the_issuer_does(
        self, dsn: str, down: Issuer, user: str, tasks: str
    ) -> None:
        async with client_of(dsn, down) as client:
            assert (await client.get(READY)).status_code == 503
            down.answer = document(KEY)
            down.stop()
            await down.start()
            await until_ready(client)
            assert (await client.get(tasks, headers=signed(user))).status_code == 200

    async def test_requests_wait_for_the_first_keys(self, dsn: str, issuer: Issuer, user: str, tasks: str) -> None:
        issuer.answer = held = Held(issuer.answer)
        async with client_of(dsn, issuer) as client:
            waiting = [asyncio.create_task(client.get(tasks, headers=signed(user))) for _ in range(10)]
            await until(lambda: held.waiting)
            assert (await client.get(LIVE)).status_code == 200
            assert (await client.get(READY)).status_code == 503
            held.release()
            assert [reply.status_code for reply in await asyncio.gather(*waiting)] == [200] * 10


class TestCheckJwksUrl:
    @pytest.mark.parametrize(
        "url",
        [
            "https://auth.example.com/.well-known/jwks.json",
            "https://auth.example.com",
            "https://auth.example.com:8443/jwks?version=2",
            "https://127.0.0.1/jwks",
            "https://203.0.113.7/jwks",
            "https://[2001:db8::1]:8443/jwks",
            "HTTPS://AUTH.EXAMPLE.COM/jwks",
            "https://auth_1.internal/jwks",
            "http://127.0.0.1:3000/api/auth/jwks",
            "http://127.0.0.2/jwks",
            "http://[::1]:3000/jwks",
            "http://localhost:3000/jwks",
            "http://LOCALHOST/jwks",
        ],
    )
    def test_https_urls_and_http_urls_of_this_machine_are_accepted(self, url: str) -> None:
        assert check_jwks_url(url) == url

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "auth.example.com/jwks",
            "//auth.example.com/jwks",
            "/jwks",
            "file:///etc/passwd",
            "file://localhost/etc/passwd",
            "ftp://auth.example.com/jwks",
            "ftp://127.0.0.1/jwks",
            "ws://127.0.0.1/jwks",
            "data:application/json,{}",
            "https:auth.example.com/jwks",
            "https:/auth.example.com/jwks",
            "https://",
            "https:///jwks",
            "https://:443/jwks",
            "https://?jwks",
            "https://#jwks",
            "https://auth.example.com:0/jwks",
            "https://auth.example.com:65536/jwks",
            "https://auth.example.com:https/jwks",
            "https://auth.example.com:-1/jwks",
            "https://[::1/jwks",
            "https://[::1]x/jwks",
            "https://[auth.example.com]/jwks",
            "https://ada:s3cret@auth.example.com/jwks",
            "https://ada@auth.example.com/jwks",
            "https://@auth.example.com/jwks",
            "http://ada:s3cret@127.0.0.1/jwks",
        ],
        ids=short,
    )
    def test_a_malformed_url_another_scheme_or_a_user_name_is_refused(self, url: str) -> None:
        with pytest.raises(ValueError, match=r"must look like https://auth\.example\.com/") as caught:
            check_jwks_url(url)

        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            "http://auth.example.com/jwks",
            "http://203.0.113.7/jwks",
            "http://192.168.1.1/jwks",
            "http://0.0.0.0/jwks",
            "http://[::]/jwks",
            "http://localhost.example.com/jwks",
            "http://127.0.0.1.example.com/jwks",
            "http://localhost@auth.example.com/jwks",
            "http://localhost\\.example.com/jwks",
            "http://auth.example.com#localhost",
            "http://auth.example.com?localhost",
            "http:/localhost/jwks",
            "http://2130706433/jwks",
            "http://127.1/jwks",
            "http://local\u200bhost.example.com/jwks",
        ],
        ids=short,
    )
    def test_http_to_another_machine_is_refused(self, url: str) -> None:
        with pytest.raises(ValueError, match="http only on a loopback address"):
            check_jwks_url(url)

    @pytest.mark.parametrize(
        "url",
        [
            " https://auth.example.com/jwks",
            "https://auth.example.com/jwks ",
            "https://auth.example.com/jw ks",
            "https://auth example.com/jwks",
            "https://auth.example.com /jwks",
            "https:// auth.example.com/jwks",
            "https://auth.example.com/jwks\n",
            "https://auth.exam\tple.com/jwks",
            "https://auth.example.com/\r\nX-Header: a",
            "http://local\thost/jwks",
            "https://auth.example.com/\0",
            "https://auth.example.com\xa0/jwks",
        ],
        ids=short,
    )
    def test_white_space_and_control_characters_are_refused(self, url: str) -> None:
        """Such a URL could not be fetched, or would lead to another address than the intended one."""
        with pytest.raises(ValueError, match="must look like"):
            check_jwks_url(url)

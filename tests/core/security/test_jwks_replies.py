"""What the client of an issuer's key set sends, and what it accepts of the replies of a hostile server."""

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from math import factorial, gcd
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from app.core.security.jwks import JwksClient, Timing
from app.core.security.tokens import Key
from tests.issuer import Answer, Issuer, hang, key_set, raw, reply
from tests.support import until
from tests.tokens import base64url, new_signer

Jwk = dict[str, Any]

FLOOD: Final = 2**26  # bytes; the kernel buffers some megabytes for both sides
SIZE_MAX: Final = 65_536
KEYS_MAX: Final = 32
OFTEN: Final = Timing(refresh=0.01, retry=0.01, first_retry=0.01)
OLD: Final = new_signer("EdDSA", "old")
NEW: Final = new_signer("EdDSA", "new")
HEADER: Final = {"kid": "old", "alg": "EdDSA"}
GOOD: Final = json.dumps({"keys": [OLD.jwk]}).encode()


def rsa(bits: int, exponent: str = "AQAB", factor: int = 1) -> Jwk:
    """A made-up public key of this size without small prime factors but `factor`. To generate one would take long."""
    modulus = next(n for n in range(2 ** (bits - 1) + 1, 2**bits, 2) if gcd(n, factorial(1_000)) == 1) * factor
    return {"kty": "RSA", "n": base64url(modulus.to_bytes(bits // 8 + 2, "big")), "e": exponent}


ED: Final = {name: OLD.jwk[name] for name in ("kty", "crv", "x")}  # as Better Auth publishes it
EC: Final = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
P384: Final = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True)
RSA: Final = rsa(2_048)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer that publishes the key OLD."""
    async with Issuer(raw(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD)) as issuer:
        yield issuer


class TestRequest:
    async def test_requests_ask_for_an_uncompressed_reply_and_send_no_cookie(self, issuer: Issuer) -> None:
        """A server that sets a new cookie in each reply would fill the memory."""
        issuer.answer = reply(GOOD, set_cookie="a=b; Path=/; Max-Age=1000000")

        async with JwksClient(issuer.url, OFTEN):
            await until(lambda: len(issuer.requests) == 3)

        for request in issuer.requests:
            assert {"accept-encoding: identity", "accept: application/json"} < {*request.lower().split("\r\n")}
            assert "cookie" not in request.lower()

    async def test_only_an_issuer_elsewhere_is_asked_through_the_proxy_of_the_environment(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Plain HTTP is allowed on this machine because it does not leave the machine."""
        async with Issuer(key_set(NEW.jwk)) as proxy:
            for name in ("http_proxy", "https_proxy"):
                monkeypatch.setenv(name, proxy.url)
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.delenv(name, raising=False)

            async with JwksClient(issuer.url) as keys:
                assert await keys.find(HEADER)
            assert proxy.requests == []

            async with JwksClient("https://auth.example.com/jwks"):
                await until(lambda: proxy.requests)
            assert proxy.requests[0].startswith("CONNECT auth.example.com:443 ")

    async def test_a_redirect_is_not_followed(self, issuer: Issuer) -> None:
        async with Issuer(key_set(OLD.jwk)) as target, JwksClient(issuer.url, OFTEN) as keys:
            issuer.answer = reply(GOOD, "307 Elsewhere", location=target.url, refresh=f"0; url={target.url}")
            await until(lambda: len(issuer.requests) == 3)

            assert (keys.ready, target.requests) == (False, [])


# Each reply, and the reason that the log gives for refusing it.
BAD: Final[dict[str, tuple[Answer, str]]] = {
    "nothing": (raw(b""), "RemoteProtocolError"),
    "not HTTP": (raw(b"SSH-2.0-OpenSSH_s3cret\r\n\r\n" + GOOD), "RemoteProtocolError"),
    "half a body": (reply(GOOD, content_length=str(len(GOOD) + 1)), "RemoteProtocolError"),
    "one byte too long": (reply(GOOD.ljust(SIZE_MAX + 1)), "more than 65,536 bytes"),
    "one key too many": (key_set(*[{}] * KEYS_MAX, OLD.jwk), "no set of at most 32 keys"),
    "compressed": (reply(gzip.compress(GOOD), content_encoding="gzip"), "status 200"),
    "HTML": (reply(b"<!doctype html><title>s3cret</title>", content_type="text/html"), "the reply is not JSON"),
    "not UTF-8": (reply(GOOD[:-1] + b', "\xff": 1}'), "the reply is not JSON"),
    "deeply nested": (reply(b'{"keys":' + b"[" * 60_000), "the reply is not JSON"),
    "OpenID configuration": (
        reply(b'{"issuer": "s3cret", "jwks_uri": "https://s3cret/jwks"}'),
        "this is the configuration of the issuer, so set AUTH_JWKS_URL to its jwks_uri",
    ),
    "not an object": (reply(b"[%s]" % GOOD), "no set of at most 32 keys"),
    "keys in an object": (reply(json.dumps({"keys": {"a": OLD.jwk}}).encode()), "no set of at most 32 keys"),
    "no usable key": (key_set(ED | {"kid": "s3cret", "x": "s3cret"}, {}, "s3cret"), "no usable key"),
    "another 2xx": (reply(GOOD, "201 s3cret", s3cret="s3cret"), "status 201"),
}


async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers one byte at a time, without end. No pause is long enough for a read timeout."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not writer.is_closing():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.005)


class TestReply:
    @pytest.mark.parametrize(
        "answer",
        [
            raw(b"HTTP/1.0 200 OK\r\n\r\n" + GOOD),
            reply(GOOD.ljust(SIZE_MAX), content_type="text/plain"),
            key_set(*[{}] * (KEYS_MAX - 1), OLD.jwk),
            key_set(None, [], "a", 1, {}, OLD.jwk, NEW.jwk | {"kid": 1}),
        ],
        ids=["HTTP/1.0", "largest size", "largest number", "among unusable members"],
    )
    async def test_a_valid_reply_gives_its_keys(self, issuer: Issuer, answer: Answer) -> None:
        issuer.answer = answer

        async with JwksClient(issuer.url) as keys:
            assert await keys.find(HEADER) == Key("EdDSA", OLD.public_key, "old")

    @pytest.mark.parametrize(("answer", "reason"), BAD.values(), ids=BAD)
    async def test_an_invalid_reply_leaves_the_known_keys_in_use_and_is_logged_without_its_content(
        self, issuer: Issuer, caplog: pytest.LogCaptureFixture, answer: Answer, reason: str
    ) -> None:
        caplog.set_level(logging.INFO, "app")
        async with JwksClient(issuer.url, OFTEN) as keys:
            await until(lambda: keys.ready)
            issuer.answer = answer
            await until(lambda: "not fetched" in caplog.text)
            assert await keys.find(HEADER) == Key("EdDSA", OLD.public_key, "old")
            assert keys.generation == 1
            issuer.answer = key_set(NEW.jwk)
            await until(lambda: keys.generation == 2)

        fetched, failed = "keys of the issuer fetched", f"keys of the issuer not fetched: {reason}"
        assert [record.getMessage() for record in caplog.records] == [fetched, failed, fetched]
        assert "s3cret" not in caplog.text

    @pytest.mark.parametrize("answer", [hang, drip])
    async def test_a_reply_that_does_not_end_is_given_up(self, issuer: Issuer, answer: Answer) -> None:
        issuer.answer = answer
        async with JwksClient(issuer.url, Timing(timeout=0.1, first_retry=0.01)):
            await until(lambda: len(issuer.requests) == 2)

    async def test_a_reply_of_64_megabytes_is_not_read_to_its_end(self, issuer: Issuer) -> None:
        sent: list[int] = []

        async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            for _chunk in range(FLOOD // SIZE_MAX):
                writer.write(bytes(SIZE_MAX))
                await writer.drain()
                sent.append(SIZE_MAX)

        issuer.answer = flood
        async with JwksClient(issuer.url) as keys:
            await until(lambda: issuer.requests and not issuer.connections)
        assert not keys.ready
        assert sum(sent) < FLOOD / 2


UNUSABLE: Final[dict[str, Jwk]] = {
    "a shared secret": {"kty": "oct", "k": base64url(bytes(32)), "crv": "Ed25519", "x": ED["x"]},
    "for encryption": RSA | {"use": "enc"},
    "for more than verifying": ED | {"key_ops": ["verify", "sign"]},
    "with its private half": ED | {"d": base64url(OLD.key.private_bytes_raw())},
    "RSA of 2,047 bits": rsa(2_047),
    "RSA of 8,193 bits": rsa(8_193),
    "RSA with exponent 1": rsa(2_048, "AQ"),
    "RSA with an even exponent": rsa(2_048, "AQAA"),
    "RSA with an even modulus": rsa(2_047, factor=2),
    "RSA with a factor of 751": rsa(2_047, factor=751),
    "RSA of ones": RSA | {"n": base64url(b"\xff" * 256)},
    "RSA with its primes": RSA | {"p": "AQ", "q": "AQ"},
    "RSA on a curve that is no text": RSA | {"crv": {}},
    "P-384": P384,
    "P-384 called P-256": P384 | {"crv": "P-256"},
    "EC without a curve": {name: EC[name] for name in ("kty", "x", "y")},
    "EC off the curve": EC | {"x": EC["y"]},
    "EC with a number for x": EC | {"x": 1},
    "X25519": ED | {"crv": "X25519"},
    "Ed25519 of 31 bytes": ED | {"x": base64url(bytes(31))},
    "Ed25519 without x": {"kty": "OKP", "crv": "Ed25519"},
    "with a list for a kind": ED | {"kty": ["OKP"]},
    "with a number as name": ED | {"kid": 1},
    "called ES256": ED | {"alg": "ES256"},
    "EC called Ed25519": EC | {"alg": "Ed25519"},
}


P: Final = 2**255 - 19  # the field of Ed25519 (RFC 8032 section 5.1)
ORDER_8: Final = int("7a03ac9277fdc74ec6cc392cfa53202a0f67100d760b3cba4fd84d3d706a17c7", 16)
# The y of every point of order 1, 2, 4 or 8, also in the second encoding of those below 19. Each has two signs of x.
SMALL_ORDER: Final = [
    (y | sign << 255).to_bytes(32, "little") for y in (0, 1, P - 1, ORDER_8, P - ORDER_8, P, P + 1) for sign in (0, 1)
]


class TestSmallOrder:
    async def test_an_ed25519_key_with_which_everybody_can_sign_is_refused(self, issuer: Issuer) -> None:
        jwks = [ED | {"kid": str(number), "x": base64url(key)} for number, key in enumerate(SMALL_ORDER)]
        issuer.answer = key_set(*jwks, NEW.jwk)

        async with JwksClient(issuer.url) as keys:
            assert [jwk for jwk in jwks if await keys.find(jwk | {"alg": "EdDSA"})] == []
            assert await keys.find({"alg": "EdDSA"}) == Key("EdDSA", NEW.public_key, "new")


class TestMembers:
    async def test_no_unusable_member_is_found_and_a_usable_key_beside_them_is(self, issuer: Issuer) -> None:
        issuer.answer = key_set(*({"kid": name} | jwk for name, jwk in UNUSABLE.items()), NEW.jwk)

        async with JwksClient(issuer.url) as keys:
            for name in UNUSABLE:
                for algorithm in ("EdDSA", "ES256", "RS256", "HS256"):
                    assert await keys.find({"kid": name, "alg": algorithm}) is None
            assert await keys.find({"alg": "EdDSA"}) == Key("EdDSA", NEW.public_key, "new")

    async def test_a_usable_key_is_found(self, issuer: Issuer) -> None:
        usable = [
            ("EdDSA", ED | {"kid": "minimal"}),
            ("EdDSA", ED | {"kid": "", "use": None, "alg": None}),
            ("EdDSA", ED | {"kid": "\0\U0001f418" * 1_000, "alg": "Ed25519"}),
            ("EdDSA", ED | {"kid": "full", "use": "sig", "alg": "EdDSA", "key_ops": ["verify"], "exp": 1}),
            ("ES256", EC | {"kid": "EC", "alg": "ES256"}),
            ("RS256", RSA | {"kid": "RSA", "x5t": "a", "x5u": issuer.url, "jku": issuer.url, "x": [{}]}),
            ("RS256", rsa(8_192) | {"kid": "large"}),
        ]
        issuer.answer = key_set(*(jwk for _, jwk in usable))

        async with JwksClient(issuer.url) as keys:
            found = [await keys.find(jwk | {"alg": algorithm}) for algorithm, jwk in usable]

        assert [key and (key.algorithm, key.kid) for key in found] == [(name, jwk["kid"]) for name, jwk in usable]
        assert len(issuer.requests) == 1

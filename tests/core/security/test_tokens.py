"""Checks of the shared secret at the start, and the cache of accepted tokens."""

import re
from datetime import datetime, tzinfo
from time import time
from typing import Any, Final

import jwt
import pytest

from app.core.errors import TokenInvalidError
from app.core.security.tokens import KeySource, SharedSecret, TokenVerifier, check_secret
from app.models.task import USER_ID_PATTERN
from tests.support import SECRET, short
from tests.tokens import claims_of, new_signer, signer

RANDOM: Final = "c0a94e1f7d3b82565e9ad07c41f8b3626b1e5d90a7c2f4388d06e3b95a17cf42"
PEM: Final = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA5pXqN8tJ2Lk7u0Ww\n-----END PUBLIC KEY-----"


PLACEHOLDERS: Final = (
    *("super-Secret", "MyPassword", "CHANGE-ME", "changethis", "change_it", "placeholder", "Example", "replace_me"),
    *("replace-this", "replace with", "your-own", "Your_Key", "your-jwt", "your-super", "your_random"),
    *("123456789", "abcdefgh"),
)


class Clock:
    """A clock for the service and for PyJWT."""

    def __init__(self) -> None:
        self.now = time()

    def time(self) -> float:
        return self.now

    def datetime_now(self, tz: tzinfo) -> datetime:
        return datetime.fromtimestamp(self.now, tz)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    stopped = type("Stopped", (datetime,), {"now": staticmethod(clock.datetime_now)})
    monkeypatch.setattr("app.core.security.tokens.time", clock.time)
    monkeypatch.setattr("jwt.api_jwt.datetime", stopped)
    return clock


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that were decoded, in order."""
    tokens: list[str] = []
    decode = jwt.PyJWT.decode

    def recording_decode(decoder: jwt.PyJWT, token: str, *args: Any, **others: Any) -> dict[str, Any]:
        tokens.append(token)
        return decode(decoder, token, *args, **others)

    monkeypatch.setattr(jwt.PyJWT, "decode", recording_decode)
    return tokens


def verifier_with(keys: KeySource, **others: Any) -> TokenVerifier:
    expected = {"user_id_claim": "sub", "issuer": None, "audience": None, "leeway": 0}
    return TokenVerifier(keys, user_id_pattern=USER_ID_PATTERN, **expected | others)


@pytest.fixture
def verifier() -> TokenVerifier:
    return verifier_with(SharedSecret(SECRET))


async def refusal(verifier: TokenVerifier, token: str) -> str:
    """Returns the reason for which the token is refused."""
    with pytest.raises(TokenInvalidError) as refused:
        await verifier.user_id_of(token)
    return refused.value.reason


class TestSecret:
    @pytest.mark.parametrize(
        "secret",
        [
            RANDOM,
            "5f1c9be2a7d04836c2f9d1e07ba4685c",
            "xkA3vQ9mW+zT0/rYcB5uHaG2dLfP1jE7nS4oK8iV6=",
            "correct horse battery staple lamp",
            "abcdefg8" * 4,
            "\u00e4\u00f6\u00fc\u00df\u00e9\u00e8\u00e0\u00f1\u00e7\u00f8\u00e5\u0153\u00e6\u00ee\u00f4\u00fb",
            "9f8X-----BEGIN-and-no-more-of-it!",
            "{" + RANDOM,
        ],
        ids=short,
    )
    def test_a_random_secret_of_32_bytes_is_accepted(self, secret: str) -> None:
        assert check_secret(secret) == secret

    @pytest.mark.parametrize(
        ("secret", "reason"),
        [
            ("", "at least 32 bytes"),
            ("q7Wz-" * 6 + "k", "at least 32 bytes"),
            ("\u00e4" * 15 + "k", "at least 32 bytes"),
            (PEM, "not a key"),
            ("# the key\n" + PEM.replace("PUBLIC", "PRIVATE"), "not a key"),
            ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKt0 ada@laptop", "not a key"),
            ('\n{"keys": [{"kty": "OKP", "crv": "Ed25519"}]}', "not a key"),
            (f"{RANDOM}\n", "white space"),
            (f" {RANDOM}", "white space"),
            *((f"{word}-kx82hq0w7vmz4p1nsd5rj9fa", "placeholder") for word in PLACEHOLDERS),
            ("0" * 64, "placeholder"),
            ("q7Wzk2M" * 5, "placeholder"),
        ],
        ids=short,
    )
    def test_a_weak_or_public_secret_is_refused_and_not_quoted(self, secret: str, reason: str) -> None:
        with pytest.raises(ValueError, match=re.escape(reason)) as refused:
            check_secret(secret)

        assert not secret.strip() or secret.strip() not in str(refused.value)
        assert "openssl rand" in str(refused.value)


class TestCache:
    async def test_each_token_is_verified_once_and_keeps_its_user(
        self, verifier: TokenVerifier, decoded: list[str]
    ) -> None:
        ada, bob = (signer("HS256").issue(claims_of(user)) for user in ("ada", "bob"))

        users = [await verifier.user_id_of(token) for token in (ada, bob, ada, bob)]

        assert users == ["ada", "bob", "ada", "bob"]
        assert decoded == [ada, bob]

    async def test_cached_claims_with_another_signature_are_refused(self, verifier: TokenVerifier) -> None:
        token = signer("HS256").issue(claims_of("ada"))
        forged = token.rpartition(".")[0] + "." + new_signer("HS256").issue({}).rpartition(".")[2]
        await verifier.user_id_of(token)

        assert await refusal(verifier, forged) == "signature"

    async def test_a_token_is_verified_each_time_after_its_expiry_and_refused_after_the_leeway(
        self, clock: Clock, decoded: list[str]
    ) -> None:
        verifier = verifier_with(SharedSecret(SECRET), leeway=30)
        end = int(clock.now) + 100
        token = signer("HS256").issue(claims_of("ada", exp=end))

        counts = []
        for clock.now in (end - 1, end - 0.5, end, end + 29):
            assert await verifier.user_id_of(token) == "ada"
            counts.append(len(decoded))
        assert counts == [1, 1, 2, 3]

        clock.now = end + 30
        assert await refusal(verifier, token) == "expired"

    async def test_a_refused_token_is_verified_again(self, verifier: TokenVerifier, clock: Clock) -> None:
        token = signer("HS256").issue(claims_of("ada", nbf=int(clock.now) + 60))
        assert await refusal(verifier, token) == "not valid yet"
        assert await refusal(verifier, token) == "not valid yet"

        clock.now += 61

        assert await verifier.user_id_of(token) == "ada"

    async def test_the_oldest_token_is_forgotten_when_the_cache_is_full(
        self, verifier: TokenVerifier, decoded: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.core.security.tokens._CACHE_MAX", 2)
        first, second, third = (signer("HS256").issue(claims_of(user)) for user in ("ada", "bob", "eve"))

        for token in (first, second, third, third, second):
            await verifier.user_id_of(token)
        assert decoded == [first, second, third]

        await verifier.user_id_of(first)
        assert decoded == [first, second, third, first]

    async def test_every_token_is_verified_again_once_after_the_keys_changed(self, decoded: list[str]) -> None:
        keys = SharedSecret(SECRET)
        verifier, token = verifier_with(keys), signer("HS256").issue(claims_of("ada"))
        await verifier.user_id_of(token)

        keys.generation += 1
        await verifier.user_id_of(token)
        await verifier.user_id_of(token)

        assert decoded == [token, token]

"""Checks of the shared secret at the start, and the cache of accepted tokens."""

import re
from datetime import datetime
from hashlib import md5, sha256
from time import time
from typing import Any, Final

import jwt
import pytest

from app.core.errors import TokenInvalidError
from app.core.security.tokens import SharedSecret, TokenVerifier, check_secret
from app.models.task import USER_ID_PATTERN
from tests.support import SECRET, short
from tests.tokens import claims_of, new_signer, signer

RANDOM: Final = "c0a94e1f7d3b82565e9ad07c41f8b3626b1e5d90a7c2f4388d06e3b95a17cf42"
PEM: Final = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA5pXqN8tJ2Lk7u0Ww\n-----END PUBLIC KEY-----"
PLACEHOLDERS: Final = (
    *("super-Secret", "MyPassword", "CHANGE-ME", "changethis", "change_it", "placeholder", "Example", "replace_me"),
    *("replace-this", "replace with", "your-own", "Your_Key", "your-jwt", "your-super", "your_random"),
    *("change-in", "random-string", "random char", "at-least", "Development", "production"),
    *("123456789", "abcdefgh", "qwertyuiop", "asdfghjkl"),
)
PUBLISHED: Final = (
    "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
    "09D25E094FAA6CA2556C818166B7A9563B93F7099F6F0F4CAA6CF63B88E8D3E7",
    "3EK6FD+o0+c7tzBNVfjpMkNDi2yARAAKzQlk8O2IKoxQu4nF7EdAh8s3TwpHwrdWT6R",
    "404E635266556A586E3272357538782F413F4428472B4B6250645367566B5970",
    "5367566B59703373367639792F423F4528482B4D6251655468576D5A71347437",
    "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
    "reallyreallyreallyreallyverysafe",
    md5(b"", usedforsecurity=False).hexdigest(),
    sha256(b"").hexdigest(),
    "a-string-secret-at-least-256-bits-long",  # jwt.io
    "better-auth-secret-12345678901234567890",
    "super-secret-jwt-token-with-at-least-32-characters-long",  # Supabase
)


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


@pytest.fixture
def keys() -> SharedSecret:
    return SharedSecret(SECRET)


@pytest.fixture
def verifier(keys: SharedSecret) -> TokenVerifier:
    return TokenVerifier(
        keys, user_id_pattern=USER_ID_PATTERN, user_id_claim="sub", issuer=None, audience=None, leeway=30
    )


class TestSecret:
    @pytest.mark.parametrize(
        "secret",
        [
            RANDOM,
            "correct horse battery staple lamp",
            "abcdefg8" * 3 + "8gfedcba",
            RANDOM[:32] + "-" + RANDOM[:32],
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
            ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKt0 ada@laptop", "not a key"),
            ('\n{"keys": [{"kty": "OKP", "crv": "Ed25519"}]}', "not a key"),
            (f"{RANDOM}\n", "white space"),
            (f" {RANDOM}", "white space"),
            (f"{RANDOM}\udcff", "UTF-8 text"),
            (f'"{RANDOM}"', "quotation marks"),
            (f"'{RANDOM}'", "quotation marks"),
            (f"{RANDOM} # for production", "a comment after it"),
            *((f"{word}-kx82hq0w7vmz4p1nsd5rj9fa", "placeholder") for word in PLACEHOLDERS),
            *((secret, "placeholder") for secret in PUBLISHED),
            *(
                (f"{text} 4f8e2a97c1d6b3e0", "placeholder")
                for text in ("openssl rand -hex 32", "`openssl rand -hex 32`")
            ),
            *((text.format(RANDOM), "placeholder") for text in ("<{}>", "${{{}}}", "$({})")),
            ("0" * 64, "placeholder"),
            ("abcdefg8" * 4, "placeholder"),
            (RANDOM[:16] * 2, "placeholder"),
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
    async def test_cached_claims_with_another_signature_are_refused(self, verifier: TokenVerifier) -> None:
        token = signer("HS256").issue(claims_of("ada"))
        forged = token.rpartition(".")[0] + "." + new_signer("HS256").issue({}).rpartition(".")[2]
        await verifier.user_id_of(token)

        with pytest.raises(TokenInvalidError, check=lambda error: error.reason == "signature"):
            await verifier.user_id_of(forged)

    async def test_a_token_is_verified_each_time_after_its_expiry_and_refused_after_the_leeway(
        self, verifier: TokenVerifier, decoded: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        end = int(time()) + 100
        token = signer("HS256").issue(claims_of("ada", exp=end))

        def set_clock(now: float) -> None:
            stopped = type("Stopped", (datetime,), {"now": lambda tz: datetime.fromtimestamp(now, tz)})
            monkeypatch.setattr("app.core.security.tokens.time", lambda: now)
            monkeypatch.setattr("jwt.api_jwt.datetime", stopped)

        for now, times in ((end - 1, 1), (end - 0.5, 1), (end, 2), (end + 29, 3)):
            set_clock(now)
            assert await verifier.user_id_of(token) == "ada"
            assert len(decoded) == times

        set_clock(end + 30)
        with pytest.raises(TokenInvalidError, check=lambda error: error.reason == "expired"):
            await verifier.user_id_of(token)

    async def test_a_token_is_verified_once_and_keeps_its_user_until_a_full_cache_forgets_the_oldest_token(
        self, verifier: TokenVerifier, decoded: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.core.security.tokens._CACHE_MAX", 2)
        users = ["ada", "bob", "ada", "bob", "eve", "bob", "ada"]
        tokens = {user: signer("HS256").issue(claims_of(user)) for user in users}

        assert [await verifier.user_id_of(tokens[user]) for user in users] == users
        assert decoded == [tokens[user] for user in ("ada", "bob", "eve", "ada")]

    async def test_every_token_is_verified_again_once_after_the_keys_changed(
        self, keys: SharedSecret, verifier: TokenVerifier, decoded: list[str]
    ) -> None:
        token = signer("HS256").issue(claims_of("ada"))
        for generation in (0, 1, 1):
            keys.generation = generation
            await verifier.user_id_of(token)

        assert decoded == [token, token]

"""`python -m benchmarks.tokens`: the cost of verifying a token, new and cached.

Prints a table of microseconds per token, the medians of 5 rounds.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from statistics import median
from time import perf_counter, time
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from app.core.security.tokens import Key, TokenVerifier
from app.models.task import USER_ID_PATTERN

ROUNDS: Final = 5
TOKENS: Final = 300
PRIVATE_KEYS: Final[dict[str, Any]] = {
    "HS256": secrets.token_bytes(32),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "RS256": rsa.generate_private_key(65_537, 2_048),
}


class OneKey:
    """A key source that always returns the same key."""

    generation = 0
    ready = True

    def __init__(self, algorithm: str) -> None:
        private = PRIVATE_KEYS[algorithm]
        self._key = Key(algorithm, private if isinstance(private, bytes) else private.public_key())

    async def find(self, _: Mapping[str, Any]) -> Key:
        return self._key


_numbers = count()


def make_tokens(algorithm: str) -> list[str]:
    """Returns distinct tokens, as large as those of Better Auth."""
    claims = {"iss": "https://app.example.com", "aud": "https://app.example.com", "exp": time() + 900, "iat": time()}
    user = {"name": "Ada Lovelace", "email": "ada@example.com", "emailVerified": False, "createdAt": "2026-11-22T09:30"}
    return [
        jwt.encode(
            {**claims, **user, "sub": f"{next(_numbers):032}"}, PRIVATE_KEYS[algorithm], algorithm, {"kid": "k" * 32}
        )
        for _ in range(TOKENS)
    ]


async def microseconds(call: Callable[[str], Awaitable[str]], tokens: list[str]) -> float:
    started = perf_counter()
    for token in tokens:
        await call(token)
    return (perf_counter() - started) / len(tokens) * 1e6


async def measure(algorithm: str) -> tuple[float, float]:
    """Returns the microseconds per new token, and per token that has been verified before."""
    verifier = TokenVerifier(
        OneKey(algorithm),
        user_id_pattern=USER_ID_PATTERN,
        user_id_claim="sub",
        issuer="https://app.example.com",
        audience="https://app.example.com",
        leeway=30,
    )
    new, again = [], []
    for _ in range(ROUNDS):
        tokens = make_tokens(algorithm)
        new.append(await microseconds(verifier.user_id_of, tokens))
        again.append(await microseconds(verifier.user_id_of, tokens))
    return median(new), median(again)


async def main() -> None:
    print("| Algorithm | New token, µs | Again, µs | Ratio |\n|---|---|---|---|")
    for algorithm in PRIVATE_KEYS:
        new, again = await measure(algorithm)
        print(f"| {algorithm} | {new:.0f} | {again:.1f} | {new / again:.0f} |")


if __name__ == "__main__":
    asyncio.run(main())

"""Keys and tokens of an issuer, also tokens that PyJWT would refuse to sign."""

import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from time import time
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from jwt.algorithms import get_default_algorithms

from app.core.database.pool import SlotPool
from tests.support import SECRET

_ALGORITHMS: Final[dict[str, Any]] = get_default_algorithms()
_NEW_KEYS: Final[dict[str, Callable[[], Any]]] = {
    "HS256": lambda: secrets.token_hex(32).encode(),
    "EdDSA": Ed25519PrivateKey.generate,
    "ES256": lambda: generate_ec_key(SECP256R1()),
    "RS256": lambda: generate_rsa_key(65_537, 2_048),
}


class Signer(NamedTuple):
    """A key, and its algorithm and id in the header of a token."""

    algorithm: str
    kid: str | None
    key: Any

    def issue(self, claims: Mapping[str, object], **header: object) -> str:
        """Returns a token with these claims. `header` adds or replaces fields of its header."""
        fields = {"alg": self.algorithm, "typ": "JWT"} | ({"kid": self.kid} if self.kid else {}) | header
        return self.sign(json.dumps(fields).encode(), json.dumps(claims).encode())

    def sign(self, header: bytes, payload: bytes) -> str:
        """Returns a token with exactly these bytes as header and payload."""
        signed = f"{base64url(header)}.{base64url(payload)}"
        return f"{signed}.{base64url(_ALGORITHMS[self.algorithm].sign(signed.encode(), self.key))}"

    @property
    def public_key(self) -> Any:
        """The key that verifies the signature."""
        return self.key if isinstance(self.key, bytes) else self.key.public_key()

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key as a JSON Web Key (RFC 7517)."""
        return {**_ALGORITHMS[self.algorithm].to_jwk(self.public_key, as_dict=True), "kid": self.kid}


def new_signer(algorithm: str, kid: str | None = None) -> Signer:
    """Returns a signer with a new key."""
    return Signer(algorithm, kid, _NEW_KEYS[algorithm]())


@cache
def signer(algorithm: str) -> Signer:
    """Returns a signer that the service under test trusts, with AUTH_JWT_SECRET or a key of the issuer."""
    return Signer("HS256", None, SECRET.encode()) if algorithm == "HS256" else new_signer(algorithm, f"key-{algorithm}")


def claims_of(owner: str, /, **changes: object) -> dict[str, object]:
    """Returns the claims of a valid token of this user, with changes."""
    now = int(time())
    return {"sub": owner, "iat": now, "exp": now + 600} | changes


def carrying(token: str) -> dict[str, str]:
    """Returns the request header with the token."""
    return {"Authorization": f"Bearer {token}"}


def base64url(content: bytes) -> str:
    """Returns the encoded content without padding (RFC 7515 section 2)."""
    return urlsafe_b64encode(content).rstrip(b"=").decode()


@contextmanager
def counted_checkouts() -> Iterator[list[None]]:
    """Yields a list that gets one element for each connection that is taken from a pool."""
    checkouts: list[None] = []
    run = SlotPool.fetch

    async def count(pool: SlotPool, *arguments: Any, **options: Any) -> Any:
        checkouts.append(None)
        return await run(pool, *arguments, **options)

    with patch.object(SlotPool, "fetch", count):
        yield checkouts

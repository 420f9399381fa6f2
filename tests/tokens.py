"""Keys and tokens of an issuer, and forged tokens, many of which PyJWT would refuse to sign."""

import hmac
import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from time import time
from typing import Any, NamedTuple
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from app.core.database.pool import SlotPool
from tests.support import SECRET

SigningKey = bytes | Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey


class Signer(NamedTuple):
    """A key, and its algorithm and id in the header of a token."""

    algorithm: str
    kid: str | None
    key: SigningKey

    def issue(self, claims: Mapping[str, object], **header: object) -> str:
        """Returns a token with these claims. `header` adds or replaces fields of its header."""
        fields = {"alg": self.algorithm, "typ": "JWT"} | ({"kid": self.kid} if self.kid else {}) | header
        return sign(json.dumps(fields).encode(), json.dumps(claims).encode(), self.key)

    @property
    def public_key(self) -> Any:
        """The key that verifies the signature."""
        return self.key if isinstance(self.key, bytes) else self.key.public_key()

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key as a JSON Web Key (RFC 7517)."""
        return {**_public_jwk(self.key), "kid": self.kid}


def new_signer(algorithm: str, kid: str | None = None) -> Signer:
    """Returns a signer with a new key."""
    match algorithm:
        case "HS256":
            return Signer(algorithm, kid, secrets.token_hex(32).encode())
        case "EdDSA":
            return Signer(algorithm, kid, Ed25519PrivateKey.generate())
        case "ES256":
            return Signer(algorithm, kid, generate_ec_key(SECP256R1()))
        case _:
            return Signer(algorithm, kid, generate_rsa_key(65_537, 2_048))


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


def sign(header: bytes, payload: bytes, key: SigningKey) -> str:
    """Returns a token with exactly these bytes as header and payload."""
    signed = f"{base64url(header)}.{base64url(payload)}"
    return f"{signed}.{base64url(signature(signed.encode(), key))}"


def signature(message: bytes, key: SigningKey) -> bytes:
    """Returns the signature in the form of RFC 7518 section 3 and RFC 8037 section 3.1."""
    match key:
        case bytes():
            return hmac.digest(key, message, "sha256")
        case Ed25519PrivateKey():
            return key.sign(message)
        case EllipticCurvePrivateKey():
            r, s = decode_dss_signature(key.sign(message, ECDSA(SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        case _:
            return key.sign(message, PKCS1v15(), SHA256())


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


def _public_jwk(key: SigningKey) -> dict[str, Any]:
    match key:
        case bytes():
            return {"kty": "oct", "k": base64url(key)}
        case Ed25519PrivateKey():
            return OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case EllipticCurvePrivateKey():
            return ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case _:
            return RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)

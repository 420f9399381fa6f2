"""Bearer tokens: JWTs (RFC 7519), verified as RFC 8725 recommends."""

import json
import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from time import time
from typing import Any, Final, NamedTuple, Protocol

import jwt
from jwt.algorithms import HMACAlgorithm, OKPAlgorithm

from app.core.errors import TokenInvalidError

TOKEN_MAX: Final = 8_192  # bytes
SECRET_MIN: Final = 32  # bytes, the length of the hash (RFC 7518 section 3.2)
_CACHE_MAX: Final = 16_384  # tokens, about 300 bytes each
_YEAR_10000: Final = 253_402_300_800  # seconds since 1970
# RFC 7515 section 3.1. The signature is required: an unsecured token ends with a dot.
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_PLACEHOLDER: Final = re.compile(
    r"\A<.*>\Z|\A\$[({].*[)}]\Z|openssl|secret|password|change.?(me|this|it)|placeholder|example|replace.?(me|this|with)|your.(own|key|jwt|super|random)"
    r"|change.?in|random.?(char|string)|at.?least|development|production|123456789|abcdefgh|qwert|asdfg",
    re.IGNORECASE,
)
# Secrets of examples that many have copied, and the digests of nothing (MD5, SHA-256), in lower case.
_PUBLISHED: Final = frozenset(
    {
        "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",  # FastAPI's tutorial
        "3ek6fd+o0+c7tzbnvfjpmkndi2yaraakzqlk8o2ikoxqu4nf7edah8s3twphwrdwt6r",  # Hasura's documentation
        "404e635266556a586e3272357538782f413f4428472b4b6250645367566b5970",  # tutorials of Spring Security
        "5367566b59703373367639792f423f4528482b4d6251655468576d5a71347437",
        "aym1sysppbydfgzld3umj1qzkobwvmkoqq-estjqlr_t-1qs0gzh75aktmn3yj0ips4hcguutwjazzr1z9caow",  # RFC 7515
        "reallyreallyreallyreallyverysafe",  # PostgREST's documentation
        "d41d8cd98f00b204e9800998ecf8427e",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
)
# What .env files may have around a value. Where such a file is read in another way, it becomes part of the secret.
_WRAPPED: Final = re.compile(r"""\A\s|\s\Z|\A(["']).*\1\Z|\s#\s""", re.DOTALL)
_DISTINCT_MIN: Final = 8  # different characters; a random text of 32 bytes has more
_REASONS: Final[dict[type[jwt.PyJWTError], str]] = {
    jwt.ExpiredSignatureError: "expired",
    jwt.ImmatureSignatureError: "not valid yet",
    jwt.InvalidSignatureError: "signature",
    jwt.InvalidAlgorithmError: "algorithm",
    jwt.InvalidAudienceError: "audience",
    jwt.InvalidIssuerError: "issuer",
}


class Key(NamedTuple):
    """A key that verifies signatures, the only algorithm it may be used with, and its id."""

    algorithm: str
    material: Any
    kid: str | None = None


class KeySource(Protocol):
    """A source of keys. `generation` changes when a key may have been withdrawn."""

    generation: int

    @property
    def ready(self) -> bool:
        """Whether keys are available."""

    async def find(self, header: Mapping[str, Any]) -> Key | None:
        """Returns the key for a token with this header, or None. Raises IssuerUnavailableError without any keys."""


class SharedSecret:
    """A secret that the service shares with the issuer."""

    generation = 0
    ready = True

    def __init__(self, secret: str) -> None:
        self._key = Key("HS256", secret.encode())

    async def find(self, _: Mapping[str, Any]) -> Key:
        """Returns the key of the secret, whatever the header says."""
        return self._key


class _Verified(NamedTuple):
    user_id: str
    expires: float


class TokenVerifier:
    """Verifies tokens and reads the user id. A valid token is cached until it expires or the keys change."""

    def __init__(
        self,
        keys: KeySource,
        *,
        user_id_pattern: str,
        user_id_claim: str,
        issuer: str | None,
        audience: str | None,
        leeway: float,
    ) -> None:
        """`user_id_claim` is a dotted path, `leeway` is in seconds. `issuer` and `audience` are optional."""
        self._keys = keys
        self._user_id_pattern = re.compile(user_id_pattern)
        self._claim_path = user_id_claim.split(".")
        self._expected: dict[str, Any] = {"issuer": issuer, "audience": audience, "leeway": leeway}
        self._jwt = _StrictJWT(
            {"require": ["exp"], "verify_aud": audience is not None, "enforce_minimum_key_length": True}
        )
        self._cache: dict[bytes, _Verified] = {}
        self._generation = keys.generation

    @property
    def ready(self) -> bool:
        """Whether keys are available to verify tokens."""
        return self._keys.ready

    async def user_id_of(self, token: str) -> str:
        """Returns the user id in `token`.

        Raises TokenInvalidError if the token is not valid, and IssuerUnavailableError if there are no keys yet.
        """
        digest = blake2b(token.encode(), digest_size=32).digest()
        if self._generation != self._keys.generation:
            self._cache.clear()
            self._generation = self._keys.generation
        cached = self._cache.get(digest)
        if cached and time() < cached.expires:
            return cached.user_id
        verified = await self._verify(token)
        if time() < verified.expires:  # a token that is valid only within the leeway is not cached
            self._store(digest, verified)
        return verified.user_id

    async def _verify(self, token: str) -> _Verified:
        if len(token) > TOKEN_MAX or not _COMPACT.fullmatch(token):
            raise TokenInvalidError("malformed")
        try:
            key = await self._keys.find(jwt.get_unverified_header(token))
            if key is None:
                raise TokenInvalidError("unknown key")
            claims = self._jwt.decode(token, key.material, [key.algorithm], **self._expected)
        except jwt.PyJWTError as error:
            raise TokenInvalidError(_reason(error)) from None
        return _Verified(self._user_id_in(claims), claims["exp"])

    def _user_id_in(self, claims: object) -> str:
        for name in self._claim_path:
            claims = claims.get(name) if isinstance(claims, dict) else None
        if not isinstance(claims, str) or not self._user_id_pattern.fullmatch(claims):
            raise TokenInvalidError("user id")
        return claims

    def _store(self, digest: bytes, verified: _Verified) -> None:
        if len(self._cache) >= _CACHE_MAX:
            del self._cache[next(iter(self._cache))]  # the oldest
        self._cache[digest] = verified


class _StrictJWT(jwt.PyJWT):
    """PyJWT, but duplicate claims and times that are not numbers are refused, and Ed25519 is known (RFC 9864)."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._jws.register_algorithm("Ed25519", OKPAlgorithm())  # PyJWT only knows its old name, EdDSA

    def _decode_payload(self, decoded: dict[str, Any]) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = json.loads(decoded["payload"].decode(), object_pairs_hook=_unique)
        except (ValueError, RecursionError):
            raise jwt.DecodeError from None
        if not isinstance(claims, dict) or not all(
            _is_date(claims[name]) for name in ("exp", "nbf", "iat") if name in claims
        ):
            raise jwt.DecodeError
        return claims


def check_secret(secret: str) -> str:
    """Returns `secret`. Raises ValueError if the secret is malformed or guessable. The text never shows the value."""
    if re.search("[\ud800-\udfff]", secret):  # bytes of the environment that are not UTF-8
        message = "must be UTF-8 text"
    elif len(secret.encode()) < SECRET_MIN:
        message = f"must have at least {SECRET_MIN} bytes"
    elif _is_key(secret):
        message = "must be a secret that only you and the issuer know, not a key in PEM, SSH or JSON form"
    elif _WRAPPED.search(secret):
        message = "must not have quotation marks or white space around it, or a comment after it"
    elif _is_guessable(secret):
        message = "looks like a placeholder that others could guess"
    else:
        return secret
    raise ValueError(message + "; `openssl rand -hex 32` makes a good one (BETTER_AUTH_SECRET is the same setting)")


def _is_guessable(secret: str) -> bool:
    """Returns whether this is a text of documentation, repeats itself, or has few different characters."""
    is_repeated = secret in (secret + secret)[1:-1]
    is_known = secret.lower() in _PUBLISHED or bool(_PLACEHOLDER.search(secret))
    return is_known or is_repeated or len(set(secret)) < _DISTINCT_MIN


def _is_key(secret: str) -> bool:
    """Returns whether this is a key in PEM, SSH or JSON form. The issuer may have published it, so PyJWT refuses it."""
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        return True
    return False


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a duplicate name, because another parser may have used the other value."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError
        members[name] = value
    return members


def _is_date(value: object) -> bool:
    """Returns whether this is a NumericDate (RFC 7519 section 2) from 1970 to 9999."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _YEAR_10000


def _reason(error: jwt.PyJWTError) -> str:
    """Returns the reason for the log. The text of the error is not used, because it may quote the token."""
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"no {error.claim}"
    return next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), "malformed")

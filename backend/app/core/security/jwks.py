"""The public keys of an issuer, from its JSON Web Key Set (RFC 7517)."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from math import factorial, gcd
from time import monotonic
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWTError
from pydantic_core import from_json

from app.core.errors import IssuerUnavailableError
from app.core.security.loopback import is_cluster_name, is_loopback
from app.core.security.tokens import Key

_SIZE_MAX: Final = 65_536  # bytes
_KEYS_MAX: Final = 32
_RSA_BITS: Final = range(2_048, 8_193)  # RFC 7518 section 3.3; longer keys only cost time
_SMALL_PRIMES: Final = factorial(751)  # their product and more (NIST SP 800-89 section 5.3.3)
_P: Final = 2**255 - 19  # the field of Ed25519 (RFC 8032 section 5.1)
_PRIVATE: Final = {"d", "p", "q", "dp", "dq", "qi", "oth"}  # RFC 7518 section 6
# The key decides on the algorithm, not the token (RFC 8725 section 3.1).
_ALGORITHMS: Final = {
    ("OKP", "Ed25519"): ("EdDSA", "Ed25519"),  # the old and the new name (RFC 9864); with this key both mean the same
    ("EC", "P-256"): ("ES256",),
    ("RSA", None): ("RS256",),
}
_FETCHED: Final = "fetched"

_logger = logging.getLogger(__name__)


class _BadReplyError(ValueError):
    """The reply is not a usable key set. The text never quotes the reply."""


class Timing(NamedTuple):
    """When keys are fetched, in seconds."""

    timeout: float = 5  # for one fetch, from the first byte sent to the last byte received
    refresh: float = 300  # between two fetches. A withdrawn key is accepted for at most this long.
    retry: float = 30  # until the next fetch after a failure, and between two fetches for unknown keys
    first_retry: float = 2  # until the next fetch while there have never been any keys


class JwksClient:
    """Fetches the keys at start-up and then in the background. While a fetch fails, the previous keys stay in use."""

    def __init__(self, url: str, timing: Timing | None = None) -> None:
        self._timing = timing or Timing()
        self._client = httpx.AsyncClient(
            timeout=self._timing.timeout,
            # A small compressed reply could expand to a large one.
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            follow_redirects=False,
            trust_env=url.lower().startswith("https:"),  # plain HTTP stays on the machine or in the cluster
        )
        self._url = url
        self._keys: list[Key] | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._outcome = ""
        self._refetched_at = float("-inf")
        self._fetched_at: float | None = None
        self.generation = 0

    async def __aenter__(self) -> Self:
        self._upkeep = asyncio.create_task(self._keep_fresh())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for task in (self._upkeep, self._fetching) if task]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._client.aclose()

    @property
    def ready(self) -> bool:
        """Whether the keys have been fetched at least once."""
        return self._keys is not None

    @property
    def age(self) -> float | None:
        """The seconds since the keys were fetched, None if they never were. Any thread may ask."""
        return None if self._fetched_at is None else monotonic() - self._fetched_at

    async def find(self, header: Mapping[str, Any]) -> Key | None:
        """Returns the key for a token with this header, or None. An unknown key causes a fetch, at most once in 30
        seconds.

        Raises IssuerUnavailableError if the keys have never been fetched.
        """
        if not self._outcome:
            await self._fetch()
        if self._keys is None:
            raise IssuerUnavailableError
        key = _select(self._keys, header)
        if key is None and (self._is_fetching() or self._claim_refetch()):
            await self._fetch()
            key = _select(self._keys, header)
        return key

    def _is_fetching(self) -> bool:
        return self._fetching is not None and not self._fetching.done()

    def _claim_refetch(self) -> bool:
        """Returns True at most once in `Timing.retry` seconds."""
        if monotonic() - self._refetched_at < self._timing.retry:
            return False
        self._refetched_at = monotonic()
        return True

    async def _keep_fresh(self) -> None:
        _, refresh, retry, first_retry = self._timing
        while True:
            await self._fetch()
            await asyncio.sleep(first_retry if not self.ready else refresh if self._outcome == _FETCHED else retry)

    async def _fetch(self) -> None:
        """Fetch the keys. Concurrent callers share one fetch."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._replace_keys())
        await asyncio.wait([self._fetching])  # the fetch outlives the request that started it

    async def _replace_keys(self) -> None:
        try:
            async with asyncio.timeout(self._timing.timeout):
                keys = _read_keys(await self._download())
        except _BadReplyError as error:
            self._log_outcome(str(error))
            return
        except httpx.ConnectError as error:  # without a reply that its text could quote
            self._log_outcome(f"AUTH_JWKS_URL: there is no connection to {httpx.URL(self._url).host}: {error}")
            return
        except (OSError, ValueError, httpx.HTTPError) as error:
            self._log_outcome(type(error).__name__)  # its text may quote the reply
            return
        self._log_outcome(_FETCHED)
        self._fetched_at = monotonic()
        if keys != (self._keys or []):  # an empty set only counts if it replaces a set with keys
            self._keys = keys
            self.generation += 1

    async def _download(self) -> bytes:
        content = bytearray()
        async with self._client.stream("GET", self._url) as reply:
            if reply.status_code != httpx.codes.OK or "content-encoding" in reply.headers:
                raise _BadReplyError(f"status {reply.status_code}")
            async for chunk in reply.aiter_raw():
                content += chunk
                if len(content) > _SIZE_MAX:
                    raise _BadReplyError(f"more than {_SIZE_MAX:,} bytes")
        return bytes(content)

    def _log_outcome(self, outcome: str) -> None:
        if outcome == self._outcome:
            return
        self._outcome = outcome
        if outcome == _FETCHED:
            _logger.info("keys of the issuer fetched")
        else:
            _logger.warning("keys of the issuer not fetched: %s", outcome)


def check_jwks_url(url: str) -> str:
    """Returns `url`. Raises ValueError unless it uses HTTPS, or HTTP within machine or cluster, and has no password."""
    with suppress(ValueError, httpx.InvalidURL):
        httpx.URL(url)
        parts = urlsplit(url)
        in_cluster = parts.scheme == "http" and is_cluster_name(parts.hostname or "")
        safe = in_cluster or parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
        well_formed = url.isprintable() and " " not in url and "@" not in parts.netloc
        if safe and well_formed and parts.hostname and parts.port != 0:
            return url
    raise ValueError(
        "must look like https://auth.example.com/.well-known/jwks.json; http only on a loopback address, "
        "or with a name inside a cluster, such as http://frontend:3000/api/auth/jwks"
    )


def _select(keys: Iterable[Key], header: Mapping[str, Any]) -> Key | None:
    """Returns the key for a token with this header, or None. A token without `kid` needs to match exactly one key."""
    kid = header.get("kid")
    matches = [key for key in keys if key.algorithm == header.get("alg") and kid in (None, key.kid)]
    return matches[0] if len(matches) == 1 or (matches and kid is not None) else None


def _read_keys(content: bytes) -> list[Key]:
    """Returns the usable keys, none for an empty set. Raises ValueError if the set has keys, but no usable one."""
    try:
        document = from_json(content)
    except ValueError:  # its text quotes the reply
        raise _BadReplyError("the reply is not JSON") from None
    if isinstance(document, dict) and document.keys() & {"jwks_uri", "keys"} == {"jwks_uri"}:
        raise _BadReplyError("this is the configuration of the issuer, so set AUTH_JWKS_URL to its jwks_uri")
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list) or len(members) > _KEYS_MAX:
        raise _BadReplyError(f"no set of at most {_KEYS_MAX} keys")
    keys = [key for member in members if isinstance(member, dict) for key in _read_key(member)]
    if members and not keys:
        raise _BadReplyError("no usable key")
    return keys


def _read_key(jwk: dict[str, Any]) -> list[Key]:
    """Returns a public key that verifies signatures, once for each name of its algorithm. Empty for any other JWK."""
    curve = jwk.get("crv")
    algorithms = _ALGORITHMS.get((str(jwk.get("kty")), None if curve is None else str(curve)))
    if algorithms is None or not _is_for_signatures(jwk, algorithms):
        return []
    try:
        material = PyJWK(jwk, algorithms[0]).key
    except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):  # raised for malformed members
        return []
    return [] if _is_weak(material) else [Key(name, material, jwk.get("kid")) for name in algorithms]


def _is_weak(material: Any) -> bool:
    """Returns whether anybody could sign with the key.

    The library itself refuses points that are not on P-256, and RSA exponents that are even or 1.
    """
    if isinstance(material, RSAPublicKey):
        return material.key_size not in _RSA_BITS or gcd(material.public_numbers().n, _SMALL_PRIMES) > 1
    return isinstance(material, Ed25519PublicKey) and _has_small_order(material)


def _has_small_order(point: Ed25519PublicKey) -> bool:
    """Returns whether the point has order 1, 2, 4 or 8. Anybody can forge signatures for such a key.

    The factors of the product are 0 for order 4, for orders 1 and 2, and for order 8. Twice a point of order 8 has
    y = 0, so x² = -y² in the equation of the curve.
    """
    y = int.from_bytes(point.public_bytes_raw(), "little") % 2**255
    return y * (y**2 - 1) * (121_666 * (2 * y**2 - 1) - 121_665 * y**4) % _P == 0


def _is_for_signatures(jwk: dict[str, Any], algorithms: Iterable[str]) -> bool:
    """A key that was published with a part of its private half is compromised, so it is not used."""
    return (
        jwk.get("use") in (None, "sig")
        and jwk.get("alg") in (None, *algorithms)
        and jwk.get("key_ops", ["verify"]) == ["verify"]
        and isinstance(jwk.get("kid"), str | None)
        and not _PRIVATE & jwk.keys()
    )

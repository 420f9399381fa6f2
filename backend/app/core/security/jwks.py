"""The public keys of an issuer, from its JSON Web Key Set (RFC 7517)."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from time import monotonic
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWTError
from pydantic_core import from_json

from app.core.errors import IssuerUnavailableError
from app.core.security.loopback import is_loopback
from app.core.security.tokens import Key

_TIMEOUT: Final = 5  # seconds for one fetch, from the first byte sent to the last one received
_REFRESH: Final = 300  # seconds after which the keys are fetched anew: the longest that a withdrawn key is accepted
_RETRY: Final = 30  # seconds after a failure, and between two fetches because of unknown keys
_FIRST_RETRY: Final = 2  # seconds after a failure while there are no keys at all
_SIZE_MAX: Final = 65_536  # bytes
_KEYS_MAX: Final = 32
_RSA_BITS: Final = range(2_048, 8_193)  # RFC 7518 section 3.3; longer ones only cost time
# The algorithm is the key's, whatever a token says (RFC 8725 section 3.1).
_ALGORITHMS: Final = {("OKP", "Ed25519"): "EdDSA", ("EC", "P-256"): "ES256", ("RSA", None): "RS256"}
_NEW_NAMES: Final = {"EdDSA": "Ed25519"}  # RFC 9864 section 2.2; tokens still have the old one
_FETCHED: Final = "fetched"

_logger = logging.getLogger(__name__)


class _BadReplyError(ValueError):
    """The reply is no set of keys. The text is ours."""


class JwksClient:
    """Fetches the keys at the start and again in the background. While that fails, the last ones stay in use."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(
            timeout=_TIMEOUT,
            # Without a `Content-Encoding`, no small reply can become a large one.
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            follow_redirects=False,
            trust_env=url.lower().startswith("https:"),  # what is for this machine goes through no proxy
        )
        self._url = url
        self._keys: list[Key] | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._outcome = ""
        self._asked = float("-inf")
        self.generation = 0

    async def __aenter__(self) -> Self:
        self._upkeep = asyncio.create_task(self._keep_fresh())
        return self

    async def __aexit__(self, *_: object) -> None:
        running = [task for task in (self._upkeep, self._fetching) if task]
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        await self._client.aclose()

    @property
    def ready(self) -> bool:
        """Whether the keys were fetched once."""
        return self._keys is not None

    async def find(self, header: Mapping[str, Any]) -> Key | None:
        """Returns the key for a token with this header. For an unknown one the keys are fetched, but not too often.

        Raises IssuerUnavailableError if they have never been fetched.
        """
        if not self._outcome:
            await self._fetch()
        if self._keys is None:
            raise IssuerUnavailableError
        key = _select(self._keys, header)
        if key is None and (self._is_fetching() or self._may_ask()):
            await self._fetch()
            key = _select(self._keys, header)
        return key

    def _is_fetching(self) -> bool:
        return self._fetching is not None and not self._fetching.done()

    def _may_ask(self) -> bool:
        """Whether it is long enough since this was last granted."""
        if monotonic() - self._asked < _RETRY:
            return False
        self._asked = monotonic()
        return True

    async def _keep_fresh(self) -> None:
        while True:
            await self._fetch()
            await asyncio.sleep(_REFRESH if self._outcome == _FETCHED else _RETRY if self.ready else _FIRST_RETRY)

    async def _fetch(self) -> None:
        """Fetch the keys, once for all who wait for them."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._replace_keys())
        await asyncio.wait([self._fetching])  # which outlives the request that began it

    async def _replace_keys(self) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                keys = _read_keys(await self._download())
        except _BadReplyError as error:
            self._note(str(error))
            return
        except (OSError, ValueError, httpx.HTTPError) as error:
            self._note(type(error).__name__)  # whose text may quote the reply
            return
        self._note(_FETCHED)
        if keys != (self._keys or []):  # without any, tokens are refused only if there were some before
            self._keys = keys
            self.generation += 1

    async def _download(self) -> bytes:
        content = bytearray()
        async with self._client.stream("GET", self._url) as reply:
            if reply.status_code != httpx.codes.OK or "content-encoding" in reply.headers:
                message = f"status {reply.status_code}"
                raise _BadReplyError(message)
            async for chunk in reply.aiter_raw():
                content += chunk
                if len(content) > _SIZE_MAX:
                    message = f"more than {_SIZE_MAX:,} bytes"
                    raise _BadReplyError(message)
        return bytes(content)

    def _note(self, outcome: str) -> None:
        if outcome == self._outcome:
            return
        self._outcome = outcome
        if outcome == _FETCHED:
            _logger.info("keys of the issuer fetched")
        else:
            _logger.warning("keys of the issuer not fetched: %s", outcome)


def check_jwks_url(url: str) -> str:
    """Returns `url`. Raises ValueError unless it is HTTPS, or HTTP to this machine, and without a password."""
    with suppress(ValueError, httpx.InvalidURL):
        httpx.URL(url)
        parts = urlsplit(url)
        safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
        clean = url.isprintable() and " " not in url and "@" not in parts.netloc
        if safe and clean and parts.hostname and parts.port != 0:
            return url
    message = "must look like https://auth.example.com/.well-known/jwks.json; http only on a loopback address"
    raise ValueError(message)


def _select(keys: Iterable[Key], header: Mapping[str, Any]) -> Key | None:
    """Only an issuer with one key of a kind may leave out its name."""
    kid = header.get("kid")
    fitting = [key for key in keys if key.algorithm == header.get("alg") and kid in (None, key.kid)]
    return fitting[0] if len(fitting) == 1 or (fitting and kid is not None) else None


def _read_keys(content: bytes) -> list[Key]:
    """Returns what can be used, nothing if the issuer has no key. Raises ValueError if there are only others."""
    document = from_json(content)
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list) or len(members) > _KEYS_MAX:
        message = f"no set of at most {_KEYS_MAX} keys"
        raise _BadReplyError(message)
    keys = [key for member in members if isinstance(member, dict) and (key := _read_key(member))]
    if members and not keys:
        message = "no usable key"
        raise _BadReplyError(message)
    return keys


def _read_key(jwk: dict[str, Any]) -> Key | None:
    """Returns a public key for signatures, None for any other."""
    curve = jwk.get("crv")
    algorithm = _ALGORITHMS.get((str(jwk.get("kty")), None if curve is None else str(curve)))
    if algorithm is None or not _is_for_signatures(jwk, algorithm):
        return None
    try:
        material = PyJWK(jwk, algorithm).key
    except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):  # whatever a malformed member brings about
        return None
    if isinstance(material, RSAPublicKey) and material.key_size not in _RSA_BITS:
        return None
    return Key(algorithm, material, jwk.get("kid"))


def _is_for_signatures(jwk: dict[str, Any], algorithm: str) -> bool:
    """A key whose private half is published is nobody's any more."""
    return (
        jwk.get("use") in (None, "sig")
        and jwk.get("alg") in (None, algorithm, _NEW_NAMES.get(algorithm))
        and jwk.get("key_ops", ["verify"]) == ["verify"]
        and isinstance(jwk.get("kid"), str | None)
        and "d" not in jwk
    )

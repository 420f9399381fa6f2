"""A pasted connection string becomes what SQLAlchemy and asyncpg take."""

import re
import ssl
from typing import Any, Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

_CONNECT_TIMEOUT: Final = 10  # seconds; a sleeping Neon compute wakes in less
_PORT_MAX: Final = 65_535
_NAME: Final = re.compile("[A-Za-z_]{1,40}")  # anything else may be part of a password that is not percent-encoded
_SCHEMES: Final = {"postgres", "postgresql", "postgresql+asyncpg"}
# asyncpg cannot bind the channel. A verified server certificate keeps the same attacker out.
_VERIFIED: Final = {"verify-ca", "verify-full"}
_UNVERIFIED: Final = {"disable", "allow", "prefer", "require"}


def parse_dsn(dsn: str) -> tuple[URL, dict[str, Any]]:
    """Returns the URL for the engine and the keyword arguments for `asyncpg.connect`.

    TLS is verified for `sslmode=verify-ca` and `verify-full`, for `channel_binding=require`
    and for every host of Neon. Raises ValueError, which names the part but never its value.
    """
    url = _parsed(dsn)
    query = dict(url.query)
    sslmode = str(query.pop("sslmode", "prefer"))
    binding = query.pop("channel_binding", None)
    if unknown := query.keys() - {"host", "port"}:
        names = [name for name in sorted(unknown) if _NAME.fullmatch(name)]
        message = f"has a parameter that is not supported: {', '.join(names) or 'its name is not shown'}"
        raise ValueError(message)
    verified = sslmode in _VERIFIED or binding == "require" or _is_neon(url)
    connect_args = {"ssl": _tls(sslmode, verified=verified), "timeout": _CONNECT_TIMEOUT}
    return url.set(drivername="postgresql+asyncpg", query=query), connect_args


def _parsed(dsn: str) -> URL:
    try:
        url = make_url(dsn)
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.drivername not in _SCHEMES or (url.port or 0) > _PORT_MAX:
        message = "must look like postgresql://user:password@host/database"
        raise ValueError(message) from None
    return url


def _is_neon(url: URL) -> bool:
    hosts = (url.host or "", *url.normalized_query.get("host", ()))
    return any(host.lower().endswith(".neon.tech") for host in hosts)


def _tls(sslmode: str, *, verified: bool) -> str | ssl.SSLContext:
    if sslmode not in _VERIFIED | _UNVERIFIED:
        message = f"has an unknown sslmode; use one of {', '.join(sorted(_VERIFIED | _UNVERIFIED))}"
        raise ValueError(message)
    if not verified:
        return sslmode
    if sslmode == "disable":
        message = "has sslmode=disable, but its host or channel_binding asks for encryption"
        raise ValueError(message)
    return ssl.create_default_context()

"""Conditional requests (RFC 9110 section 13): `If-Match` and `If-None-Match`."""

from collections.abc import Iterable
from datetime import datetime
from hashlib import blake2b
from http import HTTPStatus
from typing import Final

from fastapi import Request
from starlette.responses import Response

from app.http.headers import values_of
from app.schemas.version import UNCONDITIONAL, Conditions, version_of

_ANY: Final = "*"


async def read_conditions(request: Request) -> Conditions:
    """Returns what the statement has to check. For GET, `If-None-Match` is left to `unless_unchanged`."""
    match = _tags(request, b"if-match")
    none_match = None if request.scope["method"] == "GET" else _tags(request, b"if-none-match")
    if match is None and none_match is None:
        return UNCONDITIONAL
    if none_match is not None and _ANY in none_match:  # then no version will do
        return Conditions(match=(), must_exist=match == [_ANY])
    return Conditions(
        None if match is None or match == [_ANY] else _versions(match),
        None if none_match is None else _versions(tag.removeprefix("W/") for tag in none_match),
        must_exist=match == [_ANY],
    )


def unless_unchanged(request: Request, response: Response) -> Response:
    """Returns a 304 in place of a `response` that the client has already, which its `ETag` tells.

    Without one it gets a weak one, made of all that it says.
    """
    said = dict(response.raw_headers)
    if b"etag" not in said:
        said[b"etag"] = _weak_tag(bytes(response.body) + said.get(b"link", b""))
        response.raw_headers.append((b"etag", said[b"etag"]))
    known = _tags(request, b"if-none-match")
    if known is None:
        return response
    current = said[b"etag"].decode()
    if known != [_ANY] and current.removeprefix("W/") not in [tag.removeprefix("W/") for tag in known]:
        return response
    return Response(None, HTTPStatus.NOT_MODIFIED, {"ETag": current})


def _tags(request: Request, name: bytes) -> list[str] | None:
    """Returns the members of the list in a header, None without it. Tags of ours have no comma to be parted at."""
    values = values_of(request, name)
    return [tag.strip(" \t") for tag in ",".join(values).split(",")] if values else None


def _versions(tags: Iterable[str]) -> list[datetime]:
    """What is malformed, weak or from elsewhere names no version, so it matches none."""
    return [version for version in map(version_of, tags) if version]


def _weak_tag(content: bytes) -> bytes:
    return b'W/"%s"' % blake2b(content, digest_size=12).hexdigest().encode()

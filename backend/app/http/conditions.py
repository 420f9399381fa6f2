"""Replies to a GET: each has an entity tag, and is 304 if the client has it already (RFC 9110 section 13)."""

from collections.abc import Sequence
from hashlib import blake2b
from http import HTTPStatus
from typing import Final

from starlette.responses import Response

_KEPT: Final = {"etag", "cache-control", "content-location", "expires", "vary"}  # RFC 9110 section 15.4.5


def apply_if_none_match(response: Response, known: Sequence[str] | None) -> Response:
    """Returns a 304 in place of a successful `response` whose `ETag` is among the tags in `If-None-Match`.

    A response without a tag gets a weak one, made of all that it says. One that streams has none.
    """
    if response.status_code != HTTPStatus.OK or not hasattr(response, "body"):
        return response
    said = dict(response.raw_headers)
    if b"etag" not in said:
        said[b"etag"] = _weak_tag(bytes(response.body) + said.get(b"link", b""))
        response.raw_headers.append((b"etag", said[b"etag"]))
    if known is None:
        return response
    current = said[b"etag"].decode()
    opaque = [tag.removeprefix("W/") for tag in known]  # a weak comparison (RFC 9110 section 8.8.3.2)
    if opaque == ["*"] or current.removeprefix("W/") in opaque:
        kept = {name: value for name, value in response.headers.items() if name in _KEPT}
        return Response(None, HTTPStatus.NOT_MODIFIED, kept, background=response.background)
    return response


def _weak_tag(content: bytes) -> bytes:
    return b'W/"%s"' % blake2b(content, digest_size=12).hexdigest().encode()

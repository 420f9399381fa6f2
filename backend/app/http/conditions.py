"""Conditional GET: adds an `ETag`, and answers 304 if the client's copy is current (RFC 9110 section 13)."""

import re
from collections.abc import Sequence
from hashlib import blake2b
from http import HTTPStatus
from typing import Final

from starlette.responses import Response

# RFC 9110 section 15.4.5, and the headers that would otherwise get a default: a cache takes them from the 304.
_POLICIES: Final = {"content-security-policy", "referrer-policy", "x-content-type-options"}
_KEPT: Final = {"etag", "cache-control", "content-location", "expires", "vary", *_POLICIES}
# A proxy that compresses makes a tag weak (nginx), or appends this to it (Apache, Caddy; with two hyphens Jetty).
CODING: Final = "--?(?:gzip|br|zstd)"
_BY_PROXY: Final = re.compile(rf'\AW/|{CODING}(?="\Z)')


def apply_if_none_match(response: Response, known: Sequence[str] | None) -> Response:
    """Returns `response`, or a 304 if its status is 200 and its `ETag` is among `known`, the tags of `If-None-Match`.

    A response without an `ETag` gets a weak one, computed from body and `Link`. A streaming response gets none.
    """
    said = dict(response.raw_headers)
    if response.status_code != HTTPStatus.OK or not (b"etag" in said or hasattr(response, "body")):
        return response
    if b"etag" not in said:
        said[b"etag"] = weak_tag(bytes(response.body) + said.get(b"link", b""))
        response.raw_headers.append((b"etag", said[b"etag"]))
    if known is None:
        return response
    opaque = [*map(_opaque, known)]
    if opaque == ["*"] or _opaque(said[b"etag"].decode()) in opaque:
        kept = {name: value for name, value in response.headers.items() if name in _KEPT}
        return Response(None, HTTPStatus.NOT_MODIFIED, kept, background=response.background)
    return response


def _opaque(tag: str) -> str:
    """Returns the tag for a weak comparison (RFC 9110 section 8.8.3.2), also without the suffix of a proxy."""
    return _BY_PROXY.sub("", tag)


def weak_tag(content: bytes) -> bytes:
    """Returns an entity tag that other content does not have."""
    return b'W/"%s"' % blake2b(content, digest_size=12).hexdigest().encode()

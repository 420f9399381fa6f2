"""Cursors: where a list goes on, opaque to the client and bound to the list that it came from."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Final, NamedTuple
from uuid import UUID

from app.core.errors import FieldError, InvalidRequestError
from app.schemas.task import Sort

_CHECKSUM: Final = 8  # bytes; detects damage and mix-ups. It guards no secret: every list is the owner's own
_ID: Final = 16


class Position(NamedTuple):
    """The last task of a page: its sort key and its id."""

    key: datetime | str
    id: UUID


def encode_cursor(position: Position, sort: Sort, scope: str) -> str:
    """Returns `position` as URL-safe text, bound to `sort` and `scope`: all that decides what the list holds."""
    return _sealed(position.id.bytes + str(position.key).encode(), sort, scope)


def decode_cursor(cursor: str, sort: Sort, scope: str) -> Position:
    """Returns the position in `cursor`. Raises InvalidRequestError for a broken or foreign one."""
    with suppress(ValueError, OverflowError):
        content = urlsafe_b64decode(cursor + "==")[_CHECKSUM:]
        if cursor == _sealed(content, sort, scope):
            return Position(_key(content[_ID:].decode(), sort), UUID(bytes=content[:_ID]))
    raise InvalidRequestError([FieldError("query/cursor", "does not belong to this list; start again without it")])


def _key(text: str, sort: Sort) -> datetime | str:
    """Raises ValueError for what the database would refuse: the checksum is no secret, so it proves nothing."""
    if sort.endswith("title"):
        if "\0" in text:
            raise ValueError
        return text
    return datetime.fromisoformat(text).astimezone(UTC)


def _sealed(content: bytes, sort: Sort, scope: str) -> str:
    return urlsafe_b64encode(_checksum(content, sort, scope) + content).rstrip(b"=").decode()


def _checksum(content: bytes, sort: Sort, scope: str) -> bytes:
    return blake2b(content, digest_size=_CHECKSUM, key=blake2b(f"{sort} {scope}".encode()).digest()).digest()

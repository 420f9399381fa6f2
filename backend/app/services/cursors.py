"""Keyset pagination. A page starts after the last row of the previous page, so late pages cost no more than early ones.

A cursor contains the sort key and the id of that row. It is opaque to clients and valid only for the list that it came
from.
"""

import enum
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    Date,
    DateTime,
    Enum,
    Float,
    Select,
    Text,
    Uuid,
    and_,
    bindparam,
    cast,
    or_,
    tuple_,
)

from app.core.errors import FieldError, InvalidRequestError
from app.models.task import plain_type

_CHECKSUM: Final = 8  # bytes; detects damage and cursors of another list. No secret: users read only their own lists
_ID: Final = 16  # bytes
_NULL: Final = b"\xff"  # a byte that never occurs in UTF-8


class SortKey(NamedTuple):
    """A column to sort lists by, and the Python type of its values. NULLs of a `nullable` column always come last.

    Lists are sorted by `function` of the column. A cursor has the value of the column itself, because Python would
    compute the function differently. When the function changes, change `version`: it makes older cursors invalid.
    """

    column: Any
    kind: type
    nullable: bool = False
    function: Callable[[Any], Any] = lambda column: column
    version: str = ""


class Position(NamedTuple):
    """The last row of a page: its sort key, None for NULL, and its id. A time is the text that `time_text` selects."""

    key: object
    id: UUID


def sort_key(column: Any) -> SortKey:
    """Returns the key for a column of a model. Raises TypeError for a column type that cursors do not support."""
    kind = _kind(plain_type(column))
    if kind not in _READERS:
        raise TypeError(f"a cursor cannot carry {column.type!r} of {column}: sort by another column")
    return SortKey(column, kind, column.nullable)


def _kind(type_: Any) -> type:
    """Returns the Python type with which a cursor stores the values. SQLAlchemy may return another type."""
    families = {Enum: str, Uuid: UUID, Float: float}
    kind: type = next((families[each] for each in families if isinstance(type_, each)), type_.python_type)
    return kind


def page_after(
    query: Select[Any], key: SortKey, row_id: Any, *, descending: bool, resumed: bool, in_nulls: bool = False
) -> Select[Any]:
    """Returns the query ordered by `key`, then by `row_id`. Unless `resumed`, it starts at the first row.

    A resumed query starts after the position in its parameters `after_key` and `after_id`. Pass `in_nulls` if the key
    of that position is None. The query then has no `after_key`.
    """
    value = key.function(key.column)
    order = [value.desc(), row_id.desc()] if descending else [value, row_id]
    if key.nullable:
        order[0] = order[0].nulls_last()
    if resumed:
        query = query.where(_is_after(key, row_id, descending=descending, in_nulls=in_nulls))
    return query.order_by(*order)


def _is_after(key: SortKey, row_id: Any, *, descending: bool, in_nulls: bool) -> Any:
    after_id = bindparam("after_id", type_=Uuid)
    if in_nulls:
        return and_(key.column.is_(None), row_id < after_id if descending else row_id > after_id)
    row = tuple_(key.function(key.column), row_id)
    position = tuple_(key.function(_key_parameter(plain_type(key.column))), after_id)
    beyond = row < position if descending else row > position
    return or_(beyond, key.column.is_(None)) if key.nullable else beyond


def _key_parameter(type_: Any) -> Any:
    """Returns the parameter for a sort key. A time and the label of an Enum are sent as text."""
    is_text = isinstance(type_, Enum | DateTime | Date)
    return cast(bindparam("after_key", type_=Text), type_) if is_text else bindparam("after_key", type_=type_)


def encode_cursor(position: Position, sort: str, scope: str) -> str:
    """Returns `position` as URL-safe text, valid only for `sort` and `scope` (owner and filters of the list).

    Raises TypeError for a `datetime` or `date`: for the driver, the first and the last of them are infinite times. Also
    for the member of an enum, whose label the database knows.
    """
    return _with_checksum(position.id.bytes + _written(position.key), sort, scope)


def _written(key: object) -> bytes:
    if isinstance(key, date | enum.Enum):
        raise TypeError(f"a cursor cannot carry {key!r}: select the time with time_text(column), the enum as Text")
    return _NULL if key is None else str(key).encode()


def decode_cursor(cursor: str, sort: str, scope: str, key: SortKey) -> Position:
    """Returns the position in `cursor`. Raises InvalidRequestError for a damaged cursor or one of another list.

    Anybody can compute a valid checksum, so the database may refuse the key: see `StatementError.refusal`.
    """
    with suppress(ValueError, ArithmeticError, KeyError):
        content = urlsafe_b64decode(cursor + "==")[_CHECKSUM:]
        if cursor == _with_checksum(content, sort, scope):
            written, row_id = content[_ID:], UUID(bytes=content[:_ID])
            is_null = written == _NULL and key.nullable
            return Position(None if is_null else _READERS[key.kind](written.decode()), row_id)
    raise InvalidRequestError([FieldError("query/cursor", "does not belong to this list; start again without it")])


# By the type of a key. A time stays text.
_READERS: Final[dict[type, Callable[[str], object]]] = {
    **dict.fromkeys((str, datetime, date), str),
    **{kind: kind for kind in (int, Decimal, UUID)},
    bool: {"True": True, "False": False}.__getitem__,
}


def _with_checksum(content: bytes, sort: str, scope: str) -> str:
    return urlsafe_b64encode(_checksum(content, sort, scope) + content).rstrip(b"=").decode()


def _checksum(content: bytes, sort: str, scope: str) -> bytes:
    return blake2b(content, digest_size=_CHECKSUM, key=blake2b(f"{sort} {scope}".encode()).digest()).digest()

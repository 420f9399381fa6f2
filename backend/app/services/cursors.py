"""Keyset pagination. A page starts after the last row of the previous page, so late pages cost no more than early ones.

A cursor contains the sort key and the id of that row. It is opaque to clients and valid only for the list that it came
from.
"""

import enum
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Numeric,
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
_BIGINT: Final = range(-(2**63), 2**63)
_EXPONENTS: Final = range(-16_383, 131_072)  # of PostgreSQL's numeric; asyncpg sends 1E+131072 as 0
_TIME: Final = re.compile(
    r"-?infinity|(\d{4,6})(-\d\d-\d\d(?:T\d\d:\d\d:\d\d\.\d{6}Z)?)( BC)?", re.ASCII
)  # `time_text`
_YEARS: Final = range(-4712, 294_277)  # of PostgreSQL's timestamp; 0 is the year 1 BC


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
    """Returns the parameter for a sort key. An Enum is sent as its label, because asyncpg expects text, and a time too.

    A forged number may exceed the range of its column. It is sent with a wider type that the database accepts.
    """
    if isinstance(type_, Enum | DateTime | Date):
        return cast(bindparam("after_key", type_=Text), type_)
    if isinstance(type_, Integer | Numeric):
        return bindparam("after_key", type_=BigInteger if isinstance(type_, Integer) else Numeric)
    return bindparam("after_key", type_=type_)


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
    """Returns the position in `cursor`. Raises InvalidRequestError for a damaged cursor or one of another list."""
    with suppress(ValueError, OverflowError, ArithmeticError, KeyError):
        content = urlsafe_b64decode(cursor + "==")[_CHECKSUM:]
        if cursor == _with_checksum(content, sort, scope):
            return Position(_read_key(content[_ID:], key), UUID(bytes=content[:_ID]))
    raise InvalidRequestError([FieldError("query/cursor", "does not belong to this list; start again without it")])


def _read_key(content: bytes, key: SortKey) -> object:
    """Returns the sort key. Raises ValueError if the database would refuse it: anybody can compute a valid checksum."""
    if content == _NULL and key.nullable:
        return None
    type_, text = plain_type(key.column), content.decode()
    if isinstance(type_, Enum) and text not in type_.enums:
        raise ValueError
    return _READERS[key.kind](text)


def _read_time(text: str) -> str:
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError
    if found[1]:
        year = 1 - int(found[1]) if found[3] else int(found[1])
        if year not in _YEARS or not int(found[1]):
            raise ValueError
        datetime.fromisoformat(f"{2000 + year % 400}{found[2]}")  # the calendar repeats after 400 years
    return text


def _read_text(text: str) -> str:
    if "\0" in text:
        raise ValueError
    return text


def _read_integer(text: str) -> int:
    number = int(text)
    if number not in _BIGINT:
        raise ValueError
    return number


def _read_decimal(text: str) -> Decimal:
    number = Decimal(text)
    if number.is_finite() and not all(at in _EXPONENTS for at in (number.adjusted(), number.as_tuple().exponent)):
        raise ValueError
    return number


_READERS: Final[Mapping[type, Callable[[str], object]]] = MappingProxyType(
    {
        str: _read_text,
        int: _read_integer,
        bool: {"True": True, "False": False}.__getitem__,
        Decimal: _read_decimal,
        datetime: _read_time,
        date: _read_time,
        UUID: UUID,
    }
)


def _with_checksum(content: bytes, sort: str, scope: str) -> str:
    return urlsafe_b64encode(_checksum(content, sort, scope) + content).rstrip(b"=").decode()


def _checksum(content: bytes, sort: str, scope: str) -> bytes:
    return blake2b(content, digest_size=_CHECKSUM, key=blake2b(f"{sort} {scope}".encode()).digest()).digest()

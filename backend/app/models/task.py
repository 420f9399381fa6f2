"""The table `tasks`, with one row per task. Every key starts with the owner."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson
from pydantic_core import to_jsonable_python
from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Date,
    DateTime,
    Enum,
    Float,
    Index,
    Integer,
    Text,
    TypeDecorator,
    Uuid,
    case,
    cast,
    false,
    func,
    literal_column,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

TITLE_MAX: Final = 200
DESCRIPTION_MAX: Final = 5_000
KEPT_NAME_PATTERN: Final = "[A-Za-z_][A-Za-z0-9_]{0,39}"
KEPT_NAMES_MAX: Final = 20
KEPT_BYTES_MAX: Final = 4_096  # of the text that PostgreSQL makes of the object
KEPT_BOUND: Final = f"a task may keep {KEPT_NAMES_MAX} unknown fields and {KEPT_BYTES_MAX:,} bytes of them at most"
USER_ID_PATTERN: Final = "^[A-Za-z0-9_|.:@+=~-]{1,128}$"

_RFC_3339: Final = 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'


class Task(SQLModel, table=True):
    """A task. `updated_at` is the row's version, because it strictly increases with every change."""

    __tablename__ = "tasks"

    user_id: str = Field(primary_key=True, sa_type=Text)
    id: UUID = Field(primary_key=True)
    title: str = Field(sa_type=Text)
    description: str | None = Field(sa_type=Text)
    completed: bool = Field(sa_column_kwargs={"server_default": false()})
    created_at: datetime = Field(sa_type=DateTime(timezone=True), sa_column_kwargs={"server_default": func.now()})
    updated_at: datetime = Field(sa_type=DateTime(timezone=True), sa_column_kwargs={"server_default": func.now()})
    # The fields of requests that are none of the above, see the setting UNKNOWN_FIELDS. NULL if there are none.
    kept_fields: dict[str, Any] | None = Field(sa_type=JSONB(none_as_null=True))

    # COLLATE "C" makes the rules independent of the server's locale.
    __table_args__ = (
        CheckConstraint(f"user_id COLLATE \"C\" ~ '{USER_ID_PATTERN}'", name="user_id"),
        CheckConstraint(f"char_length(title) <= {TITLE_MAX} AND title COLLATE \"C\" ~ '[^[:space:]]'", name="title"),
        CheckConstraint(f"char_length(description) <= {DESCRIPTION_MAX}", name="description"),
        CheckConstraint(
            f"octet_length(kept_fields::text) <= {KEPT_BYTES_MAX}"
            f" AND jsonb_array_length(jsonb_path_query_array(kept_fields, 'strict $.keyvalue()')) <= {KEPT_NAMES_MAX}",
            name="kept_fields",
        ),
    )


@dataclass
class WireTask:
    """A row as statements return it and as replies contain it. The fields are in the order of `WIRE_COLUMNS`.

    Times are RFC 3339 in UTC, with `Z` and always six fractional digits, so that they sort as text.
    """

    id: str
    user_id: str
    title: str
    description: str | None
    completed: bool
    created_at: str
    updated_at: str


class KeptTask:
    """Has the attributes of a WireTask, and the JSON of its kept fields."""

    def __init__(self, task: WireTask, kept_fields: str) -> None:
        self.task = task
        self.kept_fields = kept_fields

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def fragment(self) -> orjson.Fragment:
        """Returns the JSON of the task with the kept fields after its own. They are not parsed, so nothing changes."""
        return orjson.Fragment(
            b"%b, %b" % (orjson.dumps(self.task, default=jsonable)[:-1], self.kept_fields[1:].encode())
        )


def jsonable(value: Any) -> Any:
    """Returns what orjson serializes in the place of a value that it does not know."""
    return value.fragment() if isinstance(value, KeptTask) else to_jsonable_python(value)


def kept_task(*row: Any) -> Any:
    """Returns the WireTask, or KeptTask, of a row of `WIRE_COLUMNS` and `KEPT_COLUMN`."""
    task = WireTask(*row[:-1])
    return KeptTask(task, row[-1]) if row[-1] else task


def time_text(column: Any) -> Any:
    """Returns the SQL for a time or a date as text from which PostgreSQL reads the same value. Python has no infinite
    times and only the years 1 to 9999.

    The text is RFC 3339 in UTC, but it ends in ` BC` for a year before 1, and is `infinity` or `-infinity`.
    """
    type_ = plain_type(column)
    utc = func.timezone(literal_column("'UTC'"), column) if getattr(type_, "timezone", False) else column
    form = "YYYY-MM-DD" if isinstance(type_, Date) else _RFC_3339
    before_1: Any = (utc < literal_column("'0001-01-01'"), literal_column(f"'{form} BC'"))
    text = func.to_char(utc, case(before_1, else_=literal_column(f"'{form}'")))  # NULL for an infinite time
    return func.coalesce(text, cast(column, Text)).label(column.name)


def plain_type(column: Any) -> Any:
    """Returns the type of a column without the conversions that SQLModel adds for sessions."""
    return column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type


def _on_the_wire(column: Any) -> Any:
    """Returns ids, times and enums as text. PostgreSQL converts them at less cost than Python."""
    type_ = plain_type(column)
    if isinstance(type_, DateTime | Date):
        return time_text(column)
    return cast(column, Text).label(column.name) if isinstance(type_, Uuid | Enum) else column


_table: Any = SQLModel.metadata.tables["tasks"]
if _missing := [field.name for field in fields(WireTask) if field.name not in _table.c]:
    raise TypeError(f"Add a column to Task, and a migration, for {', '.join(_missing)}: WireTask has it.")
_columns = [_table.c[field.name] for field in fields(WireTask)]
WIRE_COLUMNS: Final = tuple(map(_on_the_wire, _columns))
# Without names that have become columns: the field of the task wins.
_kept = _table.c.kept_fields.op("-")(literal_column(f"'{{{','.join(c.name for c in _columns)}}}'::text[]"))
KEPT_COLUMN: Final = cast(func.nullif(_kept, literal_column("'{}'::jsonb")), Text).label("kept_fields")
# The names of those whose values may be long.
_SHORT: Final = Boolean | Date | DateTime | Enum | Float | Integer | Uuid
LONG_COLUMNS: Final = [c.name for c in _columns if not (c.primary_key or isinstance(plain_type(c), _SHORT))]
Index(None, _table.c.user_id, _table.c.created_at.desc(), _table.c.id.desc())

"""Request and response schemas of tasks, and the conditions of a request."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, NamedTuple, get_args
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    with_config,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from app.models.task import DESCRIPTION_MAX, TITLE_MAX, USER_ID_PATTERN
from app.schemas import words

SEARCH_MAX: Final = 200
LIMIT_MAX: Final = 1_000
KEY_MAX: Final = 255

# Generators of clients copy a pattern into code, so it has no control character and no `\u`, which PCRE does not know.
# `\s` is white space in every dialect, though not for each rare character the same: `not_blank` decides.
STORABLE: Final[JsonDict] = {"pattern": r"^[^\x00]*$"}
NOT_BLANK: Final[JsonDict] = {"pattern": r"^[^\x00]*[^\x00\s][^\x00]*$"}
# Without lengths: clients parse times and UUIDs, and then compare a length with that of another text.
_TIMESTAMP: Final[JsonDict] = {"type": "string", "format": "date-time"}

_EXAMPLE: Final[JsonDict] = {
    "id": "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa",
    "user_id": "ada",
    "title": "Buy oat milk",
    "description": "The barista one",
    "completed": False,
    "created_at": "2026-11-22T09:30:00.123456Z",
    "updated_at": "2026-11-22T09:30:00.123456Z",
}


def storable(text: str) -> str:
    """Returns the text. Raises for a NUL character, which PostgreSQL cannot store."""
    if "\0" in text:
        raise PydanticCustomError("nul", "must not contain a NUL character")
    return text


def not_blank(text: str) -> str:
    """Returns the text. Raises if it has a NUL character or nothing but white space."""
    if text.isspace():
        raise PydanticCustomError("blank", "must contain something other than white space")
    return storable(text)


def _boolean(text: object) -> object:
    """Accepts `true` and `false` in any case, `1` and `0`. Returns text that pydantic refuses for anything else."""
    return {"true": True, "false": False, "1": True, "0": False}.get(str(text).lower(), "not a boolean")


def timestamp(moment: datetime) -> str:
    """Returns a UTC time in RFC 3339, with `Z` and always six fractional digits, so that times sort as text."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _limit(text: object) -> object:
    """Accepts only ASCII digits, or a value that is not set. Pydantic would also accept `1_000`, `+5` and `5.0`."""
    if text in words.ABSENT:
        return LIMIT_MAX
    return text if str(text).isascii() and str(text).isdigit() else "not a number"


UserIdText = Annotated[
    str, Field(pattern=USER_ID_PATTERN, min_length=1, max_length=128, description="The owner, an opaque name.")
]
Title = Annotated[
    str, Field(min_length=1, max_length=TITLE_MAX, json_schema_extra=NOT_BLANK), AfterValidator(not_blank)
]
Description = Annotated[str, Field(max_length=DESCRIPTION_MAX, json_schema_extra=STORABLE), AfterValidator(storable)]
# `null` counts as absent: generated clients send it for what is not set. The document has one way to say it.
_BooleanOrNull = Annotated[bool | None, WithJsonSchema({"type": "boolean"})]
# In the query of a list.
_BooleanWord = Annotated[_BooleanOrNull, BeforeValidator(lambda text: _boolean(text) if words.present(text) else None)]
_Search = Annotated[str, Field(max_length=SEARCH_MAX, json_schema_extra=STORABLE), AfterValidator(storable)]
Timestamp = Annotated[datetime, PlainSerializer(timestamp, return_type=str), WithJsonSchema(_TIMESTAMP)]


class TaskCreate(BaseModel):
    """A new task."""

    model_config = ConfigDict(
        strict=True, json_schema_extra={"example": {"title": "Buy oat milk", "description": "The barista one"}}
    )

    title: Title
    description: Description | None = None
    completed: Annotated[bool, BeforeValidator(lambda value: False if value is None else value)] = Field(
        default_factory=bool,  # with `default=False`, client generators would make the field required
        description="`false` if it is not sent.",
    )


@with_config(strict=True, json_schema_extra={"example": {"title": "Buy two oat milks"}})
class TaskUpdate(TypedDict, total=False):
    """What to change. An absent field keeps its value; `"description": null` clears the description."""

    title: Title
    description: Description | None
    completed: _BooleanOrNull


@with_config(strict=True, json_schema_extra={"example": {"completed": True}})
class Completion(TypedDict, total=False):
    """The state to set. Without `completed` the task is toggled."""

    completed: _BooleanOrNull


class CompletionQuery(BaseModel):
    """The same as `Completion`, in the query."""

    completed: Annotated[_BooleanOrNull, BeforeValidator(_boolean)] = Field(
        default=None, description="The state to set, as in the body."
    )


class TaskResponse(BaseModel):
    """A task. Every field is always present. The bounds only document: what is stored is not judged again."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"example": _EXAMPLE})

    id: UUID = Field(description="Made by the server: a UUIDv7, or with `Idempotency-Key` a UUIDv5 (RFC 9562).")
    user_id: str = Field(
        description="The owner.", json_schema_extra={"minLength": 1, "maxLength": 128, "pattern": USER_ID_PATTERN}
    )
    title: str = Field(json_schema_extra={"minLength": 1, "maxLength": TITLE_MAX, **STORABLE})
    description: Annotated[str, Field(json_schema_extra={"maxLength": DESCRIPTION_MAX, **STORABLE})] | None
    completed: bool
    created_at: Timestamp
    updated_at: Timestamp = Field(description="Strictly later after every change. In double quotes it is the `ETag`.")


TaskList = Annotated[list[TaskResponse], Field(json_schema_extra={"maxItems": LIMIT_MAX})]


class TaskQuery(BaseModel):
    """The filters, the order and the limit of a list."""

    status: words.StateWord = Field(
        default="all", description=f"Which tasks by state. {words.also(words.STATES, get_args(words.State))}"
    )
    completed: _BooleanWord = Field(
        default=None, description="The same as `status`, as a boolean. Given both, both apply."
    )
    search: _Search = Field(
        default="",
        description="Only tasks with this text in title or description, in any case. `%` and `_` are plain characters. "
        "`q` is another name.",
    )
    q: Annotated[_Search, words.Undocumented] = ""
    sort: words.SortWord = Field(
        default=words.NEWEST_FIRST,
        description="`-` for descending; ties by `id`. Titles sort without regard to case. "
        f"{words.also(words.SORTS, get_args(words.Sort))} `order=asc` and `order=desc` give the direction.",
    )
    sort_by: words.OtherSortWord = ""
    order: words.DirectionWord = ""
    sort_order: words.DirectionWord = ""
    limit: Annotated[int, BeforeValidator(_limit)] = Field(
        default=LIMIT_MAX,
        ge=1,
        le=LIMIT_MAX,
        json_schema_extra={"format": "int32"},
        description=f"How many at most, up to {LIMIT_MAX}. More follow under `Link: rel=next`.",
    )
    cursor: str = Field(
        default="",
        max_length=2_048,
        json_schema_extra={"pattern": "^[A-Za-z0-9_-]*$"},
        description="Where to go on, as given in `Link`. Only with the same filters.",
    )

    @property
    def ordering(self) -> words.Sort:
        """The order that the words ask for. If only unknown ones are sent, the default order, whatever the direction.

        `sort_by` counts more than `sort`, which may also be the direction, and a direction counts more than a sign.
        """
        first = self.sort_by if self.sort_by in words.SORTS else ""
        sort = words.SORTS.get(first or self.sort)
        if sort is None or (self.sort_by and not first and sort == words.NEWEST_FIRST):
            return words.NEWEST_FIRST
        for word in (self.order, self.sort_order, self.sort):
            if word in ("asc", "desc"):
                return words.SORTS[("-" if word == "desc" else "") + sort.removeprefix("-")]
        return sort


class Conditions(NamedTuple):
    """The conditions of a request (RFC 9110 section 13.1). A version is the `updated_at` of a task.

    The version must be in `match` and must not be in `none_match`. None means no condition. With `must_exist`, a
    missing task is a failed condition (412), not a 404. `failed_detail` is the `detail` of a 412, None for the usual
    one.
    """

    match: Sequence[datetime] | None = None
    none_match: Sequence[datetime] | None = None
    must_exist: bool = False
    failed_detail: str | None = None


UNCONDITIONAL: Final = Conditions()

"""The words of lists: what existing frontends send, and what it means. Every word is accepted in any case."""

from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

Sort = Literal["created_at", "-created_at", "updated_at", "-updated_at", "title", "-title"]
_Status = Literal["all", "pending", "completed"]

NEWEST_FIRST: Final[Sort] = "-created_at"
UNKNOWN_WORD: Final = "is not one that this list knows"
# Shown neither to generators of clients nor in Swagger UI: two names for one thing would only confuse there.
UNDOCUMENTED: Final = "x-undocumented"

STATUSES: Final[Mapping[str, _Status]] = MappingProxyType(
    {
        **dict.fromkeys(("", "all"), "all"),
        **dict.fromkeys(("pending", "active", "incomplete", "open", "todo"), "pending"),
        **dict.fromkeys(("completed", "complete", "done"), "completed"),
    }
)
# Without a direction, a column is ascending, and the other words give the newest first.
SORTS: Final[dict[str, Sort]] = {
    **{word: word for word in get_args(Sort)},
    **dict.fromkeys(("", "created", "-created", "date", "-date"), NEWEST_FIRST),
    **dict.fromkeys(("updated", "-updated"), "-updated_at"),
}
DIRECTIONS: Final = MappingProxyType({"": None, "asc": "", "desc": "-"})
# The names by which other services ask for a page, without punctuation, and the value for the first page.
PAGES: Final = MappingProxyType(
    {
        **dict.fromkeys(("offset", "pageoffset", "skip"), 0),
        **dict.fromkeys(("page", "pageindex", "pageno", "pagenumber"), 1),
    }
)


class Words(NamedTuple):
    """Marks a query parameter with the words that it knows. Any other value is ignored, as an unknown name is."""

    known: Container[str]


def _status(text: str) -> _Status:
    try:
        return STATUSES[text.lower()]
    except KeyError:
        raise PydanticCustomError("word", UNKNOWN_WORD) from None


def _synonyms(words: Mapping[str, object], *documented: str) -> str:
    return ", ".join(f"`{word}`" for word in words if word not in documented and word.strip("-") == word != "")


_Word = Annotated[str, StringConstraints(to_lower=True, max_length=40, pattern=r"^[^\x00]*$")]
Status = Annotated[
    _Status,
    BeforeValidator(_status),
    Field(description=f"Which tasks by state. Also understood: {_synonyms(STATUSES, *get_args(_Status))}."),
]
SortWord = Annotated[_Word, Words(SORTS), WithJsonSchema({"type": "string", "enum": [*get_args(Sort)]})]
OtherSortWord = Annotated[_Word, Words(SORTS), Field(json_schema_extra={UNDOCUMENTED: True})]
DirectionWord = Annotated[_Word, Words(DIRECTIONS), Field(json_schema_extra={UNDOCUMENTED: True})]
SORT_DESCRIPTION: Final = (
    "`-` for descending; ties by `id`. Titles sort without regard to case. Also understood: "
    f"{_synonyms(SORTS, *get_args(Sort))} (newest first), `sort_by` for `sort`, "
    "and `order` or `sort_order` for the direction (`asc`, `desc`)."
)


def ordering(sort: str, direction: str) -> Sort:
    """Returns the order for the two words. An unknown `sort` means the default order, whatever the direction.

    The direction counts more than the sign of `sort`. An unknown direction counts as absent.
    """
    order, sign = SORTS.get(sort), DIRECTIONS.get(direction)
    if order is None:
        return NEWEST_FIRST
    return order if sign is None else SORTS[sign + order.removeprefix("-")]

"""The words of lists: what existing frontends send in any case, and what it means."""

from collections.abc import Container, Iterable
from typing import Annotated, Final, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

State = Literal["all", "pending", "completed"]
Sort = Literal["created_at", "-created_at", "updated_at", "-updated_at", "title", "-title"]

NEWEST_FIRST: Final[Sort] = "-created_at"
STATES: Final[dict[str, State]] = {
    **dict.fromkeys(("all", ""), "all"),
    **dict.fromkeys(("pending", "active", "incomplete", "open", "todo"), "pending"),
    **dict.fromkeys(("completed", "complete", "done"), "completed"),
}
SORTS: Final[dict[str, Sort]] = {
    **{word: word for word in get_args(Sort)},
    **dict.fromkeys(("created", "-created", "date", "-date", ""), NEWEST_FIRST),
    **dict.fromkeys(("updated", "-updated"), "-updated_at"),
}
DIRECTIONS: Final = {"": None, "asc": "", "desc": "-"}
# The names by which other services ask for a page, without punctuation, and the value for the first page.
PAGES: Final = {"offset": 0, "pageoffset": 0, "skip": 0, "page": 1, "pageindex": 1, "pageno": 1, "pagenumber": 1}
UNKNOWN_WORD: Final = "is not one that this list knows"
UNDOCUMENTED: Final = "x-undocumented"  # in a schema: other names would only confuse the users of a generated client


class Words(NamedTuple):
    """Marks a query parameter with the words that it knows. Any other value is ignored, as an unknown name is."""

    known: Container[str]


def _state(text: str) -> State:
    if text.lower() not in STATES:
        raise PydanticCustomError("word", UNKNOWN_WORD)
    return STATES[text.lower()]


def also(words: Iterable[str], documented: Container[str]) -> str:
    """Returns the sentence of the document about the other words."""
    others = [f"`{word}`" for word in words if word[:1] not in ("", "-") and word not in documented]
    return f"Also understood: {', '.join(others)}."


_Word = Annotated[str, StringConstraints(to_lower=True, max_length=40, pattern=r"^[^\x00]*$")]
_Undocumented = Field(json_schema_extra={UNDOCUMENTED: True})
StateWord = Annotated[State, BeforeValidator(_state)]
SortWord = Annotated[_Word, Words(SORTS), WithJsonSchema({"type": "string", "enum": [*get_args(Sort)]})]
OtherSortWord = Annotated[_Word, Words(SORTS), _Undocumented]
DirectionWord = Annotated[_Word, Words(DIRECTIONS), _Undocumented]

"""The words of lists: what existing frontends send, in upper or lower case, and what it means."""

from collections.abc import Container, Iterable
from typing import Annotated, Final, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

State = Literal["all", "pending", "completed"]
Sort = Literal["created_at", "-created_at", "updated_at", "-updated_at", "title", "-title"]

NEWEST_FIRST: Final[Sort] = "-created_at"
ABSENT: Final = ("", "undefined", "null")  # what JavaScript writes into a URL for a value that is not set
STATES: Final[dict[str, State]] = {
    **dict.fromkeys(("all", *ABSENT), "all"),
    **dict.fromkeys(("pending", "active", "incomplete", "open", "todo"), "pending"),
    **dict.fromkeys(("completed", "complete", "done"), "completed"),
}
SORTS: Final[dict[str, Sort]] = {
    **{word: word for word in get_args(Sort)},
    **{word.replace("_", ""): word for word in get_args(Sort)},  # createdAt
    **dict.fromkeys(("created", "-created", "date", "-date", "newest", "asc", "desc", *ABSENT), NEWEST_FIRST),
    **dict.fromkeys(("updated", "-updated"), "-updated_at"),
    "oldest": "created_at",
}
DIRECTIONS: Final = ("asc", "desc", *ABSENT)
# The names by which other services ask for a page, without punctuation, and the value for the first page.
PAGES: Final = {
    **dict.fromkeys(("offset", "pageoffset", "skip", "pageindex"), 0),
    **dict.fromkeys(("page", "pageno", "pagenumber", "currentpage", "p"), 1),
}
UNKNOWN_WORD: Final = "is not one that this list knows"
UNDOCUMENTED: Final = "x-undocumented"  # in a schema: other names would only confuse the users of a generated client


class Words(NamedTuple):
    """Marks a query parameter with the words that it knows, in lower case.

    For any other value `Ignored-Fields` names the parameter. Its handler must then treat the value as absent.
    """

    known: Container[str]


def _state(text: str) -> State:
    if text.lower() not in STATES:
        raise PydanticCustomError("word", UNKNOWN_WORD)
    return STATES[text.lower()]


def present(text: str) -> str:
    """Returns the text, an empty one for a value that is not set."""
    return "" if text in ABSENT else text


def also(words: Iterable[str], documented: Iterable[str]) -> str:
    """Returns the sentence of the document about the other words."""
    known = {*ABSENT, *documented, *(word.replace("_", "") for word in documented)}
    others = [f"`{word}`" for word in words if word not in known and word[0] != "-"]
    return f"Also understood: {', '.join(others)}."


_Word = Annotated[str, BeforeValidator(present), StringConstraints(to_lower=True, pattern=r"^[^\x00]*$")]
Undocumented = Field(json_schema_extra={UNDOCUMENTED: True})
StateWord = Annotated[State, BeforeValidator(_state)]
SortWord = Annotated[_Word, Words(SORTS), WithJsonSchema({"type": "string", "enum": [*get_args(Sort)]})]
OtherSortWord = Annotated[_Word, Words(SORTS), Undocumented]
DirectionWord = Annotated[_Word, Words(DIRECTIONS), Undocumented]

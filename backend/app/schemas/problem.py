"""The body of an error response: RFC 9457 problem details."""

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, Field

from app.core.errors import AppError

ERRORS_MAX: Final = 20
REQUEST_ID_PATTERN: Final = "^[A-Za-z0-9._=@+-]{1,128}$"
EXAMPLE_ID: Final = "3f0c2a7e9d4b4c56b1a8e0d2f6c7a915"

_PRINTABLE_ASCII: Final = "^[ -~]+$"
_URNS: Final = {kind: f"urn:problem-type:{kind}" for kind in AppError.classes}

# A generated client with a misspelt type does not compile. (mypy cannot know these members.)
ProblemType = StrEnum("ProblemType", {"about-blank": "about:blank", **_URNS})  # type: ignore[misc]


class ProblemField(BaseModel):
    """One invalid field of the request."""

    pointer: str = Field(
        max_length=200,
        pattern=r"^(#|path|query|header|cookie)(/[!-~]*)?$",
        description="`#/name` in the body, `query/name`, `path/name`, `header/name` or `cookie/name` elsewhere.",
    )
    detail: str = Field(max_length=200, pattern=_PRINTABLE_ASCII)


class Problem(BaseModel):
    """An error, as RFC 9457 problem details. `detail` can be shown to users."""

    type: ProblemType = Field(description="URN of the kind of problem. It never changes.")
    title: str = Field(
        max_length=60,
        pattern=_PRINTABLE_ASCII,
        description="Short name of the kind of problem. Each `type` has one title.",
    )
    status: int = Field(ge=400, le=599, json_schema_extra={"format": "int32"}, description="The HTTP status code.")
    detail: str = Field(max_length=1_000, pattern=r"^[\s\S]*[!-~][\s\S]*$", description="Explains this occurrence.")
    instance: str = Field(
        max_length=128,
        pattern=REQUEST_ID_PATTERN,
        description="The request id, also in `X-Request-ID` and in the server's log.",
    )
    errors: list[ProblemField] = Field(
        default_factory=list, max_length=ERRORS_MAX, description="Every invalid field. Only with status 422."
    )

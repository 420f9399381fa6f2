"""Errors on the wire: RFC 9457 problem details."""

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

ERRORS_MAX: Final = 20
REQUEST_ID_PATTERN: Final = "^[A-Za-z0-9._=@+-]{1,128}$"
EXAMPLE_ID: Final = "3f0c2a7e9d4b4c56b1a8e0d2f6c7a915"

_OUR_WORDS: Final = "^[ -~]+$"


class ProblemField(BaseModel):
    """One field that broke a rule."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"pointer": "#/title", "detail": "must contain something other than white space"}}
    )

    pointer: str = Field(
        max_length=200,
        pattern=r"^(#|path|query|header)(/[!-~]*)?$",
        description="`#/name` in the body, `query/name`, `path/name` or `header/name` elsewhere.",
    )
    detail: str = Field(max_length=200, pattern=_OUR_WORDS)


class Problem(BaseModel):
    """What went wrong, as RFC 9457 problem details. `detail` is written to be shown to a person."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:problem-type:invalid-request",
                "title": "Invalid request",
                "status": 422,
                "detail": "title: must contain something other than white space",
                "instance": EXAMPLE_ID,
                "errors": [{"pointer": "#/title", "detail": "must contain something other than white space"}],
            }
        }
    )

    type: str = Field(
        max_length=60,
        pattern="^urn:problem-type:[a-z]+(-[a-z]+)*$",
        description="Stable name of the kind of problem, a URN.",
    )
    title: str = Field(
        max_length=60, pattern=_OUR_WORDS, description="The kind of problem in words; always the same for one `type`."
    )
    status: int = Field(ge=400, le=599, json_schema_extra={"format": "int32"}, description="The HTTP status code.")
    detail: str = Field(max_length=1_000, pattern="[!-~]", description="What went wrong this time, in a sentence.")
    instance: str = Field(
        max_length=128,
        pattern=REQUEST_ID_PATTERN,
        description="The request id, also in `X-Request-ID` and in the server's log.",
    )
    errors: list[ProblemField] = Field(
        default_factory=list,
        max_length=ERRORS_MAX,
        description="With status 422 only: every field that broke a rule.",
    )

"""Errors on the wire: RFC 9457 problem details."""

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

EXAMPLE_ID: Final = "3f0c2a7e9d4b4c56b1a8e0d2f6c7a915"


class ProblemField(BaseModel):
    """One field that broke a rule."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"pointer": "#/title", "detail": "must contain something other than white space"}}
    )

    pointer: str = Field(
        description="`#/name` in the body, `query/name` or `path/name` elsewhere.",
    )
    detail: str


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

    type: str = Field(description="Stable name of the kind of problem, a URN.")
    title: str = Field(description="The kind of problem in words; always the same for one `type`.")
    status: int = Field(description="The HTTP status code.")
    detail: str = Field(description="What went wrong this time, in a sentence.")
    instance: str = Field(description="The request id, also in `X-Request-ID` and in the server's log.")
    errors: list[ProblemField] = Field(
        default_factory=list, description="With status 422 only: every field that broke a rule."
    )

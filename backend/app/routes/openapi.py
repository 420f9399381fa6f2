"""The OpenAPI document: FastAPI's, with errors described as they are sent."""

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI

from app.core.errors import (
    AppError,
    BodyTooLargeError,
    DatabaseUnavailableError,
    FieldError,
    InternalError,
    InvalidRequestError,
    MalformedBodyError,
    TaskNotFoundError,
    UnsupportedMediaTypeError,
)
from app.routes.contract import BODY_LIMIT
from app.routes.errors import MEDIA_TYPE, problem_details
from app.schemas.problem import EXAMPLE_ID, Problem

DESCRIPTION: Final = """\
Tasks, each owned by one user.

* Errors are [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problem details with a `detail` that can be shown.
* Unknown body fields and query parameters are ignored and named in the reply header `Ignored-Fields`;
  with the request header `Prefer: handling=strict` they are refused with 422.
* Every reply has an `X-Request-ID`; a valid one that you send is kept.
"""

# What the operations on tasks answer, with the example that the document shows.
LIST_ERRORS: Final = (
    InvalidRequestError([FieldError("path/user_id", "has characters that are not allowed here")]),
    DatabaseUnavailableError(),
)
TASK_ERRORS: Final = (TaskNotFoundError(), *LIST_ERRORS)
BODY_ERRORS: Final = (
    MalformedBodyError("The body is not JSON: EOF while parsing a string at line 1 column 15."),
    BodyTooLargeError(BODY_LIMIT),
    UnsupportedMediaTypeError(),
    InvalidRequestError([FieldError("#/title", "must contain something other than white space")]),
)

Responses = dict[int | str, dict[str, Any]]


def problems(*errors: AppError) -> Responses:
    """Returns FastAPI's `responses` for the errors that an operation answers, besides a defect of ours.

    Of two with one status, the last is the example.
    """
    return {error.status: _response(error) for error in (*errors, InternalError())}


def install_openapi(app: FastAPI) -> None:
    """Have `app` describe its errors under their own media type, and show examples in the order of replies."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        document = build()
        for schema in document["components"]["schemas"].values():
            example = schema.get("example", {})  # which pydantic has sorted by name
            schema |= {"example": {name: example[name] for name in schema["properties"] if name in example}}
        for path in document["paths"].values():
            for operation in path.values():
                for status, response in operation["responses"].items():
                    if int(status) >= HTTPStatus.BAD_REQUEST:
                        response["content"][MEDIA_TYPE] |= response["content"].pop("application/json", {})
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI's documentation gives


def _response(error: AppError) -> dict[str, Any]:
    example = problem_details(error, EXAMPLE_ID)
    return {"model": Problem, "description": error.title, "content": {MEDIA_TYPE: {"example": example}}}

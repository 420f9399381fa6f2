"""Renders every error as RFC 9457 `application/problem+json`. No other module does."""

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic_core import from_json, to_json
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from app.core import errors
from app.http.remarks import remark, shown_names
from app.schemas.problem import ERRORS_MAX

MEDIA_TYPE: Final = "application/problem+json"
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
ABOUT_BLANK: Final = "about:blank"  # the type of a problem that is only a status (RFC 9457 section 4.2.1)
EXTRA_HEADERS: Final = "app.problem_headers"  # key in the scope: headers that are also added to a problem
# Replaces messages of pydantic that quote the input or mention Python.
_WORDS: Final = {
    "missing": "is required",
    **dict.fromkeys(("enum", "literal_error"), "is not one of the known values"),
    "uuid_parsing": "must be a UUID",
    "int_parsing": "must be a whole number",
    "bool_parsing": "must be true or false",
    "string_pattern_mismatch": "has characters that are not allowed here",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "union_tag_invalid": "has an unknown tag",
}
_MAY_QUOTE: Final = {"value_error", "assertion_error", "zoneinfo_str", "import_error", "byte_size_unit"}
_NAME_LENGTH: Final = 40  # bytes
_DEPTH: Final = 4  # names in a pointer
_SUBJECT: Final = re.compile(r"^\w+ should")  # "Input should be ..." after the name of the field


class PlainHTTPError(errors.AppError, is_base=True):
    """An HTTPException, with type `about:blank`. `data` is a detail that is not text."""

    def __init__(self, status: int, detail: object, headers: Mapping[str, str] | None) -> None:
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Error"
        self.status, self.kind, self.title = status, ABOUT_BLANK, phrase
        self.data = None if isinstance(detail, str) else _as_json(detail)
        text = detail.encode(errors="replace").decode() if isinstance(detail, str) else ""
        framing = {"content-type", "content-length"}
        kept = {name: value for name, value in (headers or {}).items() if name.lower() not in framing}
        super().__init__(text or phrase, kept)


def _as_json(value: object) -> Any:
    """Returns a value that JSON can represent: NaN becomes null, an object of an unknown class becomes text."""
    return from_json(to_json(value, fallback=str, inf_nan_mode="null", bytes_mode="base64"))


def problem(scope: Scope, error: errors.AppError, extra: Mapping[str, str] | None = None) -> Response:
    """Returns the response for `error`, and has the log say it. `extra` are headers to add to the response."""
    note_problem(scope, error)
    content = problem_details(error, Headers(scope=scope)["x-request-id"])
    said = {**error.headers, **(extra or {}), "Cache-Control": "no-store"}
    return JSONResponse(content, error.status, said, MEDIA_TYPE)


def note_problem(scope: Scope, error: errors.AppError) -> None:
    """Have the line of the request say which error answers it."""
    fields = shown_names(item.name for item in error.errors)
    cause = errors.without_text(error.__cause__) if error.__cause__ else None  # slow statement or lock, for `timed-out`
    remark(scope, problem=error.kind, fields=fields, reason=error.reason or cause)


def kind_of(error: BaseException) -> str:
    """Returns the kind of the problem that an exception is answered with."""
    if isinstance(error, asyncio.CancelledError):  # at shutdown the server cancels unfinished requests
        return errors.ShuttingDownError.kind
    return error.kind if isinstance(error, errors.AppError) else errors.InternalError.kind


def problem_details(error: errors.AppError, request_id: str) -> dict[str, Any]:
    """Returns the JSON members of a problem, in the order of `schemas.problem.Problem`."""
    details = {
        "type": error.kind if isinstance(error, PlainHTTPError) else f"urn:problem-type:{error.kind}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": request_id,
    }
    if error.errors:
        details["errors"] = [item._asdict() for item in error.errors]
    if isinstance(error, PlainHTTPError) and error.data is not None:
        details["data"] = error.data
    return details


def body_pointer(*path: object) -> str:
    """Returns a JSON Pointer into the body as a URI fragment (RFC 6901 section 6)."""
    return "#" + "".join("/" + quote(str(part).replace("~", "~0").replace("/", "~1")) for part in path)


def cut_name(name: str) -> str:
    """Returns the part of a client's name that a reply repeats."""
    return name.encode()[:_NAME_LENGTH].decode(errors="ignore")


def field_error(error: Mapping[str, Any]) -> errors.FieldError:
    """Returns one error of pydantic as a FieldError whose text does not quote the input."""
    part, *path = error.get("loc") or ("body",)
    path = [cut_name(str(name)) for name in path[:_DEPTH]]
    pointer = body_pointer(*path) if part == "body" else "/".join((str(part), *map(quote, path)))
    return errors.FieldError(pointer, _WORDS.get(error.get("type", "")) or _message(error))


def _message(error: Mapping[str, Any]) -> str:
    """Returns the message of pydantic or of a validator, or `is not valid` if the message quotes the input."""
    message = str(error.get("msg", "is not valid")).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    quotes = str(error.get("input")) in message and error.get("type") in _MAY_QUOTE
    return "is not valid" if quotes else _SUBJECT.sub("must", message)


def install_error_handlers(app: FastAPI) -> None:
    """Register handlers with `app` that answer every exception with a problem."""
    handlers: dict[Any, Any] = {
        errors.AppError: answer_app_error,
        HTTPException: _answer_http_exception,
        RequestValidationError: _answer_validation_error,
        Exception: answer_defect,
    }
    app.exception_handlers.update(handlers)


async def answer_app_error(request: Request, error: errors.AppError) -> Response:
    """Returns the problem."""
    return problem(request.scope, error, request.scope.get(EXTRA_HEADERS))


async def answer_defect(request: Request, _: Exception) -> Response:
    """Returns the problem for an unexpected exception. RequestMiddleware logs the exception."""
    return problem(request.scope, errors.InternalError())


async def _answer_http_exception(request: Request, error: HTTPException) -> Response:
    if error.status_code < HTTPStatus.BAD_REQUEST:
        return await http_exception_handler(request, error)
    if error.status_code == HTTPStatus.NOT_FOUND and "endpoint" not in request.scope:  # the router's
        return await answer_app_error(request, errors.RouteNotFoundError())
    if isinstance(error.__cause__, errors.AppError):  # wrapped, because FastAPI changes other exceptions to 400
        return await answer_app_error(request, error.__cause__)
    is_default = error.detail == HTTPStatus.METHOD_NOT_ALLOWED.phrase
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and is_default and (allowed := [*_allowed(request)]):
        return await answer_app_error(request, errors.MethodNotAllowedError(allowed))
    return await answer_app_error(request, PlainHTTPError(error.status_code, error.detail, error.headers))


async def _answer_validation_error(request: Request, error: RequestValidationError) -> Response:
    found = [each if isinstance(each, Mapping) else {"msg": each} for each in error.errors()]
    if found and found[0].get("type") == "json_invalid" and found[0].get("loc", ())[:1] == ("body",):
        reason = found[0].get("ctx", {}).get("error", "")
        return await answer_app_error(request, errors.MalformedBodyError(f"The body is not JSON: {reason}."))
    return await answer_app_error(request, invalid_request(found))


def invalid_request(found: Sequence[Mapping[str, Any]]) -> errors.AppError:
    """Returns the error for what pydantic has found, which may be an id that no resource can have."""
    for each in found:
        missing = errors.AppError.classes.get(each.get("type", ""))
        if missing and issubclass(missing, errors.NotFoundError):  # see `or_missing`
            return missing().because("not a UUID")
    return errors.InvalidRequestError(map(field_error, found[:ERRORS_MAX]))


def _allowed(request: Request) -> Iterator[str]:
    """Yields every method of the path. Starlette names only the methods of the first route."""
    for method in METHODS:
        scope = {**request.scope, "method": "GET" if method == "HEAD" else method}
        if any(context.matches(scope)[0] is Match.FULL for context in iter_route_contexts(request.app.routes)):
            yield method

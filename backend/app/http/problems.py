"""Every error becomes RFC 9457 `application/problem+json` here, and nowhere else."""

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from fastapi import FastAPI, Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from app.core.errors import (
    AppError,
    FieldError,
    InternalError,
    MethodNotAllowedError,
    RouteNotFoundError,
    ShuttingDownError,
    UnavailableError,
)

_logger = logging.getLogger("app.requests")

MEDIA_TYPE: Final = "application/problem+json"
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
# pydantic's own words for these quote the input, or speak of Python.
_WORDS: Final = {
    "missing": "is required",
    "uuid_parsing": "must be a UUID",
    "bool_parsing": "must be true or false",
    "string_pattern_mismatch": "has characters that are not allowed here",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
}
_SUBJECT: Final = re.compile(r"^\w+ should")  # "Input should be ..." after the name of the field


def request_id_of(headers: Headers) -> str:
    """Returns the request id, which the middleware has put among the request's `headers`."""
    return headers["x-request-id"]


def problem(headers: Headers, error: AppError) -> Response:
    """Returns `error` as problem details, for the request with these `headers`. No cache may keep it."""
    content = problem_details(error, request_id_of(headers))
    return JSONResponse(content, error.status, {**error.headers, "Cache-Control": "no-store"}, MEDIA_TYPE)


def problem_details(error: AppError, request_id: str) -> dict[str, Any]:
    """Returns the members of the problem, in the order of `schemas.problem.Problem`."""
    details = {
        "type": f"urn:problem-type:{error.kind}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": request_id,
    }
    if error.errors:
        details["errors"] = [item._asdict() for item in error.errors]
    return details


def body_pointer(*path: object) -> str:
    """Returns a JSON Pointer into the body as a URI fragment (RFC 6901 section 6)."""
    return "#" + "".join("/" + quote(str(part).replace("~", "~0").replace("/", "~1")) for part in path)


def field_error(error: Mapping[str, Any]) -> FieldError:
    """Returns what pydantic found wrong, in our words and without the input."""
    part, *path = error["loc"]
    pointer = body_pointer(*path) if part == "body" else "/".join(map(str, (part, *path)))
    return FieldError(pointer, _WORDS.get(error["type"]) or _SUBJECT.sub("must", error["msg"]))


def install_error_handlers(app: FastAPI) -> None:
    """Have `app` answer our errors, the router's, defects, and that it has to end, as problems."""
    handlers: dict[Any, Any] = {
        AppError: _app_error,
        HTTPException: _http_exception,
        asyncio.CancelledError: _called_off,
        Exception: _defect,
    }
    app.exception_handlers.update(handlers)


async def _app_error(request: Request, error: AppError) -> Response:
    if isinstance(error, UnavailableError):  # the line of the request has the status only
        _logger.info("unavailable: %s", error.kind, extra={"request_id": request_id_of(request.headers)})
    return problem(request.headers, error)


async def _http_exception(request: Request, error: HTTPException) -> Response:
    """Starlette raises 404 and 405; anything else of its kind is a defect."""
    if error.status_code == HTTPStatus.NOT_FOUND:
        return problem(request.headers, RouteNotFoundError())
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return problem(request.headers, MethodNotAllowedError(_allowed(request)))
    return await _defect(request, error)


async def _called_off(request: Request, _: asyncio.CancelledError) -> Response:
    """The server calls a request off because it has to end."""
    return problem(request.headers, ShuttingDownError())


async def _defect(request: Request, error: Exception) -> Response:
    _logger.error("unexpected error", exc_info=error, extra={"request_id": request_id_of(request.headers)})
    return problem(request.headers, InternalError())


def _allowed(request: Request) -> Iterator[str]:
    """Yields every method of the path: Starlette itself names only those of the first route."""
    for method in METHODS:
        scope = {**request.scope, "method": "GET" if method == "HEAD" else method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            yield method

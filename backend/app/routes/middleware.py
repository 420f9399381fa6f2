"""Around every request: its id, its line in the log, CORS, and the last resort for defects."""

import logging
import re
from http import HTTPStatus
from time import perf_counter
from typing import Final
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import InternalError, PreflightRefusedError
from app.routes.errors import problem, request_id_of
from app.schemas.problem import REQUEST_ID_PATTERN

_REQUEST_ID: Final = re.compile(REQUEST_ID_PATTERN)

_logger = logging.getLogger("app.requests")


class RequestMiddleware:
    """Gives each request an id and writes one line about it. Answers HEAD as GET (RFC 9110 section 9.3.2).

    The id travels on as the request header `X-Request-ID`, replaced where the client's is missing or malformed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        inner = _with_request_id(scope)
        request_id = request_id_of(Headers(scope=inner))
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self._app(inner, receive, send_with_id)
        finally:
            route = getattr(inner.get("route"), "path", None)
            _log(request_id, scope["method"], route, status, (perf_counter() - started) * 1000)


class ProblemCORSMiddleware(CORSMiddleware):
    """Starlette's, with the refusal of a preflight as a problem instead of plain text."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < HTTPStatus.BAD_REQUEST:
            return response
        refusal = problem(request_headers, PreflightRefusedError(bytes(response.body).decode()))
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        refusal.headers.update(kept)
        return refusal


class DefectMiddleware:
    """Answers an exception that nothing else handles as a 500, and logs it. Stands inside CORS,
    so that a browser may read the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except Exception:
            if started or scope["type"] != "http":
                raise
            headers = Headers(scope=scope)
            _logger.exception("unexpected error", extra={"request_id": request_id_of(headers)})
            await problem(headers, InternalError())(scope, receive, send)


def _with_request_id(scope: Scope) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    sent = Headers(scope=scope).get("x-request-id", "")
    request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid4().hex
    # The server leaves the body out of a reply to HEAD; routing sees a GET.
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "method": method, "headers": [*headers, (b"x-request-id", request_id.encode())]}


def _log(request_id: str, method: str, route: str | None, status: int | None, duration_ms: float) -> None:
    _logger.info(
        "%s %s %s in %.1f ms",
        method,
        route or "(no route)",
        status,
        duration_ms,
        extra={
            "request_id": request_id,
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": round(duration_ms, 3),
        },
    )

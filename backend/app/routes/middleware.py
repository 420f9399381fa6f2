"""Around every request: its id, its line in the log, headers for browsers, CORS, and the last resort for defects."""

import asyncio
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

from app.core.errors import InternalError, MisdirectedError, PreflightRefusedError, ShuttingDownError
from app.core.loopback import is_loopback
from app.routes.errors import problem, request_id_of
from app.schemas.problem import REQUEST_ID_PATTERN

# What every reply has that does not say something else. Only /docs is a page that loads anything.
_SAFE_HEADERS: Final = (
    (b"cache-control", b"private, no-cache"),  # a copy is asked about before each use (RFC 9111 section 5.2.2.4)
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)

_REQUEST_ID: Final = re.compile(REQUEST_ID_PATTERN)
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]{0,5})?")  # RFC 9110 section 7.2

_logger = logging.getLogger("app.requests")


def complete_headers(message: Message, request_id: str) -> None:
    """Have a reply name its request, and tell browsers what not to do with it."""
    headers = MutableHeaders(scope=message)
    headers["X-Request-ID"] = request_id
    headers.add_vary_header("Authorization")
    said = {name for name, _ in headers.raw}
    headers.raw.extend(header for header in _SAFE_HEADERS if header[0] not in said)


class RequestMiddleware:
    """Gives each request an id, writes one line about it, and has each reply tell browsers what not to do with it.
    Answers HEAD as GET (RFC 9110 section 9.3.2).

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
                complete_headers(message, request_id)
            await send(message)

        try:
            await self._app(inner, receive, send_with_id)
        finally:
            route = getattr(inner.get("route"), "path", None)
            _log(request_id, scope["method"], route, status, (perf_counter() - started) * 1000)


class LoopbackMiddleware:
    """Refuses what does not come over a loopback address, or is not addressed to this machine by name.

    Without authentication, a web page whose host name is made to lead here (DNS rebinding) could otherwise have its
    reader's browser use the service.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (_on_loopback(scope) and _for_loopback(scope)):
            await self._app(scope, receive, send)
        else:
            await problem(Headers(scope=scope), MisdirectedError())(scope, receive, send)


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
    """Answers an exception that nothing else handles as a 500, and logs it; and as a 503 a request that the server
    calls off because it has to end. Stands inside CORS, so that a browser may read the answer.
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
        except (Exception, asyncio.CancelledError) as error:
            if started or scope["type"] != "http":
                raise
            headers = Headers(scope=scope)
            if isinstance(error, asyncio.CancelledError):
                await problem(headers, ShuttingDownError())(scope, receive, send)
            else:
                _logger.exception("unexpected error", extra={"request_id": request_id_of(headers)})
                await problem(headers, InternalError())(scope, receive, send)


def _with_request_id(scope: Scope) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    sent = Headers(scope=scope).get("x-request-id", "")
    request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid4().hex
    # The server leaves the body out of a reply to HEAD; routing sees a GET.
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "method": method, "headers": [*headers, (b"x-request-id", request_id.encode())]}


def _on_loopback(scope: Scope) -> bool:
    """Whether the connection is: another server than ours may listen elsewhere. A Unix socket has no port."""
    address, port = scope.get("server") or ("", 0)
    return port is None or is_loopback(address)


def _for_loopback(scope: Scope) -> bool:
    host = _HOST.fullmatch(Headers(scope=scope).get("host", ""))
    return host is not None and is_loopback(host[1] or host[2])


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

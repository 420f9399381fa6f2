"""Around every request: its id, its line in the log, headers for browsers, CORS, and the answer to an error."""

import asyncio
import re
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from os import urandom
from time import perf_counter
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import MisdirectedError, PreflightRefusedError
from app.core.logging import request_log
from app.core.security.loopback import is_loopback
from app.http.problems import problem
from app.schemas.problem import REQUEST_ID_PATTERN

# What every reply has that does not say something else. Only /docs is a page that loads anything.
_SAFE_HEADERS: Final = (
    (b"cache-control", b"private, no-cache"),  # a copy is asked about before each use (RFC 9111 section 5.2.2.4)
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"vary", b"Origin, Authorization"),
    (b"x-content-type-options", b"nosniff"),
)

_REQUEST_ID: Final = re.compile(REQUEST_ID_PATTERN)
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]{0,5})?")  # RFC 9110 section 7.2


def new_request_id() -> str:
    """Returns 32 hexadecimal digits. `secrets.token_hex` does the same in four calls more."""
    return urandom(16).hex()


def complete_headers(message: Message, request_id: str) -> None:
    """Have a reply name its request, and tell browsers what not to do with it."""
    said = dict(message["headers"])
    if b"vary" in said:
        MutableHeaders(scope=message).add_vary_header("Authorization")
    absent = [header for header in _SAFE_HEADERS if header[0] not in said]
    message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *absent]


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


class RequestMiddleware:
    """All there is around the routes. Gives each request an id, writes one line about it, adds the headers for
    browsers and CORS, and answers what the routes raise, and HEAD as GET (RFC 9110 section 9.3.2).

    The id travels on as the request header `X-Request-ID`, replaced where the client's is missing or malformed.
    """

    def __init__(
        self, app: ASGIApp, *, handlers: Mapping[Any, Any], cors: Mapping[str, Any], loopback_only: bool
    ) -> None:
        """`handlers` are FastAPI's `exception_handlers`, coroutine functions; `cors` are Starlette's options."""
        self._app = app
        self._handlers = handlers
        self._cors = ProblemCORSMiddleware(app, **cors)
        self._loopback_only = loopback_only
        self._log = request_log()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        inner, request_id = _with_request_id(scope)
        status: int | None = None

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                complete_headers(message, request_id)
            await send(message)

        app, deliver = self._across_origins(inner, reply)
        try:
            if self._loopback_only:
                _refuse_misdirected(inner)
            await app(inner, receive, deliver)
        except (Exception, asyncio.CancelledError) as error:
            if status is not None:
                raise
            response = await self._answer(Request(inner, receive), error)
            await response(inner, receive, deliver)
        finally:
            self._log(
                {
                    "request_id": request_id,
                    "method": scope["method"],
                    "route": getattr(inner.get("route"), "path", None),
                    "status": status,
                    "duration_ms": round((perf_counter() - started) * 1000, 3),
                }
            )

    def _across_origins(self, scope: Scope, send: Send) -> tuple[ASGIApp, Send]:
        """Returns what answers, and what it sends with, which is no matter of CORS but for requests of web pages."""
        if b"origin" not in dict(scope["headers"]):
            return self._app, send
        headers = Headers(scope=scope)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return self._cors.preflight_response(headers), send
        return self._app, partial(self._cors.send, send=send, request_headers=headers)

    async def _answer(self, request: Request, error: BaseException) -> Response:
        """Returns what the handler of the nearest class does; `install_error_handlers` has one for every error."""
        handler = next(self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers)
        response: Response = await handler(request, error)
        return response


def _with_request_id(scope: Scope) -> tuple[Scope, str]:
    headers = scope["headers"]
    sent = [value.decode("latin-1") for name, value in headers if name == b"x-request-id"]
    others = [header for header in headers if header[0] != b"x-request-id"] if sent else headers
    request_id = sent[0] if sent and _REQUEST_ID.fullmatch(sent[0]) else new_request_id()
    headers = [*others, (b"x-request-id", request_id.encode())]
    # The server leaves the body out of a reply to HEAD; routing sees a GET.
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "method": method, "headers": headers}, request_id


def _refuse_misdirected(scope: Scope) -> None:
    """Raises MisdirectedError for what does not come over a loopback address, or is not addressed to this machine.

    Without authentication, a web page whose host name is made to lead here (DNS rebinding) could otherwise have its
    reader's browser use the service.
    """
    if not (_on_loopback(scope) and _for_loopback(scope)):
        raise MisdirectedError


def _on_loopback(scope: Scope) -> bool:
    """Whether the connection is: another server than ours may listen elsewhere. A Unix socket has no port."""
    address, port = scope.get("server") or ("", 0)
    return port is None or is_loopback(address)


def _for_loopback(scope: Scope) -> bool:
    host = _HOST.fullmatch(Headers(scope=scope).get("host", ""))
    return host is not None and is_loopback(host[1] or host[2])

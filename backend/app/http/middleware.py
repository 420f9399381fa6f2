"""The outermost middleware: request id, request log, security headers, CORS, and answers to exceptions."""

import asyncio
import logging
import re
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from os import urandom
from time import perf_counter
from typing import Any, Final, NoReturn

from fastapi import FastAPI
from starlette._utils import get_route_path, is_async_callable
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import Settings
from app.core.errors import AppError, MisdirectedRequestError, PreflightRefusedError, ShuttingDownError
from app.core.telemetry import span_ids
from app.http.authorization import POLICY_VIOLATION, NotStartedError, refuse_ambiguous_path, refuse_misdirected
from app.http.fast_lane import effective_route
from app.http.paths import RoutePaths, add_root_path
from app.http.problems import ABOUT_BLANK, answer_defect, kind_of, problem
from app.http.remarks import ABORTED, REMARKS, blank_path, client_of, remark, shown_names, shown_origin
from app.http.telemetry import COLLECTED, hide_user_text, note_route
from app.schemas.problem import REQUEST_ID_PATTERN

# Defaults: a reply that sets one of these headers itself keeps its own value. Only /docs loads scripts and styles.
_SAFE_HEADERS: Final = (
    (b"cache-control", b"private, no-cache"),  # a copy is revalidated before each use (RFC 9111 section 5.2.2.4)
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"vary", b"Origin, Authorization"),
    (b"x-content-type-options", b"nosniff"),
)
REFUSAL: Final = "app.refusal"  # the key in the scope for the error with which the server refuses the request
_UNANSWERED: Final = (NotStartedError, GeneratorExit, KeyboardInterrupt, SystemExit)
_ERROR: Final = HTTPStatus.BAD_REQUEST.value  # the first status of errors; looked up once
_FAILURE: Final = HTTPStatus.INTERNAL_SERVER_ERROR.value
_FAILURES: Final = {kind for kind, error in AppError.classes.items() if error.status >= _FAILURE}
_REQUEST_ID: Final = re.compile(REQUEST_ID_PATTERN)
_REQUEST: Final = "%(method)s %(route)s %(status)s in %(duration_ms).1f ms"

_requests: Final = logging.getLogger("app.requests")


def complete_headers(message: Message, request_id: str) -> None:
    """Add `X-Request-ID` and the missing default headers to the first message of a reply."""
    said = dict(message["headers"])
    if b"vary" in said:
        lines = Headers(raw=message["headers"]).getlist("vary")
        names = {name.strip().lower() for line in lines for name in line.split(",")}
        missing = [name for name in ("Origin", "Authorization") if name.lower() not in names]
        if missing:
            MutableHeaders(scope=message).add_vary_header(", ".join(missing))
    absent = [header for header in _SAFE_HEADERS if header[0] not in said]
    message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *absent]


class RequestMiddleware:
    """The outermost layer, in the place of Starlette's ServerErrorMiddleware.

    Gives each request an id, which inner layers read from the request header `X-Request-ID`. Logs one line per request.
    Adds the security and CORS headers. Treats HEAD as GET (RFC 9110 section 9.3.2). Restores the prefix of a path and
    corrects its slashes, so that every inner layer sees the path of the route. Answers exceptions that no inner layer
    has answered.
    """

    def __init__(self, app: ASGIApp, api: FastAPI, settings: Settings, *, cors: Mapping[str, Any]) -> None:
        """`api` has the routes and the exception handlers; `cors` are the options of Starlette's CORSMiddleware."""
        self._app = app
        self._paths = RoutePaths(api.routes)
        self._handlers: Mapping[Any, Any] = api.exception_handlers
        self._cors = CORSMiddleware(app, **cors)
        self._loopback_only = not settings.authenticates
        self._log_health = settings.log_health == "on"
        self._log_client = settings.log_client
        self._root_path = settings.root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._root_path:
            add_root_path(scope, self._root_path)  # in place: the server notes in this scope why a reply was lost
        if scope["type"] != "http":
            await self._pass_on(scope, receive, send)
            return
        started = perf_counter()
        inner, request_id = _with_request_id(scope)
        if COLLECTED in scope:
            hide_user_text(scope)
        status: int | None = None

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                complete_headers(message, request_id)
                if COLLECTED in inner:
                    note_route(inner)
            await send(message)

        app, deliver = self._apply_cors(inner, reply)
        try:
            self._check(inner)
            await app(inner, receive, deliver)
        except BaseException as error:
            if status is not None or isinstance(error, _UNANSWERED):
                remark(inner, problem=kind_of(error))
                error.add_note(f"request_id: {request_id}")  # for the server, which logs the traceback
                raise
            await self._answer(error)(inner, receive, deliver)
        finally:
            self._log(scope, inner, request_id, status, perf_counter() - started)

    def _log(self, scope: Scope, inner: Scope, request_id: str, status: int | None, seconds: float) -> None:
        """Log the request, which the inner layers know as `inner`."""
        if ABORTED in scope and (status or 0) < _FAILURE and inner[REMARKS].get("problem") not in _FAILURES:
            remark(inner, problem=scope[ABORTED])  # a failure keeps its own problem
        elif status is not None and status >= _ERROR:  # without a problem: of a foreign handler
            inner[REMARKS].setdefault("problem", ABOUT_BLANK)
        log_request(
            {
                "request_id": request_id,
                "method": scope["method"],
                "route": getattr(effective_route(inner), "path", None) or self._missed_route(inner),
                **(self._mounted_route(inner) if "app_root_path" in inner else {}),
                "status": status,
                "duration_ms": round(seconds * 1000, 3),
                **(client_of(inner, self._log_client) if self._log_client != "none" else {}),
                **(span_ids() if COLLECTED in scope else {}),
                **inner[REMARKS],
            },
            probes=self._log_health,
        )

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is no request of HTTP, but close a WebSocket that is misdirected."""
        if scope["type"] == "websocket" and self._loopback_only:
            try:
                refuse_misdirected(scope)
            except MisdirectedRequestError:
                await send({"type": "websocket.close", "code": POLICY_VIOLATION})
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Correct the path. Raises an AppError for a request that no inner layer may see."""
        if REFUSAL in scope:
            raise scope[REFUSAL]
        if self._loopback_only:
            refuse_misdirected(scope)
        if "//" in (path := scope["path"]) or path[-1:] == "/" or self._paths.any_end_in_slash:
            self._paths.correct(scope)
        if b"%" in (scope.get("raw_path") or b""):
            refuse_ambiguous_path(scope)

    def _mounted_route(self, scope: Scope) -> dict[str, str]:
        """Returns the route of a mounted application, beginning with the mount. One without routes is `/{path}`."""
        mount = self._paths.of(get_route_path({**scope, "root_path": scope["app_root_path"]})) or ""
        return {"route": mount + getattr(effective_route(scope), "path", "/{path}")}

    def _missed_route(self, scope: Scope) -> str | None:
        """Returns the route of a request that was answered before it reached it, such as a preflight.

        If no route has its path, adds the path to the line.
        """
        path = scope["path"]
        route = self._paths.of(get_route_path(scope)) or None  # a mount at the root has an empty path
        if not route and path.startswith("/"):
            remark(scope, path=blank_path(path))
        return route

    def _apply_cors(self, scope: Scope, send: Send) -> tuple[ASGIApp, Send]:
        """Returns the application and the `send` to use. CORS applies only when `Origin` is present."""
        if b"origin" not in dict(scope["headers"]):
            return self._app, send
        headers = Headers(scope=scope)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return self._preflight_response(scope, headers), send
        origin = headers["origin"]
        if not self._cors.is_allowed_origin(origin) and origin.partition("://")[2] != headers.get("host"):
            remark(scope, origin=shown_origin(origin))  # the browser does not give its page the reply
        return self._app, partial(self._cors.send, send=send, request_headers=headers)

    def _preflight_response(self, scope: Scope, headers: Headers) -> Response:
        """Returns the response of Starlette's CORSMiddleware, but a refusal as a problem instead of plain text."""
        response = self._cors.preflight_response(headers)
        if response.status_code < HTTPStatus.BAD_REQUEST:
            return response
        refused = bytes(response.body).decode().removeprefix("Disallowed CORS ")
        refusal = problem(scope, PreflightRefusedError(f"CORS does not allow this: {refused}."))
        [method] = shown_names([headers["access-control-request-method"]])
        named = refused.replace("method", f"method {method}").split(", ")
        remark(scope, origin=shown_origin(headers["origin"]), refused=named)
        dropped = "content-", "access-control-allow-private-network"
        kept = {name: value for name, value in response.headers.items() if not name.startswith(dropped)}
        refusal.headers.update(kept)
        return refusal

    def _answer(self, error: BaseException) -> ASGIApp:
        """Returns an application that answers an exception with its handler, or with the handler of defects."""

        async def fail(*_: object) -> NoReturn:
            if isinstance(error, (Exception, asyncio.CancelledError)):
                raise error
            raise RuntimeError from error  # a panic of a compiled library: Starlette handles only `Exception`

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await error_middleware(fail, self._handlers)(scope, receive, send)
            except asyncio.CancelledError:  # at shutdown the server cancels unfinished requests
                await problem(scope, ShuttingDownError())(scope, receive, send)
            except Exception as defect:  # noqa: BLE001  # no handler is registered for it
                response = await self._answer_defect(Request(scope, receive), defect)
                await response(scope, receive, send)

        return answer

    async def _answer_defect(self, request: Request, error: Exception) -> Response:
        log_defect(request.scope, error)
        handler = self._handlers.get(500) or self._handlers[Exception]
        answer: Any = handler if is_async_callable(handler) else partial(run_in_threadpool, handler)
        try:
            response = await answer(request, error)
        except Exception as failure:  # noqa: BLE001  # the handler of defects has failed itself
            _requests.error("unexpected error in the handler of errors", exc_info=failure, extra=_ids(request.scope))
            response = None
        return response if isinstance(response, Response) else await answer_defect(request, error)


def error_middleware(app: ASGIApp, handlers: Mapping[Any, Any]) -> ASGIApp:
    """Returns Starlette's ExceptionMiddleware with all `handlers` but those of defects, as FastAPI builds it."""
    known = {kind: handler for kind, handler in handlers.items() if kind not in {500, Exception}}
    return ExceptionMiddleware(app, handlers=known)


def _with_request_id(scope: Scope) -> tuple[Scope, str]:
    headers = scope["headers"]
    sent = [value.decode("latin-1") for name, value in headers if name == b"x-request-id"]
    others = [header for header in headers if header[0] != b"x-request-id"] if sent else headers
    # `secrets.token_hex` makes four more calls.
    request_id = sent[0] if sent and _REQUEST_ID.fullmatch(sent[0]) else urandom(16).hex()
    headers = [*others, (b"x-request-id", request_id.encode())]
    if isinstance(scope["headers"], list):  # in place: a server that refuses the rest of the request uses the same id
        scope["headers"][:] = headers
    # Routes see a GET. The server omits the body of the reply.
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "method": method, "headers": headers, REMARKS: {}}, request_id


def log_defect(scope: Scope, error: BaseException) -> None:
    """Log an exception with its stack and the id of the request."""
    _requests.error("unexpected error", exc_info=error, extra=_ids(scope))


def _ids(scope: Scope) -> dict[str, str]:
    return {"request_id": Headers(scope=scope)["x-request-id"], **span_ids()}


def log_request(request: dict[str, Any], *, probes: bool = True) -> None:
    """Log a request, given `request_id`, `method`, `route`, `status`, `duration_ms` and what http/remarks.py adds.

    `probes` is whether successful health checks are logged.
    """
    status, route = request["status"] or 0, request["route"] or "(no route)"
    # The error of a tool has the status 200.
    failed = status >= _FAILURE or ("problem" in request and request["problem"] in _FAILURES)
    level = logging.WARNING if failed else logging.INFO
    if probes or not (route.startswith("/health/") and HTTPStatus.OK <= status < HTTPStatus.BAD_REQUEST):
        _requests.log(level, _REQUEST, {**request, "route": route}, extra=request)

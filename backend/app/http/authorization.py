"""Who may ask. Decided for every path under `/api` before a route is chosen, so that no route can forget it."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, TypeVar

from fastapi import APIRouter, HTTPException
from fastapi.dependencies.models import Dependant
from fastapi.routing import RouteContext, iter_route_contexts
from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import (
    AppError,
    ForbiddenError,
    MisdirectedRequestError,
    StartupError,
    TokenInvalidError,
    TokenMissingError,
)
from app.core.security.loopback import is_loopback

_USER: Final = "{user_id}"
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]{0,5})?")  # RFC 9110 section 7.2
POLICY_VIOLATION: Final = 1008  # RFC 6455 section 7.4.1

_logger = logging.getLogger(__name__)
_T = TypeVar("_T", bound=Callable[..., Any])


class NotStartedError(RuntimeError):
    """The application serves before its lifespan has begun."""

    def __init__(self) -> None:
        super().__init__(
            "The application has not been started, so it has no database and no keys. In a test, write "
            '`with TestClient(app, base_url="http://localhost") as client`; elsewhere, serve it with a server that '
            "runs the lifespan."
        )


def public(endpoint: _T) -> _T:
    """Declare that anybody may call an endpoint, or a mounted application, that is outside `/api`."""
    endpoint.public_mark = endpoint  # type: ignore[attr-defined]  # itself, because functools.wraps copies attributes
    return endpoint


async def current_user(connection: HTTPConnection) -> str:
    """Returns the token's user, for a route under `/api` that has no `{user_id}`. Raises TokenMissingError."""
    user_id: str | None = connection.scope["state"].get("user_id")
    if user_id is None:  # authentication is off
        raise TokenMissingError
    return user_id


def is_api(path: str) -> bool:
    """Returns whether only the owner of a token may use the path."""
    return path == "/api" or path.startswith("/api/")


def is_public(context: RouteContext) -> bool:
    """Returns whether the route was declared `public`."""
    target = getattr(context, "endpoint", None) or getattr(context, "app", None)
    return target is not None and getattr(target, "public_mark", None) is target


def check_routes(router: APIRouter) -> None:
    """Raises StartupError for a route of which it is not certain who may use it."""
    if [*router._iter_low_priority_routes()]:  # noqa: SLF001  # FastAPI has no other list of them
        message = "frontend() cannot be declared public; mount StaticFiles instead: app.mount(path, public(files))"
        raise StartupError(message)
    contexts = [*iter_route_contexts(router.routes)]
    for context in contexts:
        if reason := _refusal(context) or _shadow(context, contexts) or _late_end(context):
            methods = ", ".join(sorted(context.methods or ())) or "the mount"
            message = f"{methods} {context.path or context.original_route}: {reason}"
            raise StartupError(message)


def _refusal(context: RouteContext) -> str | None:
    path = context.path or ""
    if not is_api(path):
        return None if is_public(context) else "is outside /api; move it there, or declare it with @public"
    if is_public(context):
        return "is under /api, which always asks for a token; move it elsewhere to have it public"
    if path.split("/")[2:3] == [_USER] or _acts_for_token_user(context):
        return None
    return "must begin with /api/{user_id}, or with a word after /api and take CurrentUser (app.routes.deps)"


def _acts_for_token_user(context: RouteContext) -> bool:
    """Whether it takes `CurrentUser` and has a word, no parameter, behind `/api`."""
    dependant: Dependant | None = getattr(context, "dependant", None)
    takes = dependant is not None and any(each.call is current_user for each in all_dependants(dependant))
    path = context.path or ""
    return takes and re.match("/api/[^{/]", path) is not None and _USER not in path


def _shadow(context: RouteContext, contexts: Iterable[RouteContext]) -> str | None:
    """Returns why a route for the token's user is never reached: one of `/api/{user_id}` takes its requests."""
    if not _acts_for_token_user(context):
        return None
    path = re.sub(r"{\w+(:\w+)?}", "0", context.path or "")
    for method in context.methods or ():
        scope = {"type": "http", "method": method, "path": path, "root_path": ""}
        first = next(each for each in contexts if each.matches(scope)[0] is Match.FULL)
        if first.path != context.path:
            return f"is never reached, because {first.path} comes first; include its router earlier"
    return None


def _late_end(context: RouteContext) -> str | None:
    """Returns which dependency would end after the reply, although a failure of its end has to be answered."""
    dependant: Dependant | None = getattr(context, "dependant", None)
    for each in all_dependants(dependant) if dependant else ():
        if getattr(each.call, "ends_before_reply", False) and each.scope != "function":
            return f'would commit after its reply; take Session (app.routes.deps), or {each.name} with scope="function"'
    return None


def all_dependants(dependant: Dependant) -> Iterator[Dependant]:
    """Yields what a handler takes, and what its dependencies take, and theirs."""
    yield dependant
    for dependency in dependant.dependencies:
        yield from all_dependants(dependency)


class AuthorizationMiddleware:
    """Under `/api`, asks for a token, whose user must be the one in the path: `/api/{user_id}/...`.

    A path of another form is only for routes that act for the token's own user: they take `CurrentUser` and have no
    `{user_id}`. A path or a method that no route has is 404 or 405 whoever asks.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and is_api(path := get_route_path(scope)):
            try:
                await self._authorize(scope, path)
            except (AppError, HTTPException) as error:
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": POLICY_VIOLATION})
                    return
                scope["route"] = self._chosen(scope)  # for the log
                _log_refusal(scope, error)
                raise
        await self._app(scope, receive, send)

    async def _authorize(self, scope: Scope, path: str) -> None:
        state = scope.get("state", {})
        if "tokens" not in state:
            raise NotStartedError
        if state["tokens"] is None:  # authentication is off
            return
        user_id = await state["tokens"].user_id_of(_bearer_token(scope))
        scope["state"] = {**state, "user_id": user_id}  # of this request alone
        is_owner = f"{path}/".startswith(f"/api/{user_id}/")
        if not is_owner and not _acts_for_token_user(self._chosen(scope)):
            raise ForbiddenError

    def _chosen(self, scope: Scope) -> RouteContext:
        """Returns the route that FastAPI will choose: the first one that matches path and method.

        Raises HTTPException, as the router does, if there is none.
        """
        partial = False
        for context in iter_route_contexts(self._routes):
            with suppress(ValueError):  # of a convertor, for a number with thousands of digits
                match, _ = context.matches(scope)
                if match is Match.FULL:
                    return context
                partial = partial or match is Match.PARTIAL
        raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED if partial else HTTPStatus.NOT_FOUND)


def _log_refusal(scope: Scope, error: Exception) -> None:
    if isinstance(error, TokenInvalidError):
        extra = {"request_id": Headers(scope=scope)["x-request-id"]}
        _logger.info("token refused: %s", error.reason, extra=extra)


def _bearer_token(scope: Scope) -> str:
    """Returns the token of the only `Authorization` (RFC 6750 section 2.1). Raises UnauthenticatedError."""
    sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
    if len(sent) > 1:
        raise TokenInvalidError("several")
    scheme, _, token = "".join(sent).partition(" ")
    if scheme.lower() != "bearer":
        raise TokenMissingError
    return token.strip(" ")


def refuse_misdirected(scope: Scope) -> None:
    """Raises MisdirectedRequestError unless the request came over a loopback address and names this machine.

    Without authentication, a web page whose host name resolves to this machine (DNS rebinding) could otherwise have
    its reader's browser use the service.
    """
    if not (_came_over_loopback(scope) and _names_loopback(scope)):
        raise MisdirectedRequestError


def _came_over_loopback(scope: Scope) -> bool:
    """Another server than ours may listen elsewhere. A Unix socket has no port."""
    address, port = scope.get("server") or ("", 0)
    return port is None or is_loopback(address)


def _names_loopback(scope: Scope) -> bool:
    host = _HOST.fullmatch(Headers(scope=scope).get("host", ""))
    return host is not None and is_loopback(host[1] or host[2])

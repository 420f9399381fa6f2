"""Authorization. It runs for every path under `/api` and `/mcp` before a route is chosen, so no route can forget it."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import APIRouter, HTTPException
from fastapi.dependencies.models import Dependant
from fastapi.routing import RouteContext, iter_route_contexts
from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core import errors
from app.core.database import USER
from app.core.security.loopback import is_loopback

MCP_PATH: Final = "/mcp"
_CLOSED: Final = ("/api/", f"{MCP_PATH}/")
_USER: Final = "{user_id}"
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]{0,5})?")  # RFC 9110 section 7.2
_BY_DEVELOPMENT_SERVERS: Final = frozenset({"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"})
# Headers that proxies, CDNs and tunnels add.
_FORWARDED: Final = re.compile(
    "forwarded|via|x-forwarded.*|x-original-(forwarded-for|host)|x-real-ip|(x|x-cluster|true|fly|fastly)-client-ip"
    "|(cf|tailscale|x-envoy)-.+"
)
POLICY_VIOLATION: Final = 1008  # RFC 6455 section 7.4.1
_VALUES: Final = {"int": "0", "float": "0", "uuid": str(UUID(int=0))}  # of path parameters, by convertor

_T = TypeVar("_T", bound=Callable[..., Any])


class NotStartedError(RuntimeError):
    """A request arrived although the lifespan has not run."""

    def __init__(self) -> None:
        super().__init__(
            "The application has not been started, so it has no database and no keys. In a test, write "
            '`with TestClient(app, base_url="http://localhost") as client`; elsewhere, serve it with a server that '
            "runs the lifespan."
        )


def public(endpoint: _T) -> _T:
    """Returns `endpoint`, marked as open to everybody: a handler or a mounted application outside `/api` and `/mcp`."""
    endpoint.public_mark = endpoint  # type: ignore[attr-defined]  # not True: functools.wraps would copy it
    return endpoint


async def current_user(connection: HTTPConnection) -> str:
    """Returns the token's user, for routes without `{user_id}`. Raises TokenMissingError if authentication is off."""
    user_id: str | None = connection.scope["state"].get("user_id")
    if user_id is None:
        raise errors.TokenMissingError
    return user_id


def needs_token(path: str) -> bool:
    """Returns whether the path needs a token."""
    return path in {"/api", MCP_PATH} or path.startswith(_CLOSED)


def metadata_url(public_url: str) -> str:
    """Returns the URL of the metadata of `/mcp`: the well-known path precedes the path (RFC 9728 section 3.1)."""
    parts = urlsplit(public_url)
    return f"{parts.scheme}://{parts.netloc}/.well-known/oauth-protected-resource{parts.path}{MCP_PATH}"


def is_public(context: RouteContext) -> bool:
    """Returns whether the route was declared `public`."""
    target = getattr(context, "endpoint", None) or getattr(context, "app", None)
    return target is not None and getattr(target, "public_mark", None) is target


def check_routes(router: APIRouter) -> None:
    """Raises StartupError for a route that has unclear access, is never reached, or has an unfit dependency."""
    if [*router._iter_low_priority_routes()]:  # noqa: SLF001  # FastAPI has no other list of them
        message = "frontend() cannot be declared public; mount StaticFiles instead: app.mount(path, public(files))"
        raise errors.StartupError(message)
    contexts = [*iter_route_contexts(router.routes)]
    for context in contexts:
        if reason := _access_problem(context) or _shadow(context, contexts) or _dependency_problem(context):
            methods = ", ".join(sorted(context.methods or ())) or "the mount"
            raise errors.StartupError(f"{methods} {context.path or context.original_route}: {reason}")


def _access_problem(context: RouteContext) -> str | None:
    path = context.path or ""
    if not needs_token(path):
        return None if is_public(context) else "is outside /api; move it there, or declare it with @public"
    if is_public(context):
        return "is under /api or /mcp, which always ask for a token; move it elsewhere to have it public"
    if path.split("/")[1:3] == ["api", _USER] or _acts_for_token_user(context):
        return None
    if not path.startswith("/api"):
        return "is under /mcp, so must take CurrentUser (app.routes.deps); tools for agents are in app/routes/tools.py"
    return "must begin with /api/{user_id}, or with a word after /api and take CurrentUser (app.routes.deps)"


def _acts_for_token_user(context: RouteContext) -> bool:
    """Whether the route takes `CurrentUser`, and its path begins with `/mcp` or has a fixed word after `/api`."""
    dependant: Dependant | None = getattr(context, "dependant", None)
    takes = dependant is not None and any(each.call is current_user for each in all_dependants(dependant))
    path = context.path or ""
    return takes and re.match("/mcp|/api/[^{/]", path) is not None and _USER not in path


def _shadow(context: RouteContext, contexts: Iterable[RouteContext]) -> str | None:
    """Returns the reason if an earlier route, such as `/tasks/{task_id}`, takes all requests of this route."""
    path = re.sub(r"{\w+:?(\w*)}", lambda found: _VALUES.get(found[1], "x"), context.path or "")
    for method in context.methods or ():
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        first = next((each for each in contexts if each.matches(scope)[0] is Match.FULL), context)
        if first.path != context.path:
            return (
                f"is never reached, because {first.path or '/'} comes first; declare it, or include its router, earlier"
            )
    return None


def _dependency_problem(context: RouteContext) -> str | None:
    """Returns the reason if a dependency commits after the reply, too late for an error, or needs a JSONRoute."""
    dependant: Dependant | None = getattr(context, "dependant", None)
    reads_names = hasattr(context.original_route, "reads_unknown_names")
    for each in all_dependants(dependant) if dependant else ():
        if getattr(each.call, "must_end_before_reply", False) and each.scope != "function":
            return f'would commit after its reply; take Session (app.routes.deps), or {each.name} with scope="function"'
        if getattr(each.call, "needs_json_route", False) and not reads_names:
            return f"takes {each.name}, which needs APIRouter(route_class=JSONRoute) from app.http.fast_lane"
    return None


def all_dependants(dependant: Dependant) -> Iterator[Dependant]:
    """Yields `dependant` and, recursively, its dependencies."""
    yield dependant
    for dependency in dependant.dependencies:
        yield from all_dependants(dependency)


class AuthorizationMiddleware:
    """Requires a token under `/api` and `/mcp`. Its user must be the one in the path: `/api/{user_id}/...`.

    Paths of another form belong to routes that take `CurrentUser`, which act for the token's own user. An unknown path
    is 404 and an unknown method 405, with or without a token. A 401 of `/mcp` names its metadata if there is a
    `public_url` (RFC 9728 section 5.1).
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], public_url: str | None) -> None:
        self._app = app
        self._routes = routes
        self._challenge = public_url and f', resource_metadata="{metadata_url(public_url)}"'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        USER.set("")  # a pipelined request begins in the context of the one before it
        if scope["type"] != "lifespan" and needs_token(path := get_route_path(scope)):
            try:
                await self._authorize(scope, path)
            except (errors.AppError, HTTPException) as error:
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": POLICY_VIOLATION})
                    return
                scope["route"] = self._matching_route(scope)  # for the log
                if self._challenge and path == MCP_PATH and isinstance(error, errors.UnauthenticatedError):
                    error.headers["WWW-Authenticate"] += self._challenge
                raise
        await self._app(scope, receive, send)

    async def _authorize(self, scope: Scope, path: str) -> None:
        state = scope.get("state", {})
        if "tokens" not in state:
            raise NotStartedError
        if state["tokens"] is None:  # authentication is off
            USER.set(path.removeprefix("/api/").partition("/")[0])
            return
        user_id = await state["tokens"].user_id_of(_bearer_token(scope))
        USER.set(user_id)
        scope["state"] = {**state, "user_id": user_id}  # of this request alone
        is_owner = f"{path}/".startswith(f"/api/{user_id}/")
        if not is_owner and not _acts_for_token_user(self._matching_route(scope)):
            raise errors.ForbiddenError

    def _matching_route(self, scope: Scope) -> RouteContext:
        """Returns the route that FastAPI will choose: the first that matches path and method.

        Raises HTTPException with 404 or 405, like the router, if no route matches.
        """
        partial = False
        for context in iter_route_contexts(self._routes):
            with suppress(ValueError):  # a convertor fails for a number with thousands of digits
                match, _ = context.matches(scope)
                if match is Match.FULL:
                    return context
                partial = partial or match is Match.PARTIAL
        raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED if partial else HTTPStatus.NOT_FOUND)


def _bearer_token(scope: Scope) -> str:
    """Returns the bearer token (RFC 6750 section 2.1). Raises UnauthenticatedError without exactly one."""
    sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
    if len(sent) > 1:
        raise errors.TokenInvalidError("several")
    scheme, _, token = "".join(sent).partition(" ")
    if scheme.lower() != "bearer":
        raise errors.TokenMissingError
    return token.strip(" ")


def refuse_ambiguous_path(scope: Scope) -> None:
    """Raises RouteNotFoundError for a path with an encoded slash, or an encoded character in `/api` or `/mcp`. Also for
    a path with a newline at its end, which the patterns of Starlette's routes overlook.

    A proxy that does not decode the path would not recognize it as such a path, and could log its user.
    """
    sent = scope["raw_path"].removeprefix(scope.get("root_path", "").encode())
    if (
        b"%2f" in sent.lower()
        or scope["path"].endswith("\n")
        or (needs_token(get_route_path(scope)) and b"%" in sent[: len("/api/")])
    ):
        raise errors.RouteNotFoundError().because("encoded character")


def refuse_misdirected(scope: Scope) -> None:
    """Raises MisdirectedRequestError unless the request came over a loopback address, its `Host` is a loopback name,
    and no proxy has forwarded it from elsewhere.

    For a service without authentication. A web page whose host name resolves to this machine (DNS rebinding) could
    otherwise use the service through its visitor's browser. A proxy could make it public.
    """
    headers = Headers(scope=scope)
    if not (_came_over_loopback(scope) and _is_loopback_host(headers.get("host", "")) and _is_local(headers)):
        raise errors.MisdirectedRequestError().because("Host" if _is_local(headers) else "forwarded")


def _came_over_loopback(scope: Scope) -> bool:
    """Checked for each request, because another ASGI server may listen on any address. A Unix socket has no port."""
    address, port = scope.get("server") or ("", 0)
    return port is None or is_loopback(address)


def _is_loopback_host(value: str) -> bool:
    host = _HOST.fullmatch(value)
    return host is not None and is_loopback(host[1] or host[2])


def _is_local(headers: Headers) -> bool:
    """Returns whether no proxy has forwarded the request, or only a development server for a client on this machine.

    The rewrites of Next.js and the proxy of Create React App name the client and its `Host` (`xfwd` of http-proxy).
    """
    marks = {name for name in headers if _FORWARDED.fullmatch(name)}
    if marks - {"x-forwarded-port"} != _BY_DEVELOPMENT_SERVERS:
        return not marks
    clients = ",".join(headers.getlist("x-forwarded-for")).split(",")
    hosts = headers.getlist("x-forwarded-host")
    return all(is_loopback(client.strip()) for client in clients) and all(map(_is_loopback_host, hosts))

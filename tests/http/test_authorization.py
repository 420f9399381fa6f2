"""Under `/api` only the owner of a token gets anywhere, whatever a route forgets."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Response, WebSocket
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route
from starlette.types import Receive, Scope, Send

from app.core.config import Settings
from app.core.errors import StartupError
from app.http.authorization import check_routes, public
from app.main import create_app
from app.routes.deps import CurrentUser, get_session
from tests.support import bearer, serving

Extend = Callable[[FastAPI], object]


@asynccontextmanager
async def extended(settings: Settings, extend: Extend) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client without a token, of a service that `extend` adds to."""
    async with serving(settings, extend) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


async def statuses(client: httpx.AsyncClient, path: str, method: str = "GET") -> list[int]:
    """Returns the statuses without a token, with a bad one, with another user's, and with ada's."""
    headers: list[dict[str, str]] = [{}, {"Authorization": "Bearer a.b.c"}, bearer("eve"), bearer("ada")]
    return [(await client.request(method, path, headers=each)).status_code for each in headers]


async def forgetful() -> str:
    """A handler that knows nothing of users."""
    return "reached"


def plain_router(app: FastAPI) -> None:
    router = APIRouter(prefix="/api/{user_id}/projects")
    router.get("")(forgetful)
    app.include_router(router)


def router_with_prefix(app: FastAPI) -> None:
    router, parent = APIRouter(), APIRouter()
    router.get("/projects")(forgetful)
    parent.include_router(router, prefix="/{user_id}")
    app.include_router(parent, prefix="/api")


def direct_route(app: FastAPI) -> None:
    app.get("/api/{user_id}/projects")(forgetful)


def starlette_route(app: FastAPI) -> None:
    async def reached(_: Request) -> Response:
        return PlainTextResponse("reached")

    app.add_route("/api/{user_id}/projects", reached)


def mounted(app: FastAPI) -> None:
    app.mount("/api/{user_id}/projects", PlainTextResponse("reached"))


class TestForgetfulRoute:
    @pytest.mark.parametrize(
        "extend", [plain_router, router_with_prefix, direct_route, starlette_route], ids=lambda each: each.__name__
    )
    async def test_only_the_owner_reaches_a_route_that_forgets_who_asks(
        self, secured: Settings, extend: Extend
    ) -> None:
        async with extended(secured, extend) as client:
            assert await statuses(client, "/api/ada/projects") == [401, 401, 403, 200]

    async def test_only_the_owner_reaches_a_mounted_application(self, secured: Settings) -> None:
        async with extended(secured, mounted) as client:
            assert await statuses(client, "/api/ada/projects/x") == [401, 401, 403, 200]

    async def test_middleware_that_rewrites_the_path_opens_nothing(self, secured: Settings) -> None:
        class Rewrite:
            def __init__(self, app: Any) -> None:
                self._app = app

            async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
                scope = {**scope, "path": scope.get("path", "").removeprefix("/v1")}
                await self._app(scope, receive, send)

        def extend(app: FastAPI) -> None:
            plain_router(app)
            app.add_middleware(Rewrite)

        async with extended(secured, extend) as client:
            assert await statuses(client, "/v1/api/ada/projects") == [401, 401, 403, 200]
            assert await statuses(client, "/v1/api/ada/tasks") == [401, 401, 403, 200]

    async def test_a_websocket_is_closed_without_a_token(self, secured: Settings) -> None:
        app = create_app(secured)

        @app.websocket("/api/{user_id}/live")
        async def live(socket: WebSocket) -> None:
            await socket.accept()

        async def handshake(headers: dict[str, str]) -> str:
            sent: list[Any] = []
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            scope = {
                "type": "websocket",
                "path": "/api/ada/live",
                "query_string": b"",
                "headers": raw,
                "state": {**(state or {})},
            }

            async def receive() -> Any:
                return {"type": "websocket.connect"}

            async def send(message: Any) -> None:
                sent.append(message["type"])

            await app(scope, receive, send)
            return str(sent[0])

        async with app.router.lifespan_context(app) as state:
            replies = [await handshake(headers) for headers in ({}, bearer("eve"), bearer("ada"))]

        assert replies == ["websocket.close", "websocket.close", "websocket.accept"]

    async def test_a_websocket_without_authentication_is_for_this_machine_alone(self, settings: Settings) -> None:
        app = create_app(settings)

        @app.websocket("/api/{user_id}/live")
        async def live(socket: WebSocket) -> None:
            await socket.accept()

        async def handshake(host: str) -> str:
            headers = [(b"host", host.encode())]
            scope = {"type": "websocket", "path": "/api/ada/live", "query_string": b"", "headers": headers}
            sent: list[Any] = []

            async def receive() -> Any:
                return {"type": "websocket.connect"}

            async def send(message: Any) -> None:
                sent.append(message["type"])

            await app({**scope, "server": ("127.0.0.1", 1), "state": {**(state or {})}}, receive, send)
            return str(sent[0])

        async with app.router.lifespan_context(app) as state:
            replies = [await handshake(host) for host in ("evil.example", "localhost")]

        assert replies == ["websocket.close", "websocket.accept"]

    async def test_what_answers_where_no_route_is_answers_nobody_else_under_api(self, secured: Settings) -> None:
        def extend(app: FastAPI) -> None:
            app.router.default = PlainTextResponse("reached")

        async with extended(secured, extend) as client:
            assert await statuses(client, "/api/ada/none") == [404, 404, 404, 200]

    async def test_a_number_of_five_thousand_digits_is_no_path(self, secured: Settings) -> None:
        def extend(app: FastAPI) -> None:
            app.get("/api/{user_id}/numbers/{number:int}")(forgetful)

        async with extended(secured, extend) as client:
            assert await statuses(client, f"/api/ada/numbers/{'9' * 5_000}") == [404] * 4
            assert await statuses(client, "/api/ada/numbers/9") == [401, 401, 403, 200]

    async def test_a_path_that_no_route_has_is_404_for_everybody(self, secured: Settings) -> None:
        async with extended(secured, plain_router) as client:
            assert await statuses(client, "/api/ada/none") == [404] * 4
            assert await statuses(client, "/api/ada/projects", "DELETE") == [405] * 4


class TestTokenUser:
    """A route that acts for the token's own user."""

    @staticmethod
    def own(app: FastAPI) -> None:
        async def get_name(user: CurrentUser) -> str:
            return user

        router = APIRouter(prefix="/api/me")
        router.get("/name")(get_name)
        router.get("/projects")(get_name)
        app.include_router(router)

    async def test_it_gets_the_user_of_the_token(self, secured: Settings) -> None:
        async with extended(secured, self.own) as client:
            replies = [await client.get("/api/me/name", headers=headers) for headers in ({}, bearer("ada"))]

        assert [reply.status_code for reply in replies] == [401, 200]
        assert replies[1].json() == "ada"

    async def test_it_comes_before_a_route_of_users_with_the_same_path(self, secured: Settings) -> None:
        def extend(app: FastAPI) -> None:
            self.own(app)
            plain_router(app)

        async with extended(secured, extend) as client:
            replies = [
                await client.get(f"/api/{user}/projects", headers=bearer("ada")) for user in ("me", "ada", "eve")
            ]

        assert [reply.status_code for reply in replies] == [200, 200, 403]
        assert [reply.json() for reply in replies[:2]] == ["ada", "reached"]

    def test_behind_a_route_of_users_with_the_same_path_it_is_refused(self, secured: Settings) -> None:
        app = create_app(secured)
        plain_router(app)
        self.own(app)

        with pytest.raises(StartupError, match=r"^GET /api/me/projects: is never reached, because"):
            check_routes(app.router)

    async def test_taking_the_user_of_the_token_opens_no_path_of_another_user(self, secured: Settings) -> None:
        async def audit(_: CurrentUser) -> None: ...

        def extend(app: FastAPI) -> None:
            router = APIRouter(prefix="/api/{user_id}/projects", dependencies=[Depends(audit)])
            router.get("")(forgetful)
            app.include_router(router)

        async with extended(secured, extend) as client:
            assert await statuses(client, "/api/ada/projects") == [401, 401, 403, 200]

    async def test_without_authentication_there_is_no_such_user(self, settings: Settings) -> None:
        async with extended(settings, self.own) as client:
            assert (await client.get("/api/me/name")).status_code == 401


class TestStart:
    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("/projects", "is outside /api"),
            ("/apis/{user_id}", "is outside /api"),
            ("/{anything}/{user_id}/projects", "is outside /api"),
            ("/{path:path}", "is outside /api"),
            ("/api", "must begin with"),
            ("/api/projects", "must begin with"),
            ("/api/v2/{user_id}/projects", "must begin with"),
            ("/api/{user_id:path}", "must begin with"),
            ("/api/{owner}/projects", "must begin with"),
            ("/api/users/{user_id}/projects", "must begin with"),
        ],
    )
    async def test_a_route_of_which_it_is_not_certain_who_may_use_it_is_refused(
        self, secured: Settings, path: str, reason: str
    ) -> None:
        async def handler(_: CurrentUser) -> None: ...

        app = create_app(secured)
        app.get(path)(handler if "users" in path else forgetful)

        with pytest.raises(StartupError, match=rf"^GET {path.replace('{', '.')[:5]}.*: {reason}"):
            check_routes(app.router)
        with pytest.raises(StartupError, match=reason):
            async with app.router.lifespan_context(app):
                raise AssertionError

    @pytest.mark.parametrize(
        "route",
        [
            Mount("/site", PlainTextResponse("open")),
            Mount("/api/files", PlainTextResponse("open")),
            Host("files.example.com", PlainTextResponse("open")),
            Route("/site", public(lambda _: PlainTextResponse("open")), methods=["GET"]),
        ],
        ids=["mount", "mount without an owner", "host", "control"],
    )
    def test_other_kinds_of_routes_are_judged_too(self, secured: Settings, route: Any) -> None:
        app = create_app(secured)
        app.router.routes.append(route)

        if hasattr(getattr(route, "endpoint", None), "public_mark"):
            check_routes(app.router)
        else:
            with pytest.raises(StartupError):
                check_routes(app.router)

    def test_a_route_for_the_token_user_begins_with_a_word(self, secured: Settings) -> None:
        async def handler(user: CurrentUser) -> str:
            return user

        app = create_app(secured)
        app.get("/api/{anything}/name")(handler)

        with pytest.raises(StartupError, match="must begin with"):
            check_routes(app.router)

    def test_a_session_that_would_commit_after_the_reply_is_refused(self, secured: Settings) -> None:
        async def handler(session: Annotated[Any, Depends(get_session)]) -> None: ...

        app = create_app(secured)
        app.get("/api/{user_id}/late")(handler)

        with pytest.raises(StartupError, match="would commit after its reply; take Session"):
            check_routes(app.router)

    def test_nothing_under_api_is_public(self, secured: Settings) -> None:
        app = create_app(secured)
        app.get("/api/{user_id}/open")(public(forgetful))

        with pytest.raises(StartupError, match="always asks for a token"):
            check_routes(app.router)
        del forgetful.public_mark  # type: ignore[attr-defined]

    def test_a_function_that_wraps_a_public_one_is_not_public(self, secured: Settings) -> None:
        @wraps(public(forgetful))
        async def admin() -> str:
            return await forgetful()

        app = create_app(secured)
        app.get("/admin")(admin)

        with pytest.raises(StartupError, match="GET /admin: is outside /api"):
            check_routes(app.router)
        del forgetful.public_mark  # type: ignore[attr-defined]

    def test_a_frontend_is_refused_because_it_cannot_be_declared(self, secured: Settings, tmp_path: Path) -> None:
        app = create_app(secured)
        app.frontend("/site", directory=tmp_path)

        with pytest.raises(StartupError, match="mount StaticFiles instead"):
            check_routes(app.router)

    async def test_a_public_route_outside_api_asks_for_no_token(self, secured: Settings) -> None:
        def extend(app: FastAPI) -> None:
            @app.get("/ping")
            @public
            async def ping() -> str:
                return "pong"

        async with extended(secured, extend) as client:
            assert await statuses(client, "/ping") == [200] * 4
            document = (await client.get("/openapi.json")).json()

        assert document["paths"]["/ping"]["get"]["security"] == []
        assert all(
            operation["security"] == ([{"bearer": []}] if path.startswith("/api") else [])
            for path, operations in document["paths"].items()
            for operation in operations.values()
        )

"""Under `/api` only the owner of a token reaches a route, even if the route does not check who asks."""

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Response, WebSocket
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.config import Settings
from app.core.errors import StartupError
from app.http.authorization import check_routes, public
from app.main import create_app
from app.routes.deps import CurrentUser, get_session
from tests.http.support import Extend, extended
from tests.support import bearer


async def statuses(client: httpx.AsyncClient, path: str, method: str = "GET") -> list[int]:
    """Returns the statuses without a token, with a malformed one, with another user's, and with ada's."""
    headers = [{"Authorization": ""}, {"Authorization": "Bearer a.b.c"}, bearer("eve"), bearer("ada")]
    return [(await client.request(method, path, headers=each)).status_code for each in headers]


async def unchecked() -> str:
    """A handler that does not check who asks."""
    return "reached"


async def name_of(user: CurrentUser) -> str:
    return user


def with_router(app: FastAPI) -> None:
    router = APIRouter(prefix="/api/{user_id}/projects")
    router.get("")(unchecked)
    app.include_router(router)


def with_nested_router(app: FastAPI) -> None:
    router, parent = APIRouter(), APIRouter()
    router.get("/projects")(unchecked)
    parent.include_router(router, prefix="/{user_id}")
    app.include_router(parent, prefix="/api")


def with_starlette_route(app: FastAPI) -> None:
    async def reached(_: Request) -> Response:
        return PlainTextResponse("reached")

    app.add_route("/api/{user_id}/projects", reached)


def with_mount(app: FastAPI) -> None:
    app.mount("/api/{user_id}/projects", PlainTextResponse("reached"))


def with_token_user_in_a_dependency(app: FastAPI) -> None:
    router = APIRouter(prefix="/api/{user_id}/projects", dependencies=[Depends(name_of)])
    router.get("")(unchecked)
    app.include_router(router)


def with_middleware_that_rewrites_the_path(app: FastAPI) -> None:
    class Rewrite:
        def __init__(self, app: ASGIApp) -> None:
            self._app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self._app({**scope, "path": scope.get("path", "").replace("/v1", "")}, receive, send)

    with_router(app)
    app.add_middleware(Rewrite)


class TestUncheckedRoute:
    @pytest.mark.parametrize(
        ("extend", "path"),
        [
            (with_router, "/api/ada/projects"),
            (with_nested_router, "/api/ada/projects"),
            (with_starlette_route, "/api/ada/projects"),
            (with_mount, "/api/ada/projects/x"),
            (with_token_user_in_a_dependency, "/api/ada/projects"),
            (with_middleware_that_rewrites_the_path, "/v1/api/ada/projects"),
        ],
    )
    async def test_only_the_owner_reaches_a_route_that_does_not_check_who_asks(
        self, secured: Settings, extend: Extend, path: str
    ) -> None:
        async with extended(secured, extend) as client:
            assert await statuses(client, path) == [401, 401, 403, 200]

    async def test_an_unknown_path_is_404_and_an_unknown_method_405_for_everybody(self, secured: Settings) -> None:
        async with extended(secured, with_router) as client:
            assert await statuses(client, "/api/ada/none") == [404] * 4
            assert await statuses(client, "/api/ada/projects", "DELETE") == [405] * 4

    async def test_a_default_application_under_api_answers_only_the_owner(self, secured: Settings) -> None:
        def extend(app: FastAPI) -> None:
            app.router.default = PlainTextResponse("reached")

        async with extended(secured, extend) as client:
            assert await statuses(client, "/api/ada/none") == [404, 404, 404, 200]

    async def test_a_number_of_five_thousand_digits_in_a_path_is_404(self, secured: Settings) -> None:
        def extend(app: FastAPI) -> None:
            app.get("/api/{user_id}/numbers/{number:int}")(unchecked)

        async with extended(secured, extend) as client:
            assert await statuses(client, f"/api/ada/numbers/{'9' * 5_000}") == [404] * 4
            assert await statuses(client, "/api/ada/numbers/9") == [401, 401, 403, 200]


class TestWebsocket:
    @staticmethod
    async def handshakes(settings: Settings, *headers: dict[str, str]) -> list[str]:
        """Returns the first message of the service to each handshake. The tests have no client for websockets."""
        app = create_app(settings)

        @app.websocket("/api/{user_id}/live")
        async def live(socket: WebSocket) -> None:
            await socket.accept()

        sent: list[str] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        async with app.router.lifespan_context(app) as state:
            scope = {"type": "websocket", "path": "/api/ada/live", "query_string": b"", "server": ("127.0.0.1", 1)}
            for each in headers:
                raw = [(name.lower().encode(), value.encode()) for name, value in each.items()]
                await app({**scope, "headers": raw, "state": {**(state or {})}}, receive, send)
        return sent

    async def test_a_websocket_is_closed_without_a_token_of_its_user(self, secured: Settings) -> None:
        replies = await self.handshakes(secured, {}, bearer("eve"), bearer("ada"))

        assert replies == ["websocket.close", "websocket.close", "websocket.accept"]

    async def test_a_websocket_without_authentication_is_closed_for_a_foreign_host(self, settings: Settings) -> None:
        replies = await self.handshakes(settings, {"Host": "evil.example"}, {"Host": "localhost"})

        assert replies == ["websocket.close", "websocket.accept"]


def with_token_user(app: FastAPI) -> None:
    app.get("/api/me/projects")(name_of)


class TestTokenUser:
    @pytest.mark.parametrize("authenticates", [True, False])
    async def test_a_route_that_takes_the_current_user_gets_the_user_of_the_token(
        self, secured: Settings, settings: Settings, *, authenticates: bool
    ) -> None:
        async with extended(secured if authenticates else settings, with_token_user) as client:
            anonymous = await client.get("/api/me/projects", headers={"Authorization": ""})
            ada = await client.get("/api/me/projects")

        assert (anonymous.status_code, ada.status_code) == (401, 200 if authenticates else 401)
        assert ada.json() == "ada" or not authenticates

    async def test_a_route_for_the_token_user_may_come_before_a_route_of_users_with_the_same_path(
        self, secured: Settings
    ) -> None:
        def extend(app: FastAPI) -> None:
            with_token_user(app)
            with_router(app)

        async with extended(secured, extend) as client:
            replies = [await client.get(f"/api/{user}/projects") for user in ("me", "ada", "eve")]

        assert [reply.status_code for reply in replies] == [200, 200, 403]
        assert [reply.json() for reply in replies[:2]] == ["ada", "reached"]

    def test_a_route_for_the_token_user_behind_a_route_of_users_with_the_same_path_is_refused(
        self, secured: Settings
    ) -> None:
        app = create_app(secured)
        with_router(app)
        with_token_user(app)

        with pytest.raises(StartupError, match=r"^GET /api/me/projects: is never reached, because /api/{user_id}/pro"):
            check_routes(app.router)


@public
async def ping() -> str:
    return "pong"


def with_late_commit(app: FastAPI) -> None:
    async def handler(session: Annotated[Any, Depends(get_session)]) -> None: ...

    app.get("/api/{user_id}/late")(handler)


def with_public_route_under_api(app: FastAPI) -> None:
    app.get("/api/{user_id}/open")(ping)


def with_wrapped_public_handler(app: FastAPI) -> None:
    @wraps(ping)
    async def admin() -> None: ...

    app.get("/admin")(admin)


def with_frontend(app: FastAPI) -> None:
    app.frontend("/site", directory=".")


class TestCheckRoutes:
    @pytest.mark.parametrize(
        ("path", "endpoint", "reason"),
        [
            ("/projects", unchecked, "is outside /api"),
            ("/apis/{user_id}", unchecked, "is outside /api"),
            ("/{anything}/{user_id}/projects", unchecked, "is outside /api"),
            ("/api", unchecked, "must begin with"),
            ("/api/projects", unchecked, "must begin with"),
            ("/api/v2/{user_id}/projects", unchecked, "must begin with"),
            ("/api/{user_id:path}", unchecked, "must begin with"),
            ("/api/{owner}/projects", name_of, "must begin with"),
            ("/api/users/{user_id}/projects", name_of, "must begin with"),
        ],
    )
    async def test_a_route_with_unclear_access_is_refused_at_the_start(
        self, secured: Settings, path: str, endpoint: Callable[..., Any], reason: str
    ) -> None:
        app = create_app(secured)
        app.get(path)(endpoint)

        with pytest.raises(StartupError) as caught:
            async with app.router.lifespan_context(app):
                raise AssertionError
        assert str(caught.value).startswith(f"GET {path}: {reason}")

    @pytest.mark.parametrize(
        "route",
        [
            Mount("/site", PlainTextResponse("open")),
            Mount("/api/files", PlainTextResponse("open")),
            Host("files.example.com", PlainTextResponse("open")),
            Route("/site", lambda _: PlainTextResponse("open")),
        ],
        ids=lambda route: type(route).__name__,
    )
    def test_a_mount_a_host_and_a_plain_route_with_unclear_access_are_refused(
        self, secured: Settings, route: Any
    ) -> None:
        app = create_app(secured)
        app.router.routes.append(route)

        with pytest.raises(StartupError):
            check_routes(app.router)

    @pytest.mark.parametrize(
        ("extend", "reason"),
        [
            (with_late_commit, "GET /api/{user_id}/late: would commit after its reply; take Session"),
            (with_public_route_under_api, "GET /api/{user_id}/open: is under /api, which always asks for a token"),
            (with_wrapped_public_handler, "GET /admin: is outside /api"),
            (with_frontend, "frontend() cannot be declared public; mount StaticFiles instead"),
        ],
    )
    def test_a_route_that_commits_late_or_is_not_clearly_public_is_refused(
        self, secured: Settings, extend: Extend, reason: str
    ) -> None:
        app = create_app(secured)
        extend(app)

        with pytest.raises(StartupError) as caught:
            check_routes(app.router)
        assert str(caught.value).startswith(reason)

    async def test_a_public_route_outside_api_asks_for_no_token(self, secured: Settings) -> None:
        async with extended(secured, lambda app: app.get("/ping")(ping)) as client:
            assert await statuses(client, "/ping") == [200] * 4
            document = (await client.get("/openapi.json")).json()

        assert document["paths"]["/ping"]["get"]["security"] == []

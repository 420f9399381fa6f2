"""Under `/api` only the owner of a token reaches a route, even if the route does not check who asks."""

import re
from functools import partial, wraps
from typing import Annotated, Any, Final

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket, WebSocketDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.config import Settings
from app.core.errors import StartupError
from app.http.authorization import POLICY_VIOLATION, check_routes, public
from app.main import create_app
from app.routes.deps import CurrentUser, KeptFields, Unknown, get_session
from tests.http.support import Extend, extended
from tests.support import bearer

Client = httpx.AsyncClient


async def statuses(client: Client, path: str, method: str = "GET") -> list[int]:
    """Returns the statuses without a token, with a malformed one, with another user's, and with ada's."""
    headers = [{"Authorization": ""}, {"Authorization": "Bearer a.b.c"}, bearer("eve"), bearer("ada")]
    return [(await client.request(method, path, headers=each)).status_code for each in headers]


async def unchecked() -> str:
    """A handler that does not check who asks."""
    return "reached"


async def name_of(user: CurrentUser) -> str:
    return user


def with_router(app: FastAPI) -> None:
    router = APIRouter(prefix="/api/{user_id}/chores")
    router.get("")(unchecked)
    app.include_router(router)


class Rewrite:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "path": scope.get("path", "").replace("/v1", "")}, receive, send)


class TestUncheckedRoute:
    async def test_a_number_with_too_many_digits_is_404_for_all(self, secured: Settings) -> None:
        async with extended(secured, lambda app: app.get("/api/{user_id}/numbers/{number:int}")(unchecked)) as client:
            assert await statuses(client, f"/api/ada/numbers/{'9' * 5_000}") == [404] * 4
            assert await statuses(client, "/api/ada/numbers/9") == [401, 401, 403, 200]

    async def test_only_the_owner_reaches_a_default_application_and_a_rewritten_path(self, secured: Settings) -> None:
        def extend(app: FastAPI) -> None:
            with_router(app)
            app.add_middleware(Rewrite)
            app.router.default = PlainTextResponse("reached")

        async with extended(secured, extend) as client:
            assert await statuses(client, "/v1/api/ada/chores") == [401, 401, 403, 200]
            assert await statuses(client, "/api/ada/none") == [404, 404, 404, 200]


LIVE: Final = "ws://localhost/api/ada/live"


async def accept(socket: WebSocket) -> None:
    await socket.accept()


@pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")
class TestWebsocket:
    @pytest.mark.parametrize("authenticates", [True, False])
    def test_a_websocket_is_closed_without_a_token_of_its_user_or_without_authentication_for_a_foreign_host_or_a_proxy(
        self, secured: Settings, settings: Settings, *, authenticates: bool
    ) -> None:
        from fastapi.testclient import TestClient  # noqa: PLC0415  # it warns at import

        app = create_app(secured if authenticates else settings)
        app.websocket("/api/{user_id}/live")(accept)
        refused = [{}, bearer("eve")] if authenticates else [{"Host": "evil.example"}, {"Via": "1.1 proxy"}]
        with TestClient(app, base_url="http://localhost") as client:
            for headers in refused:
                with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect(LIVE, headers=headers):
                    raise AssertionError
                assert caught.value.code == POLICY_VIOLATION
            with client.websocket_connect(LIVE, headers=bearer("ada")):
                pass


def with_token_user(app: FastAPI) -> None:
    app.get("/api/me/chores")(name_of)
    with_router(app)


class TestTokenUser:
    async def test_a_route_with_the_current_user_is_a_401_without_authentication(self, settings: Settings) -> None:
        async with extended(settings, with_token_user) as client:
            assert (await client.get("/api/me/chores")).status_code == 401

    async def test_a_route_with_the_current_user_may_come_before_one_that_takes_its_path(
        self, secured: Settings
    ) -> None:
        async with extended(secured, with_token_user) as client:
            replies = [await client.get(f"/api/{user}/chores") for user in ("me", "ada", "eve")]
            assert (await statuses(client, "/api/me/chores"))[:2] == [401, 401]

        assert [reply.status_code for reply in replies] == [200, 200, 403]
        assert [reply.json() for reply in replies[:2]] == ["ada", "reached"]

    def test_a_route_with_the_current_user_behind_a_route_that_takes_its_path_is_refused(
        self, secured: Settings
    ) -> None:
        app = create_app(secured)
        with_router(app)
        with_token_user(app)

        with pytest.raises(StartupError, match=r"^GET /api/me/chores: is never reached, because /api/{user_id}/cho"):
            check_routes(app.router)


@pytest.mark.parametrize("path", ["pending", "{task_name}/history"])
def test_a_route_behind_a_route_that_takes_all_its_requests_is_refused(secured: Settings, path: str) -> None:
    app = create_app(secured)
    for earlier in ("{number:int}/history", "{task_id}", "{task_id}/history"):
        app.get(f"/api/{{user_id}}/things/{earlier}")(unchecked)
    app.post(f"/api/{{user_id}}/things/{path}")(unchecked)
    check_routes(app.router)  # another method

    app.get(f"/api/{{user_id}}/things/{path}")(unchecked)
    with pytest.raises(StartupError, match=rf"^GET .*/{re.escape(path)}: is never reached, because .*/{{task_id}}"):
        check_routes(app.router)


@public
async def ping() -> str:
    return "pong"


def test_a_route_behind_a_mount_at_the_root_is_refused(secured: Settings) -> None:
    app = create_app(secured)
    app.mount("/", public(FastAPI()))
    app.get("/ping")(ping)

    with pytest.raises(StartupError, match=r"^GET /ping: is never reached, because / comes first"):
        check_routes(app.router)


@wraps(ping)
async def admin() -> None: ...


async def commits_late(session: Annotated[Any, Depends(get_session)]) -> None: ...


async def keeps(kept: KeptFields) -> None: ...


async def refuses(unknown: Unknown) -> None: ...


OPEN: Final = PlainTextResponse("open")
UNCLEAR: list[tuple[Extend, str]] = [
    (lambda app: app.mount("/site", OPEN), "the mount /site: is outside /api"),
    (lambda app: app.mount("/api/files", OPEN), "the mount /api/files: must begin with"),
    (lambda app: app.mount("/mcp", OPEN), "the mount /mcp: is under /mcp, so must take CurrentUser"),
    (lambda app: app.host("files.example.com", OPEN), "the mount "),
    (lambda app: app.add_route("/site", lambda _: OPEN), "GET, HEAD /site: is outside /api"),
    (lambda app: app.get("/api/{user_id}/late")(commits_late), "GET /api/{user_id}/late: would commit after its reply"),
    (lambda app: app.put("/api/{user_id}/a")(keeps), "PUT /api/{user_id}/a: takes kept, which needs APIRouter(route_"),
    (lambda app: app.get("/api/{user_id}/a")(refuses), "GET /api/{user_id}/a: takes unknown, which needs APIRouter("),
    (lambda app: app.get("/api/{user_id}/a")(ping), "GET /api/{user_id}/a: is under /api or /mcp, which always ask"),
    (lambda app: app.get("/mcp/others")(ping), "GET /mcp/others: is under /api or /mcp, which always ask for a token"),
    (lambda app: app.get("/admin")(admin), "GET /admin: is outside /api"),
    (lambda app: app.frontend("/site", directory="."), "frontend() cannot be declared public; mount StaticFiles"),
]


UNCLEAR += [
    (partial(FastAPI.add_api_route, path=path, endpoint=endpoint), f"GET {path}: {reason}")
    for path, endpoint, reason in (
        ("/apis/{user_id}", unchecked, "is outside /api"),
        ("/{anything}/{user_id}/chores", unchecked, "is outside /api"),
        ("/api", unchecked, "must begin with"),
        ("/api/chores", unchecked, "must begin with"),
        ("/api/v2/{user_id}/chores", unchecked, "must begin with"),
        ("/api/{user_id:path}", unchecked, "must begin with"),
        ("/api/{owner}/chores", name_of, "must begin with"),
        ("/api/users/{user_id}/chores", name_of, "must begin with"),
        ("/mcp/{user_id}", unchecked, "is under /mcp, so must take CurrentUser"),
    )
]


class TestCheckRoutes:
    @pytest.mark.parametrize(("extend", "reason"), UNCLEAR)
    async def test_a_route_with_unclear_access_or_an_unfit_dependency_is_refused_at_the_start(
        self, secured: Settings, extend: Extend, reason: str
    ) -> None:
        app = create_app(secured)
        extend(app)

        with pytest.raises(StartupError, match=f"^{re.escape(reason)}"):
            async with app.router.lifespan_context(app):
                raise AssertionError

    async def test_a_public_route_outside_api_asks_for_no_token(self, secured: Settings) -> None:
        async with extended(secured, lambda app: app.get("/ping")(ping)) as client:
            assert await statuses(client, "/ping") == [200] * 4
            document = (await client.get("/openapi.json")).json()

        assert document["paths"]["/ping"]["get"]["security"] == []

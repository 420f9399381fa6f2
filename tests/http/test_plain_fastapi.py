"""What the application does that no request to a sound one shows."""

import subprocess
import sys
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, Cookie, Depends, Header
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import Settings
from app.core.errors import StartupError
from app.http.fast_lane import JSONRoute as ContractRoute
from app.main import create_app
from app.routes.deps import Db, UserId


async def test_without_a_database_it_does_not_start_and_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    app = create_app(Settings(_env_file=None))

    with pytest.raises(StartupError, match="DATABASE_URL is not set"):
        async with app.router.lifespan_context(app):
            raise AssertionError


def test_what_fetches_keys_is_not_imported_without_an_address_to_fetch_them_from() -> None:
    command = [sys.executable, "-c", "import app.main, sys; print('httpx' in sys.modules, 'jwt' in sys.modules)"]

    done = subprocess.run(command, env={"PYTHONPATH": "backend"}, capture_output=True, text=True, check=True)

    assert done.stdout == "False True\n"


async def test_an_exception_of_the_framework_that_nobody_expects_is_a_logged_defect(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(settings)

    @app.get("/teapot")
    async def brew() -> None:
        raise HTTPException(418)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        reply = await client.get("/teapot")

    assert (reply.status_code, reply.json()["type"]) == (500, "urn:problem-type:internal-error")
    assert "unexpected error" in caplog.messages


class TeapotError(Exception):
    """An error of a route that somebody has added."""


class Layer:
    """A middleware that somebody has added: it names itself in each reply."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-layer", b"seen")]
            await send(message)

        await self._app(scope, receive, named)


async def test_routes_layers_and_handlers_may_be_added_to_it(settings: Settings) -> None:
    app = create_app(settings)
    app.add_middleware(Layer)

    @app.exception_handler(TeapotError)
    async def refuse(request: Request, _: TeapotError) -> Response:
        return Response(f"refused {request.headers['X-Request-ID']}", 418)

    @app.get("/added/{number}")
    async def brew(number: int) -> dict[str, int]:
        if number > 1:
            raise TeapotError
        return {"number": number}

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        good, bad, refused, missing = [await client.get(f"/added/{path}") for path in ("1", "one", "2", "1/2")]

    assert (good.status_code, good.json()) == (200, {"number": 1})
    assert (bad.status_code, missing.status_code) == (422, 404)
    assert (refused.status_code, refused.text) == (418, f"refused {refused.headers['X-Request-ID']}")
    for reply in (good, bad, refused, missing):
        assert (reply.headers["X-Layer"], reply.headers["X-Content-Type-Options"]) == ("seen", "nosniff")


async def from_header(sent: Annotated[str, Header()]) -> str:
    return sent


async def from_body(sent: Annotated[str, Body()]) -> str:
    return sent


def not_awaited(request: Request) -> str:
    return request.method


@pytest.mark.parametrize("taken", [Header(), Cookie(), Depends(from_header), Depends(from_body), Depends(not_awaited)])
def test_a_handler_that_takes_what_its_route_does_not_read_is_refused_when_it_is_made(taken: Any) -> None:
    async def handler(text: str = taken) -> None: ...

    with pytest.raises(TypeError, match="takes what ContractRoute does not read: text"):
        ContractRoute("/", handler)


def test_a_handler_may_take_what_the_handlers_of_tasks_take() -> None:
    async def handler(user_id: UserId, db: Db, request: Request) -> None: ...

    assert ContractRoute("/{user_id}", handler)

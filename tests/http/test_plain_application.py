"""Middleware, mounts, overrides, the document and the lifespan work as in FastAPI's documentation."""

import json
import re
from enum import Enum
from itertools import product
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Body, FastAPI, HTTPException, Request, Response, Security
from fastapi.security import APIKeyHeader
from pydantic import BaseModel
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse

from app import main
from app.core.config import Settings
from app.core.errors import StartupError
from app.http.authorization import NotStartedError, public
from app.http.openapi import complete_document
from app.main import create_app
from tests.http.support import BASE, extended, problem_of
from tests.support import SECRET, make_settings


class TestMiddleware:
    async def test_added_middleware_sees_every_reply_but_a_500_and_may_fail(self, secured: Settings) -> None:
        async def fail(status: int) -> None:
            raise HTTPException(status) if status < 500 else RuntimeError

        def extend(app: FastAPI) -> None:
            app.get(f"{BASE}/{{status}}")(fail)

            @app.middleware("http")
            async def time(request: Request, call_next: Any) -> Response:
                if request.url.path == "/health/live":
                    raise RuntimeError
                response: Response = await call_next(request)
                response.headers["X-Time"] = "1"
                return response

        async with extended(secured, extend) as client:
            urls = ("/api/ada/things/409", "/api/ada/things/none", "/api/ada/tasks", "/api/eve/tasks", "/none")
            replies = [await client.get(url) for url in urls]
            defects = [await client.get(url) for url in ("/api/ada/things/500", "/health/live")]

        assert [reply.status_code for reply in replies] == [409, 422, 200, 403, 404]
        for reply in replies:
            assert (reply.headers["X-Time"], reply.headers["X-Content-Type-Options"]) == ("1", "nosniff")
        assert all(problem_of(defect, 500) for defect in defects)

    async def test_a_reply_varies_by_origin_and_token_once_whatever_is_added(self, secured: Settings) -> None:
        async def handler() -> Response:
            return Response("x", headers={"Vary": "Authorization, Origin"})

        async def others() -> Response:
            reply = Response("x", headers={"Vary": "X-Authorization"})
            reply.headers.append("Vary", "Sec-Origin")
            return reply

        def extend(app: FastAPI) -> None:
            app.get(BASE)(handler)
            app.get(f"{BASE}/others")(others)
            app.add_middleware(GZipMiddleware, minimum_size=1)

        async with extended(secured, extend) as client:
            replies = [await client.get(path) for path in ("/health/live", "/api/ada/things", "/api/ada/things/others")]

        values = [reply.headers["Vary"] for reply in replies]
        assert values == [
            "Accept-Encoding, Origin, Authorization",
            "Authorization, Origin, Accept-Encoding",
            "X-Authorization, Sec-Origin, Accept-Encoding, Origin, Authorization",
        ]


class Colour(Enum):  # a schema without properties
    RED = "red"


class ValidationError(BaseModel):  # a schema with the name of one of FastAPI's
    colour: Colour


async def take_key(_: ValidationError, key: Annotated[str, Security(APIKeyHeader(name="X-Key"))]) -> str:
    return key


async def take_nothing() -> None: ...


async def take_or_not(
    body: ValidationError | None = None, lowest: int | None = None, name: int | bool | None = None
) -> None: ...


async def take_null(body: Annotated[ValidationError | None, Body()]) -> None: ...


class TestDocument:
    async def test_added_routes_are_in_the_document_with_their_security_and_errors_and_a_mount_is_served(
        self, secured: Settings
    ) -> None:
        def extend(app: FastAPI) -> None:
            router = APIRouter()
            router.post("/{number}", openapi_extra={"x": 1}, responses={409: {"description": "Taken."}})(take_key)
            router.get("", openapi_extra={"security": []})(take_nothing)
            app.include_router(router, prefix=BASE, tags=["things"])
            app.webhooks.post("hook")(take_key)
            app.mount("/site", public(PlainTextResponse("open")))

        async with extended(secured, extend) as client:
            document = (await client.get("/openapi.json")).json()
            assert (await client.get("/site/", headers={"Authorization": ""})).text == "open"
            assert (await client.get("/site")).status_code == 404  # FastAPI would answer with a redirect to `Host`

        schemas = document["components"]["schemas"]
        post, get = document["paths"][f"{BASE}/{{number}}"]["post"], document["paths"][BASE]["get"]
        assert set(re.findall(r'"#/components/schemas/(.*?)"', json.dumps(document))) <= schemas.keys()
        assert (post["operationId"], get["operationId"]) == ("take_key", "take_nothing")  # the names of the handlers
        assert (post["tags"], post["x"]) == (["things"], 1)
        assert (post["security"], get["security"]) == ([{"APIKeyHeader": [], "bearer": []}], [{"bearer": []}])
        assert post["responses"].keys() == {"200", "400", "401", "403", "409", "413", "422", "500", "503"}
        for status, response in post["responses"].items():
            if status != "200":
                assert response["content"].keys() == {"application/problem+json"}
                assert "#/components/schemas/Problem" in str(response["content"])
                assert response["headers"].keys() <= {"X-Request-ID", "WWW-Authenticate", "Retry-After"}
        assert get["responses"].keys() == {"200", "401", "403", "422", "500", "503"}

    async def test_only_a_body_that_has_to_be_sent_can_be_null(self, secured: Settings) -> None:
        """Generators make a class of the choice between a value and `null`."""

        def extend(app: FastAPI) -> None:
            app.put(BASE)(take_or_not)
            app.post(BASE)(take_null)

        async with extended(secured, extend) as client:
            operations = (await client.get("/openapi.json")).json()["paths"][BASE]

        optional, required = [operations[method]["requestBody"] for method in ("put", "post")]
        kind = {"$ref": "#/components/schemas/ValidationError"}
        assert optional["content"]["application/json"] == {"schema": kind}
        assert required["content"]["application/json"]["schema"]["anyOf"] == [kind, {"type": "null"}]
        assert {each["name"]: each["schema"] for each in operations["put"]["parameters"] if each["in"] == "query"} == {
            "lowest": {"type": "integer"},
            "name": {"anyOf": [{"type": "integer"}, {"type": "boolean"}]},
        }

    def test_a_document_without_routes_has_the_schemas_to_which_an_error_refers(self) -> None:
        document: dict[str, Any] = {}

        complete_document(document, [], authenticates=True, keeps=False)

        referred = set(re.findall(r'"#/components/schemas/(.*?)"', json.dumps(document)))
        assert referred == {"ProblemField", "ProblemType"}
        assert document["components"]["schemas"].keys() == {"Problem", *referred}


class TestStart:
    @pytest.mark.parametrize("path", ["/api/ada/tasks", "/health/ready"])
    async def test_a_request_before_the_lifespan_fails_and_names_the_test_client(
        self, secured: Settings, path: str
    ) -> None:
        transport = httpx.ASGITransport(create_app(secured))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/health/live")).status_code == 200
            with pytest.raises(NotStartedError, match="with TestClient"):
                await client.get(path)

    def test_a_server_may_import_the_application_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AUTH_JWT_SECRET", SECRET)
        vars(main).pop("app", None)

        assert isinstance(main.app, FastAPI)
        assert main.app is main.app
        assert "app" in dir(main)
        del main.app
        with pytest.raises(AttributeError, match="has no attribute 'apps'"):
            _ = main.apps

    async def test_only_a_server_without_bounds_on_connections_logs_a_warning_and_those_of_the_settings(
        self, secured: Settings, dsn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_ULR", "a")
        for settings, bounded in product((secured, make_settings(dsn, log_level="info")), (True, False)):
            caplog.clear()
            app = create_app(settings, bounded=bounded)
            async with app.router.lifespan_context(app):
                assert ("does not bound what a connection may send" in caplog.text) is not bounded
                assert ("ignored: DATABASE_ULR (did you mean DATABASE_URL?)" in caplog.text) is not bounded
                is_open = not (bounded or settings.authenticates)
                assert ("authentication is off: whoever reaches the port may name any user" in caplog.text) is is_open
                assert ("LOG_LEVEL and LOG_FORMAT have no effect" in caplog.text) is is_open

    async def test_our_server_warns_that_it_does_not_serve_the_websockets_of_an_application(
        self, secured: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        router = APIRouter()
        router.websocket("/api/{user_id}/live")(lambda: None)
        for bounded in (True, False):
            caplog.clear()
            app = create_app(secured, bounded=bounded)
            app.include_router(router)
            async with app.router.lifespan_context(app):
                assert ("does not serve the WebSockets" in caplog.text) is bounded

    async def test_an_application_without_a_database_does_not_start(self) -> None:
        app = create_app(Settings(_env_file=None))

        with pytest.raises(StartupError, match="DATABASE_URL is not set"):
            async with app.router.lifespan_context(app):
                raise AssertionError

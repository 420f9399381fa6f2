"""What FastAPI's documentation shows works in this application, with authentication on and errors as problems."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Cookie,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    Security,
)
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.security import APIKeyHeader, SecurityScopes
from pydantic import AfterValidator, BaseModel, Field, Json, field_validator
from starlette.background import BackgroundTask
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import main
from app.core.config import Settings
from app.core.errors import StartupError
from app.http.authorization import NotStartedError, public
from app.http.fast_lane import JSONRoute
from app.main import create_app
from app.routes.deps import Db, UserId, get_database
from tests.http.support import BASE, ask, extended, one_route, problem_of
from tests.support import SECRET, bearer


class Thing(BaseModel):
    """A body and a reply."""

    name: str = Field(max_length=5)
    kind: Literal["a", "b"] = "a"

    @field_validator("name")
    @classmethod
    def _is_not_bad(cls, name: str) -> str:
        if name == "bad":
            message = "must not be bad"
            raise ValueError(message)
        return name


class Options(BaseModel):
    """Query parameters in a model."""

    limit: int = 10
    tags: list[str] = []


class Colour(Enum):
    """An Enum in a schema."""

    RED = "red"


def _refuse(value: int) -> int:
    message = f"{value} is refused"
    raise ValueError(message)


class TestArguments:
    async def test_a_dependency_may_have_dependencies_and_parameters_of_its_own(self, secured: Settings) -> None:
        def double(number: int) -> int:
            return 2 * number

        async def quadruple(doubled: Annotated[int, Depends(double)]) -> int:
            return 2 * doubled

        async def handler(user_id: UserId, result: Annotated[int, Depends(quadruple)]) -> dict[str, Any]:
            return {user_id: result}

        reply = await ask(secured, one_route(handler), params={"number": 3})

        assert (reply.status_code, reply.json()) == (200, {"ada": 12})

    async def test_a_dependency_that_yields_is_closed_after_the_reply_and_sees_the_exception(
        self, secured: Settings
    ) -> None:
        seen: list[str] = []

        async def resource() -> AsyncIterator[str]:
            try:
                yield "open"
            except HTTPException as error:
                seen.append(f"error {error.status_code}")
                raise
            finally:
                seen.append("closed")

        async def handler(state: Annotated[str, Depends(resource)], fail: bool = False) -> str:  # noqa: FBT002
            if fail:
                raise HTTPException(409)
            return state

        good = await ask(secured, one_route(handler))
        bad = await ask(secured, one_route(handler), params={"fail": True})

        assert (good.json(), problem_of(bad, 409)["detail"]) == ("open", "Conflict")
        assert seen == ["closed", "error 409", "closed"]

    async def test_headers_cookies_and_scalar_query_parameters_are_read(self, secured: Settings) -> None:
        async def handler(
            x_token: Annotated[str, Header()],
            session: Annotated[str, Cookie()],
            archived: bool = False,  # noqa: FBT002
            limit: Annotated[int, Query(le=100)] = 20,
        ) -> list[Any]:
            return [x_token, session, archived, limit]

        sent: dict[str, Any] = {"headers": {"X-Token": "t", "Cookie": "session=s"}, "params": {"archived": "true"}}
        reply = await ask(secured, one_route(handler), **sent)
        refused = await ask(secured, one_route(handler), params={"limit": "101", "archived": "maybe"})

        assert reply.json() == ["t", "s", True, 20]
        assert {error["pointer"] for error in problem_of(refused, 422)["errors"]} == {
            "query/limit",
            "query/archived",
            "header/x-token",
            "cookie/session",
        }

    @pytest.mark.parametrize("route_class", [None, JSONRoute])
    async def test_a_model_of_query_parameters_may_have_lists(
        self, secured: Settings, route_class: type[JSONRoute] | None
    ) -> None:
        async def handler(options: Annotated[Options, Query()]) -> Options:
            return options

        options: dict[str, Any] = {"route_class_override": route_class} if route_class else {}
        reply = await ask(secured, one_route(handler, **options), params={"tags": ["x", "y"]})

        assert reply.json() == {"limit": 10, "tags": ["x", "y"]}

    async def test_security_scopes_and_the_dependencies_of_a_router_are_applied(self, secured: Settings) -> None:
        seen: list[str] = []

        async def check(scopes: SecurityScopes) -> list[str]:
            return scopes.scopes

        async def handler(scopes: Annotated[list[str], Security(check, scopes=["things:read"])]) -> list[str]:
            return scopes

        def extend(app: FastAPI) -> None:
            router = APIRouter(dependencies=[Depends(lambda: seen.append("router"))])
            router.get("")(handler)
            app.include_router(router, prefix=BASE, tags=["things"], dependencies=[Depends(lambda: seen.append("app"))])

        reply = await ask(secured, extend)

        assert (reply.json(), seen) == (["things:read"], ["app", "router"])

    @pytest.mark.parametrize("route_class", [None, JSONRoute])
    @pytest.mark.parametrize(
        ("annotation", "body"),
        [
            (Thing, {"name": "x", "kind": "b"}),
            (Annotated[Thing, Body(embed=True)], {"body": {"name": "x", "kind": "b"}}),
            (Annotated[int, Body()], 7),
            (list[Thing], [{"name": "x", "kind": "a"}]),
            (dict[str, int], {"x": 1}),
            (Thing | None, None),
        ],
        ids=["model", "embedded", "scalar", "list", "dictionary", "null"],
    )
    async def test_a_body_of_any_kind_is_read(
        self, secured: Settings, annotation: Any, body: Any, route_class: type[JSONRoute] | None
    ) -> None:
        async def handler(body: Any) -> Any:
            return body

        handler.__annotations__["body"] = annotation
        options: dict[str, Any] = {"route_class_override": route_class} if route_class else {}
        reply = await ask(
            secured,
            one_route(handler, "POST", **options),
            "POST",
            content=json.dumps(body),
            headers={"Content-Type": "application/json", "Prefer": "handling=strict"},
        )

        expected = body["body"] if isinstance(body, dict) and "body" in body else body
        assert (reply.status_code, reply.json()) == (200, expected)


class TestBodyLimit:
    @pytest.mark.parametrize(("limit", "size"), [(None, 65_537), (1_000, 1_001)])
    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_plain_route_has_the_limit_of_fastapi_or_that_of_the_service(
        self, secured: Settings, limit: int | None, size: int, *, chunked: bool
    ) -> None:
        async def handler(request: Request) -> int:
            return len(await request.body())

        async def parts(length: int) -> AsyncIterator[bytes]:
            for _ in range(length):
                yield b"x"

        async with extended(secured, one_route(handler, "POST", max_body_size=limit)) as client:
            replies = [
                await client.post("/api/ada/things", content=parts(length) if chunked else b"x" * length)
                for length in (size - 1, size)
            ]

        assert replies[0].json() == size - 1
        assert problem_of(replies[1], 413)["detail"] == f"A request body may have {size - 1:,} bytes at most."


class TestReplies:
    async def test_a_model_is_filtered_by_the_response_model(self, secured: Settings) -> None:
        async def handler() -> Any:
            return {"name": "x", "kind": "b", "secret": "s3cret"}

        reply = await ask(secured, one_route(handler, response_model=Thing, status_code=201))

        assert (reply.status_code, reply.json()) == (201, {"name": "x", "kind": "b"})

    @pytest.mark.parametrize("route_class", [None, JSONRoute])
    async def test_a_model_or_a_dictionary_may_be_returned(
        self, secured: Settings, route_class: type[JSONRoute] | None
    ) -> None:
        async def model() -> Thing:
            return Thing(name="x")

        async def dictionary() -> dict[str, int]:
            return {"x": 1}

        options: dict[str, Any] = {"route_class_override": route_class} if route_class else {}
        replies = [await ask(secured, one_route(handler, **options)) for handler in (model, dictionary)]

        assert [reply.json() for reply in replies] == [{"name": "x", "kind": "a"}, {"x": 1}]

    async def test_a_handler_may_be_a_plain_function(self, secured: Settings) -> None:
        def handler(user_id: UserId) -> str:
            return user_id

        assert (await ask(secured, one_route(handler))).json() == "ada"

    async def test_the_response_parameter_sets_headers_and_status(self, secured: Settings) -> None:
        async def handler(response: Response) -> str:
            response.headers["X-Thing"] = "set"
            response.status_code = 202
            response.set_cookie("seen", "yes")
            return "x"

        reply = await ask(secured, one_route(handler))

        assert (reply.status_code, reply.headers["X-Thing"], reply.cookies["seen"]) == (202, "set", "yes")

    async def test_background_tasks_run_after_the_reply(self, secured: Settings) -> None:
        done: list[str] = []

        async def handler(tasks: BackgroundTasks) -> str:
            tasks.add_task(done.append, "done")
            return f"{done}"

        assert (await ask(secured, one_route(handler))).json() == "[]"
        assert done == ["done"]

    async def test_a_reply_may_be_streamed(self, secured: Settings) -> None:
        def parts() -> Iterator[str]:
            yield from ("a", "b", "c")

        async def handler() -> StreamingResponse:
            return StreamingResponse(parts(), media_type="text/plain")

        reply = await ask(secured, one_route(handler))

        assert (reply.text, reply.headers["Content-Type"]) == ("abc", "text/plain; charset=utf-8")


class TestErrors:
    @pytest.mark.parametrize("status", [400, 403, 404, 409, 418, 429, 503])
    async def test_an_http_exception_is_a_problem_with_its_status_detail_and_headers(
        self, secured: Settings, status: int
    ) -> None:
        async def handler() -> None:
            raise HTTPException(status, "Because.", {"X-Reason": "because"})

        reply = await ask(secured, one_route(handler))

        assert problem_of(reply, status)["detail"] == "Because."
        assert reply.headers["X-Reason"] == "because"

    async def test_a_detail_that_is_no_text_is_kept_beside_a_detail_for_people(self, secured: Settings) -> None:
        async def handler() -> None:
            raise HTTPException(409, {"code": 7})

        problem = problem_of(await ask(secured, one_route(handler)), 409)

        assert (problem["detail"], problem["data"]) == ("Conflict", {"code": 7})

    @pytest.mark.parametrize(
        "detail",
        [float("nan"), {1, 2}, b"\xff", "\ud800", object(), datetime(2026, 1, 1, tzinfo=UTC)],
        ids=lambda value: type(value).__name__,
    )
    async def test_a_detail_of_any_kind_is_answered(self, secured: Settings, detail: Any) -> None:
        async def handler() -> None:
            raise HTTPException(409, detail, {"Content-Type": "text/html", "Content-Length": "1"})

        assert problem_of(await ask(secured, one_route(handler)), 409)

    @pytest.mark.parametrize("errors", [[], [{"loc": (), "msg": "no"}], ["text"], [{"type": "json_invalid"}]])
    async def test_validation_errors_that_a_handler_raises_are_a_422(self, secured: Settings, errors: Any) -> None:
        async def handler() -> None:
            raise RequestValidationError(errors)

        assert problem_of(await ask(secured, one_route(handler)), 422)

    async def test_broken_json_in_the_query_is_not_said_to_be_the_body(self, secured: Settings) -> None:
        async def handler(_: Annotated[Json[Any], Query(alias="filter")]) -> None: ...

        problem = problem_of(await ask(secured, one_route(handler), params={"filter": "{"}), 422)

        assert [error["pointer"] for error in problem["errors"]] == ["query/filter"]

    async def test_long_names_and_values_of_the_client_are_not_repeated(self, secured: Settings) -> None:
        async def handler(numbers: dict[str, int], zone: Annotated[int, AfterValidator(_refuse)] = 1) -> None: ...

        sent = {"n" * 9_000: "s3cret"}
        reply = await ask(secured, one_route(handler, "POST"), "POST", json=sent, params={"zone": "7654321"})

        assert problem_of(reply, 422)
        assert len(reply.text) < 1_000
        assert "7654321" not in reply.text

    async def test_a_405_of_a_handler_keeps_its_words(self, secured: Settings) -> None:
        async def handler() -> None:
            raise HTTPException(405, "Not today.", {"Allow": "PUT"})

        reply = await ask(secured, one_route(handler))

        assert (problem_of(reply, 405)["detail"], reply.headers["Allow"]) == ("Not today.", "PUT")

    async def test_an_http_exception_without_a_body_stays_without_one(self, secured: Settings) -> None:
        async def handler() -> None:
            raise HTTPException(304, headers={"ETag": '"1"'})

        reply = await ask(secured, one_route(handler))

        assert (reply.status_code, reply.content, reply.headers["ETag"]) == (304, b"", '"1"')

    @pytest.mark.parametrize(
        ("body", "status", "pointers"),
        [
            (b'{"name": "s3cret s3cret"}', 422, ["#/name"]),
            (b'{"name": "bad"}', 422, ["#/name"]),
            (b'{"name": "x", "kind": "s3cret"}', 422, ["#/kind"]),
            (b'["s3cret"]', 422, ["#"]),
            (b"", 422, ["#"]),
            (b'{"name": "s3cret', 400, None),
        ],
    )
    async def test_a_bad_body_is_a_problem_that_names_the_field_and_echoes_nothing(
        self, secured: Settings, body: bytes, status: int, pointers: list[str] | None
    ) -> None:
        async def handler(thing: Thing) -> Thing:
            return thing

        reply = await ask(
            secured, one_route(handler, "POST"), "POST", content=body, headers={"Content-Type": "application/json"}
        )

        problem = problem_of(reply, status)
        assert [error["pointer"] for error in problem.get("errors", [])] == (pointers or [])
        assert "s3cret" not in reply.text

    async def test_an_exception_that_nobody_handles_is_logged_and_is_a_500(
        self, secured: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def handler() -> None:
            raise RuntimeError

        reply = await ask(secured, one_route(handler))

        assert problem_of(reply, 500)["type"] == "urn:problem-type:internal-error"
        assert "unexpected error" in caplog.messages

    async def test_a_path_and_a_method_that_no_route_has_are_404_and_405(self, secured: Settings) -> None:
        async def handler() -> str:
            return "x"

        extend = one_route(handler)
        missing = await ask(secured, extend, path="/none")
        refused = await ask(secured, extend, "DELETE")

        assert problem_of(missing, 404)["type"] == "urn:problem-type:route-not-found"
        assert problem_of(refused, 405)["type"] == "urn:problem-type:method-not-allowed"
        assert refused.headers["Allow"] == "GET, HEAD"


class TeapotError(Exception):
    """An error of a route that somebody has added."""


class TestExceptionHandlers:
    @pytest.mark.parametrize("kind", [TeapotError, 418, 500, Exception, RequestValidationError, HTTPException])
    @pytest.mark.parametrize("is_sync", [False, True])
    async def test_one_by_class_or_number_that_is_sync_or_not_answers(
        self, secured: Settings, kind: Any, *, is_sync: bool
    ) -> None:
        async def handler(number: int = 0) -> None:
            raise HTTPException(418) if kind in (418, HTTPException) else TeapotError(number)

        async def answer(request: Request, _: Exception) -> Response:
            return Response(f"refused {request.headers['X-Request-ID']}", 418)

        def answer_in_thread(request: Request, _: Exception) -> Response:
            return Response(f"refused {request.headers['X-Request-ID']}", 418)

        def extend(app: FastAPI) -> None:
            one_route(handler)(app)
            app.exception_handler(kind)(answer_in_thread if is_sync else answer)

        reply = await ask(secured, extend, params={"number": "x"} if kind is RequestValidationError else {})

        assert (reply.status_code, reply.text) == (418, f"refused {reply.headers['X-Request-ID']}")

    @pytest.mark.parametrize("fails", [False, True])
    async def test_one_of_defects_that_fails_or_returns_nothing_leaves_the_500_of_the_service(
        self, secured: Settings, *, fails: bool
    ) -> None:
        async def handler() -> None:
            raise RuntimeError

        def extend(app: FastAPI) -> None:
            one_route(handler)(app)

            @app.exception_handler(500)
            async def answer(_request: Request, _error: Exception) -> None:
                if fails:
                    raise TeapotError

        assert problem_of(await ask(secured, extend), 500)

    async def test_one_answers_for_the_routes_of_tasks_too(self, secured: Settings) -> None:
        async def answer(_: Request, error: RequestValidationError) -> Response:
            return PlainTextResponse(str(len(error.errors())), 400)

        def extend(app: FastAPI) -> None:
            app.exception_handler(RequestValidationError)(answer)

        async with extended(secured, extend) as client:
            reply = await client.get("/api/ada/tasks", params={"limit": "none", "status": "none"})

        assert (reply.status_code, reply.text) == (400, "2")


class Layer:
    """A middleware that somebody has added: it names itself in each reply, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-layer", b"seen")]
            await send(message)

        await self._app(scope, receive, named)


class TestApplication:
    async def test_added_middleware_sees_every_reply_as_a_response(self, secured: Settings) -> None:
        async def handler(status: int) -> str:
            if status == 500:
                raise RuntimeError
            raise HTTPException(status)

        def extend(app: FastAPI) -> None:
            one_route(handler, path="/{status}")(app)
            app.add_middleware(Layer)

            @app.middleware("http")
            async def time(request: Request, call_next: Any) -> Response:
                response: Response = await call_next(request)
                response.headers["X-Time"] = "1"
                return response

        async with extended(secured, extend) as client:
            urls = ("/api/ada/things/409", "/api/ada/things/none", "/api/ada/tasks", "/api/eve/tasks", "/none")
            replies = [await client.get(url) for url in urls]
            defect = await client.get("/api/ada/things/500")

        assert [reply.status_code for reply in replies] == [409, 422, 200, 403, 404]
        for reply in replies:
            assert (reply.headers["X-Layer"], reply.headers["X-Time"]) == ("seen", "1")
            assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert problem_of(defect, 500)

    async def test_a_reply_varies_by_origin_and_token_whatever_a_layer_adds(self, secured: Settings) -> None:
        async with extended(secured, lambda app: app.add_middleware(GZipMiddleware, minimum_size=1)) as client:
            reply = await client.get("/health/live")

        assert reply.headers["Vary"] == "Accept-Encoding, Origin, Authorization"

    async def test_a_reply_that_varies_by_both_already_is_left_alone(self, secured: Settings) -> None:
        async def handler() -> Response:
            return Response("x", headers={"Vary": "Authorization, Origin"})

        assert (await ask(secured, one_route(handler))).headers["Vary"] == "Authorization, Origin"

    @pytest.mark.parametrize(("status", "tagged"), [(200, True), (202, False)])
    async def test_a_json_route_tags_only_a_whole_200(self, secured: Settings, status: int, *, tagged: bool) -> None:
        async def handler() -> Response:
            return Response("x", status)

        async def stream() -> StreamingResponse:
            return StreamingResponse(iter("x"))

        options: dict[str, Any] = {"route_class_override": JSONRoute}
        reply = await ask(secured, one_route(handler, **options))
        streamed = await ask(secured, one_route(stream, **options))

        assert ("ETag" in reply.headers, "ETag" in streamed.headers) == (tagged, False)

    async def test_a_304_keeps_the_headers_that_caches_need_and_runs_the_background_task(
        self, secured: Settings
    ) -> None:
        done: list[str] = []

        async def handler() -> Response:
            headers = {"ETag": '"1"', "Cache-Control": "private, max-age=60", "Vary": "Accept-Language"}
            return PlainTextResponse("x", headers=headers, background=BackgroundTask(done.append, "done"))

        extend = one_route(handler, route_class_override=JSONRoute)
        reply = await ask(secured, extend, headers={"If-None-Match": 'W/"1"'})

        assert (reply.status_code, reply.content, reply.headers["ETag"]) == (304, b"", '"1"')
        assert reply.headers["Cache-Control"] == "private, max-age=60"
        assert reply.headers["Vary"] == "Accept-Language, Origin, Authorization"
        assert done == ["done"]

    async def test_an_exception_in_added_middleware_is_a_problem(self, secured: Settings) -> None:
        def extend(app: FastAPI) -> None:
            @app.middleware("http")
            async def fail(_request: Request, _next: Any) -> Response:
                raise RuntimeError

        async with extended(secured, extend) as client:
            assert problem_of(await client.get("/health/live"), 500)

    @pytest.mark.parametrize("path", ["/api/ada/things", "/api/ada/tasks"])
    async def test_dependency_overrides_apply_to_added_routes_and_to_those_of_tasks(
        self, secured: Settings, path: str
    ) -> None:
        async def handler(_: Db) -> str:
            return "x"

        def fail() -> None:
            raise HTTPException(418)

        def extend(app: FastAPI) -> None:
            one_route(handler)(app)
            app.dependency_overrides[get_database] = fail

        async with extended(secured, extend) as client:
            assert problem_of(await client.get(path), 418)

    async def test_a_mounted_application_is_served_below_its_path(self, secured: Settings) -> None:
        files = FastAPI()

        @files.get("/name")
        async def get_name() -> str:
            return "file"

        def extend(app: FastAPI) -> None:
            app.mount("/api/{user_id}/files", files)
            app.mount("/site", public(PlainTextResponse("open")))

        async with extended(secured, extend) as client:
            owned, foreign = [await client.get(f"/api/{user}/files/name") for user in ("ada", "eve")]
            site = await client.get("/site/", headers={"Authorization": ""})

        assert (owned.json(), foreign.status_code, site.text) == ("file", 403, "open")

    async def test_a_router_with_prefix_and_tags_is_in_the_document_with_its_security(self, secured: Settings) -> None:
        async def handler(thing: Thing) -> Thing:
            return thing

        def extend(app: FastAPI) -> None:
            router = APIRouter()
            router.post("/{number}")(handler)
            app.include_router(router, prefix=BASE, tags=["things"])

        async with extended(secured, extend) as client:
            document = (await client.get("/openapi.json")).json()

        operation = document["paths"][f"{BASE}/{{number}}"]["post"]
        assert (operation["tags"], operation["security"]) == (["things"], [{"bearer": []}])
        refusal = operation["responses"]["422"]["content"]["application/problem+json"]
        assert refusal["schema"] == {"$ref": "#/components/schemas/Problem"}
        assert "HTTPValidationError" not in json.dumps(document)

    async def test_the_document_stands_with_any_schema_and_says_the_truth_about_security(
        self, secured: Settings
    ) -> None:
        class ValidationError(BaseModel):
            colour: Colour

        async def handler(_: ValidationError, key: Annotated[str, Security(APIKeyHeader(name="X-Key"))]) -> str:
            return key

        def extend(app: FastAPI) -> None:
            one_route(handler, "POST", openapi_extra={"x": 1}, responses={409: {"description": "Taken."}})(app)
            app.get("/api/{user_id}/open", openapi_extra={"security": []})(TestApplication.anything)
            app.webhooks.post("hook")(handler)
            app.mount("/site", public(PlainTextResponse("open")))

        async with extended(secured, extend) as client:
            document = (await client.get("/openapi.json")).json()

        schemas = document["components"]["schemas"]
        references = set(re.findall(r'"#/components/schemas/(.*?)"', json.dumps(document)))
        things = document["paths"][BASE]["post"]
        assert references <= schemas.keys()
        assert things["security"] == [{"APIKeyHeader": [], "bearer": []}]
        assert things["responses"].keys() >= {"400", "401", "403", "409", "413", "422", "500", "503"}
        assert things["responses"]["409"]["content"].keys() == {"application/problem+json"}
        assert document["paths"]["/api/{user_id}/open"]["get"]["security"] == [{"bearer": []}]

    @staticmethod
    async def anything() -> dict[str, Any]:
        return {}

    @pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")
    def test_a_test_client_runs_its_lifespan(self, secured: Settings) -> None:
        from fastapi.testclient import TestClient  # noqa: PLC0415  # it warns at import

        with TestClient(create_app(secured)) as client:
            reply = client.get("/api/tess/tasks", headers=bearer("tess"))
            refused = client.get("/api/tess/tasks")

        assert (reply.status_code, reply.json(), refused.status_code) == (200, [], 401)

    async def test_without_its_lifespan_it_says_how_to_start_it(self, secured: Settings) -> None:
        transport = httpx.ASGITransport(create_app(secured))

        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            live = await client.get("/health/live")
            for path in ("/api/ada/tasks", "/health/ready"):
                with pytest.raises(NotStartedError, match="with TestClient"):
                    await client.get(path)

        assert live.status_code == 200

    def test_a_server_may_import_it_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AUTH_JWT_SECRET", SECRET)

        monkeypatch.delitem(vars(main), "app", raising=False)

        assert isinstance(main.app, FastAPI)
        assert main.app is main.app
        assert "app" in dir(main)
        with pytest.raises(AttributeError, match="has no attribute 'apps'"):
            _ = main.apps

    @pytest.mark.parametrize("bounded", [False, True])
    async def test_a_server_without_bounds_on_connections_is_warned_of(
        self, secured: Settings, caplog: pytest.LogCaptureFixture, *, bounded: bool
    ) -> None:
        app = create_app(secured, bounded=bounded)

        async with app.router.lifespan_context(app):
            warnings = [
                message for message in caplog.messages if "does not bound what a connection may send" in message
            ]

        assert bool(warnings) is not bounded

    async def test_without_a_database_it_does_not_start_and_says_what_would(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DATABASE_URL", raising=False)
        app = create_app(Settings(_env_file=None))

        with pytest.raises(StartupError, match="DATABASE_URL is not set"):
            async with app.router.lifespan_context(app):
                raise AssertionError

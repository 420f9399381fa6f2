"""The fast lane takes the routes that it understands wholly, and its replies are those of FastAPI."""

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from fastapi import BackgroundTasks, Body, Depends, FastAPI, Header, HTTPException, Path, Query, Request, Response
from fastapi.dependencies.utils import solve_dependencies
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.security import SecurityScopes
from pydantic import AliasChoices, BaseModel, Field, RootModel, model_validator
from starlette.convertors import StringConvertor, register_url_convertor

from app.core.config import Settings
from app.http.fast_lane import FastLane, JSONRoute
from app.routes.deps import Db, UserId, get_database
from tests.http.support import Extend, ask, extended, one_route, problem_of

JSON = {"Content-Type": "application/json"}


class Thing(BaseModel):
    """A body."""

    name: str


class TestTaken:
    """Which routes the lane takes, seen by the function of FastAPI that it does without."""

    @pytest.fixture
    def solved(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Grows by the path of each request that FastAPI's own dependency solver has seen."""
        seen: list[str] = []

        async def record(**options: Any) -> Any:
            seen.append(options["request"].url.path)
            return await solve_dependencies(**options)

        monkeypatch.setattr("fastapi.routing.solve_dependencies", record)
        return seen

    @pytest.mark.parametrize("enabled", [False, True])
    async def test_it_takes_the_routes_of_tasks_unless_it_is_switched_off(
        self, secured: Settings, monkeypatch: pytest.MonkeyPatch, solved: list[str], *, enabled: bool
    ) -> None:
        monkeypatch.setattr(FastLane, "enabled", enabled)

        async with extended(secured, lambda _: None) as client:
            reply = await client.get("/api/ada/tasks")

        assert (reply.status_code, solved) == (200, [] if enabled else ["/api/ada/tasks"])

    async def test_it_leaves_a_route_to_fastapi_that_comes_before_its_own(
        self, secured: Settings, solved: list[str]
    ) -> None:
        async def earlier(user_id: UserId) -> HTMLResponse:
            return HTMLResponse(f"earlier {user_id}")

        async def later(user_id: UserId) -> Response:
            return Response(f"later {user_id}")

        def extend(app: FastAPI) -> None:
            one_route(earlier)(app)
            one_route(later, route_class_override=JSONRoute)(app)

        reply = await ask(secured, extend)

        assert (reply.text, solved) == ("earlier ada", ["/api/ada/things"])

    @pytest.mark.parametrize(
        "parameter",
        [
            Annotated[str, Depends(lambda: "x")],
            Annotated[str, Header(alias="X-Request-ID")],
            Response,
            BackgroundTasks,
            Annotated[SecurityScopes, SecurityScopes],
        ],
        ids=["sync dependency", "header", "response", "background tasks", "security scopes"],
    )
    async def test_it_leaves_a_signature_to_fastapi_that_it_does_not_understand(
        self, secured: Settings, solved: list[str], parameter: Any
    ) -> None:
        async def handler(taken: Any) -> Response:
            return Response(type(taken).__name__)

        handler.__annotations__["taken"] = parameter
        reply = await ask(secured, one_route(handler, route_class_override=JSONRoute))

        assert (reply.status_code, set(solved)) == (200, {"/api/ada/things"})

    async def test_it_runs_the_dependencies_of_a_router_that_take_the_request_alone(
        self, secured: Settings, solved: list[str]
    ) -> None:
        seen: list[str] = []

        async def note(request: Request) -> None:
            seen.append(request.url.path)

        async def handler() -> Response:
            return Response("x")

        extend = one_route(handler, route_class_override=JSONRoute, dependencies=[Depends(note)])
        reply = await ask(secured, extend)

        assert (reply.text, seen, solved) == ("x", ["/api/ada/things"], [])

    async def test_it_takes_a_signature_like_those_of_tasks(self, secured: Settings, solved: list[str]) -> None:
        async def handler(user_id: UserId, _: Db, request: Request, thing: Thing) -> Response:
            assert await request.body() == b'{"name": "x"}'
            return Response(f"{user_id} {thing.name}")

        reply = await ask(
            secured,
            one_route(handler, "POST", route_class_override=JSONRoute),
            "POST",
            content=b'{"name": "x"}',
            headers={"Content-Type": "application/json"},
        )

        assert (reply.text, solved) == ("ada x", [])


class Audited(JSONRoute):
    """A route class of somebody else, as FastAPI's documentation shows."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def audit(request: Request) -> Response:
            if "x-admin" not in request.headers:
                raise HTTPException(403)
            response: Response = await handle(request)
            return response

        return audit


class Upper(StringConvertor):
    """A path convertor of somebody else."""

    def convert(self, value: str) -> str:
        return value.upper()


register_url_convertor("upper", Upper())


class Looking(BaseModel):
    """Query parameters that look at names which are not theirs."""

    seen: Any = None

    @model_validator(mode="before")
    @classmethod
    def _look(cls, sent: Any) -> Any:
        return {"seen": sent}


_NULL: Any = Body(default=None)


async def null_by_body(body: Thing | None = _NULL) -> Response:
    return Response(repr(body))


async def default_of_dict(body: Annotated[dict[str, int], Body()] = {"seen": 0}) -> Response:  # noqa: B006
    body["seen"] += 1
    return Response(repr(body))


async def default_factory(body: Annotated[dict[str, int], Body(default_factory=dict)]) -> Response:
    return Response(repr(body))


async def validated_default(body: Annotated[int, Body(validate_default=True, gt=1)] = 0) -> Response:
    return Response(repr(body))


async def body_of_error(body: Thing) -> Response:
    return Response(repr(body))


async def dictionary(body: Annotated[Any, Body()] = None) -> Response:
    return {"returned": body}  # type: ignore[return-value]  # as somebody may write it


async def path_alias(thing_id: Annotated[int, Path(validation_alias="thing")]) -> Response:
    return Response(repr(thing_id))


async def convertor(name: str) -> Response:
    return Response(name)


async def looking(query: Annotated[Looking, Query()]) -> Response:
    return Response(repr(query.seen))


class TestSame:
    """A route of somebody else is answered with and without the lane in the same way."""

    @pytest.mark.parametrize(
        ("endpoint", "path", "options", "asked", "content"),
        [
            (body_of_error, "", {"route_class_override": Audited}, "", b'{"name": "x"}'),
            (null_by_body, "", {}, "", b""),
            (default_of_dict, "", {}, "", b""),
            (default_factory, "", {}, "", b""),
            (validated_default, "", {}, "", b""),
            (body_of_error, "", {}, "", b'{"name": 1}'),
            (dictionary, "", {}, "", b'{"x": 1}'),
            (dictionary, "", {"status_code": 201, "response_model": dict[str, Any]}, "", b'{"x": 1}'),
            (path_alias, "/{thing}", {}, "/7", b""),
            (convertor, "/{name:upper}", {}, "/x", b""),
            (looking, "", {}, "?zz=1&zz=2", b""),
        ],
        ids=lambda value: getattr(value, "__name__", None) or str(value)[:30],
    )
    async def test_a_route_has_the_replies_of_fastapi(
        self,
        secured: Settings,
        monkeypatch: pytest.MonkeyPatch,
        endpoint: Callable[..., Any],
        path: str,
        options: dict[str, Any],
        asked: str,
        content: bytes,
    ) -> None:
        def extend(app: FastAPI) -> None:
            one_route(endpoint, "POST", path, **{"route_class_override": JSONRoute, **options})(app)

            @app.exception_handler(RequestValidationError)
            async def answer(_: Request, error: RequestValidationError) -> Response:
                return PlainTextResponse(f"{error.body} {[each['loc'] for each in error.errors()]}", 422)

        replies, headers = [], {**JSON, "X-Request-ID": "same"}
        for enabled in (False, True):
            monkeypatch.setattr(FastLane, "enabled", enabled)
            async with extended(secured, extend) as client:
                both = [await client.post(f"/api/ada/things{asked}", content=content, headers=headers) for _ in "ab"]
            replies.append([(reply.status_code, reply.text) for reply in both])

        assert replies[0] == replies[1]

    @pytest.mark.parametrize("media_type", ["application/a/b+json", "application/json/x", "application/x+json"])
    async def test_a_task_is_read_under_the_same_media_types(
        self, secured: Settings, monkeypatch: pytest.MonkeyPatch, media_type: str
    ) -> None:
        statuses = []
        for enabled in (False, True):
            monkeypatch.setattr(FastLane, "enabled", enabled)
            async with extended(secured, lambda _: None) as client:
                headers = {"Content-Type": media_type}
                reply = await client.post("/api/ada/tasks", content=b'{"title": "x"}', headers=headers)
            statuses.append(reply.status_code)

        assert statuses == [201 if media_type == "application/x+json" else 415] * 2

    async def test_overrides_that_are_replaced_after_the_start_apply(self, secured: Settings) -> None:
        def fail() -> None:
            raise HTTPException(418)

        apps: list[FastAPI] = []
        async with extended(secured, apps.append) as client:
            before = await client.get("/api/ada/tasks")
            apps[0].dependency_overrides = {get_database: fail}
            after = await client.get("/api/ada/tasks")

        assert (before.status_code, problem_of(after, 418)["title"]) == (200, "I'm a Teapot")


class Kind(enum.Enum):
    """A query parameter."""

    A = "a"


@dataclass
class Inherited:
    """A body with an inherited field."""

    first: int


@dataclass
class Data(Inherited):
    """A body."""

    second: int = 0


class Aliased(BaseModel):
    """A body whose field has several names."""

    model_config = {"populate_by_name": True}

    name: str = Field(validation_alias=AliasChoices("title", "label"))


class Root(RootModel[dict[str, int]]):
    """A body of any names."""


class TestKnownNames:
    """With `Prefer: handling=strict` a route refuses only what nothing takes."""

    @pytest.mark.parametrize("value", [UUID(int=1), Kind.A, 7, [Kind.A]], ids=repr)
    async def test_a_query_parameter_of_any_type_is_known(self, secured: Settings, value: Any) -> None:
        async def handler(one: Any) -> str:
            return repr(one)

        annotation = list[Kind] if isinstance(value, list) else type(value)
        handler.__annotations__["one"] = Annotated[annotation, Query(validation_alias="sent")]
        sent = [each.value for each in value] if isinstance(value, list) else getattr(value, "value", value)
        extend = one_route(handler, route_class_override=JSONRoute)
        strict = {"Prefer": "handling=strict"}
        known = await ask(secured, extend, params={"sent": sent}, headers=strict)
        unknown = await ask(secured, extend, params={"sent": sent, "other": "1"}, headers=strict)

        assert (known.json(), known.headers["Preference-Applied"]) == (repr(value), "handling=strict")
        assert [error["pointer"] for error in problem_of(unknown, 422)["errors"]] == ["query/other"]

    @pytest.mark.parametrize(
        ("annotation", "body"),
        [
            (Data, {"first": 1, "second": 2}),
            (Aliased, {"label": "x"}),
            (Aliased, {"name": "x"}),
            (Root, {"anything": 1}),
            (dict[str, Thing], {"anything": {"name": "x"}}),
        ],
    )
    async def test_a_name_that_a_body_takes_is_known(self, secured: Settings, annotation: Any, body: Any) -> None:
        async def handler(body: Any) -> str:
            return repr(body)

        handler.__annotations__["body"] = annotation
        extend: Extend = one_route(handler, "POST", route_class_override=JSONRoute)
        headers = {**JSON, "Prefer": "handling=strict"}
        reply: httpx.Response = await ask(secured, extend, "POST", content=json.dumps(body), headers=headers)

        assert reply.status_code == 200, reply.text

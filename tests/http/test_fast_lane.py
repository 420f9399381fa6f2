"""The fast lane takes the routes that it supports, and its replies are those of FastAPI."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Final, NamedTuple

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Body, Cookie, Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.dependencies.utils import solve_dependencies
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.security import SecurityScopes
from pydantic import BaseModel, Field, Json, create_model, model_validator
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import HTTPConnection

from app.core.config import Settings
from app.http.fast_lane import FastLane, JSONRoute
from app.routes.deps import Db, UserId, get_database
from tests.http.support import BASE, extended, problem_of

THINGS: Final = "/api/ada/things"
JSON: Final = {"Content-Type": "application/json"}


class Thing(BaseModel):
    name: str


Tags: Final[Any] = create_model("Tags", tags=(list[str], []))
InJSON: Final[Any] = create_model("InJSON", tags=(Json[list[str]], []))
Aliased: Final[Any] = create_model("Aliased", name=(str, Field(validation_alias="sent")))
Closed: Final[Any] = create_model("Closed", __config__={"extra": "forbid"}, name=(str, ...))


class Looking(BaseModel):
    seen: Any = None  # every name in the query

    @model_validator(mode="before")
    @classmethod
    def _look(cls, sent: Any) -> Any:
        return {"seen": sent}


class Audited(JSONRoute):
    def get_route_handler(self) -> Callable[[Request], Any]:
        async def refuse(_: Request) -> Response:
            raise HTTPException(403)

        return refuse


class Upper(StringConvertor):
    def convert(self, value: str) -> str:
        return value.upper()


register_url_convertor("upper", Upper())


def taking(annotation: Any, *default: Any) -> Callable[..., Any]:
    """Returns a handler that answers with its only argument."""

    async def handler(value: Any) -> Response:
        return Response(repr(value).partition(" at 0x")[0])

    handler.__annotations__["value"] = annotation
    handler.__defaults__ = default
    return handler


async def note(request: Request) -> int:
    """A dependency that counts its calls."""
    request.state.noted = getattr(request.state, "noted", 0) + 1
    return int(request.state.noted)


async def like_tasks(user_id: UserId, _: Db, request: Request, thing: Thing) -> Response:
    return Response(f"{user_id} {thing.name} {await request.body()!r} {request.state.noted}")


async def reads_connection(connection: HTTPConnection) -> str:
    return connection.headers["x-request-id"]


async def takes_both(request: Request, connection: HTTPConnection) -> Response:
    return Response(f"{request.url.path} {connection.url.path}")


async def returns_dictionary(body: Annotated[Any, Body()] = None) -> Response:
    return {"returned": body}  # type: ignore[return-value]  # as somebody may write it


def is_sync(thing: Thing) -> Response:
    return Response(thing.name)


async def has_no_annotation(thing: Thing):  # type: ignore[no-untyped-def]
    return thing


async def depends_twice(one: Annotated[int, Depends(note)], two: Annotated[int, Depends(note)]) -> Response:
    return Response(f"{one} {two}")


async def has_two_bodies(one: Thing, two: Thing) -> Response:
    return Response(f"{one} {two}")


class Case(NamedTuple):
    """A POST route, and what it is sent."""

    endpoint: Callable[..., Any]
    content: bytes = b""
    asked: str = ""
    path: str = ""
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed


THING: Final = b'{"name": "x"}'
TAKEN: Final = {
    "like tasks": Case(like_tasks, THING, options={"dependencies": [Depends(note)]}),
    "connection": Case(taking(HTTPConnection)),
    "dependency with a connection": Case(taking(Annotated[str, Depends(reads_connection)])),
    "body that is invalid": Case(taking(Thing), b'{"name": 1}'),
    "body that is missing": Case(taking(Thing)),
    "body that may be null": Case(taking(Thing | None, None)),
    "reply that is no Response": Case(returns_dictionary, THING),
    "reply with a status": Case(returns_dictionary, THING, options={"status_code": 201, "response_model": dict}),
    "query": Case(taking(int, 7), asked="?value=8"),
    "query that is invalid": Case(taking(int, 7), asked="?value=x"),
    "query model": Case(taking(Annotated[Thing, Query()]), asked="?name=x&name=y"),
    "query model that is invalid": Case(taking(Annotated[Thing, Query()]), asked="?x=1"),
    "query model with a list": Case(taking(Annotated[Tags, Query()]), asked="?tags=a&tags=b"),
    "query model with a list that is absent": Case(taking(Annotated[Tags, Query()]), asked="?x=a"),
    "query model with a list in JSON": Case(taking(Annotated[InJSON, Query()]), asked='?tags=["a"]'),
    "query model with an alias": Case(taking(Annotated[Aliased, Query()]), asked="?sent=a&name=b"),
    "query model that is closed": Case(taking(Annotated[Closed, Query()]), asked="?name=a&x=1"),
    "query model that looks": Case(taking(Annotated[Looking, Query()]), asked="?zz=1&zz=2"),
    "number in the path": Case(taking(Annotated[int, Path()]), path="/{value}", asked="/x"),
}
LEFT: Final = {  # to FastAPI
    "derived route class": Case(taking(Thing), THING, options={"route_class_override": Audited}),
    "plain function": Case(is_sync, THING),
    "no annotation": Case(has_no_annotation, THING),
    "two bodies": Case(has_two_bodies, b'{"one": {"name": "x"}, "two": {"name": "y"}}'),
    "embedded body": Case(taking(Annotated[Thing, Body(embed=True)]), b'{"value": {"name": "x"}}'),
    "default": Case(taking(Annotated[dict[str, int], Body()], {"x": 1})),
    "default factory": Case(taking(Annotated[dict[str, int], Body(default_factory=dict)])),
    "validated default": Case(taking(Annotated[int | None, Body(validate_default=True, gt=1)], None)),
    "alias in the path": Case(taking(Annotated[int, Path(validation_alias="thing")]), path="/{thing}", asked="/7"),
    "convertor": Case(taking(str), path="/{value:upper}", asked="/x"),
    "sync dependency": Case(taking(Annotated[str, Depends(lambda: "x")])),
    "dependency with a parameter": Case(taking(Annotated[str, Depends(taking(int))]), asked="?value=7"),
    "dependency that is used twice": Case(depends_twice),
    "header": Case(taking(Annotated[str, Header(alias="X-Request-ID")])),
    "cookie": Case(taking(Annotated[str, Cookie()], "none")),
    "response": Case(taking(Response)),
    "request and connection": Case(takes_both),
    "background tasks": Case(taking(BackgroundTasks)),
    "dependency with background tasks": Case(taking(Annotated[Any, Depends(taking(BackgroundTasks))])),
    "security scopes": Case(taking(SecurityScopes)),
    "limit of a body": Case(taking(Thing), THING, options={"max_body_size": 1}),
}
CASES: Final = TAKEN | LEFT


def extend(app: FastAPI) -> None:
    router = APIRouter(prefix=BASE)
    router.post("/same")(lambda: "earlier")
    router.add_api_route("/same", taking(str, ""), methods=["POST"], route_class_override=JSONRoute)
    for number, case in enumerate(CASES.values()):
        options: dict[str, Any] = {"route_class_override": JSONRoute, **case.options}
        router.add_api_route(f"/{number}{case.path}", case.endpoint, methods=["POST"], **options)
    app.include_router(router)

    @app.exception_handler(RequestValidationError)
    async def answer(_: Request, error: RequestValidationError) -> Response:
        errors = [(each["loc"], each["type"], each["msg"]) for each in error.errors()]
        return PlainTextResponse(f"{error.body} {errors}", 422)


@pytest.fixture(scope="module")
async def client(secured: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with extended(secured, extend) as client:
        yield client


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Receives the path of each request that FastAPI's own dependency solver sees, which the lane does without."""
    seen: list[str] = []

    async def record(**options: Any) -> Any:
        seen.append(options["request"].url.path)
        return await solve_dependencies(**options)

    monkeypatch.setattr("fastapi.routing.solve_dependencies", record)
    return seen


class TestRoute:
    @pytest.mark.parametrize("name", CASES)
    async def test_a_route_has_the_same_replies_with_and_without_the_lane(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, solved: list[str], name: str
    ) -> None:
        case = CASES[name]
        replies = []
        for enabled in (True, False):
            monkeypatch.setattr(FastLane, "enabled", enabled)
            solved.clear()
            url, headers = f"{THINGS}/{[*CASES].index(name)}{case.asked}", {"X-Request-ID": "same", **JSON}
            reply = await client.post(url, content=case.content, headers=headers)
            replies.append((reply.status_code, reply.text))
            assert name in LEFT or bool(solved) is not enabled

        assert replies[0] == replies[1]

    @pytest.mark.parametrize("name", ["query model", "query model with a list"])
    async def test_the_lane_validates_a_query_model_at_once(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(FastLane, "enabled", True)
        monkeypatch.delattr("app.http.fast_lane.request_params_to_args")  # FastAPI's, which reads each field separately

        reply = await client.post(f"{THINGS}/{[*CASES].index(name)}{CASES[name].asked}", content=b"")

        assert reply.status_code == 200

    async def test_a_plain_route_before_a_route_of_the_lane_answers(self, client: httpx.AsyncClient) -> None:
        assert (await client.post(f"{THINGS}/same")).json() == "earlier"

    async def test_overrides_of_dependencies_that_are_replaced_after_the_start_apply(self, secured: Settings) -> None:
        def fail() -> None:
            raise HTTPException(418)

        apps: list[FastAPI] = []
        async with extended(secured, apps.append) as client:
            assert (await client.get("/api/ada/tasks")).status_code == 200
            apps[0].dependency_overrides = {get_database: fail}
            assert problem_of(await client.get("/api/ada/tasks"), 418)["title"] == "I'm a Teapot"

"""Routes as in FastAPI's documentation work in this application, as plain routes and as JSON routes."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Body, Depends, HTTPException, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.background import BackgroundTask

from app.core.config import Settings
from app.core.errors import NotFoundError
from app.http.fast_lane import JSONRoute
from app.routes.deps import or_missing
from tests.http.support import extended, problem_of
from tests.support import until

plain: Final = APIRouter(prefix="/api/{user_id}/plain")
as_json: Final = APIRouter(prefix="/api/{user_id}/json", route_class=JSONRoute)
Client = httpx.AsyncClient
Endpoint = Callable[..., Any]


def route(path: str, method: str = "GET", **options: Any) -> Callable[[Endpoint], Endpoint]:
    """Adds a handler to both routers."""

    def add(endpoint: Endpoint) -> Endpoint:
        for router in (plain, as_json):
            router.add_api_route(path, endpoint, methods=[method], **options)
        return endpoint

    return add


@pytest.fixture(scope="module")
async def service(secured: Settings) -> AsyncIterator[Client]:
    async with extended(secured, lambda app: [*map(app.include_router, (plain, as_json))]) as client:
        yield client


@pytest.fixture(params=["plain", "json"])
def client(service: Client, request: pytest.FixtureRequest) -> Iterator[Client]:
    """The client with the path of one router."""
    root, service.base_url = service.base_url, service.base_url.join(f"/api/ada/{request.param}/")
    yield service
    service.base_url = root


class Thing(BaseModel):
    name: str = Field(max_length=5)
    kind: Literal["a", "b"] = "a"


@route("/things", "POST")
async def add_thing(thing: Thing) -> Thing:
    return thing


class TestArguments:
    @pytest.mark.parametrize(
        ("body", "status", "errors"),
        [
            (b'{"name": "s3cret s3cret"}', 422, {"#/name": "must have at most 5 characters"}),
            (b'{"name": "x", "kind": "s3cret"}', 422, {"#/kind": "is not one of the known values"}),
            (b'["s3cret"]', 422, {"#": "must be a JSON object"}),
            (b"", 422, {"#": "is required"}),
            (b'{"name": "s3cret', 400, {}),
        ],
    )
    async def test_a_body_is_refused_with_a_problem_that_repeats_no_value(
        self, client: Client, body: bytes, status: int, errors: dict[str, str]
    ) -> None:
        reply = await client.post("things", content=body, headers={"Content-Type": "application/json"})

        found = problem_of(reply, status).get("errors", [])
        assert {error["pointer"]: error["detail"] for error in found} == errors
        assert "s3cret" not in reply.text


class OddNotFoundError(NotFoundError):
    """As somebody adds it with a resource."""

    __module__ = NotFoundError.__module__
    kind = "odd-not-found"
    detail = "There is no such note."


@route("/notes/{note_id}")
async def read_note(note_id: Annotated[UUID, or_missing(OddNotFoundError)]) -> UUID:
    return note_id


async def test_an_id_in_the_path_that_is_no_uuid_is_the_404_of_its_own_resource(client: Client) -> None:
    found = problem_of(await client.get("notes/999"), 404)

    assert (found["type"], found["detail"]) == ("urn:problem-type:odd-not-found", "There is no such note.")
    assert (await client.get(f"notes/{UUID(int=1)}")).json() == str(UUID(int=1))


@route("/size", "POST")
@route("/limited", "POST", max_body_size=1_000)
async def get_size(request: Request) -> int:
    return len(await request.body())


@route("/text", "POST")
@route("/long-text", "POST", max_body_size=100_000)
async def get_length(text: Annotated[str, Body()]) -> PlainTextResponse:
    return PlainTextResponse(f"{len(text) + 2}")


class TestBodyLimit:
    @pytest.mark.parametrize(
        ("path", "limit"), [("size", 65_536), ("limited", 1_000), ("text", 65_536), ("long-text", 100_000)]
    )
    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_route_has_the_limit_of_the_service_or_its_own(
        self, client: Client, path: str, limit: int, *, chunked: bool
    ) -> None:
        async def parts(body: bytes) -> AsyncIterator[bytes]:
            yield body[:-1]
            yield body[-1:]

        headers = {"Content-Type": "application/json"}
        allowed, refused = [
            await client.post(path, content=parts(body) if chunked else body, headers=headers)
            for body in (f'"{"x" * length}"'.encode() for length in (limit - 2, limit - 1))
        ]

        assert allowed.json() == limit
        assert problem_of(refused, 413)["detail"] == f"This is too large: the limit is {limit:,} bytes."

    async def test_a_body_that_nobody_reads_is_refused_before_a_streamed_reply_begins(self, client: Client) -> None:
        problem_of(await client.request("GET", "stream", content=b"x" * 65_537), 413)


@route("/filtered", response_model=Thing)
@route("/created", response_model=Thing, status_code=201)
async def get_filtered() -> Any:
    return {"name": "x", "kind": "b", "secret": "s3cret"}


done: Final[list[str]] = []


@route("/background")
async def add_background_task(tasks: BackgroundTasks) -> str:
    tasks.add_task(done.append, "background")
    return f"{done}"


@route("/stream")
async def get_stream() -> StreamingResponse:
    return StreamingResponse(iter("abc"), media_type="text/plain")


async def resource() -> AsyncIterator[str]:
    try:
        yield "open"
    except HTTPException as error:
        done.append(f"error {error.status_code}")
        raise
    finally:
        done.append("closed")


@route("/resource")
async def use_resource(state: Annotated[str, Depends(resource)], fail: bool = False) -> str:  # noqa: FBT002
    if fail:
        raise HTTPException(409)
    return state


@route("/tagged")
async def get_tagged() -> PlainTextResponse:
    headers = {"ETag": '"1,2"', "Cache-Control": "private, max-age=60", "Vary": "Accept-Language"}
    headers["Referrer-Policy"] = "origin"
    return PlainTextResponse("x", headers=headers, background=BackgroundTask(done.append, "tagged"))


class TestReplies:
    @pytest.fixture(autouse=True)
    def _nothing_done(self) -> None:
        done.clear()

    async def test_a_value_is_answered_as_its_model_and_only_a_json_200_has_an_etag(self, client: Client) -> None:
        reply, created = await client.get("filtered"), await client.get("created")

        assert (reply.status_code, reply.json()) == (200, {"name": "x", "kind": "b"})
        assert (created.status_code, created.json()) == (201, reply.json())
        assert ("ETag" in reply.headers) == ("json" in client.base_url.path)
        assert "ETag" not in created.headers

    async def test_background_tasks_run_after_the_reply(self, client: Client) -> None:
        assert (await client.get("background")).json() == "[]"
        await until(lambda: done == ["background"])

    async def test_a_reply_may_be_streamed(self, client: Client) -> None:
        reply = await client.get("stream")

        assert (reply.text, reply.headers["Content-Type"]) == ("abc", "text/plain; charset=utf-8")
        assert "ETag" not in reply.headers

    async def test_a_dependency_that_yields_is_closed_and_sees_the_exception(self, client: Client) -> None:
        good = await client.get("resource")
        bad = await client.get("resource", params={"fail": True})

        assert (good.json(), problem_of(bad, 409)["detail"]) == ("open", "Conflict")
        await until(lambda: done == ["closed", "error 409", "closed"])

    async def test_a_304_keeps_the_headers_for_caches_and_runs_the_background_task(self, service: Client) -> None:
        reply = await service.get("/api/ada/json/tagged", headers={"If-None-Match": '"0", W/"1,2"'})

        assert (reply.status_code, reply.content, reply.headers["ETag"]) == (304, b"", '"1,2"')
        assert reply.headers["Cache-Control"] == "private, max-age=60"
        assert reply.headers["Vary"] == "Accept-Language, Origin, Authorization"
        assert reply.headers["Referrer-Policy"] == "origin"
        await until(lambda: done == ["tagged"])

"""Doubled, extra and missing slashes in a path lead to the route that is meant, without a redirect."""

import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Final

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import PlainTextResponse

from app.core.config import Settings
from app.http.authorization import public
from app.http.fast_lane import FastLane, JSONRoute
from app.http.paths import RoutePaths
from tests.http.support import extended, problem_of
from tests.support import bearer

pytestmark = pytest.mark.unmeasured

# Base URLs that end in a slash, the option `trailingSlash` of Next.js, and both.
SPELLINGS: Final[list[Callable[[str], str]]] = [
    lambda path: f"{path}/",
    lambda path: f"/{path}",
    lambda path: path.replace("/", "//"),
    lambda path: f"//{path}///",
    lambda path: path.replace("/tasks", "//tasks/"),
]


@pytest.fixture(params=[True, False], ids=["lane", "FastAPI"])
def _lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastLane, "enabled", request.param)


@pytest.fixture(scope="module")
async def service(secured: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with extended(secured, extend) as client:
        yield client


def extend(app: FastAPI) -> None:
    """Routes as in FastAPI's documentation, and an application for all other paths."""

    async def show(request: Request) -> list[Any]:
        return [request.scope["route"].path, request.url.path, request.scope["raw_path"].decode()]

    json = APIRouter(prefix="/api/{user_id}/json", route_class=JSONRoute)
    json.get("/things")(show)
    app.include_router(json)
    for path in ("/both", "/both/", "/ending/", "/files/{file:path}"):
        app.get(f"/api/{{user_id}}{path}")(show)
    app.post("/api/{user_id}/both/")(show)
    app.mount("/site", public(PlainTextResponse("site")))
    app.get("/{rest:path}")(public(partial(show)))


async def ask(client: httpx.AsyncClient, path: str, method: str = "GET", **options: Any) -> httpx.Response:
    """Send a request whose path httpx does not normalise."""
    return await client.request(method, "/", extensions={"target": path.encode()}, **options)


@pytest.mark.usefixtures("_lane")
class TestOperations:
    @pytest.mark.parametrize("spell", SPELLINGS)
    async def test_each_operation_is_reached_by_each_spelling_and_names_its_own_path(
        self, secured_url: str, user: str, spell: Callable[[str], str], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "app.requests")
        tasks = f"/api/{user}/tasks"
        async with httpx.AsyncClient(base_url=secured_url, headers=bearer(user), timeout=30) as client:
            created = [await ask(client, spell(tasks), "POST", json={"title": title}) for title in "ab"]
            task = created[0].headers["Location"]
            listed = await ask(client, f"{spell(tasks)}?limit=1")
            got = await ask(client, spell(task))
            changed = await ask(client, spell(task), "PUT", json={"title": "c"})
            completed = await ask(client, spell(f"{task}/complete"), "PATCH")
            refused = await ask(client, spell(task), "POST")
            deleted = await ask(client, spell(task), "DELETE")

        replies = [*created, listed, got, changed, completed, refused, deleted]
        assert [reply.status_code for reply in replies] == [201, 201, 200, 200, 200, 200, 405, 204]
        assert task == f"{tasks}/{created[0].json()['id']}"
        assert listed.headers["Link"].startswith(f"<{tasks}?limit=1&cursor=")
        assert refused.headers["Allow"] == "GET, HEAD, PUT, DELETE"
        routes = {vars(record)["route"] for record in caplog.records if record.name == "app.requests"}
        assert routes == {f"/api/{{user_id}}/tasks{rest}" for rest in ("", "/{task_id}", "/{task_id}/complete")}

    @pytest.mark.parametrize("spell", SPELLINGS)
    async def test_no_spelling_reaches_the_tasks_of_another_user_or_needs_no_token(
        self, secured_url: str, path: str, user: str, spell: Callable[[str], str]
    ) -> None:
        for target in (f"/api/{user}/tasks", path, "/api/me/tasks"):
            for headers, status in (({}, 401), (bearer("eve"), 403)):
                async with httpx.AsyncClient(base_url=secured_url, headers=headers, timeout=30) as client:
                    assert (await ask(client, spell(target))).status_code == status

    @pytest.mark.parametrize(
        "path",
        [
            *(
                "/api//tasks",
                "//api//tasks/",
                "/api/ada//",
                "//evil.example/..",
                "//evil.example/api/ada/tasks",
                "///x",
            ),
            *("/api/ada%2F/tasks", "/api/ada/tasks%2F", "/api/ada/tasks/%2F", "/%2Fapi/ada/tasks", "//%61pi/ada/tasks"),
        ],
    )
    async def test_a_path_that_differs_in_more_than_slashes_is_404(self, client: httpx.AsyncClient, path: str) -> None:
        assert problem_of(await ask(client, path), 404)["type"] == "urn:problem-type:route-not-found"

    @pytest.mark.parametrize(
        ("path", "status"),
        [("/health/live/", 200), ("//health//ready", 200), ("/docs/", 200), ("/openapi.json/", 200), ("///", 307)],
    )
    async def test_the_other_routes_of_the_service_are_reached_too(
        self, client: httpx.AsyncClient, path: str, status: int
    ) -> None:
        assert (await ask(client, path)).status_code == status


@pytest.mark.usefixtures("_lane")
class TestAddedRoutes:
    @pytest.mark.parametrize(
        ("sent", "route", "path"),
        [
            ("/json/things/", "/json/things", "/json/things"),
            ("//json//things", "/json/things", "/json/things"),
            ("/both", "/both", "/both"),
            ("/both/", "/both/", "/both/"),
            ("/both//", "/both/", "/both/"),
            ("/ending/", "/ending/", "/ending/"),
            ("/ending", "/ending/", "/ending/"),
            ("/files//home/me/x.txt/", "/files/{file:path}", "/files//home/me/x.txt/"),
        ],
    )
    async def test_a_route_is_reached_with_the_path_of_its_declaration_and_a_path_parameter_is_as_sent(
        self, service: httpx.AsyncClient, sent: str, route: str, path: str
    ) -> None:
        reply = await ask(service, f"/api/ada{sent}")

        assert reply.json() == [f"/api/{{user_id}}{route}", f"/api/ada{path}", f"/api/ada{path}"]

    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("/site//a/", "site"),
            ("//site/a", "site"),
            ("/site", "/{rest:path}"),
            ("/x//y/", "/x//y/"),
            ("//api/ada/x", "/{rest:path}"),
        ],
    )
    async def test_a_mount_and_a_route_for_all_paths_get_what_no_other_route_takes(
        self, service: httpx.AsyncClient, path: str, text: str
    ) -> None:
        assert text in (await ask(service, path)).text

    async def test_a_method_is_that_of_the_spelling_that_a_route_has(self, service: httpx.AsyncClient) -> None:
        statuses = [(await ask(service, f"/api/ada/both{end}", "POST")).status_code for end in ("/", "//", "")]

        assert statuses == [200, 200, 405]


@pytest.mark.parametrize("root", ["", "/v1"])
async def test_the_prefix_of_a_proxy_stays_and_both_forms_of_the_path_agree(root: str) -> None:
    app = FastAPI()
    app.get("/a b")(lambda: None)
    scope: dict[str, Any] = {"path": f"{root}//a b/", "root_path": root}
    sent = dict(scope), {**scope, "raw_path": f"{root}//a%20b/".encode()}

    for each in sent:
        RoutePaths(app.routes).correct(each)

        assert (each["path"], each["raw_path"]) == (f"{root}/a b", f"{root}/a%20b".encode())

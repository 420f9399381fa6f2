"""ROOT_PATH: a proxy takes a prefix away. Every link of the service begins with it, and paths mean what they meant."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final
from urllib.parse import unquote

import httpx
import pytest
from fastapi import FastAPI, Request
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette._utils import get_route_path
from starlette.responses import PlainTextResponse

from app.core.config import Settings
from app.http.authorization import public
from app.http.fast_lane import FastLane
from app.http.paths import add_root_path
from tests.http.support import extended, problem_of, status_of
from tests.support import bearer, exchange, handling, until

PREFIX: Final = "/svc"
# Prefixes that are paths of the service too, and the path of a user whose tasks others want.
PREFIXES: Final = [PREFIX, "/api", "/api/ada", "/api/ada/tasks", "/docs", "/health/live", "/a.b/~c_d-e"]
TOKENS: Final = ["", *(bearer(user)["Authorization"] for user in ("eve", "ada"))]
NAMES: Final = ["api", "ada", "eve", "svc", "tasks", "docs", "openapi.json", "health", "live", "", "%2F", "a%20b"]
PATHS: Final = [
    *("/", "/docs", "/docs/", "/openapi.json", "/health/live", "/health/ready", "/none", "/svc", "/svc/docs"),
    *("/api", "/api/ada", "/api/ada/tasks", "/api//ada/tasks/", "/api/api/ada/tasks", "/api/ada/api/ada/tasks"),
    *("/svc/api/ada/tasks", "//svc/api/ada/tasks", "/api/ada/tasks/tasks", "/api/ada/tasks/api/ada/tasks"),
    *("/%61pi/ada/tasks", "/api/a%64a/tasks", "/api%2Fada/tasks", "/docs/api/ada/tasks", "/health/live/docs"),
]
HEAD: Final = (
    f"POST /api/ada/tasks HTTP/1.1\r\nHost: a\r\nAuthorization: {TOKENS[2]}\r\nContent-Type: application/json\r\n"
    "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
)


@pytest.fixture(params=[True, False], ids=["lane", "FastAPI"])
def _lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastLane, "enabled", request.param)


@pytest.fixture(scope="module")
async def service(secured: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with extended(secured.model_copy(update={"root_path": PREFIX}), extend) as client:
        yield client


def extend(app: FastAPI) -> None:
    async def show(request: Request) -> list[str]:
        return [str(request.url_for("show")), request.url.path]

    inner = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})
    inner.get("/things", name="show")(show)
    app.mount("/inner", public(inner))
    app.mount("/plain", public(PlainTextResponse("plain")))


def arriving(link: str) -> str:
    """What is left of a link when it comes to the service."""
    assert link.startswith(f"{PREFIX}/")
    return link.removeprefix(PREFIX)


@pytest.mark.usefixtures("_lane")
class TestLinks:
    async def test_location_and_the_link_to_the_next_page_lead_through_the_proxy_also_with_doubled_slashes(
        self, service: httpx.AsyncClient, user: str
    ) -> None:
        tasks = f"/api/{user}/tasks"
        for path in (tasks, f"/{tasks}/"):
            target: dict[str, Any] = {"extensions": {"target": path.encode()}, "headers": bearer(user)}
            created = await service.post("/", json={"title": "a"}, **target)
            assert created.headers["Location"] == f"{PREFIX}{tasks}/{created.json()['id']}"
            got = await service.get(arriving(created.headers["Location"]), headers=bearer(user))
            assert got.json() == created.json()
            refused = await service.put("/", **target)
            assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD, POST")

        first = await service.get(f"{tasks}?limit=1", headers=bearer(user))
        [following] = re.findall(r'<([^>]+)>; rel="next"', first.headers["Link"])
        second = await service.get(arriving(following), headers=bearer(user))
        assert len({page.json()[0]["id"] for page in (first, second)}) == 2

    async def test_swagger_ui_finds_its_assets_its_document_and_the_guides(self, service: httpx.AsyncClient) -> None:
        root = await service.get("/")
        page = await service.get(arriving(root.headers["Location"]))
        assets = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
        [address] = re.findall(r"url: '([^']+)'", page.text)
        document = (await service.get(arriving(address))).json()
        guides = re.findall(r"\]\((?!https:)(.+?)\)", document["info"]["description"])
        links = [*assets, *(httpx.URL(f"http://localhost{PREFIX}/docs").join(guide).path for guide in guides)]

        assert (root.status_code, page.status_code) == (307, 200)
        assert document["servers"] == [{"url": PREFIX}]
        assert [(await service.get(arriving(link))).status_code for link in links] == [200] * 6

    async def test_a_mounted_application_and_url_for_know_the_prefix(self, service: httpx.AsyncClient) -> None:
        shown = (await service.get("/inner/things")).json()

        assert shown == [f"{service.base_url}{PREFIX}/inner/things", f"{PREFIX}/inner/things"]
        assert (await service.get("/plain/x")).text == "plain"

    async def test_the_prefix_is_no_path_of_the_service(self, service: httpx.AsyncClient) -> None:
        """A proxy that does not take it away is found out at once."""
        for path in ("/docs", "/health/live", "/api/ada/tasks"):
            assert problem_of(await service.get(f"{PREFIX}{path}"), 404)["type"] == "urn:problem-type:route-not-found"


class Log(logging.Handler):
    """Keeps the routes of the requests, or whether there is a path instead, and the problems."""

    def __init__(self) -> None:
        super().__init__()
        self.routes: list[Any] = []
        self.problems: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "duration_ms"):
            self.routes.append(vars(record)["route"] or ("path" in vars(record) and "a path"))
            self.problems.append(vars(record).get("problem"))


async def refused_in_its_body(url: httpx.URL) -> None:
    """Send a request of which the server refuses the body when the application has begun to read it."""
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(HEAD.encode())
    await reader.readuntil(b"100 Continue\r\n\r\n")
    writer.write(b"no size\r\n")
    await reader.read()
    writer.close()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    with handling(Log(), caplog) as log:
        yield log


class TestPaths:
    async def test_each_path_has_the_status_and_the_route_that_it_has_without_a_prefix(
        self, secured: Settings, log: Log
    ) -> None:
        found = []
        for prefix in ("", *PREFIXES[:3]):
            log.routes.clear()
            async with extended(secured.model_copy(update={"root_path": prefix}), lambda _: None) as client:
                statuses = [await status_of(client, "GET", path, token) for path in PATHS for token in TOKENS]
                await exchange(client.base_url, b"nonsense\r\n\r\n")
                await refused_in_its_body(client.base_url)
            found.append((statuses, [*log.routes]))

        assert found[1:] == [found[0]] * 3
        assert {*found[0][0]} == {200, 307, 401, 403, 404}
        assert {*found[0][1]} > {"/docs", "/openapi.json", "/api/{user_id}/tasks", "a path", False}

    async def test_the_log_says_that_a_client_left_its_request(self, service: httpx.AsyncClient, log: Log) -> None:
        _, writer = await asyncio.open_connection(service.base_url.host, service.base_url.port)
        head = "POST /api/ada/tasks HTTP/1.1", "Host: a", f"Authorization: {bearer('ada')['Authorization']}"
        writer.write("\r\n".join([*head, "Content-Type: application/json", "Content-Length: 9", "", "{"]).encode())
        await service.get("/health/live")
        writer.transport.abort()

        await until(lambda: log.problems)
        assert log.problems == ["client-disconnected"]

    @settings(deadline=None)  # the machine may be busy
    @given(st.sampled_from(PREFIXES), st.lists(st.sampled_from(NAMES)), st.sampled_from(["http", "websocket"]))
    def test_authorization_and_routing_see_exactly_the_path_that_arrived(
        self, prefix: str, names: list[str], kind: str
    ) -> None:
        path = "/" + "/".join(names)
        arrived: dict[str, Any] = {
            "type": kind,
            "path": unquote(path),
            "raw_path": path.encode(),
            "root_path": "",
        }
        scope = dict(arrived)

        add_root_path(scope, prefix)

        assert get_route_path(scope) == arrived["path"]
        assert scope["raw_path"].removeprefix(scope["root_path"].encode()) == arrived["raw_path"]
        assert scope["path"] == prefix + str(arrived["path"])

    def test_a_server_that_sets_the_root_path_has_set_the_path_too(self) -> None:
        scope: dict[str, Any]
        for scope in ({"path": "/v1/docs", "root_path": "/v1"}, {"type": "lifespan"}):
            sent = dict(scope)
            add_root_path(scope, PREFIX)
            assert scope == sent
        scope = {"path": "/docs"}
        add_root_path(scope, PREFIX)
        assert scope == {"path": "/svc/docs", "root_path": PREFIX}

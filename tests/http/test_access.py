"""Deny by default: every path and method of the running service, without a token and with each kind of token.

The paths come from the routes, so a new route is tested by itself. The expected replies come from one rule.
"""

import json
import re
from collections.abc import Iterable, Iterator
from http import HTTPMethod
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import iter_route_contexts
from starlette.responses import PlainTextResponse
from starlette.routing import Mount

from app.core.config import Settings
from app.http.authorization import public
from app.routes.deps import CurrentUser
from tests.http.support import extended, status_of
from tests.support import bearer

pytestmark = pytest.mark.unmeasured

SECURITY: Final = (Path(__file__).parents[2] / "SECURITY.md").read_text()
METHODS: Final = [*HTTPMethod, "QUERY", "PROPFIND"]
UNKNOWN: Final = {"/none", "/api", "/api/{user_id}", "/api/{user_id}/none"}
TOKENS: Final = ["", "Bearer a.b.c", *(bearer(user)["Authorization"] for user in ("eve", "ada"))]
VALUES: Final = {"user_id": "ada", "name": "swagger-ui.css", "number:int": "9", "rest:path": "x/y"}
REFUSALS: Final = {401, 403, 404, 405}
_numbers = count(1)
PATTERNS: Final = {"int": "[0-9]+", "path": ".*", "": "[^/]+"}

Statuses = list[int]
"""The status with each of TOKENS. 0 stands for any status of the route's own handler."""


class Table(NamedTuple):
    """The replies of a service by path and method, and the methods of its routes by path."""

    routes: dict[str, set[str]]
    replies: dict[tuple[str, str], Statuses]

    def expected(self, path: str, method: str) -> Statuses:
        """The rule. An unknown path is 404 and an unknown method 405. Below /api only the owner reaches the handler.

        Doubled slashes and one at the end make no difference.
        """
        single = re.sub("//+", "/", filled(path))
        known = [route for route in self.routes if re.fullmatch(f"{pattern_of(route)}/?", single)]
        if not known:
            return [404] * 4
        taken = next((route for route in known if method in self.routes[route]), "")
        if not taken:
            return [405] * 4
        if not taken.startswith("/api/"):
            return [0] * 4
        due = 404 if ids_in(taken) and path != taken else 0  # the handler's: nothing has this id
        return [401, 401, 403 if taken.startswith("/api/{user_id}/") else 0, due]

    def breaches(self) -> list[tuple[str, str, Statuses]]:
        """Returns every reply that contradicts the rule."""
        return [
            (path, method, found)
            for (path, method), found in self.replies.items()
            for pair in [zip(found, self.expected(path, method), strict=True)]
            if not all(status == due if due else status < 500 and status not in REFUSALS for status, due in pair)
        ]

    def rows(self) -> Iterator[str]:
        """Yields the rows of SECURITY.md, one for each path and method of a route, and one for all others."""
        for path, methods in sorted(self.routes.items()):
            for method in [each for each in METHODS if each in methods and each != "HEAD"]:
                assert method != "GET" or self.replies[path, "HEAD"] == self.replies[path, "GET"]
                names = "GET, HEAD" if method == "GET" else method
                yield f"| `{path}` | {names} | {' | '.join(map(str, self.replies[path, method]))} |"
        yield "| each of these | every other | 405 | 405 | 405 | 405 |"
        yield "| every other | every | 404 | 404 | 404 | 404 |"


def pattern_of(route: str) -> str:
    return re.sub(r"{\w+:?(\w*)}", lambda found: PATTERNS[found[1]], route)


def filled(path: str, **values: str) -> str:
    return re.sub(r"{([\w:]+)}", lambda found: {**VALUES, **values}.get(found[1], "x"), path)


def ids_in(route: str) -> list[str]:
    """Returns the names of the ids in a path, apart from that of the user."""
    return re.findall(r"{(\w+_id)}", route.removeprefix("/api/{user_id}"))


def body_of(document: dict[str, Any], path: str, method: str) -> str:
    """Returns a valid body for an operation: the example of its schema, or else text in the required fields.

    Text differs each time, because a resource may want names that no other one has.
    """
    content = document["paths"].get(path, {}).get(method.lower(), {}).get("requestBody", {}).get("content", {})
    name = content.get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
    schema = document["components"]["schemas"].get(name, {})
    body = schema.get("example") or dict.fromkeys(schema.get("required", ()), "text")
    kinds = schema.get("properties", {})
    is_text = {key: kinds[key].get("type") == "string" and not kinds[key].keys() & {"enum", "format"} for key in body}
    return json.dumps({key: f"{value} {next(_numbers)}" if is_text[key] else value for key, value in body.items()})


async def new_ids(document: dict[str, Any], client: httpx.AsyncClient, path: str) -> dict[str, str]:
    """Creates what the ids of a path name, each with a POST to the path before it, and returns the ids."""
    ids: dict[str, str] = {}
    for name in ids_in(path):
        collection = path.partition(f"/{{{name}}}")[0]
        headers = {"Content-Type": "application/json"}
        content = body_of(document, collection, "POST")
        reply = await client.post(filled(collection, **ids), content=content, headers=headers)
        assert reply.status_code == 201, f"POST {collection} refuses {content}; give its schema an example"
        ids[name] = reply.json()["id"]
    return ids


def routes_of(app: FastAPI) -> dict[str, set[str]]:
    """Returns the methods of each path. A mounted application answers every path below its own, and every method."""
    routes: dict[str, set[str]] = {}
    for context in iter_route_contexts(app.routes):
        is_mount = isinstance(context.original_route, Mount)
        methods: Any = METHODS if is_mount else context.methods or ()
        path = f"{context.path}/{{rest:path}}" if is_mount else str(context.path)
        routes.setdefault(path, set()).update(methods, {"HEAD"} if "GET" in methods else ())
    return routes


def near(route: str) -> Iterator[str]:
    """Yields the path of a route, the paths above it, and some below and beside it."""
    parts = route.split("/")
    yield from ("/".join(parts[:number]) or "/" for number in range(1, len(parts) + 1))
    yield from (f"{route.replace('/', '//')}/", f"{route}/none", f"/none{route}", f"/api{route}")
    if not route.endswith("}"):
        yield f"{route}none"


async def explore(app: FastAPI, client: httpx.AsyncClient, known: Iterable[str] = ()) -> Table:
    """Sends requests with each of TOKENS: every method to the routes that are not `known` and to UNKNOWN, and two
    methods to the paths near these routes. Each has new ids, because DELETE deletes what they name.
    """
    table, document = Table(routes_of(app), {}), app.openapi()
    new = table.routes.keys() - {*known}
    for path in sorted({*UNKNOWN, *(each for route in new for each in near(route))}):
        for method in METHODS if path in new | UNKNOWN else ("GET", "POST"):
            target = filled(path, **(await new_ids(document, client, path) if path in new else {}))
            body = body_of(document, path, method)
            table.replies[path, method] = [await status_of(client, method, target, token, body) for token in TOKENS]
    return table


async def test_only_the_owner_reaches_what_is_not_public_and_security_md_has_the_replies(secured: Settings) -> None:
    apps: list[FastAPI] = []
    async with extended(secured, apps.append) as client:
        table = await explore(apps[0], client)

    rows = "\n".join(table.rows())
    assert table.breaches() == []
    assert f"\n{rows}\n\n" in SECURITY, f"the table for SECURITY.md:\n{rows}"


async def unchecked() -> str:
    """A handler that does not check who asks."""
    return "reached"


async def opened() -> str:
    return "reached"


async def name_of(user: CurrentUser) -> str:
    return user


def with_routes(app: FastAPI) -> None:
    """Add a route of every kind."""
    router, parent = APIRouter(include_in_schema=False), APIRouter()
    router.get("/nested")(unchecked)
    router.get("/token-user", dependencies=[Depends(name_of)])(unchecked)
    router.get("/numbers/{number:int}")(unchecked)
    parent.include_router(router, prefix="/{user_id}")
    app.include_router(parent, prefix="/api")
    app.get("/api/me/of-mine")(name_of)
    app.add_route("/api/{user_id}/starlette", lambda _: PlainTextResponse("reached"), methods=["GET", "PUT", "OPTIONS"])
    app.mount("/api/{user_id}/mount", PlainTextResponse("reached"))
    app.mount("/site", public(PlainTextResponse("reached")))
    app.post("/open")(public(opened))


async def test_a_new_route_of_any_kind_is_closed_to_others_although_it_does_not_check_who_asks(
    secured: Settings,
) -> None:
    apps: list[FastAPI] = []
    known: set[str] = set()

    def extend(app: FastAPI) -> None:
        known.update(routes_of(app))
        with_routes(app)
        apps.append(app)

    async with extended(secured, extend) as client:
        table = await explore(apps[0], client, known)

    assert table.breaches() == []
    assert table.replies["/api/me/of-mine", "GET"] == [401, 401, 200, 200]
    assert table.replies["/api/{user_id}/mount/{rest:path}", "TRACE"] == [401, 401, 403, 200]

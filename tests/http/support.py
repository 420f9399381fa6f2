"""What tests of an extended service share."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
from fastapi import APIRouter, FastAPI

from app.core.config import Settings
from tests.support import bearer, serving

Extend = Callable[[FastAPI], object]
BASE: Final = "/api/{user_id}/things"


@asynccontextmanager
async def extended(settings: Settings, extend: Extend) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client, with ada's token, of a service that `extend` adds to."""
    async with serving(settings, extend) as url, httpx.AsyncClient(base_url=url, headers=bearer("ada")) as client:
        yield client


def one_route(
    endpoint: Callable[..., Any], method: str = "GET", path: str = "", **options: Any
) -> Callable[[FastAPI], None]:
    """Returns what adds a router with one route, as the documentation shows."""

    def extend(app: FastAPI) -> None:
        router = APIRouter(prefix=BASE)
        router.add_api_route(path, endpoint, methods=[method], **options)
        app.include_router(router)

    return extend


async def ask(settings: Settings, extend: Extend, method: str = "GET", path: str = "", **sent: Any) -> httpx.Response:
    async with extended(settings, extend) as client:
        return await client.request(method, f"/api/ada/things{path}", **sent)


def problem_of(reply: httpx.Response, status: int) -> dict[str, Any]:
    """Returns the members of a problem, after a look at its form."""
    assert (reply.status_code, reply.headers["Content-Type"]) == (status, "application/problem+json"), reply.text
    problem: dict[str, Any] = reply.json()
    assert problem["type"].startswith(("urn:problem-type:", "about:blank"))
    assert (problem["status"], problem["instance"]) == (status, reply.headers["X-Request-ID"])
    assert isinstance(problem["detail"], str)
    return problem

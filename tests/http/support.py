"""What tests of an extended service share."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
from fastapi import FastAPI

from app.core.config import Settings
from tests.support import bearer, serving

Extend = Callable[[FastAPI], object]
BASE: Final = "/api/{user_id}/things"


@asynccontextmanager
async def extended(settings: Settings, extend: Extend) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client, with ada's token, of a service that `extend` adds to."""
    async with (
        serving(settings, extend) as url,
        httpx.AsyncClient(base_url=url, headers=bearer("ada"), timeout=30) as client,
    ):
        yield client


def problem_of(reply: httpx.Response, status: int) -> dict[str, Any]:
    """Returns the members of a problem, after a check of its form."""
    assert (reply.status_code, reply.headers["Content-Type"]) == (status, "application/problem+json"), reply.text
    problem: dict[str, Any] = reply.json()
    assert problem["type"].startswith(("urn:problem-type:", "about:blank"))
    assert (problem["status"], problem["instance"]) == (status, reply.headers["X-Request-ID"])
    assert isinstance(problem["detail"], str)
    return problem

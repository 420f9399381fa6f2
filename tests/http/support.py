"""What tests of an extended service share."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
from fastapi import FastAPI

from app.core.config import Settings
from tests.support import bearer, exchange, serving

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


async def status_of(client: httpx.AsyncClient, method: str, target: str, token: str, body: str = "") -> int:
    """Returns the status. httpx would correct some paths, and takes three times as long for a thousand requests."""
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: {token}\r\n"
    content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    return (await exchange(client.base_url, f"{head}{content}".encode()))[0]


def problem_of(reply: httpx.Response, status: int) -> dict[str, Any]:
    """Returns the members of a problem, after a check of its form."""
    assert (reply.status_code, reply.headers["Content-Type"]) == (status, "application/problem+json"), reply.text
    problem: dict[str, Any] = reply.json()
    assert problem["type"].startswith(("urn:problem-type:", "about:blank"))
    assert (problem["status"], problem["instance"]) == (status, reply.headers["X-Request-ID"])
    assert isinstance(problem["detail"], str)
    return problem

"""Requests that the tests of lists share."""

from typing import Any

import httpx

Tasks = list[dict[str, Any]]


async def add(client: httpx.AsyncClient, tasks: str, *titles: str, **others: object) -> Tasks:
    """Create tasks one after another."""
    return [(await client.post(tasks, json={"title": title, **others})).json() for title in titles]


async def listed(client: httpx.AsyncClient, tasks: str, **query: object) -> Tasks:
    reply = await client.get(tasks, params={name: str(value) for name, value in query.items()})
    assert reply.status_code == 200, reply.text
    found: Tasks = reply.json()
    return found


async def titles_of(client: httpx.AsyncClient, tasks: str, **query: object) -> list[str]:
    return [task["title"] for task in await listed(client, tasks, **query)]

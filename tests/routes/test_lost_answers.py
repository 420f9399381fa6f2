"""The database executes a statement, but its reply to the service is lost."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import asyncpg
import httpx
import pytest

from app.services import tasks as services
from tests.faults import FaultProxy, fault_proxy
from tests.support import make_settings, serving

KEY: Final = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}


@pytest.fixture
def network(dsn: str) -> Iterator[FaultProxy]:
    with fault_proxy(dsn) as network:
        yield network


@pytest.fixture
async def client(network: FaultProxy) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that nobody else uses, so that every database reply belongs to this test."""
    async with (
        serving(make_settings(network.dsn, database_pool_size=1)) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client


async def titles(database: asyncpg.Connection, user: str) -> list[str]:
    return [title for (title,) in await database.fetch("SELECT title FROM tasks WHERE user_id = $1", user)]


def kind(reply: httpx.Response) -> str:
    assert reply.status_code == 503, reply.text
    assert reply.headers["Retry-After"] == "1"
    kind: str = reply.json()["type"]
    return kind.removeprefix("urn:problem-type:")


class TestRetry:
    async def test_a_read_is_retried(
        self, client: httpx.AsyncClient, network: FaultProxy, path: str, task: dict[str, Any]
    ) -> None:
        network.cut(1)

        assert (await client.get(path)).json() == task

    async def test_a_retried_creation_without_a_key_creates_one_task(
        self, client: httpx.AsyncClient, network: FaultProxy, tasks: str, user: str, database: asyncpg.Connection
    ) -> None:
        network.cut(1)

        reply = await client.post(tasks, json={"title": "Buy oat milk"})

        assert (reply.status_code, "Idempotent-Replayed" in reply.headers) == (201, False)
        assert await titles(database, user) == ["Buy oat milk"]

    async def test_a_retried_creation_with_a_key_creates_one_task(
        self, client: httpx.AsyncClient, network: FaultProxy, tasks: str, user: str, database: asyncpg.Connection
    ) -> None:
        network.cut(1)

        reply = await client.post(tasks, json={"title": "Buy oat milk"}, headers=KEY)

        assert reply.status_code == 201
        assert await titles(database, user) == ["Buy oat milk"]

    async def test_an_unconditional_change_is_retried(
        self, client: httpx.AsyncClient, network: FaultProxy, path: str
    ) -> None:
        network.cut(1)
        changed = await client.put(path, json={"title": "Buy two"})
        network.cut(1)
        completed = await client.patch(f"{path}/complete", json={"completed": True})

        assert (changed.status_code, completed.status_code) == (200, 200)
        assert (completed.json()["title"], completed.json()["completed"]) == ("Buy two", True)

    async def test_a_retried_delete_is_404_and_the_task_is_deleted(
        self, client: httpx.AsyncClient, network: FaultProxy, path: str, user: str, database: asyncpg.Connection
    ) -> None:
        network.cut(1)

        assert (await client.delete(path)).status_code == 404
        assert await titles(database, user) == []


class TestUnknownOutcome:
    async def test_a_toggle_is_not_retried_and_its_outcome_is_unknown(
        self, client: httpx.AsyncClient, network: FaultProxy, path: str
    ) -> None:
        network.cut(1)

        assert kind(await client.patch(f"{path}/complete")) == "outcome-unknown"
        assert (await client.get(path)).json()["completed"] is True

    @pytest.mark.parametrize("condition", ["tag", "*"])
    async def test_a_conditional_delete_is_not_retried_and_its_outcome_is_unknown(
        self,
        client: httpx.AsyncClient,
        network: FaultProxy,
        path: str,
        user: str,
        database: asyncpg.Connection,
        condition: str,
    ) -> None:
        headers = {"If-Match": condition if condition == "*" else (await client.get(path)).headers["ETag"]}
        network.cut(1)

        assert kind(await client.delete(path, headers=headers)) == "outcome-unknown"
        assert await titles(database, user) == []

    async def test_the_outcome_is_unknown_if_the_reply_to_the_retry_is_also_lost(
        self, client: httpx.AsyncClient, network: FaultProxy, tasks: str, user: str, database: asyncpg.Connection
    ) -> None:
        network.cut(2)

        assert kind(await client.post(tasks, json={"title": "Buy oat milk"})) == "outcome-unknown"
        assert await titles(database, user) == ["Buy oat milk"]

    async def test_the_outcome_of_a_creation_is_unknown_if_the_stored_task_cannot_be_read(
        self,
        monkeypatch: pytest.MonkeyPatch,
        client: httpx.AsyncClient,
        network: FaultProxy,
        tasks: str,
        user: str,
        database: asyncpg.Connection,
    ) -> None:
        get_task = services.get_task

        async def get_task_later(*arguments: Any) -> Any:
            network.cut(2)
            return await get_task(*arguments)

        monkeypatch.setattr(services, "get_task", get_task_later)
        network.cut(1)

        assert kind(await client.post(tasks, json={"title": "Buy oat milk"})) == "outcome-unknown"
        assert await titles(database, user) == ["Buy oat milk"]

    async def test_a_read_that_loses_every_reply_is_database_unavailable(
        self, client: httpx.AsyncClient, network: FaultProxy, tasks: str
    ) -> None:
        network.cut(2)

        assert kind(await client.get(tasks)) == "database-unavailable"

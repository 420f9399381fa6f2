"""The database does what it is asked, and its answer is lost: what the client is told, and what is stored."""

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
    """Of a service that nobody else uses, so that every answer is for this test."""
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


class TestSentAgain:
    async def test_a_task_is_read(
        self, client: httpx.AsyncClient, network: FaultProxy, path: str, task: dict[str, Any]
    ) -> None:
        network.cut(1)

        assert (await client.get(path)).json() == task

    async def test_a_task_is_created_once(
        self, client: httpx.AsyncClient, network: FaultProxy, tasks: str, user: str, database: asyncpg.Connection
    ) -> None:
        network.cut(1)

        reply = await client.post(tasks, json={"title": "Buy oat milk"})

        assert (reply.status_code, "Idempotent-Replayed" in reply.headers) == (201, False)
        assert await titles(database, user) == ["Buy oat milk"]

    async def test_a_task_with_a_key_is_created_once(
        self, client: httpx.AsyncClient, network: FaultProxy, tasks: str, user: str, database: asyncpg.Connection
    ) -> None:
        network.cut(1)

        reply = await client.post(tasks, json={"title": "Buy oat milk"}, headers=KEY)

        assert reply.status_code == 201
        assert await titles(database, user) == ["Buy oat milk"]

    async def test_a_change_without_a_condition_is_made(
        self, client: httpx.AsyncClient, network: FaultProxy, path: str
    ) -> None:
        network.cut(1)
        changed = await client.put(path, json={"title": "Buy two"})
        network.cut(1)
        completed = await client.patch(f"{path}/complete", json={"completed": True})

        assert (changed.status_code, completed.status_code) == (200, 200)
        assert (completed.json()["title"], completed.json()["completed"]) == ("Buy two", True)

    async def test_a_deleted_task_is_gone_and_the_second_time_does_not_find_it(
        self, client: httpx.AsyncClient, network: FaultProxy, path: str, user: str, database: asyncpg.Connection
    ) -> None:
        network.cut(1)

        assert (await client.delete(path)).status_code == 404
        assert await titles(database, user) == []


class TestNotSentAgain:
    async def test_a_toggle_is_made_once_and_its_outcome_is_unknown(
        self, client: httpx.AsyncClient, network: FaultProxy, path: str
    ) -> None:
        network.cut(1)

        assert kind(await client.patch(f"{path}/complete")) == "outcome-unknown"
        assert (await client.get(path)).json()["completed"] is True

    @pytest.mark.parametrize("condition", ["tag", "*"])
    async def test_nor_is_a_change_with_a_condition(
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

    async def test_when_all_answers_are_lost_the_outcome_is_unknown(
        self, client: httpx.AsyncClient, network: FaultProxy, tasks: str, user: str, database: asyncpg.Connection
    ) -> None:
        network.cut(2)

        assert kind(await client.post(tasks, json={"title": "Buy oat milk"})) == "outcome-unknown"
        assert await titles(database, user) == ["Buy oat milk"]

    async def test_a_task_that_is_there_but_cannot_be_looked_at_is_not_called_missing(
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

    async def test_of_a_read_no_answer_means_that_the_database_is_unavailable(
        self, client: httpx.AsyncClient, network: FaultProxy, tasks: str
    ) -> None:
        network.cut(2)

        assert kind(await client.get(tasks)) == "database-unavailable"

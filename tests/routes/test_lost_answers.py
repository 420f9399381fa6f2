"""The database executes a statement, but its reply to the service is lost."""

from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest

from app.services import tasks as services
from tests.faults import FaultProxy
from tests.support import make_settings, serving

KEY: Final = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
BODY: Final = {"title": "Buy oat milk"}


@pytest.fixture
async def client(network: FaultProxy) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that nobody else uses, so that every database reply belongs to this test."""
    async with (
        serving(make_settings(network.dsn, database_pool_size=1)) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client


def kind(reply: httpx.Response) -> str:
    assert reply.status_code == 503, reply.text
    assert reply.headers["Retry-After"] == "1"
    kind: str = reply.json()["type"]
    return kind.removeprefix("urn:problem-type:")


class TestRetry:
    async def test_reads_and_unconditional_changes_are_retried(
        self, client: httpx.AsyncClient, network: FaultProxy, path: str, task: dict[str, Any]
    ) -> None:
        network.cut(1)
        read = await client.get(path)
        network.cut(1)
        changed = await client.put(path, json={"title": "Buy two"})
        network.cut(1)
        completed = await client.patch(f"{path}/complete", json={"completed": True})

        assert read.json() == task
        assert (changed.status_code, completed.status_code) == (200, 200)
        assert (completed.json()["title"], completed.json()["completed"]) == ("Buy two", True)

    @pytest.mark.parametrize("headers", [{}, KEY], ids=["without key", "with key"])
    async def test_a_retried_creation_creates_one_task(
        self, client: httpx.AsyncClient, network: FaultProxy, tasks: str, headers: dict[str, str]
    ) -> None:
        network.cut(1)

        reply = await client.post(tasks, json=BODY, headers=headers)

        assert reply.status_code == 201
        assert ("Idempotent-Replayed" in reply.headers) == bool(headers)
        assert (await client.get(tasks)).json() == [reply.json()]

    async def test_a_retried_delete_is_404_and_the_task_is_deleted(
        self, client: httpx.AsyncClient, network: FaultProxy, tasks: str, path: str
    ) -> None:
        network.cut(1)

        assert (await client.delete(path)).status_code == 404
        assert (await client.get(tasks)).json() == []


class TestUnknownOutcome:
    @pytest.mark.parametrize(
        ("method", "suffix", "body", "headers"),
        [
            ("PATCH", "/complete", None, {}),
            ("PATCH", "/complete", {"completed": True}, {"If-Match": "*"}),
            ("PUT", "", {"completed": True}, {"If-None-Match": '"a"'}),
            ("DELETE", "", None, {"If-Match": "*"}),
            ("DELETE", "", None, {"If-None-Match": '"a"'}),
        ],
    )
    async def test_a_toggle_or_a_conditional_change_is_not_retried_and_its_outcome_is_unknown(
        self,
        client: httpx.AsyncClient,
        network: FaultProxy,
        path: str,
        *,
        method: str,
        suffix: str,
        body: object,
        headers: dict[str, str],
    ) -> None:
        network.cut(1)

        assert kind(await client.request(method, path + suffix, json=body, headers=headers)) == "outcome-unknown"
        after = await client.get(path)
        assert after.status_code == 404 if method == "DELETE" else after.json()["completed"]

    @pytest.mark.parametrize("read_is_lost", [False, True], ids=["retry", "read after the retry"])
    async def test_the_outcome_of_a_creation_is_unknown_if_a_later_reply_is_also_lost(
        self,
        monkeypatch: pytest.MonkeyPatch,
        client: httpx.AsyncClient,
        network: FaultProxy,
        tasks: str,
        *,
        read_is_lost: bool,
    ) -> None:
        read = services._earlier  # noqa: SLF001

        async def read_later(*arguments: Any) -> Any:
            network.cut(2)
            return await read(*arguments)

        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(services, "_earlier", read_later)
            network.cut(1 if read_is_lost else 2)
            assert kind(await client.post(tasks, json=BODY)) == "outcome-unknown"

        assert [task["title"] for task in (await client.get(tasks)).json()] == ["Buy oat milk"]

    async def test_a_read_that_loses_every_reply_is_database_unavailable(
        self, client: httpx.AsyncClient, network: FaultProxy, tasks: str
    ) -> None:
        network.cut(2)

        assert kind(await client.get(tasks)) == "database-unavailable"

"""The clients record what proves a defect. Each defect is planted in the service."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx
import pytest

from app.core.database import Database
from app.core.database.pool import SlotPool
from app.models.task import WireTask
from app.schemas.task import UNCONDITIONAL, Conditions, TaskUpdate
from app.services import tasks as services
from tests.chaos.history import REQUESTS, Client, History, Request, User
from tests.chaos.linearizability import Task
from tests.faults import FaultProxy, fault_proxy
from tests.support import make_settings, serving, until

CUTS: Final = 5

get_task, update_task, complete_task = services.get_task, services.update_task, services.complete_task


async def read_then_set(db: Database, user: str, task_id: UUID, completed: bool | None, found: Conditions) -> WireTask:
    """A toggle in two statements. Another toggle between the two is lost."""
    if completed is None:
        completed = not (await get_task(db, user, task_id, found)).completed
    return await complete_task(db, user, task_id, completed, found)


async def compare_then_set(db: Database, user: str, task_id: UUID, new: TaskUpdate, found: Conditions) -> WireTask:
    """A conditional change in two statements. Another change between the two is overwritten."""
    await get_task(db, user, task_id, found)
    return await update_task(db, user, task_id, new, UNCONDITIONAL)


def caching() -> Callable[..., Any]:
    """Reads each task once from the database, and then from a cache that no change clears."""
    cache: dict[UUID, WireTask] = {}

    async def get(db: Database, user: str, task_id: UUID, found: Conditions) -> WireTask:
        if task_id not in cache:
            cache[task_id] = await get_task(db, user, task_id, found)
        return cache[task_id]

    return get


@pytest.fixture
def network(dsn: str) -> Iterator[FaultProxy]:
    with fault_proxy(dsn) as network:
        yield network


async def recorded(network: FaultProxy, user: str, requests: Iterable[Request] = REQUESTS) -> list[str]:
    """Returns the faults of a history during which the database loses some answers."""
    history = History([user], requests)
    async with serving(make_settings(network.dsn)) as url, history.recording(url):
        await history.cycles(1)
        for number in range(1, CUTS + 1):
            network.cut(1)
            await until(lambda number=number: network.cut_off == number)  # type: ignore[misc]
            await history.cycles(2)  # the retry is answered
    return history.faults()


async def test_a_history_of_the_service_has_no_fault(network: FaultProxy, user: str) -> None:
    assert await recorded(network, user) == []


async def test_a_toggle_that_is_lost_between_two_statements_is_found(
    monkeypatch: pytest.MonkeyPatch, network: FaultProxy, user: str
) -> None:
    monkeypatch.setattr(services, "complete_task", read_then_set)

    assert await recorded(network, user, [Client.toggle] * 5)


async def test_a_toggle_that_is_retried_after_a_lost_answer_is_found(
    monkeypatch: pytest.MonkeyPatch, network: FaultProxy, user: str
) -> None:
    monkeypatch.setattr(Database, "_may_retry", lambda *_, **__: True)

    assert await recorded(network, user, [Client.toggle])


async def test_a_read_from_a_stale_cache_is_found(
    monkeypatch: pytest.MonkeyPatch, network: FaultProxy, user: str
) -> None:
    monkeypatch.setattr(services, "get_task", caching())

    assert await recorded(network, user, [Client.rename, Client.get])


async def test_a_conditional_change_that_overwrites_another_is_found(
    monkeypatch: pytest.MonkeyPatch, network: FaultProxy, user: str
) -> None:
    monkeypatch.setattr(services, "update_task", compare_then_set)

    assert await recorded(network, user, [Client.rename, Client.rename_if_match])


async def test_a_change_that_the_service_retries_may_take_effect_twice(
    monkeypatch: pytest.MonkeyPatch, network: FaultProxy, tasks: str
) -> None:
    fetch, seen = SlotPool.fetch, asyncio.Event()

    async def retry_later(pool: SlotPool, sql: str, values: list[Any], *, reads: bool) -> list[asyncpg.Record]:
        if sql.startswith("UPDATE") and network.cut_off:
            await seen.wait()
        return await fetch(pool, sql, values, reads=reads)

    monkeypatch.setattr(SlotPool, "fetch", retry_later)
    async with serving(make_settings(network.dsn)) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        path = (await client.post(tasks, json={"title": "Buy oat milk"})).headers["Location"]
        network.cut(1)
        changing = asyncio.create_task(client.put(path, json={"title": "Drink it"}))
        await until(lambda: network.cut_off)
        first = (await client.get(path)).json()
        seen.set()
        second = (await changing).json()

    assert first == {**second, "updated_at": first["updated_at"]}
    assert first["updated_at"] < second["updated_at"]


def test_a_task_that_a_list_has_twice_or_that_nobody_sent_is_found() -> None:
    user = User("ada")
    tasks = [Task("ale", None, completed=False, version="1"), Task("ale 2", None, completed=False, version="2")]

    user.note_list(0, 1, tasks)

    assert [*user.faults()] == ["made 2 times: ale", "never sent: ale"]

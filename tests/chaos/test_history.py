"""The clients record what proves a defect. Each defect is planted in the service."""

from collections.abc import Callable, Iterable
from typing import Any, Final
from uuid import UUID

import pytest

from app.core.database import Database
from app.models.task import WireTask
from app.schemas.task import UNCONDITIONAL, Conditions, TaskUpdate
from app.services import tasks as services
from tests.chaos.history import REQUESTS, Client, History, Request, User
from tests.chaos.linearizability import Task
from tests.faults import FaultProxy
from tests.support import make_settings, serving, until

CUTS: Final = 5

get_task, update_task, complete_task = services.get_task, services.update_task, services.complete_task
cache: dict[UUID, WireTask] = {}


async def read_then_set(db: Database, user: str, task_id: UUID, completed: bool | None, found: Conditions) -> WireTask:
    """A toggle in two statements. Another toggle between the two is lost."""
    if completed is None:
        completed = not (await get_task(db, user, task_id, found)).completed
    return await complete_task(db, user, task_id, completed, found)


async def compare_then_set(
    db: Database, user: str, task_id: UUID, new: TaskUpdate, found: Conditions, _: object
) -> WireTask:
    """A conditional change in two statements. Another change between the two is overwritten."""
    await get_task(db, user, task_id, found)
    return await update_task(db, user, task_id, new, UNCONDITIONAL)


async def get_cached(db: Database, user: str, task_id: UUID, found: Conditions) -> WireTask:
    """Reads each task once from the database, and then from a cache that no change clears."""
    if task_id not in cache:
        cache[task_id] = await get_task(db, user, task_id, found)
    return cache[task_id]


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


@pytest.mark.ci
async def test_a_history_of_the_service_has_no_fault(network: FaultProxy, user: str) -> None:
    assert await recorded(network, user) == []


@pytest.mark.ci
@pytest.mark.parametrize(
    ("target", "name", "defect", "requests"),
    [
        pytest.param(services, "complete_task", read_then_set, [Client.toggle] * 5, id="lost_between_two_statements"),
        pytest.param(Database, "_may_retry", lambda *_, **__: True, [Client.toggle], id="retried_after_a_lost_answer"),
        pytest.param(services, "get_task", get_cached, [Client.rename, Client.get], id="stale_cache"),
        pytest.param(
            services,
            "update_task",
            compare_then_set,
            [Client.rename, Client.rename_if_match],
            id="overwrites_another",
        ),
    ],
)
async def test_a_planted_defect_is_found(
    monkeypatch: pytest.MonkeyPatch,
    network: FaultProxy,
    user: str,
    target: object,
    name: str,
    defect: Callable[..., Any],
    requests: list[Request],
) -> None:
    monkeypatch.setattr(target, name, defect)

    assert await recorded(network, user, requests)


def test_a_task_that_a_list_has_twice_or_that_nobody_sent_is_found() -> None:
    user = User("ada")
    tasks = [Task("ale", None, completed=False, version="1"), Task("ale 2", None, completed=False, version="2")]

    user.note_list(0, 1, tasks)

    assert [*user.faults()] == ["made 2 times: ale", "never sent: ale"]

"""No user can read, change or detect another user's task, and concurrent requests lose no toggle and mix no users."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import pairwise
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from sqlalchemy import bindparam, select
from sqlmodel import col

from app.core.database import Database, Statement, statement
from app.core.errors import AppError, ForbiddenError, TaskNotFoundError
from app.models.task import Task as TaskTable
from app.schemas.task import Conditions
from app.services import tasks as service
from tests.support import bearer
from tests.tokens import counted_checkouts

CONNECTIONS: Final = 20
TOGGLES: Final = 60
FINGERPRINT: Final = "SELECT md5(string_agg(t::text, '\n' ORDER BY t.id)) FROM tasks t WHERE user_id = $1"
NOWHERE: Final = "a word that no title has"

Client = httpx.AsyncClient
Task = dict[str, Any]


class Attempt(NamedTuple):
    """A request for a task. "current" in a header stands for the task's own entity tag, which only its owner knows."""

    method: str
    suffix: str = ""
    json: Any = None
    headers: Mapping[str, str] = MappingProxyType({})


PUT: Final = Attempt("PUT", json={"title": "Stolen", "description": None, "completed": True})
COMPLETE: Final = Attempt("PATCH", "/complete")
ATTEMPTS: Final = (
    Attempt("GET"),
    Attempt("HEAD"),
    Attempt("GET", headers={"If-None-Match": "current"}),
    PUT,
    PUT._replace(headers={"If-Match": "current"}),
    PUT._replace(headers={"If-Match": "*"}),
    PUT._replace(headers={"If-None-Match": "current"}),
    Attempt("PUT", json={}),
    Attempt("PUT", json={}, headers={"If-Match": "current"}),
    COMPLETE,
    COMPLETE._replace(json={"completed": True}),
    COMPLETE._replace(headers={"If-Match": "current"}),
    Attempt("DELETE"),
    Attempt("DELETE", headers={"If-Match": "*"}),
    Attempt("DELETE", headers={"If-Match": "current"}),
    # Owners do not send these. Their refusal must not depend on the task either.
    Attempt("PUT", json={"title": ""}),
    Attempt("PUT", json={"title": "Stolen", "priority": 1}, headers={"Prefer": "handling=strict"}),
    COMPLETE._replace(json={"completed": "yes"}),
    Attempt("POST"),
)


class Observation(NamedTuple):
    """Everything that a reply reveals, and the number of statements that it took."""

    status: int
    headers: list[tuple[str, str]]
    content: bytes
    statements: int


class Thief:
    """Tries to reach the tasks of an owner with a token of its own."""

    def __init__(self, client: Client, thief: str, owner: str) -> None:
        self._client = client
        self._thief = thief
        self._owner = owner

    async def try_everything(self, task: Task) -> None:
        """Every attempt has the result that it would have if the owner's task did not exist."""
        missing = {**task, "id": str(uuid4())}
        for attempt in ATTEMPTS:
            foreign = await self._reach(self._thief, task, attempt)
            assert foreign == await self._reach(self._thief, missing, attempt)
            assert foreign.status in {404, 405, 412, 422}

            forbidden = await self._reach(self._owner, task, attempt)
            assert forbidden == await self._reach(self._owner, missing, attempt)
            assert forbidden == await self._reach("nobody", missing, attempt)
            assert (forbidden.status, forbidden.statements) in {(403, 0), (405, 0)}

    async def try_the_list(self, cursor: str) -> None:
        """The thief's list does not contain the owner's tasks, and the owner's list is forbidden."""
        secret = await self._observe("GET", f"{self._thief}/tasks?search=secret of {self._owner}")
        assert secret == await self._observe("GET", f"{self._thief}/tasks?search={NOWHERE}")
        assert secret.content == b"[]"

        foreign = await self._observe("GET", f"{self._thief}/tasks?limit=1&cursor={cursor}")
        assert foreign == await self._observe("GET", f"{self._thief}/tasks?limit=1&cursor={cursor[::-1]}")
        assert (foreign.status, foreign.statements) == (422, 0)

        for method, content in (("GET", None), ("HEAD", None), ("POST", {"title": "Planted"})):
            forbidden = await self._observe(method, f"{self._owner}/tasks", content)
            assert forbidden == await self._observe(method, "nobody/tasks", content)
            assert (forbidden.status, forbidden.statements) == (403, 0)

    async def _reach(self, user: str, task: Task, attempt: Attempt) -> Observation:
        tag = f'"{task["updated_at"]}"'
        headers = {name: value.replace("current", tag) for name, value in attempt.headers.items()}
        return await self._observe(attempt.method, f"{user}/tasks/{task['id']}{attempt.suffix}", attempt.json, headers)

    async def _observe(
        self, method: str, path: str, json: Any = None, headers: dict[str, str] | None = None
    ) -> Observation:
        """Returns the reply without the parts that differ in every reply."""
        with counted_checkouts() as checkouts:
            reply = await self._client.request(
                method, f"/api/{path}", json=json, headers=bearer(self._thief) | (headers or {})
            )
        kept = [item for item in sorted(reply.headers.items()) if item[0] not in {"date", "x-request-id"}]
        content = reply.content.replace(reply.headers["X-Request-ID"].encode(), b"")
        return Observation(reply.status_code, kept, content, len(checkouts))


async def create(client: Client, user: str, **headers: str) -> Task:
    sent = {"title": f"A secret of {user}"}
    reply = await client.post(f"/api/{user}/tasks", json=sent, headers=bearer(user) | headers)
    assert reply.status_code == 201
    task: Task = reply.json()
    return task


class TestForeignTask:
    @pytest.fixture
    async def client(self, secured_url: str) -> AsyncIterator[Client]:
        async with Client(base_url=secured_url, timeout=30) as client:
            yield client

    async def test_another_user_s_task_cannot_be_read_changed_or_detected(
        self, client: Client, database: asyncpg.Connection, new_user: Callable[[], str]
    ) -> None:
        owner, thief = new_user(), new_user()
        own = await create(client, thief)
        task, _ = await create(client, owner), await create(client, owner)
        page = await client.get(f"/api/{owner}/tasks?limit=1", headers=bearer(owner))
        before = await database.fetchval(FINGERPRINT, owner)

        attacks = Thief(client, thief, owner)
        await attacks.try_everything(task)
        await attacks.try_the_list(httpx.URL(page.links["next"]["url"]).params["cursor"])

        assert await database.fetchval(FINGERPRINT, owner) == before
        assert (await client.get(f"/api/{thief}/tasks", headers=bearer(thief))).json() == [own]
        await client.patch(f"/api/{owner}/tasks/{task['id']}/complete", headers=bearer(owner))
        assert await database.fetchval(FINGERPRINT, owner) != before  # a control: the hash shows a change

    async def test_two_users_may_send_the_same_key_and_each_gets_a_task(
        self, client: Client, new_user: Callable[[], str]
    ) -> None:
        tasks = [await create(client, new_user(), **{"Idempotency-Key": "same"}) for _ in range(2)]

        assert tasks[0]["id"] != tasks[1]["id"]
        assert tasks[0]["user_id"] != tasks[1]["user_id"]

    @pytest.mark.parametrize("name", ["_GET", "_UPDATE", "_COMPLETE", "_DELETE"])
    async def test_a_statement_without_the_owner_condition_is_detected(
        self, client: Client, new_user: Callable[[], str], monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """A positive control of the first test."""
        scoped: Statement = getattr(service, name)
        monkeypatch.setattr(service, name, scoped._replace(sql=scoped.sql.replace("tasks.user_id = $", "'' != $")))
        owner = new_user()

        with pytest.raises(AssertionError):
            await Thief(client, new_user(), owner).try_everything(await create(client, owner))

    async def test_a_refusal_that_depends_on_another_user_s_task_is_detected(
        self, client: Client, new_user: Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A positive control of the first test."""
        found = statement(select(col(TaskTable.id)).where(col(TaskTable.id) == bindparam("task_id")), reads=True)

        async def revealing(db: Database, _user_id: str, task_id: UUID, _conditions: Conditions) -> AppError:
            return ForbiddenError() if await db.fetch(found, task_id=task_id) else TaskNotFoundError()

        monkeypatch.setattr(service, "_refusal", revealing)
        owner = new_user()

        with pytest.raises(AssertionError, match="status: 403 != 404"):
            await Thief(client, new_user(), owner).try_everything(await create(client, owner))


class TestUnderLoad:
    @pytest.fixture
    async def client(self, base_url: str) -> AsyncIterator[Client]:
        """A client that uses many connections at once."""
        limits = httpx.Limits(max_connections=CONNECTIONS)
        async with Client(base_url=base_url, timeout=60, limits=limits) as client:
            yield client

    async def test_concurrent_toggles_are_all_applied_and_concurrent_lists_do_not_mix_users(
        self, client: Client, new_user: Callable[[], str]
    ) -> None:
        ada, bob = new_user(), new_user()
        task, _ = await create(client, ada), await create(client, bob)
        path = f"/api/{ada}/tasks/{task['id']}"

        async def list_tasks(user: str) -> None:
            assert {task["user_id"] for task in (await client.get(f"/api/{user}/tasks")).json()} == {user}

        async def toggle() -> Task:
            toggled: Task = (await client.patch(f"{path}/complete")).raise_for_status().json()
            await asyncio.gather(list_tasks(ada), list_tasks(bob))
            return toggled

        replies = await asyncio.gather(*(toggle() for _ in range(TOGGLES)))

        assert alternate(replies)
        after = (await client.get(path)).json()
        assert (after["completed"], after["updated_at"]) == (False, max(reply["updated_at"] for reply in replies))

    async def test_a_client_that_reads_flips_and_writes_loses_updates(self, client: Client, path: str) -> None:
        """The positive control of the test above."""

        async def flip() -> Task:
            completed = (await client.get(path)).json()["completed"]
            flipped: Task = (await client.put(path, json={"completed": not completed})).json()
            return flipped

        assert not alternate(await asyncio.gather(*(flip() for _ in range(TOGGLES))))


def alternate(replies: list[Task]) -> bool:
    """Whether the state alternates from version to version, and no version occurs twice."""
    return all(
        earlier["updated_at"] < later["updated_at"] and earlier["completed"] != later["completed"]
        for earlier, later in pairwise(sorted(replies, key=itemgetter("updated_at")))
    )

"""No user can read, change or detect another user's task, and concurrent requests lose no toggle and mix no users."""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from operator import itemgetter
from typing import Any, Final, NamedTuple
from uuid import uuid4

import asyncpg
import httpx
import pytest

from app.core.database import Statement
from app.services import tasks as service
from tests.support import bearer
from tests.tokens import counted_checkouts

pytestmark = pytest.mark.unmeasured

CONNECTIONS: Final = 20
TOGGLES: Final = 60
FINGERPRINT: Final = "SELECT md5(string_agg(t::text, '\n' ORDER BY t.id)) FROM tasks t WHERE user_id = $1"

CHANGES: Final = {"title": "Stolen", "description": None, "completed": True}
TAG: Final = "the task's own entity tag, which only its owner knows"
ATTEMPTS: Final[list[tuple[str, str, Any, dict[str, str]]]] = [
    ("GET", "", None, {}),
    ("HEAD", "", None, {}),
    ("GET", "", None, {"If-None-Match": TAG}),
    ("PUT", "", CHANGES, {}),
    ("PUT", "", CHANGES, {"If-Match": TAG}),
    ("PUT", "", CHANGES, {"If-Match": "*"}),
    ("PUT", "", CHANGES, {"If-None-Match": TAG}),
    ("PUT", "", {}, {"If-Match": TAG}),
    ("PATCH", "/complete", None, {}),
    ("PATCH", "/complete", {"completed": True}, {}),
    ("PATCH", "/complete", None, {"If-Match": TAG}),
    ("DELETE", "", None, {}),
    ("DELETE", "", None, {"If-Match": "*"}),
    ("DELETE", "", None, {"If-Match": TAG}),
    # Owners do not send these. Their refusal must not depend on the task either.
    ("PUT", "", {"title": ""}, {}),
    ("PUT", "", CHANGES | {"mood": 1}, {"Prefer": "handling=strict"}),
    ("PATCH", "/complete", {"completed": "yes"}, {}),
    ("POST", "", None, {}),
]

Client = httpx.AsyncClient
Task = dict[str, Any]


class Observation(NamedTuple):
    """Everything that a reply reveals, and the number of statements that it took."""

    status: int
    headers: list[tuple[str, str]]
    content: bytes
    statements: int


class Thief(NamedTuple):
    """Tries to reach the tasks of an owner with a token of its own."""

    client: Client
    name: str
    owner: str

    async def try_everything(self, task: Task) -> None:
        """Every attempt has the result that it would have if the owner's task did not exist."""
        tag = f'"{task["updated_at"]}"'
        missing = uuid4()
        for method, suffix, content, conditions in ATTEMPTS:
            headers = {name: value.replace(TAG, tag) for name, value in conditions.items()}
            foreign, unknown, forbidden, forbidden_unknown, nobody = [
                await self.observe(method, f"{user}/tasks/{item}{suffix}", content, headers)
                for user, item in (
                    (self.name, task["id"]),
                    (self.name, missing),
                    (self.owner, task["id"]),
                    (self.owner, missing),
                    ("nobody", missing),
                )
            ]
            assert foreign == unknown
            assert foreign.status in {404, 405, 412, 422}
            assert forbidden == forbidden_unknown == nobody
            assert (forbidden.status, forbidden.statements) in {(403, 0), (405, 0)}

    async def try_the_list(self, cursor: str) -> None:
        """The thief's list does not contain the owner's tasks, and the owner's list is forbidden."""
        secret = await self.observe("GET", f"{self.name}/tasks?search=secret of {self.owner}")
        assert secret == await self.observe("GET", f"{self.name}/tasks?search=a word that no title has")
        assert secret.content == b"[]"

        foreign = await self.observe("GET", f"{self.name}/tasks?limit=1&cursor={cursor}")
        assert foreign == await self.observe("GET", f"{self.name}/tasks?limit=1&cursor={cursor[::-1]}")
        assert (foreign.status, foreign.statements) == (422, 0)

        for method, content in (("GET", None), ("HEAD", None), ("POST", {"title": "Planted"})):
            forbidden = await self.observe(method, f"{self.owner}/tasks", content)
            assert forbidden == await self.observe(method, "nobody/tasks", content)
            assert (forbidden.status, forbidden.statements) == (403, 0)

    async def observe(
        self, method: str, path: str, content: Any = None, headers: dict[str, str] | None = None
    ) -> Observation:
        """Returns the reply without the parts that differ in every reply."""
        sent = bearer(self.name) | (headers or {})
        with counted_checkouts() as checkouts:
            reply = await self.client.request(method, f"/api/{path}", json=content, headers=sent)
        kept = [item for item in sorted(reply.headers.items()) if item[0] not in {"date", "x-request-id"}]
        body = reply.content.replace(reply.headers["X-Request-ID"].encode(), b"")
        return Observation(reply.status_code, kept, body, len(checkouts))


async def create(client: Client, user: str) -> Task:
    reply = await client.post(f"/api/{user}/tasks", json={"title": f"A secret of {user}"}, headers=bearer(user))
    task: Task = reply.raise_for_status().json()
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

    @pytest.mark.parametrize("name", ["_GET", "_UPDATE", "_COMPLETE", "_DELETE"])
    async def test_a_statement_without_the_owner_condition_is_detected(
        self, client: Client, new_user: Callable[[], str], monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """A positive control of the test above."""
        scoped: list[Statement] = getattr(service, name)
        open_to_all = [each._replace(sql=each.sql.replace("tasks.user_id = $", "'' != $")) for each in scoped]
        monkeypatch.setattr(service, name, open_to_all)
        owner = new_user()

        with pytest.raises(AssertionError):
            await Thief(client, new_user(), owner).try_everything(await create(client, owner))


class TestUnderLoad:
    @pytest.fixture
    async def client(self, base_url: str) -> AsyncIterator[Client]:
        limits = httpx.Limits(max_connections=CONNECTIONS)
        async with Client(base_url=base_url, timeout=60, limits=limits) as client:
            yield client

    async def test_concurrent_toggles_are_all_applied_and_concurrent_lists_do_not_mix_users(
        self, client: Client, new_user: Callable[[], str]
    ) -> None:
        ada, bob = new_user(), new_user()
        task, _ = await create(client, ada), await create(client, bob)
        path = f"/api/{ada}/tasks/{task['id']}"

        async def toggle() -> Task:
            toggled: Task = (await client.patch(f"{path}/complete")).raise_for_status().json()
            for user in (ada, bob):
                assert {task["user_id"] for task in (await client.get(f"/api/{user}/tasks")).json()} == {user}
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

"""Calls of tools in both revisions of the protocol beside REST: users are not mixed, no change is lost, shares hold."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from operator import itemgetter
from typing import Any, Final
from uuid import uuid4

import asyncpg
import httpx
import orjson
import pytest

from app.core.config import Settings
from tests.calls import ERAS, send
from tests.conftest import Serve
from tests.support import SECRET, bearer, make_settings, serving, until

pytestmark = pytest.mark.unmeasured

Task = dict[str, Any]

REST: Final = "REST"
USERS: Final = 10
OF_EACH: Final = 5  # times that each user sends each request, in each revision or by REST
APPENDS: Final = 4


class User:
    """Sends requests by REST, and calls of tools."""

    def __init__(self, client: httpx.AsyncClient, name: str) -> None:
        self.name = name
        self._client = client
        self._token = bearer(name)

    async def rest(self, method: str, path: str = "", *, json: Any = None, **headers: str) -> Any:
        url = f"/api/{self.name}/tasks{path}"
        return await self._client.request(method, url, json=json, headers=self._token | headers)

    async def call(self, era: str, tool: str, **arguments: Any) -> Any:
        return await send(self._client, self._token, era, tool, **arguments)

    async def add(self, by: str, title: str) -> str:
        """Returns the id of a new task."""
        if by == REST:
            return str((await self.rest("POST", json={"title": title})).raise_for_status().json()["id"])
        return str((await self.call(by, "add_task", title=title))["task_id"])

    async def list(self, by: str) -> list[Task]:
        if by == REST:
            return list((await self.rest("GET")).raise_for_status().json())
        return list((await self.call(by, "list_tasks"))["tasks"])

    async def rename(self, by: str, task: Task, title: str, *, is_checked: bool = True) -> bool:
        """Returns whether it was renamed, or whether it had changed since."""
        version = task["updated_at"] if is_checked else None
        if by == REST:
            condition = {"If-Match": f'"{version}"'} if version else {}
            return bool((await self.rest("PUT", f"/{task['id']}", json={"title": title}, **condition)).is_success)
        renamed = await self.call(by, "update_task", task_id=task["id"], title=title, if_updated_at=version)
        return isinstance(renamed, dict) or not renamed.startswith("precondition-failed: ")


@pytest.fixture
async def client(configure: Callable[..., Settings], serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    """A client with as many connections as it has requests."""
    limits = httpx.Limits(max_connections=None)
    async with (
        serve(configure(auth_jwt_secret=SECRET, mcp="on", database_pool_timeout=60)) as url,
        httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client,
    ):
        yield client


async def test_500_calls_at_once_beside_rest_are_all_applied_and_mix_no_users(
    client: httpx.AsyncClient, new_user: Callable[[], str]
) -> None:
    users = [User(client, new_user()) for _ in range(USERS)]
    shared = {user: await user.add(REST, "shared") for user in users}
    seen: set[tuple[str, str]] = set()  # users, and the owners of the tasks in their lists

    async def look(user: User, by: str) -> None:
        seen.update((user.name, task["user_id"]) for task in await user.list(by))

    async def toggle(user: User) -> Task:
        reply = await user.rest("PATCH", f"/{shared[user]}/complete")
        return dict(reply.raise_for_status().json())

    def requests_of(user: User, number: int) -> list[Awaitable[Any]]:
        """Ten calls of tools and two requests by REST."""
        adds = [user.add(by, f"{by} {number}") for by in (REST, *ERAS)]
        looks = [look(user, by) for by in (REST, *ERAS)]
        sets = [user.call(era, "complete_task", task_id=shared[user]) for era in ERAS * 3]
        return [*adds, *looks, *sets]

    requests = [each for user in users for number in range(OF_EACH) for each in requests_of(user, number)]
    toggles = [toggle(user) for _ in range(OF_EACH) for user in users]
    toggling = asyncio.gather(*toggles)
    await asyncio.gather(*requests)
    toggled = await toggling

    assert seen == {(user.name, user.name) for user in users}
    added = sorted(["shared", *(f"{by} {number}" for by in (REST, *ERAS) for number in range(OF_EACH))])
    for user in users:
        assert sorted(task["title"] for task in await user.list(REST)) == added
        versions = sorted((task for task in toggled if task["user_id"] == user.name), key=itemgetter("updated_at"))
        assert len({task["updated_at"] for task in versions}) == OF_EACH
        # A tool can set it between two toggles, so both may have cleared it. But no toggle sets it again.
        assert not any(earlier["completed"] and later["completed"] for earlier, later in pairwise(versions))


@pytest.mark.parametrize("is_checked", [True, False], ids=["with the version", "positive control"])
async def test_no_change_is_lost_if_tools_and_rest_send_the_version_that_they_have_seen(
    client: httpx.AsyncClient, new_user: Callable[[], str], *, is_checked: bool
) -> None:
    user = User(client, new_user())
    await user.add(REST, "-")

    async def append(by: str, letter: str) -> None:
        for _ in range(APPENDS):
            renamed = False
            while not renamed:
                [task] = await user.list(by)
                renamed = await user.rename(by, task, task["title"] + letter, is_checked=is_checked)

    await asyncio.gather(*(append(by, letter) for by, letter in zip([REST, *ERAS] * 2, "abcdef", strict=True)))

    [task] = await user.list(REST)
    assert (sorted(task["title"]) == sorted("-" + "abcdef" * APPENDS)) is is_checked


@pytest.mark.parametrize("era", ERAS)
async def test_calls_of_a_user_that_are_stuck_do_not_keep_others_waiting_and_those_above_its_share_are_overloaded(
    dsn: str, database: asyncpg.Connection, new_user: Callable[[], str], era: str
) -> None:
    limits = {"database_pool_size": 2, "database_pool_timeout": 60, "concurrency_limit": 8}
    settings = make_settings(dsn, auth_jwt_secret=SECRET, mcp="on", **limits)
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        greedy, other = User(client, new_user()), User(client, new_user())
        task = await greedy.add(era, "a")
        async with database.transaction():
            await database.execute("SELECT FROM tasks WHERE user_id = $1 FOR UPDATE", greedy.name)
            calls = [asyncio.create_task(greedy.call(era, "update_task", task_id=task, title="b")) for _ in range(50)]
            await until(lambda: sum(call.done() for call in calls) == 45)  # one runs, and four wait
            of_greedy = await greedy.rest("GET")
            of_other = [await other.rest("POST", json={"title": "c"}), await other.rest("GET")]
            called = await other.call(era, "list_tasks")
        outcomes = await asyncio.gather(*calls)

    assert [of_greedy.status_code, *(reply.status_code for reply in of_other)] == [503, 201, 200]
    assert [task["title"] for task in called["tasks"]] == ["c"]
    refused = Counter(outcome for outcome in outcomes if isinstance(outcome, str))
    assert refused == {f"overloaded: {of_greedy.json()['detail']}": 45}


@pytest.mark.parametrize("era", ERAS)
async def test_a_page_of_long_tasks_has_at_most_64_kib_and_the_cursor_leads_to_the_rest(
    client: httpx.AsyncClient, database: asyncpg.Connection, new_user: Callable[[], str], era: str
) -> None:
    """REST allows 1 MiB. A call would write each emoji of it in 24 bytes, and few clients show a model that much."""
    user, insert = (
        User(client, new_user()),
        "INSERT INTO tasks (user_id, id, title, description) VALUES ($1, $2, 'a', $3)",
    )
    ids = [uuid4() for _ in range(8)]
    await database.executemany(
        insert, [(user.name, each, text * 5_000) for each, text in zip(ids, "😀\x01" * 4, strict=True)]
    )

    pages: list[list[Task]] = []
    cursor = ""
    while cursor is not None:
        page = await user.call(era, "list_tasks", cursor=cursor)
        pages, cursor = [*pages, page["tasks"]], page["next_cursor"]

    assert sorted(task["id"] for page in pages for task in page) == sorted(map(str, ids))
    assert max(len(orjson.dumps(page)) for page in pages) <= 65_536

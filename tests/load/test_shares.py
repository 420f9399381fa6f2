"""A user who sends too many requests does not keep the others waiting."""

import asyncio
from collections import Counter
from collections.abc import Callable

import asyncpg
import httpx
import pytest

from app.core.config import Settings
from app.core.database import USER
from app.http.authorization import public
from tests.server.support import CLOSE, Connection, head, waits_for_a_lock
from tests.support import SECRET, bearer, make_settings, serving, until

pytestmark = pytest.mark.unmeasured


@pytest.mark.parametrize("authentication", [{"auth_jwt_secret": SECRET}, {}], ids=["on", "off"])
async def test_a_user_whose_requests_are_stuck_gets_503_and_the_others_are_served(
    dsn: str, database: asyncpg.Connection, new_user: Callable[[], str], authentication: dict[str, str]
) -> None:
    async def send(user: str, method: str, path: str = "", title: str | None = None) -> httpx.Response:
        json = {"title": title} if title else None
        return await client.request(method, f"/api/{user}/tasks{path}", json=json, headers=bearer(user))

    settings = make_settings(dsn, database_pool_size=2, database_pool_timeout=60, concurrency_limit=8, **authentication)
    greedy, other = new_user(), new_user()
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        path = "/" + (await send(greedy, "POST", title="a")).json()["id"]
        async with database.transaction():
            await database.execute("SELECT FROM tasks WHERE user_id = $1 FOR UPDATE", greedy)
            updates = [asyncio.create_task(send(greedy, "PUT", path, "b")) for _ in range(20)]
            await waits_for_a_lock(database)
            await until(lambda: sum(update.done() for update in updates) == 15)  # one runs, and four wait
            of_greedy = await send(greedy, "GET")
            of_other = [await send(other, "POST", title="c"), await send(other, "GET")]
        replies = await asyncio.gather(*updates)

    assert of_greedy.status_code == 503
    assert [reply.status_code for reply in of_other] == [201, 200]
    assert Counter(reply.status_code for reply in replies) == {200: 5, 503: 15}


async def test_a_public_request_behind_one_of_a_user_on_the_same_connection_does_not_use_their_share(
    settings: Settings,
) -> None:
    async def share() -> str:
        return USER.get()

    async with serving(settings, extend=lambda app: app.get("/share")(public(share))) as url:
        connection = Connection(url)
        await connection.send(head(b"GET", b"/api/ada/tasks") + head(b"GET", b"/share", CLOSE))
        [_, reply] = await connection.end()

    assert reply.json() == ""

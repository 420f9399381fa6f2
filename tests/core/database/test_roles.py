"""Settings of the database's role, which another program may have made: migrations and operations work as without."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import httpx
import pytest
from anyio import to_thread
from sqlalchemy import make_url

from app.core.database.migrations import migrate
from tests.support import connected, execute, make_settings, new_database, serving

TASKS: Final = "/api/ada/tasks"
TITLES: Final = [r"a\b%_'c\\", "Beta", "gamma"]
NOT_DEFAULT: Final = "SELECT count(*) FROM pg_settings WHERE source = 'user'"
SCHEMA: Final = (
    "SELECT nspname::text FROM pg_namespace n JOIN pg_class c ON n.oid = relnamespace AND c.oid = 'tasks'::regclass"
)


@pytest.fixture
def empty(dsn: str) -> Iterator[str]:
    """An empty database with a role `odd`."""
    with new_database(dsn, "roles") as empty:
        execute(empty, "CREATE ROLE odd LOGIN")
        yield empty
    execute(dsn, "DROP ROLE odd")


@pytest.mark.parametrize(
    ("settings", "schema"),
    [
        (["TimeZone = 'Asia/Kolkata'", "DateStyle = 'German, DMY'", "standard_conforming_strings = off"], "public"),
        (["default_transaction_isolation = 'serializable'", "search_path = own"], "own"),
        (['search_path = "$user", public'], "odd"),
    ],
    ids=lambda given: given[-1] if isinstance(given, list) else given,
)
async def test_migrations_and_operations_work_whatever_the_role_has_set(
    empty: str, settings: list[str], schema: str
) -> None:
    odd = make_url(empty).set(username="odd").render_as_string(hide_password=False)
    async with connected(empty) as admin:
        await admin.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}; GRANT ALL ON SCHEMA {schema} TO odd")
        for setting in settings:
            await admin.execute(f"ALTER ROLE odd SET {setting}")
    await to_thread.run_sync(migrate, odd)

    async with serving(make_settings(odd)) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        created = [await create(client, title) for title in TITLES]
        assert await create(client, TITLES[0]) == created[0]
        assert await pages(client) == created
        assert (await client.get(TASKS, params={"search": TITLES[0].upper()})).json() == created[:1]
        changed = await change(client, created[0])

    async with connected(odd) as connection:
        assert await connection.fetchval(NOT_DEFAULT) == len(settings)
        assert await connection.fetchval(SCHEMA) == schema
        stored = await connection.fetchval("SELECT updated_at FROM tasks WHERE title = 'changed'")
        assert stored == datetime.fromisoformat(changed["updated_at"])


async def create(client: httpx.AsyncClient, title: str) -> dict[str, Any]:
    reply = await client.post(TASKS, json={"title": title}, headers={"Idempotency-Key": title})
    assert reply.status_code == 201, reply.text
    task: dict[str, Any] = reply.json()
    return task


async def pages(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """The list in the order of the times, one task on each page."""
    reply = await client.get(TASKS, params={"sort": "updated_at", "limit": 1})
    tasks: list[dict[str, Any]] = reply.json()
    while "next" in reply.links:
        reply = await client.get(reply.links["next"]["url"])
        tasks += reply.json()
    return tasks


async def change(client: httpx.AsyncClient, task: dict[str, Any]) -> dict[str, Any]:
    """Change the title with a condition that holds, then with the same one, which holds no longer."""
    condition = {"If-Match": f'"{task["updated_at"]}"'}
    path = f"{TASKS}/{task['id']}"
    replies = [await client.put(path, json={"title": "changed"}, headers=condition) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [200, 412]
    changed: dict[str, Any] = replies[0].json()
    return changed

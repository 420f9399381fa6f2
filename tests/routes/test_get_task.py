"""GET /api/{user_id}/tasks/{task_id}. See test_missing_tasks.py for tasks that do not exist."""

from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from sqlalchemy import make_url

from tests.support import SECRET, make_settings, serving


async def test_a_read_returns_the_created_task_and_changes_nothing(
    client: httpx.AsyncClient, path: str, task: dict[str, Any]
) -> None:
    replies = [await client.get(path) for _ in range(2)]

    assert [reply.status_code for reply in replies] == [200, 200]
    assert replies[0].headers["Content-Type"] == "application/json"
    assert [reply.json() for reply in replies] == [task, task]


@pytest.mark.parametrize("spelled", [str.upper, str.title])
async def test_task_ids_are_case_insensitive(
    client: httpx.AsyncClient, tasks: str, task: dict[str, Any], spelled: Callable[[str], str]
) -> None:
    assert (await client.get(f"{tasks}/{spelled(task['id'])}")).json() == task


@pytest.mark.parametrize(
    ("stored", "sent"),
    [
        ("2026-11-22 09:30:00Z", "2026-11-22T09:30:00.000000Z"),
        ("2026-11-22 19:30:00.000001+02", "2026-11-22T17:30:00.000001Z"),
        ("0001-01-01 00:00:00Z", "0001-01-01T00:00:00.000000Z"),
        ("9999-12-31 23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
        ("10000-01-01 00:00:00Z", "10000-01-01T00:00:00.000000Z"),
        ("0044-03-15 12:00:00Z BC", "0044-03-15T12:00:00.000000Z BC"),
        ("infinity", "infinity"),
        ("-infinity", "-infinity"),
    ],
)
async def test_times_have_six_fraction_digits_and_a_z(
    database: asyncpg.Connection, client: httpx.AsyncClient, path: str, task: dict[str, Any], *, stored: str, sent: str
) -> None:
    change = "UPDATE tasks SET created_at = $1::text::timestamptz, updated_at = $1::text::timestamptz WHERE id = $2"
    await database.execute(change, stored, UUID(task["id"]))

    assert (await client.get(path)).json() == task | {"created_at": sent, "updated_at": sent}


@pytest.fixture
async def elsewhere(dsn: str, database: asyncpg.Connection) -> AsyncIterator[str]:
    """The address of a service whose database role has another time zone and other date styles."""
    await database.execute(f"CREATE ROLE elsewhere LOGIN PASSWORD '{SECRET}'")
    await database.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON tasks TO elsewhere")
    for name, value in {"TimeZone": "Asia/Kolkata", "DateStyle": "German, DMY", "IntervalStyle": "iso_8601"}.items():
        await database.execute(f"ALTER ROLE elsewhere SET {name} = '{value}'")
    own = make_url(dsn).set(username="elsewhere", password=SECRET).render_as_string(hide_password=False)
    async with serving(make_settings(own)) as url:
        yield url
    await database.execute("DROP OWNED BY elsewhere; DROP ROLE elsewhere")


async def test_times_do_not_depend_on_the_time_zone_and_date_style_of_the_role(
    elsewhere: str, client: httpx.AsyncClient, tasks: str, task: dict[str, Any]
) -> None:
    path = f"{elsewhere}{tasks}"
    made = (await client.post(path, json={"title": "Made elsewhere"})).json()
    changed = (await client.patch(f"{path}/{made['id']}/complete")).json()

    assert (await client.get(f"{path}/{task['id']}")).json() == task
    assert (await client.get(path)).json() == (await client.get(tasks)).json() == [changed, task]
    assert changed["created_at"] == made["created_at"]
    assert task["created_at"] < made["created_at"] == made["updated_at"] < changed["updated_at"]

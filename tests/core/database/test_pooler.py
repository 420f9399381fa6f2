"""The service behind Debian's PgBouncer with two server connections. `make ci` also runs other tests behind it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import literal, make_url
from sqlmodel import select

from app.core.database import migrations
from app.core.database.migrations import migrate
from app.core.errors import StartupError
from app.routes.deps import Session
from tests.servers import PgBouncer, pgbouncer
from tests.support import execute, make_settings, new_database, serving

pytestmark = pytest.mark.ci

BACKEND: Final = Path(migrations.__file__).parents[3]
# The settings that PgBouncer applies for each client itself.
ITS_OWN: Final = {"application_name", "client_encoding", "DateStyle", "standard_conforming_strings", "TimeZone"}
SETTINGS: Final = "SELECT name FROM pg_settings WHERE source = 'session'"
STATE: Final = """
    SELECT 'lock' FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'
    UNION ALL SELECT 'statement' FROM pg_prepared_statements
    UNION ALL SELECT 'table' FROM pg_class WHERE relpersistence = 't' AND pg_table_is_visible(oid)
"""

# Prints the name of a statement that a process prepares.
PREPARE: Final = """
import asyncio, sys
from app.core.database import Database, Statement

async def main():
    database = Database(sys.argv[1], pool_size=1, pool_timeout=10, concurrency_limit=10, prepares=True)
    print(*(name for [name] in await database.fetch(Statement("SELECT name FROM pg_prepared_statements", (), True))))
    await database.close()

asyncio.run(main())
"""

NewUser = Callable[[], str]


async def select_title(title: str, session: Session) -> str:
    return (await session.exec(select(literal(title)))).one()


@pytest.fixture
def bouncer(dsn: str, tmp_path: Path) -> Iterator[PgBouncer]:
    with pgbouncer(tmp_path / "pgbouncer", dsn) as bouncer:
        yield bouncer


@asynccontextmanager
async def client_of(bouncer: PgBouncer, **others: Any) -> AsyncIterator[httpx.AsyncClient]:
    def extend(app: FastAPI) -> None:
        app.get("/api/{user_id}/titles/{title}")(select_title)

    settings = make_settings(f"{bouncer.dsn}?pgbouncer=true", **others)
    async with serving(settings, extend) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


async def use(client: httpx.AsyncClient, user: str) -> list[httpx.Response]:
    """Have a user create, list, read, change, complete and delete a task, and use a session. Returns the replies."""
    tasks = f"/api/{user}/tasks"
    created = await client.post(tasks, json={"title": "Buy oat milk"})
    task = f"{tasks}/{created.json().get('id', '019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa')}"
    return [
        created,
        await client.get(tasks),
        await client.get(task),
        await client.put(task, json={"title": "Buy two"}),
        await client.patch(f"{task}/complete"),
        await client.get(f"/api/{user}/titles/{user}"),
        await client.delete(task),
    ]


async def use_at_once(client: httpx.AsyncClient, new_user: NewUser) -> list[httpx.Response]:
    """Have 16 users do so at the same time."""
    served = await asyncio.gather(*(use(client, new_user()) for _ in range(16)))
    return [reply for replies in served for reply in replies]


class TestPreparedStatements:
    def test_two_processes_use_different_statement_names(self, dsn: str) -> None:
        """With equal names, a pooler could run the statement of another client: a DELETE instead of a SELECT."""
        command = [sys.executable, "-c", PREPARE, dsn]
        first, second = (
            subprocess.check_output(command, env=os.environ | {"PYTHONPATH": str(BACKEND)}) for _ in range(2)
        )

        assert b"stmt" in first
        assert first != second


async def test_the_service_leaves_no_session_state_behind_and_such_state_would_be_found(
    bouncer: PgBouncer, new_user: NewUser
) -> None:
    async with client_of(bouncer) as client:
        replies = await use_at_once(client, new_user)
    assert {reply.status_code for reply in replies} == {201, 200, 204}
    assert await left_behind(bouncer.dsn) == set()

    async with AsyncExitStack() as stack:
        other = await asyncpg.connect(bouncer.dsn, statement_cache_size=0)
        stack.push_async_callback(other.close)
        await other.execute("SET statement_timeout = '7s'; CREATE TEMPORARY TABLE mine (); PREPARE it AS SELECT 1")
    assert await left_behind(bouncer.dsn) == {"statement_timeout", "table", "statement"}


async def left_behind(dsn: str) -> set[str]:
    """Returns the session state of the pooler's two server connections. A transaction holds each of them meanwhile."""
    found: set[str] = set()
    async with AsyncExitStack() as stack:
        for _ in range(2):
            connection = await asyncpg.connect(dsn, statement_cache_size=0)
            stack.push_async_callback(connection.close)
            await stack.enter_async_context(connection.transaction())
            found |= {name for [name] in await connection.fetch(SETTINGS)} - ITS_OWN
            found |= {kind for [kind] in await connection.fetch(STATE)}
    return found


def test_services_may_migrate_through_the_pooler_at_the_same_time(dsn: str, bouncer: PgBouncer) -> None:
    command = [sys.executable, "-m", "alembic", "--config", str(BACKEND.parent / "alembic.ini"), "upgrade", "head"]
    with new_database(dsn, "pooled") as empty:
        url = make_url(bouncer.dsn).set(database="pooled", query={"pgbouncer": "true"})
        environment = os.environ | {"DATABASE_URL": url.render_as_string(hide_password=False)}
        services = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        for service in services:
            _, errors = service.communicate(timeout=60)
            assert service.returncode == 0, errors

        assert execute(empty, "SELECT count(*) FROM tasks") == [(0,)]


class TestStatementMode:
    @pytest.fixture
    def bouncer(self, dsn: str, tmp_path: Path) -> Iterator[PgBouncer]:
        with pgbouncer(tmp_path / "pgbouncer", dsn, pool_mode="statement") as bouncer:
            yield bouncer

    async def test_every_operation_works_in_parallel_and_a_session_is_unavailable(
        self, bouncer: PgBouncer, new_user: NewUser
    ) -> None:
        async with client_of(bouncer) as client:
            replies = await use_at_once(client, new_user)

        of_sessions = [reply for reply in replies if "/titles/" in reply.url.path]
        assert {reply.json()["type"] for reply in of_sessions} == {"urn:problem-type:database-unavailable"}
        assert {reply.status_code for reply in replies if reply not in of_sessions} == {201, 200, 204}

    def test_a_migration_ends_at_once_and_says_what_to_set(self, bouncer: PgBouncer) -> None:
        with pytest.raises(
            StartupError, match=r"statement pooling mode; if this is a pooler, set DATABASE_URL_UNPOOLED"
        ):
            migrate(f"{bouncer.dsn}?pgbouncer=true")

"""The service behind Debian's PgBouncer without prepared statements: 16 users on two server connections."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Final, Literal

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import literal, make_url
from sqlmodel import select

from app.core.config import Settings
from app.core.database import migrations
from app.core.database.migrations import migrate
from app.routes.deps import Session
from tests.servers import PgBouncer, pgbouncer
from tests.support import execute, make_settings, new_database, serving, until

BACKEND: Final = Path(migrations.__file__).parents[3]
ROOT: Final = BACKEND.parent
USERS: Final = 16
# The statuses of the operations of `use`, in order.
DONE: Final = (201, 200, 200, 200, 200, 204)
UNAVAILABLE: Final = "urn:problem-type:database-unavailable"
# The settings that PgBouncer applies for each client itself.
ITS_OWN: Final = {"application_name", "client_encoding", "DateStyle", "standard_conforming_strings", "TimeZone"}
SETTINGS: Final = "SELECT name FROM pg_settings WHERE source = 'session'"
STATE: Final = """
    SELECT 'lock' FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'
    UNION ALL SELECT 'statement' FROM pg_prepared_statements
    UNION ALL SELECT 'cursor' FROM pg_cursors WHERE name <> ''
    UNION ALL SELECT 'channel' FROM pg_listening_channels()
    UNION ALL SELECT 'table' FROM pg_class WHERE relpersistence = 't' AND pg_table_is_visible(oid)
"""

# Prints the names of the statements that a process prepares.
PREPARE: Final = """
import asyncio, sys
from sqlalchemy import column, select, table
from app.core.database import Database, statement

async def main():
    database = Database(sys.argv[1], pool_size=1, pool_timeout=10, concurrency_limit=10, prepares=True)
    await database.check()
    names = statement(select(column("name")).select_from(table("pg_prepared_statements")), reads=True)
    print(*(name for [name] in await database.fetch(names)))
    await database.close()

asyncio.run(main())
"""

NewUser = Callable[[], str]

_numbers = count(1)


@pytest.fixture
def bouncer(dsn: str, tmp_path: Path) -> Iterator[PgBouncer]:
    with pgbouncer(tmp_path / "pgbouncer", dsn) as bouncer:
        yield bouncer


@pytest.fixture
async def pooled(bouncer: PgBouncer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service whose connection string names the pooler."""
    async with connected(f"{bouncer.dsn}?pgbouncer=true") as client:
        yield client


@asynccontextmanager
async def connected(dsn: str, *, prepares: Literal["auto", "on", "off"] = "auto") -> AsyncIterator[httpx.AsyncClient]:
    settings = make_settings(dsn, database_prepared_statements=prepares)
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=15) as client:
        yield client


async def use(client: httpx.AsyncClient, user: str, rounds: int) -> list[httpx.Response]:
    """Have a user create, list, read, change, complete and delete tasks. Returns the replies."""
    tasks = f"/api/{user}/tasks"
    replies = []
    for number in range(rounds):
        created = await client.post(tasks, json={"title": f"Task {number}"})
        task = f"{tasks}/{created.json().get('id', '019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa')}"
        replies += [
            created,
            await client.get(tasks),
            await client.get(task),
            await client.put(task, json={"title": f"Task {number}, changed"}),
            await client.patch(f"{task}/complete"),
            await client.delete(task),
        ]
    return replies


async def use_at_once(client: httpx.AsyncClient, new_user: NewUser, rounds: int) -> list[httpx.Response]:
    """Have 16 users do so at the same time."""
    served = await asyncio.gather(*(use(client, new_user(), rounds) for _ in range(USERS)))
    return [reply for replies in served for reply in replies]


def statuses(replies: list[httpx.Response]) -> Counter[int]:
    return Counter(reply.status_code for reply in replies)


def all_done(rounds: int) -> Counter[int]:
    return Counter(DONE * rounds * USERS)


class TestPreparedStatements:
    @pytest.mark.parametrize(
        ("prepares", "query"),
        [("auto", "?pgbouncer=true"), ("off", ""), ("off", "?pgbouncer=false")],
    )
    async def test_16_users_get_no_error_without_prepared_statements(
        self,
        bouncer: PgBouncer,
        new_user: NewUser,
        prepares: Literal["auto", "off"],
        query: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        async with connected(f"{bouncer.dsn}{query}", prepares=prepares) as client:
            replies = await use_at_once(client, new_user, rounds=5)

        assert statuses(replies) == all_done(rounds=5)
        assert "DATABASE_PREPARED_STATEMENTS" not in caplog.text

    async def test_prepared_statements_fail_as_unavailable_and_the_log_says_why(
        self, bouncer: PgBouncer, new_user: NewUser, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with connected(f"{bouncer.dsn}?pgbouncer=true", prepares="on") as client:
            replies = await use_at_once(client, new_user, rounds=5)

        failed = [reply for reply in replies if reply.status_code >= 500]
        assert failed
        assert {(reply.status_code, reply.json()["type"]) for reply in failed} == {(503, UNAVAILABLE)}
        assert all("Retry-After" in reply.headers for reply in failed)
        assert "DATABASE_PREPARED_STATEMENTS" in caplog.text

    def test_two_processes_use_different_statement_names(self, dsn: str) -> None:
        """With equal names, a pooler could run the statement of another client: a DELETE instead of a SELECT."""
        first, second = (prepared_by_a_process(dsn) for _ in range(2))

        assert first
        assert second
        assert first & second == set()


def prepared_by_a_process(dsn: str) -> set[str]:
    command = [sys.executable, "-c", PREPARE, dsn]
    environment = os.environ | {"PYTHONPATH": str(BACKEND)}
    ended = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return set(ended.stdout.split())


class TestSessions:
    async def test_the_service_leaves_no_session_state_behind(
        self, bouncer: PgBouncer, pooled: httpx.AsyncClient, new_user: NewUser
    ) -> None:
        await use_at_once(pooled, new_user, rounds=2)

        assert await left_behind(bouncer.dsn) == set()

    async def test_a_session_leaves_no_session_state_behind(self, bouncer: PgBouncer, user: str) -> None:
        async def select_title(title: str, session: Session) -> str:
            return (await session.exec(select(literal(title)))).one()

        def extend(app: FastAPI) -> None:
            app.get("/api/{user_id}/titles/{title}")(select_title)

        settings = make_settings(f"{bouncer.dsn}?pgbouncer=true")
        async with serving(settings, extend) as url, httpx.AsyncClient(base_url=f"{url}/api/{user}/titles") as client:
            replies = await asyncio.gather(*(client.get(str(number)) for number in range(50)))

        assert [reply.json() for reply in replies] == [str(number) for number in range(50)]
        assert await left_behind(bouncer.dsn) == set()

    async def test_session_state_that_a_client_leaves_behind_is_found(self, bouncer: PgBouncer) -> None:
        client = await asyncpg.connect(bouncer.dsn, statement_cache_size=0)
        await client.execute("SET statement_timeout = '7s'; CREATE TEMPORARY TABLE mine (); PREPARE it AS SELECT 1")
        await client.close()

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


class TestRestart:
    @pytest.mark.parametrize("end", [PgBouncer.stop, PgBouncer.kill])
    async def test_the_service_recovers_from_a_restart_of_the_pooler(
        self, bouncer: PgBouncer, pooled: httpx.AsyncClient, new_user: NewUser, end: Callable[[PgBouncer], None]
    ) -> None:
        replies: list[httpx.Response] = []
        over = asyncio.Event()

        async def use_until_over() -> None:
            while not over.is_set():
                replies.extend(await use(pooled, new_user(), rounds=1))

        async with asyncio.TaskGroup() as group:
            for _ in range(USERS):
                group.create_task(use_until_over())
            for _ in range(3):
                await until(lambda: replies and replies[-1].is_success)
                await asyncio.to_thread(end, bouncer)
                await until(lambda: replies[-1].status_code == 503)
                await asyncio.to_thread(bouncer.start)
                async with asyncio.timeout(5):
                    await until(lambda: replies[-1].is_success)
            over.set()

        assert statuses(replies).keys() <= {*DONE, 404, 503}
        assert {reply.json()["type"] for reply in replies if reply.status_code == 503} <= {
            UNAVAILABLE,
            "urn:problem-type:outcome-unknown",
        }
        assert statuses(await use_at_once(pooled, new_user, rounds=2)) == all_done(rounds=2)


class TestSaturation:
    @pytest.fixture
    def bouncer(self, dsn: str, tmp_path: Path) -> Iterator[PgBouncer]:
        with pgbouncer(tmp_path / "pgbouncer", dsn, query_wait_timeout="1") as bouncer:
            yield bouncer

    async def test_requests_are_answered_while_every_server_connection_is_held(
        self, pooled: httpx.AsyncClient, new_user: NewUser, path: str, database: asyncpg.Connection
    ) -> None:
        async def held() -> bool:
            return bool(await database.fetchval("SELECT count(*) = 2 FROM pg_locks WHERE NOT granted"))

        lock = database.transaction()
        await lock.start()
        await database.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", path.rpartition("/")[2])
        async with asyncio.TaskGroup() as group:
            holders = [group.create_task(pooled.put(path, json={"title": "Wait"})) for _ in range(2)]
            await until(held)
            replies = await use_at_once(pooled, new_user, rounds=1)
        await lock.rollback()
        replies += [holder.result() for holder in holders]

        refused = [reply for reply in replies if not reply.is_success and reply.status_code != 404]
        assert refused
        assert statuses(refused).keys() == {503}
        assert all("Retry-After" in reply.headers for reply in refused)
        assert statuses(await use_at_once(pooled, new_user, rounds=2)) == all_done(rounds=2)


class TestMigrations:
    @pytest.fixture
    def empty(self, dsn: str, bouncer: PgBouncer) -> Iterator[str]:
        """An empty database behind the pooler."""
        name = f"pooled_{next(_numbers)}"
        with new_database(dsn, name):
            yield make_url(bouncer.dsn).set(database=name).render_as_string(hide_password=False)

    def test_migrations_run_through_the_pooler(self, dsn: str, empty: str) -> None:
        migrate(f"{empty}?pgbouncer=true")

        direct = make_url(dsn).set(database=make_url(empty).database).render_as_string(hide_password=False)
        assert execute(direct, "SELECT count(*) FROM tasks") == [(0,)]

    def test_services_may_migrate_through_the_pooler_at_the_same_time(self, empty: str) -> None:
        names = {name.upper() for name in Settings.model_fields}
        environment = {name: value for name, value in os.environ.items() if name not in names}
        command = [sys.executable, "-m", "alembic", "--config", str(ROOT / "alembic.ini"), "upgrade", "head"]
        services = [
            subprocess.Popen(
                command,
                env=environment | {"DATABASE_URL": f"{empty}?pgbouncer=true"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]

        for service in services:
            _, errors = service.communicate(timeout=60)
            assert service.returncode == 0, errors

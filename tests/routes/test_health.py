"""Health: the state in which the service last saw its database."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg
import httpx
import pytest
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.schema import CreateTable
from sqlmodel import SQLModel

from app import __version__
from app.core.database.migrations import migrate
from app.server.embedded import embedded_postgres
from tests.support import LATIN1, connected, make_settings, new_database, serving, until

LIVE: Final = "/health/live"
READY: Final = "/health/ready"
TASKS: Final = "/api/ada/tasks"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a database that the tests may stop."""
    directory = tmp_path_factory.mktemp("health") / "postgres"
    with embedded_postgres(directory) as dsn:
        migrate(dsn)
    return directory


@pytest.fixture
def own(dsn: str) -> Iterator[str]:
    """A database that only one service uses."""
    with new_database(dsn, "health") as own:
        migrate(own)
        yield own


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.core.database.faults._PROBE_DELAYS", (0.05,))


@asynccontextmanager
async def client_of(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a separate service."""
    async with serving(make_settings(dsn)) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


async def until_ready(client: httpx.AsyncClient) -> None:
    async def is_ready() -> bool:
        return (await client.get(READY)).is_success

    await until(is_ready)


def assert_unavailable(reply: httpx.Response) -> None:
    assert reply.status_code == 503
    assert reply.headers["content-type"] == "application/problem+json"
    assert int(reply.headers["retry-after"]) > 0
    assert reply.json()["type"] == "urn:problem-type:database-unavailable"


class TestWithDatabase:
    async def test_a_service_that_has_just_started_is_live_and_ready(self, dsn: str) -> None:
        async with client_of(dsn) as client:
            live, ready = await client.get(LIVE), await client.get(READY)

        assert (live.status_code, live.json()) == (200, {"status": "live", "version": __version__})
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})

    @pytest.mark.parametrize(
        "change",
        [
            "DROP TABLE tasks CASCADE",
            "ALTER TABLE tasks DROP COLUMN description",
            "ALTER TABLE tasks RENAME title TO name",
        ],
    )
    async def test_without_the_tables_of_this_release_a_service_is_not_ready_and_requests_are_503(
        self, own: str, change: str
    ) -> None:
        """DATABASE_URL may name another database than DATABASE_URL_UNPOOLED, where the migrations ran."""
        async with connected(own) as connection:
            await connection.execute(change)
        async with client_of(own) as client:
            replies = [await client.get(READY), await client.get(TASKS), await client.post(TASKS, json={"title": "a"})]

        for reply in replies:
            assert_unavailable(reply)

    async def test_a_service_whose_database_is_made_again_in_another_encoding_is_not_ready_and_requests_are_503(
        self, own: str, database: asyncpg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        elephant = {"title": "Feed the \U0001f418"}
        async with client_of(own) as client:
            assert (await client.post(TASKS, json=elephant)).status_code == 201
            await database.execute("DROP DATABASE health WITH (FORCE)")
            await database.execute(f"CREATE DATABASE health TEMPLATE {LATIN1}")
            async with connected(own) as connection:
                for table in SQLModel.metadata.tables.values():
                    await connection.execute(str(CreateTable(table).compile(dialect=dialect())))  # type: ignore[no-untyped-call]
            replies = [await client.post(TASKS, json=elephant), await client.get(READY)]

        for reply in replies:
            assert_unavailable(reply)
        reason = "DATABASE_URL: the database has the encoding LATIN1; create it with ENCODING 'UTF8'"
        assert f"database unavailable: {reason}" in caplog.messages

    async def test_a_health_request_runs_no_query(self, own: str, database: asyncpg.Connection) -> None:
        """A database that is queried all the time is never suspended."""
        queries = "SELECT pid, query_start, backend_xmin FROM pg_stat_activity WHERE datname = 'health'"
        async with client_of(own) as client:
            before = await database.fetch(queries)
            for path in [LIVE, READY] * 10:
                assert (await client.get(path)).status_code == 200
            assert await database.fetch(queries) == before != []

            assert (await client.get(TASKS)).status_code == 200  # this request runs a query
            assert await database.fetch(queries) != before


class TestWithoutDatabase:
    async def test_readiness_reports_an_outage_and_recovers_without_another_request(self, directory: Path) -> None:
        with embedded_postgres(directory) as dsn:
            pass

        async with client_of(dsn) as client:  # a service may start before its database
            assert_unavailable(await client.get(READY))

            with embedded_postgres(directory):
                await until_ready(client)
                assert (await client.get(TASKS)).status_code == 200

            assert_unavailable(await client.get(TASKS))
            assert_unavailable(await client.get(READY))
            assert (await client.get(LIVE)).status_code == 200

            with embedded_postgres(directory):
                await until_ready(client)
                assert (await client.get(TASKS)).status_code == 200

"""A session whose connection is lost, or whose commit is not answered. Nothing else is in its database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest
from sqlalchemy import column, insert, select, table, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.database import Database
from app.core.errors import (
    ConflictError,
    DatabaseUnavailableError,
    InvalidRequestError,
    OutcomeUnknownError,
    StatementError,
)
from tests.core.database.support import SELECT_PID, SLEEP, driver_of
from tests.faults import FaultProxy
from tests.support import execute, until


class Base(SQLModel, registry=registry()):
    """Its tables are not those of the application."""


class Item(Base, table=True):
    name: str = Field(primary_key=True)


Stored = Callable[[], Awaitable[list[str]]]


@pytest.fixture(scope="module", autouse=True)
def _tables(own_dsn: str) -> None:
    execute(own_dsn, "CREATE TABLE item (name text PRIMARY KEY)")


@pytest.fixture
async def db(make_database: Callable[..., Database], proxy: FaultProxy) -> Database:
    return make_database(proxy.dsn)


@asynccontextmanager
async def failing(db: Database, error: type[Exception]) -> AsyncIterator[AsyncSession]:
    """Yields a session that must end with the error."""
    with pytest.raises(error):
        async with db.session() as session:
            yield session


async def add(session: AsyncSession, name: str) -> None:
    session.add(Item(name=name))
    await session.flush()


class TestLostConnection:
    async def test_a_connection_that_is_lost_within_a_statement_after_a_savepoint_is_an_outage_and_nothing_is_stored(
        self, db: Database, proxy: FaultProxy, stored: Stored, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with failing(db, DatabaseUnavailableError) as session:
            async with session.begin_nested():
                session.add(Item(name="lost"))
            proxy.cut(1)
            await session.exec(SELECT_PID)

        assert "database unavailable: ConnectionDoesNotExistError 08003" in caplog.messages
        await until(lambda: db.usable)
        assert await stored() == []

    async def test_a_connection_that_is_lost_between_statements_is_unavailable(
        self, db: Database, server: asyncpg.Connection, stored: Stored
    ) -> None:
        async with failing(db, DatabaseUnavailableError) as session:
            await add(session, "lost")
            driver = await driver_of(session)
            await server.execute("SELECT pg_terminate_backend($1, 10000)", driver.get_server_pid())
            await until(driver.is_closed)

        assert await stored() == []

    async def test_a_column_whose_type_was_changed_is_unavailable_once(
        self, db: Database, server: asyncpg.Connection
    ) -> None:
        async def read() -> None:
            async with db.session() as session:
                await session.scalar(select(column("a")).select_from(table("changing")))

        await server.execute("CREATE TABLE changing (a varchar(10))")
        await read()
        await server.execute("ALTER TABLE changing ALTER a TYPE text")

        with pytest.raises(DatabaseUnavailableError):
            await read()
        await read()

    async def test_a_deadline_within_the_block_rolls_back(self, db: Database, stored: Stored) -> None:
        async with failing(db, StatementError) as session:
            await add(session, "lost")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await session.exec(SLEEP)

        assert await stored() == []


class TestUnknownOutcome:
    async def test_the_outcome_of_a_commit_that_is_not_answered_is_unknown(
        self, db: Database, proxy: FaultProxy, stored: Stored
    ) -> None:
        async with failing(db, OutcomeUnknownError) as session:
            await add(session, "stored")
            proxy.cut(1)

        assert await stored() == ["stored"]

    async def test_the_outcome_is_unknown_when_a_fault_follows_a_commit_in_the_block(
        self, db: Database, proxy: FaultProxy, stored: Stored
    ) -> None:
        async with failing(db, OutcomeUnknownError) as session:
            await add(session, "stored")
            await session.commit()
            proxy.cut(1)
            await session.exec(SELECT_PID)

        assert await stored() == ["stored"]


class TestBlock:
    async def test_an_object_can_be_read_and_refreshed_after_a_commit_in_the_block(
        self, db: Database, stored: Stored
    ) -> None:
        async with db.session() as session:
            item = Item(name="stored")
            session.add(item)
            await session.commit()
            assert item.name == "stored"
            await session.refresh(item)

        assert await stored() == ["stored"]

    @pytest.mark.parametrize("use_orm", [True, False])
    async def test_a_block_that_swallows_a_violation_raises_at_its_end(
        self, db: Database, stored: Stored, *, use_orm: bool
    ) -> None:
        async with failing(db, StatementError) as session:
            await add(session, "lost")
            with pytest.raises(IntegrityError):
                await (add(session, "lost") if use_orm else session.exec(insert(Item).values(name="lost")))

        assert await stored() == []

    @pytest.mark.parametrize(
        ("state", "expected"),
        [
            *((state, ConflictError) for state in ("23001", "23503", "23505", "23P01")),
            *(
                (state, InvalidRequestError)
                for state in ("22000", "22001", "22003", "22007", "22008", "22009", "22021")
            ),
            *((state, InvalidRequestError) for state in ("22P02", "22P05", "2201W", "2201X", "23514")),
            ("22012", StatementError),
        ],
    )
    async def test_the_sqlstate_decides_whether_a_value_is_to_blame(
        self, db: Database, state: str, expected: type[Exception]
    ) -> None:
        async with failing(db, expected) as session:
            await session.scalar(text(f"DO $$BEGIN RAISE 's3cret' USING ERRCODE = '{state}'; END$$"))

"""SQLAlchemy on the connections of the service: types, JSON, and what it sends to the server."""

from collections.abc import Callable

import pytest
from sqlalchemy import JSON, cast, literal, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import select

from app.core.database import Database, Statement
from tests.core.database.support import SELECT_PID, pid_of_fetch
from tests.faults import FaultProxy
from tests.support import connected


async def test_json_is_decoded_for_a_session_and_stays_text_for_fetch_on_the_same_connection(db: Database) -> None:
    async with db.session() as session:
        for document in ({"name": "Zoë \U0001f95b", "deep": [1, 2.5, None, {"a": True}]}, None):
            for type_ in (JSON, JSONB):
                assert await session.scalar(select(cast(literal(document, type_), type_))) == document
        pid = (await session.exec(SELECT_PID)).one()

    [[value]] = await db.fetch(Statement("SELECT $1::json", ("value",), reads=True), value='{"a": 1}')
    assert value == '{"a": 1}'
    assert await pid_of_fetch(db) == pid


async def test_a_first_session_asks_nothing_before_its_first_statement(
    proxy: FaultProxy, make_database: Callable[..., Database]
) -> None:
    async with connected(proxy.dsn) as driver, driver.transaction():
        await driver.fetch("SELECT 1")
        of_driver = proxy.messages

        async with make_database(proxy.dsn).session() as session:
            await session.scalar(text("SELECT 1"))
            assert proxy.messages == 2 * of_driver


@pytest.mark.parametrize("prepares", [True, False])
async def test_a_session_keeps_prepared_statements_only_where_the_pooler_allows_it(
    make_database: Callable[..., Database], *, prepares: bool
) -> None:
    db = make_database(prepares=prepares)
    for _ in range(2):
        async with db.session() as session:
            await session.scalar(text("SELECT 'twice'"))

    kept = "SELECT count(*) FROM pg_prepared_statements WHERE statement = $$SELECT 'twice'$$"
    [[count]] = await db.fetch(Statement(kept, (), reads=True))
    assert (count > 0) is prepares

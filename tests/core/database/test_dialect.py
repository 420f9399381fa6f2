"""SQLAlchemy on the connections of the service: types, JSON, and what it sends to the server."""

from collections.abc import Callable
from functools import partial
from typing import Any

import asyncpg
import pytest
from sqlalchemy import (
    JSON,
    cast,
    literal,
    make_url,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.database import Database, Statement
from tests.core.database.support import SELECT_PID, pid_of_fetch
from tests.faults import FaultProxy, fault_proxy


async def test_json_is_decoded_for_a_session_and_stays_text_for_fetch_on_the_same_connection(db: Database) -> None:
    async with db.session() as session:
        for document in ({"name": "Zoë \U0001f95b", "deep": [1, 2.5, None, {"a": True}]}, None):
            for type_ in (JSON, JSONB):
                assert await session.scalar(select(cast(literal(document, type_), type_))) == document
        pid = (await session.exec(SELECT_PID)).one()

    [[value]] = await db.fetch(Statement("SELECT $1::json", ("value",), reads=True), value='{"a": 1}')
    assert value == '{"a": 1}'
    assert await pid_of_fetch(db) == pid


async def messages_until_first_row(proxy: FaultProxy, session: Callable[[], Any]) -> int:
    """Returns how many times the client has sent something on a new connection when it has its first row."""
    before = proxy.messages
    async with session() as opened:
        assert (await (await opened.connection()).execute(text("SELECT 1"))).scalar_one() == 1
    return proxy.messages - before


async def test_a_first_session_asks_nothing_before_its_first_statement(
    own_dsn: str, make_database: Callable[..., Database]
) -> None:
    with fault_proxy(own_dsn) as proxy:
        database = make_database(proxy.dsn)
        stock = create_async_engine(
            make_url(proxy.dsn).set(drivername="postgresql+asyncpg", query={}), connect_args={"ssl": False}
        )
        connection = await asyncpg.connect(proxy.dsn)
        async with connection.transaction():
            await connection.fetch("SELECT 1")
        of_driver = proxy.messages
        await connection.close()

        assert await messages_until_first_row(proxy, database.session) == of_driver
        assert await messages_until_first_row(proxy, partial(AsyncSession, stock)) > of_driver + 5
        await stock.dispose()


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

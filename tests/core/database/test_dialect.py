"""SQLAlchemy on the connections of the service: types, JSON, and what it sends to the server."""

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from ipaddress import IPv4Address
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import (
    ARRAY,
    JSON,
    Column,
    DateTime,
    Integer,
    LargeBinary,
    Numeric,
    Text,
    cast,
    literal,
    make_url,
    text,
)
from sqlalchemy.dialects.postgresql import INET, JSONB
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.database import Database, Statement
from tests.core.database.support import SELECT_PID, pid_of_fetch
from tests.faults import FaultProxy, fault_proxy
from tests.support import execute


class Colour(Enum):
    RED = "r"
    BLUE = "b"


class Base(SQLModel, registry=registry()):
    """Its tables are not those of the application."""


class Sample(Base, table=True):
    """One column of each kind."""

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    document: dict[str, Any] | None = Field(sa_column=Column(JSON))
    binary_document: list[Any] = Field(sa_column=Column(JSONB))
    colour: Colour
    price: Decimal = Field(sa_column=Column(Numeric(20, 5)))
    ratio: float
    day: date
    moment: datetime = Field(sa_column=Column(DateTime(timezone=True)))
    length: timedelta
    numbers: list[int] = Field(sa_column=Column(ARRAY(Integer)))
    names: list[str] = Field(sa_column=Column(ARRAY(Text)))
    content: bytes = Field(sa_column=Column(LargeBinary))
    address: Any = Field(sa_column=Column(INET))


async def test_columns_come_back_as_the_types_that_python_has_for_them(own_dsn: str, db: Database) -> None:
    document = {"name": "Zoë \U0001f95b", "deep": [1, 2.5, None, {"a": True}]}
    values: dict[str, Any] = {
        "id": uuid4(),
        "document": document,
        "binary_document": [document, "x"],
        "colour": Colour.BLUE,
        "price": Decimal("12345678901234.56780"),
        "ratio": 0.1,
        "day": date(2026, 2, 28),
        "moment": datetime(2026, 2, 28, 23, 59, 59, 999_999, UTC),
        "length": timedelta(days=3, microseconds=1),
        "numbers": [1, -(2**31)],
        "names": ["a,b", "{}", ""],
        "content": b"\0\xff",
        "address": IPv4Address("192.0.2.1"),
    }
    columns: Any = Sample.__table__.c  # type: ignore[attr-defined]
    by_document = columns.document["deep"][0].as_integer() == 1
    by_binary = columns.binary_document.contains(["x"])
    await asyncio.to_thread(execute, own_dsn, "CREATE TYPE colour AS ENUM ('RED', 'BLUE')")
    async with db.session() as session:
        await (await session.connection()).run_sync(Base.metadata.create_all)
        session.add(Sample(**values))
    async with db.session() as session:
        loaded = (await session.exec(select(Sample).where(by_document, by_binary))).one()

    assert {name: getattr(loaded, name) for name in values} == values
    assert isinstance(loaded.id, UUID)
    assert [type(getattr(loaded, name)) for name in [*values][1:]] == [*map(type, [*values.values()][1:])]


async def test_json_is_decoded_for_a_session_and_stays_text_for_fetch_on_the_same_connection(db: Database) -> None:
    async with db.session() as session:
        assert await session.scalar(select(cast(literal({"a": None}, JSON), JSON))) == {"a": None}
        assert await session.scalar(select(cast(literal(None, JSON), JSON))) is None
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

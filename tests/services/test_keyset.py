"""Keyset pagination over a table of any kind of key: no row is lost or repeated, and a made-up cursor does no harm."""

import enum
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, OID, dialect
from sqlalchemy.schema import CreateTable
from sqlmodel import AutoString

from app.core.database import Database, Statement, statement
from app.core.errors import InvalidRequestError, StatementError
from app.models.task import time_text
from app.services.cursors import Position, SortKey, _with_checksum, decode_cursor, encode_cursor, page_after, sort_key
from tests.support import execute, new_database


class Size(enum.Enum):
    """The database sorts by the order of the labels, which is not that of the names."""

    SMALL = "s"
    MEDIUM = "m"
    LARGE = "l"


class Crossed(enum.Enum):
    """The name of each member is the label of the other."""

    one = "two"
    two = "one"


_DATES: Final = [
    *(
        "-infinity",
        "4713-01-01 BC",
        "0001-12-31 BC",
        "0001-01-01",
        "2026-01-31",
        "9999-12-31",
        "10000-01-01",
        "infinity",
    ),
]
_TIMES: Final = [
    *("-infinity", "4713-01-01T00:00:00.000000Z BC", "0001-12-31T00:00:00.000000Z BC", "0001-01-01T00:00:00.000000Z"),
    *("2026-01-31T00:00:00.000000Z", "9999-12-31T23:59:59.999998Z", "9999-12-31T23:59:59.999999Z"),
    *("10000-01-01T00:00:00.000000Z", "infinity"),
]
_UUIDS: Final = (UUID(int=0), UUID(int=1), UUID(int=2**128 - 1))
_NUMBERS: Final = [*map(Decimal, ("-Infinity", "-0.5", "1E-16383", "1.1", "1.10", "1E+3", "9E+131071", "NaN"))]
_CROSSED: Final = sa.Enum(Crossed, name="crossed", values_callable=lambda members: [each.value for each in members])
# Types of keys, with values in ascending order.
KINDS: Final[dict[str, tuple[Any, Sequence[Any]]]] = {
    "timestamptz": (sa.DateTime(timezone=True), _TIMES),
    "timestamp": (sa.DateTime(), _TIMES),
    "date": (sa.Date(), _DATES),
    "text": (sa.Text(), ["", "'", "A", "None", "a", "é", "\ufffd", "\U0010ffff"]),
    "str of SQLModel": (AutoString(), ["", "a", "aaaaa", "b"]),
    "smallint": (sa.SmallInteger(), [-(2**15), -1, 0, 2**15 - 1]),
    "bigint": (sa.BigInteger(), [-(2**63), 0, 2**63 - 1]),
    "boolean": (sa.Boolean(), [False, True]),
    "numeric": (sa.Numeric(), _NUMBERS),
    "enum": (sa.Enum(Size, name="size"), ["SMALL", "MEDIUM", "LARGE"]),
    "enum of values": (_CROSSED, ["two", "one"]),
    "enum of texts": (sa.Enum("b", "a", name="letters", native_enum=False), ["a", "b"]),
    "uuid": (sa.Uuid(), _UUIDS),
    "uuid as text": (sa.Uuid(as_uuid=False), _UUIDS),
}
META: Final = sa.MetaData()
TABLES: Final = {
    kind: sa.Table(
        f"by {kind}",
        META,
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("always", type_, nullable=False),
        sa.Column("maybe", type_),
    )
    for kind, (type_, _) in KINDS.items()
}
SCOPE: Final = "scope"


class Order(NamedTuple):
    """How a list is sorted: by which kind of key, whether it may be NULL, and which way."""

    kind: str
    nullable: bool = False
    descending: bool = False

    @property
    def column(self) -> Any:
        return TABLES[self.kind].c.maybe if self.nullable else TABLES[self.kind].c.always

    @property
    def key(self) -> SortKey:
        return sort_key(self.column)


_each_kind = pytest.mark.parametrize("kind", KINDS)


def page(order: Order, *, resumed: bool, in_nulls: bool) -> Statement:
    """Returns the statement for a page as a service makes it."""
    column, row_id = order.column, TABLES[order.kind].c.id
    shown = sa.cast(column, sa.Text) if isinstance(column.type, sa.Enum | sa.Uuid) else column
    if isinstance(column.type, sa.DateTime | sa.Date):
        shown = time_text(column)
    query = page_after(
        sa.select(row_id, shown), order.key, row_id, descending=order.descending, resumed=resumed, in_nulls=in_nulls
    )
    return statement(query.limit(sa.bindparam("limit")), reads=True)


async def fetch_page(db: Database, order: Order, after: Position | None, limit: int) -> list[asyncpg.Record]:
    in_nulls = after is not None and after.key is None
    found: dict[str, Any] = {"after_id": after.id} if after else {}
    if after and not in_nulls:
        found["after_key"] = after.key
    return await db.fetch(page(order, resumed=bool(after), in_nulls=in_nulls), **found, limit=limit)


async def walk(db: Database, order: Order, size: int) -> list[UUID]:
    """Returns the ids of all pages of `size` rows, each begun with the cursor of the one before."""
    ids: list[UUID] = []
    after = None
    while True:
        records = await fetch_page(db, order, after, size + 1)
        ids += [record[0] for record in records[:size]]
        if len(records) <= size:
            return ids
        row_id, key = records[size - 1]
        after = decode_cursor(encode_cursor(Position(key, row_id), "sort", SCOPE), "sort", SCOPE, order.key)


@pytest.fixture(scope="module")
def own_dsn(dsn: str) -> Iterator[str]:
    """A database with a table for each kind."""
    with new_database(dsn, "keysets") as own:
        execute(own, "CREATE TYPE size AS ENUM ('SMALL', 'MEDIUM', 'LARGE')")
        execute(own, "CREATE TYPE crossed AS ENUM ('two', 'one')")
        for table in TABLES.values():
            execute(own, str(CreateTable(table).compile(dialect=dialect())))  # type: ignore[no-untyped-call]
            execute(own, f'CREATE INDEX ON "{table.name}" (always, id)')
        yield own


@pytest.fixture
async def db(own_dsn: str) -> AsyncIterator[Database]:
    db = Database(own_dsn, pool_size=1, pool_timeout=10, concurrency_limit=10)
    yield db
    await db.close()


@pytest.fixture
async def direct(own_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    # A page must need no sort and no filter, however few rows there are.
    never = dict.fromkeys(("enable_seqscan", "enable_bitmapscan", "enable_sort"), "off")
    connection = await asyncpg.connect(own_dsn, server_settings={"plan_cache_mode": "force_generic_plan", **never})
    yield connection
    await connection.close()


async def fill(direct: asyncpg.Connection, order: Order, keys: Sequence[Any]) -> list[UUID]:
    """Replace all rows by one for each key. Returns the ids in the plain order."""
    await direct.execute(f'DELETE FROM "by {order.kind}"')  # noqa: S608
    cast = f"::text::{order.kind}" if isinstance(order.column.type, sa.DateTime | sa.Date) else ""
    sql = f'INSERT INTO "by {order.kind}" (id, always, maybe) VALUES ($1, $2{cast}, $3{cast})'  # noqa: S608
    rows = [(UUID(int=number), keys[0] if key is None else key, key) for number, key in enumerate(keys)]
    await direct.executemany(sql, rows)
    way = "DESC" if order.descending else "ASC"
    sql = f'SELECT id FROM "by {order.kind}" ORDER BY {order.column.name} {way} NULLS LAST, id {way}'  # noqa: S608
    return [record[0] for record in await direct.fetch(sql)]


class TestWalk:
    @_each_kind
    @pytest.mark.parametrize("nullable", [False, True])
    @pytest.mark.parametrize("descending", [False, True])
    async def test_the_pages_of_any_size_have_each_row_once_in_the_plain_order(
        self, db: Database, direct: asyncpg.Connection, kind: str, *, nullable: bool, descending: bool
    ) -> None:
        order, values = Order(kind, nullable, descending), KINDS[kind][1]
        keys = [*values, values[0], values[0], *reversed(values), *([None] * 3 if nullable else [])]
        ids = await fill(direct, order, keys)

        assert [await walk(db, order, size) for size in (1, 2, 3, len(keys) - 1, len(keys))] == [ids] * 5

    async def test_a_position_behind_the_ties_would_lose_them(self, db: Database, direct: asyncpg.Connection) -> None:
        """A control: the walks above have ties to lose."""
        order = Order("text")
        await fill(direct, order, ["a"] * 4)

        positions = [None, Position("a", UUID(int=1)), Position("a", UUID(int=2**128 - 1))]
        assert [len(await fetch_page(db, order, after, 9)) for after in positions] == [4, 2, 0]

    @_each_kind
    async def test_a_page_after_a_key_that_is_never_null_is_one_range_of_an_index(
        self, direct: asyncpg.Connection, kind: str
    ) -> None:
        for order in (Order(kind), Order(kind, descending=True)):
            query = page(order, resumed=True, in_nulls=False)
            position = decoded(encode_cursor(Position(KINDS[kind][1][0], UUID(int=1)), "sort", SCOPE), order.key)
            assert position
            arguments = query.arguments({"after_key": position.key, "after_id": position.id, "limit": 10})

            plan = json.loads(await direct.fetchval(f"EXPLAIN (FORMAT JSON) {query.sql}", *arguments))[0]["Plan"]

            scan = plan["Plans"][0]
            assert scan["Node Type"] in {"Index Scan", "Index Only Scan"}
            assert scan["Index Cond"].startswith("(ROW(always")
            assert "Filter" not in scan


def decoded(cursor: str, key: SortKey) -> Position | None:
    """Returns None for a refusal."""
    with suppress(InvalidRequestError):
        return decode_cursor(cursor, "sort", SCOPE, key)
    return None


# What PostgreSQL or asyncpg would refuse of one kind or another, or read as something else.
ODD: Final = [
    *("", "\0", "a\0", "None", "True", "1", "-1", "1_0", "\u0661", " 1 ", "1.0", "1e3", "0x1", "9" * 5000),
    *(str(2**15), str(2**63), str(2**63 - 1), str(-(2**63)), str(-(2**63) - 1)),
    *("NaN", "sNaN", "NaN123", "-Infinity", "1E+131071", "1E+131072", "1E-16383", "1E-16384"),
    *("99999.99", "0.001", "0E+999999", "0E-99999", "1E+999999999", "9E-999999999", "1" * 200 + "E+131000"),
    *("infinity", "-infinity", "now", "0001-01-01", "9999-12-31", "2026-W01-1", "20260101", "2026-02-30"),
    *("0001-01-01T00:00:00", "9999-12-31T23:59:59.999999", "2026-01-01T00:00:00Z", "2026-01-01T24:00:00"),
    *("2026-01-01 00:00:00+23:59:59.999999", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00"),
    *("0000-01-01T00:00:00.000000Z", "0001-02-29T00:00:00.000000Z BC", "0002-02-29T00:00:00.000000Z BC"),
    *("4713-01-01T00:00:00.000000Z BC", "4714-12-31T00:00:00.000000Z BC", "2026-02-30T00:00:00.000000Z"),
    *("294276-12-31T23:59:59.999999Z", "294277-01-01T00:00:00.000000Z", "2026-01-01T24:00:00.000000Z", "infinity BC"),
    *("SMALL", "small", "Size.SMALL", "s", "one", "two", "Crossed.one", "b", "ab"),
    *("0" * 32, "{00000000-0000-0000-0000-000000000000}", "urn:uuid:" + "f" * 32, "g" * 32),
]


async def begins_or_is_refused(db: Database, order: Order, position: Position) -> bool:
    try:
        return await fetch_page(db, order, position, 1) is not None
    except StatementError as error:
        return error.refusal is not None


class TestForgedCursor:
    @_each_kind
    async def test_a_cursor_with_an_odd_key_is_refused_or_begins_a_page(self, db: Database, kind: str) -> None:
        order = Order(kind, nullable=True)
        keys = [text.encode() for text in ODD] + [b"\xed\xa0\x80", b"\xc0\x80"]
        for key in (mark + key for key in keys for mark in (b"", b"\xfe", b"\xff")):
            position = decoded(_with_checksum(bytes(16) + key, "sort", SCOPE), order.key)
            assert position is None or await begins_or_is_refused(db, order, position), key

    @_each_kind
    def test_a_cursor_in_the_nulls_is_refused_for_a_key_that_is_never_null(self, kind: str) -> None:
        cursor = encode_cursor(Position(None, UUID(int=1)), "sort", SCOPE)

        assert decoded(cursor, Order(kind).key) is None
        assert decoded(cursor, Order(kind, nullable=True).key) == Position(None, UUID(int=1))


@pytest.mark.parametrize("key", [datetime(9999, 12, 31, tzinfo=UTC), date.min, Size.SMALL])
def test_a_time_or_a_member_of_an_enum_that_is_not_text_is_refused(key: object) -> None:
    with pytest.raises(TypeError, match=r"select the time with time_text\(column\), the enum as Text"):
        encode_cursor(Position(key, UUID(int=1)), "sort", SCOPE)


@pytest.mark.parametrize(
    "type_",
    [sa.JSON(), sa.LargeBinary(), ARRAY(sa.Text), sa.Time(), sa.Float(), sa.Float(asdecimal=True), OID()],
    ids=repr,
)
def test_a_type_that_a_cursor_cannot_carry_is_refused_by_its_name_and_column(type_: Any) -> None:
    column = sa.Table("items", sa.MetaData(), sa.Column("thing", type_)).c.thing

    with pytest.raises(TypeError, match=r"a cursor cannot carry .+ of items\.thing: sort by another column"):
        sort_key(column)

"""Keyset pagination over a table of any kind of key: no row is lost or repeated, and a made-up cursor does no harm."""

import enum
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from functools import cache
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    PickleType,
    SmallInteger,
    String,
    Table,
    Text,
    Time,
    Uuid,
    bindparam,
    cast,
    select,
)
from sqlalchemy.dialects.postgresql import BIT, HSTORE, INET, INT4RANGE, JSONB, OID
from sqlalchemy.orm import registry
from sqlmodel import AutoString, Field, SQLModel, col

from app.core.database import Database, Statement, statement
from app.core.errors import InvalidRequestError
from app.services import cursors
from app.services.cursors import Position, SortKey, decode_cursor, encode_cursor, page_after, sort_key
from tests.support import execute, new_database

Rows = list[tuple[UUID, Any]]


class Size(enum.Enum):
    """The database sorts by the order of the labels, which is not that of the names."""

    SMALL = "s"
    MEDIUM = "m"
    LARGE = "l"


class Crossed(enum.Enum):
    """The name of each member is the label of the other."""

    one = "two"
    two = "one"


def _labels(members: Any) -> list[str]:
    return [member.value for member in members]


class Kind(NamedTuple):
    """A type of key, the type's name in the database, and values: few, so that there are ties, and any."""

    type: Any
    sql: str
    few: Sequence[Any]
    any: st.SearchStrategy[Any]


_LAST: Final = datetime(9999, 12, 31, 23, 59, 59, 999_999)  # noqa: DTZ001  # so asyncpg reads and writes `infinity`
_TEXTS: Final = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
_ZONES: Final = st.integers(-1_439, 1_439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_NUMBERS: Final = st.decimals(allow_nan=False, allow_infinity=False, places=20) | st.integers().map(Decimal)
KINDS: Final[dict[str, Kind]] = {
    "timestamptz": Kind(
        DateTime(timezone=True),
        "timestamptz",
        [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC), _LAST],
        st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=_ZONES),  # noqa: DTZ001  # its bounds have none
    ),
    "timestamp": Kind(
        DateTime(),
        "timestamp",
        [datetime(2026, 1, 1), datetime(2026, 1, 1, 0, 0, 0, 1), _LAST],  # noqa: DTZ001  # it has none
        st.datetimes(),
    ),
    "date": Kind(Date(), "date", [date(2026, 1, 1), date.max, date.min], st.dates()),
    "text": Kind(Text(), "text", ["", "a", "A", "a ", "é", "\ufffd", "\U0010ffff", "None", "'", "%"], _TEXTS),
    "varchar": Kind(String(5), "varchar(5)", ["", "a", "b", "aaaaa"], _TEXTS.map(lambda text: text[:5])),
    "str of SQLModel": Kind(AutoString(), "text", ["", "a", "b", "aaaaa"], _TEXTS),
    "smallint": Kind(SmallInteger(), "smallint", [0, 1, -1], st.integers(-(2**15), 2**15 - 1)),
    "integer": Kind(Integer(), "integer", [0, 1, -1], st.integers(-(2**31), 2**31 - 1)),
    "bigint": Kind(BigInteger(), "bigint", [0, 1, -(2**63), 2**63 - 1], st.integers(-(2**63), 2**63 - 1)),
    "boolean": Kind(Boolean(), "boolean", [False, True], st.booleans()),
    "numeric": Kind(
        Numeric(),
        "numeric",
        [
            *map(
                Decimal,
                ("0", "-0.0", "1.1", "1.10", "1E+3", "1000", "1E-16383", "9E+131071", "NaN", "Infinity", "-Infinity"),
            )
        ],
        _NUMBERS,
    ),
    "money": Kind(
        Numeric(6, 2), "numeric(6, 2)", [Decimal("0.00"), Decimal("9999.99")], st.decimals(-9999, 9999, places=2)
    ),
    "enum": Kind(Enum(Size, name="size"), "size", ["SMALL", "MEDIUM", "LARGE"], st.sampled_from(["SMALL", "LARGE"])),
    "enum of values": Kind(
        Enum(Crossed, name="crossed", values_callable=_labels),
        "crossed",
        ["one", "two"],
        st.sampled_from(["one", "two"]),
    ),
    "enum of texts": Kind(
        Enum("b", "a", name="letters", native_enum=False), "varchar(1)", ["a", "b"], st.sampled_from(["a", "b"])
    ),
    "uuid": Kind(Uuid(), "uuid", [UUID(int=0), UUID(int=2**128 - 1)], st.uuids()),
    "uuid as text": Kind(Uuid(as_uuid=False), "uuid", [UUID(int=0), UUID(int=2**128 - 1)], st.uuids()),
}
TYPES: Final = (
    "CREATE TYPE size AS ENUM ('SMALL', 'MEDIUM', 'LARGE')",
    "CREATE TYPE crossed AS ENUM ('two', 'one')",
)
META: Final = MetaData()
TABLES: Final = {
    kind: Table(
        f"by {kind}",
        META,
        Column("id", Uuid, primary_key=True),
        Column("always", type_, nullable=False),
        Column("maybe", type_),
    )
    for kind, (type_, *_) in KINDS.items()
}
SCOPE: Final = "scope"


class Order(NamedTuple):
    """How a list is sorted: by which kind of key, whether it may be NULL, and which way."""

    kind: str
    nullable: bool
    descending: bool

    @property
    def column(self) -> Any:
        return TABLES[self.kind].c.maybe if self.nullable else TABLES[self.kind].c.always

    @property
    def key(self) -> SortKey:
        return sort_key(self.column)

    @property
    def sql(self) -> str:
        """The ids of all rows in the plain order."""
        way = "DESC" if self.descending else "ASC"
        return f'SELECT id FROM "by {self.kind}" ORDER BY {self.column.name} {way} NULLS LAST, id {way}'  # noqa: S608


ORDERS: Final = [Order(kind, nullable, way) for kind in KINDS for nullable in (False, True) for way in (False, True)]
_each_order = pytest.mark.parametrize(
    "order", ORDERS, ids=lambda order: f"{order.kind}-{order.nullable}-{order.descending}"
)
_each_kind = pytest.mark.parametrize("kind", KINDS)
_many_examples = settings(
    deadline=None,
    max_examples=300,  # of all orders
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
_few_examples = settings(_many_examples, max_examples=25)  # of each order
_no_deadline = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])


@cache
def page(order: Order, *, resumed: bool, in_nulls: bool) -> Statement:
    """Returns the statement for a page as a service makes it."""
    column, row_id = order.column, TABLES[order.kind].c.id
    shown = cast(column, Text) if isinstance(column.type, Enum | Uuid) else column
    query = page_after(
        select(row_id, shown), order.key, row_id, descending=order.descending, resumed=resumed, in_nulls=in_nulls
    )
    return statement(query.limit(bindparam("limit")), reads=True)


async def fetch_page(db: Database, order: Order, after: Position | None, limit: int) -> list[asyncpg.Record]:
    in_nulls = after is not None and after.key is None
    found: dict[str, Any] = {"after_id": after.id} if after else {}
    if after and not in_nulls:
        found["after_key"] = after.key
    return await db.fetch(page(order, resumed=bool(after), in_nulls=in_nulls), **found, limit=limit)


async def walk(
    db: Database, order: Order, size: int, between: Callable[[], Awaitable[object]] | None = None
) -> list[UUID]:
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
        if between:
            await between()


@pytest.fixture(scope="module")
def own_dsn(dsn: str) -> Iterator[str]:
    """A database with a table for each kind."""
    with new_database(dsn, "keysets") as own:
        for sql in TYPES:
            execute(own, sql)
        for name, kind in KINDS.items():
            execute(
                own, f'CREATE TABLE "by {name}" (id uuid PRIMARY KEY, always {kind.sql} NOT NULL, maybe {kind.sql})'
            )
            execute(own, f'CREATE INDEX ON "by {name}" (always, id)')
        yield own


@pytest.fixture
async def db(own_dsn: str) -> AsyncIterator[Database]:
    db = Database(own_dsn, pool_size=1, pool_timeout=10, concurrency_limit=10)
    yield db
    await db.close()


@pytest.fixture
async def direct(own_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(own_dsn)
    yield connection
    await connection.close()


async def fill(direct: asyncpg.Connection, order: Order, rows: Rows) -> None:
    await direct.execute(f'TRUNCATE "by {order.kind}"')
    await add(direct, order, rows)


async def add(direct: asyncpg.Connection, order: Order, rows: Rows) -> None:
    filler = KINDS[order.kind].few[0]
    sql = f'INSERT INTO "by {order.kind}" (id, always, maybe) VALUES ($1, $2, $3)'  # noqa: S608
    await direct.executemany(sql, [(row_id, filler if key is None else key, key) for row_id, key in rows])


async def ids_of(direct: asyncpg.Connection, order: Order) -> list[UUID]:
    return [record[0] for record in await direct.fetch(order.sql)]


def keys_of(order: Order) -> st.SearchStrategy[Any]:
    few = st.sampled_from(KINDS[order.kind].few)
    return st.none() | few | KINDS[order.kind].any if order.nullable else few | KINDS[order.kind].any


def rows_of(order: Order) -> st.SearchStrategy[Rows]:
    """Ids that are close together too: the order of ties is theirs."""
    ids = st.integers(0, 40).map(lambda number: UUID(int=number)) | st.uuids()
    return st.lists(st.tuples(ids, keys_of(order)), max_size=25, unique_by=lambda row: row[0])


class TestWalk:
    @_many_examples
    @given(st.sampled_from(ORDERS).flatmap(lambda order: st.tuples(st.just(order), rows_of(order))), st.integers(1, 8))
    async def test_the_pages_have_each_row_once_in_the_plain_order(
        self, db: Database, direct: asyncpg.Connection, case: tuple[Order, Rows], size: int
    ) -> None:
        order, rows = case
        await fill(direct, order, rows)

        assert await walk(db, order, size) == await ids_of(direct, order)

    @_each_order
    async def test_pages_of_every_size_meet_the_border_to_the_nulls(
        self, db: Database, direct: asyncpg.Connection, order: Order
    ) -> None:
        few = KINDS[order.kind].few
        keys = [few[0], few[0], few[-1], *([None, None, None] if order.nullable else [])]
        await fill(direct, order, [(UUID(int=number), key) for number, key in enumerate(keys)])

        walks = [await walk(db, order, size) for size in range(1, len(keys) + 1)]

        assert walks == [await ids_of(direct, order)] * len(keys)

    @_many_examples
    @given(
        st.sampled_from(ORDERS).flatmap(lambda order: st.tuples(st.just(order), rows_of(order), rows_of(order))),
        st.integers(1, 4),
        st.lists(st.integers(0, 24), unique=True),
    )
    async def test_rows_that_come_and_go_between_pages_make_no_other_row_vanish_or_appear_twice(
        self, db: Database, direct: asyncpg.Connection, case: tuple[Order, Rows, Rows], size: int, indexes: list[int]
    ) -> None:
        order, rows, others = case
        known = {row_id for row_id, _ in rows}
        coming = [(row_id, key) for row_id, key in others if row_id not in known]
        going = [rows[index][0] for index in indexes if index < len(rows)]
        gone: set[UUID] = set()

        async def change() -> None:
            if coming:
                await add(direct, order, [coming.pop()])
            if going:
                gone.add(going[-1])
                await direct.execute(f'DELETE FROM "by {order.kind}" WHERE id = $1', going.pop())  # noqa: S608

        await fill(direct, order, rows)
        stay_in_order = await ids_of(direct, order)
        seen = await walk(db, order, size, change)

        assert len(seen) == len({*seen})
        assert [row_id for row_id in seen if row_id in known - gone] == [
            row_id for row_id in stay_in_order if row_id not in gone
        ]

    @_each_kind
    async def test_the_row_of_the_cursor_may_be_gone(self, db: Database, direct: asyncpg.Connection, kind: str) -> None:
        order = Order(kind, nullable=True, descending=False)
        key = KINDS[kind].few[0]
        await fill(direct, order, [(UUID(int=number), key if number < 2 else None) for number in range(4)])

        async def empty() -> None:
            await direct.execute(f'DELETE FROM "by {kind}" WHERE id = $1', UUID(int=1))  # noqa: S608

        assert await walk(db, order, 2, empty) == [UUID(int=number) for number in range(4)]

    @_each_kind
    async def test_a_position_that_is_past_the_ties_would_lose_them(
        self, db: Database, direct: asyncpg.Connection, kind: str
    ) -> None:
        """A control: the walks above have ties to lose."""
        order = Order(kind, nullable=False, descending=False)
        key = KINDS[kind].few[0]
        await fill(direct, order, [(UUID(int=number), key) for number in range(4)])

        first = decoded(encode_cursor(Position(key, UUID(int=1)), "sort", SCOPE), order.key)
        assert first
        past = Position(first.key, UUID(int=2**128 - 1))
        assert [len(await fetch_page(db, order, after, 9)) for after in (None, first, past)] == [4, 2, 0]


class TestEnums:
    @pytest.mark.parametrize(("kind", "members"), [("enum", Size), ("enum of values", Crossed)])
    def test_a_member_and_its_label_make_cursors_for_the_same_position(self, kind: str, members: Any) -> None:
        """A Session returns members, `fetch` returns labels."""
        type_ = KINDS[kind].type
        key = Order(kind, nullable=True, descending=False).key

        for member, label in zip(members, type_.enums, strict=True):
            positions = [Position(value, UUID(int=1)) for value in (member, label)]
            decoded = [decode_cursor(encode_cursor(each, "sort", SCOPE), "sort", SCOPE, key) for each in positions]
            assert decoded == [Position(label, UUID(int=1))] * 2


def sealed(content: bytes) -> str:
    """A cursor with this content and a valid checksum. The checksum needs no secret, so anybody can make one."""
    checksum = cursors._checksum(content, "sort", SCOPE)  # noqa: SLF001  # a forged cursor needs it
    return urlsafe_b64encode(checksum + content).rstrip(b"=").decode()


def decoded(cursor: str, key: SortKey, sort: str = "sort", scope: str = SCOPE) -> Position | None:
    """Returns None for a refusal, which has to name the parameter."""
    try:
        return decode_cursor(cursor, sort, scope, key)
    except InvalidRequestError as error:
        refusal = error
    assert [item.pointer for item in refusal.errors] == ["query/cursor"]
    return None


# What PostgreSQL or asyncpg would refuse of one kind or another, or read as something else.
ODD: Final = [
    *("", "\0", "a\0", "None", "null", "True", "true", "1", "0", "-1", "1_0", "\u0661", " 1 ", "1.0", "1e3", "0x1"),
    *(str(2**15), str(2**31), str(-(2**31) - 1), str(2**63), str(2**63 - 1), str(-(2**63) - 1), "9" * 5000),
    *("NaN", "sNaN", "-NaN", "NaN123", "Infinity", "-Infinity", "1E+131071", "1E+131072", "1E-16383", "1E-16384"),
    *("99999.99", "0.001", "0E+999999", "0E-99999", "1E+999999999", "9E-999999999", "1" * 200 + "E+131000"),
    *("infinity", "-infinity", "now", "epoch", "0001-01-01", "9999-12-31", "2026-W01-1", "20260101", "2026-02-30"),
    *(
        "0001-01-01T00:00:00",
        "9999-12-31T23:59:59.999999",
        "2026-01-01T00:00:00Z",
        "2026-01-01 00:00:00+23:59:59.999999",
    ),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00", "2026-01-01T24:00:00"),
    *("SMALL", "small", "Size.SMALL", "s", "one", "two", "Crossed.one", "b", "ab", "TINY"),
    *("00000000000000000000000000000000", "{00000000-0000-0000-0000-000000000000}", "urn:uuid:" + "f" * 32, "g" * 32),
]
KEYS: Final = st.one_of(
    st.sampled_from(ODD).map(str.encode),
    st.sampled_from(ODD).map(lambda text: b"\xfe" + text.encode()),
    st.sampled_from([b"\xff", b"\xfe", b"\xff\xff", b"\xed\xa0\x80", b"\xc0\x80"]),
    st.binary(max_size=40),
    st.text(max_size=40).map(lambda text: text.encode(errors="surrogatepass")),
    st.integers().map(lambda number: str(number).encode()),
    st.decimals().map(lambda number: str(number).encode()),
    st.datetimes(timezones=st.none() | _ZONES).map(lambda moment: str(moment).encode()),
    *(kind.any.map(lambda key: str(key).encode()) for kind in KINDS.values()),
)


class TestRefusals:
    @_each_kind
    @_no_deadline
    @given(data=st.data(), other=st.text())
    def test_a_cursor_of_another_sort_or_scope_is_refused(self, kind: str, data: st.DataObject, other: str) -> None:
        order = Order(kind, nullable=True, descending=False)
        cursor = encode_cursor(Position(data.draw(keys_of(order)), UUID(int=1)), "sort", SCOPE)

        assert decoded(cursor, order.key)
        assert decoded(cursor, order.key, sort="-sort") is None
        assert (decoded(cursor, order.key, scope=other) is None) == (other != SCOPE)

    @pytest.mark.parametrize("nullable", [False, True])
    @pytest.mark.parametrize(
        "other", ["smallint", "bigint", "numeric", "date", "timestamptz", "timestamp", "uuid", "enum"]
    )
    def test_a_cursor_whose_key_is_of_another_type_is_refused(self, other: str, *, nullable: bool) -> None:
        for key in ("oat milk", True, Size.LARGE if other != "enum" else Crossed.one):
            cursor = encode_cursor(Position(key, UUID(int=1)), "sort", SCOPE)

            assert decoded(cursor, Order(other, nullable, descending=False).key) is None

    @pytest.mark.parametrize(
        ("wrong", "kind"), [("2026-01-01 00:00:00+00:00", "timestamp"), ("1.5", "integer"), ("2", "boolean")]
    )
    def test_a_cursor_whose_key_is_of_a_related_type_is_refused(self, wrong: str, kind: str) -> None:
        assert decoded(sealed(bytes(16) + wrong.encode()), Order(kind, nullable=True, descending=False).key) is None

    @_each_kind
    def test_a_cursor_in_the_nulls_is_refused_for_a_key_that_is_never_null(self, kind: str) -> None:
        cursor = encode_cursor(Position(None, UUID(int=1)), "sort", SCOPE)

        assert decoded(cursor, Order(kind, nullable=False, descending=False).key) is None
        assert decoded(cursor, Order(kind, nullable=True, descending=False).key) == Position(None, UUID(int=1))

    @_each_order
    @_few_examples
    @given(key=KEYS)
    async def test_a_made_up_cursor_is_refused_or_begins_a_page(self, db: Database, order: Order, key: bytes) -> None:
        position = decoded(sealed(bytes(16) + key), order.key)

        if position:
            assert await fetch_page(db, order, position, 1) is not None

    @_each_order
    async def test_a_made_up_cursor_with_an_odd_key_is_refused_or_begins_a_page(
        self, db: Database, order: Order
    ) -> None:
        odd = [mark + text.encode() for text in ODD for mark in (b"", b"\xfe", b"\xff")]
        positions = [decoded(sealed(bytes(16) + key), order.key) for key in odd]

        for position in filter(None, positions):
            assert await fetch_page(db, order, position, 1) is not None

    @_each_kind
    @_no_deadline
    @given(st.text() | st.binary().map(lambda raw: urlsafe_b64encode(raw).decode()) | st.binary().map(sealed))
    @example("")
    @example("\ud800")
    @example(sealed(bytes(15)))
    def test_a_text_that_is_no_cursor_is_refused(self, kind: str, cursor: str) -> None:
        key = Order(kind, nullable=True, descending=False).key
        position = decoded(cursor, key)

        assert position is None or cursor == sealed(position.id.bytes + urlsafe_b64decode(cursor + "==")[24:])


class Base(SQLModel, registry=registry()):
    """The models here are not those of the service."""


class Article(Base, table=True):
    """A model with the types that SQLModel chooses."""

    id: UUID = Field(primary_key=True)
    title: str
    lead: str | None
    price: Decimal = Field(max_digits=6, decimal_places=2)
    size: Size
    published: date | None
    parts: list[str] = Field(sa_type=ARRAY(Text))


class TestSortKey:
    @pytest.mark.parametrize(
        "type_",
        [
            *(JSON(), JSONB(), LargeBinary(), Interval(), ARRAY(Text), PickleType(), Time(), Float(), HSTORE(), INET()),
            *(Float(asdecimal=True), Numeric(asdecimal=False), INT4RANGE(), BIT(3), OID()),
        ],
        ids=repr,
    )
    def test_a_type_that_a_cursor_cannot_carry_is_refused_by_its_name_and_column(self, type_: Any) -> None:
        column = Table("items", MetaData(), Column("thing", type_)).c.thing

        with pytest.raises(TypeError, match=r"a cursor cannot carry .+ of items\.thing: sort by another column"):
            sort_key(column)

    @pytest.mark.parametrize(
        ("column", "kind", "nullable"),
        [
            (col(Article.title), str, False),
            (col(Article.lead), str, True),
            (col(Article.price), Decimal, False),
            (col(Article.size), str, False),
            (col(Article.published), date, True),
            (col(Article.id), UUID, False),
        ],
    )
    def test_the_column_of_a_model_tells_its_type_and_whether_it_is_nullable(
        self, column: Any, kind: type, *, nullable: bool
    ) -> None:
        assert sort_key(column) == SortKey(column, kind, nullable)


@pytest.fixture(scope="module")
def filled_dsn(own_dsn: str) -> str:
    """The database with a thousand rows of two keys in each table."""
    for name, kind in KINDS.items():
        execute(own_dsn, f'TRUNCATE "by {name}"')
        sql = f'INSERT INTO "by {name}" SELECT gen_random_uuid(), CASE WHEN n % 2 = 0 THEN $1 ELSE $2 END FROM generate_series(1, 1000) n'  # noqa: S608, E501
        execute(own_dsn, sql.replace("$1", f"$1::{kind.sql}"), kind.few[0], kind.few[1])
        execute(own_dsn, f'ANALYZE "by {name}"')
    return own_dsn


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


class TestPlan:
    @pytest.mark.parametrize("descending", [False, True])
    @_each_kind
    async def test_a_page_after_a_key_that_is_never_null_is_one_range_of_an_index(
        self, filled_dsn: str, kind: str, *, descending: bool
    ) -> None:
        order = Order(kind, nullable=False, descending=descending)
        query = page(order, resumed=True, in_nulls=False)
        key = decode_cursor(
            encode_cursor(Position(KINDS[kind].few[0], UUID(int=1)), "s", SCOPE), "s", SCOPE, order.key
        ).key
        arguments = query.arguments({"after_key": key, "after_id": UUID(int=2**127), "limit": 10})
        connection = await asyncpg.connect(filled_dsn, server_settings={"plan_cache_mode": "force_generic_plan"})
        try:
            [[explained]] = await connection.fetch(f"EXPLAIN (FORMAT JSON) {query.sql}", *arguments)
        finally:
            await connection.close()
        plan = [*nodes(json.loads(explained)[0]["Plan"])]

        assert [node["Node Type"] for node in plan if "Scan" in node["Node Type"]] in (
            ["Index Scan"],
            ["Index Only Scan"],
        )
        assert plan[-1]["Index Cond"].startswith("(ROW(always")
        assert not [node for node in plan if "Sort" in node["Node Type"] or "Filter" in node]

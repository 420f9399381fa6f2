"""What `statement()` refuses when a module is imported, and what it compiles runs with the values that it is given."""

import enum
import re
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
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
    Table,
    Text,
    Uuid,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    except_,
    exists,
    false,
    func,
    intersect,
    literal,
    literal_column,
    null,
    or_,
    select,
    tablesample,
    text,
    true,
    tuple_,
    union,
    union_all,
    update,
    values,
)
from sqlalchemy.dialects.postgresql import INT4RANGE, JSONB, Range, aggregate_order_by, array, distinct_on, insert
from sqlalchemy.orm import registry, with_loader_criteria
from sqlalchemy.schema import CreateTable
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel, col

from app.core.database import Database, statement
from app.core.errors import DatabaseUnavailableError
from tests.support import execute, new_database


class Color(enum.Enum):
    RED = "r"
    GREEN = "g"


class Shouted(TypeDecorator[str]):
    """Text that Python sends in capitals."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, _: Any) -> Any:
        return value and value.upper()


class Whispered(TypeDecorator[str]):
    """Text that Python receives in small letters."""

    impl = Text
    cache_ok = True

    def process_result_value(self, value: Any, _: Any) -> Any:
        return value and value.lower()


class Base(SQLModel, registry=registry()):
    """The models here are not those of the service."""


class Note(Base, table=True):
    """A model with what SQLModel makes of defaults."""

    id: int = Field(primary_key=True)
    body: str | None = None
    pinned: bool = False
    words: int = Field(default_factory=lambda: 7)


META: Final = MetaData()
COLOR: Final = Enum(Color, name="color")
ITEMS: Final = Table(
    "items",
    META,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, server_default="nameless"),
    Column("size", Integer),
    Column("done", Boolean, nullable=False, server_default=false()),
    Column("color", COLOR),
    Column("data", JSON(none_as_null=True)),
    Column("tags", ARRAY(Text)),
    Column("shout", Shouted),
    Column("span", INT4RANGE),
)
COMPUTED: Final = Table(
    "computed",
    META,
    Column("id", Integer),
    Column("constant", Integer, default=3),
    Column("called", Text, default=lambda: "x"),
    Column("touched", Integer, onupdate=4),
    Column("sequel", Integer, default=select(func.max(ITEMS.c.id)).scalar_subquery(), onupdate=func.random()),
)
C: Final = ITEMS.c
SIZED: Final = update(ITEMS).values(size=bindparam("new_size"))
NEW: Final = insert(ITEMS).values(id=bindparam("new_id"))
MARKED: Final = select(C.id).where(C.size == bindparam("mark"))

# What is in the clause, and the clause, a line each.
LITERALS: Final[dict[str, tuple[str, Any]]] = {
    "==": ("'x'", select(C.id).where(C.name == "x")),
    "IS DISTINCT FROM": ("5", select(C.id).where(C.size.is_distinct_from(5))),
    "BETWEEN": ("5", select(C.id).where(C.size.between(bindparam("low"), 5))),
    "LIKE": ("'x'", select(C.id).where(C.name.contains("x"))),
    "tuple": ("5", select(C.id).where(tuple_(C.id, C.size) > tuple_(5, bindparam("low")))),
    "LIMIT": ("10", select(C.id).limit(10)),
    "OFFSET": ("10", select(C.id).offset(10)),
    "FETCH": ("10", select(C.id).fetch(10)),
    "column": ("5", select(literal(5))),
    "cast": ("5", select(cast(5, Text))),
    "function": ("'x'", select(func.coalesce(C.name, "x"))),
    "function in FROM": ("5", select(func.generate_series(bindparam("low"), 5).table_valued("n"))),
    "TABLESAMPLE": ("5", select(tablesample(ITEMS, func.bernoulli(5)).c.id)),
    "CASE": ("5", select(case((C.done, C.size), else_=5))),
    "%": ("2", select(C.size % 2)),
    "ORDER BY": ("1", select(C.id).order_by(C.size + 1)),
    "GROUP BY": ("2", select(func.count()).group_by(C.size % 2)),
    "HAVING": ("2", select(C.name).group_by(C.name).having(func.count() > 2)),
    "DISTINCT ON": ("2", select(C.id).ext(distinct_on(C.size % 2))),
    "window": ("4", select(func.ntile(4).over(order_by=C.id))),
    "ROWS": ("1", select(func.sum(C.size).over(order_by=C.id, rows=(-1, 0)))),
    "FILTER": ("5", select(func.count().filter(C.size > 5))),
    "order of an aggregate": ("1", select(func.array_agg(aggregate_order_by(C.id, C.size + 1)))),
    "JOIN": ("5", select(C.id).join(ITEMS.alias("other"), C.size == 5)),
    "array": ("5", select(array([C.id, 5]))),
    "item of an array": ("2", select(C.tags[2])),
    "item of JSON": ("'x'", select(C.data["x"].as_string())),
    "VALUES": ("5", select(values(column("n", Integer), name="v").data([(5,)]))),
    "subquery": ("5", select(C.id).where(C.id.in_(select(C.id).where(C.size == 5)))),
    "CTE": ("5", select(select(C.id).where(C.size == 5).cte())),
    "UNION": ("5", union(select(C.id), select(C.id).where(C.size == 5))),
    "text()": ("5", select(C.id).where(text("size = :size").bindparams(size=5))),
    "text() with a bindparam": ("5", text("SELECT :size").bindparams(bindparam("size", 5))),
    "bindparam with a value": ("5", select(bindparam("size", 5))),
    "bindparam with None": ("None", select(bindparam("size", None))),
    "required bindparam with a value": ("5", select(bindparam("size", 5, required=True))),
    "bindparam with a function": ("None", select(bindparam("size", callable_=lambda: 5))),
    "INSERT": ("5", NEW.values(size=5)),
    "INSERT of None": ("None", NEW.values(size=None)),
    "INSERT of several rows": ("5", insert(ITEMS).values([{"id": bindparam("a")}, {"id": 5}])),
    "INSERT ... SELECT": ("5", insert(ITEMS).from_select(["id"], select(literal(5)))),
    "DO UPDATE SET": ("5", NEW.on_conflict_do_update(index_elements=["id"], set_={"size": 5})),
    "DO UPDATE WHERE": (
        "5",
        NEW.on_conflict_do_update(index_elements=["id"], set_={"size": C.size}, where=C.size > 5),
    ),
    "ON CONFLICT WHERE": ("5", NEW.on_conflict_do_nothing(index_elements=["id"], index_where=C.size > 5)),
    "UPDATE": ("True", update(ITEMS).values(done=True)),
    "UPDATE of an expression": ("1", update(ITEMS).values(size=C.size + 1)),
    "UPDATE of None": ("None", update(ITEMS).values(size=None)),
    "DELETE": ("5", delete(ITEMS).where(C.id == 5)),
    "RETURNING": ("1", NEW.returning(C.size + 1)),
}


class TestLiterals:
    @pytest.mark.parametrize(("value", "clause"), LITERALS.values(), ids=LITERALS)
    def test_a_literal_is_refused_by_its_name_and_value(self, value: str, clause: Any) -> None:
        with pytest.raises(ValueError, match="is the literal") as caught:
            statement(clause, reads=False)

        problem = re.match(r"(\w+) is the literal (.+): write `bindparam\('(\w+)'\)` and pass", str(caught.value))
        assert problem
        assert problem.group(2) == value
        assert problem.group(1) == problem.group(3)
        assert "use a Session for this statement: " in str(caught.value)

    def test_each_of_several_problems_is_named(self) -> None:
        with pytest.raises(
            ValueError, match=r"is the literal 'x': .+; size_1 is the literal 5: .+; .+ the column color"
        ):
            statement(select(C.color).where(C.name == "x", C.size == 5), reads=True)

    @pytest.mark.parametrize("value", [5, None])
    def test_a_parameter_that_sqlalchemy_would_write_into_the_sql_is_refused(self, value: int | None) -> None:
        given: dict[str, Any] = {"value": value} if value else {}
        clause = select(C.id).where(C.size == bindparam("size", type_=Integer, literal_execute=True, **given))

        with pytest.raises(
            ValueError, match="size would be written into the SQL at each execution: leave out literal_"
        ):
            statement(clause, reads=True)


class TestLists:
    @pytest.mark.parametrize(
        "condition",
        [
            C.id.in_([1, 2]),
            C.id.in_([]),
            C.id.not_in([1]),
            C.id.in_(bindparam("id_1", expanding=True)),
            C.id.in_(bindparam("id_1")),
            tuple_(C.id, C.size).in_(bindparam("id_1")),
        ],
        ids=str,
    )
    def test_a_list_for_in_is_refused_in_favour_of_an_array(self, condition: Any) -> None:
        with pytest.raises(
            ValueError, match=r"(id|param)_1 is a list for IN: write `== any_\(bindparam\('(id|param)_1'"
        ):
            statement(select(C.id).where(condition), reads=True)


# Clauses that may change rows, each as a query of one column of integers.
CHANGES: Final[dict[str, Callable[[], Any]]] = {
    "UPDATE": lambda: select(SIZED.returning(C.id).cte()),
    "DELETE": lambda: select(delete(ITEMS).returning(C.id).cte()),
    "INSERT": lambda: select(NEW.returning(C.id).cte()),
    "INSERT ... SELECT": lambda: select(insert(ITEMS).from_select(["id"], select(C.id)).returning(C.id).cte()),
    "added CTE": lambda: select(C.id).add_cte(delete(ITEMS).cte()),
    "SELECT in text()": lambda: select(text("DELETE FROM items RETURNING id").columns(C.id).cte()),
    "condition in text()": lambda: select(C.id).where(text("lo_unlink(size) = 1")),
    "argument in text()": lambda: select(func.abs(text("lo_unlink(1)"), type_=Integer)),
    "prefix": lambda: select(C.id).prefix_with("DISTINCT"),
}
READS: Final[dict[str, Callable[[], Any]]] = {
    "SELECT": lambda: select(C.id),
    "parameter": lambda: select(C.id).where(C.size == bindparam("size")),
    "model": lambda: select(col(Note.id)),
    "FOR UPDATE": lambda: select(C.id).with_for_update(),
    "UNION": lambda: union_all(select(C.id), select(C.size)),
    "VALUES": lambda: select(values(column("n", Integer)).data([(bindparam("n", type_=Integer),)])),
}
# Queries of one column of integers that have another in them.
AROUND: Final[dict[str, Callable[[Any], Any]]] = {
    "subquery": lambda query: select(query.subquery()),
    "CTE": lambda query: select(query.cte()),
    "added CTE": lambda query: select(C.id).add_cte(query.cte()),
    "CTE of a CTE": lambda query: select(select(query.cte()).cte()),
    "column": lambda query: select(query.scalar_subquery()),
    "EXISTS": lambda query: select(C.id).where(query.exists()),
    "NOT IN": lambda query: select(C.id).where(C.id.not_in(query)),
    "ANY": lambda query: select(C.id).where(C.id == any_(query.scalar_subquery())),
    "tuple": lambda query: select(C.id).where(tuple_(C.id, C.size) > tuple_(query.scalar_subquery(), C.id)),
    "JOIN": lambda query: select(C.id).join(query.subquery(), true()),
    "ON": lambda query: select(C.id).join(ITEMS.alias(), query.exists()),
    "ORDER BY": lambda query: select(C.id).order_by(query.scalar_subquery()),
    "GROUP BY": lambda query: select(func.count()).select_from(ITEMS).group_by(query.scalar_subquery()),
    "HAVING": lambda query: select(func.count()).select_from(ITEMS).having(query.exists()),
    "DISTINCT ON": lambda query: select(C.id).ext(distinct_on(query.scalar_subquery())),
    "LIMIT": lambda query: select(C.id).limit(query.scalar_subquery()),
    "OFFSET": lambda query: select(C.id).offset(query.scalar_subquery()),
    "LIMIT of a UNION": lambda query: union(select(C.id), select(C.size)).limit(query.scalar_subquery()),
    "CASE": lambda query: select(case((query.exists(), C.id), else_=C.size)),
    "cast": lambda query: select(cast(query.scalar_subquery(), Integer)),
    "function": lambda query: select(func.coalesce(query.scalar_subquery(), C.id)),
    "function in FROM": lambda query: select(func.unnest(array([query.scalar_subquery()])).column_valued()),
    "window": lambda query: select(func.sum(C.size).over(partition_by=query.scalar_subquery())),
    "FILTER": lambda query: select(func.count(C.id).filter(query.exists())),
    "aggregate": lambda query: select(func.max(aggregate_order_by(C.id, query.scalar_subquery()))),
    "VALUES": lambda query: select(values(column("n", Integer), name="v").data([(query.scalar_subquery(),)])),
    "CTE of VALUES": lambda query: select(values(column("n", Integer)).data([(query.scalar_subquery(),)]).cte()),
}
BOTH: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "UNION": union,
    "UNION ALL": union_all,
    "INTERSECT": intersect,
    "EXCEPT": except_,
    "OR": lambda one, other: select(C.id).where(or_(one.exists(), other.exists())),
    "FROM": lambda one, other: select(one.subquery().c[0]).select_from(other.subquery()),
    "CTE": lambda one, other: select(one.cte()).add_cte(other.cte()),
}

Query = tuple[Any, bool]  # and whether it may change rows


def _around(queries: st.SearchStrategy[Query]) -> st.SearchStrategy[Query]:
    one = st.builds(lambda put, query: (put(query[0]), query[1]), st.sampled_from([*AROUND.values()]), queries)
    two = st.builds(
        lambda put, one, other: (put(one[0], other[0]), one[1] or other[1]),
        st.sampled_from([*BOTH.values()]),
        queries,
        queries,
    )
    return one | two


READING: Final = st.sampled_from([*READS.values()]).map(lambda make: (make(), False))
CHANGING: Final = st.sampled_from([*CHANGES.values()]).map(lambda make: (make(), True))
QUERIES: Final = st.recursive(READING | CHANGING, _around, max_leaves=5)
_no_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class TestReads:
    @_no_deadline
    @given(QUERIES)
    def test_reads_is_accepted_exactly_for_a_query_without_a_part_that_may_change_rows(self, query: Query) -> None:
        clause, changes = query

        if changes:
            assert not statement(clause, reads=False).reads
            with pytest.raises(TypeError, match=r"reads=True, but this may change rows.* pass reads=False for "):
                statement(clause, reads=True)
        else:
            assert statement(clause, reads=True).reads

    @pytest.mark.parametrize("put", AROUND.values(), ids=AROUND)
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_reads_is_refused_wherever_the_change_is(
        self, change: Callable[[], Any], put: Callable[[Any], Any]
    ) -> None:
        with pytest.raises(TypeError, match="reads=True, but this may change rows"):
            statement(put(change()), reads=True)

    @pytest.mark.parametrize("put", AROUND.values(), ids=AROUND)
    @pytest.mark.parametrize("read", READS.values(), ids=READS)
    def test_reads_is_accepted_for_a_query_of_the_same_form_that_changes_nothing(
        self, read: Callable[[], Any], put: Callable[[Any], Any]
    ) -> None:
        """A control: it is not the form that is refused above."""
        assert statement(put(read()), reads=True).reads

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_reads_is_refused_for_a_change_in_the_options_of_a_select(self, change: Callable[[], Any]) -> None:
        limited = select(col(Note.id)).options(with_loader_criteria(Note, change().exists()))

        with pytest.raises(TypeError, match="reads=True, but this may change rows"):
            statement(limited, reads=True)

    @pytest.mark.parametrize(
        "clause",
        [
            SIZED,
            NEW,
            delete(ITEMS),
            SIZED.returning(C.id),
            insert(ITEMS).from_select(["id"], select(C.id)),
            text("SELECT 1"),
            select(text("id INTO copies")).select_from(ITEMS),
            text("SELECT 1 AS id").columns(C.id),
            select(Note).from_statement(text("SELECT 1")),
            values(column("n", Integer)).data([(bindparam("n"),)]),
            exists(select(C.id)),
            C.id == bindparam("id"),
            CreateTable(ITEMS),
        ],
        ids=lambda clause: type(clause).__name__,
    )
    def test_reads_is_refused_for_all_but_a_select_without_text(self, clause: Any) -> None:
        with pytest.raises(TypeError, match="reads=True, but this may change rows"):
            statement(clause, reads=True)


class TestDefaults:
    @pytest.mark.parametrize(
        ("clause", "columns"),
        [
            (insert(COMPUTED).values(id=bindparam("new_id")), ["computed.constant", "computed.called"]),
            (
                insert(COMPUTED).values(id=bindparam("new_id"), constant=bindparam("new")).returning(COMPUTED.c.id),
                ["computed.called"],
            ),
            (insert(COMPUTED).values([{"id": bindparam("a")}, {"id": bindparam("b")}]), ["computed.constant"]),
            (insert(COMPUTED).from_select(["id"], select(C.id)), ["computed.constant", "computed.called"]),
            (update(COMPUTED).values(id=bindparam("new_id")), ["computed.touched"]),
            (
                select(update(COMPUTED).values(id=bindparam("new_id")).returning(COMPUTED.c.id).cte()),
                ["computed.touched"],
            ),
            (insert(Note).values(body=bindparam("new_body")), ["note.pinned", "note.words"]),
        ],
    )
    def test_a_default_that_python_computes_is_refused_by_its_column(self, clause: Any, columns: list[str]) -> None:
        with pytest.raises(ValueError, match="use server_default or a bindparam") as caught:
            statement(clause, reads=False)

        for name in columns:
            assert f"{name} has a default in Python, which is not computed here" in str(caught.value)

    @pytest.mark.parametrize(
        "clause",
        [
            NEW,
            insert(COMPUTED).values(id=null(), constant=bindparam("one"), called=bindparam("other")),
            insert(COMPUTED).from_select(["id"], select(C.id), include_defaults=False),
            update(COMPUTED).values(touched=bindparam("new")),
            insert(Note).values(body=null(), pinned=true(), words=bindparam("count")),
        ],
        ids=str,
    )
    def test_a_default_that_the_database_computes_or_that_is_not_needed_is_accepted(self, clause: Any) -> None:
        assert statement(clause, reads=False).sql


CONVERTED: Final[dict[str, Any]] = {
    "Enum": COLOR,
    "Enum of texts": Enum("a", "b", name="letters"),
    "Enum as VARCHAR": Enum(Color, native_enum=False),
    "JSON": JSON(),
    "JSONB": JSONB(),
    "pickle": PickleType(),
    "result value": Whispered(),
    "interval since 1970": Interval(native=False),
    "UUID as text": Uuid(as_uuid=False),
    "UUID in hex": Uuid(native_uuid=False),
    "numeric as float": Numeric(asdecimal=False),
    "float as Decimal": Float(asdecimal=True),
    "range": INT4RANGE(),
    "array of Enum": ARRAY(COLOR),
    "array of JSON": ARRAY(JSON, dimensions=2),
    "array of results": ARRAY(Whispered),
    "array as tuple": ARRAY(Text, as_tuple=True),
    "variant": Text().with_variant(JSON(), "postgresql"),
    "variant of an array": ARRAY(Text).with_variant(JSON(), "postgresql"),
}
PLAIN: Final[dict[str, Any]] = {
    "text": Text(),
    "integer": BigInteger(),
    "boolean": Boolean(),
    "numeric": Numeric(10, 2),
    "float": Float(),
    "date": Date(),
    "time": DateTime(timezone=True),
    "interval": Interval(),
    "bytes": LargeBinary(),
    "UUID": Uuid(),
    "array": ARRAY(Text, dimensions=2),
    "bound value": Shouted(),
    "variant": JSON().with_variant(Text(), "postgresql"),
    "variant of an array": Text().with_variant(ARRAY(Text), "postgresql"),
}


class TestResultColumns:
    @pytest.mark.parametrize("type_", CONVERTED.values(), ids=CONVERTED)
    @pytest.mark.parametrize(
        "clause",
        [
            select,
            lambda value: select(func.max(value).label("v")),
            lambda value: select(case((true(), value)).label("v")),
            lambda value: select(select(value).scalar_subquery().label("v")),
            lambda value: union(select(value), select(value)),
            SIZED.returning,
            NEW.returning,
            lambda value: delete(ITEMS).returning(value),
            lambda value: text("SELECT 1 AS v").columns(value),
        ],
    )
    def test_a_column_that_sqlalchemy_would_convert_is_refused_by_its_name(
        self, clause: Callable[[Any], Any], type_: Any
    ) -> None:
        with pytest.raises(ValueError, match=r"SQLAlchemy would convert the column v of .+ cast it to Text"):
            statement(clause(column("v", type_)), reads=False)

    @pytest.mark.parametrize("type_", CONVERTED.values(), ids=CONVERTED)
    def test_a_converted_column_is_accepted_as_text_or_where_it_is_no_result(self, type_: Any) -> None:
        value = column("v", type_)

        assert statement(select(cast(value, Text)).where(value.is_not(null())), reads=True).sql

    @pytest.mark.parametrize("type_", PLAIN.values(), ids=PLAIN)
    def test_a_column_that_asyncpg_returns_as_sqlalchemy_would_is_accepted(self, type_: Any) -> None:
        assert statement(select(column("v", type_)), reads=True).sql


@pytest.fixture(scope="module")
def own_dsn(dsn: str) -> Iterator[str]:
    """A database with the tables above."""
    with new_database(dsn, "statements") as own:
        execute(own, "CREATE TYPE color AS ENUM ('RED', 'GREEN')")
        execute(
            own,
            "CREATE TABLE items (id integer PRIMARY KEY, name text DEFAULT 'nameless', size integer,"
            " done boolean NOT NULL DEFAULT false, color color, data json, tags text[], shout text, span int4range)",
        )
        execute(own, "CREATE TABLE note (id integer PRIMARY KEY, body text, pinned boolean, words integer)")
        yield own


@pytest.fixture
async def db(own_dsn: str) -> AsyncIterator[Database]:
    execute_all = Database(own_dsn, pool_size=1, pool_timeout=10, concurrency_limit=10)
    await execute_all.fetch(statement(delete(ITEMS), reads=False))
    yield execute_all
    await execute_all.close()


async def fetched(db: Database, clause: Any, *, reads: bool = True, **given: Any) -> list[tuple[Any, ...]]:
    return [tuple(record) for record in await db.fetch(statement(clause, reads=reads), **given)]


class TestExecution:
    @pytest.mark.parametrize(
        ("clause", "given", "rows"),
        [
            (select(true(), false(), null()), {}, [(True, False, None)]),
            (select(func.lower(bindparam("value"))), {"value": "A%"}, [("a%",)]),
            (select(cast(bindparam("value", type_=Text), Integer)), {"value": "7"}, [(7,)]),
            (select(bindparam("value", type_=Integer) % bindparam("by", type_=Integer)), {"value": 7, "by": 4}, [(3,)]),
            (
                select(bindparam("value", type_=Text).like(literal_column("'5\\% %'"))),
                {"value": "5% of $1 :all"},
                [(True,)],
            ),
            (
                select(
                    case((bindparam("value", type_=Integer) == any_(bindparam("list", type_=ARRAY(Integer))), true()))
                ),
                {"value": 1, "list": [1, 2]},
                [(True,)],
            ),
            (select(func.cardinality(bindparam("list", type_=ARRAY(Text)))), {"list": ["a", None]}, [(2,)]),
            (
                union_all(select(bindparam("one", type_=Text)), select(bindparam("other", type_=Text))),
                {"other": "b", "one": "a"},
                [("a",), ("b",)],
            ),
            (
                select(func.sum(column("n")).over(order_by=column("n"))).select_from(
                    values(column("n", Integer), name="v").data([(bindparam("a"),), (bindparam("b", type_=Integer),)])
                ),
                {"a": 1, "b": 2},
                [(1,), (3,)],
            ),
            (select(bindparam("a b%(c)s", type_=Text)), {"a b%(c)s": "odd name"}, [("odd name",)]),
            (
                select(bindparam("query", type_=Text), bindparam("self", type_=Text)),
                {"query": "names of", "self": "arguments"},
                [("names of", "arguments")],
            ),
            (
                select(bindparam("span", type_=Interval) + bindparam("more", type_=Interval)),
                {"span": timedelta(days=1), "more": timedelta(seconds=1)},
                [(timedelta(days=1, seconds=1),)],
            ),
        ],
        ids=lambda value: str(value)[:24],
    )
    async def test_an_accepted_query_returns_what_it_is_given(
        self, db: Database, clause: Any, given: dict[str, Any], rows: list[Any]
    ) -> None:
        assert await fetched(db, clause, **given) == rows

    async def test_server_defaults_apply_and_returning_tells_them(self, db: Database) -> None:
        rows = await fetched(db, NEW.returning(C.name, C.done, C.size), reads=False, new_id=1)

        assert rows == [("nameless", False, None)]

    async def test_several_rows_are_inserted_by_one_statement(self, db: Database) -> None:
        several = insert(ITEMS).values([{"id": bindparam("a")}, {"id": bindparam("b")}]).returning(C.id)

        assert await fetched(db, several, reads=False, a=1, b=2) == [(1,), (2,)]

    async def test_a_conflict_is_resolved_with_the_excluded_row(self, db: Database) -> None:
        new = insert(ITEMS).values(id=bindparam("new_id"), size=bindparam("new_size"))
        merge = new.on_conflict_do_update(index_elements=["id"], set_={"size": C.size + new.excluded.size})

        rows = [await fetched(db, merge.returning(C.size), reads=False, new_id=1, new_size=size) for size in (1, 2)]

        assert rows == [[(1,)], [(3,)]]

    @pytest.mark.parametrize(
        ("name", "value", "stored"),
        [
            ("color", Color.GREEN, "GREEN"),
            ("color", "GREEN", "GREEN"),
            ("color", None, None),
            ("data", {"a": [1, None, "é"]}, '{"a": [1, null, "\\u00e9"]}'),
            ("data", None, None),
            ("tags", ["a", None, "{}"], '{a,NULL,"{}"}'),
            ("shout", "ada", "ADA"),
            ("span", Range(1, 5), "[1,5)"),
            ("done", True, "true"),
        ],
    )
    async def test_a_value_is_converted_by_its_type(self, db: Database, name: str, value: Any, stored: Any) -> None:
        own = ITEMS.c[name]
        create = NEW.values({own: bindparam("value")}).returning(cast(own, Text))
        find = select(cast(own, Text)).where(
            cast(own, Text) == cast(cast(bindparam("value", type_=own.type), own.type), Text)
        )

        assert await fetched(db, create, reads=False, new_id=1, value=value) == [(stored,)]
        assert await fetched(db, find, value=value) == ([(stored,)] if value is not None else [])

    async def test_a_list_of_members_is_converted_by_the_type_of_its_items(self, db: Database) -> None:
        await fetched(db, NEW.values(color=bindparam("value")), reads=False, new_id=1, value=Color.RED)
        among = select(C.id).where(C.color == any_(bindparam("among", type_=ARRAY(COLOR))))

        found = [await fetched(db, among, among=members) for members in ([Color.RED, Color.GREEN], [Color.GREEN], [])]

        assert found == [[(1,)], [], []]

    @pytest.mark.parametrize("put", AROUND.values(), ids=AROUND)
    async def test_a_query_of_each_form_is_understood_by_the_database(
        self, db: Database, put: Callable[[Any], Any]
    ) -> None:
        """A control: what `TestReads` puts together are queries."""
        assert await fetched(db, put(MARKED), mark=1) in ([], [(None,)], [(0,)], [(1,)])


class TestValues:
    @pytest.fixture
    async def unreachable(self) -> AsyncIterator[Database]:
        """A database that nothing can be sent to."""
        nowhere = Database("postgresql://ada@127.0.0.1:1/none", pool_size=1, pool_timeout=10, concurrency_limit=1)
        yield nowhere
        await nowhere.close()

    @pytest.mark.parametrize(
        ("given", "fault"),
        [
            ({}, "missing: color, mark; unknown: none"),
            ({"mark": 1}, "missing: color; unknown: none"),
            ({"mark": 1, "color": "RED", "colour": 1}, "missing: none; unknown: colour"),
            ({"mark": 1, "colour": "RED"}, "missing: color; unknown: colour"),
        ],
    )
    @pytest.mark.parametrize("type_", [Text(), COLOR], ids=["plain", "converted"])
    async def test_a_missing_or_unknown_name_is_a_type_error_before_anything_is_sent(
        self, unreachable: Database, given: dict[str, Any], fault: str, type_: Any
    ) -> None:
        query = statement(MARKED.where(C.name == cast(bindparam("color", type_=type_), Text)), reads=True)

        with pytest.raises(TypeError, match=f"{fault}; in the values for 'SELECT items.id"):
            await unreachable.fetch(query, **given)

    async def test_a_statement_with_all_values_is_sent(self, unreachable: Database) -> None:
        """A control: it is not the database that refuses names."""
        with pytest.raises(DatabaseUnavailableError):
            await unreachable.fetch(statement(MARKED, reads=True), mark=1)

"""What `statement()` refuses when a module is imported, and what it compiles runs with the values that it is given."""

import enum
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import pytest
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Enum,
    Float,
    Integer,
    MetaData,
    Numeric,
    Table,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    column,
    delete,
    false,
    func,
    intersect,
    literal_column,
    null,
    select,
    text,
    true,
    tuple_,
    union,
    union_all,
    update,
    values,
)
from sqlalchemy.dialects.postgresql import array, dialect, distinct_on, insert
from sqlalchemy.orm import with_loader_criteria
from sqlalchemy.schema import CreateTable
from sqlmodel import col

from app.core.database import Database, statement
from app.models.task import Task
from tests.support import execute, new_database


class Color(enum.Enum):
    RED = "r"
    GREEN = "g"


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
    Column("colors", ARRAY(COLOR)),
    Column("data", JSON(none_as_null=True)),
    Column("tags", ARRAY(Text)),
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
A, B, T = bindparam("a", type_=Integer), bindparam("b", type_=Integer), bindparam("t", type_=Text)
LITERALS: Final[dict[str, tuple[str, Any]]] = {
    "==": ("'x'", select(C.id).where(C.name == "x")),
    "tuple": ("5", select(C.id).where(tuple_(C.id, C.size) > tuple_(5, bindparam("low")))),
    "LIMIT": ("10", select(C.id).limit(10)),
    "cast": ("5", select(cast(5, Text))),
    "DISTINCT ON": ("2", select(C.id).ext(distinct_on(C.size % 2))),
    "VALUES": ("5", select(values(column("n", Integer), name="v").data([(5,)]))),
    "CTE": ("5", select(select(C.id).where(C.size == 5).cte())),
    "text()": ("5", select(C.id).where(text("size = :size").bindparams(size=5))),
    "bindparam with a value": ("5", select(bindparam("size", 5))),
    "bindparam with None": ("None", select(bindparam("size", None))),
    "required bindparam with a value": ("5", select(bindparam("size", 5, required=True))),
    "bindparam with a function": ("None", select(bindparam("size", callable_=lambda: 5))),
    "INSERT of None": ("None", NEW.values(size=None)),
    "INSERT of several rows": ("5", insert(ITEMS).values([{"id": bindparam("a")}, {"id": 5}])),
    "DO UPDATE": ("5", NEW.on_conflict_do_update(index_elements=["id"], set_={"size": 5})),
    "UPDATE": ("True", update(ITEMS).values(done=True)),
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

    @pytest.mark.parametrize(
        ("condition", "problem"),
        [
            (C.size == bindparam("size", literal_execute=True), "size would be written into the SQL at each execution"),
            (C.id.in_([1, 2]), r"id_1 is a list for IN: write `== any_\(bindparam\('id_1', type_=ARRAY"),
            (C.id.in_([]), "id_1 is a list for IN"),
            (C.id.in_(bindparam("ids")), "ids is a list for IN"),
        ],
        ids=str,
    )
    def test_a_parameter_that_changes_the_sql_of_each_execution_is_refused(self, condition: Any, problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            statement(select(C.id).where(condition), reads=True)


# Clauses that may change rows, each as a query of one column of integers.
CHANGES: Final[dict[str, Any]] = {
    "UPDATE": select(SIZED.returning(C.id).cte()),
    "DELETE": select(delete(ITEMS).returning(C.id).cte()),
    "INSERT": select(insert(ITEMS).from_select(["id"], select(C.id)).returning(C.id).cte()),
    "added CTE": select(C.id).add_cte(delete(ITEMS).cte()),
    "SELECT in text()": select(text("DELETE FROM items RETURNING id").columns(C.id).cte()),
    "condition in text()": select(C.id).where(text("lo_unlink(size) = 1")),
    "prefix": select(C.id).prefix_with("DISTINCT"),
}
READS: Final[dict[str, Any]] = {
    "SELECT": select(C.id).where(C.size == bindparam("size")),
    "FOR UPDATE": select(C.id).with_for_update(),
    "UNION": union_all(select(C.id), select(C.size)),
    "VALUES": select(values(column("n", Integer)).data([(bindparam("n", type_=Integer),)])),
}
# Queries of one column of integers that have another in them.
AROUND: Final[dict[str, Callable[[Any], Any]]] = {
    "subquery": lambda query: select(query.subquery()),
    "CTE of a CTE": lambda query: select(select(query.cte()).cte()),
    "added CTE": lambda query: select(C.id).add_cte(query.cte()),
    "EXISTS": lambda query: select(C.id).where(query.exists()),
    "ON": lambda query: select(C.id).join(ITEMS.alias(), query.exists()),
    "ORDER BY": lambda query: select(C.id).order_by(query.scalar_subquery()),
    "DISTINCT ON": lambda query: select(C.id).ext(distinct_on(query.scalar_subquery())),
    "LIMIT of a UNION": lambda query: union(select(C.id), select(C.size)).limit(query.scalar_subquery()),
    "CASE": lambda query: select(case((query.exists(), C.id), else_=C.size)),
    "function in FROM": lambda query: select(func.unnest(array([query.scalar_subquery()])).column_valued()),
    "CTE of VALUES": lambda query: select(values(column("n", Integer)).data([(query.scalar_subquery(),)]).cte()),
    "INTERSECT": lambda query: intersect(select(C.id), query),
    "option": lambda query: select(col(Task.id)).options(with_loader_criteria(Task, query.exists())),
}


class TestReads:
    @pytest.mark.parametrize("put", AROUND.values(), ids=AROUND)
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_reads_is_refused_wherever_a_part_may_change_rows(self, change: Any, put: Callable[[Any], Any]) -> None:
        assert not statement(put(change), reads=False).reads
        with pytest.raises(TypeError, match=r"reads=True, but this may change rows.* pass reads=False for "):
            statement(put(change), reads=True)

    @pytest.mark.parametrize("put", AROUND.values(), ids=AROUND)
    @pytest.mark.parametrize("read", READS.values(), ids=READS)
    def test_reads_is_accepted_for_a_query_of_the_same_form_that_changes_nothing(
        self, read: Any, put: Callable[[Any], Any]
    ) -> None:
        assert statement(put(read), reads=True).reads

    @pytest.mark.parametrize(
        "clause",
        [
            SIZED.returning(C.id),
            NEW,
            delete(ITEMS),
            text("SELECT 1"),
            text("SELECT 1 AS id").columns(C.id),
            values(column("n", Integer)).data([(bindparam("n"),)]),
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
            (insert(COMPUTED).values([{"id": bindparam("a")}, {"id": bindparam("b")}]), ["computed.constant"]),
            (insert(COMPUTED).from_select(["id"], select(C.id)), ["computed.constant", "computed.called"]),
            (update(COMPUTED).values(id=bindparam("new_id")), ["computed.touched"]),
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
            update(COMPUTED).values(touched=bindparam("new")),
        ],
        ids=str,
    )
    def test_a_default_that_the_database_computes_or_that_is_not_needed_is_accepted(self, clause: Any) -> None:
        assert statement(clause, reads=False).sql


CONVERTED: Final[dict[str, Any]] = {
    "Enum": COLOR,
    "Enum as VARCHAR": Enum(Color, native_enum=False),
    "JSON": JSON(),
    "UUID as text": Uuid(as_uuid=False),
    "numeric as float": Numeric(asdecimal=False),
    "float as Decimal": Float(asdecimal=True),
    "array of JSON": ARRAY(JSON, dimensions=2),
    "array as tuple": ARRAY(Text, as_tuple=True),
    "variant of an array": ARRAY(Text).with_variant(JSON(), "postgresql"),
}
PLAIN: Final[dict[str, Any]] = {
    "integer": BigInteger(),
    "numeric": Numeric(10, 2),
    "float": Float(),
    "array": ARRAY(Text, dimensions=2),
    "variant of an array": Text().with_variant(ARRAY(Text), "postgresql"),
}


class TestResultColumns:
    @pytest.mark.parametrize("type_", CONVERTED.values(), ids=CONVERTED)
    @pytest.mark.parametrize(
        "clause",
        [
            select,
            lambda value: select(select(value).scalar_subquery().label("v")),
            lambda value: union_all(select(value), select(value)),
            NEW.returning,
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
        execute(own, str(CreateTable(ITEMS).compile(dialect=dialect())))  # type: ignore[no-untyped-call]
        yield own


@pytest.fixture
async def db(own_dsn: str) -> AsyncIterator[Database]:
    db = Database(own_dsn, pool_size=1, pool_timeout=10, concurrency_limit=10)
    await db.fetch(statement(delete(ITEMS), reads=False))
    yield db
    await db.close()


async def fetched(db: Database, clause: Any, *, reads: bool = True, **given: Any) -> list[tuple[Any, ...]]:
    return [tuple(record) for record in await db.fetch(statement(clause, reads=reads), **given)]


class TestExecution:
    @pytest.mark.parametrize(
        ("clause", "given", "rows"),
        [
            (select(true(), false(), null()), {}, [(True, False, None)]),
            (select(A % B), {"a": 7, "b": 4}, [(3,)]),
            (select(T.like(literal_column("'5\\% %'"))), {"t": "5% of $1 :all"}, [(True,)]),
            (union_all(select(A), select(B)), {"b": 2, "a": 1}, [(1,), (2,)]),
            (select(bindparam("a b%(c)s", type_=Text)), {"a b%(c)s": "odd name"}, [("odd name",)]),
            (select(bindparam("self", type_=Text)), {"self": "name of an argument"}, [("name of an argument",)]),
            (select(bindparam("query", type_=Text)), {"query": "name of an argument"}, [("name of an argument",)]),
        ],
        ids=lambda value: str(value)[:24],
    )
    async def test_an_accepted_query_returns_what_it_is_given(
        self, db: Database, clause: Any, given: dict[str, Any], rows: list[Any]
    ) -> None:
        assert await fetched(db, clause, **given) == rows

    @pytest.mark.parametrize(
        ("name", "value", "stored"),
        [
            ("color", Color.GREEN, "GREEN"),
            ("color", None, None),
            ("data", {"a": [1, None, "é"]}, '{"a": [1, null, "\\u00e9"]}'),
            ("data", None, None),
            ("tags", ["a", None, "{}"], '{a,NULL,"{}"}'),
            ("colors", [Color.RED, None], "{RED,NULL}"),
            ("done", True, "true"),
        ],
    )
    async def test_a_value_is_converted_by_its_type(self, db: Database, name: str, value: Any, stored: Any) -> None:
        own = ITEMS.c[name]
        create = NEW.values({own: bindparam("value")}).returning(cast(own, Text))

        assert await fetched(db, create, reads=False, new_id=1, value=value) == [(stored,)]

    @pytest.mark.parametrize(
        ("given", "fault"),
        [
            ({}, "missing: color, mark; unknown: none"),
            ({"mark": 1, "color": "RED", "colour": 1}, "missing: none; unknown: colour"),
            ({"mark": 1, "colour": "RED"}, "missing: color; unknown: colour"),
        ],
    )
    @pytest.mark.parametrize("type_", [Text(), COLOR], ids=["plain", "converted"])
    async def test_a_missing_or_unknown_name_of_a_value_is_a_type_error(
        self, db: Database, given: dict[str, Any], fault: str, type_: Any
    ) -> None:
        condition = C.name == cast(bindparam("color", type_=type_), Text)

        with pytest.raises(TypeError, match=f"{fault}; in the values for 'SELECT items.id"):
            await fetched(db, select(C.id).where(C.size == bindparam("mark"), condition), **given)

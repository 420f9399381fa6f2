"""What `statement()` refuses when a module is imported, and what it compiles runs with the values that it is given."""

import enum
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import dialect, distinct_on, insert
from sqlalchemy.schema import CreateTable

from app.core.database import Database, statement
from tests.support import execute, new_database


class Color(enum.Enum):
    RED = "r"
    GREEN = "g"


META: Final = sa.MetaData()
COLOR: Final = sa.Enum(Color, name="color")
ITEMS: Final = sa.Table(
    "items",
    META,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, server_default="nameless"),
    sa.Column("size", sa.Integer),
    sa.Column("done", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("color", COLOR),
    sa.Column("colors", sa.ARRAY(COLOR)),
    sa.Column("data", sa.JSON(none_as_null=True)),
    sa.Column("tags", sa.ARRAY(sa.Text)),
)
COMPUTED: Final = sa.Table(
    "computed",
    META,
    sa.Column("id", sa.Integer),
    sa.Column("constant", sa.Integer, default=3),
    sa.Column("called", sa.Text, default=lambda: "x"),
    sa.Column("touched", sa.Integer, onupdate=4),
    sa.Column("random", sa.Float, default=sa.func.random(), onupdate=sa.func.random()),
)
C: Final = ITEMS.c
SIZED: Final = sa.update(ITEMS).values(size=sa.bindparam("new_size"))
NEW: Final = insert(ITEMS).values(id=sa.bindparam("new_id"))
A, B, T = sa.bindparam("a", type_=sa.Integer), sa.bindparam("b", type_=sa.Integer), sa.bindparam("t", type_=sa.Text)
LITERALS: Final[dict[str, tuple[str, Any]]] = {
    "==": ("'x'", sa.select(C.id).where(C.name == "x")),
    "bindparam with a value": ("5", sa.select(sa.bindparam("size", 5))),
    "bindparam with None": ("None", sa.select(sa.bindparam("size", None))),
    "required bindparam with a value": ("5", sa.select(sa.bindparam("size", 5, required=True))),
    "bindparam with a function": ("None", sa.select(sa.bindparam("size", callable_=lambda: 5))),
    "INSERT of several rows": ("5", insert(ITEMS).values([{"id": sa.bindparam("a")}, {"id": 5}])),
}


class TestLiterals:
    @pytest.mark.parametrize(("value", "clause"), LITERALS.values(), ids=LITERALS)
    def test_a_literal_is_refused_by_its_name_and_value(self, value: str, clause: Any) -> None:
        problem = rf"^(\w+) is the literal {value}: write `bindparam\('\1'\)` and pass .* use a Session for this"
        with pytest.raises(ValueError, match=problem):
            statement(clause, reads=False)

    @pytest.mark.parametrize(
        ("condition", "problem"),
        [
            (C.size == sa.bindparam("size", literal_execute=True), "size would be written into the SQL at each"),
            (C.id.in_([1, 2]), r"id_1 is a list for IN: write `== any_\(bindparam\('id_1', type_=ARRAY"),
            (C.id.in_(sa.bindparam("ids")), "ids is a list for IN"),
        ],
        ids=str,
    )
    def test_a_parameter_that_changes_the_sql_of_each_execution_is_refused(self, condition: Any, problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            statement(sa.select(C.id).where(condition), reads=True)


# Clauses that may change rows, each as a query of one column of integers.
CHANGES: Final[dict[str, Any]] = {
    "UPDATE": sa.select(SIZED.returning(C.id).cte()),
    "DELETE": sa.select(sa.delete(ITEMS).returning(C.id).cte()),
    "INSERT": sa.select(insert(ITEMS).from_select(["id"], sa.select(C.id)).returning(C.id).cte()),
    "added CTE": sa.select(C.id).add_cte(sa.delete(ITEMS).cte()),
    "SELECT in text()": sa.select(sa.text("DELETE FROM items RETURNING id").columns(C.id).cte()),
    "condition in text()": sa.select(C.id).where(sa.text("lo_unlink(size) = 1")),
}
# Queries of one column of integers that have another in them.
AROUND: Final[dict[str, Callable[[Any], Any]]] = {
    "subquery": lambda query: sa.select(query.subquery()),
    "CTE of a CTE": lambda query: sa.select(sa.select(query.cte()).cte()),
    "added CTE": lambda query: sa.select(C.id).add_cte(query.cte()),
    "EXISTS": lambda query: sa.select(C.id).where(query.exists()),
    "ORDER BY": lambda query: sa.select(C.id).order_by(query.scalar_subquery()),
    "DISTINCT ON": lambda query: sa.select(C.id).ext(distinct_on(query.scalar_subquery())),
}


class TestReads:
    @pytest.mark.parametrize("put", AROUND.values(), ids=AROUND)
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_reads_is_refused_wherever_a_part_may_change_rows(self, change: Any, put: Callable[[Any], Any]) -> None:
        assert not statement(put(change), reads=False).reads
        with pytest.raises(TypeError, match=r"reads=True, but this may change rows.* pass reads=False for "):
            statement(put(change), reads=True)

    @pytest.mark.parametrize("clause", [NEW, sa.text("SELECT 1"), C.id == sa.bindparam("id"), CreateTable(ITEMS)])
    def test_reads_is_refused_for_all_but_a_select_without_text(self, clause: Any) -> None:
        with pytest.raises(TypeError, match="reads=True, but this may change rows"):
            statement(clause, reads=True)


class TestDefaults:
    @pytest.mark.parametrize(
        ("clause", "columns"),
        [
            (insert(COMPUTED).values(id=sa.bindparam("new_id")), ["computed.constant", "computed.called"]),
            (insert(COMPUTED).values([{"id": sa.bindparam("a")}, {"id": sa.bindparam("b")}]), ["computed.constant"]),
            (insert(COMPUTED).from_select(["id"], sa.select(C.id)), ["computed.constant", "computed.called"]),
            (sa.update(COMPUTED).values(id=sa.bindparam("new_id")), ["computed.touched"]),
        ],
    )
    def test_a_default_that_python_computes_is_refused_by_its_column(self, clause: Any, columns: list[str]) -> None:
        with pytest.raises(ValueError, match="use server_default or a bindparam") as caught:
            statement(clause, reads=False)

        for name in columns:
            assert f"{name} has a default in Python, which is not computed here" in str(caught.value)

    def test_a_default_that_is_not_needed_is_accepted(self) -> None:
        create = insert(COMPUTED).values(id=sa.null(), constant=sa.bindparam("one"), called=sa.bindparam("other"))

        assert statement(create, reads=False).sql
        assert statement(sa.update(COMPUTED).values(touched=sa.bindparam("new")), reads=False).sql


CONVERTED: Final[dict[str, Any]] = {
    "Enum": COLOR,
    "JSON": sa.JSON(),
    "UUID as text": sa.Uuid(as_uuid=False),
    "numeric as float": sa.Numeric(asdecimal=False),
    "float as Decimal": sa.Float(asdecimal=True),
    "array of JSON": sa.ARRAY(sa.JSON, dimensions=2),
    "array as tuple": sa.ARRAY(sa.Text, as_tuple=True),
    "variant of an array": sa.ARRAY(sa.Text).with_variant(sa.JSON(), "postgresql"),
}
PLAIN: Final = [
    sa.Numeric(10, 2),
    sa.Float(),
    sa.ARRAY(sa.Text, dimensions=2),
    sa.Text().with_variant(sa.ARRAY(sa.Text), "postgresql"),
]


class TestResultColumns:
    @pytest.mark.parametrize("type_", CONVERTED.values(), ids=CONVERTED)
    @pytest.mark.parametrize(
        "clause", [sa.select, NEW.returning, lambda value: sa.text("SELECT 1 AS v").columns(value)]
    )
    def test_a_column_that_sqlalchemy_would_convert_is_refused_by_its_name_and_accepted_as_text(
        self, clause: Callable[[Any], Any], type_: Any
    ) -> None:
        with pytest.raises(ValueError, match=r"SQLAlchemy would convert the column v of .+ cast it to Text"):
            statement(clause(value := sa.column("v", type_)), reads=False)

        assert statement(sa.select(sa.cast(value, sa.Text)).where(value.is_not(sa.null())), reads=True).sql

    @pytest.mark.parametrize("type_", PLAIN)
    def test_a_column_that_asyncpg_returns_as_sqlalchemy_would_is_accepted(self, type_: Any) -> None:
        assert statement(sa.select(sa.column("v", type_)), reads=True).sql


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
    await db.fetch(statement(sa.delete(ITEMS), reads=False))
    yield db
    await db.close()


async def fetched(db: Database, clause: Any, *, reads: bool = True, **given: Any) -> list[tuple[Any, ...]]:
    return [tuple(record) for record in await db.fetch(statement(clause, reads=reads), **given)]


class TestExecution:
    @pytest.mark.parametrize(
        ("clause", "given", "rows"),
        [
            (sa.select(sa.true(), sa.false(), sa.null()), {}, [(True, False, None)]),
            (sa.select(A % B), {"a": 7, "b": 4}, [(3,)]),
            (sa.select(T.like(sa.literal_column("'5\\% %'"))), {"t": "5% of $1 :all"}, [(True,)]),
            (sa.union_all(sa.select(A), sa.select(B)), {"b": 2, "a": 1}, [(1,), (2,)]),
            (sa.select(sa.bindparam("a b%(c)s", type_=sa.Text)), {"a b%(c)s": "odd name"}, [("odd name",)]),
            (sa.select(*(sa.bindparam(name) for name in ("self", "query"))), {"self": "a", "query": "b"}, [("a", "b")]),
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
        create = NEW.values({own: sa.bindparam("value")}).returning(sa.cast(own, sa.Text))

        assert await fetched(db, create, reads=False, new_id=1, value=value) == [(stored,)]

    @pytest.mark.parametrize(
        ("given", "fault"),
        [
            ({}, "missing: color, mark; unknown: none"),
            ({"mark": 1, "color": "RED", "colour": 1}, "missing: none; unknown: colour"),
            ({"mark": 1, "colour": "RED"}, "missing: color; unknown: colour"),
        ],
    )
    @pytest.mark.parametrize("type_", [sa.Text(), COLOR], ids=["plain", "converted"])
    async def test_a_missing_or_unknown_name_of_a_value_is_a_type_error(
        self, db: Database, given: dict[str, Any], fault: str, type_: Any
    ) -> None:
        condition = C.name == sa.cast(sa.bindparam("color", type_=type_), sa.Text)

        with pytest.raises(TypeError, match=f"{fault}; in the values for 'SELECT items.id"):
            await fetched(db, sa.select(C.id).where(C.size == sa.bindparam("mark"), condition), **given)

"""Every statement of the services restricts the rows that it reads or writes to one owner.

This module contains no list of the statements. It records those that the services make, and reports code that could
make a statement without being recorded.
"""

import ast
import importlib.util
import operator
import re
import traceback
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from itertools import chain, combinations, product
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any, Final, NamedTuple, get_args
from uuid import UUID, uuid4

import pytest
from sqlalchemy import bindparam
from sqlalchemy.sql.elements import BooleanClauseList
from sqlmodel import col

import app
from app.core import database
from app.core.database import Database, statement
from app.core.errors import AppError
from app.models.task import Task, WireTask
from app.schemas.task import Conditions, Sort, TaskCreate, TaskQuery, TaskUpdate
from app.services import tasks

BACKEND: Final = Path(str(app.__file__)).parent
SERVICES: Final = sorted((BACKEND / "services").glob("**/*.py"))
OTHER_MODULES: Final = sorted({*BACKEND.glob("**/*.py")} - {*SERVICES})
OWNER: Final = statement(col(Task.user_id) == bindparam("owner"), reads=False)
# Each statement names one table once, without a join, a subquery or a second statement.
SHAPES: Final = {
    "SELECT": re.compile(r"SELECT .+ FROM tasks WHERE .+"),
    "UPDATE": re.compile(r"UPDATE tasks SET .+ WHERE .+"),
    "DELETE": re.compile(r"DELETE FROM tasks WHERE .+"),
    "INSERT": re.compile(r"INSERT INTO tasks \((?P<columns>.+?)\) VALUES \((?P<values>.+?)\) .*"),
}
WORDS: Final = re.compile(
    r"\b(SELECT|INSERT|UPDATE|DELETE|MERGE|FROM|INTO|JOIN|USING|UNION|INTERSECT|EXCEPT|TABLE|ONLY)\b"
)
WORDS_OF: Final = {
    "SELECT": ["SELECT", "FROM"],
    "UPDATE": ["UPDATE"],
    "DELETE": ["DELETE", "FROM"],
    "INSERT": ["INSERT", "INTO"],
}
# Functions that make SQL from text. The clauses do not show this SQL.
TEXTUAL: Final = {
    *("text", "literal_column", "quoted_name", "DDL", "TextClause", "table", "column", "lambda_stmt"),
    *("op", "bool_op", "custom_op", "from_statement", "prefix_with", "suffix_with", "with_hint", "exec_driver_sql"),
    *("execute", "executemany", "fetchrow", "fetchval", "exec", "eval"),
}
HARMLESS: Final = {"text(\"interval '1 microsecond'\")"}


class Made(NamedTuple):
    """A compiled clause, and the line that called `statement` with it."""

    clause: Any
    line: int


class Call(NamedTuple):
    """The owner that a statement ran for, and the line that ran it."""

    owner: object
    line: int


def all_faults(path: Path) -> list[str]:
    """Returns the faults of a module's statements, one string per fault."""
    tree = parsed(path)
    made = made_by(path)
    unseen = {call.lineno for call in calls(tree, "statement")} - {line for _, line in made}
    return [
        *(f"{line}: is never made" for line in unseen),
        *(f"{line}: {fault}" for clause, line in made for fault in faults(clause)),
        *(f"{node.lineno}: makes SQL that is not recorded: {ast.unparse(node)}" for node in unrecorded(tree)),
    ]


def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text("utf-8"))


def made_by(path: Path) -> list[Made]:
    """Execute a new copy of a module, make its pages, and return all clauses that it compiled."""
    made: list[Made] = []

    def record(clause: Any, *, reads: bool = False) -> database.Statement:
        made.append(Made(clause, calling_line()))
        return statement(clause, reads=reads)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "statement", record)
        make_pages(run(path))
    return made


def run(path: Path) -> ModuleType:
    """Returns a new copy of a module, which is not in `sys.modules`."""
    spec = importlib.util.spec_from_file_location(f"anew_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_pages(module: Any) -> None:
    """Make every list statement of a module, if it has filters."""
    filters = getattr(module, "_FILTERS", {})
    subsets = chain.from_iterable(combinations(filters, size) for size in range(len(filters) + 1))
    for subset, sort, resumed in product(subsets, get_args(Sort), (False, True)) if filters else ():
        module._page(sort, frozenset(subset), resumed=resumed)  # noqa: SLF001  # the only statement made on demand


def calling_line() -> int:
    """Returns the line that called the caller of this function."""
    return traceback.extract_stack(limit=3)[0].lineno or 0


def faults(clause: Any) -> Iterator[str]:
    """Yields the faults that let a statement read or write rows of other owners."""
    compiled = statement(clause, reads=False)
    sql = " ".join(compiled.sql.split())
    verb = sql.split()[0]
    shape = SHAPES[verb].fullmatch(sql) if verb in SHAPES else None
    if shape is None or WORDS.findall(sql) != WORDS_OF[verb]:
        yield f"has an unknown shape: {sql}"
    elif verb == "INSERT":
        yield from faults_of_insert(sql, compiled.names, **shape.groupdict())
    elif OWNER not in {statement(member, reads=False) for member in members(clause.whereclause)}:
        yield f"does not select by the owner: {sql}"
    if "owner" not in compiled.names:
        yield f"has no parameter for the owner: {sql}"
    if verb == "UPDATE" and re.search(r"\buser_id\s*=", sql.partition(" SET ")[2].partition(" WHERE ")[0]):
        yield f"changes the owner: {sql}"


def faults_of_insert(sql: str, names: tuple[str, ...], columns: str, values: str) -> Iterator[str]:
    stored = dict(zip(columns.split(", "), values.split(", "), strict=False))
    number = re.match(r"\$(\d+)", stored.get("user_id", ""))
    if number is None or names[int(number[1]) - 1] != "owner":
        yield f"does not store the owner: {sql}"
    if "ON CONFLICT" in sql and not re.search(r"ON CONFLICT \((.+, )?user_id(, .+)?\)", sql):
        yield f"may conflict with a row of another owner: {sql}"


def members(condition: Any) -> Iterator[Any]:
    """Yields the conditions that `condition` joins with AND."""
    if isinstance(condition, BooleanClauseList) and condition.operator is operator.and_:
        for member in condition.clauses:
            yield from members(member)
    else:
        yield condition


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """Returns the calls of a function or a method."""
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call for call in found if name in {getattr(call.func, "id", None), getattr(call.func, "attr", None)}]


def unrecorded(tree: ast.AST) -> Iterator[Any]:
    """Yields code that makes SQL without `statement`, or that calls `statement` by another name."""
    seen = {call.func for call in calls(tree, "statement")} | set(annotations(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Name(name) | ast.Attribute(attr=name) if name in {"statement", "Statement"} and node not in seen:
                yield node
            case ast.alias() if is_hidden(node):
                yield node
            case ast.Call() if is_textual(node):
                yield node


def annotations(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes of all annotations."""
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if annotation := getattr(node, name, None):
                yield from ast.walk(annotation)


def is_hidden(imported: ast.alias) -> bool:
    """Whether an import gives a name an alias or imports a whole module, so that calls cannot be found by name."""
    return imported.asname is not None or imported.name in {"*", "sqlalchemy", "sqlmodel", "asyncpg", "app"}


def is_textual(call: ast.Call) -> bool:
    name = getattr(call.func, "id", None) or getattr(call.func, "attr", None)
    passes_text = name == "fetch" and not (call.args and isinstance(call.args[0], ast.Name | ast.Call))
    return passes_text or (name in TEXTUAL and ast.unparse(call) not in HARMLESS)


class TestStatements:
    @pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
    def test_every_statement_selects_by_the_owner_or_stores_it(self, path: Path) -> None:
        assert all_faults(path) == []

    def test_statements_of_all_four_kinds_are_recorded(self) -> None:
        verbs = [statement(clause, reads=False).sql.split()[0] for path in SERVICES for clause, _ in made_by(path)]

        assert set(verbs) == {"SELECT", "INSERT", "UPDATE", "DELETE"}
        assert len(verbs) > len(get_args(Sort)) * 2 ** len(tasks._FILTERS) * 2  # noqa: SLF001  # more than the pages

    def test_no_statement_but_the_probe_is_made_outside_the_services(self) -> None:
        found = [call for path in OTHER_MODULES for call in calls(parsed(path), "statement")]

        assert [ast.unparse(call) for call in found] == ["statement(select(*settings, *rights), reads=True)"]

    def test_no_statement_but_the_probe_is_run_outside_the_services(self) -> None:
        found = [call for path in OTHER_MODULES for call in calls(parsed(path), "fetch")]

        assert {ast.unparse(call) for call in found} == {
            "self.fetch(self._probe)",
            "self._pool.fetch(query.sql, arguments, reads=query.reads)",
            "opened.driver.fetch(sql, *values)",
        }


PREAMBLE: Final = """
    from sqlalchemy import and_, bindparam, delete, exists, func, not_, or_, select, text, update
    from sqlalchemy.dialects.postgresql import insert
    from sqlmodel import col
    from app.core.database import Database, Statement, statement
    from app.models.task import WIRE_COLUMNS, Task

    COLUMNS = WIRE_COLUMNS
    owner, mine = bindparam("owner"), col(Task.user_id) == bindparam("owner")
    this = col(Task.id) == bindparam("task_id")
    new = insert(Task).values(user_id=owner, id=bindparam("task_id"), title=bindparam("new_title"))
"""
"""The first lines of each faulty module below."""


class TestFaultyStatements:
    """Positive control: each faulty statement is reported."""

    @pytest.mark.parametrize(
        ("source", "fault"),
        [
            ("statement(select(*COLUMNS).where(this))", "does not select by the owner"),
            ("statement(select(*COLUMNS))", "unknown shape"),
            ("statement(select(*COLUMNS).where(or_(mine, this)))", "does not select by the owner"),
            ("statement(select(*COLUMNS).where(this, not_(mine)))", "does not select by the owner"),
            ("statement(select(*COLUMNS).where(this, or_(mine, owner.is_(None))))", "does not select by the owner"),
            ("statement(select(*COLUMNS).where(and_(this, or_(and_(mine, this), this))))", "does not select by the"),
            ("statement(select(*COLUMNS).where(this, col(Task.user_id) != owner))", "does not select by the owner"),
            ("statement(select(*COLUMNS).where(this, col(Task.title) == owner))", "does not select by the owner"),
            (
                "statement(select(*COLUMNS).where(this, col(Task.user_id).ilike(owner)))",
                "does not select by the owner",
            ),
            (
                "statement(select(*COLUMNS).where(col(Task.user_id) == bindparam('user')))",
                "no parameter for the owner",
            ),
            (
                "statement(select(*COLUMNS).where(mine).union(select(*COLUMNS).where(this)))",
                "unknown shape",
            ),
            ("statement(select(*COLUMNS).where(mine, exists(select(1).where(this))))", "unknown shape"),
            (
                "statement(select(select(col(Task.title)).correlate(None).scalar_subquery()).where(mine))",
                "unknown shape",
            ),
            ("statement(update(Task).where(this).values(completed=bindparam('done')))", "does not select by the owner"),
            (
                "statement(update(Task).where(or_(mine, this)).values(completed=bindparam('done')))",
                "does not select by the owner",
            ),
            ("statement(update(Task).values(completed=bindparam('done')))", "unknown shape"),
            ("statement(update(Task).where(mine).values(user_id=bindparam('new_owner')))", "changes the owner"),
            ("statement(delete(Task).where(this))", "does not select by the owner"),
            ("statement(delete(Task))", "unknown shape"),
            ("statement(new.on_conflict_do_nothing(index_elements=['id']))", "may conflict with a row of another"),
            ("statement(new.on_conflict_do_nothing())", "may conflict with a row of another"),
            ("statement(new.on_conflict_do_nothing(constraint='pk_tasks'))", "may conflict with a row of another"),
            (
                "statement(new.values(user_id=bindparam('new_title')).returning(*COLUMNS))",
                "does not store the owner",
            ),
            (
                "statement(insert(Task).from_select(['user_id'], select(col(Task.user_id)).where(mine)))",
                "unknown shape",
            ),
            ("def unused() -> Statement:\n    return statement(select(*COLUMNS).where(mine))", "is never made"),
            ("make = statement\nmake(select(*COLUMNS))", "not recorded"),
            ("Statement('SELECT * FROM tasks', (), True)", "not recorded"),
            ("class Other(Statement): ...", "not recorded"),
            ("from app.core.database import statement as make\nmake(select(*COLUMNS))", "not recorded"),
            ("from app.core import database\ndatabase.Statement('TABLE tasks', (), True)", "not recorded"),
            ("import sqlalchemy", "not recorded"),
            ("from sqlalchemy import *", "not recorded"),
            ("statement(select(*COLUMNS).where(mine, text('true OR true')))", "not recorded"),
            ("statement(select(*COLUMNS).where(mine, col(Task.title).op('= 1 OR')(owner)))", "not recorded"),
            ("async def leak(db: Database) -> None:\n    await db.fetch('TABLE tasks')", "not recorded"),
            ("async def leak(db: Database) -> None:\n    await db.fetch(f'TABLE {1}')", "not recorded"),
        ],
    )
    def test_a_statement_that_may_reach_other_owners_is_reported(self, tmp_path: Path, source: str, fault: str) -> None:
        module = tmp_path / "faulty.py"
        module.write_text(dedent(PREAMBLE) + source)

        assert fault in "\n".join(all_faults(module))

    def test_statements_that_select_by_the_owner_are_not_reported(self, tmp_path: Path) -> None:
        module = tmp_path / "faulty.py"
        module.write_text(
            dedent(PREAMBLE)
            + "statement(select(*COLUMNS).where(mine))\n"
            + "statement(select(*COLUMNS).where(and_(this, and_(this, mine)), or_(this, mine)))\n"
            + "statement(new.on_conflict_do_nothing(index_elements=['id', 'user_id']))\n"
        )

        assert all_faults(module) == []


class TestCalls:
    """The functions of the services run their statements for the user in their arguments."""

    @pytest.fixture
    async def db(self, dsn: str) -> AsyncIterator[Database]:
        db = Database(dsn, pool_size=1, pool_timeout=10, concurrency_limit=10)
        yield db
        await db.close()

    @pytest.fixture
    def ran(self, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
        """A list to which each executed statement is appended."""
        ran: list[Call] = []
        fetch = Database.fetch

        def record(db: Database, query: database.Statement, **values: Any) -> Any:
            ran.append(Call(values["owner"], calling_line()))
            return fetch(db, query, **values)

        monkeypatch.setattr(Database, "fetch", record)
        return ran

    async def test_every_statement_runs_for_the_user_in_the_arguments(
        self, db: Database, ran: list[Call], user: str, new_user: Any
    ) -> None:
        foreign = (await tasks.create_task(db, new_user(), TaskCreate(title="A secret"))).task
        ran.clear()

        await call_everything(db, user, [UUID(foreign.id), uuid4()])

        assert {call.owner for call in ran} == {user}

    async def test_every_call_of_fetch_in_the_services_is_executed(
        self, db: Database, ran: list[Call], user: str
    ) -> None:
        await call_everything(db, user, [uuid4()])

        places = [(path.name, call.lineno) for path in SERVICES for call in calls(parsed(path), "fetch")]
        assert set(places) == {("tasks.py", line) for _, line in ran}

    async def test_a_statement_for_another_user_is_detected(self, db: Database, ran: list[Call], user: str) -> None:
        """Positive control of test_every_statement_runs_for_the_user_in_the_arguments."""
        await db.fetch(tasks._page("title", frozenset(), resumed=False), owner="linus", limit=1)  # noqa: SLF001

        assert {call.owner for call in ran} != {user}


async def call_everything(db: Database, user: str, ids: Iterable[UUID]) -> None:
    """Call each function of the services for the user's own tasks and for `ids`, so that every statement runs."""
    mine = [UUID((await create(db, user, key)).id) for key in (None, None, "key", "key")]
    for task_id in (*ids, *mine):
        for conditions in (Conditions(), Conditions(match=()), Conditions(match=(), must_exist=True)):
            await suppressed(tasks.get_task(db, user, task_id, conditions))
            await suppressed(tasks.update_task(db, user, task_id, TaskUpdate(), conditions))
            await suppressed(tasks.update_task(db, user, task_id, TaskUpdate(title="Changed"), conditions))
            for completed in (None, True):
                await suppressed(tasks.complete_task(db, user, task_id, completed, conditions))
    for query in (TaskQuery(limit=1), TaskQuery(limit=1, sort="title", search="Changed", status="completed")):
        page = await tasks.list_tasks(db, user, query)
        await tasks.list_tasks(db, user, query.model_copy(update={"cursor": page.next_cursor}))
    for task_id in (*ids, *mine):
        await suppressed(tasks.delete_task(db, user, task_id, Conditions(match=())))
        await suppressed(tasks.delete_task(db, user, task_id, Conditions()))


async def create(db: Database, user: str, key: str | None) -> WireTask:
    return (await tasks.create_task(db, user, TaskCreate(title="Mine"), key)).task


async def suppressed(call: Any) -> None:
    with suppress(AppError):
        await call

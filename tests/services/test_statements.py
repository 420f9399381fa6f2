"""Every statement of the services names the owner, where it decides which rows are read or written.

Nothing here knows the statements: those that the modules make are recorded, and a module that makes one out of sight
of the record is complained of.
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
ELSEWHERE: Final = sorted({*BACKEND.glob("**/*.py")} - {*SERVICES})
OWNER: Final = statement(col(Task.user_id) == bindparam("owner"), reads=False)
# One table, once: no join, no subquery, no second statement.
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
# Ways to put SQL together from text. What they make is not seen in the clauses.
TEXTUAL: Final = {
    *("text", "literal_column", "quoted_name", "DDL", "TextClause", "table", "column", "lambda_stmt"),
    *("op", "bool_op", "custom_op", "from_statement", "prefix_with", "suffix_with", "with_hint", "exec_driver_sql"),
    *("execute", "executemany", "fetchrow", "fetchval", "exec", "eval"),
}
HARMLESS: Final = {"text(\"interval '1 microsecond'\")"}


class Made(NamedTuple):
    """A clause that was compiled, and the line that had it compiled."""

    clause: Any
    line: int


class Call(NamedTuple):
    """A statement that ran for `owner`, and the line that ran it."""

    owner: object
    line: int


def complaints(path: Path) -> list[str]:
    """Returns what is wrong with the statements of a module, a line each."""
    tree = parsed(path)
    made = made_by(path)
    unseen = {call.lineno for call in calls(tree, "statement")} - {line for _, line in made}
    return [
        *(f"{line}: is never made" for line in unseen),
        *(f"{line}: {fault}" for clause, line in made for fault in faults(clause)),
        *(f"{node.lineno}: makes SQL out of sight: {ast.unparse(node)}" for node in out_of_sight(tree)),
    ]


def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text("utf-8"))


def made_by(path: Path) -> list[Made]:
    """Run a module anew, have it make its pages, and return all that it had compiled."""
    made: list[Made] = []

    def record(clause: Any, *, reads: bool = False) -> database.Statement:
        made.append(Made(clause, calling_line()))
        return statement(clause, reads=reads)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "statement", record)
        make_pages(run(path))
    return made


def run(path: Path) -> ModuleType:
    """Returns a module of its own, which `import` does not know."""
    spec = importlib.util.spec_from_file_location(f"anew_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_pages(module: Any) -> None:
    """Have a module make every list that may be asked for, if it makes lists."""
    filters = getattr(module, "_FILTERS", {})
    subsets = chain.from_iterable(combinations(filters, size) for size in range(len(filters) + 1))
    for subset, sort, resumed in product(subsets, get_args(Sort), (False, True)) if filters else ():
        module._page(sort, frozenset(subset), resumed=resumed)  # noqa: SLF001  # the only one that is made on demand


def calling_line() -> int:
    """Returns the line that called the function which asks."""
    return traceback.extract_stack(limit=3)[0].lineno or 0


def faults(clause: Any) -> Iterator[str]:
    """Yields what lets a statement reach rows of others."""
    compiled = statement(clause, reads=False)
    sql = " ".join(compiled.sql.split())
    verb = sql.split()[0]
    shape = SHAPES[verb].fullmatch(sql) if verb in SHAPES else None
    if shape is None or WORDS.findall(sql) != WORDS_OF[verb]:
        yield f"is not of a known shape: {sql}"
    elif verb == "INSERT":
        yield from faults_of_insert(sql, compiled.names, **shape.groupdict())
    elif OWNER not in {statement(member, reads=False) for member in members(clause.whereclause)}:
        yield f"does not ask for the owner: {sql}"
    if "owner" not in compiled.names:
        yield f"has no parameter for the owner: {sql}"
    if verb == "UPDATE" and re.search(r"\buser_id\s*=", sql.partition(" SET ")[2].partition(" WHERE ")[0]):
        yield f"gives the task to somebody: {sql}"


def faults_of_insert(sql: str, names: tuple[str, ...], columns: str, values: str) -> Iterator[str]:
    stored = dict(zip(columns.split(", "), values.split(", "), strict=False))
    number = re.match(r"\$(\d+)", stored.get("user_id", ""))
    if number is None or names[int(number[1]) - 1] != "owner":
        yield f"does not store the owner: {sql}"
    if "ON CONFLICT" in sql and not re.search(r"ON CONFLICT \((.+, )?user_id(, .+)?\)", sql):
        yield f"may meet the row of another owner: {sql}"


def members(condition: Any) -> Iterator[Any]:
    """Yields the conditions that all have to hold."""
    if isinstance(condition, BooleanClauseList) and condition.operator is operator.and_:
        for member in condition.clauses:
            yield from members(member)
    else:
        yield condition


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """Returns the calls of a function or a method."""
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call for call in found if name in {getattr(call.func, "id", None), getattr(call.func, "attr", None)}]


def out_of_sight(tree: ast.AST) -> Iterator[Any]:
    """Yields the code that makes SQL without `statement`, or that hides that it calls `statement`."""
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
    """Yields the names of types, and what they are made of."""
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if annotation := getattr(node, name, None):
                yield from ast.walk(annotation)


def is_hidden(imported: ast.alias) -> bool:
    """Whether a module is imported as a whole, or a name as another, so that calls are not known by name."""
    return imported.asname is not None or imported.name in {"*", "sqlalchemy", "sqlmodel", "asyncpg", "app"}


def is_textual(call: ast.Call) -> bool:
    name = getattr(call.func, "id", None) or getattr(call.func, "attr", None)
    passes_text = name == "fetch" and not (call.args and isinstance(call.args[0], ast.Name | ast.Call))
    return passes_text or (name in TEXTUAL and ast.unparse(call) not in HARMLESS)


class TestMade:
    @pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
    def test_each_asks_for_the_owner_or_stores_it(self, path: Path) -> None:
        assert complaints(path) == []

    def test_there_are_some(self) -> None:
        verbs = [statement(clause, reads=False).sql.split()[0] for path in SERVICES for clause, _ in made_by(path)]

        assert set(verbs) == {"SELECT", "INSERT", "UPDATE", "DELETE"}
        assert len(verbs) > len(get_args(Sort)) * 2 ** len(tasks._FILTERS) * 2  # noqa: SLF001  # pages, and the rest

    def test_elsewhere_only_the_ping_is_made(self) -> None:
        found = [call for path in ELSEWHERE for call in calls(parsed(path), "statement")]

        assert [ast.unparse(call) for call in found] == ["statement(select(*settings, *rights), reads=True)"]

    def test_elsewhere_only_the_ping_is_run(self) -> None:
        found = [call for path in ELSEWHERE for call in calls(parsed(path), "fetch")]

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
"""Starts each module that is planted below."""


class TestPlanted:
    """The positive control: each of these is found."""

    @pytest.mark.parametrize(
        ("source", "complaint"),
        [
            ("statement(select(*COLUMNS).where(this))", "does not ask for the owner"),
            ("statement(select(*COLUMNS))", "not of a known shape"),
            ("statement(select(*COLUMNS).where(or_(mine, this)))", "does not ask for the owner"),
            ("statement(select(*COLUMNS).where(this, not_(mine)))", "does not ask for the owner"),
            ("statement(select(*COLUMNS).where(this, or_(mine, owner.is_(None))))", "does not ask for the owner"),
            ("statement(select(*COLUMNS).where(and_(this, or_(and_(mine, this), this))))", "does not ask for the"),
            ("statement(select(*COLUMNS).where(this, col(Task.user_id) != owner))", "does not ask for the owner"),
            ("statement(select(*COLUMNS).where(this, col(Task.title) == owner))", "does not ask for the owner"),
            (
                "statement(select(*COLUMNS).where(this, col(Task.user_id).ilike(owner)))",
                "does not ask for the owner",
            ),
            (
                "statement(select(*COLUMNS).where(col(Task.user_id) == bindparam('user')))",
                "no parameter for the owner",
            ),
            (
                "statement(select(*COLUMNS).where(mine).union(select(*COLUMNS).where(this)))",
                "not of a known shape",
            ),
            ("statement(select(*COLUMNS).where(mine, exists(select(1).where(this))))", "not of a known shape"),
            (
                "statement(select(select(col(Task.title)).correlate(None).scalar_subquery()).where(mine))",
                "not of a known",
            ),
            ("statement(update(Task).where(this).values(completed=bindparam('done')))", "does not ask for the owner"),
            (
                "statement(update(Task).where(or_(mine, this)).values(completed=bindparam('done')))",
                "does not ask for the owner",
            ),
            ("statement(update(Task).values(completed=bindparam('done')))", "not of a known shape"),
            ("statement(update(Task).where(mine).values(user_id=bindparam('new_owner')))", "gives the task to"),
            ("statement(delete(Task).where(this))", "does not ask for the owner"),
            ("statement(delete(Task))", "not of a known shape"),
            ("statement(new.on_conflict_do_nothing(index_elements=['id']))", "may meet the row of another"),
            ("statement(new.on_conflict_do_nothing())", "may meet the row of another"),
            ("statement(new.on_conflict_do_nothing(constraint='pk_tasks'))", "may meet the row of another"),
            (
                "statement(new.values(user_id=bindparam('new_title')).returning(*COLUMNS))",
                "does not store the owner",
            ),
            (
                "statement(insert(Task).from_select(['user_id'], select(col(Task.user_id)).where(mine)))",
                "not of a known",
            ),
            ("def unused() -> Statement:\n    return statement(select(*COLUMNS).where(mine))", "is never made"),
            ("make = statement\nmake(select(*COLUMNS))", "out of sight"),
            ("Statement('SELECT * FROM tasks', (), True)", "out of sight"),
            ("class Other(Statement): ...", "out of sight"),
            ("from app.core.database import statement as make\nmake(select(*COLUMNS))", "out of sight"),
            ("from app.core import database\ndatabase.Statement('TABLE tasks', (), True)", "out of sight"),
            ("import sqlalchemy", "out of sight"),
            ("from sqlalchemy import *", "out of sight"),
            ("statement(select(*COLUMNS).where(mine, text('true OR true')))", "out of sight"),
            ("statement(select(*COLUMNS).where(mine, col(Task.title).op('= 1 OR')(owner)))", "out of sight"),
            ("async def leak(db: Database) -> None:\n    await db.fetch('TABLE tasks')", "out of sight"),
            ("async def leak(db: Database) -> None:\n    await db.fetch(f'TABLE {1}')", "out of sight"),
        ],
    )
    def test_one_that_reaches_others_is_complained_of(self, tmp_path: Path, source: str, complaint: str) -> None:
        module = tmp_path / "planted.py"
        module.write_text(dedent(PREAMBLE) + source)

        assert complaint in "\n".join(complaints(module))

    def test_none_is_complained_of_without_reason(self, tmp_path: Path) -> None:
        module = tmp_path / "planted.py"
        module.write_text(
            dedent(PREAMBLE)
            + "statement(select(*COLUMNS).where(mine))\n"
            + "statement(select(*COLUMNS).where(and_(this, and_(this, mine)), or_(this, mine)))\n"
            + "statement(new.on_conflict_do_nothing(index_elements=['id', 'user_id']))\n"
        )

        assert complaints(module) == []


class TestRun:
    """What the functions of the services run, they run for the user that they are called with."""

    @pytest.fixture
    async def db(self, dsn: str) -> AsyncIterator[Database]:
        db = Database(dsn, pool_size=1, pool_timeout=10, concurrency_limit=10)
        yield db
        await db.close()

    @pytest.fixture
    def ran(self, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
        """Grows by each statement that runs."""
        ran: list[Call] = []
        fetch = Database.fetch

        def noted(db: Database, query: database.Statement, **values: Any) -> Any:
            ran.append(Call(values["owner"], calling_line()))
            return fetch(db, query, **values)

        monkeypatch.setattr(Database, "fetch", noted)
        return ran

    async def test_every_one_is_run_for_the_user_of_the_call(
        self, db: Database, ran: list[Call], user: str, new_user: Any
    ) -> None:
        foreign = (await tasks.create_task(db, new_user(), TaskCreate(title="A secret"))).task
        ran.clear()

        await call_everything(db, user, [UUID(foreign.id), uuid4()])

        assert {call.owner for call in ran} == {user}

    async def test_every_place_that_runs_one_was_among_these(self, db: Database, ran: list[Call], user: str) -> None:
        await call_everything(db, user, [uuid4()])

        places = [(path.name, call.lineno) for path in SERVICES for call in calls(parsed(path), "fetch")]
        assert set(places) == {("tasks.py", line) for _, line in ran}

    async def test_one_for_another_user_is_told_apart(self, db: Database, ran: list[Call], user: str) -> None:
        """The positive control of the test above."""
        await db.fetch(tasks._page("title", frozenset(), resumed=False), owner="linus", limit=1)  # noqa: SLF001

        assert {call.owner for call in ran} != {user}


async def call_everything(db: Database, user: str, ids: Iterable[UUID]) -> None:
    """Call each function of the services, for the user's own tasks and for `ids`, so that each question is asked."""
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

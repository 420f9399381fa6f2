"""`python -m app.adopt`, on tables as the `create_all` of public projects makes them."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import (
    Table,
    text,
)
from sqlalchemy.schema import CreateTable
from sqlmodel import SQLModel

from app.adopt import run
from app.core.database.migrations import alembic_config, migrate
from app.core.errors import StartupError
from tests.service import BACKEND
from tests.support import connected, execute, make_settings, new_database, serving

KNOWN: Final = "4f0c6f1c-59d0-4d5b-8a3b-0f6f5b7c9a11"
FIRST: Final = "9e8a6fbf-e740-5b77-8c81-47fb1315e03d"  # what becomes of the id 1, in every database and every release
STRUCTURE: Final = """
    SELECT table_name::text, column_name::text, data_type::text FROM information_schema.columns
    WHERE table_schema = 'public'
    UNION ALL SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT tablename::text, indexname::text, indexdef FROM pg_indexes WHERE schemaname = 'public'
    ORDER BY 1, 2, 3
"""
TABLES: Final = "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'"
USER: Final = """CREATE TABLE "user" (id SERIAL NOT NULL, email VARCHAR NOT NULL, PRIMARY KEY (id))"""
STORED: Final = "SELECT t::text FROM tasks t ORDER BY 1"
ADA: Final = """INSERT INTO "user" (email) VALUES ('ada')"""
SERIAL: Final = """
    CREATE TABLE {name} (
        id SERIAL NOT NULL, user_id INTEGER NOT NULL, title VARCHAR(200) NOT NULL, description VARCHAR(1000),
        completed BOOLEAN NOT NULL, created_at TIMESTAMP WITHOUT TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITHOUT TIME ZONE NOT NULL, PRIMARY KEY (id), FOREIGN KEY(user_id) REFERENCES "user" (id)
    )
"""
INSERT: Final = """
    INSERT INTO {name} (user_id, title, description, completed, created_at, updated_at)
    VALUES (1, 'Buy oat milk', 'The barista one', true, '2026-01-02 03:04:05.000006', '2026-01-03 00:00:00')
"""
DONE: Final = {
    "title": "Buy oat milk",
    "description": "The barista one",
    "completed": True,
    "created_at": "2026-01-02T03:04:05.000006Z",
    "updated_at": "2026-01-03T00:00:00.000000Z",
}
OPEN: Final = {**DONE, "description": None, "completed": False, "updated_at": DONE["created_at"]}
MINIMAL: Final = """
    CREATE TABLE tasks (
        id SERIAL NOT NULL, owner_id VARCHAR DEFAULT 'ada', title VARCHAR, created TIMESTAMP WITHOUT TIME ZONE,
        updated TIMESTAMP WITHOUT TIME ZONE, completed_at TIMESTAMP WITHOUT TIME ZONE, PRIMARY KEY (id)
    )
"""
WIDE: Final = f"""
    CREATE TABLE tasks (
        id SERIAL NOT NULL, user_id VARCHAR DEFAULT 'ada', title VARCHAR, description VARCHAR, done INTEGER,
        deleted_at TIMESTAMP WITHOUT TIME ZONE, "due date" VARCHAR, size NUMERIC,
        {", ".join(f"c{number} VARCHAR" for number in range(1, 22))}, PRIMARY KEY (id)
    )
"""
ODD: Final = (
    "CREATE TYPE mood AS ENUM ('good', 'bad')",
    "CREATE TYPE size AS (width integer, unit text)",
    """CREATE TABLE tasks (
        id xid8 PRIMARY KEY, user_id text, title text, tasks text, place point, page xml, file bytea, takes interval,
        words tsvector, size size, moods mood[], price money, days int4range, number numeric
    )""",
    r"""INSERT INTO tasks VALUES (
        '7', 'ada', 'Buy oat milk', 'the name of the table', '(1,2)', NULL, '\xff00', '1 day', 'oat', (1, 'l'),
        '{good,bad}', 1.5, '[1,2]', 'NaN'
    )""",
)
ODD_KEPT: Final = r"""{
    "tasks": "the name of the table", "place": "(1,2)", "file": "\\xff00", "takes": "1 day", "words": "'oat'",
    "size": {"width": 1, "unit": "l"}, "moods": ["good", "bad"], "price": "$1.50", "days": "[1,3)", "number": "NaN"
}"""
TASK: Final = "CREATE TABLE task (id SERIAL PRIMARY KEY, user_id VARCHAR, title VARCHAR)"
ODD_VALUES: Final = """
    CREATE TABLE tasks (
        id TEXT, title TEXT DEFAULT 'listed', created_at DATE, updated_at TIMESTAMPTZ, completed_at TIMESTAMP,
        is_deleted TEXT, "deletedAt" TIMESTAMP, data JSON, user_id TEXT DEFAULT 'ada'
    )
"""
ODD_VALUES_ROWS: Final = (
    "INSERT INTO tasks (id, is_deleted) VALUES ('deleted1', 'true'), (E'\x1b[2J\n  forged: ' || repeat('x', 99), '1')",
    """INSERT INTO tasks (id, is_deleted, "deletedAt") VALUES ('deleted2', 'false', now()), ('deleted3', 't', NULL)""",
    "INSERT INTO tasks (id, created_at) VALUES ('time1', '5874897-1-1'), ('time2', '-infinity'), ('time3', '1-1-1 BC')",
    "INSERT INTO tasks (id, updated_at) VALUES ('time4', 'infinity'), ('time5', '294276-1-1'), ('time6', '10000-1-1')",
    "INSERT INTO tasks (id, completed_at) VALUES ('time7', '294276-12-31')",
    r"""INSERT INTO tasks (id, data) VALUES ('json1', '"\u0000"'), ('json2', '["\ud800"]'), ('json3', '"\udc00\ud800"'),
    ('json4', '{"a": [1,-1e200000]}'), ('json5', '1E-20000')""",
    r"""INSERT INTO tasks (id, title, data) VALUES (1, 'kept', '"\ud83d\ude00"'), (2, 'kept', '"\\u0000"'),
    (3, 'kept', '"71e45678"'), (4, 'kept', '[1e5, "\u00e4"]')""",
    "INSERT INTO tasks VALUES (5, 'kept', '0001-1-1', NULL, NULL, 'No'), (6, 'kept', '9999-12-31', NULL, NULL, '0.0')",
)
PARTITIONED: Final = (
    "DROP TABLE tasks CASCADE",  # with the foreign keys of tables that extend ours
    "CREATE TABLE tasks (user_id text) PARTITION BY LIST (user_id)",
    "CREATE TABLE part PARTITION OF tasks DEFAULT",
    "INSERT INTO tasks VALUES ('ada')",
    TASK,
    "INSERT INTO task VALUES (1, 'ada', 'old')",
)
ODD_ARRAY: Final = (
    r"""CREATE TABLE tasks AS SELECT 1 AS id, 1 AS user_id, '' AS title, ARRAY['"\u0000"'::json] AS tags"""
)
TEXT_TIMES: Final = "CREATE TABLE tasks (id SERIAL PRIMARY KEY, user_id VARCHAR, title VARCHAR, created_at TEXT)"
A_UUID: Final = "[0-9a-f-]{36}"
LOST: Final = "^Rows that an undo would lose, because only .* have them as they are: 1[.] The first are {}[.] Save or"
SAME: Final = (
    r"^Tasks that several rows would become, or that are there already: 1\. The first ids are {}\. Change them"
)
CREATED: Final = datetime(2026, 1, 2)  # noqa: DTZ001  # naive, as other programs store it
UPDATED: Final = datetime(2026, 1, 3)  # noqa: DTZ001  # as above


class Shape(NamedTuple):
    """Statements of another program, its table, and the only task that it has stored."""

    statements: tuple[str, ...]
    user: str
    task: dict[str, Any]
    kept: dict[str, Any] | None = None
    table: str = "tasks"


def serial_shape(table: str, name: str) -> Shape:
    statements = (USER, ADA, SERIAL.format(name=name), "CREATE INDEX ON {name} (user_id)", INSERT)
    return Shape(tuple(each.format(name=name) for each in statements), "1", {**DONE, "id": FIRST}, table=table)


SHAPES: Final = {
    "serial": serial_shape("tasks", "tasks"),
    "task": serial_shape("task", "task"),
    "quoted": serial_shape('To "do"; --', '"To ""do""; --"'),
    "uuid": Shape(
        (
            "CREATE TYPE priority AS ENUM ('low', 'medium', 'high')",
            """CREATE TABLE tasks (
                id UUID NOT NULL, user_id VARCHAR(255) NOT NULL, title VARCHAR(255) NOT NULL, description TEXT,
                is_completed BOOLEAN NOT NULL, priority priority NOT NULL, due_date DATE, tags VARCHAR[],
                details JSON, recurrence VARCHAR,
                created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, CONSTRAINT pk_tasks PRIMARY KEY (id)
            )""",
            f"""INSERT INTO tasks VALUES (
                '{KNOWN}', 'ada@example.com', 'Buy oat milk', NULL, false, 'high', '2026-12-24', '{{home,shop}}',
                '{{"a": null}}', NULL, '2026-01-02 05:04:05.000006+02'
            )""",  # noqa: S608
        ),
        "ada@example.com",
        {**OPEN, "id": KNOWN},
        {"priority": "high", "due_date": "2026-12-24", "tags": ["home", "shop"], "details": {"a": None}},
    ),
    "varchar": Shape(
        (
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, PRIMARY KEY (version_num))",
            "INSERT INTO alembic_version VALUES ('0001')",
            """CREATE TABLE tasks (
                id VARCHAR(36) NOT NULL, "ownerId" VARCHAR NOT NULL, title VARCHAR NOT NULL, description VARCHAR,
                status VARCHAR NOT NULL, created_at TIMESTAMP WITHOUT TIME ZONE,
                completed_at TIMESTAMP WITHOUT TIME ZONE, PRIMARY KEY (id)
            )""",
            f"""INSERT INTO tasks VALUES (
                '{KNOWN.upper()}', 'ada', 'Buy oat milk', 'The barista one', 'Completed',
                '2026-01-02 03:04:05.000006', '2026-01-03'
            )""",  # noqa: S608
        ),
        "ada",
        {**DONE, "id": KNOWN},
        {"status": "Completed", "completed_at": "2026-01-03T00:00:00"},
    ),
}


@pytest.fixture
def empty(dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An empty database that the command finds in the settings."""
    monkeypatch.chdir(tmp_path)
    with new_database(dsn, "adoption") as empty:
        monkeypatch.setenv("DATABASE_URL", empty)
        yield empty


@pytest.fixture(
    params=["serial", "varchar", *(pytest.param(each, marks=pytest.mark.ci) for each in ("uuid", "task", "quoted"))]
)
def shape(empty: str, request: pytest.FixtureRequest) -> Shape:
    shape: Shape = SHAPES[request.param]
    run_all(empty, *shape.statements)
    return shape


@pytest.fixture
def serial(empty: str) -> str:
    run_all(empty, *SHAPES["serial"].statements)
    return empty


@pytest.fixture
def projects() -> Iterator[Table]:
    """Another table of this service."""
    yield (table := Table("projects", SQLModel.metadata))
    SQLModel.metadata.remove(table)


def run_all(dsn: str, *statements: str) -> None:
    for statement in statements:
        execute(dsn, statement)


def adopt(*arguments: str) -> str:
    return "\n".join(run([*arguments]))


def snapshot(dsn: str) -> Any:
    """The structure and the rows of every table."""
    tables = [name for (name,) in execute(dsn, TABLES)]
    return execute(dsn, STRUCTURE), [execute(dsn, f"SELECT t::text FROM {name} t ORDER BY 1") for name in tables]  # noqa: S608


def assert_refused(dsn: str, refusal: str, *arguments: str) -> None:
    before = snapshot(dsn)
    for yes in ((), ("--yes",)):
        with pytest.raises(CommandError, match=refusal):
            adopt(*arguments, *yes)
    assert snapshot(dsn) == before


def add(dsn: str, *titles: str | None, **others: object) -> None:
    """Add rows to the old table."""
    for title in titles:
        columns, values = ", ".join(["title", *others]), [title, *others.values()]
        places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
        execute(dsn, f"INSERT INTO tasks ({columns}) VALUES ({places})", *values)  # noqa: S608


class TestAdopt:
    async def test_the_six_operations_work_on_the_adopted_tasks(self, empty: str, shape: Shape) -> None:
        table = ("--table", shape.table) * (shape.table not in {"tasks", "task"})
        await asyncio.to_thread(adopt, "--yes", *table)

        async with serving(make_settings(empty)) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            tasks = f"/api/{shape.user}/tasks"
            [task] = (await client.get(tasks)).json()
            [(kept,)] = await asyncio.to_thread(execute, empty, "SELECT kept_fields FROM tasks")
            assert (kept and json.loads(kept)) == shape.kept
            assert {name: task[name] for name in [*shape.task, "user_id"]} == {**shape.task, "user_id": shape.user}
            path = f"{tasks}/{task['id']}"
            assert (await client.get(path)).json() == task
            assert (await client.put(path, json={"title": "Buy tea"})).json()["title"] == "Buy tea"
            assert (await client.patch(f"{path}/complete")).json()["completed"] is not task["completed"]
            assert (await client.delete(path)).status_code == 204
            assert (await client.post(tasks, json={"title": "Buy milk"})).status_code == 201

    @pytest.mark.usefixtures("serial")
    def test_without_yes_the_transaction_is_read_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "app.adopt.find_source", lambda connection, _: connection.execute(text("CREATE TABLE a ()"))
        )

        with pytest.raises(CommandError, match="cannot execute CREATE TABLE in a read-only transaction"):
            adopt()

    def test_a_second_run_has_nothing_to_do_and_after_an_undo_everything_is_as_before_and_makes_the_same_tasks(
        self, empty: str, shape: Shape
    ) -> None:
        before = snapshot(empty)
        assert f"With --yes, {shape.table} is renamed to {shape.table}_before" in adopt("--table", shape.table)
        assert snapshot(empty) == before
        adopt("--yes", "--table", shape.table)
        made, adopted = execute(empty, STORED), snapshot(empty)

        assert "there is nothing to do" in adopt("--yes")
        migrate(empty)
        assert f"{shape.table}_before_adoption is renamed to {shape.table}" in adopt("--undo")
        assert snapshot(empty) == adopted
        assert "Done." in adopt("--undo", "--yes")
        assert snapshot(empty) == before
        adopt("--yes", "--table", shape.table)

        assert execute(empty, STORED) == made

    def test_a_missing_time_is_another_one_of_its_row_or_the_time_of_the_copy(self, empty: str) -> None:
        execute(empty, "ALTER DATABASE adoption SET timezone = 'Asia/Kolkata'")
        execute(empty, MINIMAL)
        add(empty, "none")
        add(empty, "updated", updated=UPDATED)
        add(empty, "completed", created=CREATED, completed_at=UPDATED)
        add(empty, "only completed", completed_at=UPDATED)

        adopt("--yes")

        times = dict(execute(empty, "SELECT title, ARRAY[created_at, updated_at] FROM tasks"))
        created, updated = CREATED.replace(tzinfo=UTC), UPDATED.replace(tzinfo=UTC)
        assert times.pop("none")[0] > updated
        assert times == {
            "updated": [updated, updated],
            "completed": [created, updated],
            "only completed": [updated, updated],
        }
        completed = execute(empty, "SELECT title FROM tasks WHERE completed ORDER BY 1")
        assert completed == [("completed",), ("only completed",)]
        assert "No task was created or changed" in adopt("--undo")

    def test_rows_that_break_a_rule_are_listed_and_left(self, empty: str) -> None:
        execute(empty, WIDE)
        add(empty, "fits", *(f"gone {number}" for number in range(2)))
        execute(empty, "UPDATE tasks SET deleted_at = now() WHERE title LIKE 'gone%'")
        execute(empty, "UPDATE tasks SET description = repeat('d', 5000), c1 = repeat('x', 4000) WHERE title = 'fits'")
        add(empty, None, "", " \t\u2003".strip("\u2003"), "t" * 201)
        for user in (None, "", "ada lovelace", "ümlaut", "u" * 129):
            add(empty, "owner", user_id=user)
        add(empty, "description", description="d" * 5_001)
        add(empty, "long", c1="x" * 4_100)
        add(empty, "many", **{f"c{number}": "x" for number in range(1, 22)})
        add(empty, "named", **{'"due date"': "x"})
        add(empty, "large", size=-(10**309))

        execute(empty, "INSERT INTO tasks (title, user_id) SELECT 'many', ' ' FROM generate_series(1, 9)")
        assert len(re.findall(r"^  \d+: ", adopt(), re.MULTILINE)) == 25
        execute(empty, "DELETE FROM tasks WHERE user_id = ' '")

        report = adopt("--yes")

        reasons = re.findall(r"^  \d+: (.*)$", report, re.MULTILINE)
        assert "Rows that cannot become tasks, and are left in tasks: 16." in report
        assert Counter(reasons) == {
            "it was deleted": 2,
            "there is no title": 1,
            "the title is blank or has more than 200 characters": 3,
            "there is no user_id": 1,
            "the owner is not 1 to 128 of A-Z a-z 0-9 _ - | . : @ + = ~": 4,
            "the description has more than 5,000 characters": 1,
            "the other columns are more than 20 or more than 4,096 bytes": 2,
            "a column's name cannot be kept": 1,
            "a number is too large to be kept": 1,
        }
        assert execute(empty, "SELECT title FROM tasks") == [("fits",)]
        assert execute(empty, "SELECT count(*) FROM tasks_before_adoption") == [(17,)]

    @pytest.mark.parametrize(
        ("column", "completed", "not_completed", "listed"),
        [
            (
                "is_completed TEXT",
                "t Y yes ON TRUE 1 1.0 Done",
                "f N no Off False 0 00 Todo NULL",
                "'' maybe 2 -1 10 all",
            ),
            ("completed NUMERIC(3,1)", "1", "0 NULL", "0.5 10 -1"),
            ("done FLOAT", "1", "0 NULL", "1.5 NaN"),
            ("status TIMESTAMP", "", "NULL", "2026-01-02"),
        ],
    )
    def test_completed_is_never_guessed(
        self, empty: str, column: str, completed: str, not_completed: str, listed: str
    ) -> None:
        execute(empty, f"CREATE TABLE tasks (id SERIAL, user_id INT DEFAULT 1, title TEXT, {column})")
        insert = "INSERT INTO tasks (title, {}) VALUES ($1, nullif($2, 'NULL')::{})".format(*column.split())  # noqa: S608
        for title, words in {"completed": completed, "not completed": not_completed, "listed": listed}.items():
            for word in words.split():
                execute(empty, insert, title, word.strip("'"))

        report = adopt("--yes")

        assert report.count(": no known word or number says whether it is completed") == len(listed.split())
        tasks = execute(empty, "SELECT title, completed FROM tasks")
        assert all(is_completed is (title == "completed") for title, is_completed in tasks)
        assert len(tasks) == len(completed.split() + not_completed.split())

    def test_a_deleted_row_and_one_that_the_service_cannot_give_are_listed(self, empty: str) -> None:
        run_all(empty, ODD_VALUES, *ODD_VALUES_ROWS)

        lines = adopt().splitlines()
        listed = [line for line in lines if re.fullmatch("  [a-z]+[0-9].*", line)]
        assert Counter(re.sub("^  ([a-z]+)[0-9]+: ", r"\1 ", line) for line in listed) == {
            "deleted it was deleted": 3,
            "time a time is not in 0001-01-01 to 9999-12-31": 7,
            "json a JSON value cannot be kept": 5,
        }
        assert set(listed) < set(adopt("--yes").splitlines())
        assert r"  \x1b[2J\n  forged: " + "x" * 44 + ": it was deleted" in lines
        assert execute(empty, "SELECT title, count(*) FROM tasks GROUP BY 1") == [("kept", 6)]

    def test_values_of_types_that_sqlalchemy_does_not_know_are_kept_too(self, empty: str) -> None:
        run_all(empty, *ODD)
        with pytest.raises(StartupError, match=r"`python -m app\.adopt` takes them over"):
            migrate(empty)

        adopt("--yes")

        [(title, kept)] = execute(empty, "SELECT title, kept_fields FROM tasks")
        assert (title, json.loads(kept)) == ("Buy oat milk", json.loads(ODD_KEPT))

    def test_rows_that_would_become_the_same_task_are_refused_with_their_ids(
        self, empty: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        execute(empty, "CREATE TABLE tasks (id VARCHAR PRIMARY KEY, user_id VARCHAR, title VARCHAR)")
        bare = KNOWN.replace("-", "")
        for user, id_ in (("ada", KNOWN), ("ada", bare), ("bob", KNOWN.upper())):
            add(empty, "Buy oat milk", user_id=user, id=id_)

        assert_refused(empty, SAME.format(f"({KNOWN}, {bare}|{bare}, {KNOWN})"))
        with monkeypatch.context() as patch:
            patch.setattr("app.services.adoption.Source.same", lambda _: [])
            before = snapshot(empty)
            with pytest.raises(CommandError, match="duplicate key value violates"):  # and nothing is lost
                adopt("--yes")
            assert snapshot(empty) == before
        execute(empty, "DELETE FROM tasks WHERE id = $1", bare)

        assert "Rows that became tasks: 2." in adopt("--yes")

    async def test_a_table_that_another_program_uses_is_not_waited_for_and_nothing_is_changed(
        self, serial: str
    ) -> None:
        before = await asyncio.to_thread(snapshot, serial)
        async with connected(serial) as program, program.transaction():
            await program.execute("LOCK TABLE tasks IN ACCESS SHARE MODE")

            with pytest.raises(CommandError, match="canceling statement due to lock timeout"):
                await asyncio.to_thread(adopt, "--yes")

        assert await asyncio.to_thread(snapshot, serial) == before

    def test_the_tasks_of_several_tables_are_together_and_one_that_is_there_already_is_refused(
        self, empty: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        run_all(empty, *SHAPES["task"].statements, "CREATE TABLE todo AS SELECT * FROM task")
        migrate(empty)
        warning = "the tasks of another program are in the table task; `python -m app.adopt` takes them over, see docs/"
        assert f"{warning}adopt.md" in caplog.messages
        caplog.clear()
        execute(empty, "INSERT INTO tasks (user_id, id, title) VALUES ('1', gen_random_uuid(), 'own')")
        assert "Rows that became tasks: 1." in adopt("--yes")
        migrate(empty)
        assert caplog.messages == []

        assert_refused(empty, LOST.format(A_UUID), "--undo")
        assert_refused(empty, "already a table task_before_adoption; rename or remove it first", "--table", "todo")
        execute(empty, "DROP TABLE task_before_adoption")
        assert_refused(empty, SAME.format(f"1, {FIRST}"), "--table", "todo")
        execute(empty, "UPDATE todo SET id = 2, title = 'second'")
        adopt("--yes", "--table", "todo")

        assert execute(empty, "SELECT title FROM tasks ORDER BY 1") == [("Buy oat milk",), ("own",), ("second",)]

    @pytest.mark.parametrize(
        ("statements", "arguments", "refusal"),
        [
            (("CREATE TABLE tasks (id int, title text)",), (), "tasks has no column user_id, but id, title; rename"),
            (("CREATE TABLE todo (id int)",), ("--table", "todo"), "todo has no column user_id, but id;"),
            ((TEXT_TIMES,), (), r"tasks.created_at is no time but TEXT; change its type to timestamptz\."),
            ((ODD_ARRAY,), (), "^UntranslatableCharacterError: unsupported Unicode escape sequence$"),
            ((TASK, "CREATE TABLE tasks ()"), (), "There are two tables, tasks and task. Choose with --table tasks or"),
            ((TASK, "CREATE TABLE tasks ()"), ("--table", "task"), "already a table tasks; rename or remove it first"),
            ((TASK, "CREATE VIEW tasks AS TABLE task", "ALTER TABLE task RENAME TO t"), (), "^tasks cannot be renamed"),
            ((TASK, "CREATE MATERIALIZED VIEW m AS TABLE task"), ("--table", "m"), "m cannot be renamed: it is no"),
            ((TASK, f"ALTER TABLE task RENAME TO {'t' * 48}"), ("--table", "t" * 48), "or its name is too long"),
            ((), ("--undo",), "one table [*]_before_adoption, but finds 0"),
            ((TASK, "ALTER TABLE task RENAME TO task_before_adoption"), ("--undo",), "An undo needs the table tasks"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_done_is_refused_with_what_to_do(
        self, empty: str, statements: tuple[str, ...], arguments: tuple[str, ...], refusal: str
    ) -> None:
        run_all(empty, *statements)

        assert_refused(empty, refusal, *arguments)


class TestUndo:
    @pytest.mark.parametrize(
        "change",
        [
            "INSERT INTO tasks (user_id, id, title) VALUES ('1', gen_random_uuid(), 'new')",
            "UPDATE tasks SET completed = NOT completed, updated_at = now()",
            "UPDATE tasks SET kept_fields = '{}', updated_at = now()",
            "INSERT INTO projects DEFAULT VALUES",
        ],
    )
    def test_an_undo_that_would_lose_a_row_is_refused_until_it_is_deleted(
        self, serial: str, projects: Table, change: str
    ) -> None:
        adopt("--yes")
        run_all(serial, str(CreateTable(projects)), change)

        assert_refused(serial, LOST.format("a row of projects" if "projects" in change else A_UUID), "--undo")
        run_all(serial, "DELETE FROM tasks", "DELETE FROM projects")
        adopt("--undo", "--yes")
        assert execute(serial, "SELECT title FROM tasks") == [("Buy oat milk",)]


class TestStart:
    async def test_a_stamped_table_of_another_program_is_not_ready_and_the_log_says_why(
        self, serial: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        await asyncio.to_thread(command.stamp, alembic_config(serial), "head")
        await asyncio.to_thread(migrate, serial)

        async with serving(make_settings(serial)) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            assert (await client.get("/health/ready")).status_code == 503
            assert (await client.get("/api/1/tasks")).status_code == 503
        [reason] = [message for message in caplog.messages if "cannot be used" in message]
        assert "no column user_id TEXT, id UUID, title TEXT" in reason
        assert "in tasks; if another program made the table, see docs/adopt.md" in reason
        assert "Rows that became tasks: 1." in await asyncio.to_thread(adopt, "--yes")

    @pytest.mark.parametrize(
        "statements", [("CREATE TABLE task (id int)", "INSERT INTO task VALUES (1)"), (TASK,), PARTITIONED]
    )
    def test_a_table_task_without_tasks_or_beside_a_partitioned_table_with_tasks_causes_no_warning(
        self, empty: str, caplog: pytest.LogCaptureFixture, statements: tuple[str, ...]
    ) -> None:
        migrate(empty)
        run_all(empty, *statements)

        migrate(empty)

        assert caplog.messages == []

    def test_the_command_prints_its_report_or_one_sentence_and_fails(self, serial: str, tmp_path: Path) -> None:
        def run_command(*arguments: str, redirection: str = "") -> subprocess.CompletedProcess[str]:
            program = ["sh", "-c", f'"$0" -m app.adopt "$@" {redirection}', sys.executable, *arguments]
            ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
            environment = os.environ | ascii_only | {"PYTHONPATH": str(BACKEND), "DATABASE_URL": serial}
            return subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

        execute(serial, 'ALTER TABLE tasks ADD "prioritä" text')
        unprinted = run_command(redirection="> /dev/full")
        done, failed = run_command("--yes"), run_command("--table", "user")

        assert (
            unprinted.stderr
            == "The command has succeeded, but its report cannot be printed: No space left on device.\n"
        )
        assert unprinted.returncode == 1
        assert r"kept_fields: priorit\xe4" in done.stdout

        assert (done.returncode, done.stderr) == (0, "")
        assert "Done. tasks is called tasks_before_adoption now. Rows that became tasks: 1." in done.stdout
        assert (failed.returncode, failed.stdout) == (1, "")
        assert failed.stderr == "The table user has no column user_id, but id, email; rename the one that has it.\n"


def test_the_documented_commands_print_what_the_page_shows(empty: str) -> None:
    page = (BACKEND.parent / "docs/adopt.md").read_text()
    [example] = re.findall(r"^```sql\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    run_all(empty, *example.split(";\n")[:-1])

    commands = re.findall(
        r"^```sh\n[^\n]* -m app\.adopt([^\n]*)\n```\n```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE
    )

    assert [adopt(*arguments.split()) + "\n" for arguments, _ in commands] == [shown for _, shown in commands]


@pytest.mark.ci
def test_many_rows_are_adopted(serial: str) -> None:
    rows = "SELECT number, 1, 'many', NULL, true, now(), now() FROM generate_series(2, 40000) AS number"
    execute(serial, f"INSERT INTO tasks {rows}")

    assert "Rows that became tasks: 40,000." in adopt("--yes")

    assert execute(serial, "SELECT count(*), count(DISTINCT id) FROM tasks") == [(40_000, 40_000)]
    assert "No task was created or changed" in adopt("--undo")

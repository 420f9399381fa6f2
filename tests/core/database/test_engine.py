"""`Database.fetch` during faults: what is retried, which error is raised, and whether the database is usable."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import repeat
from typing import Any, Final

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Integer, MetaData, Table, Text, bindparam, cast, make_url, select
from sqlalchemy.dialects.postgresql import JSONB, CreateEnumType
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.schema import CreateSchema, CreateTable

from app.core.database import Database, Statement, statement
from app.core.database.pool import Timeouts
from app.core.errors import DatabaseUnavailableError, OutcomeUnknownError, StatementError, TimedOutError
from tests.core.database.support import ACTIVITY, pid_of_fetch, refusing, wait_for_sleep
from tests.faults import FaultProxy
from tests.support import execute, until

TO_NUMBER: Final = statement(select(cast(bindparam("value", type_=Text), Integer)), reads=True)
TAKE_NUMBER: Final = statement(select(bindparam("value", type_=Integer)), reads=True)
FAIL: Final = Statement("SELECT fail($1)", ("state",), reads=True)
# `fail` raises a SQLSTATE, or sleeps without one. So does the first call of `fails_first` for a sequence.
FUNCTIONS: Final = (
    """
    CREATE FUNCTION fail(state text) RETURNS void LANGUAGE plpgsql AS
        $$BEGIN IF state = '' THEN PERFORM pg_sleep(60); END IF; RAISE 's3cret' USING ERRCODE = state; END$$
    """,
    """
    CREATE FUNCTION fails_first(name text, state text) RETURNS bigint LANGUAGE plpgsql AS
        $$DECLARE n bigint := nextval(name::regclass);
        BEGIN IF n = 1 THEN PERFORM fail(state); END IF; RETURN n; END$$
    """,
)

NO_RIGHT: Final = "no right to others"
NO_COLUMN: Final = "no column id INTEGER in others; if another program made the table, see docs/adopt.md"
TABLES: Final = (Table("things", MetaData()), Table("others", MetaData(), Column("id", Integer)))
TYPES: Final[tuple[Any, ...]] = (
    sa.String(20, collation="C"),
    sa.ARRAY(sa.String(collation="C")),
    sa.Enum("good", "bad", name="Ada's moods", schema="Other's"),
    sa.Numeric(10, 2),
    sa.ARRAY(Integer),
    JSONB(),
    sa.Interval(),
    sa.LargeBinary(),
    sa.Date(),
    sa.Time(),
    sa.SmallInteger(),
    sa.Float(),
    sa.Double(),
)
RESTORE: Final = """
    ALTER ROLE fit RESET ALL; ALTER TABLE IF EXISTS gone RENAME TO others;
    ALTER TABLE others DROP COLUMN IF EXISTS id, ADD COLUMN id integer; GRANT ALL ON others TO fit
"""
END: Final = f"SELECT pg_terminate_backend(pid, 10000) {ACTIVITY}"

MakeDatabase = Callable[..., Database]


@pytest.fixture(scope="module", autouse=True)
def _functions(own_dsn: str) -> None:
    for function in FUNCTIONS:
        execute(own_dsn, function)


@pytest.fixture
async def sequence(server: asyncpg.Connection, new_user: Callable[[], str]) -> str:
    """The name of a sequence, which counts the calls of `fails_first` with its name."""
    name = new_user().replace("-", "_")
    await server.execute(f"CREATE SEQUENCE {name}")
    return name


@pytest.fixture
async def fit(
    monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase, own_dsn: str, server: asyncpg.Connection
) -> AsyncIterator[Database]:
    """A database that is used with the role `fit`, needs two tables, and is probed often."""
    monkeypatch.setattr("app.core.database.faults._PROBE_DELAYS", (0.01,))
    await server.execute("CREATE TABLE things (); CREATE TABLE others (id integer); CREATE ROLE fit LOGIN")
    await server.execute("GRANT ALL ON things, others TO fit")
    dsn = make_url(own_dsn).set(username="fit").render_as_string(hide_password=False)
    yield make_database(dsn, tables=TABLES)
    await server.execute("DROP TABLE things, others; DROP ROLE fit")


async def noted(probes: list[bool]) -> bool:
    probes.append(True)
    return True


def fails_first(*, reads: bool) -> Statement:
    return Statement("SELECT fails_first($1, $2)", ("name", "state"), reads)


class TestErrors:
    @pytest.mark.parametrize(
        ("query", "values", "reason"),
        [
            (TO_NUMBER, {"value": "s3cret"}, "InvalidTextRepresentationError 22P02"),
            (TAKE_NUMBER, {"value": "s3cret"}, "DataError 22000"),
            (FAIL, {"state": "42501"}, "InsufficientPrivilegeError 42501"),
        ],
    )
    async def test_an_error_of_a_statement_contains_no_values_and_keeps_the_connection(
        self, db: Database, query: Statement, values: dict[str, Any], reason: str
    ) -> None:
        pid = await pid_of_fetch(db)

        with pytest.raises(StatementError) as caught:
            await db.fetch(query, **values)

        assert str(caught.value) == reason
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))
        assert await pid_of_fetch(db) == pid

    async def test_a_violated_constraint_is_named_and_a_refused_value_starts_no_probe(
        self, db: Database, server: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        probes: list[bool] = []
        monkeypatch.setattr(db, "check", partial(noted, probes))
        await server.execute("CREATE TABLE bounded (n integer CONSTRAINT small CHECK (n < 1))")

        with pytest.raises(StatementError) as caught:
            await db.fetch(Statement("INSERT INTO bounded VALUES (1)", (), reads=False))
        with pytest.raises(StatementError):
            await db.fetch(TO_NUMBER, value="s3cret")
        assert await pid_of_fetch(db)
        before = [*probes]
        with pytest.raises(StatementError):  # the positive control
            await db.fetch(FAIL, state="42501")
        await until(lambda: probes)
        await server.execute("DROP TABLE bounded")

        assert (caught.value.constraint, before) == ("small", [])

    async def test_a_pooler_that_mixes_up_prepared_statements_is_logged_once_and_not_as_an_outage(
        self, db: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert await db.check()
        for state in ("26000", "42P05"):
            with pytest.raises(DatabaseUnavailableError):
                await db.fetch(FAIL, state=state)

        assert caplog.messages.count("a pooler mixes up prepared statements: set DATABASE_PREPARED_STATEMENTS=off") == 1
        assert "database unavailable" not in caplog.text


class TestRetry:
    @pytest.mark.parametrize(
        "state",
        ["08006", "25006", "26000", "40001", "40P01", "42P05", "53300", "57P03", "58030", "XX000"],
    )
    async def test_a_statement_is_retried_once_after_a_transient_error(
        self, db: Database, sequence: str, state: str
    ) -> None:
        [[calls]] = await db.fetch(fails_first(reads=False), name=sequence, state=state)

        assert calls == 2
        assert db.usable

    @pytest.mark.parametrize(
        ("reads", "idempotent", "state", "expected"),
        [
            (True, True, "57014", TimedOutError),
            (True, True, "55P03", TimedOutError),
            (False, False, "08007", OutcomeUnknownError),
            (False, False, "40003", OutcomeUnknownError),
            (True, True, "", TimedOutError),
            (False, True, "", OutcomeUnknownError),
        ],
    )
    async def test_a_statement_that_was_slow_or_may_have_made_a_change_is_not_retried(
        self,
        make_database: MakeDatabase,
        server: asyncpg.Connection,
        sequence: str,
        *,
        reads: bool,
        idempotent: bool,
        state: str,
        expected: type[Exception],
    ) -> None:
        db = make_database(timeouts=Timeouts(statement=0.1))

        with pytest.raises(expected):
            await db.fetch(fails_first(reads=reads), idempotent=idempotent, name=sequence, state=state)

        assert await server.fetchval("SELECT nextval($1::text::regclass)", sequence) <= 2

    async def test_a_change_has_an_unknown_outcome_if_its_retry_finds_the_database_down(
        self, make_database: MakeDatabase, proxy: FaultProxy, server: asyncpg.Connection, sequence: str
    ) -> None:
        db = make_database(proxy.dsn)
        fetch = asyncio.create_task(db.fetch(fails_first(reads=False), idempotent=True, name=sequence, state=""))
        await wait_for_sleep(server)
        proxy.refuses = True
        proxy.reset()

        with pytest.raises(OutcomeUnknownError):
            await fetch

    async def test_a_statement_makes_one_attempt_while_the_database_is_down(
        self, monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase, proxy: FaultProxy
    ) -> None:
        monkeypatch.setattr("app.core.database.faults._PROBE_DELAYS", (60,))
        db = make_database(proxy.dsn)
        proxy.refuses = True
        with pytest.raises(DatabaseUnavailableError):
            await pid_of_fetch(db)
        await until(lambda: proxy.accepted == 3)  # two attempts and a probe

        with pytest.raises(DatabaseUnavailableError):
            await pid_of_fetch(db)
        await asyncio.sleep(0.1)  # in which no probe follows

        assert proxy.accepted == 4


class TestUsability:
    async def test_an_outage_is_logged_once_without_the_address(
        self, make_database: MakeDatabase, caplog: pytest.LogCaptureFixture
    ) -> None:
        db = make_database("postgresql://ada:s3cret@127.0.0.1:1/tasks")

        for _ in range(2):
            assert not await db.check()
        assert caplog.messages == ["database unavailable: ConnectionRefusedError"]

    async def test_the_text_of_a_refusal_is_logged_once(
        self, make_database: MakeDatabase, caplog: pytest.LogCaptureFixture
    ) -> None:
        with refusing(repeat(("08P01", "no such database: tasks"))) as dsn:
            db = make_database(dsn)
            for _ in range(2):
                assert not await db.check()

        outage = "database unavailable: ProtocolViolationError 08P01"
        assert caplog.messages == [outage, "DATABASE_URL: the database refuses to work: no such database: tasks"]

    async def test_closing_interrupts_a_probe_that_waits_for_an_unresponsive_server(
        self, make_database: MakeDatabase, proxy: FaultProxy
    ) -> None:
        proxy.hold()
        db = make_database(f"{proxy.dsn}&connect_timeout=1")
        with pytest.raises(DatabaseUnavailableError):
            await pid_of_fetch(db)
        await until(lambda: proxy.accepted == 2)

        await asyncio.wait_for(db.close(), 30)

    @pytest.mark.parametrize(
        ("withdraw", "reason"),
        [
            ("ALTER ROLE fit SET default_transaction_read_only = on", "read-only"),
            *((f"REVOKE {right} ON others FROM fit", NO_RIGHT) for right in ("SELECT", "INSERT", "UPDATE", "DELETE")),
            ("ALTER TABLE others RENAME TO gone", "no table others"),
            ("ALTER TABLE others DROP COLUMN id", NO_COLUMN),
            ("ALTER TABLE others ALTER COLUMN id TYPE text", NO_COLUMN),
        ],
    )
    async def test_a_database_is_usable_while_it_is_writable_and_the_role_has_rights_to_all_tables(
        self, fit: Database, server: asyncpg.Connection, caplog: pytest.LogCaptureFixture, withdraw: str, reason: str
    ) -> None:
        assert not fit.usable
        assert await fit.check()
        await server.execute(withdraw)
        await server.execute(END)

        with pytest.raises(StatementError):
            await fit.fetch(FAIL, state="42P01")
        await until(lambda: not fit.usable)
        with pytest.raises(DatabaseUnavailableError):
            await fit.fetch(FAIL, state="42P01")
        assert await pid_of_fetch(fit)
        assert not fit.usable
        await server.execute(RESTORE)
        await server.execute(END)
        await until(lambda: fit.usable)

        assert caplog.messages == [f"database cannot be used: {reason}"]

    async def test_a_table_with_columns_of_any_types_in_another_schema_is_found(
        self, make_database: MakeDatabase, server: asyncpg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        columns: list[Column[Any]] = [
            Column(f"It's {number}", type_, key=str(number)) for number, type_ in enumerate(TYPES)
        ]
        table = Table("Ada's notes", MetaData(), *columns, schema="Other's")
        for element in (CreateSchema("Other's"), CreateEnumType(TYPES[2]), CreateTable(table)):
            await server.execute(str(element.compile(dialect=dialect())))  # type: ignore[no-untyped-call]
        db = make_database(tables=[table])

        assert await db.check()
        await server.execute("""DROP TABLE "Other's"."Ada's notes" """)
        assert not await db.check()

        assert caplog.messages == ["""database cannot be used: no table "Other's"."Ada's notes\""""]

    @pytest.mark.parametrize("setting", ["statement_timeout", "lock_timeout"])
    async def test_a_role_without_a_timeout_causes_one_warning(
        self, fit: Database, server: asyncpg.Connection, caplog: pytest.LogCaptureFixture, setting: str
    ) -> None:
        await server.execute(f"ALTER ROLE fit SET {setting} = 0")

        assert await fit.check()
        assert await fit.check()

        [warning] = caplog.messages
        assert warning.startswith("statement_timeout or lock_timeout of the database's role is 0")

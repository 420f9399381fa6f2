"""Running statements, and the state of the pool after a connection is lost, the server fails or a caller cancels."""

import asyncio
import gc
import logging
import socket
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from sqlalchemy import Integer, Text, bindparam, cast, func, literal_column, make_url, select

from app.core.database import Database, Statement, statement
from app.core.errors import (
    DatabaseUnavailableError,
    OutcomeUnknownError,
    OverloadedError,
    StatementError,
    TimedOutError,
)
from app.server.embedded import embedded_postgres
from tests.faults import fault_proxy
from tests.support import until

ECHO: Final = statement(select(bindparam("value", type_=Text)), reads=True)
PID: Final = statement(select(func.pg_backend_pid()), reads=True)
SLEEP: Final = statement(select(func.pg_sleep(literal_column("60"))), reads=True)
TO_NUMBER: Final = statement(select(cast(bindparam("value", type_=Text), Integer)), reads=True)
TAKE_NUMBER: Final = statement(select(bindparam("value", type_=Integer)), reads=True)
FAIL: Final = statement(select(func.fail(bindparam("value", type_=Text))), reads=True)

MakeDatabase = Callable[..., Database]


@pytest.fixture(scope="session")
def own_dsn(dsn: str) -> str:
    """A database with the function `fail`, which raises a given SQLSTATE."""

    async def create() -> str:
        server = await asyncpg.connect(dsn)
        await server.execute("CREATE DATABASE faults")
        await server.close()
        own = make_url(dsn).set(database="faults").render_as_string(hide_password=False)
        faults = await asyncpg.connect(own)
        await faults.execute(
            "CREATE FUNCTION fail(state text) RETURNS void LANGUAGE plpgsql AS"
            " $$BEGIN RAISE 's3cret' USING ERRCODE = state; END$$"
        )
        await faults.execute(
            "CREATE FUNCTION fails_first(name text, state text) RETURNS bigint LANGUAGE plpgsql AS"
            " $$DECLARE n bigint := nextval(name::regclass);"
            " BEGIN IF n = 1 AND state = '' THEN PERFORM pg_sleep(60); END IF;"
            " IF n = 1 THEN RAISE 's3cret' USING ERRCODE = state; END IF; RETURN n; END$$"
        )
        await faults.close()
        return own

    return asyncio.run(create())


@pytest.fixture
async def make_database(own_dsn: str, caplog: pytest.LogCaptureFixture) -> AsyncIterator[MakeDatabase]:
    """Makes databases. At the end no probe may still run, and no error may have been logged."""
    made: list[Database] = []

    def make(dsn: str = own_dsn, pool_size: int = 1, pool_timeout: float = 10, limit: int = 100) -> Database:
        made.append(Database(dsn, pool_size=pool_size, pool_timeout=pool_timeout, concurrency_limit=limit))
        return made[-1]

    yield make
    for db in made:
        await db.close()
    assert running_probes() == []
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture
async def db(make_database: MakeDatabase) -> Database:
    """A pool of one connection, so that a test notices if a slot is lost."""
    return make_database()


@pytest.fixture
def garbage_collected() -> Iterator[None]:
    """Collects garbage, so that a connection that was not returned causes a warning. Warnings are errors."""
    yield
    gc.collect()


@pytest.fixture
def closed_port() -> int:
    """A port on which no process listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
    return port


@pytest.fixture
async def unresponsive_server() -> AsyncIterator[tuple[str, asyncio.Semaphore]]:
    """The DSN of a server that accepts connections and sends nothing, and a semaphore that counts the connections."""
    attempts, ends = asyncio.Semaphore(0), asyncio.Semaphore(0)
    started = 0

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal started
        started += 1
        attempts.release()
        await reader.read()
        writer.close()
        ends.release()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    yield f"postgresql://ada@127.0.0.1:{server.sockets[0].getsockname()[1]}/tasks", attempts
    for _ in range(started):
        await ends.acquire()  # the client must have closed each connection
    server.close()
    await server.wait_closed()


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.core.database.faults._PROBE_DELAYS", (0.01,))


def running_probes() -> list[str]:
    """The running tasks that probe a lost database."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith("Database.")]


async def fetch_value(db: Database, query: Any = ECHO, **values: Any) -> Any:
    [[value]] = await db.fetch(query, **(values or {"value": "there"} if query is ECHO else values))
    return value


async def start_sleep(db: Database, database: asyncpg.Connection) -> tuple["asyncio.Task[Any]", int]:
    """Returns a statement that runs for a minute, and the id of the server process that runs it."""
    pid = await fetch_value(db, PID)
    sleep = asyncio.create_task(db.fetch(SLEEP))
    while not await sleeps(database, pid):
        assert not sleep.done()
    return sleep, pid


async def end_sleep(database: asyncpg.Connection, statement: "asyncio.Task[Any]") -> None:
    """Terminate the server processes that sleep until `statement`, which one of them runs, is done."""
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'faults' AND wait_event = 'PgSleep'"
    while not statement.done():
        await database.execute(query)


async def first_sleeps(database: asyncpg.Connection) -> bool:
    query = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT fails_first%' AND wait_event = 'PgSleep'"
    return bool(await database.fetch(query))


async def sleeps(database: asyncpg.Connection, pid: int) -> bool:
    found = await database.fetch("SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'", pid)
    return bool(found)


class TestStatement:
    async def test_values_are_bound_by_name(self, db: Database) -> None:
        both = statement(
            select(bindparam("b", type_=Text), bindparam("a", type_=Text), bindparam("b", type_=Text)), reads=True
        )

        assert [tuple(record) for record in await db.fetch(both, a="A", b="B")] == [("B", "A", "B")]

    @pytest.mark.parametrize(
        ("query", "value", "reason"),
        [
            (TO_NUMBER, "s3cret", "InvalidTextRepresentationError 22P02"),
            (TAKE_NUMBER, "s3cret", "DataError 22000"),
            (ECHO, "s3cret\0", "CharacterNotInRepertoireError 22021"),
            (FAIL, "23505", "UniqueViolationError 23505"),
            (FAIL, "42501", "InsufficientPrivilegeError 42501"),
        ],
    )
    async def test_an_error_contains_no_text_of_the_driver_or_the_user(
        self, db: Database, query: Any, value: str, reason: str
    ) -> None:
        pid = await fetch_value(db, PID)

        with pytest.raises(StatementError) as caught:
            await db.fetch(query, value=value)

        assert str(caught.value) == reason
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))
        assert await fetch_value(db, PID) == pid

    @pytest.mark.parametrize("state", ["08006", "53100", "53200", "53300", "57P01", "57P02", "57P03", "57P05"])
    async def test_a_transient_error_of_the_server_makes_the_database_unavailable(
        self, db: Database, state: str
    ) -> None:
        with pytest.raises(DatabaseUnavailableError) as caught:
            await db.fetch(FAIL, value=state)

        assert "s3cret" not in str(caught.value)
        assert await fetch_value(db) == "there"

    async def test_a_statement_leaves_no_transaction_open(self, db: Database, database: asyncpg.Connection) -> None:
        pid = await fetch_value(db, PID)

        assert await database.fetchval("SELECT state FROM pg_stat_activity WHERE pid = $1", pid) == "idle"


@pytest.mark.usefixtures("garbage_collected")
class TestLostConnection:
    async def test_a_connection_that_the_server_closed_is_replaced_without_an_error(
        self, db: Database, database: asyncpg.Connection
    ) -> None:
        pid = await fetch_value(db, PID)
        await database.execute("SELECT pg_terminate_backend($1, 10000)", pid)
        await database.execute("SELECT 1")  # when it is answered, the close has arrived here too

        assert await fetch_value(db, PID) != pid
        assert db.usable

    async def test_a_connection_that_ends_during_a_statement_is_an_error_and_is_replaced(
        self, db: Database, database: asyncpg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        sleep, pid = await start_sleep(db, database)
        await end_sleep(database, sleep)  # also ends the retry

        with pytest.raises(DatabaseUnavailableError):
            await sleep
        assert "database unavailable: ConnectionDoesNotExistError 08003" in caplog.messages
        assert await fetch_value(db, PID) != pid
        assert db.usable

    async def test_a_cancelled_statement_ends_at_the_server_and_keeps_its_slot_usable(
        self, db: Database, database: asyncpg.Connection
    ) -> None:
        sleep, pid = await start_sleep(db, database)
        sleep.cancel()

        with pytest.raises(asyncio.CancelledError):
            await sleep
        assert db.usable
        assert await fetch_value(db) == "there"
        while await sleeps(database, pid):
            pass

    async def test_a_timed_out_statement_ends_at_the_server_and_keeps_its_slot_usable(
        self, monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase, database: asyncpg.Connection
    ) -> None:
        monkeypatch.setattr("app.core.database.engine.STATEMENT_TIMEOUT", 0.5)
        db = make_database()
        sleep, pid = await start_sleep(db, database)

        with pytest.raises(TimedOutError):
            await sleep
        assert not db.usable  # until a probe succeeds
        await until(lambda: db.usable)
        assert await fetch_value(db) == "there"
        while await sleeps(database, pid):
            pass

    @pytest.mark.parametrize("pool_timeout", [1, 0.003])
    async def test_statements_cancelled_at_any_moment_keep_all_slots_usable(
        self, make_database: MakeDatabase, pool_timeout: float
    ) -> None:
        db = make_database(pool_size=2, pool_timeout=pool_timeout)
        for milliseconds in range(40):
            fetches = [asyncio.create_task(fetch_value(db)) for _ in range(4)]
            _, late = await asyncio.wait(fetches, timeout=milliseconds / 4_000)
            for fetch in late:
                fetch.cancel()
            await asyncio.gather(*fetches, return_exceptions=True)

        together = await asyncio.gather(*(fetch_value(db, PID) for _ in range(8)), return_exceptions=True)

        assert len({pid for pid in together if isinstance(pid, int)}) == 2

    async def test_after_an_unanswered_statement_older_connections_are_discarded(
        self, monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase
    ) -> None:
        monkeypatch.setattr("app.core.database.engine.STATEMENT_TIMEOUT", 0.5)
        db = make_database(pool_size=3)
        before = set(await asyncio.gather(*(fetch_value(db, PID) for _ in range(3))))
        assert len(before) == 3

        with pytest.raises(TimedOutError):
            await db.fetch(SLEEP)

        assert not before & set(await asyncio.gather(*(fetch_value(db, PID) for _ in range(3))))


@pytest.fixture
async def sequence(own_dsn: str, new_user: Callable[[], str]) -> AsyncIterator[str]:
    """The name of a sequence, which counts the calls of `fails_first` with its name."""
    name = new_user().replace("-", "_")
    connection = await asyncpg.connect(own_dsn)
    await connection.execute(f"CREATE SEQUENCE {name}")
    yield name
    await connection.close()


def counting(*, reads: bool) -> Statement:
    """The first run fails with the SQLSTATE, or sleeps without one. Each later run returns the number of runs."""
    return Statement("SELECT fails_first($1, $2)", ("name", "state"), reads)


class TestRetry:
    @pytest.mark.parametrize(("reads", "idempotent"), [(True, False), (False, True), (True, True)])
    async def test_a_repeatable_statement_is_retried_once_after_a_lost_connection(
        self, db: Database, database: asyncpg.Connection, sequence: str, *, reads: bool, idempotent: bool
    ) -> None:
        fetch = asyncio.create_task(db.fetch(counting(reads=reads), idempotent=idempotent, name=sequence, state=""))
        await end_sleep(database, fetch)

        assert [tuple(record) for record in await fetch] == [(2,)]
        assert db.usable

    async def test_a_change_that_is_not_idempotent_is_not_retried_after_a_lost_connection(
        self, db: Database, database: asyncpg.Connection, sequence: str
    ) -> None:
        fetch = asyncio.create_task(db.fetch(counting(reads=False), name=sequence, state=""))
        await end_sleep(database, fetch)

        with pytest.raises(OutcomeUnknownError):
            await fetch
        [[next_try]] = await db.fetch(counting(reads=True), name=sequence, state="")
        assert next_try == 2

    @pytest.mark.parametrize("state", ["08006", "25006", "26000", "40001", "40P01", "53300", "57P03", "58030", "XX000"])
    async def test_a_statement_is_retried_once_after_a_transient_error(
        self, db: Database, sequence: str, state: str
    ) -> None:
        assert [tuple(record) for record in await db.fetch(counting(reads=False), name=sequence, state=state)] == [(2,)]
        assert db.usable

    @pytest.mark.parametrize("state", ["08007", "40003"])
    async def test_a_change_has_an_unknown_outcome_if_the_server_does_not_know_it(
        self, db: Database, sequence: str, state: str
    ) -> None:
        with pytest.raises(OutcomeUnknownError):
            await db.fetch(counting(reads=False), name=sequence, state=state)

        [[next_try]] = await db.fetch(counting(reads=True), name=sequence, state=state)
        assert next_try == 2

    @pytest.mark.parametrize("state", ["57014", "55P03"])
    async def test_a_statement_that_the_server_timed_out_is_not_retried(
        self, db: Database, sequence: str, state: str
    ) -> None:
        with pytest.raises(TimedOutError):
            await db.fetch(counting(reads=True), idempotent=True, name=sequence, state=state)

        [[next_try]] = await db.fetch(counting(reads=True), name=sequence, state="")
        assert next_try == 2

    @pytest.mark.parametrize(("reads", "expected"), [(True, TimedOutError), (False, OutcomeUnknownError)])
    async def test_an_unanswered_statement_is_not_retried(
        self,
        monkeypatch: pytest.MonkeyPatch,
        make_database: MakeDatabase,
        sequence: str,
        *,
        reads: bool,
        expected: type,
    ) -> None:
        monkeypatch.setattr("app.core.database.engine.STATEMENT_TIMEOUT", 0.5)
        db = make_database()

        with pytest.raises(expected):
            await db.fetch(counting(reads=reads), idempotent=True, name=sequence, state="")

        [[next_try]] = await db.fetch(counting(reads=True), name=sequence, state="")
        assert next_try == 2

    async def test_a_change_has_an_unknown_outcome_if_its_retry_finds_the_database_down(
        self, make_database: MakeDatabase, own_dsn: str, database: asyncpg.Connection, sequence: str
    ) -> None:
        with fault_proxy(own_dsn) as proxy:
            db = make_database(proxy.dsn)
            fetch = asyncio.create_task(db.fetch(counting(reads=False), idempotent=True, name=sequence, state=""))
            while not await first_sleeps(database):
                pass
            proxy.refuses = True
            proxy.reset()

            with pytest.raises(OutcomeUnknownError):
                await fetch

    async def test_a_statement_makes_one_attempt_while_the_database_is_down(
        self, monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase, own_dsn: str
    ) -> None:
        monkeypatch.setattr("app.core.database.faults._PROBE_DELAYS", (60,))
        with fault_proxy(own_dsn) as proxy:
            db = make_database(proxy.dsn)
            proxy.refuses = True
            with pytest.raises(DatabaseUnavailableError):
                await fetch_value(db)
            await until(lambda: proxy.accepted == 3)  # two attempts and a probe

            with pytest.raises(DatabaseUnavailableError):
                await fetch_value(db)

            assert proxy.accepted == 4

    async def test_a_pooler_that_mixes_up_prepared_statements_is_logged_once_and_not_as_an_outage(
        self, db: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert await db.check()
        for state in ("26000", "42P05"):
            with pytest.raises(DatabaseUnavailableError):
                await db.fetch(FAIL, value=state)

        assert caplog.messages.count("a pooler mixes up prepared statements: set DATABASE_PREPARED_STATEMENTS=off") == 1
        assert "database unavailable" not in caplog.text


class TestLimit:
    async def test_a_statement_above_the_concurrency_limit_is_overloaded_at_once(
        self, make_database: MakeDatabase, database: asyncpg.Connection
    ) -> None:
        db = make_database(limit=2)
        sleep, _ = await start_sleep(db, database)
        waiting = asyncio.create_task(fetch_value(db))
        await asyncio.sleep(0)

        with pytest.raises(OverloadedError):
            await fetch_value(db)
        sleep.cancel()
        assert await waiting == "there"
        assert await fetch_value(db) == "there"
        with pytest.raises(asyncio.CancelledError):
            await sleep

    async def test_a_waiter_waits_for_the_opening_timeout_while_connections_are_opened(
        self, monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase, own_dsn: str
    ) -> None:
        monkeypatch.setattr("app.core.database.pool._OPENING_TIMEOUT", 1)
        with fault_proxy(own_dsn) as proxy:
            proxy.delay = 0.2
            db = make_database(proxy.dsn, pool_timeout=0.05)

            assert await asyncio.gather(*(fetch_value(db) for _ in range(3))) == ["there"] * 3
            await asyncio.sleep(1)  # the opening timeout of the statements above
            assert await fetch_value(db) == "there"

    async def test_a_waiter_is_overloaded_after_the_opening_timeout(
        self, monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase, own_dsn: str
    ) -> None:
        monkeypatch.setattr("app.core.database.pool._OPENING_TIMEOUT", 0.2)
        with fault_proxy(own_dsn) as proxy:
            proxy.delay = 1
            db = make_database(proxy.dsn, pool_timeout=0.05)
            first = asyncio.create_task(fetch_value(db))
            await until(lambda: proxy.accepted)

            with pytest.raises(OverloadedError):
                await fetch_value(db)
            assert await first == "there"


@pytest.fixture
async def owner(own_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that creates the role `fit` and changes its rights."""
    connection = await asyncpg.connect(own_dsn)
    await connection.execute("CREATE TABLE things (); CREATE ROLE fit LOGIN; GRANT ALL ON things TO fit")
    yield connection
    await connection.execute("DROP TABLE IF EXISTS things; DROP ROLE fit")
    await connection.close()


_NO_RIGHT: Final = "no table, or no right to it: things"


@pytest.mark.usefixtures("quick_probes")
class TestFitness:
    @pytest.mark.parametrize(
        ("withdraw", "restore", "reason"),
        [
            ("ALTER ROLE fit SET default_transaction_read_only = on", "ALTER ROLE fit RESET ALL", "read-only"),
            (
                "REVOKE INSERT ON things FROM fit",
                "GRANT INSERT ON things TO fit",
                _NO_RIGHT,
            ),
            (
                "ALTER TABLE things RENAME TO gone",
                "ALTER TABLE gone RENAME TO things",
                _NO_RIGHT,
            ),
        ],
    )
    async def test_a_database_is_not_usable_until_its_rights_and_tables_are_sufficient(
        self,
        own_dsn: str,
        owner: asyncpg.Connection,
        caplog: pytest.LogCaptureFixture,
        withdraw: str,
        restore: str,
        reason: str,
    ) -> None:
        await owner.execute(withdraw)
        caplog.set_level(logging.INFO)
        dsn = own_dsn.replace("postgres@", "fit@")
        db = Database(dsn, pool_size=1, pool_timeout=10, concurrency_limit=10, tables=("things",))

        assert not await db.check()
        assert await fetch_value(db) == "there"
        assert not db.usable
        await owner.execute(restore)
        await owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'fit'")
        await until(lambda: db.usable)

        assert caplog.messages.count(f"database cannot be used: {reason}") == 1
        assert caplog.messages[-1] == "database can be used"
        await db.close()

    async def test_a_database_that_loses_its_table_is_not_usable_after_the_next_statement(
        self, own_dsn: str, owner: asyncpg.Connection
    ) -> None:
        dsn = own_dsn.replace("postgres@", "fit@")
        db = Database(dsn, pool_size=1, pool_timeout=10, concurrency_limit=10, tables=("things",))
        assert await db.check()
        await owner.execute("DROP TABLE things")

        with pytest.raises(StatementError):
            await db.fetch(Statement("TABLE things", (), reads=True))
        await until(lambda: not db.usable)
        await db.close()


class TestTimeouts:
    async def test_a_role_without_timeouts_causes_one_warning(
        self, make_database: MakeDatabase, own_dsn: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        connection = await asyncpg.connect(own_dsn)
        await connection.execute("CREATE ROLE untimed LOGIN; ALTER ROLE untimed SET statement_timeout = 0")
        await connection.close()
        db = make_database(own_dsn.replace("postgres@", "untimed@"))

        assert await db.check()
        assert await db.check()

        [warning] = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert warning.startswith("statement_timeout or lock_timeout of the database")

    async def test_a_role_with_timeouts_causes_no_warning(self, db: Database, caplog: pytest.LogCaptureFixture) -> None:
        assert await db.check()

        assert not [record for record in caplog.records if record.levelname == "WARNING"]


class TestPool:
    async def test_a_statement_without_a_free_connection_is_overloaded_without_an_outage(
        self, make_database: MakeDatabase, database: asyncpg.Connection
    ) -> None:
        db = make_database(pool_timeout=0.05)
        sleep, _ = await start_sleep(db, database)

        with pytest.raises(OverloadedError):
            await fetch_value(db)
        assert not await db.check()
        assert db.usable
        sleep.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleep

    async def test_a_waiter_gets_the_next_free_connection(self, db: Database, database: asyncpg.Connection) -> None:
        sleep, pid = await start_sleep(db, database)
        waiting = asyncio.create_task(fetch_value(db))
        await database.execute("SELECT pg_cancel_backend($1)", pid)

        with pytest.raises(TimedOutError):
            await sleep
        assert await waiting == "there"

    async def test_the_next_waiter_gets_the_slot_of_a_waiter_cancelled_on_receiving_it(
        self, make_database: MakeDatabase, database: asyncpg.Connection
    ) -> None:
        db = make_database(pool_timeout=5)
        sleep, _ = await start_sleep(db, database)
        first, second = asyncio.create_task(fetch_value(db)), asyncio.create_task(fetch_value(db))
        await asyncio.sleep(0)
        sleep.cancel()
        await asyncio.sleep(0)  # the first waiter owns the slot, but has not run yet

        first.cancel()

        assert await second == "there"
        assert first.cancelled()

    async def test_a_connection_is_reused_and_closed_at_its_maximum_age(
        self, make_database: MakeDatabase, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        db = make_database()
        pids = [await fetch_value(db, PID), await fetch_value(db, PID)]
        monkeypatch.setattr("app.core.database.pool._AGE_MAX", -1)
        young = make_database()
        old = await fetch_value(young, PID)

        assert len(set(pids)) == 1
        assert await fetch_value(young, PID) != old

        async def is_closed() -> bool:
            return not await database.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", old)

        await until(is_closed)

    async def test_all_waiters_fail_at_once_when_connecting_fails(
        self, make_database: MakeDatabase, closed_port: int
    ) -> None:
        db = make_database(f"postgresql://ada@127.0.0.1:{closed_port}/tasks", pool_timeout=2)

        ends = await asyncio.gather(*(fetch_value(db) for _ in range(5)), return_exceptions=True)

        assert {type(end) for end in ends} == {DatabaseUnavailableError}


class TestAvailability:
    async def test_a_database_is_not_usable_before_its_first_answer(self, db: Database) -> None:
        assert not db.usable
        assert await db.check()
        assert db.usable

    @pytest.mark.parametrize("address", ["127.0.0.1:{port}/tasks", "/tasks?host=/nowhere"])
    async def test_a_database_is_unavailable_where_no_server_listens(
        self, make_database: MakeDatabase, closed_port: int, caplog: pytest.LogCaptureFixture, address: str
    ) -> None:
        db = make_database(f"postgresql://ada:s3cret@{address.format(port=closed_port)}")

        with pytest.raises(DatabaseUnavailableError):
            await fetch_value(db)
        assert not await db.check()
        assert not db.usable
        [warning] = caplog.messages  # one for the outage, not one per statement
        assert warning.startswith("database unavailable: ")
        assert "s3cret" not in caplog.text

    async def test_a_database_that_does_not_exist_is_unavailable(
        self, make_database: MakeDatabase, own_dsn: str
    ) -> None:
        db = make_database(make_url(own_dsn).set(database="nowhere").render_as_string(hide_password=False))

        assert not await db.check()

    async def test_an_unresponsive_server_is_unavailable(
        self,
        monkeypatch: pytest.MonkeyPatch,
        make_database: MakeDatabase,
        unresponsive_server: tuple[str, asyncio.Semaphore],
    ) -> None:
        monkeypatch.setattr("app.core.database.dsn._CONNECT_TIMEOUT", 0.2)
        dsn, _ = unresponsive_server
        db = make_database(dsn)

        with pytest.raises(DatabaseUnavailableError):
            await fetch_value(db)

    @pytest.mark.usefixtures("quick_probes")
    async def test_a_restarted_server_is_detected_without_a_request(
        self, make_database: MakeDatabase, tmp_path: Path
    ) -> None:
        with ExitStack() as server:
            dsn = server.enter_context(embedded_postgres(tmp_path / "postgres"))
            db = make_database(dsn)
            assert await db.check()

            server.close()
            assert not await db.check()
            assert not db.usable

            server.enter_context(embedded_postgres(tmp_path / "postgres"))
            await until(lambda: db.usable)
            assert await fetch_value(db) == "there"

    async def test_closing_ends_the_probes_of_a_lost_server(
        self, make_database: MakeDatabase, closed_port: int
    ) -> None:
        db = make_database(f"postgresql://ada@127.0.0.1:{closed_port}/tasks")
        await db.check()
        assert len(running_probes()) == 1

        await db.close()

        assert running_probes() == []

    @pytest.mark.usefixtures("quick_probes")
    async def test_closing_interrupts_a_probe_that_waits_for_the_server(
        self,
        monkeypatch: pytest.MonkeyPatch,
        make_database: MakeDatabase,
        unresponsive_server: tuple[str, asyncio.Semaphore],
    ) -> None:
        monkeypatch.setattr("app.core.database.dsn._CONNECT_TIMEOUT", 0.2)
        dsn, attempts = unresponsive_server
        db = make_database(dsn)
        await db.check()
        await attempts.acquire()
        await attempts.acquire()
        assert len(running_probes()) == 1

        await db.close()

        assert running_probes() == []

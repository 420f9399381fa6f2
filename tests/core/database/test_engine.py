"""How a statement runs, and what becomes of the pool when a connection, the server or the caller goes away."""

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
    """A database with the function `fail`, which raises the SQLSTATE that it is given."""

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
    """Makes databases. At the end nothing of them may be left, nor have been complained of."""
    made: list[Database] = []

    def make(dsn: str = own_dsn, pool_size: int = 1, pool_timeout: float = 10, limit: int = 100) -> Database:
        made.append(Database(dsn, pool_size=pool_size, pool_timeout=pool_timeout, concurrency_limit=limit))
        return made[-1]

    yield make
    for db in made:
        await db.close()
    assert searches() == []
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture
async def db(make_database: MakeDatabase) -> Database:
    """A pool of one connection, which a statement that loses it would take along."""
    return make_database()


@pytest.fixture
def garbage_collected() -> Iterator[None]:
    """Lets a connection that was lost instead of given back be complained of: warnings are errors."""
    yield
    gc.collect()


@pytest.fixture
def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
    return port


@pytest.fixture
async def silent_server() -> AsyncIterator[tuple[str, asyncio.Semaphore]]:
    """The address of a server that takes connections and never says a word, and the attempts to connect."""
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
        await ends.acquire()  # each must have been given up
    server.close()
    await server.wait_closed()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.core.database.faults._PROBE_DELAYS", (0.01,))


def searches() -> list[str]:
    """The tasks that look for a lost database."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith("Database.")]


async def fetch_value(db: Database, query: Any = ECHO, **values: Any) -> Any:
    [[value]] = await db.fetch(query, **(values or {"value": "there"} if query is ECHO else values))
    return value


async def start_sleep(db: Database, database: asyncpg.Connection) -> tuple["asyncio.Task[Any]", int]:
    """Returns a statement that runs for a minute, and the process of the server that runs it."""
    pid = await fetch_value(db, PID)
    sleep = asyncio.create_task(db.fetch(SLEEP))
    while not await sleeps(database, pid):
        assert not sleep.done()
    return sleep, pid


async def end_sleep(database: asyncpg.Connection, statement: "asyncio.Task[Any]") -> None:
    """End the server's processes that sleep until `statement` is done, which is run by one of them."""
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
    async def test_values_go_by_name(self, db: Database) -> None:
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
    async def test_a_failure_is_told_without_the_words_of_driver_or_user(
        self, db: Database, query: Any, value: str, reason: str
    ) -> None:
        pid = await fetch_value(db, PID)

        with pytest.raises(StatementError) as caught:
            await db.fetch(query, value=value)

        assert str(caught.value) == reason
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))
        assert await fetch_value(db, PID) == pid

    @pytest.mark.parametrize("state", ["08006", "53100", "53200", "53300", "57P01", "57P02", "57P03", "57P05"])
    async def test_a_server_that_cannot_serve_now_is_unavailable(self, db: Database, state: str) -> None:
        with pytest.raises(DatabaseUnavailableError) as caught:
            await db.fetch(FAIL, value=state)

        assert "s3cret" not in str(caught.value)
        assert await fetch_value(db) == "there"

    async def test_no_transaction_stays_open_behind_it(self, db: Database, database: asyncpg.Connection) -> None:
        pid = await fetch_value(db, PID)

        assert await database.fetchval("SELECT state FROM pg_stat_activity WHERE pid = $1", pid) == "idle"


@pytest.mark.usefixtures("garbage_collected")
class TestLostConnection:
    async def test_one_that_the_server_has_closed_is_replaced_unnoticed(
        self, db: Database, database: asyncpg.Connection
    ) -> None:
        pid = await fetch_value(db, PID)
        await database.execute("SELECT pg_terminate_backend($1, 10000)", pid)
        await database.execute("SELECT 1")  # by then the end has arrived here too

        assert await fetch_value(db, PID) != pid
        assert db.usable

    async def test_one_that_ends_within_a_statement_is_unavailable_and_replaced(
        self, db: Database, database: asyncpg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        sleep, pid = await start_sleep(db, database)
        await end_sleep(database, sleep)  # and where it was run once more

        with pytest.raises(DatabaseUnavailableError):
            await sleep
        assert "database unavailable: ConnectionDoesNotExistError 08003" in caplog.messages
        assert await fetch_value(db, PID) != pid
        assert db.usable

    async def test_a_cancelled_statement_ends_at_the_server_and_leaves_the_pool_whole(
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

    async def test_a_deadline_ends_a_statement_likewise(
        self, monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase, database: asyncpg.Connection
    ) -> None:
        monkeypatch.setattr("app.core.database.engine.STATEMENT_TIMEOUT", 0.5)
        db = make_database()
        sleep, pid = await start_sleep(db, database)

        with pytest.raises(TimedOutError):
            await sleep
        assert not db.usable  # until it has been asked
        await until(lambda: db.usable)
        assert await fetch_value(db) == "there"
        while await sleeps(database, pid):
            pass

    @pytest.mark.parametrize("patience", [1, 0.003])
    async def test_statements_cancelled_at_any_moment_leave_the_pool_whole(
        self, make_database: MakeDatabase, patience: float
    ) -> None:
        db = make_database(pool_size=2, pool_timeout=patience)
        for milliseconds in range(40):
            fetches = [asyncio.create_task(fetch_value(db)) for _ in range(4)]
            _, late = await asyncio.wait(fetches, timeout=milliseconds / 4_000)
            for fetch in late:
                fetch.cancel()
            await asyncio.gather(*fetches, return_exceptions=True)

        together = await asyncio.gather(*(fetch_value(db, PID) for _ in range(8)), return_exceptions=True)

        assert len({pid for pid in together if isinstance(pid, int)}) == 2

    async def test_after_one_that_says_nothing_none_that_was_open_before_is_trusted(
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
async def tries(own_dsn: str, new_user: Callable[[], str]) -> AsyncIterator[str]:
    """The name of a sequence, which counts how often `fails_first` was run for it."""
    name = new_user().replace("-", "_")
    connection = await asyncpg.connect(own_dsn)
    await connection.execute(f"CREATE SEQUENCE {name}")
    yield name
    await connection.close()


def counting(*, reads: bool) -> Statement:
    """The first time it fails with the SQLSTATE, without one it sleeps; later it returns how often it was run."""
    return Statement("SELECT fails_first($1, $2)", ("name", "state"), reads)


class TestAgain:
    @pytest.mark.parametrize(("reads", "idempotent"), [(True, False), (False, True), (True, True)])
    async def test_what_may_be_repeated_is_run_once_more_when_it_loses_its_connection(
        self, db: Database, database: asyncpg.Connection, tries: str, *, reads: bool, idempotent: bool
    ) -> None:
        fetch = asyncio.create_task(db.fetch(counting(reads=reads), idempotent=idempotent, name=tries, state=""))
        await end_sleep(database, fetch)

        assert [tuple(record) for record in await fetch] == [(2,)]
        assert db.usable

    async def test_another_change_is_not_and_its_outcome_is_unknown(
        self, db: Database, database: asyncpg.Connection, tries: str
    ) -> None:
        fetch = asyncio.create_task(db.fetch(counting(reads=False), name=tries, state=""))
        await end_sleep(database, fetch)

        with pytest.raises(OutcomeUnknownError):
            await fetch
        [[next_try]] = await db.fetch(counting(reads=True), name=tries, state="")
        assert next_try == 2

    @pytest.mark.parametrize("state", ["08006", "25006", "26000", "40001", "40P01", "53300", "57P03", "58030", "XX000"])
    async def test_what_the_server_refused_for_now_is_asked_once_more(
        self, db: Database, tries: str, state: str
    ) -> None:
        assert [tuple(record) for record in await db.fetch(counting(reads=False), name=tries, state=state)] == [(2,)]
        assert db.usable

    @pytest.mark.parametrize("state", ["08007", "40003"])
    async def test_of_what_it_cannot_tell_the_outcome_is_unknown(self, db: Database, tries: str, state: str) -> None:
        with pytest.raises(OutcomeUnknownError):
            await db.fetch(counting(reads=False), name=tries, state=state)

        [[next_try]] = await db.fetch(counting(reads=True), name=tries, state=state)
        assert next_try == 2

    @pytest.mark.parametrize("state", ["57014", "55P03"])
    async def test_what_took_too_long_is_not(self, db: Database, tries: str, state: str) -> None:
        with pytest.raises(TimedOutError):
            await db.fetch(counting(reads=True), idempotent=True, name=tries, state=state)

        [[next_try]] = await db.fetch(counting(reads=True), name=tries, state="")
        assert next_try == 2

    @pytest.mark.parametrize(("reads", "expected"), [(True, TimedOutError), (False, OutcomeUnknownError)])
    async def test_nor_is_what_the_server_did_not_answer(
        self, monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase, tries: str, *, reads: bool, expected: type
    ) -> None:
        monkeypatch.setattr("app.core.database.engine.STATEMENT_TIMEOUT", 0.5)
        db = make_database()

        with pytest.raises(expected):
            await db.fetch(counting(reads=reads), idempotent=True, name=tries, state="")

        [[next_try]] = await db.fetch(counting(reads=True), name=tries, state="")
        assert next_try == 2

    async def test_a_change_that_may_have_been_made_stays_unknown_when_the_database_is_away_then(
        self, make_database: MakeDatabase, own_dsn: str, database: asyncpg.Connection, tries: str
    ) -> None:
        with fault_proxy(own_dsn) as proxy:
            db = make_database(proxy.dsn)
            fetch = asyncio.create_task(db.fetch(counting(reads=False), idempotent=True, name=tries, state=""))
            while not await first_sleeps(database):
                pass
            proxy.refuses = True
            proxy.reset()

            with pytest.raises(OutcomeUnknownError):
                await fetch

    async def test_when_the_database_is_known_to_be_away_one_attempt_is_made(
        self, monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase, own_dsn: str
    ) -> None:
        monkeypatch.setattr("app.core.database.faults._PROBE_DELAYS", (60,))
        with fault_proxy(own_dsn) as proxy:
            db = make_database(proxy.dsn)
            proxy.refuses = True
            with pytest.raises(DatabaseUnavailableError):
                await fetch_value(db)
            await until(lambda: proxy.accepted == 3)  # two, and a look

            with pytest.raises(DatabaseUnavailableError):
                await fetch_value(db)

            assert proxy.accepted == 4

    async def test_a_pooler_that_mixes_up_prepared_statements_is_told_once_and_no_outage(
        self, db: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert await db.check()
        for state in ("26000", "42P05"):
            with pytest.raises(DatabaseUnavailableError):
                await db.fetch(FAIL, value=state)

        assert caplog.messages.count("a pooler mixes up prepared statements: set DATABASE_PREPARED_STATEMENTS=off") == 1
        assert "database unavailable" not in caplog.text


class TestLimit:
    async def test_one_more_than_the_limit_is_overloaded_at_once(
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

    async def test_one_that_waits_while_connections_are_opened_has_as_long_as_they_have(
        self, monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase, own_dsn: str
    ) -> None:
        monkeypatch.setattr("app.core.database.pool._OPENING_TIMEOUT", 1)
        with fault_proxy(own_dsn) as proxy:
            proxy.delay = 0.2
            db = make_database(proxy.dsn, pool_timeout=0.05)

            assert await asyncio.gather(*(fetch_value(db) for _ in range(3))) == ["there"] * 3
            await asyncio.sleep(1)  # when they had timed out
            assert await fetch_value(db) == "there"

    async def test_one_that_waits_for_longer_than_that_is_overloaded(
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
    """Makes and takes what the role `fit` may use."""
    connection = await asyncpg.connect(own_dsn)
    await connection.execute("CREATE TABLE things (); CREATE ROLE fit LOGIN; GRANT ALL ON things TO fit")
    yield connection
    await connection.execute("DROP TABLE IF EXISTS things; DROP ROLE fit")
    await connection.close()


_NO_RIGHT: Final = "no table, or no right to it: things"


@pytest.mark.usefixtures("quick_retries")
class TestFitness:
    @pytest.mark.parametrize(
        ("take", "give", "reason"),
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
    async def test_a_database_that_cannot_be_used_is_not_ready_until_it_can(
        self,
        own_dsn: str,
        owner: asyncpg.Connection,
        caplog: pytest.LogCaptureFixture,
        take: str,
        give: str,
        reason: str,
    ) -> None:
        await owner.execute(take)
        caplog.set_level(logging.INFO)
        dsn = own_dsn.replace("postgres@", "fit@")
        db = Database(dsn, pool_size=1, pool_timeout=10, concurrency_limit=10, tables=("things",))

        assert not await db.check()
        assert await fetch_value(db) == "there"
        assert not db.usable
        await owner.execute(give)
        await owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'fit'")
        await until(lambda: db.usable)

        assert caplog.messages.count(f"database cannot be used: {reason}") == 1
        assert caplog.messages[-1] == "database can be used"
        await db.close()

    async def test_one_that_loses_its_table_is_not_ready_from_the_next_statement_on(
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
    async def test_a_role_without_them_is_told_once(
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

    async def test_of_one_with_them_nothing_is_told(self, db: Database, caplog: pytest.LogCaptureFixture) -> None:
        assert await db.check()

        assert not [record for record in caplog.records if record.levelname == "WARNING"]


class TestPool:
    async def test_one_without_a_free_connection_is_overloaded_and_the_database_is_not_lost(
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

    async def test_one_that_waits_for_a_connection_gets_the_next(
        self, db: Database, database: asyncpg.Connection
    ) -> None:
        sleep, pid = await start_sleep(db, database)
        waiting = asyncio.create_task(fetch_value(db))
        await database.execute("SELECT pg_cancel_backend($1)", pid)

        with pytest.raises(TimedOutError):
            await sleep
        assert await waiting == "there"

    async def test_the_next_gets_the_place_of_one_that_is_cancelled_when_its_turn_comes(
        self, make_database: MakeDatabase, database: asyncpg.Connection
    ) -> None:
        db = make_database(pool_timeout=5)
        sleep, _ = await start_sleep(db, database)
        first, second = asyncio.create_task(fetch_value(db)), asyncio.create_task(fetch_value(db))
        await asyncio.sleep(0)
        sleep.cancel()
        await asyncio.sleep(0)  # the place is passed on, but who has it does not run yet

        first.cancel()

        assert await second == "there"
        assert first.cancelled()

    async def test_a_connection_is_used_again_until_it_is_too_old_and_is_closed_then(
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

    async def test_those_that_wait_for_a_connection_are_told_at_once_that_none_can_be_made(
        self, make_database: MakeDatabase, closed_port: int
    ) -> None:
        db = make_database(f"postgresql://ada@127.0.0.1:{closed_port}/tasks", pool_timeout=2)

        ends = await asyncio.gather(*(fetch_value(db) for _ in range(5)), return_exceptions=True)

        assert {type(end) for end in ends} == {DatabaseUnavailableError}


class TestReachable:
    async def test_nothing_is_known_before_the_first_answer(self, db: Database) -> None:
        assert not db.usable
        assert await db.check()
        assert db.usable

    @pytest.mark.parametrize("address", ["127.0.0.1:{port}/tasks", "/tasks?host=/nowhere"])
    async def test_where_nobody_listens_the_database_is_unavailable(
        self, make_database: MakeDatabase, closed_port: int, caplog: pytest.LogCaptureFixture, address: str
    ) -> None:
        db = make_database(f"postgresql://ada:s3cret@{address.format(port=closed_port)}")

        with pytest.raises(DatabaseUnavailableError):
            await fetch_value(db)
        assert not await db.check()
        assert not db.usable
        [warning] = caplog.messages  # one for the outage, not one for each statement
        assert warning.startswith("database unavailable: ")
        assert "s3cret" not in caplog.text

    async def test_a_database_that_is_not_there_is_unavailable(self, make_database: MakeDatabase, own_dsn: str) -> None:
        db = make_database(make_url(own_dsn).set(database="nowhere").render_as_string(hide_password=False))

        assert not await db.check()

    async def test_a_server_that_says_nothing_is_unavailable(
        self, monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase, silent_server: tuple[str, asyncio.Semaphore]
    ) -> None:
        monkeypatch.setattr("app.core.database.dsn._CONNECT_TIMEOUT", 0.2)
        dsn, _ = silent_server
        db = make_database(dsn)

        with pytest.raises(DatabaseUnavailableError):
            await fetch_value(db)

    @pytest.mark.usefixtures("quick_retries")
    async def test_a_server_that_comes_back_is_noticed_without_a_request(
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

    async def test_closing_ends_the_search_for_a_lost_server(
        self, make_database: MakeDatabase, closed_port: int
    ) -> None:
        db = make_database(f"postgresql://ada@127.0.0.1:{closed_port}/tasks")
        await db.check()
        assert len(searches()) == 1

        await db.close()

        assert searches() == []

    @pytest.mark.usefixtures("quick_retries")
    async def test_closing_interrupts_a_search_that_waits_for_the_server(
        self, monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase, silent_server: tuple[str, asyncio.Semaphore]
    ) -> None:
        monkeypatch.setattr("app.core.database.dsn._CONNECT_TIMEOUT", 0.2)
        dsn, attempts = silent_server
        db = make_database(dsn)
        await db.check()
        await attempts.acquire()
        await attempts.acquire()
        assert len(searches()) == 1

        await db.close()

        assert searches() == []

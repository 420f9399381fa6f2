"""Handlers that take a `Session`: when it commits, what its faults become, and what it leaves in the pool."""

import asyncio
import gc
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from ipaddress import IPv4Address
from typing import Any, Final, Protocol
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import (
    ARRAY,
    JSON,
    CheckConstraint,
    Column,
    DateTime,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Text,
    UniqueConstraint,
    bindparam,
    column,
    func,
    insert,
    make_url,
    table,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import INET, JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import registry
from sqlalchemy.schema import CreateTable
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.database import Database, Statement, statement
from app.core.database.dialect import QuietDialect
from app.core.database.migrations import migrate
from app.core.errors import DatabaseUnavailableError, OverloadedError, TimedOutError
from app.routes.deps import Db, Session
from tests.faults import FaultProxy, fault_proxy
from tests.support import SECRET, bearer, execute, make_settings, new_database, serving, until

Handler = Callable[..., Awaitable[Any]]

PID: Final = statement(select(func.pg_backend_pid()), reads=True)
STATE: Final = select(func.pg_backend_pid(), func.pg_current_xact_id_if_assigned().is_not(None))
ECHO: Final = statement(select(bindparam("value", type_=Text)), reads=True)
SLEEP: Final = select(func.pg_sleep(60))
LOCK: Final = 7  # the advisory lock that the COMMIT of an item with `waits` needs
# Has the COMMIT wait for the lock.
WAIT: Final = f"""
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN PERFORM pg_advisory_xact_lock({LOCK}); RETURN NULL; END$$;
CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.waits) EXECUTE FUNCTION wait();
"""
ACTIVITY: Final = "FROM pg_stat_activity WHERE application_name = 'tasks-api' AND datname = 'sessions'"
END: Final = f"SELECT pg_terminate_backend(pid, 10000) {ACTIVITY}"


class Base(SQLModel, registry=registry()):
    """The service does not look for these tables when it starts."""


class Item(Base, table=True):
    __table_args__ = (
        UniqueConstraint("code", deferrable=True, initially="DEFERRED"),
        CheckConstraint("amount >= 0"),
    )

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    owner: str
    name: str = Field(sa_column=Column(String(20), unique=True, nullable=False))
    amount: int = 0
    parent_id: UUID | None = Field(default=None, foreign_key="item.id")
    code: str | None = None
    waits: bool = False


class NewItem(BaseModel):
    """Checks nothing that the database checks."""

    name: str | None = "s3cret"
    amount: int = 0
    parent_id: UUID | None = None
    code: str | None = None
    waits: bool = False


class Colour(Enum):
    RED = "r"
    BLUE = "b"


class Sample(Base, table=True):
    """One column of each kind."""

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    document: dict[str, Any] | None = Field(sa_column=Column(JSON))
    binary_document: list[Any] = Field(sa_column=Column(JSONB))
    colour: Colour
    price: Decimal = Field(sa_column=Column(Numeric(20, 5)))
    ratio: float
    day: date
    moment: datetime = Field(sa_column=Column(DateTime(timezone=True)))
    length: timedelta
    numbers: list[int] = Field(sa_column=Column(ARRAY(Integer)))
    names: list[str] = Field(sa_column=Column(ARRAY(Text)))
    content: bytes = Field(sa_column=Column(LargeBinary))
    address: Any = Field(sa_column=Column(INET))


async def create(user_id: str, new: NewItem, session: Session) -> None:
    session.add(Item(owner=user_id, **new.model_dump()))


async def create_and_flush(user_id: str, new: NewItem, session: Session) -> None:
    await create(user_id, new, session)
    await session.flush()


async def create_by_statement(user_id: str, new: NewItem, session: Session) -> None:
    await session.exec(insert(Item).values(id=uuid4(), owner=user_id, **new.model_dump()))


async def sleep(session: Session) -> None:
    await session.exec(SLEEP)


async def ping(database: Db) -> int:
    """Asks over `fetch`. Returns the process of the server that answered."""
    [[pid]] = await database.fetch(PID)
    return int(pid)


async def select_pid(session: Session) -> int:
    return int((await session.exec(select(func.pg_backend_pid()))).one())


async def select_state(database: Database) -> list[Any]:
    async with database.session() as session:
        return list(await session.exec(STATE))


class Start(Protocol):
    async def __call__(self, *handlers: Handler, dsn: str = ..., **settings: Any) -> httpx.AsyncClient: ...


@pytest.fixture(scope="module")
def session_dsn(dsn: str) -> Iterator[str]:
    """A database with the tables of this module."""
    with new_database(dsn, "sessions") as own:
        migrate(own)
        execute(own, "CREATE TYPE colour AS ENUM ('RED', 'BLUE')")
        for each in Base.metadata.sorted_tables:
            execute(own, str(CreateTable(each).compile(dialect=QuietDialect())))  # type: ignore[no-untyped-call]
        for definition in WAIT.split(";\n"):
            execute(own, definition)
        yield own


@pytest.fixture
async def start(session_dsn: str, server: asyncpg.Connection, user: str) -> AsyncIterator[Start]:
    """Starts a service that has each handler under its name, and returns a client with the token of the user."""
    async with AsyncExitStack() as stack:

        async def start(*handlers: Handler, dsn: str = session_dsn, **settings: Any) -> httpx.AsyncClient:
            def extend(app: FastAPI) -> None:
                for handler in handlers:
                    app.post(f"/api/{{user_id}}/{handler.__name__}", status_code=201)(handler)

            url = await stack.enter_async_context(
                serving(make_settings(dsn, auth_jwt_secret=SECRET, **settings), extend)
            )
            client = httpx.AsyncClient(base_url=f"{url}/api/{user}", headers=bearer(user), timeout=30)
            return await stack.enter_async_context(client)

        yield start
    await server.execute(END)  # a process whose client is gone goes on sleeping
    gc.collect()  # lets a connection that was lost instead of given back be complained of: warnings are errors


@pytest.fixture
async def server(session_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A direct connection to the database."""
    connection = await asyncpg.connect(session_dsn)
    yield connection
    await connection.close()


@pytest.fixture
def stored(server: asyncpg.Connection, user: str) -> Callable[[], Coroutine[Any, Any, list[str]]]:
    """Returns the names of the items of the user."""

    async def stored() -> list[str]:
        return [name for [name] in await server.fetch("SELECT name FROM item WHERE owner = $1 ORDER BY name", user)]

    return stored


Stored = Callable[[], Awaitable[list[str]]]


def outcome(reply: httpx.Response) -> str:
    """Returns the status, and the kind of a problem. No reply may quote what was sent or asked."""
    for secret in ("s3cret", "INSERT", "item", "postgres"):
        assert secret not in reply.text
    if reply.is_success:
        return str(reply.status_code)
    assert reply.headers["Content-Type"] == "application/problem+json"
    return f"{reply.status_code} {reply.json()['type'].removeprefix('urn:problem-type:')}"


def assert_no_secret(log: str) -> None:
    for secret in ("s3cret", "INSERT", "VALUES", "postgresql://"):
        assert secret not in log


def assert_no_errors(caplog: pytest.LogCaptureFixture) -> None:
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def wait_for(server: asyncpg.Connection, condition: str) -> int:
    """Returns the process of the service's connection that meets the condition, as soon as one does."""
    found: list[int] = []

    async def is_found() -> bool:
        found[:] = [pid for [pid] in await server.fetch(f"SELECT pid {ACTIVITY} AND {condition}")]
        return bool(found)

    await until(is_found)
    return found[0]


async def wait_for_sleep(server: asyncpg.Connection) -> int:
    return await wait_for(server, "wait_event = 'PgSleep'")


async def wait_for_commit(server: asyncpg.Connection) -> int:
    return await wait_for(server, "wait_event = 'advisory' AND query = 'COMMIT;'")


async def connections(server: asyncpg.Connection) -> list[str]:
    """Returns the states of the service's connections."""
    return [state for [state] in await server.fetch(f"SELECT state {ACTIVITY}")]


@asynccontextmanager
async def held_commit(server: asyncpg.Connection) -> AsyncIterator[None]:
    """Have the COMMIT of an item with `waits` wait until the end of the context."""
    await server.execute("SELECT pg_advisory_lock($1)", LOCK)
    yield
    await server.execute("SELECT pg_advisory_unlock($1)", LOCK)


class TestCommit:
    async def test_the_reply_waits_for_the_commit(
        self, start: Start, server: asyncpg.Connection, stored: Stored, user: str
    ) -> None:
        client = await start(create)

        async with held_commit(server):
            request = asyncio.create_task(client.post("create", json={"name": user, "waits": True}))
            await wait_for_commit(server)
            assert not request.done()

        assert outcome(await request) == "201"
        assert await stored() == [user]

    async def test_the_idiom_of_sqlmodel_works(self, start: Start, stored: Stored, user: str) -> None:
        async def save(user_id: str, new: NewItem, session: Session) -> Item:
            item = Item(owner=user_id, **new.model_dump())
            session.add(item)
            await session.commit()
            await session.refresh(item)
            return item

        client = await start(save)
        reply = await client.post("save", json={"name": user, "amount": 3})

        assert (reply.status_code, reply.json()["name"], reply.json()["amount"]) == (201, user, 3)
        assert await stored() == [user]

    async def test_attributes_can_be_read_after_the_commit(self, start: Start, user: str) -> None:
        async def save(user_id: str, new: NewItem, session: Session) -> str:
            item = Item(owner=user_id, **new.model_dump())
            session.add(item)
            await session.commit()
            return item.name

        client = await start(save)

        assert (await client.post("save", json={"name": user})).json() == user

    async def test_a_savepoint_that_fails_leaves_the_rest(self, start: Start, stored: Stored, user: str) -> None:
        async def create_twice(user_id: str, session: Session) -> None:
            session.add(Item(owner=user_id, name=f"{user_id}-1"))
            try:
                async with session.begin_nested():
                    session.add(Item(owner=user_id, name=f"{user_id}-2"))
                    session.add(Item(owner=user_id, name=f"{user_id}-2"))
            except IntegrityError:
                session.add(Item(owner=user_id, name=f"{user_id}-3"))

        client = await start(create_twice)

        assert outcome(await client.post("create_twice")) == "201"
        assert await stored() == [f"{user}-1", f"{user}-3"]

    async def test_a_session_that_is_not_used_opens_no_connection(
        self, session_dsn: str, start: Start, server: asyncpg.Connection
    ) -> None:
        async def take(session: Session) -> bool:
            return session.in_transaction()

        with fault_proxy(session_dsn) as proxy:
            client = await start(take, dsn=proxy.dsn)
            before = proxy.accepted
            await server.execute(END)

            assert [(await client.post("take")).json() for _ in range(3)] == [False] * 3
            assert proxy.accepted == before

    async def test_a_session_that_is_used_after_its_end_takes_no_connection(
        self, start: Start, server: asyncpg.Connection
    ) -> None:
        ends: list[object] = []

        async def use_later(session: Session, background: BackgroundTasks) -> None:
            async def use() -> None:
                ends.extend(await asyncio.gather(session.exec(SLEEP), return_exceptions=True))

            background.add_task(use)

        client = await start(use_later, ping, database_pool_size=1)

        assert outcome(await client.post("use_later")) == "201"
        assert outcome(await client.post("ping")) == "201"
        assert [type(end).__name__ for end in ends] == ["InvalidRequestError"]
        assert set(await connections(server)) == {"idle"}


class TestRollback:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (HTTPException(404), "404 about:blank"),
            (RuntimeError("defect"), "500 internal-error"),
            (OverloadedError(), "503 overloaded"),
        ],
    )
    async def test_an_exception_rolls_back(
        self, start: Start, stored: Stored, user: str, error: Exception, expected: str
    ) -> None:
        async def fail(user_id: str, session: Session) -> None:
            session.add(Item(owner=user_id, name=user_id))
            await session.flush()
            raise error

        client = await start(fail, create)

        assert outcome(await client.post("fail")) == expected
        assert outcome(await client.post("create", json={"name": user})) == "201"
        assert await stored() == [user]

    async def test_a_response_that_is_not_valid_rolls_back(self, start: Start, stored: Stored) -> None:
        async def lie(user_id: str, session: Session) -> int:
            session.add(Item(owner=user_id, name=user_id))
            await session.flush()
            return "no number"  # type: ignore[return-value]

        client = await start(lie)

        assert outcome(await client.post("lie")) == "500 internal-error"
        assert await stored() == []

    async def test_a_deferred_constraint_that_fails_at_the_commit_is_a_conflict(
        self, start: Start, stored: Stored, user: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = await start(create)
        await client.post("create", json={"name": f"{user}-1", "code": f"s3cret-{user}"})

        reply = await client.post("create", json={"name": f"{user}-2", "code": f"s3cret-{user}"})

        assert outcome(reply) == "409 conflict"
        assert await stored() == [f"{user}-1"]
        assert_no_secret(caplog.text)

    @pytest.mark.parametrize("use_orm", [True, False], ids=["object", "statement"])
    async def test_a_handler_that_swallows_a_failure_has_no_success(
        self, start: Start, stored: Stored, user: str, caplog: pytest.LogCaptureFixture, *, use_orm: bool
    ) -> None:
        async def swallow(user_id: str, session: Session) -> str:
            session.add(Item(owner=user_id, name=f"s3cret-{user_id}-2"))
            await session.flush()
            make = create_and_flush if use_orm else create_by_statement
            with pytest.raises(IntegrityError):
                await make(user_id, NewItem(name=f"s3cret-{user_id}"), session)
            return "done"

        client = await start(create, swallow)
        await client.post("create", json={"name": f"s3cret-{user}"})

        assert outcome(await client.post("swallow")) == "500 internal-error"
        assert await stored() == [f"s3cret-{user}"]
        assert_no_secret(caplog.text)

    async def test_a_handler_may_answer_a_violation_itself(self, start: Start, stored: Stored, user: str) -> None:
        async def create_once(user_id: str, new: NewItem, session: Session) -> None:
            session.add(Item(owner=user_id, **new.model_dump()))
            try:
                await session.commit()
            except IntegrityError as error:
                raise HTTPException(409, "There is one already.") from error

        client = await start(create_once)
        replies = [await client.post("create_once", json={"name": user}) for _ in range(2)]

        assert [reply.status_code for reply in replies] == [201, 409]
        assert replies[1].json()["detail"] == "There is one already."
        assert await stored() == [user]

    async def test_a_handler_may_go_on_after_a_rollback(self, start: Start, stored: Stored, user: str) -> None:
        async def create_another(user_id: str, new: NewItem, session: Session) -> None:
            session.add(Item(owner=user_id, **new.model_dump()))
            try:
                await session.flush()
            except IntegrityError:
                await session.rollback()
                session.add(Item(owner=user_id, name=f"{new.name}-2"))

        client = await start(create_another)
        replies = [await client.post("create_another", json={"name": user}) for _ in range(2)]

        assert [outcome(reply) for reply in replies] == ["201", "201"]
        assert await stored() == [user, f"{user}-2"]


class TestRefusedValue:
    @pytest.mark.parametrize("handler", [create, create_by_statement], ids=["object", "statement"])
    @pytest.mark.parametrize(
        ("values", "expected", "pointer"),
        [
            ({"name": "s3cret"}, "409 conflict", None),
            ({"parent_id": str(uuid4())}, "409 conflict", None),
            ({"name": None}, "422 invalid-request", "#/name"),
            ({"amount": -1}, "422 invalid-request", None),
            ({"name": "s3cret" * 4}, "422 invalid-request", None),
            ({"amount": 2**31}, "422 invalid-request", None),
            ({"amount": 2**70}, "422 invalid-request", None),
            ({"name": "s3cret\0"}, "422 invalid-request", None),
        ],
        ids=["unique", "foreign key", "not null", "check", "too long", "out of range", "beyond 64 bits", "NUL"],
    )
    async def test_a_value_that_the_database_refuses_is_the_fault_of_the_client(
        self,
        start: Start,
        stored: Stored,
        server: asyncpg.Connection,
        caplog: pytest.LogCaptureFixture,
        handler: Handler,
        values: dict[str, Any],
        expected: str,
        pointer: str | None,
    ) -> None:
        await server.execute("DELETE FROM item")
        await server.execute(
            "INSERT INTO item (id, owner, name, amount, waits) VALUES ($1, '', 's3cret', 0, false)", uuid4()
        )
        caplog.set_level(logging.INFO)
        client = await start(handler)

        reply = await client.post(handler.__name__, json={"name": "s3cret-2", **values})

        assert outcome(reply) == expected
        assert [error["pointer"] for error in reply.json().get("errors", [])] == ([pointer] if pointer else [])
        assert await stored() == []
        assert_no_secret(caplog.text)
        assert_no_errors(caplog)

    async def test_a_row_that_is_still_referred_to_is_a_conflict(self, start: Start) -> None:
        async def restrict(session: Session) -> None:
            connection = await session.connection()
            await connection.execute(
                text("DO $$BEGIN RAISE 's3cret' USING ERRCODE = '23001'; END$$")
            )  # as of PostgreSQL 18

        client = await start(restrict)

        assert outcome(await client.post("restrict")) == "409 conflict"

    @pytest.mark.parametrize("is_named", [True, False], ids=["cause", "context"])
    async def test_a_defect_that_follows_a_violation_is_logged_without_its_values(
        self, start: Start, caplog: pytest.LogCaptureFixture, user: str, *, is_named: bool
    ) -> None:
        async def handle(user_id: str, new: NewItem, session: Session) -> None:
            try:
                await create_and_flush(user_id, new, session)
            except IntegrityError as error:
                if is_named:
                    raise RuntimeError("defect") from error
                raise RuntimeError("defect")  # noqa: B904  # as a defect in an except clause does

        client = await start(create, handle)
        await client.post("create", json={"name": f"s3cret-{user}"})

        assert outcome(await client.post("handle", json={"name": f"s3cret-{user}"})) == "500 internal-error"
        assert "RuntimeError: defect" in caplog.text
        assert_no_secret(caplog.text)

    async def test_causes_may_lead_to_each_other(self, start: Start) -> None:
        async def circle(session: Session) -> None:
            first, second = RuntimeError(str(session.in_transaction())), KeyError()
            second.__context__ = first
            raise first from second

        client = await start(circle)

        assert outcome(await client.post("circle")) == "500 internal-error"

    async def test_a_value_that_sqlalchemy_refuses_is_not_quoted_in_the_log(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def write(new: NewItem, session: Session) -> None:
            await session.exec(update(Sample).values(document={new.name: object()}))

        client = await start(write)

        assert outcome(await client.post("write", json={"name": "s3cret"})) == "500 internal-error"
        assert "StatementError: TypeError" in caplog.text
        assert "in write" in caplog.text
        assert_no_secret(caplog.text)


class TestFault:
    async def test_a_connection_that_is_lost_within_a_statement_is_unavailable_and_nothing_is_stored(
        self,
        session_dsn: str,
        start: Start,
        stored: Stored,
        server: asyncpg.Connection,
        user: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        async def create_slowly(user_id: str, session: Session) -> None:
            session.add(Item(owner=user_id, name=user_id))
            await session.flush()
            await session.exec(SLEEP)

        with fault_proxy(session_dsn) as proxy:
            client = await start(create_slowly, create, dsn=proxy.dsn)
            request = asyncio.create_task(client.post("create_slowly"))
            await wait_for_sleep(server)
            proxy.reset()

            assert outcome(await request) == "503 database-unavailable"
            assert "database unavailable: ConnectionDoesNotExistError 08003" in caplog.messages
            assert await stored() == []
            assert outcome(await client.post("create", json={"name": f"{user}-2"})) == "201"

    @pytest.mark.parametrize("use_orm", [True, False], ids=["object", "statement"])
    async def test_a_handler_that_swallows_the_loss_has_no_success(
        self, session_dsn: str, start: Start, stored: Stored, server: asyncpg.Connection, *, use_orm: bool
    ) -> None:
        lost = asyncio.Event()

        async def swallow(user_id: str, session: Session) -> None:
            if use_orm:
                session.add(Item(owner=user_id, name=user_id))
            with pytest.raises(DatabaseUnavailableError):
                await session.exec(SLEEP)
            lost.set()

        with fault_proxy(session_dsn) as proxy:
            client = await start(swallow, dsn=proxy.dsn)
            request = asyncio.create_task(client.post("swallow"))
            await wait_for_sleep(server)
            proxy.reset()

            assert not (await request).is_success
            assert lost.is_set()
            assert await stored() == []

    async def test_a_connection_that_is_lost_between_statements_is_unavailable(
        self, start: Start, stored: Stored, server: asyncpg.Connection
    ) -> None:
        async def pause(user_id: str, session: Session) -> None:
            session.add(Item(owner=user_id, name=user_id))
            pid = await select_pid(session)
            await server.execute("SELECT pg_terminate_backend($1, 10000)", pid)
            await server.execute("SELECT 1")

        client = await start(pause)

        assert outcome(await client.post("pause")) == "503 database-unavailable"
        assert await stored() == []

    async def test_the_outcome_of_a_commit_that_is_not_answered_is_unknown(
        self, session_dsn: str, start: Start, stored: Stored, server: asyncpg.Connection, user: str
    ) -> None:
        with fault_proxy(session_dsn) as proxy:
            client = await start(create, dsn=proxy.dsn)
            async with held_commit(server):
                request = asyncio.create_task(client.post("create", json={"name": user, "waits": True}))
                await wait_for_commit(server)
                proxy.reset()

                assert outcome(await request) == "503 outcome-unknown"

            async def is_stored() -> bool:
                return await stored() == [user]

            await until(is_stored)

    async def test_the_outcome_of_a_commit_that_takes_too_long_is_unknown(
        self, start: Start, server: asyncpg.Connection, user: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.core.database.engine.STATEMENT_TIMEOUT", 0.5)
        client = await start(create)

        async with held_commit(server):
            reply = await client.post("create", json={"name": user, "waits": True})

        assert outcome(reply) == "503 outcome-unknown"

    @pytest.mark.parametrize("loses", [True, False], ids=["connection", "slot"])
    async def test_the_outcome_is_unknown_when_a_fault_follows_the_commit_of_the_handler(
        self, session_dsn: str, start: Start, stored: Stored, user: str, *, loses: bool
    ) -> None:
        async def save(user_id: str, session: Session, database: Db) -> None:
            item = Item(owner=user_id, name=user_id)
            session.add(item)
            await session.commit()
            if loses:
                proxy.refuses = True
                proxy.reset()
                await session.refresh(item)
            async with database.session() as other:
                await select_pid(other)  # takes the only slot
                await session.refresh(item)

        with fault_proxy(session_dsn) as proxy:
            client = await start(save, dsn=proxy.dsn, database_pool_size=1, database_pool_timeout=1)

            assert outcome(await client.post("save")) == "503 outcome-unknown"
            assert await stored() == [user]
            proxy.refuses = False

    async def test_nothing_is_stored_when_a_fault_follows_a_savepoint(
        self, session_dsn: str, start: Start, stored: Stored
    ) -> None:
        async def save(user_id: str, session: Session) -> None:
            async with session.begin_nested():
                session.add(Item(owner=user_id, name=user_id))
            proxy.reset()
            await session.exec(SLEEP)

        with fault_proxy(session_dsn) as proxy:
            client = await start(save, dsn=proxy.dsn)

            assert outcome(await client.post("save")) == "503 database-unavailable"
            assert await stored() == []

    async def test_after_a_statement_beyond_the_timeout_no_older_connection_is_used(
        self, start: Start, server: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def three_pids(database: Db) -> set[int]:
            return set(await asyncio.gather(*(ping(database) for _ in range(3))))

        monkeypatch.setattr("app.core.database.engine.STATEMENT_TIMEOUT", 0.5)
        client = await start(sleep, three_pids, database_pool_size=3)
        before = set((await client.post("three_pids")).json())

        assert outcome(await client.post("sleep")) == "503 timed-out"
        assert before.isdisjoint((await client.post("three_pids")).json())
        assert len(before) == 3

        async def is_over() -> bool:
            return before.isdisjoint(pid for [pid] in await server.fetch(f"SELECT pid {ACTIVITY}"))

        await until(is_over)

    async def test_a_statement_beyond_the_timeout_frees_its_slot_at_once(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def go_on(session: Session, database: Db) -> None:
            with pytest.raises(TimedOutError):
                await session.exec(SLEEP)
            await ping(database)
            raise HTTPException(418)

        monkeypatch.setattr("app.core.database.engine.STATEMENT_TIMEOUT", 0.5)
        client = await start(go_on, database_pool_size=1, database_pool_timeout=1)

        assert (await client.post("go_on")).status_code == 418

    async def test_a_statement_that_the_server_cancels_is_timed_out(
        self, start: Start, server: asyncpg.Connection
    ) -> None:
        client = await start(sleep, ping)
        request = asyncio.create_task(client.post("sleep"))
        await server.execute("SELECT pg_cancel_backend($1)", await wait_for_sleep(server))

        assert outcome(await request) == "503 timed-out"
        assert outcome(await client.post("ping")) == "201"

    async def test_a_column_whose_type_was_changed_is_unavailable_once(
        self, start: Start, server: asyncpg.Connection
    ) -> None:
        async def read(session: Session) -> None:
            await session.exec(select(column("a")).select_from(table("changing")))

        await server.execute("DROP TABLE IF EXISTS changing; CREATE TABLE changing (a varchar(10))")
        client = await start(read, database_pool_size=1)
        assert outcome(await client.post("read")) == "201"
        await server.execute("ALTER TABLE changing ALTER a TYPE text")

        assert [outcome(await client.post("read")) for _ in range(2)] == ["503 database-unavailable", "201"]

    async def test_a_network_that_swallows_packets_is_timed_out(
        self, session_dsn: str, start: Start, stored: Stored, monkeypatch: pytest.MonkeyPatch, user: str
    ) -> None:
        monkeypatch.setattr("app.core.database.engine.STATEMENT_TIMEOUT", 0.5)
        with fault_proxy(session_dsn) as proxy:
            client = await start(create, ping, dsn=proxy.dsn, database_pool_size=1)
            assert outcome(await client.post("ping")) == "201"
            proxy.lose()

            assert outcome(await client.post("create", json={"name": user})) == "503 timed-out"
            proxy.heal()
            assert outcome(await client.post("create", json={"name": f"{user}-2"})) == "201"
            assert await stored() == [f"{user}-2"]

    async def test_a_database_that_is_down_is_unavailable_until_the_probe_finds_it(
        self, session_dsn: str, start: Start, monkeypatch: pytest.MonkeyPatch, user: str
    ) -> None:
        monkeypatch.setattr("app.core.database.faults._PROBE_DELAYS", (0.01,))

        async def is_ready() -> bool:
            return (await client.get(str(client.base_url.join("/health/ready")))).is_success

        with fault_proxy(session_dsn) as proxy:
            client = await start(create, dsn=proxy.dsn)
            assert await is_ready()
            proxy.refuses = True
            proxy.reset()

            assert outcome(await client.post("create", json={"name": user})) == "503 database-unavailable"
            assert not await is_ready()
            proxy.refuses = False
            await until(is_ready)
            assert outcome(await client.post("create", json={"name": user})) == "201"


class TestBounds:
    async def test_a_session_that_holds_the_only_slot_has_fetch_wait_and_be_overloaded(
        self, start: Start, server: asyncpg.Connection
    ) -> None:
        client = await start(sleep, ping, select_pid, database_pool_size=1, database_pool_timeout=0.05)
        request = asyncio.create_task(client.post("sleep"))
        pid = await wait_for_sleep(server)

        assert outcome(await client.post("ping")) == "503 overloaded"
        assert outcome(await client.post("select_pid")) == "503 overloaded"
        await server.execute("SELECT pg_cancel_backend($1)", pid)
        await request
        assert outcome(await client.post("ping")) == "201"

    async def test_fetch_that_holds_the_only_slot_has_a_session_wait_and_be_overloaded(
        self, start: Start, server: asyncpg.Connection
    ) -> None:
        async def fetch_slowly(database: Db) -> None:
            await database.fetch(
                statement(select(func.pg_sleep(bindparam("seconds", type_=Integer))), reads=True), seconds=60
            )

        client = await start(fetch_slowly, select_pid, database_pool_size=1, database_pool_timeout=0.05)
        request = asyncio.create_task(client.post("fetch_slowly"))
        pid = await wait_for_sleep(server)

        assert outcome(await client.post("select_pid")) == "503 overloaded"
        await server.execute("SELECT pg_cancel_backend($1)", pid)
        await request
        assert outcome(await client.post("select_pid")) == "201"

    async def test_a_waiting_session_gets_the_connection_of_fetch(self, start: Start) -> None:
        client = await start(ping, select_pid, database_pool_size=1)

        pids = await asyncio.gather(*(client.post(name) for name in ("ping", "select_pid") * 5))

        assert len({reply.json() for reply in pids}) == 1

    async def test_the_concurrency_limit_counts_sessions(self, start: Start) -> None:
        arrived, leaving = asyncio.Semaphore(0), asyncio.Event()

        async def take(session: Session) -> bool:
            arrived.release()
            await leaving.wait()
            return session.in_transaction()

        client = await start(take, ping, select_pid, database_pool_size=1, concurrency_limit=2)
        requests = [asyncio.create_task(client.post("take")) for _ in range(2)]
        await arrived.acquire()
        await arrived.acquire()

        assert outcome(await client.post("ping")) == "503 overloaded"
        assert outcome(await client.post("select_pid")) == "503 overloaded"
        leaving.set()
        assert [outcome(reply) for reply in await asyncio.gather(*requests)] == ["201", "201"]
        assert outcome(await client.post("ping")) == "201"


class TestCancellation:
    async def test_a_cancelled_request_frees_its_slot_and_leaves_no_open_transaction(
        self, start: Start, stored: Stored, server: asyncpg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        handlers: list[asyncio.Task[Any] | None] = []

        async def create_slowly(user_id: str, session: Session) -> None:
            handlers.append(asyncio.current_task())
            session.add(Item(owner=user_id, name=user_id))
            await session.flush()
            await session.exec(SLEEP)

        client = await start(create_slowly, ping, database_pool_size=1)
        request = asyncio.create_task(client.post("create_slowly"))
        pid = await wait_for_sleep(server)
        assert handlers[0]
        handlers[0].cancel()

        assert outcome(await request) == "503 shutting-down"
        assert (await client.post("ping")).json() != pid
        assert await stored() == []

        async def is_idle() -> bool:
            return await connections(server) == ["idle"]

        await until(is_idle)
        assert_no_errors(caplog)

    async def test_a_deadline_of_the_handler_rolls_back(self, start: Start, stored: Stored) -> None:
        async def hurry(user_id: str, session: Session) -> None:
            session.add(Item(owner=user_id, name=user_id))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await session.exec(SLEEP)

        client = await start(hurry, ping, database_pool_size=1)

        assert not (await client.post("hurry")).is_success
        assert outcome(await client.post("ping")) == "201"
        assert await stored() == []

    async def test_a_client_that_disconnects_frees_its_slot(
        self, start: Start, stored: Stored, server: asyncpg.Connection, user: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = await start(create, ping, database_pool_size=1)
        async with held_commit(server):
            request = asyncio.create_task(client.post("create", json={"name": user, "waits": True}))
            await wait_for_commit(server)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

        assert outcome(await client.post("ping")) == "201"
        assert await stored() == [user]
        assert_no_errors(caplog)


class TestTypes:
    async def test_columns_come_back_as_the_types_that_python_has_for_them(self, start: Start) -> None:
        document = {"name": "Zoë \U0001f95b", "deep": [1, 2.5, None, {"a": True}]}
        values: dict[str, Any] = {
            "id": uuid4(),
            "document": document,
            "binary_document": [document, "x"],
            "colour": Colour.BLUE,
            "price": Decimal("12345678901234.56780"),
            "ratio": 0.1,
            "day": date(2026, 2, 28),
            "moment": datetime(2026, 2, 28, 23, 59, 59, 999_999, UTC),
            "length": timedelta(days=3, microseconds=1),
            "numbers": [1, -(2**31)],
            "names": ["a,b", "{}", ""],
            "content": b"\0\xff",
            "address": IPv4Address("192.0.2.1"),
        }
        found: list[Sample] = []

        async def save(session: Session) -> None:
            session.add(Sample(**values))

        async def load(session: Session) -> None:
            by_document = Sample.__table__.c.document["deep"][0].as_integer() == 1  # type: ignore[attr-defined]
            by_binary = Sample.__table__.c.binary_document.contains(["x"])  # type: ignore[attr-defined]
            found.extend((await session.exec(select(Sample).where(by_document, by_binary))).all())

        client = await start(save, load)
        assert [outcome(await client.post(name)) for name in ("save", "load")] == ["201", "201"]
        [loaded] = found

        assert {name: getattr(loaded, name) for name in values} == values
        assert {name: type(getattr(loaded, name)) for name in values if name != "id"} == {
            name: type(value) for name, value in values.items() if name != "id"
        }
        assert isinstance(loaded.id, UUID)

    async def test_json_stays_text_for_fetch_on_the_same_connection(self, start: Start) -> None:
        raw = Statement("SELECT $1::json", ("value",), reads=True)

        async def fetch_json(database: Db) -> bool:
            [[value]] = await database.fetch(raw, value='{"a": 1}')
            return bool(value == '{"a": 1}')

        client = await start(select_pid, ping, fetch_json, database_pool_size=1)
        pids = {(await client.post(name)).json() for name in ("select_pid", "ping")}

        assert (await client.post("fetch_json")).json() is True
        assert len(pids) == 1

    async def test_json_null_comes_back_as_none(self, start: Start) -> None:
        async def roundtrip(session: Session) -> bool:
            selected = select(func.cast(bindparam("none", None, type_=JSON), JSON))
            return (await session.exec(selected)).one() is None

        client = await start(roundtrip)

        assert (await client.post("roundtrip")).json() is True


async def messages_until_first_row(proxy: FaultProxy, session: Callable[[], Any]) -> int:
    """Returns how many times the client has sent something on a new connection when it has its first row."""
    before = proxy.messages
    async with session() as opened:
        assert (await (await opened.connection()).execute(text("SELECT 1"))).scalar_one() == 1
    return proxy.messages - before


class TestNewConnection:
    async def test_sqlalchemy_asks_nothing_before_the_first_statement(self, session_dsn: str) -> None:
        with fault_proxy(session_dsn) as proxy:
            database = Database(proxy.dsn, pool_size=1, pool_timeout=1, concurrency_limit=1)
            stock = create_async_engine(
                make_url(proxy.dsn).set(drivername="postgresql+asyncpg", query={}), connect_args={"ssl": False}
            )
            connection = await asyncpg.connect(proxy.dsn)
            before = proxy.messages
            async with connection.transaction():
                await connection.fetch("SELECT 1")
            of_driver = proxy.messages - before
            await connection.close()
            before = proxy.messages
            await (await asyncpg.connect(proxy.dsn)).close()
            of_opening = proxy.messages - before - 1  # without the goodbye

            assert await messages_until_first_row(proxy, database.session) == of_opening + of_driver
            assert await messages_until_first_row(proxy, partial(AsyncSession, stock)) > of_opening + of_driver + 5
            await stock.dispose()
            await database.close()


class TestPool:
    async def test_disposing_of_the_engine_closes_its_connections_and_keeps_its_bounds(
        self, start: Start, server: asyncpg.Connection
    ) -> None:
        async def dispose(database: Db) -> None:
            await database.engine.dispose()

        client = await start(dispose, sleep, ping, select_pid, database_pool_size=1, database_pool_timeout=0.05)
        old = (await client.post("ping")).json()
        assert outcome(await client.post("dispose")) == "201"
        pids = {(await client.post(name)).json() for name in ("ping", "select_pid") * 2}

        assert len(pids - {old}) == 1
        request = asyncio.create_task(client.post("sleep"))
        await server.execute("SELECT 1")
        sleeping = await wait_for_sleep(server)
        assert outcome(await client.post("ping")) == "503 overloaded"
        await server.execute("SELECT pg_cancel_backend($1)", sleeping)
        await request
        assert len(await connections(server)) == 1

    async def test_its_status_counts_the_connections(self, start: Start) -> None:
        async def status(session: Session, database: Db) -> str:
            await select_pid(session)
            return database.engine.pool.status()

        client = await start(status, database_pool_size=1)

        assert (await client.post("status")).json() == "SlotPool: 1 connections, 0 of them idle"

    async def test_a_connection_in_use_is_not_used_again_after_the_engine_was_disposed_of(self, start: Start) -> None:
        async def dispose(session: Session, database: Db) -> int:
            pid = await select_pid(session)
            await database.engine.dispose()
            return pid

        client = await start(dispose, ping, database_pool_size=1)

        assert (await client.post("dispose")).json() != (await client.post("ping")).json()

    @pytest.mark.parametrize("warm", [True, False], ids=["in a transaction", "at its beginning"])
    async def test_a_connection_that_a_task_still_uses_is_never_handed_out(
        self, start: Start, server: asyncpg.Connection, stored: Stored, user: str, *, warm: bool
    ) -> None:
        tasks: list[asyncio.Task[Any]] = []

        async def leave(session: Session) -> None:
            if warm:
                await select_pid(session)
            tasks.append(asyncio.create_task(session.exec(SLEEP)))
            if warm:
                await wait_for_sleep(server)
            else:
                await until(session.in_transaction)

        client = await start(leave, ping, create, database_pool_size=1)
        assert outcome(await client.post("ping")) == "201"
        await client.post("leave")

        assert outcome(await client.post("create", json={"name": user})) == "201"
        assert outcome(await client.post("ping")) == "201"
        assert await stored() == [user]
        [end] = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(end, Exception)
        assert await connections(server) == ["idle"]

    async def test_a_connection_that_is_left_in_a_transaction_is_never_handed_out(
        self, start: Start, server: asyncpg.Connection
    ) -> None:
        async def begin(session: Session) -> None:
            connection = await (await session.connection()).get_raw_connection()
            assert connection.driver_connection
            await connection.driver_connection.execute("BEGIN")

        client = await start(begin, ping, database_pool_size=1)
        await client.post("begin")

        assert outcome(await client.post("ping")) == "201"
        assert await connections(server) == ["idle"]

    async def test_tasks_that_share_a_session_leave_the_pool_whole(self, start: Start) -> None:
        async def share(session: Session, database: Db) -> None:
            await database.engine.dispose()  # so that the first one has to connect
            await asyncio.gather(session.exec(SLEEP), session.exec(SLEEP))

        client = await start(share, ping, select_pid, database_pool_size=1, database_pool_timeout=1)
        replies = [await client.post("share") for _ in range(2)]

        assert [outcome(reply) for reply in replies] == ["500 internal-error"] * 2
        assert outcome(await client.post("ping")) == "201"
        assert outcome(await client.post("select_pid")) == "201"

    @pytest.mark.parametrize("patience", [1, 0.003])
    @pytest.mark.parametrize("resets", [False, True], ids=["network works", "resets"])
    async def test_sessions_and_fetches_cancelled_at_any_moment_leave_the_pool_whole(
        self, session_dsn: str, server: asyncpg.Connection, user: str, patience: float, *, resets: bool
    ) -> None:
        acknowledged: set[str] = set()

        async def create_two(name: str) -> None:
            async with db.session() as session:
                session.add(Item(owner=user, name=f"{name}-a"))
                await session.flush()
                session.add(Item(owner=user, name=f"{name}-b"))
            acknowledged.add(name)

        async def fetch() -> str:
            [[value]] = await db.fetch(ECHO, value="there")
            assert value == "there"
            return str(value)

        chance = random.Random(patience)  # noqa: S311  # nobody gains by guessing it
        with fault_proxy(session_dsn) as proxy:
            db = Database(proxy.dsn, pool_size=2, pool_timeout=patience, concurrency_limit=100)
            for turn in range(60):
                works: list[Coroutine[Any, Any, Any]] = [create_two(f"{user}-{turn}-{each}") for each in range(3)]
                works += [fetch(), fetch()]
                chance.shuffle(works)
                tasks = [asyncio.create_task(work) for work in works]
                _, late = await asyncio.wait(tasks, timeout=chance.uniform(0, 0.03))
                if resets and turn % 3 == 0:
                    proxy.reset()
                for task in late:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: proxy.connections <= 2)
            works = [db.fetch(statement(STATE, reads=True)) for _ in range(4)] + [select_state(db) for _ in range(4)]
            ends = await asyncio.gather(*works, return_exceptions=True)
            states = [tuple(end[0]) for end in ends if isinstance(end, list)]
            pids = {pid for pid, _ in states}
            idle = await server.fetch(f"SELECT * {ACTIVITY} AND pid = ANY($1)", pids)

            if patience == 1:  # less of it may refuse every session of a busy machine
                assert acknowledged
                assert states
            assert not any(has_changed for _, has_changed in states)
            assert len(pids) <= 2
            assert all(record["state"] == "idle" for record in idle)
            await db.close()

        names = {name for [name] in await server.fetch("SELECT name FROM item WHERE owner = $1", user)}
        assert {f"{name}-{half}" for name in acknowledged for half in "ab"} <= names
        assert {name[:-1] + "a" for name in names} | {name[:-1] + "b" for name in names} == names


class TestPreparedStatements:
    async def test_a_session_keeps_none_where_a_pooler_cannot_take_them(self, session_dsn: str) -> None:
        kept = "SELECT count(*) FROM pg_prepared_statements WHERE statement = $$SELECT 'twice'$$"
        counts = []
        for prepares in (True, False):
            db = Database(session_dsn, pool_size=1, pool_timeout=5, concurrency_limit=5, prepares=prepares)
            for _ in range(2):
                async with db.session() as session:
                    await session.scalar(text("SELECT 'twice'"))
            counts.append((await db.fetch(Statement(kept, (), reads=True)))[0][0])
            await db.close()

        assert (counts[0] > 0, counts[1]) == (True, 0)

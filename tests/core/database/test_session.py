"""Handlers that take a `Session`: when it commits, when it rolls back, and what a refused value becomes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import JSON, CheckConstraint, Column, String, UniqueConstraint, bindparam, cast, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import registry
from sqlalchemy.schema import CreateTable
from sqlmodel import Field, SQLModel

from app.core.database.dialect import QuietDialect
from app.core.database.migrations import migrate
from app.core.errors import OverloadedError
from app.routes.deps import Session
from tests.core.database.support import wait_for
from tests.support import SECRET, bearer, execute, make_settings, serving, until

Handler = Callable[..., Awaitable[Any]]
Start = Callable[..., Awaitable[httpx.AsyncClient]]
Stored = Callable[[], Awaitable[list[str]]]


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


class NewItem(BaseModel):
    """Checks nothing that the database checks."""

    name: str | None = "s3cret"
    amount: int = 0
    parent_id: UUID | None = None
    code: str | None = None


async def create(user_id: str, new: NewItem, session: Session) -> None:
    session.add(Item(owner=user_id, **new.model_dump()))


async def create_and_flush(user_id: str, new: NewItem, session: Session) -> None:
    await create(user_id, new, session)
    await session.flush()


async def create_by_statement(user_id: str, new: NewItem, session: Session) -> None:
    await session.exec(insert(Item).values(id=uuid4(), owner=user_id, **new.model_dump()))


@pytest.fixture(scope="module", autouse=True)
def _tables(own_dsn: str) -> None:
    migrate(own_dsn)
    execute(own_dsn, str(CreateTable(Item.__table__).compile(dialect=QuietDialect())))  # type: ignore[attr-defined,no-untyped-call]


@pytest.fixture
async def start(own_dsn: str, user: str) -> AsyncIterator[Start]:
    """Starts a service that has each handler under its name, and returns a client with the token of the user."""
    async with AsyncExitStack() as stack:

        async def start(*handlers: Handler) -> httpx.AsyncClient:
            def extend(app: FastAPI) -> None:
                for handler in handlers:
                    app.post(f"/api/{{user_id}}/{handler.__name__}", status_code=201)(handler)

            url = await stack.enter_async_context(serving(make_settings(own_dsn, auth_jwt_secret=SECRET), extend))
            client = httpx.AsyncClient(base_url=f"{url}/api/{user}", headers=bearer(user), timeout=30)
            return await stack.enter_async_context(client)

        yield start


@pytest.fixture
def stored(server: asyncpg.Connection, user: str) -> Callable[[], Coroutine[Any, Any, list[str]]]:
    """Returns the names of the items of the user."""

    async def stored() -> list[str]:
        return [name for [name] in await server.fetch("SELECT name FROM item WHERE owner = $1 ORDER BY name", user)]

    return stored


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


@asynccontextmanager
async def held_commit(dsn: str, code: str) -> AsyncIterator[None]:
    """Have the COMMIT of an item with this code wait for another transaction, which is rolled back at the end."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("BEGIN")
    await connection.execute(
        "INSERT INTO item (id, owner, name, amount, code) VALUES ($1, '', '', 0, $2)", uuid4(), code
    )
    yield
    await connection.close()


class TestCommit:
    async def test_the_reply_waits_for_the_commit(
        self, start: Start, own_dsn: str, server: asyncpg.Connection, stored: Stored, user: str
    ) -> None:
        client = await start(create)

        async with held_commit(own_dsn, user):
            request = asyncio.create_task(client.post("create", json={"name": user, "code": user}))
            await wait_for(server, "wait_event = 'transactionid' AND query = 'COMMIT;'")
            assert not request.done()

        assert outcome(await request) == "201"
        assert await stored() == [user]

    async def test_a_commit_is_finished_after_the_client_has_disconnected(
        self, start: Start, own_dsn: str, server: asyncpg.Connection, stored: Stored, user: str
    ) -> None:
        client = await start(create)

        async with held_commit(own_dsn, user):
            request = asyncio.create_task(client.post("create", json={"name": user, "code": user}))
            await wait_for(server, "wait_event = 'transactionid' AND query = 'COMMIT;'")
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

        await until(stored)

    async def test_an_object_can_be_read_and_refreshed_after_a_commit(
        self, start: Start, stored: Stored, user: str
    ) -> None:
        async def save(user_id: str, new: NewItem, session: Session) -> Item:
            item = Item(owner=user_id, **new.model_dump())
            session.add(item)
            await session.commit()
            assert item.name == new.name
            await session.refresh(item)
            return item

        client = await start(save)
        reply = await client.post("save", json={"name": user, "amount": 3})

        assert (reply.status_code, reply.json()["name"], reply.json()["amount"]) == (201, user, 3)
        assert await stored() == [user]

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


class TestRefusedValue:
    @pytest.mark.parametrize(
        ("handler", "values", "expected", "pointers"),
        [
            (create, {"name": "s3cret"}, "409 conflict", []),
            (create, {"parent_id": str(uuid4())}, "409 conflict", []),
            (create, {"name": None}, "422 invalid-request", ["#/name"]),
            (create, {"amount": -1}, "422 invalid-request", []),
            (create, {"name": "s3cret" * 4}, "422 invalid-request", []),
            (create, {"amount": 2**31}, "422 invalid-request", []),
            (create_by_statement, {"amount": 2**70}, "422 invalid-request", []),
            (create_by_statement, {"name": "s3cret\0"}, "422 invalid-request", []),
            (create_by_statement, {"name": "s3cret"}, "409 conflict", []),
            (create_by_statement, {"name": None}, "422 invalid-request", ["#/name"]),
        ],
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
        pointers: list[str],
    ) -> None:
        caplog.set_level(logging.INFO)
        client = await start(create, create_by_statement)
        await server.execute("DELETE FROM item")
        await client.post("create", json={"name": "s3cret"})

        reply = await client.post(handler.__name__, json={"name": "s3cret-2", **values})

        assert outcome(reply) == expected
        assert [error["pointer"] for error in reply.json().get("errors", [])] == pointers
        assert await stored() == ["s3cret"]
        assert_no_secret(caplog.text)
        assert "ERROR" not in caplog.text

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
            await session.scalar(select(cast(bindparam("value", {new.name: object()}, type_=JSON), JSON)))

        client = await start(write)

        assert outcome(await client.post("write", json={"name": "s3cret"})) == "500 internal-error"
        assert "StatementError: TypeError" in caplog.text
        assert "in write" in caplog.text
        assert_no_secret(caplog.text)

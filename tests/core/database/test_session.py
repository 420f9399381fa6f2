"""Handlers that take a `Session`: when it commits, when it rolls back, and what a refused value becomes."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import asyncpg
import httpx
import pytest
from fastapi import FastAPI, HTTPException
from sqlalchemy import JSON, bindparam, cast, column, insert, select, table
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.core.database import Database
from app.core.database.migrations import migrate
from app.core.errors import OverloadedError
from app.models.task import Task
from app.routes.deps import Session
from tests.core.database.support import wait_for
from tests.support import connected, execute, make_settings, serving, until

ITEM: Final = table("item", column("name"), column("code"), column("amount"))


class Base(DeclarativeBase):
    pass


class Item(Base):
    """The table as an ORM class, apart from the models of the service."""

    __tablename__ = "item"

    name: Mapped[str] = mapped_column(primary_key=True)
    amount: Mapped[int]


Handler = Callable[..., Awaitable[Any]]
Start = Callable[[Handler], Awaitable[httpx.AsyncClient]]
Stored = Callable[[], Awaitable[list[str]]]


async def create(session: Session, name: str | None = None, code: str | None = None, amount: int = 0) -> None:
    await session.exec(insert(ITEM).values(name=name, code=code, amount=amount))


@pytest.fixture(scope="module", autouse=True)
def _tables(own_dsn: str) -> None:
    migrate(own_dsn)
    deferred = "code text UNIQUE DEFERRABLE INITIALLY DEFERRED"
    execute(own_dsn, f"CREATE TABLE item (name text NOT NULL UNIQUE, {deferred}, amount integer)")


@pytest.fixture
async def start(own_dsn: str, user: str) -> AsyncIterator[Start]:
    """Starts a service that has the handler at `/item`, and returns a client."""
    async with AsyncExitStack() as stack:

        async def start(handler: Handler) -> httpx.AsyncClient:
            def extend(app: FastAPI) -> None:
                app.post("/api/{user_id}/item", status_code=201)(handler)

            url = await stack.enter_async_context(serving(make_settings(own_dsn), extend))
            return await stack.enter_async_context(httpx.AsyncClient(base_url=f"{url}/api/{user}", timeout=30))

        yield start


def outcome(reply: httpx.Response) -> str:
    """Returns the status, the kind of a problem and its fields. No reply may quote what was sent or asked."""
    for secret in ("s3cret", "INSERT", "item", "postgres"):
        assert secret not in reply.text
    if reply.is_success:
        return str(reply.status_code)
    assert reply.headers["Content-Type"] == "application/problem+json"
    problem = reply.json()
    pointers = (error["pointer"] for error in problem.get("errors", []))
    return " ".join([str(reply.status_code), problem["type"].removeprefix("urn:problem-type:"), *pointers])


def assert_no_secret(log: str) -> None:
    for secret in ("s3cret", "INSERT", "VALUES", "postgresql://"):
        assert secret not in log


class TestCommit:
    @pytest.mark.parametrize("disconnects", [False, True])
    async def test_the_reply_waits_for_the_commit_which_is_finished_although_the_client_disconnects(
        self, start: Start, own_dsn: str, server: asyncpg.Connection, stored: Stored, *, disconnects: bool
    ) -> None:
        client = await start(create)

        async with connected(own_dsn) as other:
            await other.execute("BEGIN; INSERT INTO item VALUES ('other', 'held')")  # rolled back at the end
            request = asyncio.create_task(client.post("item", params={"name": "milk", "code": "held"}))
            await wait_for(server, "wait_event = 'transactionid' AND query = 'COMMIT;'")
            assert not request.done()
            if disconnects:
                request.cancel()

        await asyncio.gather(request, return_exceptions=True)
        await until(stored)
        assert request.cancelled() or outcome(request.result()) == "201"

    @pytest.mark.parametrize(
        ("result", "expected"),
        [
            (HTTPException(404), "404 about:blank"),
            (RuntimeError("defect"), "500 internal-error"),
            (OverloadedError(), "503 overloaded"),
            ("no number", "500 internal-error"),
        ],
    )
    async def test_an_exception_or_a_response_that_is_not_valid_rolls_back(
        self, start: Start, stored: Stored, result: Any, expected: str
    ) -> None:
        async def fail(session: Session) -> int:
            await create(session, "milk")
            if isinstance(result, Exception):
                raise result
            return result  # type: ignore[no-any-return]

        client = await start(fail)

        assert outcome(await client.post("item")) == expected
        assert await stored() == []


async def test_a_stored_object_has_its_attributes_in_the_order_of_its_class(db: Database) -> None:
    """FastAPI writes them in this order. SQLAlchemy's own differs from process to process."""
    now = datetime.now(UTC)
    values: dict[str, Any] = {"user_id": "ada", "id": uuid4(), "title": "Buy oat milk", "description": None}
    values |= {"completed": False, "created_at": now, "updated_at": now}
    async with db.session() as session:
        session.add(Task(**values))
        await session.flush()
        session.expunge_all()
        for expires in (False, True):
            task = await session.get_one(Task, ("ada", values["id"]))
            assert [*task.model_dump()] == [*Task.model_fields], expires
            session.expire(task)


class TestRefusedValue:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ({"name": "s3cret"}, "409 conflict"),
            ({"name": "milk", "code": "s3cret"}, "409 conflict"),
            ({}, "422 invalid-request #/name"),
            ({"name": "milk", "amount": 2**31}, "422 invalid-request"),
            ({"name": "milk", "amount": 2**70}, "422 invalid-request"),
            ({"name": "s3cret\0"}, "422 invalid-request"),
        ],
    )
    async def test_a_value_that_the_database_refuses_is_the_fault_of_the_client(
        self, start: Start, stored: Stored, caplog: pytest.LogCaptureFixture, values: dict[str, Any], expected: str
    ) -> None:
        caplog.set_level(logging.WARNING, "httpx")  # its messages have the URL
        caplog.set_level(logging.INFO)
        client = await start(create)
        await client.post("item", params={"name": "s3cret", "code": "s3cret"})

        assert outcome(await client.post("item", params=values)) == expected
        assert await stored() == ["s3cret"]
        reasons = [record.reason for record in caplog.records if hasattr(record, "reason")]
        assert re.fullmatch(r"\w+Error [0-9]{5}( \w+)?", reasons[-1])
        assert "ERROR" not in caplog.text
        assert_no_secret(caplog.text + str(reasons))

    async def test_a_row_that_another_request_deletes_after_it_was_read_is_a_conflict(
        self, start: Start, own_dsn: str
    ) -> None:
        async def change(session: Session) -> None:
            await create(session, "milk")
            await session.commit()
            item = await session.get_one(Item, "milk")
            async with connected(own_dsn) as other:
                await other.execute("DELETE FROM item")
            item.amount = 5

        client = await start(change)

        assert outcome(await client.post("item")) == "409 conflict"

    @pytest.mark.parametrize("is_named", [True, False])
    async def test_a_defect_that_follows_a_violation_is_logged_without_its_values(
        self, start: Start, stored: Stored, caplog: pytest.LogCaptureFixture, *, is_named: bool
    ) -> None:
        async def create_two(name: str, session: Session) -> None:
            await create(session, name)
            try:
                await create(session, name)
            except IntegrityError as error:
                if is_named:
                    raise RuntimeError("defect") from error
                raise RuntimeError("defect")  # noqa: B904  # as a defect in an except clause does

        client = await start(create_two)

        assert outcome(await client.post("item", params={"name": "s3cret"})) == "500 internal-error"
        assert "RuntimeError: defect" in caplog.text
        assert_no_secret(caplog.text)
        assert await stored() == []

    async def test_causes_may_lead_to_each_other(self, start: Start) -> None:
        async def circle(session: Session) -> None:
            first, second = RuntimeError(str(session.in_transaction())), KeyError()
            second.__context__ = first
            raise first from second

        client = await start(circle)

        assert outcome(await client.post("item")) == "500 internal-error"

    async def test_a_value_that_sqlalchemy_refuses_is_not_quoted_in_the_log(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def write(name: str, session: Session) -> None:
            await session.scalar(select(cast(bindparam("value", {name: object()}, type_=JSON), JSON)))

        client = await start(write)

        assert outcome(await client.post("item", params={"name": "s3cret"})) == "500 internal-error"
        assert "StatementError: TypeError" in caplog.text
        assert "in write" in caplog.text
        assert_no_secret(caplog.text)

"""The pool that `fetch` and `session` share: its bounds, and the connections that it keeps or discards."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from functools import partial
from typing import Any, Final

import asyncpg
import pytest
from sqlalchemy import column, insert, literal_column, select, table
from sqlalchemy.exc import IllegalStateChangeError, InvalidRequestError

from app.core.database import USER, Database, statement
from app.core.database.pool import Timeouts
from app.core.errors import DatabaseUnavailableError, OverloadedError, StatementError, TimedOutError
from tests.core.database.support import (
    ACTIVITY,
    SELECT_PID,
    SLEEP,
    driver_of,
    pid_of_fetch,
    pid_of_session,
    states,
    until_idle,
    wait_for_sleep,
)
from tests.faults import FaultProxy
from tests.support import until

PAIR: Final = table("pair", column("name"), column("half"))

MakeDatabase = Callable[..., Database]
Run = Callable[[Database], Coroutine[Any, Any, Any]]


async def sleep_by_fetch(db: Database) -> None:
    await db.fetch(statement(SLEEP, reads=True))


async def sleep_by_session(db: Database) -> None:
    async with db.session() as session:
        await session.exec(SLEEP)


async def pids(db: Database) -> set[int]:
    """Returns the processes of the server that answer three calls at the same time."""
    return {*await asyncio.gather(*(pid_of_fetch(db) for _ in range(3)))}


def run_for(user: str, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start `call` in a task for `user`."""
    context = copy_context()
    context.run(USER.set, user)
    return asyncio.get_running_loop().create_task(call, context=context)


async def are_asleep(server: asyncpg.Connection, count: int) -> bool:
    return bool(await server.fetchval(f"SELECT count(*) = $1 {ACTIVITY} AND wait_event = 'PgSleep'", count))


class TestBounds:
    @pytest.mark.parametrize("sleep", [sleep_by_fetch, sleep_by_session])
    async def test_a_call_without_a_free_connection_is_overloaded_without_an_outage(
        self, make_database: MakeDatabase, server: asyncpg.Connection, sleep: Run
    ) -> None:
        db = make_database(pool_timeout=0.05)
        pid = await pid_of_fetch(db)
        sleeping = asyncio.ensure_future(sleep(db))
        await wait_for_sleep(server)

        for run in (pid_of_fetch, pid_of_session):
            with pytest.raises(OverloadedError):
                await run(db)
        assert not await db.check()
        assert db.usable
        await server.execute("SELECT pg_cancel_backend($1)", pid)
        with pytest.raises(TimedOutError):
            await sleeping
        assert (await pid_of_fetch(db), await pid_of_session(db)) == (pid, pid)

    async def test_the_concurrency_limit_counts_sessions_and_calls_of_fetch(self, make_database: MakeDatabase) -> None:
        db = make_database(concurrency_limit=2)

        for _ in range(3):
            async with db.session(), db.session():
                for run in (pid_of_fetch, pid_of_session):
                    with pytest.raises(OverloadedError):
                        await run(db)
            assert await pid_of_fetch(db)

    async def test_the_numbers_of_connections_and_waiters_are_those_of_the_moment(
        self, db: Database, server: asyncpg.Connection
    ) -> None:
        sleeping = asyncio.create_task(sleep_by_fetch(db))
        await wait_for_sleep(server)
        waiting = asyncio.create_task(pid_of_fetch(db))
        await asyncio.sleep(0)
        assert db.pool_numbers() == (1, 0, 1, 1)

        sleeping.cancel()
        await waiting
        assert db.pool_numbers() == (0, 1, 0, 1)

    async def test_a_session_takes_no_connection_before_its_first_statement_nor_after_its_end(
        self, db: Database, server: asyncpg.Connection
    ) -> None:
        async with db.session() as session:
            pass
        with pytest.raises(InvalidRequestError):
            await session.exec(SELECT_PID)

        assert await states(server) == []

    @pytest.mark.parametrize(("opening", "ends"), [(10, {int}), (0.1, {int, OverloadedError})])
    async def test_a_waiter_waits_for_the_opening_timeout_while_connections_are_opened(
        self, make_database: MakeDatabase, proxy: FaultProxy, opening: float, ends: set[type]
    ) -> None:
        db = make_database(proxy.dsn, pool_timeout=0.01, timeouts=Timeouts(opening=opening))
        proxy.hold()
        running = [asyncio.create_task(pid_of_fetch(db)) for _ in range(3)]
        done, _ = await asyncio.wait(
            running, timeout=opening / 10 if ends == {int} else None, return_when="FIRST_COMPLETED"
        )
        proxy.heal()

        assert bool(done) is (OverloadedError in ends)
        assert {type(end) for end in await asyncio.gather(*running, return_exceptions=True)} == ends

    async def test_waiters_get_a_slot_in_the_order_of_their_arrival_although_the_first_is_cancelled_on_receiving_it(
        self, db: Database, server: asyncpg.Connection
    ) -> None:
        async def wait(number: int) -> None:
            await pid_of_fetch(db)
            served.append(number)

        served: list[int] = []
        sleeping = asyncio.create_task(sleep_by_fetch(db))
        await wait_for_sleep(server)
        first, *others = (asyncio.create_task(wait(number)) for number in range(4))
        await asyncio.sleep(0)
        sleeping.cancel()
        await asyncio.sleep(0)  # the first waiter owns the slot, but has not run yet
        first.cancel()
        await asyncio.gather(*others)

        assert first.cancelled()
        assert served == [1, 2, 3]

    async def test_the_most_recently_used_connection_is_used_next(self, make_database: MakeDatabase) -> None:
        db = make_database(pool_size=9)

        assert len(await pids(db)) == 3
        assert len({await pid_of_fetch(db) for _ in range(4)}) == 1

    async def test_all_waiters_fail_when_connecting_fails(self, make_database: MakeDatabase) -> None:
        db = make_database("postgresql://ada@127.0.0.1:1/tasks")

        calls = [run(db) for run in (pid_of_fetch, pid_of_session) * 3]
        ends = await asyncio.gather(*calls, return_exceptions=True)

        assert {type(end) for end in ends} == {DatabaseUnavailableError}


class TestShares:
    @pytest.mark.parametrize("sleep", [sleep_by_fetch, sleep_by_session])
    async def test_a_user_holds_only_a_share_of_the_connections_while_others_are_served(
        self, make_database: MakeDatabase, server: asyncpg.Connection, sleep: Run
    ) -> None:
        db = make_database(pool_size=5)
        greedy = [run_for("greedy", sleep(db)) for _ in range(9)]
        await until(partial(are_asleep, server, 2))

        for run in (pid_of_fetch, pid_of_session):
            assert await run_for("other", run(db))
        assert await are_asleep(server, 2)
        for call in greedy:
            call.cancel()
        await asyncio.wait(greedy)

    async def test_several_users_leave_a_connection_for_another_one(
        self, make_database: MakeDatabase, server: asyncpg.Connection
    ) -> None:
        db = make_database(pool_size=10, pool_timeout=60, timeouts=Timeouts(statement=60))
        greedy = [run_for(user, sleep_by_fetch(db)) for user in ["greedy"] * 10 + ["greedy too"] * 10]
        await until(partial(are_asleep, server, 5))  # three of the first user, and two of the second

        assert await run_for("other", pid_of_fetch(db))
        assert await are_asleep(server, 5)
        for call in greedy:
            call.cancel()
        await asyncio.wait(greedy)

    async def test_waiting_users_are_served_in_turn(self, db: Database, server: asyncpg.Connection) -> None:
        async def wait(name: str) -> None:
            await pid_of_fetch(db)
            served.append(name)

        served: list[str] = []
        sleeping = asyncio.create_task(sleep_by_fetch(db))
        await wait_for_sleep(server)
        waiting = [run_for(name[0], wait(name)) for name in ("a1", "a2", "a3", "b1", "b2", "c1")]
        await asyncio.sleep(0)
        sleeping.cancel()
        await asyncio.gather(*waiting)

        assert served == ["a1", "b1", "c1", "a2", "b2", "a3"]

    @pytest.mark.parametrize("run", [pid_of_fetch, pid_of_session])
    async def test_at_most_half_of_the_waiters_are_of_one_user(
        self, make_database: MakeDatabase, server: asyncpg.Connection, run: Run
    ) -> None:
        db = make_database(concurrency_limit=8)
        sleeping = run_for("greedy", sleep_by_fetch(db))
        await wait_for_sleep(server)
        greedy = [run_for("greedy", run(db)) for _ in range(7)]
        refused, waiting = await asyncio.wait(greedy, return_when=asyncio.FIRST_EXCEPTION)
        other = run_for("other", run(db))
        await asyncio.sleep(0)
        sleeping.cancel()

        assert {type(call.exception()) for call in refused} == {OverloadedError}
        assert len(await asyncio.gather(other, *waiting)) == 5

    async def test_waiters_that_gave_up_do_not_count(
        self, make_database: MakeDatabase, server: asyncpg.Connection
    ) -> None:
        db = make_database(concurrency_limit=4, pool_timeout=0.2)
        sleeping = run_for("greedy", sleep_by_fetch(db))
        await wait_for_sleep(server)
        cancelled, expired = (run_for("greedy", pid_of_fetch(db)) for _ in range(2))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled, expired])
        waiting = [run_for("greedy", pid_of_fetch(db)) for _ in range(2)]
        await asyncio.sleep(0)
        sleeping.cancel()

        assert isinstance(expired.exception(), OverloadedError)
        assert len(await asyncio.gather(*waiting)) == 2

    async def test_a_probe_does_not_need_the_share_of_the_user_whose_request_started_it(
        self, make_database: MakeDatabase
    ) -> None:
        db = make_database(pool_size=5, pool_timeout=60, timeouts=Timeouts(statement=60))
        fail = db.fetch(statement(select(literal_column("1 / 0")), reads=True))
        greedy = [run_for("greedy", call) for call in (sleep_by_fetch(db), fail, sleep_by_fetch(db))]

        try:
            await until(lambda: db.usable)
        finally:
            for call in greedy:
                call.cancel()
            await asyncio.wait(greedy)
        assert isinstance(greedy[1].exception(), StatementError)


class TestDiscarded:
    async def test_connections_that_the_server_closed_are_replaced_without_an_error(
        self, make_database: MakeDatabase, server: asyncpg.Connection
    ) -> None:
        db = make_database(pool_size=9)  # a user's share of it is more than the attempts of one statement
        async with db.session() as one, db.session() as two, db.session() as three:
            drivers = [await driver_of(session) for session in (one, two, three)]
        await server.execute(f"SELECT pg_terminate_backend(pid, 10000) {ACTIVITY}")
        await until(lambda: all(driver.is_closed() for driver in drivers))

        assert await pid_of_session(db) not in [driver.get_server_pid() for driver in drivers]

    @pytest.mark.parametrize("sleep", [sleep_by_fetch, sleep_by_session])
    async def test_after_an_unanswered_statement_older_connections_are_discarded(
        self, make_database: MakeDatabase, server: asyncpg.Connection, caplog: pytest.LogCaptureFixture, sleep: Run
    ) -> None:
        db = make_database(pool_size=9, timeouts=Timeouts(statement=1))
        before = await pids(db)

        with pytest.raises(TimedOutError):
            await sleep(db)
        assert not db.usable
        assert caplog.messages == ["database unavailable: TimeoutError"]
        assert before.isdisjoint(await pids(db))
        assert len(before) == 3
        await until_idle(server, 3)
        await until(lambda: db.usable)

    @pytest.mark.parametrize("sleep", [sleep_by_fetch, sleep_by_session])
    async def test_a_cancelled_statement_ends_at_the_server_and_keeps_its_slot_usable(
        self, db: Database, server: asyncpg.Connection, sleep: Run
    ) -> None:
        sleeping = asyncio.ensure_future(sleep(db))
        pid = await wait_for_sleep(server)
        sleeping.cancel()

        with pytest.raises(asyncio.CancelledError):
            await sleeping
        assert pid not in {await pid_of_fetch(db), await pid_of_session(db)}
        await until_idle(server)

    async def test_a_connection_is_closed_at_its_maximum_age(
        self, make_database: MakeDatabase, server: asyncpg.Connection
    ) -> None:
        db = make_database(timeouts=Timeouts(age=-1))

        assert await pid_of_fetch(db) != await pid_of_session(db)
        await until_idle(server)

    async def test_closing_the_database_waits_until_its_connections_are_closed(self, db: Database) -> None:
        async with db.session() as session:
            driver = await driver_of(session)
        assert not driver.is_closed()

        await db.close()

        assert driver.is_closed()

    async def test_disposing_of_the_engine_discards_all_connections_and_keeps_the_bounds(
        self, make_database: MakeDatabase
    ) -> None:
        db = make_database(pool_size=5, pool_timeout=0.05)
        async with db.session() as session:
            used = (await session.exec(SELECT_PID)).one()
            idle = await pid_of_fetch(db)
            assert db.pool_numbers()[:2] == (1, 1)
            await db.engine.dispose()
        assert {used, idle}.isdisjoint({await pid_of_fetch(db), await pid_of_session(db)})

        async with db.session() as first, db.session() as second:
            await asyncio.gather(first.exec(SELECT_PID), second.exec(SELECT_PID))
            with pytest.raises(OverloadedError):
                await pid_of_fetch(db)

    @pytest.mark.parametrize("begun", [True, False])
    async def test_a_connection_that_a_task_still_uses_is_never_handed_out(
        self, db: Database, server: asyncpg.Connection, *, begun: bool
    ) -> None:
        async def leave() -> None:
            async with db.session() as session:
                if begun:
                    await session.exec(SELECT_PID)
                left.append(asyncio.create_task(session.exec(SLEEP)))
                await (wait_for_sleep(server) if begun else until(session.in_transaction))

        left: list[asyncio.Task[Any]] = []
        await pid_of_fetch(db)
        await asyncio.gather(leave(), return_exceptions=True)

        assert await pid_of_fetch(db) == await pid_of_session(db)
        [end] = await asyncio.gather(*left, return_exceptions=True)
        assert isinstance(end, Exception)
        await until_idle(server)

    async def test_a_connection_that_is_left_in_a_transaction_is_never_handed_out(
        self, db: Database, server: asyncpg.Connection
    ) -> None:
        async with db.session() as session:
            await (await driver_of(session)).execute("BEGIN")

        assert await pid_of_fetch(db)
        await until_idle(server)

    async def test_tasks_that_share_a_session_leave_the_pool_whole(self, db: Database) -> None:
        with pytest.raises(IllegalStateChangeError):
            async with db.session() as session:
                await asyncio.gather(session.exec(SLEEP), session.exec(SLEEP))

        assert await pid_of_fetch(db)
        assert await pid_of_session(db)

    @pytest.mark.parametrize(("pool_timeout", "resets"), [(1, False), (0.003, True)])
    async def test_calls_that_are_cancelled_at_any_moment_leave_the_pool_whole_and_store_all_or_nothing(
        self, proxy: FaultProxy, server: asyncpg.Connection, pool_timeout: float, *, resets: bool
    ) -> None:
        async def create_two(name: str) -> None:
            async with db.session() as session:
                await session.exec(insert(PAIR).values(name=name, half="a"))
                await session.exec(insert(PAIR).values(name=name, half="b"))
            acknowledged.add(name)

        acknowledged: set[str] = set()
        chance = random.Random(pool_timeout)  # noqa: S311  # nobody gains by guessing it
        await server.execute("DROP TABLE IF EXISTS pair; CREATE TABLE pair (name text, half text)")
        db = Database(proxy.dsn, pool_size=2, pool_timeout=pool_timeout, concurrency_limit=100)
        for turn in range(60):
            calls: list[Coroutine[Any, Any, Any]] = [create_two(f"{turn}-{each}") for each in range(3)]
            calls += [pid_of_fetch(db), pid_of_fetch(db)]
            chance.shuffle(calls)
            tasks = [run_for("ab"[turn * at % 2], call) for at, call in enumerate(calls)]
            _, late = await asyncio.wait(tasks, timeout=chance.uniform(0, 0.03))
            if resets and turn % 3 == 0:
                proxy.reset()
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: proxy.connections <= 2)
        await create_two("last")
        ends = await asyncio.gather(*(pid_of_session(db) for _ in range(8)), return_exceptions=True)
        assert 1 <= len({end for end in ends if isinstance(end, int)}) <= 2
        await until_idle(server, 2)
        await db.close()

        stored = await server.fetch("SELECT name, string_agg(half, '' ORDER BY half) AS halves FROM pair GROUP BY name")
        assert {record["halves"] for record in stored} <= {"ab"}
        assert {"last"} <= acknowledged <= {record["name"] for record in stored}

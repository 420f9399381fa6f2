"""No acknowledged write is lost or made twice after faults of the database, the network or the workers."""

import asyncio
import os
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Final

import pytest

from tests.chaos.ledger import HISTORY, Ledger
from tests.faults import FaultProxy, fault_proxy
from tests.servers import PgBouncer, Postgres, pgbouncer, postgres
from tests.service import Service
from tests.support import until

Fault = Callable[[], Awaitable[float]]  # causes a fault, ends it, and returns the time of its end
RunWith = Callable[[Service, Fault], Awaitable[None]]
TempPaths = pytest.TempPathFactory

CLIENTS: Final = 8
RECOVERY_MAX: Final = 5  # seconds until every client is served again
CUTS: Final = 20
DURABLE: Final = "SHOW fsync; SHOW synchronous_commit; SHOW full_page_writes"
# The database acknowledges commits before it writes them. The test stops the process that writes them.
COMMITS_LATER: Final = {"synchronous_commit": "off"}
WRITER: Final = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"
# The start of the expected fault for each change that is made directly in the database.
CHANGED_DIRECTLY: Final = {
    "lost task": "DELETE FROM tasks WHERE id = '{kept}'",
    "lost change": "DELETE FROM history WHERE operation = 'UPDATE' AND id = '{put}'",
    "lost deletion": "INSERT INTO tasks VALUES ('{user}', '{deleted}', 'a', NULL, false)",
    "created 2 times": "INSERT INTO tasks VALUES ('{user}', gen_random_uuid(), '{title}', NULL, false)",
    "never sent": "INSERT INTO tasks VALUES ('{user}', gen_random_uuid(), 'a', NULL, false)",
    "1 toggles": "UPDATE tasks SET completed = NOT completed, updated_at = now() WHERE id = '{toggled}'",
    "put": "UPDATE tasks SET title = 'a', updated_at = now() WHERE id = '{put}'",
    "lost entry": "DELETE FROM entry WHERE user_id = '{user}' AND title = '{entry}'",
    "not atomic": "UPDATE counter SET total = total + 1 WHERE user_id = '{user}'",
    "refused but created": "UPDATE entry SET title = '{refused}' WHERE user_id = '{user}' AND title = '{entry}'",
    "set": "UPDATE tasks SET completed = NOT completed, updated_at = now() WHERE id = '{set}'",
}
ENDS: Final = pytest.mark.parametrize(
    "end",
    [Postgres.kill, Postgres.stop, lambda database: database.stop("immediate")],
    ids=["killed", "stopped", "stopped immediately"],
)


@pytest.fixture
def ledger(new_user: Callable[[], str]) -> Ledger:
    return Ledger(new_user() for _ in range(CLIENTS))


@pytest.fixture
def run_with(ledger: Ledger, rounds: int, record_property: Callable[[str, object], None]) -> RunWith:
    """Lets clients write to a service while a fault occurs in each round."""

    async def run(service: Service, fault: Fault) -> None:
        times = []
        async with ledger.writing(service.url):
            for _ in range(rounds):
                await ledger.recovered(monotonic())
                times.append(await ledger.recovered(await fault()))
        record_property("answers", dict(ledger.outcomes()))
        record_property("longest recovery", f"{max(times):.2f} s")
        assert max(times) < RECOVERY_MAX

    return run


@pytest.fixture(scope="class")
def database(tmp_path_factory: TempPaths) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("database")) as server:
        yield server


@contextmanager
def two_workers(directory: Path, database: Postgres, **settings: str) -> Iterator[Service]:
    with Service(directory, {"WEB_CONCURRENCY": "2", **settings}, module="tests.chaos.served") as service:
        service.ready()
        database.query(HISTORY)
        yield service


def worker_pids(service: Service) -> list[int]:
    """Returns the process ids of all workers started so far."""
    return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", service.stdout)]


async def discrepancies(ledger: Ledger, service: Service, database: Postgres) -> list[str]:
    """Returns lost or wrong writes, logged errors, connection errors and restarted workers."""
    assert database.query(DURABLE).split() == ["on", "on", "on"]
    errors = [line["message"] for line in service.lines if line["level"] == "ERROR"]
    ended = [outcome for outcome in ledger.outcomes() if outcome.endswith("Error")]
    restarts = worker_pids(service)[2:]
    return [*await ledger.faults(database.dsn), *errors, *ended, *map(str, restarts)]


async def restart(ledger: Ledger, end: Callable[[], None], start: Callable[[], None]) -> float:
    """Keep the dependency down until a client gets a 503."""
    began = monotonic()
    await asyncio.to_thread(end)
    await until(lambda: ledger.refused(began))
    await asyncio.to_thread(start)
    return monotonic()


class TestDatabase:
    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: TempPaths, database: Postgres) -> Iterator[Service]:
        with two_workers(tmp_path_factory.mktemp("service"), database, DATABASE_URL=database.dsn) as service:
            yield service

    @ENDS
    async def test_a_restart_of_the_database_loses_no_write(
        self,
        run_with: RunWith,
        ledger: Ledger,
        service: Service,
        database: Postgres,
        end: Callable[[Postgres], None],
    ) -> None:
        await run_with(service, lambda: restart(ledger, lambda: end(database), database.start))

        assert await discrepancies(ledger, service, database) == []

    async def test_a_killed_worker_loses_no_write(
        self, run_with: RunWith, ledger: Ledger, service: Service, database: Postgres
    ) -> None:
        async def kill_the_older_worker() -> float:
            workers = worker_pids(service)
            os.kill(workers[-2], signal.SIGKILL)
            killed = monotonic()
            await until(lambda: len(worker_pids(service)) > len(workers))
            return killed

        await run_with(service, kill_the_older_worker)

        assert await ledger.faults(database.dsn) == []


class TestPooler:
    @pytest.fixture(scope="class")
    @classmethod
    def pooler(cls, tmp_path_factory: TempPaths, database: Postgres) -> Iterator[PgBouncer]:
        with pgbouncer(tmp_path_factory.mktemp("pooler"), database.dsn) as pooler:
            yield pooler

    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: TempPaths, database: Postgres, pooler: PgBouncer) -> Iterator[Service]:
        urls = {"DATABASE_URL": f"{pooler.dsn}?pgbouncer=true", "DATABASE_URL_UNPOOLED": database.dsn}
        with two_workers(tmp_path_factory.mktemp("service"), database, **urls) as service:
            yield service

    @pytest.mark.parametrize("end", [PgBouncer.stop, PgBouncer.kill], ids=["stopped", "killed"])
    async def test_a_restart_of_the_pooler_loses_no_write(
        self,
        run_with: RunWith,
        ledger: Ledger,
        service: Service,
        database: Postgres,
        pooler: PgBouncer,
        end: Callable[[PgBouncer], None],
    ) -> None:
        await run_with(service, lambda: restart(ledger, lambda: end(pooler), pooler.start))

        assert await discrepancies(ledger, service, database) == []

    async def test_a_killed_database_behind_the_pooler_loses_no_write(
        self, run_with: RunWith, ledger: Ledger, service: Service, database: Postgres
    ) -> None:
        await run_with(service, lambda: restart(ledger, database.kill, database.start))

        assert await discrepancies(ledger, service, database) == []


class TestNetwork:
    @pytest.fixture(scope="class")
    @classmethod
    def network(cls, database: Postgres) -> Iterator[FaultProxy]:
        with fault_proxy(database.dsn) as proxy:
            yield proxy

    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: TempPaths, database: Postgres, network: FaultProxy) -> Iterator[Service]:
        with two_workers(tmp_path_factory.mktemp("service"), database, DATABASE_URL=network.dsn) as service:
            yield service

    @pytest.mark.parametrize("fail", [FaultProxy.hold, FaultProxy.lose], ids=["stalled", "lost"])
    async def test_dropped_packets_lose_no_write(
        self,
        run_with: RunWith,
        ledger: Ledger,
        service: Service,
        database: Postgres,
        network: FaultProxy,
        fail: Callable[[FaultProxy], None],
    ) -> None:
        await run_with(service, lambda: restart(ledger, lambda: fail(network), network.heal))

        assert await discrepancies(ledger, service, database) == []

    async def test_reset_connections_lose_no_write(
        self, run_with: RunWith, ledger: Ledger, service: Service, database: Postgres, network: FaultProxy
    ) -> None:
        async def reset() -> float:
            began = monotonic()
            while not ledger.refused(began):  # a toggle has to be in flight
                network.reset()
                await asyncio.sleep(0.1)
            return monotonic()

        await run_with(service, reset)

        assert await discrepancies(ledger, service, database) == []
        assert "503 outcome-unknown" in ledger.outcomes()

    async def test_lost_answers_lose_no_write(
        self, run_with: RunWith, ledger: Ledger, service: Service, database: Postgres, network: FaultProxy
    ) -> None:
        async def cut() -> float:
            before = network.cut_off
            network.cut(CUTS)
            await until(lambda: network.cut_off == before + CUTS)
            return monotonic()

        await run_with(service, cut)

        assert await discrepancies(ledger, service, database) == []

    async def test_slow_new_connections_lose_no_write(
        self, run_with: RunWith, ledger: Ledger, service: Service, database: Postgres, network: FaultProxy
    ) -> None:
        async def delay() -> float:
            network.delay = 2
            network.reset()
            await ledger.recovered(monotonic())
            network.delay = 0
            return monotonic()

        await run_with(service, delay)

        assert await discrepancies(ledger, service, database) == []

    async def test_slow_packets_lose_no_write_and_cause_no_503(
        self, run_with: RunWith, ledger: Ledger, service: Service, database: Postgres, network: FaultProxy
    ) -> None:
        async def slow_down() -> float:
            network.latency = 0.05
            await ledger.recovered(monotonic())
            network.latency = 0
            return monotonic()

        await run_with(service, slow_down)

        assert await discrepancies(ledger, service, database) == []
        assert not {outcome for outcome in ledger.outcomes() if outcome.startswith("503")}


class TestControl:
    @pytest.fixture(scope="class")
    @classmethod
    def database(cls, tmp_path_factory: TempPaths) -> Iterator[Postgres]:
        with postgres(tmp_path_factory.mktemp("database"), settings=COMMITS_LATER) as server:
            yield server

    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: TempPaths, database: Postgres) -> Iterator[Service]:
        with two_workers(tmp_path_factory.mktemp("service"), database, DATABASE_URL=database.dsn) as service:
            database.query("CHECKPOINT")  # otherwise the kill would also lose the table
            yield service

    async def test_writes_that_a_database_lost_are_found(
        self, run_with: RunWith, ledger: Ledger, service: Service, database: Postgres
    ) -> None:
        async def lose_commits() -> float:
            os.kill(int(database.query(WRITER)), signal.SIGSTOP)
            await ledger.recovered(monotonic())
            return await restart(ledger, database.kill, database.start)

        await run_with(service, lose_commits)

        faults = await ledger.faults(database.dsn)
        assert any(fault.startswith("lost task") for fault in faults)
        assert any(fault.startswith("lost entry") for fault in faults)

    @pytest.mark.parametrize(("found", "sql"), CHANGED_DIRECTLY.items(), ids=CHANGED_DIRECTLY)
    async def test_a_change_made_directly_in_the_database_is_found(
        self, ledger: Ledger, service: Service, database: Postgres, found: str, sql: str
    ) -> None:
        async with ledger.writing(service.url):
            await ledger.recovered(monotonic())
        assert await ledger.faults(database.dsn) == []

        database.query(sql.format_map(ledger.clients[0].names()))

        assert any(fault.startswith(found) for fault in await ledger.faults(database.dsn))

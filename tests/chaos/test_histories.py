"""After a fault of the database, the network or a worker, an order of all requests explains every answer."""

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

from tests.chaos.history import ALL_REQUESTS, History
from tests.chaos.served import TABLES
from tests.faults import FaultProxy, fault_proxy
from tests.servers import PgBouncer, Postgres, pgbouncer, postgres
from tests.service import Service
from tests.support import until

Fault = Callable[[], Awaitable[float]]  # causes a fault, ends it, and returns the time of its end
RunWith = Callable[[Service, Fault], Awaitable[None]]
TempPaths = pytest.TempPathFactory

pytestmark = pytest.mark.ci

CUTS: Final = 20
MESSAGES: Final = 30  # between two resets
DURABLE: Final = "SHOW fsync; SHOW synchronous_commit; SHOW full_page_writes"
WRITER: Final = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"
ENDS: Final = pytest.mark.parametrize(
    "end",
    [Postgres.kill, Postgres.stop, lambda database: database.stop("immediate")],
    ids=["killed", "stopped", "stopped immediately"],
)


@pytest.fixture
def history(new_user: Callable[[], str]) -> History:
    return History([new_user(), new_user()], ALL_REQUESTS)


@pytest.fixture
def run_with(history: History, rounds: int, record_property: Callable[[str, object], None]) -> RunWith:
    """Lets clients send requests to a service while a fault occurs in each round."""

    async def run(service: Service, fault: Fault) -> None:
        times = []
        async with history.recording(service.url):
            await history.cycles(1)
            for _ in range(rounds):
                times.append(await history.recovered(await fault()))
        record_property(f"{rounds} faults", f"{history.summary()}, recovery in {max(times):.2f} s at most")

    return run


@pytest.fixture(scope="module")
def database(tmp_path_factory: TempPaths) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("database")) as server:
        yield server


@contextmanager
def two_workers(directory: Path, database: Postgres, **settings: str) -> Iterator[Service]:
    with Service(directory, {"WEB_CONCURRENCY": "2", **settings}, module="tests.chaos.served") as service:
        service.ready()
        database.query(TABLES)
        yield service


def worker_pids(service: Service) -> list[int]:
    """Returns the process ids of all workers started so far."""
    return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", service.stdout)]


def faults(history: History, service: Service, database: Postgres) -> list[str]:
    """Returns contradictions, logged errors, connection errors and restarted workers."""
    assert database.query(DURABLE).split() == ["on", "on", "on"]
    errors = [line["message"] for line in service.lines if line["level"] == "ERROR"]
    ended = [outcome for outcome in history.outcomes() if outcome.endswith("Error")]
    restarts = worker_pids(service)[2:]
    return [*history.faults(), *errors, *ended, *map(str, restarts)]


async def restart(history: History, end: Callable[[], None], start: Callable[[], None]) -> float:
    """Keep the dependency down until a client gets a 503."""
    began = monotonic()
    await asyncio.to_thread(end)
    await until(lambda: history.refused(began))
    await asyncio.to_thread(start)
    return monotonic()


async def carried(network: FaultProxy, messages: int) -> None:
    """Return when the clients of the network have sent so many more messages."""
    goal = network.messages + messages
    await until(lambda: network.messages >= goal)


class TestDatabase:
    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: TempPaths, database: Postgres) -> Iterator[Service]:
        with two_workers(tmp_path_factory.mktemp("service"), database, DATABASE_URL=database.dsn) as service:
            yield service

    @ENDS
    async def test_a_restart_of_the_database_is_explained(
        self,
        run_with: RunWith,
        history: History,
        service: Service,
        database: Postgres,
        end: Callable[[Postgres], None],
    ) -> None:
        await run_with(service, lambda: restart(history, lambda: end(database), database.start))

        assert faults(history, service, database) == []

    async def test_a_killed_worker_is_explained(self, run_with: RunWith, history: History, service: Service) -> None:
        async def kill_the_older_worker() -> float:
            workers = worker_pids(service)
            os.kill(workers[-2], signal.SIGKILL)
            killed = monotonic()
            await until(lambda: len(worker_pids(service)) > len(workers))
            return killed

        await run_with(service, kill_the_older_worker)

        assert history.faults() == []


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
    async def test_a_restart_of_the_pooler_is_explained(
        self,
        run_with: RunWith,
        history: History,
        service: Service,
        database: Postgres,
        pooler: PgBouncer,
        end: Callable[[PgBouncer], None],
    ) -> None:
        await run_with(service, lambda: restart(history, lambda: end(pooler), pooler.start))

        assert faults(history, service, database) == []

    async def test_a_killed_database_behind_the_pooler_is_explained(
        self, run_with: RunWith, history: History, service: Service, database: Postgres
    ) -> None:
        await run_with(service, lambda: restart(history, database.kill, database.start))

        assert faults(history, service, database) == []


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
    async def test_dropped_packets_are_explained(
        self,
        run_with: RunWith,
        history: History,
        service: Service,
        database: Postgres,
        network: FaultProxy,
        fail: Callable[[FaultProxy], None],
    ) -> None:
        await run_with(service, lambda: restart(history, lambda: fail(network), network.heal))

        assert faults(history, service, database) == []

    async def test_reset_connections_are_explained(
        self, run_with: RunWith, history: History, service: Service, database: Postgres, network: FaultProxy
    ) -> None:
        async def reset() -> float:
            began = monotonic()
            while not history.refused(began):  # a toggle has to be in flight
                await carried(network, MESSAGES)
                network.reset()
            return monotonic()

        await run_with(service, reset)

        assert faults(history, service, database) == []
        assert "503 outcome-unknown" in history.outcomes()

    async def test_lost_answers_are_explained(
        self, run_with: RunWith, history: History, service: Service, database: Postgres, network: FaultProxy
    ) -> None:
        async def cut() -> float:
            before = network.cut_off
            network.cut(CUTS)
            await until(lambda: network.cut_off == before + CUTS)
            return monotonic()

        await run_with(service, cut)

        assert faults(history, service, database) == []

    async def test_slow_new_connections_are_explained(
        self, run_with: RunWith, history: History, service: Service, database: Postgres, network: FaultProxy
    ) -> None:
        async def delay() -> float:
            network.delay = 0.5
            network.reset()
            await history.cycles(2)
            network.delay = 0
            return monotonic()

        await run_with(service, delay)

        assert faults(history, service, database) == []

    async def test_slow_packets_are_explained_and_cause_no_503(
        self, run_with: RunWith, history: History, service: Service, database: Postgres, network: FaultProxy
    ) -> None:
        async def slow_down() -> float:
            network.latency = 0.02
            await history.cycles(2)
            network.latency = 0
            return monotonic()

        await run_with(service, slow_down)

        assert faults(history, service, database) == []
        assert not {outcome for outcome in history.outcomes() if outcome.startswith("503")}


class TestControl:
    @pytest.fixture(scope="class")
    @classmethod
    def forgetful(cls, database: Postgres) -> Iterator[Postgres]:
        """Acknowledges commits before it writes them. The test stops the process that writes them."""
        database.set(synchronous_commit="off")
        yield database
        database.set(synchronous_commit="on")

    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: TempPaths, forgetful: Postgres) -> Iterator[Service]:
        with two_workers(tmp_path_factory.mktemp("service"), forgetful, DATABASE_URL=forgetful.dsn) as service:
            forgetful.query("CHECKPOINT")  # otherwise the kill would also lose the table
            yield service

    async def test_acknowledged_changes_that_a_database_lost_are_found(
        self, run_with: RunWith, history: History, service: Service, forgetful: Postgres
    ) -> None:
        async def lose_commits() -> float:
            os.kill(int(forgetful.query(WRITER)), signal.SIGSTOP)
            await history.cycles(2)
            return await restart(history, forgetful.kill, forgetful.start)

        await run_with(service, lose_commits)

        found = history.faults()
        assert any("operations" in fault for fault in found)
        assert any(fault.startswith("lost entry") for fault in found)

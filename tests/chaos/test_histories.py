"""After a fault of the database, the network or a worker, an order of all requests explains every answer."""

import asyncio
import os
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.history import REQUESTS, Client, History
from tests.faults import FaultProxy, fault_proxy
from tests.servers import PgBouncer, Postgres, pgbouncer, postgres
from tests.service import Service
from tests.support import until

Fault = Callable[[], Awaitable[object]]  # causes a fault and ends it
Run = Callable[..., Awaitable[list[str]]]
TempPaths = pytest.TempPathFactory

pytestmark = pytest.mark.ci

CUTS: Final = 20
MESSAGES: Final = 30  # between two resets
DURABLE: Final = "SHOW fsync; SHOW synchronous_commit; SHOW full_page_writes"
WRITER: Final = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"


@pytest.fixture
def history(new_user: Callable[[], str]) -> History:
    return History([new_user(), new_user()], [*REQUESTS, Client.replace])


@pytest.fixture
def run(history: History, service: Service, rounds: int, record_property: Callable[[str, object], None]) -> Run:
    """Lets clients send requests while a fault occurs in each round. Returns contradictions and logged errors."""

    async def run(fault: Fault, *, kills_workers: bool = False) -> list[str]:
        async with history.recording(service.url):
            await history.cycles(1)
            for _ in range(rounds):
                await fault()
                await history.cycles(2)
        record_property(f"{rounds} faults", history.summary())
        assert kills_workers or len(worker_pids(service)) == 2
        assert kills_workers or not any(outcome.endswith("Error") for outcome in history.outcomes)
        return [*history.faults(), *(line["message"] for line in service.lines if line["level"] == "ERROR")]

    return run


@pytest.fixture(scope="module")
def database(tmp_path_factory: TempPaths) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("database")) as server:
        assert server.query(DURABLE).split() == ["on", "on", "on"]
        yield server


@contextmanager
def two_workers(directory: Path, **settings: str) -> Iterator[Service]:
    with Service(directory, {"WEB_CONCURRENCY": "2", **settings}, module="tests.chaos.served") as service:
        yield service.ready()


def worker_pids(service: Service) -> list[int]:
    """Returns the process ids of all workers started so far."""
    return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", service.stdout)]


async def restart(history: History, end: Callable[[], None], start: Callable[[], None]) -> None:
    """Keep the dependency down until a client gets a 503."""
    before = history.unavailable
    await asyncio.to_thread(end)
    await until(lambda: history.unavailable > before)
    await asyncio.to_thread(start)


class TestDatabase:
    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: TempPaths, database: Postgres) -> Iterator[Service]:
        with two_workers(tmp_path_factory.mktemp("service"), DATABASE_URL=database.dsn) as service:
            yield service

    @pytest.mark.parametrize(
        "end",
        [Postgres.kill, Postgres.stop, lambda database: database.stop("immediate")],
        ids=["killed", "stopped", "stopped immediately"],
    )
    async def test_every_answer_around_a_restart_of_the_database_is_explained(
        self, run: Run, history: History, database: Postgres, end: Callable[[Postgres], None]
    ) -> None:
        assert await run(lambda: restart(history, lambda: end(database), database.start)) == []

    async def test_every_answer_around_a_killed_worker_is_explained(self, run: Run, service: Service) -> None:
        async def kill_the_older_worker() -> None:
            workers = worker_pids(service)
            os.kill(workers[-2], signal.SIGKILL)
            await until(lambda: len(worker_pids(service)) > len(workers))

        assert await run(kill_the_older_worker, kills_workers=True) == []


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
        with two_workers(tmp_path_factory.mktemp("service"), **urls) as service:
            yield service

    @pytest.mark.parametrize("end", [PgBouncer.stop, PgBouncer.kill], ids=["stopped", "killed"])
    async def test_every_answer_around_a_restart_of_the_pooler_is_explained(
        self, run: Run, history: History, pooler: PgBouncer, end: Callable[[PgBouncer], None]
    ) -> None:
        assert await run(lambda: restart(history, lambda: end(pooler), pooler.start)) == []

    async def test_every_answer_around_a_killed_database_behind_the_pooler_is_explained(
        self, run: Run, history: History, database: Postgres
    ) -> None:
        assert await run(lambda: restart(history, database.kill, database.start)) == []


class TestNetwork:
    @pytest.fixture(scope="class")
    @classmethod
    def network(cls, database: Postgres) -> Iterator[FaultProxy]:
        with fault_proxy(database.dsn) as proxy:
            yield proxy

    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: TempPaths, network: FaultProxy) -> Iterator[Service]:
        with two_workers(tmp_path_factory.mktemp("service"), DATABASE_URL=network.dsn) as service:
            yield service

    @pytest.mark.parametrize("fail", [FaultProxy.hold, FaultProxy.lose], ids=["stalled", "lost"])
    async def test_every_answer_around_dropped_packets_is_explained(
        self, run: Run, history: History, network: FaultProxy, fail: Callable[[FaultProxy], None]
    ) -> None:
        assert await run(lambda: restart(history, lambda: fail(network), network.heal)) == []

    async def test_every_answer_around_reset_connections_is_explained(
        self, run: Run, history: History, network: FaultProxy
    ) -> None:
        async def reset() -> None:
            while "503 outcome-unknown" not in history.outcomes:  # a change has to be in flight
                goal = network.messages + MESSAGES
                await until(lambda goal=goal: network.messages >= goal)  # type: ignore[misc]
                network.reset()

        assert await run(reset) == []

    async def test_every_answer_around_lost_answers_of_the_database_is_explained(
        self, run: Run, network: FaultProxy
    ) -> None:
        async def cut() -> None:
            goal = network.cut_off + CUTS
            network.cut(CUTS)
            await until(lambda: network.cut_off == goal)

        assert await run(cut) == []

    async def test_every_answer_around_slow_new_connections_is_explained(
        self, run: Run, history: History, network: FaultProxy
    ) -> None:
        async def delay() -> None:
            network.delay = 0.5
            network.reset()
            await history.cycles(1)
            network.delay = 0

        assert await run(delay) == []

    async def test_every_answer_around_slow_packets_is_explained_and_none_is_503(
        self, run: Run, history: History, network: FaultProxy
    ) -> None:
        async def slow_down() -> None:
            network.latency = 0.02
            await history.cycles(1)
            network.latency = 0

        assert await run(slow_down) == []
        assert history.unavailable == 0


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
        with two_workers(tmp_path_factory.mktemp("service"), DATABASE_URL=forgetful.dsn) as service:
            yield service

    async def test_acknowledged_changes_that_a_database_lost_are_found(
        self, run: Run, history: History, forgetful: Postgres
    ) -> None:
        async def lose_commits() -> None:
            os.kill(int(forgetful.query(WRITER)), signal.SIGSTOP)
            await history.cycles(2)
            await restart(history, forgetful.kill, forgetful.start)

        assert any("operations" in fault for fault in await run(lose_commits))

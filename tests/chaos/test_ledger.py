"""No acknowledged write is lost and none is made twice, whatever happens to database, network and workers."""

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

Fault = Callable[[], Awaitable[float]]  # brings it about and ends it, and returns when that was
Endure = Callable[[Service, Fault], Awaitable[None]]
Temporary = pytest.TempPathFactory

CLIENTS: Final = 8
HEALED: Final = 5  # seconds within which everybody is served again
CUTS: Final = 20
DURABLE: Final = "SHOW fsync; SHOW synchronous_commit; SHOW full_page_writes"
# Commits are acknowledged before they are written; the process that does it later is stopped.
FORGETFUL: Final = {"synchronous_commit": "off"}
WRITER: Final = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"
# What the check says of what was done past the service.
PLANTED: Final = {
    "lost task": "DELETE FROM tasks WHERE id = '{kept}'",
    "lost change": "DELETE FROM history WHERE operation = 'UPDATE' AND id = '{put}'",
    "lost deletion": "INSERT INTO tasks VALUES ('{user}', '{gone}', 'a', NULL, false)",
    "made 2 times": "INSERT INTO tasks VALUES ('{user}', gen_random_uuid(), '{title}', NULL, false)",
    "never sent": "INSERT INTO tasks VALUES ('{user}', gen_random_uuid(), 'a', NULL, false)",
    "1 toggles": "UPDATE tasks SET completed = NOT completed, updated_at = now() WHERE id = '{toggled}'",
    "put": "UPDATE tasks SET title = 'a', updated_at = now() WHERE id = '{put}'",
    "lost entry": "DELETE FROM entry WHERE user_id = '{user}' AND title = '{entry}'",
    "half done": "UPDATE counter SET total = total + 1 WHERE user_id = '{user}'",
    "refused and made": "UPDATE entry SET title = '{refused}' WHERE user_id = '{user}' AND title = '{entry}'",
    "set": "UPDATE tasks SET completed = NOT completed, updated_at = now() WHERE id = '{set}'",
}
ENDS: Final = pytest.mark.parametrize(
    "end",
    [Postgres.kill, Postgres.stop, lambda database: database.stop("immediate")],
    ids=["killed", "stopped", "stopped at once"],
)


@pytest.fixture
def ledger(new_user: Callable[[], str]) -> Ledger:
    return Ledger(new_user() for _ in range(CLIENTS))


@pytest.fixture
def endure(ledger: Ledger, rounds: int, record_property: Callable[[str, object], None]) -> Endure:
    """Has clients write to a service while a fault happens, once a round."""

    async def endure(service: Service, fault: Fault) -> None:
        times = []
        async with ledger.writing(service.url):
            for _ in range(rounds):
                await ledger.healed(monotonic())
                times.append(await ledger.healed(await fault()))
        record_property("answers", dict(ledger.outcomes()))
        record_property("longest time to heal", f"{max(times):.2f} s")
        assert max(times) < HEALED

    return endure


@pytest.fixture(scope="class")
def database(tmp_path_factory: Temporary) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("database")) as server:
        yield server


@contextmanager
def two_workers(directory: Path, database: Postgres, **settings: str) -> Iterator[Service]:
    with Service(directory, {"WEB_CONCURRENCY": "2", **settings}, module="tests.chaos.served") as service:
        service.ready()
        database.query(HISTORY)
        yield service


def started(service: Service) -> list[int]:
    """Returns the process ids of all workers until now."""
    return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", service.stdout)]


async def unwell(ledger: Ledger, service: Service, database: Postgres) -> list[str]:
    """Returns what is not as it was acknowledged, and what else should not be."""
    assert database.query(DURABLE).split() == ["on", "on", "on"]
    errors = [line["message"] for line in service.lines if line["level"] == "ERROR"]
    ended = [outcome for outcome in ledger.outcomes() if outcome.endswith("Error")]
    restarts = started(service)[2:]
    return [*await ledger.faults(database.dsn), *errors, *ended, *map(str, restarts)]


async def restart(ledger: Ledger, end: Callable[[], None], start: Callable[[], None]) -> float:
    """Leave it down until clients know."""
    began = monotonic()
    await asyncio.to_thread(end)
    await until(lambda: ledger.refused(began))
    await asyncio.to_thread(start)
    return monotonic()


class TestDatabase:
    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: Temporary, database: Postgres) -> Iterator[Service]:
        with two_workers(tmp_path_factory.mktemp("service"), database, DATABASE_URL=database.dsn) as service:
            yield service

    @ENDS
    async def test_it_may_be_restarted(
        self,
        endure: Endure,
        ledger: Ledger,
        service: Service,
        database: Postgres,
        end: Callable[[Postgres], None],
    ) -> None:
        await endure(service, lambda: restart(ledger, lambda: end(database), database.start))

        assert await unwell(ledger, service, database) == []

    async def test_workers_may_be_killed(
        self, endure: Endure, ledger: Ledger, service: Service, database: Postgres
    ) -> None:
        async def kill_the_older() -> float:
            workers = started(service)
            os.kill(workers[-2], signal.SIGKILL)
            killed = monotonic()
            await until(lambda: len(started(service)) > len(workers))
            return killed

        await endure(service, kill_the_older)

        assert await ledger.faults(database.dsn) == []


class TestPooler:
    @pytest.fixture(scope="class")
    @classmethod
    def pooler(cls, tmp_path_factory: Temporary, database: Postgres) -> Iterator[PgBouncer]:
        with pgbouncer(tmp_path_factory.mktemp("pooler"), database.dsn) as pooler:
            yield pooler

    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: Temporary, database: Postgres, pooler: PgBouncer) -> Iterator[Service]:
        urls = {"DATABASE_URL": f"{pooler.dsn}?pgbouncer=true", "DATABASE_URL_UNPOOLED": database.dsn}
        with two_workers(tmp_path_factory.mktemp("service"), database, **urls) as service:
            yield service

    @pytest.mark.parametrize("end", [PgBouncer.stop, PgBouncer.kill], ids=["stopped", "killed"])
    async def test_it_may_be_restarted(
        self,
        endure: Endure,
        ledger: Ledger,
        service: Service,
        database: Postgres,
        pooler: PgBouncer,
        end: Callable[[PgBouncer], None],
    ) -> None:
        await endure(service, lambda: restart(ledger, lambda: end(pooler), pooler.start))

        assert await unwell(ledger, service, database) == []

    async def test_the_database_behind_it_may_be_killed(
        self, endure: Endure, ledger: Ledger, service: Service, database: Postgres
    ) -> None:
        await endure(service, lambda: restart(ledger, database.kill, database.start))

        assert await unwell(ledger, service, database) == []


class TestNetwork:
    @pytest.fixture(scope="class")
    @classmethod
    def network(cls, database: Postgres) -> Iterator[FaultProxy]:
        with fault_proxy(database.dsn) as proxy:
            yield proxy

    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: Temporary, database: Postgres, network: FaultProxy) -> Iterator[Service]:
        with two_workers(tmp_path_factory.mktemp("service"), database, DATABASE_URL=network.dsn) as service:
            yield service

    @pytest.mark.parametrize("fail", [FaultProxy.hold, FaultProxy.lose], ids=["stalled", "lost"])
    async def test_packets_may_be_dropped(
        self,
        endure: Endure,
        ledger: Ledger,
        service: Service,
        database: Postgres,
        network: FaultProxy,
        fail: Callable[[FaultProxy], None],
    ) -> None:
        await endure(service, lambda: restart(ledger, lambda: fail(network), network.heal))

        assert await unwell(ledger, service, database) == []

    async def test_connections_may_be_reset(
        self, endure: Endure, ledger: Ledger, service: Service, database: Postgres, network: FaultProxy
    ) -> None:
        async def reset() -> float:
            began = monotonic()
            while not ledger.refused(began):  # a toggle has to be on its way
                network.reset()
                await asyncio.sleep(0.1)
            return monotonic()

        await endure(service, reset)

        assert await unwell(ledger, service, database) == []
        assert "503 outcome-unknown" in ledger.outcomes()

    async def test_answers_may_be_lost(
        self, endure: Endure, ledger: Ledger, service: Service, database: Postgres, network: FaultProxy
    ) -> None:
        async def cut() -> float:
            before = network.cut_off
            network.cut(CUTS)
            await until(lambda: network.cut_off == before + CUTS)
            return monotonic()

        await endure(service, cut)

        assert await unwell(ledger, service, database) == []

    async def test_new_connections_may_take_long(
        self, endure: Endure, ledger: Ledger, service: Service, database: Postgres, network: FaultProxy
    ) -> None:
        async def delay() -> float:
            network.delay = 2
            network.reset()
            await ledger.healed(monotonic())
            network.delay = 0
            return monotonic()

        await endure(service, delay)

        assert await unwell(ledger, service, database) == []

    async def test_packets_may_take_long(
        self, endure: Endure, ledger: Ledger, service: Service, database: Postgres, network: FaultProxy
    ) -> None:
        async def slow_down() -> float:
            network.latency = 0.05
            await ledger.healed(monotonic())
            network.latency = 0
            return monotonic()

        await endure(service, slow_down)

        assert await unwell(ledger, service, database) == []
        assert not {outcome for outcome in ledger.outcomes() if outcome.startswith("503")}


class TestControl:
    @pytest.fixture(scope="class")
    @classmethod
    def database(cls, tmp_path_factory: Temporary) -> Iterator[Postgres]:
        with postgres(tmp_path_factory.mktemp("database"), settings=FORGETFUL) as server:
            yield server

    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: Temporary, database: Postgres) -> Iterator[Service]:
        with two_workers(tmp_path_factory.mktemp("service"), database, DATABASE_URL=database.dsn) as service:
            database.query("CHECKPOINT")  # or it forgets the table, too
            yield service

    async def test_a_database_that_forgets_is_found_out(
        self, endure: Endure, ledger: Ledger, service: Service, database: Postgres
    ) -> None:
        async def forget() -> float:
            os.kill(int(database.query(WRITER)), signal.SIGSTOP)
            await ledger.healed(monotonic())
            return await restart(ledger, database.kill, database.start)

        await endure(service, forget)

        faults = await ledger.faults(database.dsn)
        assert any(fault.startswith("lost task") for fault in faults)
        assert any(fault.startswith("lost entry") for fault in faults)

    @pytest.mark.parametrize(("found", "sql"), PLANTED.items(), ids=PLANTED)
    async def test_what_was_not_so_is_found_out(
        self, ledger: Ledger, service: Service, database: Postgres, found: str, sql: str
    ) -> None:
        async with ledger.writing(service.url):
            await ledger.healed(monotonic())
        assert await ledger.faults(database.dsn) == []

        database.query(sql.format_map(ledger.clients[0].names()))

        assert any(fault.startswith(found) for fault in await ledger.faults(database.dsn))

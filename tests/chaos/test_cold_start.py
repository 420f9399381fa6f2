"""A database that closes idle connections and then starts slowly, and one that is not there at the start."""

import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Final

import pytest
from sqlalchemy import make_url

from tests.chaos.history import REPEATABLE, History
from tests.faults import FaultProxy, fault_proxy
from tests.servers import Postgres, postgres
from tests.service import Service
from tests.support import until

pytestmark = pytest.mark.ci

CONNECTIONS: Final = 3  # fewer than clients, so that some wait for those that open a connection
IDLE: Final = 0.2  # seconds after which the database closes a connection


@pytest.fixture
def network(dsn: str) -> Iterator[FaultProxy]:
    with fault_proxy(dsn) as proxy:
        yield proxy


@pytest.mark.parametrize("delay", [0.3, 8])
async def test_a_repeatable_request_gets_no_error_from_a_slow_database(
    tmp_path: Path,
    network: FaultProxy,
    new_user: Callable[[], str],
    delay: float,
    rounds: int,
    record_property: Callable[[str, object], None],
) -> None:
    history = History([new_user(), new_user()], REPEATABLE)
    with Service(tmp_path, {"DATABASE_URL": network.dsn, "DATABASE_POOL_SIZE": str(CONNECTIONS)}) as service:
        service.ready()
        for _ in range(rounds):
            network.delay, network.idle = delay, IDLE
            await until(lambda: network.connections == 0)
            network.idle = math.inf
            async with history.recording(service.url):
                await history.cycles(1)

    record_property(f"{rounds} cold starts of {delay} s", history.summary())
    assert history.unavailable == 0
    assert history.faults() == []


class TestStart:
    @pytest.fixture(scope="class")
    @classmethod
    def database(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
        with postgres(tmp_path_factory.mktemp("database")) as server:
            yield server

    def test_a_service_that_starts_before_its_database_waits_and_logs_it(
        self, tmp_path: Path, database: Postgres
    ) -> None:
        database.stop()
        with Service(tmp_path, {"DATABASE_URL": database.dsn}) as service:
            while not (tries := [message for message in service.messages if "waiting" in message]):
                assert service.process.poll() is None
                time.sleep(0.02)
            database.start()
            service.ready().create("Buy oat milk")
            assert service.end() == 0

        assert all(message.startswith("waiting for the database: ConnectionRefusedError") for message in tries)
        assert service.stderr == ""

    @pytest.mark.parametrize("wrong", ["password", "database"])
    def test_a_permanent_fault_is_reported_in_one_sentence(
        self, tmp_path: Path, database: Postgres, wrong: str
    ) -> None:
        url = make_url(database.dsn)
        url = url.set(password=token_hex()) if wrong == "password" else url.set(database="nowhere")
        with Service(tmp_path, {"DATABASE_URL": url.render_as_string(hide_password=False)}) as service:
            assert service.process.wait() == 1

        assert re.fullmatch(r"[A-Z].*\.?\n", service.stderr)
        assert str(url.password) not in service.stdout + service.stderr

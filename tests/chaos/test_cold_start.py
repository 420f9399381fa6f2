"""A database that starts slowly on the first connection, and closes idle connections."""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from secrets import token_hex
from statistics import median
from typing import Any, Final

import httpx
import pytest
from sqlalchemy import make_url

from tests.faults import FaultProxy, fault_proxy
from tests.servers import Postgres, postgres
from tests.service import Service
from tests.support import until

USERS: Final = 12  # the pool has 5 connections
IDLE: Final = 0.8  # seconds after which the database closes a connection
VISITING: Final = 2  # seconds; a visit may take longer
LIVE: Final = 0.05  # seconds in which /health/live answers
INTERVAL: Final = 0.01


class LivenessProbe:
    """The response times of /health/live. A thread of its own asks continuously, apart from the clients' event loop."""

    def __init__(self, port: int) -> None:
        self.times: list[float] = []
        self._port = port
        self._stopping = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._probe)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()

    def _probe(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._stopping.wait(INTERVAL):
            started = time.perf_counter()
            connection.request("GET", "/health/live")
            with connection.getresponse() as response:
                response.read()
                assert response.status == 200
            self.times.append(time.perf_counter() - started)
        connection.close()


class Visitor:
    """A user who sends only idempotent requests."""

    def __init__(self, client: httpx.AsyncClient, user: str) -> None:
        self.replies: list[httpx.Response] = []
        self._client = client
        self._tasks = f"/api/{user}/tasks"
        self._pauses = Random(user)  # noqa: S311  # the pauses are no secret

    async def visit(self) -> None:
        """Create a task, and use every operation on it."""
        key = {"Idempotency-Key": f"visit {len(self.replies)}"}
        made = await self._ask("POST", self._tasks, json={"title": "Buy oat milk"}, headers=key)
        if made.is_success:
            path = made.headers["Location"]
            await self._ask("GET", path)
            await self._ask("PUT", path, json={"title": "Drink it"})
            await self._ask("PATCH", f"{path}/complete", json={"completed": True})
            await self._ask("GET", self._tasks)
            await self._ask("DELETE", path)

    async def keep_visiting(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self.visit()
            await asyncio.sleep(self._pauses.uniform(0, 2 * IDLE))

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        reply = await self._client.request(method, path, **options)
        self.replies.append(reply)
        return reply


@pytest.fixture
def network(dsn: str) -> Iterator[FaultProxy]:
    with fault_proxy(dsn) as proxy:
        yield proxy


@pytest.mark.parametrize("delay", [0.3, 2, 8])
async def test_an_idempotent_request_gets_no_error_from_a_slow_database(
    tmp_path: Path,
    network: FaultProxy,
    new_user: Callable[[], str],
    delay: float,
    rounds: int,
    record_property: Callable[[str, object], None],
) -> None:
    network.delay, network.idle = min(delay, 2), IDLE  # the start opens two connections one after the other
    with Service(tmp_path, {"DATABASE_URL": network.dsn}) as service:
        service.ready()
        network.delay = delay
        probe = LivenessProbe(service.port)
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            visitors = [Visitor(client, new_user()) for _ in range(USERS)]
            with probe.running():
                for _ in range(rounds):
                    await until(lambda: network.connections == 0)
                    await asyncio.gather(*(visitor.visit() for visitor in visitors))
                    await until(lambda: network.connections == 0)
                    await asyncio.gather(*(visitor.keep_visiting(VISITING) for visitor in visitors))

    replies = [reply for visitor in visitors for reply in visitor.replies]
    assert [reply.text for reply in replies if not reply.is_success] == []
    late = sum(took > LIVE for took in probe.times)
    record_property("late", f"{late} of {len(probe.times)} answers to /health/live, median {median(probe.times):.4f} s")
    assert late <= len(probe.times) / 20  # the machine may be busy


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
            while len(tries := [message for message in service.messages if "waiting" in message]) < 2:
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

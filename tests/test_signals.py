"""The end by a signal in each phase of a start, with a log that nobody reads, and with code that is stuck."""

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGSTOP, SIGTERM
from typing import Final

import asyncpg
import httpx
import pytest

from app.server.embedded import embedded_postgres
from tests.servers import free_port
from tests.service import BACKEND, TASKS, Service
from tests.support import execute, new_database

LOCKED: Final = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
INCOMPLETE: Final = (
    b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 16\r\n"
    b"Expect: 100-continue\r\n\r\n" % TASKS.encode()
)
LIST: Final = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % TASKS.encode()
ABORTED: Final = "The service did not end in time after a signal and was aborted.\n"


def until(service: Service, condition: Callable[[], object], pause: float = 0.001) -> None:
    while not condition():
        assert service.process.poll() is None, service.stderr
        time.sleep(pause)


@contextmanager
def locked(dsn: str) -> Iterator[str]:
    """Yields an empty database in which another migration runs."""
    with new_database(dsn, "signals") as own, asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(own))
        runner.run(connection.execute("SELECT pg_advisory_lock(7461736531)"))
        yield own
        runner.run(connection.close())


def interrupt(service: Service) -> None:
    """Press Ctrl+C in the terminal of the service."""
    os.killpg(service.process.pid, SIGINT)


@pytest.mark.parametrize("number", [SIGTERM, pytest.param(SIGINT, marks=pytest.mark.ci)])
class TestStart:
    """The signal reaches the whole group, as from a terminal. It ends the start without a word."""

    @staticmethod
    def end(service: Service, number: signal.Signals) -> None:
        os.killpg(service.process.pid, number)
        assert service.process.wait(timeout=60) == 0
        assert (service.stderr, service.postgres_runs) == ("", False)
        assert "Traceback" not in service.stdout

    def test_a_signal_while_the_database_is_created_ends_the_start(
        self, tmp_path: Path, number: signal.Signals
    ) -> None:
        with Service(tmp_path) as service:
            until(service, (tmp_path / ".data" / "postgres.unfinished" / "base").exists)
            self.end(service, number)
        assert not (tmp_path / ".data").exists()

    def test_a_signal_while_postgres_starts_ends_the_start(self, directory: Path, number: signal.Signals) -> None:
        with Service(directory) as service:
            until(service, lambda: service.postgres_runs)
            self.end(service, number)

    def test_a_signal_while_another_process_starts_postgres_ends_the_start(
        self, directory: Path, number: signal.Signals
    ) -> None:
        path = directory / ".data" / "postgres.start.lock"
        with path.open("a") as lock, Service(directory) as service:
            fcntl.flock(lock, fcntl.LOCK_EX)
            until(service, lambda: path in service.opened)
            self.end(service, number)

    def test_a_signal_while_the_database_is_down_ends_the_start(self, tmp_path: Path, number: signal.Signals) -> None:
        with Service(tmp_path, {"DATABASE_URL": f"postgresql://ada@127.0.0.1:{free_port()}/tasks"}) as service:
            until(service, lambda: "waiting for the database" in service.stdout)
            self.end(service, number)

    def test_a_signal_that_is_repeated_until_the_process_has_ended_changes_nothing(
        self, tmp_path: Path, number: signal.Signals
    ) -> None:
        with Service(tmp_path, {"DATABASE_URL": f"postgresql://ada@127.0.0.1:{free_port()}/tasks"}) as service:
            until(service, lambda: "waiting for the database" in service.stdout)
            while service.process.poll() is None:
                os.killpg(service.process.pid, number)
                time.sleep(0.001)
            assert (service.process.returncode, service.stderr) == (0, "")

    def test_a_signal_while_a_migration_waits_for_a_lock_ends_the_start(
        self, dsn: str, tmp_path: Path, number: signal.Signals
    ) -> None:
        with locked(dsn) as database, Service(tmp_path, {"DATABASE_URL": database}) as service:
            until(service, lambda: execute(database, LOCKED) == [(1,)], pause=0.05)
            self.end(service, number)
            while execute(database, LOCKED) != [(0,)]:
                time.sleep(0.05)

    def test_a_signal_while_workers_start_ends_the_start(self, directory: Path, number: signal.Signals) -> None:
        with Service(directory, {"WEB_CONCURRENCY": "2"}, module="tests.verbose") as service:
            until(service, lambda: "Started parent process" in service.stdout)
            self.end(service, number)


class TestAlembic:
    """`alembic upgrade head` by hand."""

    @pytest.mark.parametrize("number", [SIGTERM, pytest.param(SIGINT, marks=pytest.mark.ci)])
    def test_a_signal_cancels_the_migration(self, dsn: str, tmp_path: Path, number: signal.Signals) -> None:
        with locked(dsn) as database, self.started(tmp_path, DATABASE_URL=database) as process:
            while execute(database, LOCKED) != [(1,)]:
                assert process.poll() is None
                time.sleep(0.05)
            for _ in range(2):
                os.killpg(process.pid, number)
            _, errors = process.communicate(timeout=60)

            assert (process.returncode, "Traceback" in errors) == (128 + number, False)

    @staticmethod
    @contextmanager
    def started(directory: Path, **environment: str) -> Iterator["subprocess.Popen[str]"]:
        command = [sys.executable, "-m", "alembic", "--config", str(BACKEND.parent / "alembic.ini"), "upgrade", "head"]
        with subprocess.Popen(
            command,
            cwd=directory,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            yield process
            process.kill()


class TestSecondInterrupt:
    @pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.ci)])
    def test_a_second_ctrl_c_ends_a_request_that_is_incomplete(self, directory: Path, workers: str) -> None:
        with Service(directory, {"WEB_CONCURRENCY": workers, "SHUTDOWN_TIMEOUT": "600"}) as service:
            service.ready()
            with socket.create_connection(("127.0.0.1", service.port)) as connection:
                connection.sendall(INCOMPLETE)
                assert connection.recv(99).startswith(b"HTTP/1.1 100 ")
                interrupt(service)
                until(service, lambda: "finishing the requests in progress" in service.stdout)
                interrupt(service)
                assert connection.recv(99).startswith(b"HTTP/1.1 503 ")
            assert service.process.wait(timeout=60) == 0
            assert (service.stderr, service.postgres_runs) == ("", False)
            assert "Traceback" not in service.stdout


class TestStalledLog:
    @pytest.mark.parametrize("is_read", [False, pytest.param(True, marks=pytest.mark.ci)])
    def test_while_nobody_reads_the_log_requests_are_served_and_the_service_ends_and_no_line_is_cut(
        self, directory: Path, *, is_read: bool
    ) -> None:
        reader, writer = os.pipe()
        with Service(directory, {"LOG_HEALTH": "on"}, terminal=writer) as service:
            os.close(writer)
            with httpx.Client(base_url=service.ready().url, timeout=30) as client:
                for _ in range(600):
                    assert client.get("/health/live").is_success
            service.process.terminate()
            log = b""
            while is_read and (part := os.read(reader, 65_536)):
                log += part
            assert service.process.wait(timeout=60) == 0
            assert (service.stderr, service.postgres_runs) == ("", False)
        while part := os.read(reader, 65_536):
            log += part
        os.close(reader)

        lines = [json.loads(line) for line in log.splitlines()]
        served = [line for line in lines if line.get("route") == "/health/live"]
        assert (len(served) == 600) is is_read
        assert len(served) > 100


class TestStuck:
    """Code that is stuck keeps the process for SHUTDOWN_TIMEOUT only."""

    def test_a_stuck_service_is_aborted_and_its_postgres_stopped(self, directory: Path) -> None:
        with self.stuck(directory) as (service, _):
            postmaster = service.postmaster
            assert service.end() == 1
            assert service.stderr == ABORTED
            wait_for_end(postmaster)

    def test_a_stuck_service_does_not_stop_the_postgres_of_another_service(self, directory: Path) -> None:
        with embedded_postgres(directory / ".data" / "postgres") as dsn, self.stuck(directory) as (service, _):
            assert service.end() == 1
            assert execute(dsn, "SELECT 1") == [(1,)]

    @pytest.mark.parametrize("is_stopped", [False, pytest.param(True, marks=pytest.mark.ci)], ids=["busy", "stopped"])
    def test_a_stuck_worker_is_killed_by_its_parent(self, dsn: str, tmp_path: Path, *, is_stopped: bool) -> None:
        with self.stuck(tmp_path, DATABASE_URL=dsn, WEB_CONCURRENCY="2") as (service, worker):
            if is_stopped:
                os.kill(worker, SIGSTOP)
            service.end()
            assert f"worker [{worker}] does not end and is killed" in service.messages
            assert not Path(f"/proc/{worker}").exists()

    def test_a_stuck_worker_of_a_killed_parent_is_aborted(self, dsn: str, tmp_path: Path) -> None:
        with self.stuck(tmp_path, DATABASE_URL=dsn, WEB_CONCURRENCY="2") as (service, worker):
            service.end(SIGKILL)
            wait_for_end(worker)
            assert service.stderr == ABORTED

    @staticmethod
    @contextmanager
    def stuck(directory: Path, **settings: str) -> Iterator[tuple[Service, int]]:
        """Yields a service and the id of its process that is stuck."""
        with (
            Service(directory, {"SHUTDOWN_TIMEOUT": "3", **settings}, module="tests.stuck") as service,
            socket.create_connection(("127.0.0.1", service.ready().port)) as connection,
        ):
            connection.sendall(LIST)
            until(service, lambda: '"message":"stuck"' in service.stdout)
            [stuck] = [line["pid"] for line in service.lines if line["message"] == "stuck"]
            yield service, stuck


def wait_for_end(pid: int) -> None:
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)

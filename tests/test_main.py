"""`python -m app` as a user runs it, mostly with an embedded PostgreSQL in its directory, and as it is killed."""

import os
import pty
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url

from app.core.database.migrations import migrate
from app.server.embedded import embedded_postgres
from tests.service import TASKS, Service
from tests.support import SECRET, bearer, execute


@pytest.fixture(scope="module")
def created(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("created") / ".data" / "postgres"
    with embedded_postgres(data) as dsn:
        migrate(dsn)
    return data.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service after its first start, one task, and its end."""
    with Service(tmp_path_factory.mktemp("finished")) as service:
        service.ready().create("Buy oat milk")
        service.end()
        yield service


@pytest.fixture
def directory(created: Path, tmp_path: Path) -> Path:
    """A directory in which the service has run before."""
    subprocess.run(["cp", "-a", created, tmp_path], check=True)
    return tmp_path


class TestLife:
    def test_the_service_exits_with_0_and_no_error_output(self, finished: Service) -> None:
        assert (finished.process.returncode, finished.stderr) == (0, "")

    def test_the_service_stops_its_postgres(self, finished: Service) -> None:
        assert not finished.postgres_runs

    def test_the_data_is_kept_until_the_next_start(self, finished: Service) -> None:
        with Service(finished.directory) as service:
            assert [task["title"] for task in service.ready().tasks()] == ["Buy oat milk"]
            assert service.postgres_runs

    def test_the_log_has_the_address_of_the_docs(self, finished: Service) -> None:
        assert f"docs will be at {finished.url}/docs" in finished.messages

    def test_the_log_warns_that_authentication_is_off(self, finished: Service) -> None:
        assert "authentication is off: whoever reaches the port may name any user" in finished.messages

    def test_every_log_line_is_json_with_time_level_and_message(self, finished: Service) -> None:
        lines = finished.lines

        assert all(datetime.fromisoformat(line["time"]).tzinfo == UTC for line in lines)
        assert {line["level"] for line in lines} <= {"INFO", "WARNING"}
        assert all(line["message"] for line in lines)

    def test_every_request_has_a_log_line(self, finished: Service) -> None:
        [line] = [line for line in finished.lines if line.get("method") == "POST"]

        assert (line["route"], line["status"]) == ("/api/{user_id}/tasks", 201)
        assert line["duration_ms"] > 0
        assert line["request_id"]


def missing(acknowledged: set[str], tasks: list[dict[str, Any]]) -> set[str]:
    """The titles that are not stored exactly once."""
    stored = Counter(task["title"] for task in tasks)
    return {title for title in acknowledged if stored[title] != 1}


class TestKill:
    @pytest.mark.parametrize("server_too", [False, True], ids=["service", "service and PostgreSQL"])
    def test_every_acknowledged_task_is_stored_once_after_a_kill(self, directory: Path, *, server_too: bool) -> None:
        acknowledged: set[str] = set()

        def create_until_the_end(client: int) -> None:
            with suppress(httpx.TransportError):
                for number in range(1_000):
                    reply = service.post(f"{client}-{number}")
                    if reply.status_code == 503:
                        return  # PostgreSQL was killed first
                    acknowledged.add(reply.raise_for_status().json()["title"])

        with Service(directory) as service, ThreadPoolExecutor(4) as clients:
            service.ready()
            running = [clients.submit(create_until_the_end, client) for client in range(4)]
            while len(acknowledged) < 40:
                time.sleep(0.001)
            postmaster = service.postmaster
            if server_too:
                os.kill(postmaster, signal.SIGKILL)
            service.end(signal.SIGKILL)
            for client in running:
                client.result()

            with Service(directory, port=service.port) as next_service:
                tasks = next_service.ready().tasks()
                assert (next_service.postmaster == postmaster) is not server_too
                assert missing(acknowledged, tasks) == set()
                assert missing(acknowledged | {"never sent"}, tasks) == {"never sent"}
                assert next_service.end() == 0
            assert not service.postgres_runs

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
    def test_a_service_that_gets_a_signal_while_it_starts_leaves_no_postgres(
        self, directory: Path, number: signal.Signals, code: int
    ) -> None:
        with Service(directory) as service:
            while not service.postgres_runs:
                assert service.process.poll() is None
                time.sleep(0.001)
            assert service.end(number) == code
            assert not service.postgres_runs


class TestWorkers:
    def test_every_worker_uses_the_one_postgres_and_ends_with_its_parent(self, directory: Path) -> None:
        with Service(directory, {"WEB_CONCURRENCY": "2"}) as service:
            service.ready()
            while len(workers := re.findall(r"Started server process \[(\d+)\]", service.stdout)) < 2:
                time.sleep(0.02)
            titles = {service.create(title)["title"] for title in "ab"}
            for pid in map(int, workers):
                os.kill(pid, signal.SIGSTOP)
                assert {task["title"] for task in service.tasks()} == titles
                os.kill(pid, signal.SIGCONT)

            with embedded_postgres(directory / ".data" / "postgres") as dsn:
                count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tasks-api'"
                assert execute(dsn, count) == [(2,)]
                service.end(signal.SIGKILL)
                while execute(dsn, count) != [(0,)]:
                    time.sleep(0.02)

            with Service(directory, port=service.port) as next_service:
                assert {task["title"] for task in next_service.ready().tasks()} == titles

    def test_workers_end_when_the_terminal_is_closed(self, directory: Path) -> None:
        with Service(directory, {"WEB_CONCURRENCY": "2"}) as service:
            service.ready()
            assert service.end(signal.SIGHUP) == 0
            assert not service.postgres_runs


class TestTwoServices:
    def test_two_services_may_share_a_new_directory_and_the_last_one_stops_its_postgres(self, tmp_path: Path) -> None:
        with Service(tmp_path) as one, Service(tmp_path) as other:
            one.ready().create("Buy oat milk")
            assert [task["title"] for task in other.ready().tasks()] == ["Buy oat milk"]

            assert one.end() == 0
            other.create("Drink it")
            assert other.end() == 0
            assert not other.postgres_runs
            assert (one.stderr, other.stderr) == ("", "")


class TestGivenDatabase:
    def test_a_given_database_is_migrated_and_used_and_none_is_started(self, dsn: str, tmp_path: Path) -> None:
        execute(dsn, "CREATE DATABASE given")
        given = make_url(dsn).set(database="given").render_as_string(hide_password=False)

        with Service(tmp_path, {"DATABASE_URL": given}) as service:
            service.ready().create("Buy oat milk")
            assert service.end() == 0

        assert execute(given, "SELECT title FROM tasks") == [("Buy oat milk",)]
        assert not (tmp_path / ".data").exists()


class TestAuthentication:
    def test_a_service_with_a_secret_accepts_other_hosts_and_requires_a_token(self, directory: Path) -> None:
        settings = {"HOST": "0.0.0.0", "BETTER_AUTH_SECRET": SECRET}
        with Service(directory, settings) as service, httpx.Client(base_url=service.url) as client:
            service.ready()
            elsewhere = {"Host": "tasks.example.com"}
            assert client.get(TASKS, headers=elsewhere).status_code == 401
            assert client.get(TASKS, headers={**elsewhere, **bearer("ada")}).json() == []
            assert client.get(TASKS, headers=bearer("grace")).status_code == 403
            assert service.end() == 0

        assert not [message for message in service.messages if "authentication is off" in message]
        assert SECRET not in service.stdout + service.stderr


class TestTerminal:
    def test_log_lines_in_a_terminal_are_for_people_and_ctrl_c_ends_the_service(self, directory: Path) -> None:
        screen, terminal = pty.openpty()
        with Service(directory, terminal=terminal) as service:
            os.close(terminal)
            service.ready().create("Buy oat milk")
            os.killpg(service.process.pid, signal.SIGINT)
            assert service.process.wait() in {0, 130}
            lines = os.read(screen, 65_536).decode().splitlines()
            os.close(screen)

        assert f"docs will be at {service.url}/docs" in "\n".join(lines)
        assert all(re.match(r"\d\d:\d\d:\d\d (INFO|WARNING) ", line) for line in lines)
        assert any(re.search(r"POST /api/\{user_id\}/tasks 201 in \d+\.\d ms$", line) for line in lines)
        assert (service.stderr, service.postgres_runs) == ("", False)


class TestRefusal:
    def test_a_port_that_is_in_use_is_reported_in_one_line(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with Service(directory, port=port) as service:
                assert service.process.wait() not in {0, None}

        [error] = [line["message"] for line in service.lines if line["level"] == "ERROR"]
        assert "address already in use" in error
        assert str(port) in error
        assert (service.stderr, service.postgres_runs) == ("", False)

    @pytest.mark.parametrize(
        ("settings", "sentences"),
        [
            (
                {
                    "HOST": "0.0.0.0",
                    "PORT": "http",
                    "WEB_CONCURRENCY": "0",
                    "CORS_ORIGINS": "*,app.example.com",
                    "DATABASE_URL": "postgresql://ada:s3cret@db.example.com/tasks?colour=s3cret",
                },
                [
                    r"DATABASE_URL: has a parameter that is not supported: colour",
                    r"HOST: must be a loopback address such as 127\.0\.0\.1 as long as there is .* to listen elsewhere",
                    r"PORT: Input should be a valid integer, unable to parse string as an integer",
                    r"WEB_CONCURRENCY: Input should be greater than or equal to 1",
                    r"CORS_ORIGINS: must list origins such as https://app\.example\.com, without a path and .*",
                ],
            ),
            (
                {"AUTH_JWT_SECRET": "s3cret", "AUTH_JWKS_URL": "http://auth.example.com", "HOST": "::"},
                [
                    r"AUTH_JWT_SECRET: must have at least 32 bytes; `openssl rand -hex 32` makes a good one .*",
                    r"AUTH_JWKS_URL: must look like https://auth\.example\.com/.*",
                ],
            ),
            (
                {"DATABASE_URL": "postgresql://ada:s3cret@a..b/tasks"},
                [r"The database could not be migrated: .*"],
            ),
        ],
        ids=["wrong settings", "wrong secret", "impossible host"],
    )
    def test_each_wrong_setting_is_reported_in_one_sentence(
        self, tmp_path: Path, settings: dict[str, str], sentences: list[str]
    ) -> None:
        with Service(tmp_path, settings) as service:
            assert service.process.wait() == 1

        assert re.fullmatch("\n".join([*sentences, ""]), service.stderr)
        assert "s3cret" not in service.stderr + service.stdout

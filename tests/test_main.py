"""`python -m app` as a user runs it, mostly with an embedded PostgreSQL in its directory, and as it is killed."""

import fcntl
import os
import pty
import re
import signal
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from sqlalchemy import make_url

from app import __version__
from app.server.embedded import embedded_postgres
from tests.service import BACKEND, TASKS, Service
from tests.support import REVISION, SECRET, bearer, execute, new_database

OPEN_CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tasks-api'"


def announced(messages: list[str]) -> list[str]:
    """Returns the messages without those about requests, the directories of root, and a .env of this repository."""
    kept = [message for message in messages if not re.search(r" in [\d.]+ ms\b| is opened for passage ", message)]
    return [message.removesuffix(f", not {BACKEND.parent}/.env") for message in kept]


class TestLife:
    def test_the_first_start_logs_json_that_says_what_runs_and_where_and_its_end_stops_postgres(
        self, tmp_path: Path
    ) -> None:
        with Service(tmp_path) as service:
            service.ready().create("Buy oat milk")
            assert (service.end(), service.stderr, service.postgres_runs) == (0, "", False)

        assert announced(service.messages) == [
            f"Tasks API {__version__}",
            f"Settings: {tmp_path}/.env",
            "Database: embedded, .data/postgres",
            "Authentication: off",
            f"creating an embedded PostgreSQL in {tmp_path}/.data/postgres",
            f"The database went from no revision to revision {REVISION}.",
            f"Ready. Open {service.url}/docs (Ctrl+C ends)",
            "Stopped by SIGTERM.",
        ]
        assert all(service.messages)
        assert all(datetime.fromisoformat(line["time"]).tzinfo == UTC for line in service.lines)
        assert {line["level"] for line in service.lines} == {"INFO", "WARNING"}
        [request] = [line for line in service.lines if line.get("method") == "POST"]
        assert (request["route"], request["status"]) == ("/api/{user_id}/tasks", 201)

    @pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.ci)])
    def test_the_service_runs_with_closed_standard_streams(self, directory: Path, workers: int) -> None:
        with Service(directory, {"WEB_CONCURRENCY": str(workers)}, redirections="<&- >&- 2>&-") as service:
            service.ready().create("Buy oat milk")

            assert (service.end(), service.postgres_runs) == (0, False)

    def test_log_lines_in_a_terminal_are_for_people_and_ctrl_c_ends_the_service(self, directory: Path) -> None:
        screen, terminal = pty.openpty()
        with Service(directory, terminal=terminal) as service:
            os.close(terminal)
            service.ready().create("Buy oat milk")
            os.killpg(service.process.pid, signal.SIGINT)
            assert service.process.wait() == 0
            lines = os.read(screen, 65_536).decode().splitlines()
            os.close(screen)

        assert announced([line[17:] for line in lines])[3:] == [
            "Authentication: off",
            f"Ready. Open {service.url}/docs (Ctrl+C ends)",
            "Stopped by SIGINT.",
        ]
        assert all(re.match(r"\d\d:\d\d:\d\d (INFO|WARNING) ", line) for line in lines)
        assert any(
            re.search(r"POST /api/\{user_id\}/tasks 201 in [\d.]+ ms request_id=\w{32}$", line) for line in lines
        )
        assert (service.stderr, service.postgres_runs) == ("", False)

    @pytest.mark.ci
    def test_a_service_that_is_started_elsewhere_has_the_settings_and_the_tasks_of_its_project(
        self, directory: Path
    ) -> None:
        for name in ("alembic", "alembic.ini", "backend"):
            (directory / name).symlink_to(BACKEND.parent / name)
        (directory / ".env").write_text("AUTH_LEEWAY_SECONDS=1\n")
        elsewhere = directory / "elsewhere"
        elsewhere.mkdir()
        with Service(elsewhere, {"AUTH_JWT_SECRET": SECRET}, backend=directory / "backend") as service:
            assert service.ready().end() == 0

        assert announced(service.messages)[1:4] == [
            f"Settings: {directory}/.env",
            f"Database: embedded, {directory}/.data/postgres",
            "Authentication: by secret",
        ]
        assert [path.name for path in elsewhere.glob("[!s]*")] == []


class TestDeployed:
    def test_a_service_with_a_database_and_a_secret_starts_no_postgres_and_reveals_nothing_in_a_debug_log(
        self, dsn: str, tmp_path: Path
    ) -> None:
        elsewhere = {"Host": "tasks.example.com"}
        with new_database(dsn, "given") as given:
            settings = {"DATABASE_URL": given, "HOST": "::", "BETTER_AUTH_SECRET": SECRET, "ROOT_PATH": "/svc/"}
            settings |= {"LOG_LEVEL": "DEBUG", "KEEP_ALIVE_TIMEOUT": "1"}
            with (
                Service(tmp_path, settings) as service,
                httpx.Client(base_url=service.url, timeout=30) as client,
                socket.create_connection(("127.0.0.1", service.ready().port)) as idle,
            ):
                idle.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.get(TASKS, headers=elsewhere).status_code == 401
                assert client.get(TASKS, headers=bearer("grace")).status_code == 403
                assert httpx.get(f"http://[::1]:{service.port}/health/ready").is_success
                created = client.post(TASKS, json={"title": "Buy oat milk"}, headers={**elsewhere, **bearer("ada")})
                assert (created.status_code, created.headers.get("Server")) == (201, None)
                assert created.headers["Location"].startswith(f"/svc{TASKS}/")
                assert idle.makefile("rb").read().startswith(b"HTTP/1.1 200 ")  # until it is closed
                assert service.end(signal.SIGHUP) == 0

            assert execute(given, "SELECT title FROM tasks") == [("Buy oat milk",)]
        assert not (tmp_path / ".data").exists()
        assert "asyncio" in {line["logger"] for line in service.lines if line["level"] == "DEBUG"}
        assert announced([line["message"] for line in service.lines if line["level"] != "DEBUG"])[2:] == [
            f"Database: {make_url(given).query['host']}",
            "Authentication: by secret",
            f"The database went from no revision to revision {REVISION}.",
            f"Ready. Open /svc/docs at the proxy in front of {service.url} (Ctrl+C ends)",
            "Stopped by SIGHUP.",
        ]
        for secret in (SECRET, "oat milk", TASKS, "grace", "SELECT", "INSERT"):
            assert secret not in service.stdout + service.stderr


class TestWorkers:
    def test_a_killed_worker_is_replaced_and_all_serve_from_one_postgres_and_end_when_the_terminal_is_closed(
        self, directory: Path
    ) -> None:
        settings = {"WEB_CONCURRENCY": "2", "HOST": "localhost"}
        with Service(directory, settings, module="tests.verbose") as service:
            killed, *_ = started(service)
            assert httpx.get(f"http://[::1]:{service.port}/health/ready").is_success
            os.kill(killed, signal.SIGKILL)
            workers = started(service, 3)[1:]
            service.create("Buy oat milk")
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
                assert [task["title"] for task in service.tasks()] == ["Buy oat milk"]
                with suppress(ProcessLookupError):  # the parent replaces a worker that was stopped for long
                    os.kill(pid, signal.SIGCONT)

            assert service.end(signal.SIGHUP) == 0
            assert not service.postgres_runs
        assert f"worker [{killed}] has ended or is stuck, and is replaced" in service.messages
        assert service.messages.count(f"Ready. Open http://localhost:{service.port}/docs (Ctrl+C ends)") == 1
        assert service.messages[-1] == "Stopped by SIGHUP."

    @pytest.mark.ci
    def test_every_worker_ends_with_its_killed_parent(self, directory: Path) -> None:
        with (
            Service(directory, {"WEB_CONCURRENCY": "2"}, module="tests.verbose") as service,
            embedded_postgres(directory / ".data" / "postgres") as dsn,
        ):
            started(service)
            assert execute(dsn, OPEN_CONNECTIONS) == [(2,)]

            service.end(signal.SIGKILL)

            while execute(dsn, OPEN_CONNECTIONS) != [(0,)]:
                time.sleep(0.02)


def started(service: Service, number: int = 2) -> list[int]:
    """Returns the process ids of the workers when this number of them has begun to serve."""
    while service.messages.count("Application startup complete.") < number:
        assert service.process.poll() is None, service.stderr
        time.sleep(0.02)
    return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", service.stdout)]


@pytest.mark.ci
class TestKill:
    @pytest.mark.parametrize("server_too", [False, True], ids=["service", "service and PostgreSQL"])
    def test_a_killed_service_starts_again_with_its_tasks_and_with_postgres_if_that_still_runs(
        self, directory: Path, *, server_too: bool
    ) -> None:
        with Service(directory) as service:
            service.ready().create("Buy oat milk")
            postmaster = service.postmaster
            if server_too:
                os.kill(postmaster, signal.SIGKILL)
            service.end(signal.SIGKILL)

            with Service(directory, port=service.port) as next_service:
                assert [task["title"] for task in next_service.ready().tasks()] == ["Buy oat milk"]
                assert (next_service.postmaster == postmaster) is not server_too
                assert next_service.end() == 0
            assert not service.postgres_runs


class TestRefusal:
    def test_a_port_that_is_in_use_is_reported_in_one_line_before_anything_else_happens(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with Service(tmp_path, port=port) as service:
                assert service.process.wait() == 1

        assert re.fullmatch(rf"PORT: {port} is in use; try PORT=\d+ make run\n", service.stderr)
        assert service.stdout == ""
        assert not (tmp_path / ".data").exists()

    @pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.ci), 2])
    def test_a_starting_service_refuses_connections_and_ends_if_another_program_then_listens_on_its_port(
        self, directory: Path, workers: int
    ) -> None:
        path = directory / ".data" / "postgres.start.lock"
        with path.open("a") as lock, Service(directory, {"WEB_CONCURRENCY": str(workers)}) as service:
            fcntl.flock(lock, fcntl.LOCK_EX)
            while path not in service.opened:
                assert service.process.poll() is None, service.stderr
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", service.port))
            with socket.create_server(("127.0.0.1", service.port)):
                lock.close()
                assert service.process.wait() == 1

        sentence = rf"PORT: {service.port} is in use; try PORT=\d+ make run"
        if workers > 1:
            assert service.stderr == "The workers cannot start; the log has the reason.\n"
            assert re.fullmatch(sentence, next(line["message"] for line in service.lines if line["level"] == "ERROR"))
        else:
            assert re.fullmatch(f"{sentence}\n", service.stderr)
        assert not service.postgres_runs

    def test_a_propagator_that_is_not_installed_is_reported_in_one_line(self, tmp_path: Path) -> None:
        with Service(tmp_path, {"OTEL_PROPAGATORS": "b3"}) as service:
            assert service.process.wait() == 1

        assert re.fullmatch(r"OTEL_PROPAGATORS: Propagator b3 not found\..*\n", service.stderr)

    def test_tools_for_agents_without_authentication_are_refused_in_one_line(self, tmp_path: Path) -> None:
        with Service(tmp_path, {"MCP": "on"}) as service:
            assert service.process.wait() == 1

        assert re.fullmatch("MCP: needs AUTH_JWT_SECRET or AUTH_JWKS_URL beside it, .*\n", service.stderr)

    def test_a_database_that_cannot_be_used_is_reported_in_one_line_after_the_warnings(self, tmp_path: Path) -> None:
        url = "postgresql://ada:s3cret@a..b/tasks?sslmode=require"
        with Service(tmp_path, {"DATABASE_URL": url, "LOG_FORMAT": "text"}) as service:
            assert service.process.wait() == 1

        assert re.fullmatch(
            r"The database could not be migrated: DATABASE_URL: the host a\.\.b cannot be.*\n", service.stderr
        )
        warning = "DATABASE_URL: the connection is encrypted but not verified, because sslmode is require"
        assert re.search(rf"^[\d:]{{8}} WARNING {warning}", service.stdout, re.MULTILINE)
        assert "s3cret" not in service.stderr + service.stdout

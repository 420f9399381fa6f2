"""Servers from Debian's packages that tests start, kill and restart: PostgreSQL, PgBouncer.

Each is a child process in the foreground, with a directory of its test, on a loopback port that it keeps.
"""

import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
from sqlalchemy import make_url

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})
_TIMEOUT: Final = 60  # seconds, to start (crash recovery included) or to stop
_ACCOUNT: Final = "postgres"  # PostgreSQL and PgBouncer refuse to run as root; Debian's packages create this account
_MODES: Final = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_PATH: Final = os.pathsep.join(
    (
        *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))[-1:]),
        os.environ.get("PATH", os.defpath),
        "/usr/sbin",  # not in the PATH of ordinary users
    )
)


def free_port() -> int:
    """Returns a port below the range of client ports, which a client could take while the server is down."""
    while True:
        port = random.randint(15_000, 32_000)  # noqa: S311  # the port is no secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """A program that is ready once `is_ready` returns True."""

    port: int

    def __init__(self, directory: Path, identity: Mapping[str, Any], *command: str) -> None:
        self._directory = directory
        self._identity = identity
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program, and return when it accepts connections."""
        deadline = time.monotonic() + _TIMEOUT
        while not self.is_ready():
            if self._process is None or self._process.poll() is not None:
                self._process = self._spawn()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def is_ready(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return self._process is not None
        return False

    def log(self) -> str:
        """The output of the program so far."""
        return (self._directory / "server.log").read_text(errors="replace")

    def stop(self) -> None:
        """Shut the program down."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the program without a shutdown."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(how)
            self._process.wait(_TIMEOUT)
            self._process = None

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self._directory / "server.log").open("ab") as log:
            return subprocess.Popen(
                self._command,
                cwd=self._directory,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._identity,
            )


class Postgres(Server):
    """Debian's PostgreSQL. Its data survives restarts."""

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        self.port = free_port()
        self.data = directory / "data"
        self._password = secrets.token_hex(8)
        self.dsn = f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/postgres"
        super().__init__(directory, _identity(), program("postgres"), f"-D{self.data}")
        _change_owner(directory, self._identity)
        self._create(settings)
        (self.data / "pg_hba.conf").write_text("host all all all scram-sha-256\n")

    def _create(self, settings: Mapping[str, str]) -> None:
        owned = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": ""}
        password = self._directory / "password"
        password.write_text(self._password)
        options = ("--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256")
        _run("initdb", f"--pgdata={self.data}", *options, "--locale=C.UTF-8", "--no-sync", **self._identity)
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = {_quoted(value)}\n" for name, value in {**owned, **settings}.items())

    def is_ready(self) -> bool:
        return (
            self._process is not None and not _call("pg_isready", "--host=127.0.0.1", f"--port={self.port}").returncode
        )

    def stop(self, mode: str = "fast") -> None:
        """Stop the server. `fast` is an orderly restart or failover. `immediate` needs recovery at the next start."""
        self._end(_MODES[mode])

    def kill(self) -> None:
        """Kill the server and all its processes, as a power cut does."""
        if self._process:
            self._process.send_signal(signal.SIGSTOP)  # so that it neither starts nor warns a child
            for child in _children(self._process.pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        super().kill()

    def set(self, **settings: str) -> None:
        """Change settings for connections that are opened later."""
        changes = [f"ALTER SYSTEM SET {name} = {_quoted(value)};" for name, value in settings.items()]
        before = self.query("SELECT pg_conf_load_time()")
        self.query("\n".join([*changes, "SELECT pg_reload_conf();"]))
        _wait(lambda: self.query("SELECT pg_conf_load_time()") != before)

    def query(self, sql: str) -> str:
        """Run statements directly at the server. Returns the plain output of `psql`."""
        return _psql(self.dsn, sql)


class PgBouncer(Server):
    """Debian's PgBouncer in transaction mode. A service needs `?pgbouncer=true` after its `dsn`."""

    def __init__(self, directory: Path, dsn: str, settings: Mapping[str, object]) -> None:
        url = make_url(dsn)
        host = str(url.host or url.query["host"])
        self.port = free_port()
        self.dsn = url.set(host="127.0.0.1", port=self.port, query={}).render_as_string(hide_password=False)
        # Only the owner may have access to the directory of a server's socket.
        super().__init__(directory, _identity(Path(host)), program("pgbouncer"), str(directory / "pgbouncer.ini"))
        users = directory / "users.txt"
        users.write_text(f'"{url.username}" "{url.password or ""}"\n')
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256" if url.password else "trust",
            "auth_file": users,
            "pool_mode": "transaction",
            "max_client_conn": 1000,
            "server_login_retry": 1,  # seconds between attempts at a server that is down; the default is 15
            **settings,
        }
        (directory / "pgbouncer.ini").write_text(
            f"[databases]\n* = host='{host}' port={url.port or url.query['port']}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in lines.items())
        )
        _change_owner(directory, self._identity)


@contextmanager
def postgres(directory: Path, *, settings: Mapping[str, str] = _NONE) -> Iterator[Postgres]:
    """Yields a running PostgreSQL."""
    server = Postgres(_make_directory(directory), settings)
    with running(server):
        yield server


@contextmanager
def pgbouncer(directory: Path, dsn: str, *, pool_size: int = 2, **settings: str) -> Iterator[PgBouncer]:
    """Yields a running PgBouncer in front of the server of `dsn`, with the user and password of `dsn`."""
    server = PgBouncer(_make_directory(directory), dsn, {"default_pool_size": pool_size, **settings})
    with running(server):
        yield server


@contextmanager
def running(server: Server) -> Iterator[None]:
    """Start the server, and kill it at the end of the context."""
    try:
        server.start()
        yield
    finally:
        server.kill()


def program(name: str) -> str:
    """Returns the path of a program. Skips the test if the program is not installed."""
    return shutil.which(name, path=_PATH) or pytest.skip(f"{name} is not installed")


def _make_directory(directory: Path) -> Path:
    """Make the directory, and give the accounts of servers access to its parents."""
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        for parent in directory.resolve().parents:
            parent.chmod(parent.stat().st_mode | 0o001)
    return directory


def _identity(socket_directory: Path | None = None) -> dict[str, Any]:
    """Returns the account that runs a server: the current user, but another account instead of root."""
    if os.geteuid():
        return {}
    if socket_directory and socket_directory.is_dir():
        owner = socket_directory.stat()
        return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    account = pwd.getpwnam(_ACCOUNT)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _change_owner(path: Path, identity: Mapping[str, Any]) -> None:
    if identity:
        for given in (path, *(path.iterdir() if path.is_dir() else ())):
            os.chown(given, identity["user"], identity["group"])


def _children(pid: int) -> list[int]:
    return [int(child) for child in _call("pgrep", "-P", str(pid)).stdout.split()]


def _environment() -> dict[str, str]:
    """Returns the environment without settings for PostgreSQL's programs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _call(name: str, *arguments: str, text: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    command = [program(name), *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, input=text, **{"env": _environment(), **options}
    )


def _run(name: str, *arguments: str, **options: Any) -> str:
    called = _call(name, *arguments, **options)
    assert called.returncode == 0, called.stderr
    return called.stdout.strip()


def _psql(dsn: str, sql: str) -> str:
    options = ("--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--set=ON_ERROR_STOP=1")
    return _run("psql", *options, dsn, text=sql)


def _quoted(value: str) -> str:
    return "'{}'".format(value.replace("'", "''"))


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)

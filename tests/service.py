"""`python -m app` as a process, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import httpx

import app
from app.core.config import Settings
from tests.servers import free_port

BACKEND: Final = Path(app.__file__).parents[1]
TASKS: Final = "/api/ada/tasks"


class Service:
    """A running service. The end of the context kills its process, its workers and its PostgreSQL."""

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, str] | None = None,
        *,
        port: int = 0,
        terminal: int = 0,
        module: str = "app",
        backend: Path = BACKEND,
        redirections: str = "",
    ) -> None:
        """`backend` has the code of the service, which may be another release. `redirections` are those of a shell."""
        self.directory = directory
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # Each request has its own connection, so that any worker may receive it.
        self._client = httpx.Client(base_url=self.url, timeout=30, limits=httpx.Limits(max_keepalive_connections=0))
        self._data = directory / ".data" / "postgres"
        self._out = directory / f"stdout-{self.port}"
        self._err = directory / f"stderr-{self.port}"
        if backend == BACKEND:
            (directory / ".env").touch()  # so that the service does not look for that of the developer
        names = {name.upper() for name in Settings.model_fields}
        environment = {name: os.environ[name] for name in os.environ.keys() - names if "OTEL_" not in name}
        environment |= {
            "PYTHONPATH": f"{backend}{os.pathsep}{BACKEND.parent}",
            "PORT": str(self.port),
            **(settings or {}),
        }
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", module],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=terminal or out,
                stderr=err,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(self.postmaster, signal.SIGQUIT)

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of the log."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def messages(self) -> list[str]:
        return [line["message"] for line in self.lines]

    @property
    def opened(self) -> list[Path]:
        """The files that the process has opened."""
        files = []
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                files.append(link.readlink())
        return files

    @property
    def postmaster(self) -> int:
        """The process id of the embedded PostgreSQL."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    @property
    def postgres_runs(self) -> bool:
        return (self._data / "postmaster.pid").exists()

    def ready(self) -> Self:
        """Return when the service is ready."""
        while not self._is_ready():
            assert self.process.poll() is None, self.stderr
            time.sleep(0.02)
        return self

    def _is_ready(self) -> bool:
        try:
            return self._client.get("/health/ready").is_success
        except httpx.TransportError:
            return False

    def create(self, title: str) -> dict[str, Any]:
        task: dict[str, Any] = self.post(title).raise_for_status().json()
        return task

    def post(self, title: str) -> httpx.Response:
        return self._client.post(TASKS, json={"title": title})

    def tasks(self) -> list[dict[str, Any]]:
        tasks: list[dict[str, Any]] = self._client.get(TASKS).raise_for_status().json()
        return tasks

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal. Returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

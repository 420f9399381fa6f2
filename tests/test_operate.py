"""docs/operate.md: its unit and its commands are run, and its table of messages is compared with the code."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Final

import httpx
import pytest
from sqlalchemy import make_url

from app.core.config import Settings
from tests.servers import free_port, postgres, program
from tests.service import TASKS, Service
from tests.support import SECRET, bearer, execute
from tests.test_deployment_files import start_and_use
from tests.test_documentation import read_table

ROOT: Final = Path(__file__).parents[1]
OPERATE: Final = (ROOT / "docs/operate.md").read_text()
UNIT: Final = ConfigParser(interpolation=None)
UNIT.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep the case of names
UNIT.read(ROOT / "docs/tasks-api.service")
INSTALLED: Final = UNIT["Service"]["WorkingDirectory"]
BACKUP, RESTORE, REPLACE = re.findall(
    r"^```sh\n((?:pg_dump|createdb|pg_restore) .*?)^```", OPERATE, re.DOTALL | re.MULTILINE
)

_LEVELS: Final = {"debug", "info", "warning", "error", "critical", "log"}
# Calls whose argument is made elsewhere: startup errors, warnings about settings, the migration, the request's line.
_VARIABLE: Final = {"error", "warning", "sentence", "message"}


@pytest.fixture(scope="module")
def owner_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The database of a role that is not a superuser, as in docs/deploy-neon.md."""
    with postgres(tmp_path_factory.mktemp("operate") / "postgres") as server:
        url = make_url(server.dsn).set(username="neondb_owner", database="neondb")  # with the password of the superuser
        execute(server.dsn, f"CREATE ROLE neondb_owner LOGIN CREATEDB PASSWORD '{url.password}'")
        execute(server.dsn, "CREATE DATABASE neondb OWNER neondb_owner")
        yield url.render_as_string(hide_password=False)


def run(commands: str, directory: Path, **environment: str) -> None:
    path = os.pathsep.join((str(Path(program("pg_dump")).parent), os.defpath))
    subprocess.run(["bash", "-euc", commands], cwd=directory, env={"PATH": path, **environment}, check=True)


@pytest.mark.ci
class TestUnit:
    def test_systemd_accepts_the_unit_and_its_command_serves_without_privileges(
        self, owner_url: str, tmp_path: Path
    ) -> None:
        (tmp_path / ".venv").symlink_to(sys.prefix)
        for name in ("backend", "alembic", "alembic.ini"):
            (tmp_path / name).symlink_to(ROOT / name)
        unit, service, port = tmp_path / "tasks-api.service", UNIT["Service"], free_port()
        unit.write_text((ROOT / "docs/tasks-api.service").read_text().replace(INSTALLED, str(tmp_path)))
        analyze = [program("systemd-analyze"), "--recursive-errors=no", "verify", str(unit)]
        verified = subprocess.run(analyze, capture_output=True, text=True, check=False)
        warnings = [line for line in verified.stderr.splitlines() if unit.name in line]  # others are of this machine's
        environment = dict(pair.split("=", 1) for pair in shlex.split(service["Environment"]))
        environment |= {"DATABASE_URL": owner_url, "AUTH_JWT_SECRET": SECRET, "PORT": str(port), "PATH": os.defpath}
        bounds = "" if os.geteuid() else "--bounding-set=-all"  # which leaves root the rights of a file's owner

        start_and_use(
            f"umask {service['UMask']}; exec setpriv --no-new-privs {bounds} "
            + service["ExecStart"].replace(INSTALLED, str(tmp_path)),
            ["curl", "--silent", "--fail", "--output", os.devnull, f"http://127.0.0.1:{port}/health/ready"],
            tmp_path,
            environment | {"WEB_CONCURRENCY": "2"},
            port,
        )
        assert (verified.returncode, warnings) == (0, [])

    def test_systemd_waits_for_the_service_to_stop(self) -> None:
        assert (
            int(UNIT["Service"]["TimeoutStopSec"].removesuffix("s")) > Settings.model_fields["shutdown_timeout"].default
        )


@pytest.mark.ci
def test_a_restored_database_has_every_byte_and_a_running_service_survives_a_restore(
    owner_url: str, tmp_path: Path
) -> None:
    restored_url = make_url(owner_url).set(database="restored").render_as_string(hide_password=False)
    urls = {"OWNER_URL": owner_url, "RESTORED_URL": restored_url}
    settings = {"AUTH_JWT_SECRET": SECRET, "UNKNOWN_FIELDS": "keep"}
    with (
        Service(tmp_path, {**settings, "DATABASE_URL": owner_url}) as service,
        httpx.Client(base_url=service.ready().url, headers=bearer("ada"), timeout=30) as client,
    ):
        sent = {"title": "Buy \U0001f95b", "description": 'a\n"b"\\', "x_rank": "high", "x_marks": ["a", {"b": 1.25}]}
        task = client.post(TASKS, json=sent).headers["Location"]
        client.patch(f"{task}/complete")
        tag, saved = client.get(task).headers["ETag"], client.get(TASKS).content
        run(BACKUP, tmp_path, **urls)
        run(RESTORE, tmp_path, **urls)

        client.put(task, json={"title": "Changed after the backup"})
        run(REPLACE, tmp_path, **urls)
        assert client.get(TASKS).content == saved

    (tmp_path / "second").mkdir()
    with (
        Service(tmp_path / "second", {**settings, "DATABASE_URL": restored_url}) as service,
        httpx.Client(base_url=service.ready().url, headers=bearer("ada"), timeout=30) as client,
    ):
        assert client.get(TASKS).content == saved
        assert client.get(task, headers={"If-None-Match": tag}).status_code == 304
        assert client.put(task, json={"title": "a"}, headers={"If-Match": tag}).status_code == 200
        assert not [line for line in service.messages if line.startswith("The database went")]


class TestMessages:
    def test_the_page_explains_every_line_that_the_service_logs(self) -> None:
        listed = {(level, message.strip()) for level, message, _ in read_table(OPERATE, "Level")}

        assert {found for path in _modules() for found in _messages(path)} == listed


def _modules() -> list[Path]:
    return [*(ROOT / "backend/app").rglob("*.py"), ROOT / "alembic/env.py"]


def _messages(path: Path) -> Iterator[tuple[str, str]]:
    """Level and message of each call of a logger, with `…` for its values."""
    tree = ast.parse(path.read_text())
    constants = {
        ast.unparse(node.target): node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.value
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _logs(node.func):
            level = {"_warn_once": "WARNING", "log": "INFO"}.get(node.func.attr, node.func.attr.upper())
            argument = node.args[node.func.attr == "log"]
            template = ast.unparse(constants.get(ast.unparse(argument), argument))
            if template not in _VARIABLE:
                text = template.removeprefix("f")[1:-1]
                yield level, re.sub(r"%(\(\w+\))?(s|d|\.1f)|\{\w+\}", "…", text)


def _logs(function: ast.Attribute) -> bool:
    return function.attr == "_warn_once" or (
        function.attr in _LEVELS and ast.unparse(function.value) in {"_logger", "_requests"}
    )

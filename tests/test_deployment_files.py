"""docs/deploy-neon.md, Dockerfile, compose.yaml and deploy/kubernetes.yaml, as far as they run without containers."""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from io import StringIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg
import httpx
import pytest
from dotenv import dotenv_values
from ruamel.yaml import YAML
from sqlalchemy import make_url

from app.core.config import Settings
from app.core.database.migrations import migrate
from app.server.embedded import embedded_postgres
from tests.servers import free_port
from tests.service import TASKS
from tests.support import REVISION, SECRET, bearer, connected, execute, until

ROOT: Final = Path(__file__).parents[1]
NEON: Final = (ROOT / "docs/deploy-neon.md").read_text()
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
NGINX: Final = (ROOT / "docs/nginx.conf").read_text()
COMPOSE: Final = (ROOT / "compose.yaml").read_text()


def blocks(language: str) -> list[str]:
    """The code blocks of this language in docs/deploy-neon.md."""
    return re.findall(rf"^```{language}\n(.*?)^```", NEON, re.DOTALL | re.MULTILINE)


def statements(block: str, role: str) -> list[str]:
    """The statements of an SQL block for this role, without its comments."""
    assert block.startswith(f"-- as {role}\n")
    return re.findall(r"^[A-Z].*?;", block, re.MULTILINE)


def instructions(name: str) -> list[str]:
    """The arguments of each instruction of the Dockerfile with this name."""
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)


GRANT, SHOW, REVOKE = blocks("sql")
MIGRATE, START, PROBE, DOCKER = blocks("sh")
(PRODUCTION,) = blocks("ini")
(POD,) = (
    document["spec"]["template"]["spec"]
    for document in YAML(typ="safe").load_all((ROOT / "deploy/kubernetes.yaml").read_text())
    if document["kind"] == "Deployment"
)
ENVIRONMENT: Final = dict(pair.split("=", 1) for pair in shlex.split(instructions("ENV")[0]))
VENV: Final = instructions("COPY --from=build")[0].split()[1]
VARIABLES: Final = {"POSTGRES_PASSWORD": "s3cret", "AUTH_JWT_SECRET": SECRET, "CORS_ORIGINS": ""}
SERVICES: Final[dict[str, Any]] = YAML(typ="safe").load(
    re.sub(r"\$\{(\w+):[^}]*\}", lambda found: VARIABLES[found[1]], COMPOSE)
)["services"]

# As a module `sitecustomize`: the file system is read-only for Python.
READ_ONLY: Final = """
import errno, os, sys

def refuse(event, arguments):
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and not isinstance(arguments[0], int)
    if (writes and os.fspath(arguments[0]) != os.devnull) or event == "os.mkdir":
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), arguments[0])

sys.addaudithook(refuse)
"""


class Project(NamedTuple):
    """A PostgreSQL like a Neon project after steps 3 and 4, and a directory with the files that the image has."""

    owner: str
    app: str
    checkout: Path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    checkout = tmp_path_factory.mktemp("checkout")
    for source, target in re.findall(r"^COPY ([\w.]+) \./(\S*)$", DOCKERFILE, re.MULTILINE):
        (checkout / (target or source)).symlink_to(ROOT / source)
    (checkout / ".venv").symlink_to(sys.prefix)
    with embedded_postgres(tmp_path_factory.mktemp("neon") / "postgres") as dsn:
        execute(dsn, "CREATE ROLE neondb_owner LOGIN CREATEROLE CREATEDB")
        execute(dsn, "CREATE DATABASE neondb OWNER neondb_owner")
        for name in ("statement_timeout", "lock_timeout"):  # the embedded PostgreSQL sets them
            execute(dsn, f"ALTER DATABASE neondb SET {name} = 0")
        owner, app = (connecting_as(role, dsn) for role in ("neondb_owner", "app"))
        for statement in statements(GRANT, "neondb_owner"):
            execute(owner, statement)
        environment = {"PATH": os.defpath, "OWNER_URL": owner}
        subprocess.run(["bash", "-euc", MIGRATE], cwd=checkout, env=environment, check=True)
        for statement in statements(REVOKE, "neondb_owner"):
            execute(owner, statement)
        yield Project(owner, app, checkout)


def connecting_as(role: str, dsn: str, database: str = "neondb") -> str:
    return make_url(dsn).set(username=role, database=database).render_as_string(hide_password=False)


def image_environment(project: Project) -> dict[str, str]:
    """The variables of the image, with the directories of this machine."""
    environment = dict(ENVIRONMENT)
    for old, new in {VENV: sys.prefix, instructions("WORKDIR")[0]: project.checkout, "$PATH": os.defpath}.items():
        environment = {name: value.replace(old, str(new)) for name, value in environment.items()}
    return environment


def start_and_use(commands: str, probe: list[str], directory: Path, environment: Mapping[str, str], port: int) -> None:
    """Start the service, use every operation on one task of the user ada when the probe succeeds, and stop it."""
    with subprocess.Popen(["bash", "-euc", commands], cwd=directory, env=environment) as service:
        try:
            while subprocess.call(probe, env=environment, stderr=subprocess.DEVNULL):
                assert service.poll() is None
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=bearer("ada"), timeout=30) as client:
                path = client.post(TASKS, json={"title": "Buy oat milk"}).raise_for_status().headers["Location"]
                assert client.put(path, json={"title": "Buy tea"}).json()["title"] == "Buy tea"
                assert client.patch(f"{path}/complete").json()["completed"] is True
                assert client.get(TASKS).json() == [client.get(path).json()]
                assert client.delete(path).status_code == 204
            service.terminate()
            assert service.wait() == 0
        finally:
            service.kill()


def loaded(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings(_env_file=None)


@pytest.mark.ci
class TestNeon:
    def test_the_commands_start_a_service_that_can_use_every_operation_as_app(self, project: Project) -> None:
        port = free_port()
        settings = {"DATABASE_URL": project.app, "AUTH_JWT_SECRET": SECRET, "PORT": str(port), "WEB_CONCURRENCY": "1"}
        (project.checkout / "production.env").write_text("".join(f"{name}={settings[name]}\n" for name in settings))

        start_and_use(
            START.replace("PYTHONPATH=backend", "PYTHONPATH=backend exec"),
            ["bash", "-euc", PROBE.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{port}")],
            project.checkout,
            {"PATH": os.defpath},
            port,
        )

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE TABLE public.other ()",
            "ALTER TABLE tasks ADD COLUMN other text",
            "TRUNCATE tasks",
            "UPDATE tasks_api_version SET version_num = '0000'",
            "SET ROLE neondb_owner",
        ],
    )
    def test_app_has_no_other_privilege(self, project: Project, statement: str) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            execute(project.app, statement)

    async def test_app_may_use_the_tables_of_later_migrations_and_has_timeouts_unlike_the_owner(
        self, project: Project
    ) -> None:
        async with connected(project.owner) as owner:
            await owner.execute("CREATE TABLE later (id integer)")
            assert not await owner.fetchval("SELECT rolconfig FROM pg_roles WHERE rolname = current_user")
        app = await asyncpg.connect(project.app)
        try:
            await app.execute("INSERT INTO later VALUES (1)")
            assert await app.fetchval("SELECT id FROM later") == 1
            timeouts = [await app.fetchval(statement) for statement in statements(SHOW, "app")[:2]]
            assert timeouts == ["3s", "2s"]
            assert await app.fetchval("SHOW idle_in_transaction_session_timeout") == "5s"
        finally:
            await app.close()

    def test_app_may_start_an_old_release_after_a_later_one_has_migrated(self, project: Project) -> None:
        execute(project.owner, "UPDATE tasks_api_version SET version_num = '9999'")
        try:
            migrate(project.app)
        finally:
            execute(project.owner, "UPDATE tasks_api_version SET version_num = $1", REVISION)

    async def test_a_migration_waits_for_another_one_longer_than_the_lock_timeout_of_its_role(
        self, project: Project
    ) -> None:
        (lock,) = re.findall(r"^_LOCK: Final = ([\d_]+)", (ROOT / "alembic/env.py").read_text(), re.MULTILINE)
        waits = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        async with connected(project.owner) as migrator:
            await migrator.execute("CREATE ROLE hasty LOGIN IN ROLE app")
            await migrator.execute("ALTER ROLE hasty SET lock_timeout = '1ms'")
            await migrator.execute("SELECT pg_advisory_lock($1)", int(lock))
            migration = asyncio.create_task(asyncio.to_thread(migrate, connecting_as("hasty", project.app)))
            await until(lambda: migration.done() or migrator.fetchval(waits))
            assert not migration.done()

        await migration

    def test_the_documented_settings_are_accepted_and_docker_reads_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = dict(line.split("=", 1) for line in PRODUCTION.splitlines())  # as Docker does

        settings = loaded(given, monkeypatch)

        assert given == dotenv_values(stream=StringIO(PRODUCTION))
        assert settings.authenticates
        assert {name.lower() for name in given} == settings.model_fields_set


def test_nginx_closes_its_idle_connections_before_the_service_does() -> None:
    [seconds] = re.findall(r"^upstream [^}]*keepalive_timeout (\d+)s;", NGINX, re.MULTILINE)

    assert int(seconds) < Settings.model_fields["keep_alive_timeout"].default


class TestDockerfile:
    def test_hadolint_finds_nothing_and_the_engine_gets_only_the_files_that_the_image_copies(self) -> None:
        hadolint = Path(sys.executable).with_name("hadolint")
        patterns = re.findall(r"^[^#\n]+", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
        copied = re.findall(r"^COPY (\w\S*) ", DOCKERFILE, re.MULTILINE)

        assert subprocess.check_output([hadolint, ROOT / "Dockerfile"]) == b""
        assert patterns == ["*", *(f"!{name}" for name in copied), "**/__pycache__", "**/*.pyc"]

    def test_the_service_imports_only_packages_of_its_requirements(self) -> None:
        """Only telemetry needs requirements-otel.txt, and only the tools for agents need requirements-mcp.txt."""
        modules = [*(ROOT / "backend").rglob("*.py"), *(ROOT / "alembic").rglob("*.py")]
        names = {
            name for path in modules for name in re.findall(r"^ *(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        }
        files = "".join((ROOT / f"requirements{name}.txt").read_text() for name in ("", "-otel", "-mcp"))
        requirements = files.lower().replace("_", "-")
        pinned = {*re.findall(r"^([\w-]+).*==", requirements, re.MULTILINE)}
        provided = {name: by for name, by in packages_distributions().items() if name in names}

        assert "fastapi" in provided
        assert not [by for by in provided.values() if not {each.lower().replace("_", "-") for each in by} & pinned]


class TestCompose:
    def test_the_settings_of_the_service_are_accepted_and_lead_to_its_postgres(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = SERVICES["service"]["environment"]

        settings = loaded({**given, "HOST": ENVIRONMENT["HOST"]}, monkeypatch)

        assert settings.authenticates
        url = make_url(given["DATABASE_URL"])
        assert SERVICES[str(url.host)]["environment"] == {
            "POSTGRES_USER": url.username,
            "POSTGRES_DB": url.database,
            "POSTGRES_PASSWORD": url.password,
        }
        assert {name.lower() for name in given} <= Settings.model_fields.keys()

    def test_secrets_are_required_and_only_the_service_can_be_reached_and_only_from_this_machine(self) -> None:
        assert set(re.findall(r"\$\{(\w+):\?", COMPOSE)) == {"POSTGRES_PASSWORD", "AUTH_JWT_SECRET"}
        assert SERVICES["service"]["ports"] == [f"127.0.0.1:8000:{ENVIRONMENT['PORT']}"]
        assert instructions("EXPOSE") == [ENVIRONMENT["PORT"]]
        assert "ports" not in SERVICES["postgres"]

    def test_the_service_has_more_time_to_stop_than_it_needs(self) -> None:
        compose = SERVICES["service"]["stop_grace_period"].removesuffix("s")
        (docker,) = re.findall(r"--stop-timeout (\d+)", DOCKER)

        assert min(int(compose), int(docker)) > Settings.model_fields["shutdown_timeout"].default


@pytest.mark.ci
class TestPod:
    def test_its_containers_migrate_as_owner_and_serve_healthily_as_app_and_write_no_file(
        self, project: Project
    ) -> None:
        execute(project.owner, "CREATE DATABASE pod")
        owner, app = (connecting_as(role, project.owner, "pod") for role in ("neondb_owner", "app"))
        for statement in statements(GRANT, "neondb_owner")[1:]:  # the role exists
            execute(owner, statement)
        secrets = {
            "tasks-api": {"DATABASE_URL": app, "AUTH_JWT_SECRET": SECRET, "WEB_CONCURRENCY": "2", "HOST": "::1"},
            "tasks-api-owner": {"DATABASE_URL_UNPOOLED": owner},
        }
        (project.checkout / "read-only").mkdir()
        (project.checkout / "read-only/sitecustomize.py").write_text(READ_ONLY)
        image = image_environment(project)
        image["PYTHONPATH"] += f":{project.checkout}/read-only"
        (migrating,), (serving,) = POD["initContainers"], POD["containers"]
        migration, service = (image | self._variables(container, secrets) for container in (migrating, serving))
        (command,) = map(json.loads, instructions("CMD"))
        port = free_port()
        healthcheck = json.loads(instructions("HEALTHCHECK")[0].partition("CMD ")[2])
        started = {**service, "PORT": str(port), "http_proxy": "http://127.0.0.1:1"}  # which the check has to ignore

        writing = subprocess.run(["python", "-c", "open('a', 'w')"], env=image, capture_output=True, check=False)
        migrated = subprocess.check_output(migrating["command"], cwd=project.checkout, env=migration)
        start_and_use(f"exec {shlex.join(command)}", healthcheck, project.checkout, started, port)

        assert subprocess.call(healthcheck, env=started, stderr=subprocess.DEVNULL) == 1
        assert b"Read-only file system" in writing.stderr
        assert b"from no revision to revision" in migrated
        assert (service["HOST"], service["PORT"], service["WEB_CONCURRENCY"]) == ("0.0.0.0", "8000", "1")
        assert "DATABASE_URL_UNPOOLED" not in service

    def _variables(self, container: dict[str, Any], secrets: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
        """The variables of a container, as Kubernetes sets them."""
        variables: dict[str, str] = {}
        for source in container["envFrom"]:
            variables |= secrets[source["secretRef"]["name"]]
        for entry in container["env"]:
            reference = entry.get("valueFrom", {}).get("secretKeyRef")
            variables[entry["name"]] = secrets[reference["name"]][reference["key"]] if reference else entry["value"]
        return variables

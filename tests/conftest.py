"""One PostgreSQL and one service for the whole run. Tests speak HTTP to it. TEST_DEPLOYMENT names another deployment.

Tests share the tables, but each test has users of its own.
"""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from app.core.config import Settings
from app.core.database import Database
from app.core.database.migrations import migrate
from app.core.database.pool import Timeouts
from app.http.fast_lane import FastLane
from app.server.embedded import embedded_postgres
from tests.agents import ERAS, SETTINGS, Agent, client_of
from tests.cluster import migrated_database
from tests.deployments import WITHOUT_CHECKS, deployment, expand, haproxy, partition
from tests.faults import FaultProxy, fault_proxy
from tests.servers import pgbouncer
from tests.support import SECRET, connected, make_settings, serving

# The HTTP client imports it for each request. It is not installed, so each time Python would search all of `sys.path`.
sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]

_numbers = count(1)
_deployment = deployment()
if "fastapi" in _deployment:
    FastLane.enabled = False

Serve = Callable[[Settings], AbstractAsyncContextManager[str]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.option.markexpr == "not ci":
        terminalreporter.write_line("`make ci` also runs the tests that need Debian packages, Node.js or many seconds.")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """With `--numprocesses=auto`, three workers for two cores: most tests wait for other processes half of the time.

    Four, if tests that take long are among them.
    """
    for_two_cores = 4 if config.option.markexpr.startswith("ci") else 3
    return (os.cpu_count() or 1) * for_two_cores // 2 if config.option.numprocesses == "auto" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that may take longest, so that none of them runs alone at the end."""
    items.sort(key=lambda item: mark.args[0] if (mark := item.get_closest_marker("timeout")) else 0, reverse=True)


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """A worker gets all tests of a module or a class, but each recipe may run in another one."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if "::test_a_recipe_" in nodeid else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    return _Scheduling(config, log) if config.option.dist == "loadscope" else None


def pytest_configure() -> None:
    """Let programs under test get the signals that a background job or `nohup` ignores. They inherit no handler."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting of the developer has an effect, and a statement may take any time, because the machine may be busy."""
    with pytest.MonkeyPatch.context() as environment:
        for name in (*Settings.model_fields, "better_auth_secret", "fastapi_otel_auto_configure"):
            environment.delenv(name.upper(), raising=False)
        environment.delenv("SSL_CERT_FILE", raising=False)
        environment.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))  # none: to load all is slow
        environment.setattr("app.core.project.ROOT", tmp_path_factory.mktemp("project"))  # without a .env
        environment.setattr("app.main.Database", partial(Database, timeouts=Timeouts(statement=3_600)))
        yield


@pytest.fixture(scope="session")
def dsn() -> Iterator[str]:
    """A migrated database: a copy in an embedded PostgreSQL, or the empty one that TEST_DATABASE_URL names."""
    with _given_database() if os.environ.get("TEST_DATABASE_URL") else migrated_database() as dsn:
        if "expanded" in _deployment:
            expand(dsn)
        if "partitioned" in _deployment:
            partition(dsn)
        yield dsn


@contextmanager
def _given_database() -> Iterator[str]:
    dsn = os.environ["TEST_DATABASE_URL"]
    migrate(dsn)
    yield dsn


@pytest.fixture(scope="session")
def _used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("used") / ".data" / "postgres"
    with embedded_postgres(data) as dsn:
        migrate(dsn)
    return data.parent


@pytest.fixture
def directory(_used: Path, tmp_path: Path) -> Path:
    """A directory in which `python -m app` has run before, with an embedded PostgreSQL."""
    subprocess.run(["cp", "-a", _used, tmp_path], check=True)
    return tmp_path


@pytest.fixture(scope="session")
def configure(dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Settings]]:
    """Creates the settings of a service."""
    if "pgbouncer" in _deployment:
        with pgbouncer(tmp_path_factory.mktemp("pgbouncer"), dsn, pool_size=2) as pooler:
            yield partial(make_settings, f"{pooler.dsn}?pgbouncer=true", database_pool_size=16)
    else:
        yield partial(make_settings, dsn)


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Starts a service. The deployment `haproxy` starts two behind HAProxy."""

    @asynccontextmanager
    async def serve_by_two(settings: Settings) -> AsyncIterator[str]:
        async with serving(settings) as one, serving(settings) as two:
            with haproxy(tmp_path_factory.mktemp("haproxy"), [one, two], WITHOUT_CHECKS) as url:
                yield url

    return serve_by_two if "haproxy" in _deployment else serving


@pytest.fixture(scope="session")
def settings(configure: Callable[..., Settings]) -> Settings:
    return configure()


@pytest.fixture(scope="session")
async def base_url(settings: Settings, serve: Serve) -> AsyncIterator[str]:
    async with serve(settings) as url:
        yield url


@pytest.fixture(scope="session")
async def secured_url(configure: Callable[..., Settings], serve: Serve) -> AsyncIterator[str]:
    """The address of a service for the same tasks that requires a token (`support.bearer`)."""
    async with serve(configure(auth_jwt_secret=SECRET)) as url:
        yield url


@pytest.fixture
def network(dsn: str) -> Iterator[FaultProxy]:
    """A way to the database that can fail."""
    with fault_proxy(dsn) as network:
        yield network


@pytest.fixture(scope="session")
def secured_tools(configure: Callable[..., Settings]) -> Settings:
    return configure(**SETTINGS)


@pytest.fixture(scope="session")
async def agents(secured_tools: Settings, serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service for the same tasks that also serves agents (`agents.token_of`)."""
    async with client_of(secured_tools, serve) as client:
        yield client


@pytest.fixture(params=ERAS)
def agent(request: pytest.FixtureRequest, agents: httpx.AsyncClient, user: str) -> Agent:
    """The agent of a user that no other test has, by either revision of the protocol."""
    return Agent(agents, user, request.param)


@pytest.fixture(scope="session")
async def client(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that opens a connection for each request. The service could close an idle one at the wrong moment."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=base_url, timeout=30, limits=limits) as client:
        yield client


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A direct connection to the database of the service."""
    async with connected(dsn) as connection:
        yield connection


@pytest.fixture
def new_user() -> Callable[[], str]:
    return lambda: f"user-{next(_numbers)}"


@pytest.fixture
def user(new_user: Callable[[], str]) -> str:
    """A user that no other test has."""
    return new_user()


@pytest.fixture
def tasks(user: str) -> str:
    """The path of this user's tasks."""
    return f"/api/{user}/tasks"


@pytest.fixture
async def task(client: httpx.AsyncClient, tasks: str) -> dict[str, Any]:
    """An open task of this user."""
    reply = await client.post(tasks, json={"title": "Buy oat milk", "description": "The barista one"})
    assert reply.status_code == 201
    created: dict[str, Any] = reply.json()
    return created


@pytest.fixture
def path(tasks: str, task: dict[str, Any]) -> str:
    """The path of this user's task."""
    return f"{tasks}/{task['id']}"

"""Deployments other than one service on a database of its own, and clients that detect faults while one changes.

TEST_DEPLOYMENT names those that the suite runs in.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self
from uuid import uuid4

import httpx
import pytest

from tests.servers import Server, free_port, program, running
from tests.support import execute, until

HAPROXY: Final = (Path(__file__).parents[1] / "docs/haproxy.cfg").read_text()
WITHOUT_CHECKS: Final = MappingProxyType({" check inter 500ms fall 1 rise 1": ""})
PARTITIONS: Final = 16
# Changes that a next release might make.
EXPANSION: Final = (
    "ALTER TABLE tasks ADD COLUMN due_at timestamptz",
    "ALTER TABLE tasks ADD COLUMN mood integer NOT NULL DEFAULT 0",
    "ALTER TABLE tasks ADD CONSTRAINT wider CHECK (char_length(title) <= 400) NOT VALID",
    "ALTER TABLE tasks VALIDATE CONSTRAINT wider",
    "ALTER TABLE tasks DROP CONSTRAINT ck_tasks_title",
    "ALTER TABLE tasks RENAME CONSTRAINT wider TO ck_tasks_title",
    "CREATE INDEX CONCURRENTLY ix_tasks_user_id_updated_at_id ON tasks (user_id, updated_at, id)",
)


def deployment() -> set[str]:
    """Returns the words of TEST_DEPLOYMENT."""
    words = set(os.environ.get("TEST_DEPLOYMENT", "").split(",")) - {""}
    if unknown := words - {"pgbouncer", "haproxy", "expanded", "partitioned", "fastapi"}:
        message = f"TEST_DEPLOYMENT does not know {', '.join(sorted(unknown))}"
        raise pytest.UsageError(message)
    return words


def expand(dsn: str) -> None:
    """Change the table as a next release might."""
    for sql in EXPANSION:
        execute(dsn, sql)


def partition(dsn: str) -> None:
    """Replace `tasks` with a table of the same columns, rules and keys that is partitioned by the hash of the owner."""
    foreign = (
        "SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE contype = 'f' AND confrelid = 'tasks'::regclass"  # of tables that extend ours
    )
    rules = execute(dsn, foreign)
    for owner, name, _ in rules:
        execute(dsn, f"ALTER TABLE {owner} DROP CONSTRAINT {name}")
    execute(dsn, "ALTER TABLE tasks RENAME TO whole")
    execute(dsn, "CREATE TABLE tasks (LIKE whole INCLUDING ALL) PARTITION BY HASH (user_id)")
    for number in range(PARTITIONS):
        bounds = f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number})"
        execute(dsn, f"CREATE TABLE tasks_{number} PARTITION OF tasks {bounds}")
    execute(dsn, "INSERT INTO tasks SELECT * FROM whole")
    execute(dsn, "DROP TABLE whole")
    for owner, name, rule in rules:
        execute(dsn, f"ALTER TABLE {owner} ADD CONSTRAINT {name} {rule}")


@contextmanager
def haproxy(
    directory: Path,
    urls: Sequence[str],
    changes: Mapping[str, str] = MappingProxyType({}),
    certificate: Path | None = None,
) -> Iterator[str]:
    """Yields the address of HAProxy in front of two services. It uses docs/haproxy.cfg with some words replaced.

    Without a certificate, clients use plain HTTP and a name of this machine, and requests are not marked as forwarded,
    because services without authentication would refuse them.
    """
    port = free_port()
    one, two = (url.removeprefix("http://") for url in urls)
    tls = {":443 ssl crt /etc/haproxy/tasks.example.com.pem": f"127.0.0.1:{port} ssl crt {certificate}"}
    plain = {
        ":443 ssl crt /etc/haproxy/tasks.example.com.pem alpn h2,http/1.1 strict-sni": f"127.0.0.1:{port}",
        "-i tasks.example.com": "-i 127.0.0.1 localhost",
        "set-header X-Forwarded-For %[src]": "del-header X-Forwarded-For",
        "set-header X-Forwarded-Proto https": "del-header X-Forwarded-Proto",
    }
    services = {"127.0.0.1:8001": one, "127.0.0.1:8002": two}
    configuration = HAPROXY
    for words, others in {**(tls if certificate else plain), **services, **changes}.items():
        assert words in configuration
        configuration = configuration.replace(words, others)
    (directory / "haproxy.cfg").write_text(configuration)
    server = Server(directory, {}, program("haproxy"), "-db", "-f", str(directory / "haproxy.cfg"))
    server.port = port
    with running(server):
        yield f"http://127.0.0.1:{port}"


class Load:
    """Clients that use every operation, each for a user of its own, and check the replies."""

    def __init__(self, url: str, clients: int = 6) -> None:
        self.faults: list[str] = []
        self._url = url
        self._clients = [_Client(f"load-{number}") for number in range(clients)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        ending = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for client in self._clients:
                group.create_task(client.run(self._url, self.faults, ending))
            try:
                yield self
            finally:
                ending.set()

    async def full_round(self) -> None:
        """Return when each client has completed a whole round that began after this call."""
        goals = [client.rounds + 2 for client in self._clients]
        await until(lambda: all(client.rounds >= goal for client, goal in zip(self._clients, goals, strict=True)))


class _Client:
    def __init__(self, user: str) -> None:
        self.rounds = 0
        self._path = f"/api/{user}/tasks"
        self._tasks: list[dict[str, Any]] = []  # newest first

    async def run(self, url: str, faults: list[str], ending: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30) as self._http:
            while not ending.is_set():
                try:
                    await self._use_everything()
                except (AssertionError, httpx.HTTPError) as fault:
                    faults.append(f"{type(fault).__name__}: {fault}")
                self.rounds += 1

    async def _use_everything(self) -> None:
        key = {"Idempotency-Key": uuid4().hex}
        task = await self._ask("POST", "", 201, json={"title": "Buy milk"}, headers=key)
        self._tasks.insert(0, task)
        path = f"/{task['id']}"
        for method, at, sent, change in (
            ("PUT", path, {"title": "Buy more milk"}, {"title": "Buy more milk"}),
            ("PATCH", f"{path}/complete", {"completed": True}, {"completed": True}),
            ("PATCH", f"{path}/complete", None, {"completed": False}),
            ("GET", path, None, {}),
        ):
            changed = await self._ask(method, at, 200, json=sent)
            assert changed == {**task, **change, "updated_at": changed["updated_at"]}, method
            assert (changed["updated_at"] > task["updated_at"]) == bool(change), method
            task = self._tasks[0] = changed
        if self.rounds % 4:
            await self._ask("DELETE", path, 204)
            del self._tasks[0]
        assert await self._ask("GET", "", 200) == self._tasks, "list"

    async def _ask(self, method: str, path: str, status: int, **content: Any) -> Any:
        reply = await self._http.request(method, self._path + path, **content)
        assert reply.status_code == status, f"{method} {reply.status_code} {reply.text}"
        return reply.json() if reply.content else None

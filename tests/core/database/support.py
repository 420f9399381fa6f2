"""Statements that several modules of this package run, and what the server shows about them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from socketserver import BaseRequestHandler, TCPServer
from typing import Final, cast

import asyncpg
from sqlalchemy import func, literal_column
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.database import Database, statement
from tests.support import until

SELECT_PID: Final = select(func.pg_backend_pid())
SLEEP: Final = select(func.pg_sleep(literal_column("60")))
PID: Final = statement(SELECT_PID, reads=True)
# The connections of the service to the database of the module.
ACTIVITY: Final = "FROM pg_stat_activity WHERE application_name = 'tasks-api' AND datname = current_database()"


async def pid_of_fetch(db: Database) -> int:
    [[pid]] = await db.fetch(PID)
    return int(pid)


async def pid_of_session(db: Database) -> int:
    async with db.session() as session:
        return int((await session.exec(SELECT_PID)).one())


async def driver_of(session: AsyncSession) -> asyncpg.Connection:
    return cast("asyncpg.Connection", (await (await session.connection()).get_raw_connection()).driver_connection)


async def states(server: asyncpg.Connection) -> list[str]:
    return [state for [state] in await server.fetch(f"SELECT state {ACTIVITY}")]


async def until_idle(server: asyncpg.Connection, at_most: int = 1) -> None:
    """Wait until the service has no more connections than these, and all are idle."""

    async def are_idle() -> bool:
        found = await states(server)
        return set(found) <= {"idle"} and len(found) <= at_most

    await until(are_idle)


async def wait_for(server: asyncpg.Connection, condition: str) -> int:
    """Returns the process of the service's connection that meets the condition, as soon as one does."""
    found: list[int] = []

    async def is_found() -> bool:
        found.extend(pid for [pid] in await server.fetch(f"SELECT pid {ACTIVITY} AND {condition}"))
        return bool(found)

    await until(is_found)
    return found[0]


async def wait_for_sleep(server: asyncpg.Connection) -> int:
    return await wait_for(server, "wait_event = 'PgSleep'")


@contextmanager
def refusing(answers: Iterator[tuple[str, str]]) -> Iterator[str]:
    """Yields the connection string of a server that refuses each connection with the next SQLSTATE and text."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1_024)
            state, text = next(answers)
            fields = f"SFATAL\0C{state}\0M{text}\0\0".encode()
            self.request.sendall(b"E" + (4 + len(fields)).to_bytes(4, "big") + fields)

    with TCPServer(("127.0.0.1", 0), Handler) as server, ThreadPoolExecutor(1) as threads:
        threads.submit(server.serve_forever, poll_interval=0.01)
        try:
            yield f"postgresql://ada@127.0.0.1:{server.server_address[1]}/tasks?sslmode=disable"
        finally:
            server.shutdown()

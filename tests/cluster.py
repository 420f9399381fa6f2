"""Embedded PostgreSQL clusters that stay on disk between test runs, so that a run starts quickly.

Each process of a run holds a cluster of its own, and gets a copy of a migrated database in it.
"""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

from app.core.database.migrations import migrate
from app.server.embedded import embedded_postgres
from tests.support import execute, new_database

_ROOT: Final = Path(__file__).parents[1]
_CLUSTERS: Final = _ROOT / ".data/tests"
_LEFTOVERS: Final = """
    SELECT format('DROP DATABASE %I WITH (FORCE)', datname) FROM pg_database
    WHERE NOT datistemplate AND datname NOT IN ('postgres', $1)
    UNION ALL SELECT format('DROP ROLE %I', rolname) FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> 'postgres'
"""


@contextmanager
def migrated_database() -> Iterator[str]:
    """Yields a new migrated database on a server that no other process uses."""
    with _free_slot() as slot, embedded_postgres(slot / "postgres") as dsn:
        template = f"migrated_{_digest()}"
        for (drop,) in execute(dsn, _LEFTOVERS, template):
            execute(dsn, drop)
        if not execute(dsn, "SELECT FROM pg_database WHERE datname = $1", template):
            _create_template(dsn, template)
        with new_database(dsn, "tests", template) as migrated:
            yield migrated


@contextmanager
def _free_slot() -> Iterator[Path]:
    """Yields the first directory that no running process has locked."""
    for number in count():
        slot = _CLUSTERS / str(number)
        slot.mkdir(parents=True, exist_ok=True)
        with (slot / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield slot
            return


def _digest() -> str:
    """Returns what identifies the revisions."""
    revisions = sorted((_ROOT / "alembic/versions").glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in revisions)).hexdigest()[:16]


def _create_template(dsn: str, name: str) -> None:
    """Migrate another database first, because a run may end meanwhile."""
    execute(dsn, "ALTER SYSTEM SET fsync = off")  # the data of tests need not survive a power cut
    execute(dsn, "SELECT pg_reload_conf()")
    with new_database(dsn, "unfinished") as unfinished:
        migrate(unfinished)
        execute(dsn, f"CREATE DATABASE {name} TEMPLATE unfinished")

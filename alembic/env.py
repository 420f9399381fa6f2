"""Runs the migrations on the database of the caller or of the settings."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Final

import asyncpg
from alembic import context
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationInfo
from alembic.util import CommandError
from sqlalchemy import Connection, String, column, inspect, select, table, text
from sqlalchemy.exc import EmulatedDBAPIException, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from sqlmodel import SQLModel

import app.models
from app.core.config import load_settings
from app.core.database.connecting import connect
from app.core.database.dsn import parse_dsn
from app.core.database.faults import ConnectError, sqlstate
from app.core.database.migrations import VERSION_TABLE
from app.core.errors import StartupError
from app.core.stopping import INTERVAL, check, end_in_time, note_signals, requested
from app.server.embedded import embedded_postgres
from app.services.adoption import has_our_key, has_unadopted

for _model in iter_modules(app.models.__path__, "app.models."):
    import_module(_model.name)  # fills the metadata

_LOCK: Final = 7_461_736_531  # an arbitrary number that no other program on this database uses
_ENDING_TIME: Final = 10  # seconds from a signal to the exit of `alembic`
_EXPECTED: Final = (OSError, SQLAlchemyError, EmulatedDBAPIException, asyncpg.PostgresError, asyncpg.InterfaceError)
_REFUSED: Final = ("25006", "28", "3D", "42501", "55000")  # read-only, login, no database, no right, not accepting
_EARLIER_VERSION_TABLE: Final = "alembic_version"  # of releases before decision 33, and of other programs
_UNKNOWN: Final = (
    f"{VERSION_TABLE} names {{}}, which fits neither this release nor a later one that it works with; "
    f"start the release that migrated the database, restore {VERSION_TABLE}, or use another database"
)
_ADOPT: Final = "`python -m app.adopt` takes them over, see docs/adopt.md"

_logger = logging.getLogger("app.migrations")  # not under "alembic", whose handler drops what a command logs


@contextmanager
def _dsn() -> Iterator[str]:
    """Yields the DSN of the caller, else of the database in `-x embedded=DIRECTORY`, else of the settings."""
    directory = context.get_x_argument(as_dictionary=True).get("embedded")
    configured = context.config.attributes.get("dsn") or (None if directory else load_settings().migration_dsn)
    if configured:
        yield configured
    else:
        with embedded_postgres(Path(directory) if directory else load_settings().embedded_postgres_path) as dsn:
            yield dsn


def _migrate(connection: Connection) -> None:
    steps: list[MigrationInfo] = []
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        compare_server_default=True,
        include_name=_is_in_models,
        version_table=VERSION_TABLE,
        on_version_apply=lambda step, **_: steps.append(step),
        process_revision_directives=_number,
    )
    with context.begin_transaction():
        # The role may be that of the service, which has short timeouts.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        # If two services start at once, the second one waits here and then has nothing to do. The lock
        # belongs to the transaction, because a transaction-mode pooler does not keep sessions.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        # Requests queue behind a migration that waits for a table. The migration must time out before they do.
        connection.execute(text("SET LOCAL lock_timeout = '1s'"))
        work = context.config.attributes.get("work", _only_migrate)
        work(connection, lambda: _run_migrations(connection))
    _report(steps)


def _number(_: Any, __: Any, directives: list[Any]) -> None:
    """Give a new revision the number after that of its predecessor: 0003 after 0002."""
    head = context.script.get_current_head() or "0"
    if head.isdigit() and not getattr(context.config.cmd_opts, "rev_id", None):
        directives[0].rev_id = f"{int(head) + 1:04}"


def _report(steps: list[MigrationInfo]) -> None:
    """Say from which revision to which the database went. `alembic` has no log, so it prints this."""
    if steps:
        ends = steps[0].source_revision_ids, steps[-1].destination_revision_ids
        before, after = (f"revision {ids[0]}" if ids else "no revision" for ids in ends)
        sentence = f"The database went from {before} to {after}."
    elif context.get_context().opts["fn"].__name__ == "upgrade":
        sentence = "The database is at the newest revision: nothing to do."
    else:
        return
    if context.config.cmd_opts:
        context.config.print_stdout(sentence)
    elif steps:
        _logger.info(sentence)


def _only_migrate(connection: Connection, migrate: Callable[[], None]) -> None:
    migrate()
    if context.get_context().opts["fn"].__name__ == "upgrade" and has_unadopted(connection):
        _logger.warning("the tasks of another program are in the table task; %s", _ADOPT)


def _run_migrations(connection: Connection) -> None:
    _take_over_revision(connection)
    if not _is_migrated_further(connection):
        context.run_migrations()


def _is_in_models(name: str | None, kind: str, _: object) -> bool:
    """Returns whether to compare the table. Other programs may have tables in the same schema."""
    return kind != "table" or name in SQLModel.metadata.tables


def _take_over_revision(connection: Connection) -> None:
    """Copy the revision of an earlier release to the table that has it now. That release can still be restarted."""
    has_table = inspect(connection).has_table
    if has_table(VERSION_TABLE) or not has_table(_EARLIER_VERSION_TABLE) or not has_our_key(connection):
        return
    version = column("version_num", String)
    revisions = connection.scalars(select(version).select_from(table(_EARLIER_VERSION_TABLE))).all()
    if len(revisions) == 1 and _known_revisions().issuperset(revisions):
        context.get_context().stamp(context.script, revisions[0])


def _known_revisions() -> set[str]:
    return {script.revision for script in context.script.walk_revisions()}


def _is_migrated_further(connection: Connection) -> bool:
    """Returns whether a later release has already upgraded the database, so that nothing is left to do.

    This release does not have the later revision. Therefore the tables decide whether it can use them. Raises
    CommandError if it cannot, or if the revision is missing or belongs to another project.
    """
    migration = context.get_context()
    heads = migration.get_current_heads()
    has_table = inspect(connection).has_table
    is_known = _known_revisions().issuperset(heads) if heads else not any(map(has_table, SQLModel.metadata.tables))
    if is_known or migration.opts["fn"].__name__ != "upgrade":
        return False
    if not heads and has_table("tasks") and not has_our_key(connection):
        raise CommandError(f"the table tasks has the tasks of another program; {_ADOPT}")
    if len(heads) != 1 or not all(map(_is_addition, compare_metadata(migration, SQLModel.metadata))):
        raise CommandError(_UNKNOWN.format(", ".join(heads) or "no revision"))
    _logger.warning("the database is at revision %s of a later release: nothing is migrated", heads[0])
    return True


def _is_addition(difference: Any) -> bool:
    """Returns whether a difference of the database from the models is an expansion, which this release can ignore."""
    match difference:
        case list():  # of one column
            return all(map(_is_addition, difference))
        case ("remove_column", _, _, column):
            return bool(column.nullable or column.server_default)
        case ("remove_index", index):
            return not index.unique
        case ("modify_nullable", *_, now_nullable, _):
            return bool(now_nullable)
    return difference[0] in {"remove_table_comment", "modify_comment"}


async def _run(dsn: str) -> None:
    # No statement runs twice, so none is prepared. SQLAlchemy would prepare them by default.
    options = {"prepared_statement_cache_size": 0, "async_creator_fn": connect}
    connect_args = parse_dsn(dsn, prepares=False) | options
    engine = create_async_engine("postgresql+asyncpg://", connect_args=connect_args, poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(_migrate)
    await engine.dispose()


async def _run_until_stopped(dsn: str) -> None:
    running = asyncio.ensure_future(_run(dsn))
    while not (running.done() or requested.is_set()):
        await asyncio.wait([running], timeout=INTERVAL)
    if requested.is_set():
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    check()
    await running


def _reason(error: Exception) -> str:
    settings = load_settings()
    name = "DATABASE_URL_UNPOOLED" if settings.database_url_unpooled else "DATABASE_URL"
    if isinstance(error, ConnectError):
        return str(error).replace("DATABASE_URL", name)
    error = getattr(error, "driver_exception", error)  # its text has no names of modules
    text = f"{type(error).__name__}: {str(error).partition(chr(10))[0] or 'no answer'}"
    is_refused = isinstance(error, OSError) or sqlstate(error).startswith(_REFUSED)
    return f"{name}: {text}" if is_refused and settings.database_url else text


if context.config.cmd_opts:  # the program is `alembic`
    note_signals()
    end_in_time(_ENDING_TIME)
try:
    with _dsn() as dsn:
        asyncio.run(_run_until_stopped(dsn))
except StartupError as error:
    raise CommandError(str(error)) from error
except _EXPECTED as error:
    raise CommandError(_reason(error)) from error

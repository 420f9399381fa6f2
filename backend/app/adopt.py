"""`python -m app.adopt`: take over the tasks that another program has stored in a table of the same database."""

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from typing import Final

from alembic import command
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, text

from app.core.database.migrations import VERSION_TABLE, alembic_config
from app.core.errors import StartupError
from app.core.stopping import end_in_time, note_signals
from app.services.adoption import SUFFIX, Source, find_source, give_back, has_our_key, lock, set_aside

_ENDING_TIME: Final = 10  # seconds from a signal to the exit
_LISTED: Final = 20  # ids in an error
_RULES: Final = (
    "Times without a time zone are UTC. An id that is no UUID becomes a UUIDv5.\n"
    "A missing time is taken from another time of the row; without any, it is the time of the copy.\n"
    "Clients get kept_fields with UNKNOWN_FIELDS=keep."
)
_PLAN: Final = (
    "Nothing was changed. With --yes, {old} is renamed to {new}. Rows that become tasks: {rows:,}.\n"
    "Stop every program that uses {old} before that."
)
_DONE: Final = "Done. {old} is called {new} now. Rows that became tasks: {rows:,}.\nThe option --undo takes it back."
_UNDO_PLAN: Final = (
    "No task was created or changed since the adoption. Nothing was changed now. With --yes, the tables of this\n"
    "service are removed, and {new} is renamed to {old}. Stop this service before that."
)
_UNDONE: Final = "Done. The tables of this service were removed, and {new} is called {old} again."
_CHANGED: Final = (
    "Rows that an undo would lose, because only the tables of this service have them as they are: {number:,}. "
    "The first are {ids}. Save or delete them, and undo again."
)
_SAME: Final = (
    "Tasks that several rows would become, or that are there already: {number:,}. The first ids are {ids}. "
    "Change them in the old table, and adopt again."
)

Migrate = Callable[[], None]


def main() -> None:
    """Run the command. An error is one sentence on stderr: nothing was changed, or only the report is not printed."""
    note_signals()
    end_in_time(_ENDING_TIME)
    try:
        report = "\n".join(run(sys.argv[1:]))
    except CommandError as error:
        sys.exit(str(error))
    try:
        with open(1, "w", errors="backslashreplace", closefd=False) as output:
            output.write(report + "\n")
    except OSError as error:
        sys.exit(f"The command has succeeded, but its report cannot be printed: {error.strerror}.")


def run(arguments: list[str]) -> list[str]:
    """Run the command with these arguments, in one transaction. Returns its report. Raises CommandError."""
    parser = ArgumentParser("python -m app.adopt", description="Take over the tasks of another program.")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--table", metavar="NAME", help="its table, if it is not tasks or task")
    either.add_argument("--undo", action="store_true", help="remove the tables of this service, and rename it back")
    parser.add_argument("--yes", action="store_true", help="do it; otherwise only say what would be done")
    chosen = parser.parse_args(arguments)
    report: list[str] = []
    config = alembic_config()
    if chosen.undo:
        config.attributes["work"] = partial(_undo, report, chosen.yes)
        command.downgrade(config, "base")
    else:
        config.attributes["work"] = partial(_adopt, report, chosen.yes, chosen.table)
        command.upgrade(config, "head")
    return report


def _adopt(report: list[str], confirmed: bool, table: str | None, connection: Connection, migrate: Migrate) -> None:
    _prepare(connection, confirmed)
    source = find_source(connection, table)
    if source is None:
        report.append(f"There is no table {table or 'tasks or task'} of another program, so there is nothing to do.")
        return
    old, new = source.name, source.name + SUFFIX
    is_first = not has_our_key(connection)
    _check_free(connection, *_adopted(connection), *["tasks"] * (is_first and old != "tasks"))
    if confirmed:
        lock(connection, old)
    rows, rejected = source.count(), source.rejected()
    report += _description(source, rows, rejected)
    if same := source.same():
        raise StartupError(_SAME.format(number=len(same), ids="; ".join(same[:_LISTED])))
    report.append((_DONE if confirmed else _PLAN).format(old=old, new=new, rows=rows - len(rejected)))
    if not confirmed:
        return
    if is_first:
        connection.execute(text(f"DROP TABLE IF EXISTS {VERSION_TABLE}"))  # a revision that was stamped by hand
    set_aside(connection, old)
    migrate()
    Source(connection, new).copy()


def _description(source: Source, rows: int, rejected: list[str]) -> list[str]:
    lines = [f"Rows in the table {source.name}: {rows:,}. A task is made of its columns in this way:"]
    lines += [*source.describe(), _RULES]
    if rejected:
        lines.append(f"Rows that cannot become tasks, and are left in {source.name}: {len(rejected):,}.")
    return lines + rejected


def _undo(report: list[str], confirmed: bool, connection: Connection, migrate: Migrate) -> None:
    _prepare(connection, confirmed)
    adopted = _adopted(connection)
    if len(adopted) != 1 or not has_our_key(connection):
        message = f"An undo needs the table tasks of this service and one table *{SUFFIX}, but finds {len(adopted)}."
        raise StartupError(message)
    [new] = adopted
    old = new.removesuffix(SUFFIX)
    _check_free(connection, *{old} - {"tasks"})
    if confirmed:
        lock(connection, "tasks")
    if changed := Source(connection, new).changed():
        raise StartupError(_CHANGED.format(number=len(changed), ids="; ".join(changed[:_LISTED])))
    if confirmed:
        migrate()
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
        give_back(connection, new)
    report.append((_UNDONE if confirmed else _UNDO_PLAN).format(old=old, new=new))


def _adopted(connection: Connection) -> list[str]:
    return [name for name in inspect(connection).get_table_names() if name.endswith(SUFFIX)]


def _prepare(connection: Connection, confirmed: bool) -> None:
    if not confirmed:
        connection.execute(text("SET TRANSACTION READ ONLY"))
    connection.execute(text("SET LOCAL timezone = 'UTC'"))  # of times without a time zone
    connection.execute(text("SET LOCAL row_security = off"))  # a row that is hidden from the role is an error


def _check_free(connection: Connection, *names: str) -> None:
    for name in filter(inspect(connection).has_table, names):
        raise StartupError(f"There is already a table {name}; rename or remove it first.")


if __name__ == "__main__":
    main()

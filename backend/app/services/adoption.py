"""The tasks that another program has stored in a table of its own, and how they become tasks of this service.

One SELECT makes a task of each row, or says why the row cannot be one.
"""

from functools import partial
from typing import Any, Final
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import SQLModel

from app.core.errors import StartupError
from app.models.task import KEPT_BYTES_MAX, KEPT_NAMES_MAX

SUFFIX: Final = "_before_adoption"  # of the new name of an adopted table
# What other programs call the columns: the first that is there counts. Case and underscores do not matter.
_NAMES: Final = {
    "user_id": ("userid", "ownerid", "user", "owner"),
    "id": ("id", "taskid"),
    "title": ("title", "name"),
    "description": ("description", "details"),
    "completed": ("completed", "iscompleted", "done", "isdone", "status"),
    "created_at": ("createdat", "created"),
    "updated_at": ("updatedat", "updated"),
    "completed_at": ("completedat",),
    "deleted": ("deletedat", "isdeleted", "deleted"),
}
_REQUIRED: Final = ("user_id", "id", "title")
_COPIED: Final = ("user_id", "id", "title", "description", "completed", "kept_fields")
_TIMES: Final = ("created_at", "updated_at")
_COMPLETED: Final = ("true", "1", "completed", "complete", "done")
_NOT_DELETED: Final = ("false", "0")
_UUID: Final = "^[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}$"
_NAMESPACE: Final = UUID("bd5e7140-a4eb-4f29-8c4f-84f43e9587c1")  # of the ids that are made: never change it
# What the setting UNKNOWN_FIELDS=keep does not accept, as JSON paths.
_UNKEPT: Final = {
    '$.keyvalue() ? (!(@.key like_regex "^[A-Za-z_][A-Za-z0-9_]{0,39}$"))': "a column's name cannot be kept",
    "$.** ? (@ > 1.7e308 || @ < -1.7e308)": "a number is too large to be kept",
}
_REASONS: Final = {  # by the name of the constraint
    "ck_tasks_user_id": "the owner is not 1 to 128 of A-Z a-z 0-9 _ - | . : @ + = ~",
    "ck_tasks_title": "the title is blank or has more than 200 characters",
    "ck_tasks_description": "the description has more than 5,000 characters",
    "ck_tasks_kept_fields": f"the other columns are more than {KEPT_NAMES_MAX} or more than {KEPT_BYTES_MAX:,} bytes",
}
_REFERENCES: Final = sa.text(
    "SELECT conrelid::regclass::text FROM pg_constraint"
    " WHERE confrelid = to_regclass(:name) AND contype = 'f' AND conrelid <> confrelid"
)
_ONLY_TASK_HAS_DATA: Final = sa.text(
    "SELECT pg_relation_size(to_regclass('task')) > 0 AND pg_relation_size(to_regclass('tasks')) = 0"
)
# The ids that are no UUIDs, and the UUIDs that are made of them.
_IDS: Final = (
    sa.func.unnest(sa.bindparam("old", [], type_=sa.ARRAY(sa.Text)), sa.bindparam("new", [], type_=sa.ARRAY(sa.Uuid)))
    .table_valued("old", "new")
    .render_derived(name="ids")
)

_tasks: Any = SQLModel.metadata.tables["tasks"]


def has_our_key(connection: sa.Connection) -> bool:
    """Returns whether `tasks` has the primary key of this service, which the tables of other programs do not have."""
    inspector = sa.inspect(connection)
    if not inspector.has_table("tasks"):
        return False
    types = {c["name"]: c["type"].compile(connection.dialect) for c in inspector.get_columns("tasks")}
    key = inspector.get_pk_constraint("tasks")["constrained_columns"]
    ours = {c.name: c.type.compile(connection.dialect) for c in _tasks.primary_key}
    return {name: types[name] for name in key} == ours


def has_unadopted(connection: sa.Connection) -> bool:
    """Returns whether `task`, SQLModel's default name, has tasks of another program while `tasks` has none."""
    if not connection.scalar(_ONLY_TASK_HAS_DATA):
        return False
    try:
        return find_source(connection, "task") is not None
    except StartupError:  # something else is in it
        return False


def find_source(connection: sa.Connection, name: str | None) -> "Source | None":
    """Returns the table of another program with this name, else `tasks` or `task`, or None.

    Raises StartupError if both are there, or if the table has no column for something that every task needs.
    """
    has_table, is_ours = sa.inspect(connection).has_table, has_our_key(connection)
    names = [name] if name else ["tasks", "task"]
    found = [each for each in names if has_table(each) and not (is_ours and each == "tasks")]
    if len(found) > 1:
        message = "There are two tables, tasks and task. Choose with --table tasks or --table task."
        raise StartupError(message)
    return Source(connection, found[0]) if found else None


def lock(connection: sa.Connection, name: str) -> None:
    """Keep other transactions from using the table until the end of this one."""
    connection.exec_driver_sql(f"LOCK TABLE {_quoted(connection, name)} IN ACCESS EXCLUSIVE MODE")


def set_aside(connection: sa.Connection, name: str) -> None:
    """Rename the table, and those of its indexes whose names the table of this service needs."""
    ours = {_tasks.primary_key.name, *(index.name for index in _tasks.indexes)}
    for index in ours.intersection(_index_names(connection, name)):
        _rename(connection, "INDEX", index, index + SUFFIX)
    _rename(connection, "TABLE", name, name + SUFFIX)


def give_back(connection: sa.Connection, name: str) -> None:
    """Undo `set_aside`. `name` is the new name."""
    for old in (*_index_names(connection, name), name):
        if old.endswith(SUFFIX):
            _rename(connection, "TABLE" if old == name else "INDEX", old, old.removesuffix(SUFFIX))


def _index_names(connection: sa.Connection, name: str) -> list[str]:
    inspector = sa.inspect(connection)
    indexes = [inspector.get_pk_constraint(name), *inspector.get_indexes(name)]
    return [str(index["name"]) for index in indexes if index["name"]]


def _rename(connection: sa.Connection, kind: str, old: str, new: str) -> None:
    connection.exec_driver_sql(f"ALTER {kind} {_quoted(connection, old)} RENAME TO {_quoted(connection, new)}")


def _quoted(connection: sa.Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote(name)


class Source:
    """A table of another program."""

    def __init__(self, connection: sa.Connection, name: str) -> None:
        """Raises StartupError if the table has no column for something that every task needs."""
        self.name = name
        self._connection = connection
        self._table = sa.Table(name, sa.MetaData(), autoload_with=connection, resolve_fks=False)
        exact_last = sorted(self._table.c, key=lambda c: c.name in _NAMES)  # it replaces one with a similar name
        there = {c.name.replace("_", "").lower(): c for c in exact_last}
        self._columns = {name: there[each] for name, others in _NAMES.items() for each in others[::-1] if each in there}
        self._check_columns()
        self._rows = self._make_rows()

    def _check_columns(self) -> None:
        names = ", ".join(self._table.c.keys())
        for name in _REQUIRED:
            if name not in self._columns:
                message = f"The table {self.name} has no column {name}, but {names}; rename the one that has it."
                raise StartupError(message)
        for name in (*_TIMES, "completed_at"):
            column = self._columns.get(name)
            if column is not None and not isinstance(column.type, sa.DateTime | sa.Date):
                message = f"{self.name}.{column.name} is no time but {column.type}; change its type to timestamptz."
                raise StartupError(message)

    def describe(self) -> list[str]:
        """Returns a line for each column of a task, with the column of this table that it is made of."""
        origins = {name: self._columns[name].name for name in _tasks.c.keys() if name in self._columns}  # noqa: SIM118
        kept = [c.name for c in self._table.c if c.name not in self._mapped]
        return [f"  {name}: {origins.get(name, '-')}" for name in (*_COPIED[:-1], *_TIMES)] + [
            f"  kept_fields: {', '.join(kept) or '-'}"
        ]

    def references(self) -> list[str]:
        """Returns the tables with a foreign key to this one."""
        return [*self._connection.scalars(_REFERENCES, {"name": _quoted(self._connection, self.name)})]

    def count(self) -> tuple[int, int]:
        """Returns the number of rows, and how many of them cannot become tasks."""
        counts = sa.select(sa.func.count(), sa.func.count(self._rows.c.reason)).select_from(self._rows)
        rows, rejected = self._connection.execute(counts).one()
        return rows, rejected

    def rejected(self, limit: int) -> list[str]:
        """Returns a line with id and reason for each of the first rows that cannot become tasks."""
        query = sa.select(self._rows.c.old_id, self._rows.c.reason).where(self._rows.c.reason.is_not(None)).limit(limit)
        return [f"  {old_id}: {reason}" for old_id, reason in self._connection.execute(query)]

    def copy(self) -> int:
        """Store the rows as tasks, except those that are there already. Returns how many were stored."""
        values = self._task_values(missing_time=sa.func.now())
        made = sa.select(*values.values()).where(self._rows.c.reason.is_(None))
        query = insert(_tasks).from_select([*values], made).on_conflict_do_nothing()
        return self._connection.execute(query, self._new_ids()).rowcount

    def count_changed(self) -> int:
        """Returns how many tasks are not as `copy` makes them."""
        values = self._task_values(missing_time=_tasks.c.created_at)  # a change sets only `updated_at`
        is_same = sa.and_(*(values[c.name] == c for c in _tasks.primary_key), self._rows.c.reason.is_(None))
        differs = sa.tuple_(*(_tasks.c[name] for name in values)).is_distinct_from(sa.tuple_(*values.values()))
        query = sa.select(sa.func.count()).select_from(_tasks.outerjoin(self._rows, is_same)).where(differs)
        return self._connection.execute(query, self._new_ids()).scalar_one()

    @property
    def _mapped(self) -> set[str]:
        """The columns whose values a task has as they are."""
        return {c.name for name, c in self._columns.items() if name != "completed_at" and c.name.lower() != "status"}

    def _task_values(self, *, missing_time: Any) -> dict[str, Any]:
        row = self._rows.c
        times = {name: sa.func.coalesce(row[name], missing_time) for name in _TIMES}
        return {name: row[name] for name in _COPIED} | times

    def _new_ids(self) -> dict[str, list[Any]]:
        """Returns the ids that are no UUIDs, and UUIDs for them. PostgreSQL has no function for version 5."""
        old_id = self._text("id")
        old = [*self._connection.scalars(sa.select(old_id).distinct().where(~old_id.regexp_match(_UUID, "i")))]
        return {"old": old, "new": [uuid5(_NAMESPACE, each) for each in old]}

    def _make_rows(self) -> sa.Subquery:
        """Returns the SELECT of all rows as tasks, each with its old id, and the reason if it cannot be a task."""
        values = [value.label(name) for name, value in self._made_values().items()]
        with_ids = self._table.outerjoin(_IDS, _IDS.c.old == self._text("id"))
        row = sa.select(*values).select_from(with_ids).offset(0).subquery().c  # OFFSET: each value is computed once
        finds = partial(sa.func.jsonb_path_exists, row.kept_fields)
        reasons: list[Any] = [
            *((row[name].is_(None), f"there is no {name}") for name in ("user_id", "old_id", "title")),
            (row.deleted, "it was deleted"),
            *((finds(sa.literal_column(f"'{path}'")), reason) for path, reason in _UNKEPT.items()),
        ]
        rules = sorted((str(each.name), each) for each in _tasks.constraints if isinstance(each, sa.CheckConstraint))
        broken: list[Any] = [
            (sa.literal_column(f"NOT ({rule.sqltext})"), _REASONS.get(name, name)) for name, rule in rules
        ]
        return sa.select(*row, sa.case(*reasons, *broken).label("reason")).subquery()

    def _made_values(self) -> dict[str, Any]:
        created, updated, completed = map(self._time, (*_TIMES, "completed_at"))
        old_id = self._text("id")
        is_completed = sa.func.lower(self._text("completed")).in_(_COMPLETED)
        return {
            "old_id": old_id,
            "user_id": self._text("user_id"),
            "id": sa.case((old_id.regexp_match(_UUID, "i"), sa.cast(old_id, sa.Uuid)), else_=_IDS.c.new),
            "title": self._text("title"),
            "description": self._text("description"),
            "completed": sa.func.coalesce(is_completed, completed.is_not(None)),
            "created_at": sa.func.coalesce(created, updated, completed),
            "updated_at": sa.func.coalesce(updated, sa.func.greatest(created, completed)),
            "kept_fields": self._kept_fields(),
            "deleted": self._text("deleted").not_in(_NOT_DELETED),
        }

    def _text(self, name: str) -> Any:
        return sa.cast(self._columns.get(name, sa.null()), sa.Text)

    def _time(self, name: str) -> Any:
        """Returns a time with a zone. The time zone of the session applies to times without one."""
        return sa.cast(self._columns.get(name, sa.null()), sa.DateTime(timezone=True))

    def _kept_fields(self) -> Any:
        """Returns the object of the other columns that are not NULL, or NULL."""
        others = sa.func.to_jsonb(self._table.table_valued()).op("-")(sa.literal([*self._mapped], sa.ARRAY(sa.Text)))
        pair = sa.func.jsonb_each(others).table_valued("key", "value")
        present = sa.func.jsonb_typeof(pair.c.value) != "null"
        return sa.select(sa.func.jsonb_object_agg(pair.c.key, pair.c.value)).where(present).scalar_subquery()

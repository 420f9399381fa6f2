"""The tasks that another program has stored in a table of its own, and how they become tasks of this service.

One SELECT makes a task of each row, or says why the row cannot be one.
"""

import warnings
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlmodel import SQLModel

from app.core.errors import StartupError
from app.models.task import DESCRIPTION_MAX, KEPT_BYTES_MAX, KEPT_NAME_PATTERN, KEPT_NAMES_MAX, TITLE_MAX
from app.schemas.words import STATES

SUFFIX: Final = "_before_adoption"  # of the new name of an adopted table
_NAME_MAX: Final = 63  # bytes of a name in PostgreSQL
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
}
_DELETED: Final = ("deletedat", "isdeleted", "deleted")  # any of them counts
_REQUIRED: Final = ("user_id", "id", "title")
_TIMES: Final = ("created_at", "updated_at")
_NO: Final = ("false", "f", "no", "n", "off", "0")
_COMPLETED: Final = ("true", "t", "yes", "y", "on", "1", *(word for word in STATES if STATES[word] == "completed"))
_OPEN: Final = (*_NO, *(word for word in STATES if STATES[word] == "pending"))
_NUMBER: Final = r"^0*([01])(\.0*)?$"  # another spelling of 0 or 1
_SERVED: Final[Any] = (sa.literal_column("'0001-01-01'"), sa.literal_column("'9999-12-31'"))  # first and last time
_NO_TIME: Final[Any] = sa.literal_column("'infinity'::timestamptz")
_UUID: Final = "^[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}$"
_NAMESPACE: Final = UUID("bd5e7140-a4eb-4f29-8c4f-84f43e9587c1")  # of the ids that are made: never change it
# What the setting UNKNOWN_FIELDS=keep does not accept, as JSON paths.
_UNKEPT: Final = {
    f'$.keyvalue() ? (!(@.key like_regex "^{KEPT_NAME_PATTERN}$"))': "a column's name cannot be kept",
    "$.** ? (@ > 1.7e308 || @ < -1.7e308)": "a number is too large to be kept",
}
_REASONS: Final = {  # by the name of the constraint
    "ck_tasks_user_id": "the owner is not 1 to 128 of A-Z a-z 0-9 _ - | . : @ + = ~",
    "ck_tasks_title": f"the title is blank or has more than {TITLE_MAX} characters",
    "ck_tasks_description": f"the description has more than {DESCRIPTION_MAX:,} characters",
    "ck_tasks_kept_fields": f"the other columns are more than {KEPT_NAMES_MAX} or more than {KEPT_BYTES_MAX:,} bytes",
}
# What `json` accepts but `jsonb` does not: a NUL, half a surrogate pair, a number with a large exponent.
_JSON_ESCAPES: Final = r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F].."  # that `jsonb` accepts, or a backslash
_NO_JSONB: Final = r"\\u(0000|[dD][89a-fA-F])|(^|[,:[\s])-?[0-9]+(\.[0-9]+)?[eE][-+]?[0-9]{4}"
_KEY: Final = sa.text(
    "SELECT attname || ' ' || atttypid::regtype FROM pg_constraint JOIN pg_attribute ON attrelid = conrelid"
    " AND attnum = ANY (conkey) WHERE conrelid = to_regclass('tasks') AND contype = 'p'"
)
_TASK_HAS_DATA: Final = sa.text("SELECT pg_relation_size(to_regclass('task')) > 0")
_TASKS_HAS_ROWS: Final = sa.text("SELECT EXISTS (SELECT FROM tasks)")
# The ids that are no UUIDs, and the UUIDs that are made of them.
_IDS: Final = (
    sa.func.unnest(sa.bindparam("old", [], type_=sa.ARRAY(sa.Text)), sa.bindparam("new", [], type_=sa.ARRAY(sa.Uuid)))
    .table_valued("old", "new")
    .render_derived(name="ids")
)


def _word(text: Any) -> Any:
    return sa.func.regexp_replace(sa.func.lower(text), _NUMBER, r"\1")


_tasks: Any = SQLModel.metadata.tables["tasks"]
_indexes = [_tasks.primary_key.name, *(index.name for index in _tasks.indexes)]


def has_our_key(connection: sa.Connection) -> bool:
    """Returns whether `tasks` has the primary key of this service, which the tables of other programs do not have."""
    ours = {f"{c.name} {c.type.compile(connection.dialect).lower()}" for c in _tasks.primary_key}
    return {*connection.scalars(_KEY)} == ours


def has_unadopted(connection: sa.Connection) -> bool:
    """Returns whether `task`, SQLModel's default name, has tasks of another program while `tasks` has none."""
    if not connection.scalar(_TASK_HAS_DATA) or connection.scalar(_TASKS_HAS_ROWS):
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
        raise StartupError("There are two tables, tasks and task. Choose with --table tasks or --table task.")
    if not found:
        return None
    if found[0] not in sa.inspect(connection).get_table_names() or len((found[0] + SUFFIX).encode()) > _NAME_MAX:
        message = f"{found[0]} cannot be renamed: it is no table but, for example, a view, or its name is too long."
        raise StartupError(message)
    return Source(connection, found[0])


def _shown(text: str) -> str:
    """Returns the beginning of the text, without characters that a terminal would obey."""
    return repr(text)[1:-1][:_NAME_MAX]


def lock(connection: sa.Connection, name: str) -> None:
    """Keep other transactions from using the table until the end of this one."""
    connection.exec_driver_sql(f"LOCK TABLE {_quoted(connection, name)} IN ACCESS EXCLUSIVE MODE")


def set_aside(connection: sa.Connection, name: str) -> None:
    """Rename the table, and the indexes whose names the first table of this service needs."""
    for index in () if has_our_key(connection) else _indexes:
        _rename(connection, "INDEX", index, index + SUFFIX)
    _rename(connection, "TABLE", name, name + SUFFIX)


def give_back(connection: sa.Connection, name: str) -> None:
    """Undo `set_aside`. `name` is the new name."""
    for index in _indexes:
        _rename(connection, "INDEX", index + SUFFIX, index)
    _rename(connection, "TABLE", name, name.removesuffix(SUFFIX))


def _rename(connection: sa.Connection, kind: str, old: str, new: str) -> None:
    names = f"{_quoted(connection, old)} RENAME TO {_quoted(connection, new)}"
    connection.exec_driver_sql(f"ALTER {kind} IF EXISTS {names}")


def _quoted(connection: sa.Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote(name)


class Source:
    """A table of another program."""

    def __init__(self, connection: sa.Connection, name: str) -> None:
        """Raises StartupError if the table has no column for something that every task needs."""
        self.name = name
        self._connection = connection
        with warnings.catch_warnings(action="ignore"):  # of types that SQLAlchemy does not know
            table = sa.Table(name, sa.MetaData(), autoload_with=connection, resolve_fks=False)
        self._table = table.alias("whole row")  # no column has this name
        exact_last = sorted(self._table.c, key=lambda c: c.name in _NAMES)  # it replaces one with a similar name
        plain = [(c.name.replace("_", "").lower(), c) for c in exact_last]
        there = dict(plain)
        self._columns = {name: there[each] for name, others in _NAMES.items() for each in others[::-1] if each in there}
        self._deleted = [c for name, c in plain if name in _DELETED]
        self._check_columns()
        self._rows = self._make_rows()

    def _check_columns(self) -> None:
        names = ", ".join(map(_shown, self._table.c.keys()))
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
        kept = [_shown(c.name) for c in self._table.c if c.name not in self._mapped]
        origins = {name: _shown(c.name) for name, c in self._columns.items()} | {"kept_fields": ", ".join(kept)}
        names = [name for name in (*_NAMES, "kept_fields") if name in _tasks.c]
        return [f"  {name}: {origins.get(name) or '-'}" for name in names]

    def count(self) -> int:
        """Returns the number of rows."""
        return self._connection.scalars(sa.select(sa.func.count()).select_from(self._table)).one()

    def rejected(self) -> list[str]:
        """Returns a line with id and reason for each row that cannot become a task."""
        query = sa.select(self._rows.c.old_id, self._rows.c.reason).where(self._rows.c.reason.is_not(None))
        return [f"  {_shown(old_id or '-')}: {reason}" for old_id, reason in self._connection.execute(query)]

    def same(self) -> list[str]:
        """Returns a text for each task that several rows, or a row and a stored task, would be: all their ids."""
        row = self._rows.c
        keys: Any = sa.select(row.user_id, row.id, row.old_id).where(row.reason.is_(None))
        if has_our_key(self._connection):
            keys = keys.union_all(sa.select(_tasks.c.user_id, _tasks.c.id, sa.cast(_tasks.c.id, sa.Text)))
        key = keys.subquery().c
        ids = sa.select(sa.func.array_agg(key.old_id)).group_by(key.user_id, key.id).having(sa.func.count() > 1)
        return [", ".join(map(_shown, each)) for each in self._connection.scalars(ids, self._new_ids())]

    def copy(self) -> None:
        """Store the rows as tasks."""
        values = self._task_values(missing_time=sa.func.now())
        made = sa.select(*values.values()).where(self._rows.c.reason.is_(None))
        self._connection.execute(sa.insert(_tasks).from_select([*values], made), self._new_ids())

    def changed(self) -> list[str]:
        """Returns the ids of the tasks that are not as `copy` makes them, and a name for each row of other tables."""
        values = self._task_values(missing_time=_tasks.c.created_at)  # a change sets only `updated_at`
        is_same = sa.and_(*(values[c.name] == c for c in _tasks.primary_key), self._rows.c.reason.is_(None))
        differs = sa.tuple_(*(_tasks.c[name] for name in values)).is_distinct_from(sa.tuple_(*values.values()))
        tasks = sa.select(sa.cast(_tasks.c.id, sa.Text)).select_from(_tasks.outerjoin(self._rows, is_same))
        others = [t for t in SQLModel.metadata.sorted_tables if t is not _tasks]
        rows = (sa.select(sa.literal(f"a row of {t.name}", sa.Text)).select_from(t) for t in others)
        return [*self._connection.scalars(tasks.where(differs).union_all(*rows), self._new_ids())]

    @property
    def _mapped(self) -> set[str]:
        """The columns whose values a task has as they are."""
        mapped = {c.name for name, c in self._columns.items() if name != "completed_at" and c.name.lower() != "status"}
        return mapped | {c.name for c in self._deleted}

    def _task_values(self, *, missing_time: Any) -> dict[str, Any]:
        row = self._rows.c
        times = {name: sa.func.coalesce(row[name], missing_time) for name in _TIMES}
        return {c.name: row[c.name] for c in _tasks.c if c.name in row} | times

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
            (row.user_id.is_(None), "there is no user_id"),
            (row.old_id.is_(None), "there is no id"),
            (row.title.is_(None), "there is no title"),
            (row.deleted, "it was deleted"),
            (row.completed.is_(None), "no known word or number says whether it is completed"),
            (sa.func.greatest(row.created_at, row.updated_at) == _NO_TIME, "a time is not in 0001-01-01 to 9999-12-31"),
            (row.is_no_jsonb, "a JSON value cannot be kept"),
            *((finds(sa.literal_column(f"'{path}'")), reason) for path, reason in _UNKEPT.items()),
        ]
        rules: Any = {rule.name: rule for rule in _tasks.constraints}
        broken: list[Any] = [
            (sa.literal_column(f"NOT ({rules[name].sqltext})"), reason) for name, reason in _REASONS.items()
        ]
        return sa.select(*row, sa.case(*reasons, *broken).label("reason")).subquery()

    def _made_values(self) -> dict[str, Any]:
        created, updated, completed = map(self._time, (*_TIMES, "completed_at"))
        old_id = self._text("id")
        word = sa.func.coalesce(_word(self._text("completed")), sa.cast(completed.is_not(None), sa.Text))
        json = sa.func.concat_ws(",", "", *(c for c in self._table.c if isinstance(c.type, sa.JSON)))
        is_no_jsonb = sa.func.regexp_replace(json, _JSON_ESCAPES, "", "g").regexp_match(_NO_JSONB)
        return {
            "old_id": old_id,
            "user_id": self._text("user_id"),
            "id": sa.case((old_id.regexp_match(_UUID, "i"), sa.cast(old_id, sa.Uuid)), else_=_IDS.c.new),
            "title": self._text("title"),
            "description": self._text("description"),
            "completed": sa.case((word.in_(_COMPLETED), sa.true()), (word.in_(_OPEN), sa.false())),
            "created_at": sa.func.coalesce(created, updated, completed),
            "updated_at": sa.func.coalesce(updated, sa.func.greatest(created, completed)),
            "kept_fields": sa.case((is_no_jsonb, sa.null()), else_=self._kept_fields()),
            "is_no_jsonb": is_no_jsonb,
            "deleted": sa.or_(sa.false(), *(_word(sa.cast(c, sa.Text)).not_in(_NO) for c in self._deleted)),
        }

    def _text(self, name: str) -> Any:
        return sa.cast(self._columns.get(name, sa.null()), sa.Text)

    def _time(self, name: str) -> Any:
        """Returns a time with a zone, that of the session if it has none, or infinity instead of one out of range."""
        column = self._columns.get(name, sa.null())
        time = sa.cast(column, sa.DateTime(timezone=True))
        return sa.case((column.between(*_SERVED), time), (column.is_not(None), _NO_TIME))

    def _kept_fields(self) -> Any:
        """Returns the object of the other columns that are not NULL, or NULL."""
        others = sa.func.to_jsonb(self._table.table_valued()).op("-")(sa.literal([*self._mapped], sa.ARRAY(sa.Text)))
        pair = sa.func.jsonb_each(others).table_valued("key", "value")
        present = sa.func.jsonb_typeof(pair.c.value) != "null"
        return sa.select(sa.func.jsonb_object_agg(pair.c.key, pair.c.value)).where(present).scalar_subquery()

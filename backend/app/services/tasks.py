"""The six operations on tasks. Each runs one SQL statement, restricted to the owner's rows."""

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from functools import cache, reduce
from itertools import accumulate, takewhile
from operator import add
from typing import Any, Final, NamedTuple, get_args
from unicodedata import normalize
from uuid import UUID, uuid5

import orjson
from asyncpg import Record
from sqlalchemy import (
    ARRAY,
    Boolean,
    Date,
    DateTime,
    Select,
    Text,
    TypeDecorator,
    all_,
    and_,
    any_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal_column,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlmodel import SQLModel, col
from uuid_utils.compat import uuid7

from app.core.database import Database, Statement, statement
from app.core.errors import (
    AppError,
    FieldError,
    InvalidRequestError,
    OutcomeUnknownError,
    PreconditionFailedError,
    StatementError,
    TaskNotFoundError,
    UnavailableError,
)
from app.models.task import (
    KEPT_COLUMN,
    LONG_COLUMNS,
    WIRE_COLUMNS,
    KeptTask,
    Task,
    WireTask,
    jsonable,
    kept_task,
    plain_type,
)
from app.schemas.task import UNCONDITIONAL, Conditions, TaskCreate, TaskQuery, TaskUpdate
from app.schemas.words import Sort
from app.services.cursors import Position, SortKey, decode_cursor, encode_cursor, page_after, sort_key
from app.services.fields import OTHER_PARAMETERS, check_fields, check_lists
from app.services.kept_fields import Kept, kept_text, refusal_of

# SQLAlchemy reserves the column names as parameters in INSERT and UPDATE: hence `owner` and `new_title`.
_OWNER: Final = col(Task.user_id) == bindparam("owner")
# `updated_at` is the row's version. It increases even if the clock stops or is set back.
_NEXT_VERSION: Final = func.greatest(func.now(), col(Task.updated_at) + text("interval '1 microsecond'"))
# Sent as text. For an array of times, asyncpg would query its type on each connection.
_VERSIONS: Final = ARRAY(DateTime(timezone=True))
_MATCH: Final = cast(bindparam("match", type_=ARRAY(Text)), _VERSIONS)
_NONE_MATCH: Final = cast(bindparam("none_match", type_=ARRAY(Text)), _VERSIONS)
# The task in the path, if its version fulfils If-Match and If-None-Match. NULL means no condition.
_MATCHES_REQUEST: Final = (
    _OWNER,
    col(Task.id) == bindparam("task_id"),
    or_(_MATCH.is_(None), col(Task.updated_at) == any_(_MATCH)),
    or_(_NONE_MATCH.is_(None), col(Task.updated_at) != all_(_NONE_MATCH)),
)

_NEW_KEPT: Final = cast(bindparam("kept", type_=Text), JSONB)

check_fields()
_COLUMNS: Final = SQLModel.metadata.tables["tasks"].c
_CREATED: Final = tuple(TaskCreate.model_fields)
_CHANGED: Final = tuple(TaskUpdate.__annotations__)
_CLEARED: Final = frozenset(name for name in _CHANGED if _COLUMNS[name].nullable)  # by null


class _TimeText(TypeDecorator[date]):
    """A date or time that is sent as text, because the driver takes Python's first and last one for infinite."""

    impl, cache_ok = Text, True

    def process_bind_param(self, value: date | None, _: object) -> str | None:
        return value.isoformat() if value else None


def _parameter(name: str, column: Any) -> Any:
    """Returns the parameter for a value of a column."""
    type_ = plain_type(column)
    if isinstance(type_, Date | DateTime):
        return cast(bindparam(name, type_=_TimeText), type_)
    return bindparam(name, type_=type_)


def _new(name: str) -> Any:
    return _parameter(f"new_{name}", _COLUMNS[name])


def _changed(name: str) -> Any:
    """Returns the new value of a column. A null counts as absent if the column cannot be NULL."""
    if name in _CLEARED:
        return case((bindparam(f"sets_{name}", type_=Boolean), _new(name)), else_=_COLUMNS[name])
    return func.coalesce(_new(name), _COLUMNS[name])


def _both(clause: Any, *, reads: bool, **kept: Any) -> tuple[Statement, Statement]:
    """Returns the statement, and the one for `UNKNOWN_FIELDS=keep`, which also sets `kept` and returns KEPT_COLUMN."""
    keeping = clause.values(**kept) if kept else clause
    returning = keeping.add_columns if reads else keeping.returning
    return statement(clause, reads=reads), statement(returning(KEPT_COLUMN), reads=reads)


_GET: Final = _both(select(*WIRE_COLUMNS).where(*_MATCHES_REQUEST), reads=True)
_CREATE: Final = _both(
    insert(Task)
    .values(user_id=bindparam("owner"), id=bindparam("task_id"), **{name: _new(name) for name in _CREATED})
    .on_conflict_do_nothing(index_elements=[col(Task.user_id), col(Task.id)])
    .returning(*WIRE_COLUMNS),
    reads=False,
    kept_fields=_NEW_KEPT,
)
_UPDATE: Final = _both(
    update(Task)
    .where(*_MATCHES_REQUEST)
    .values(updated_at=_NEXT_VERSION, **{name: _changed(name) for name in _CHANGED})
    .returning(*WIRE_COLUMNS),
    reads=False,
    # Name by name. `||` is NULL if one of the two is. What an earlier release has kept of a field that is set now is
    # removed, or it would be moved to the column later (docs/extend.md).
    kept_fields=func.nullif(
        func.coalesce(col(Task.kept_fields).op("||")(_NEW_KEPT), _NEW_KEPT, col(Task.kept_fields)).op("-")(
            bindparam("sent", type_=ARRAY(Text))
        ),
        literal_column("'{}'::jsonb"),
    ),
)
_COMPLETE: Final = _both(
    update(Task)
    .where(*_MATCHES_REQUEST)
    .values(completed=func.coalesce(_new("completed"), ~col(Task.completed)), updated_at=_NEXT_VERSION)
    .returning(*WIRE_COLUMNS),
    reads=False,
)
_DELETE: Final = _both(delete(Task).where(*_MATCHES_REQUEST).returning(*WIRE_COLUMNS), reads=False)


def _earlier_task(*kept: Any) -> Any:
    """Returns the SELECT of a task. Its column `fits` says whether the task has these values or was modified since."""
    content = (_COLUMNS[name].is_not_distinct_from(_new(name)) for name in _CREATED)
    fits = or_(col(Task.updated_at) != col(Task.created_at), and_(*content, *kept)).label("fits")
    columns = (*WIRE_COLUMNS, KEPT_COLUMN) if kept else WIRE_COLUMNS
    return select(*columns, fits).where(_OWNER, col(Task.id) == bindparam("task_id"))


_EARLIER: Final = (
    statement(_earlier_task(), reads=True),
    statement(_earlier_task(cast(KEPT_COLUMN, JSONB).is_not_distinct_from(_NEW_KEPT)), reads=True),
)

_FILTERS: Final = {  # combined with AND; `status` and `completed` may contradict each other
    **{
        name: _COLUMNS[name] == _parameter(name, _COLUMNS[name])
        for name in TaskQuery.model_fields
        if name in _COLUMNS and name not in OTHER_PARAMETERS
    },
    "status": col(Task.completed) == bindparam("status", type_=Boolean),
    # A regular expression costs at most in proportion to the text. ILIKE compares again at each of its positions.
    "search": or_(
        col(Task.title).regexp_match(bindparam("search", type_=Text), "i"),
        col(Task.description).regexp_match(bindparam("search", type_=Text), "i"),
    ),
}
_OPERATORS: Final = re.compile(r"[][{}()*+?.^$|\\]")  # of a regular expression (PostgreSQL manual, 9.7.3)
PAGE_MAX: Final = 1_048_576  # bytes of a page, so that nobody's lists keep the event loop busy for long
_FIELDS: Final = len(WIRE_COLUMNS)
_REST_MAX: Final = 60 * _FIELDS  # bytes of the JSON of a task without its long values


def _caseless(title: Any) -> Any:
    """Returns the SQL for what titles sort by: their lower case, by code point.

    The inner `lower` treats A to Z alike on every server. For other letters only the locale of the database knows more:
    neither ICU's collations nor PostgreSQL's own for Unicode exist on every server from 14 to 18.
    """
    return func.lower(func.lower(title.collate("C")).collate("default")).collate("C")


SORT_KEYS: Final[dict[str, SortKey]] = {
    **{word: sort_key(_COLUMNS[word]) for word in get_args(Sort) if word in _COLUMNS},
    "title": SortKey(col(Task.title), str, function=_caseless, version=" caseless"),
}
check_lists(_FILTERS, SORT_KEYS)
_KEY_NAMESPACE: Final = UUID("6e0c4a3a-6c27-4d0b-9a53-0b6a9c1f7d11")  # for ids from keys (RFC 9562 section 5.5)
_ROWS: Final[tuple[Callable[..., WireTask], ...]] = (WireTask, kept_task)  # without and with KEPT_COLUMN


class CreatedTask(NamedTuple):
    """A task. `replayed` means that an earlier request with the same key created it."""

    task: WireTask
    replayed: bool


class TaskPage(NamedTuple):
    """Tasks in the requested order. `next_cursor` is None on the last page."""

    tasks: list[WireTask]
    next_cursor: str | None


async def list_tasks(db: Database, user_id: str, query: TaskQuery, page_max: int = PAGE_MAX) -> TaskPage:
    """Returns one page of the user's tasks. Raises InvalidRequestError for an invalid cursor.

    The page ends before the task whose JSON would exceed `page_max` bytes.
    """
    filters, sort = _filters(query), query.ordering
    name = sort.removeprefix("-")
    key = SORT_KEYS[name]
    order = sort + key.version
    scope = repr((user_id, filters))
    values = {"owner": user_id, "limit": query.limit + 1, "page_max": page_max, **filters}
    in_nulls = False
    if query.cursor:
        position = decode_cursor(query.cursor, order, scope, key)
        in_nulls = position.key is None
        values |= {"after_id": position.id} if in_nulls else {"after_key": position.key, "after_id": position.id}
    page = _page(sort, frozenset(filters), resumed=bool(query.cursor), in_nulls=in_nulls, keeps=db.keeps)
    try:
        records = await db.fetch(page, **values)
    except StatementError as error:
        raise refusal_of(error) from None
    tasks = _fitting(records[: query.limit], page_max, keeps=db.keeps)
    if not tasks or not records[len(tasks) - 1]["next row"]:
        return TaskPage(tasks, None)
    return TaskPage(tasks, encode_cursor(_position(tasks[-1], name), order, scope))


async def get_task(db: Database, user_id: str, task_id: UUID, conditions: Conditions) -> WireTask:
    """Returns the task. Raises TaskNotFoundError or PreconditionFailedError."""
    return await _one(db, _GET, user_id, task_id, conditions)


async def create_task(
    db: Database, user_id: str, new: TaskCreate, key: str | None = None, kept: Kept | None = None
) -> CreatedTask:
    """Returns the new task, or the task that an earlier request with the same `key` created.

    The id is a UUIDv5 of user and key, or a UUIDv7 without a key. The database sets the times. Raises
    InvalidRequestError if the earlier request had other content, or if the task would keep too many fields.
    """
    task_id = uuid5(_KEY_NAMESPACE, f"{user_id} {key}") if key else uuid7()
    values = {f"new_{name}": getattr(new, name) for name in _CREATED}
    if db.keeps:
        values["kept"] = kept_text(kept)
    while True:
        # The id makes the statement idempotent: a second run inserts nothing.
        try:
            records = await db.fetch(_CREATE[db.keeps], idempotent=True, owner=user_id, task_id=task_id, **values)
        except StatementError as error:
            raise refusal_of(error) from None
        if records:
            return CreatedTask(_ROWS[db.keeps](*records[0]), replayed=False)
        try:
            return CreatedTask(await _earlier(db, user_id, task_id, values), replayed=key is not None)
        except TaskNotFoundError:
            continue  # deleted in the meantime, so the key is free again
        except UnavailableError as error:
            raise OutcomeUnknownError from error


async def _earlier(db: Database, user_id: str, task_id: UUID, values: dict[str, Any]) -> WireTask:
    """Returns the task of an earlier request with these values, or modified since.

    Raises TaskNotFoundError, or InvalidRequestError for other values.
    """
    records = await db.fetch(_EARLIER[db.keeps], owner=user_id, task_id=task_id, **values)
    if not records:
        raise TaskNotFoundError
    *row, fits = records[0]
    if not fits:
        error = FieldError("header/Idempotency-Key", "was sent before with another task")
        raise InvalidRequestError([error], "This task was saved before, with other content. Please load it again.")
    return _ROWS[db.keeps](*row)


async def update_task(
    db: Database, user_id: str, task_id: UUID, changes: TaskUpdate, conditions: Conditions, kept: Kept | None = None
) -> WireTask:
    """Returns the updated task. Without `changes` and fields to keep nothing is written.

    Raises TaskNotFoundError, PreconditionFailedError, or InvalidRequestError if the task would keep too many fields.
    """
    sent = {name for name, value in changes.items() if value is not None or name in _CLEARED}
    if not sent and not kept:
        return await get_task(db, user_id, task_id, conditions)
    values: dict[str, Any] = {f"new_{name}": changes.get(name) for name in _CHANGED}
    values |= {f"sets_{name}": name in sent for name in _CLEARED}
    if db.keeps:
        values |= {"kept": kept_text(kept), "sent": [*sent]}
    return await _one(db, _UPDATE, user_id, task_id, conditions, **values)


async def complete_task(
    db: Database, user_id: str, task_id: UUID, completed: bool | None, conditions: Conditions
) -> WireTask:
    """Returns the task after setting `completed`. None toggles the value atomically.

    Raises TaskNotFoundError or PreconditionFailedError.
    """
    return await _one(
        db, _COMPLETE, user_id, task_id, conditions, idempotent=completed is not None, new_completed=completed
    )


async def delete_task(db: Database, user_id: str, task_id: UUID, conditions: Conditions) -> WireTask:
    """Returns the task that was deleted. Raises TaskNotFoundError or PreconditionFailedError."""
    return await _one(db, _DELETE, user_id, task_id, conditions)


async def _one(
    db: Database,
    query: tuple[Statement, Statement],
    user_id: str,
    task_id: UUID,
    conditions: Conditions,
    *,
    idempotent: bool = True,
    **values: object,
) -> WireTask:
    try:
        records = await db.fetch(
            query[db.keeps],
            idempotent=idempotent and conditions == UNCONDITIONAL,  # a retry after the change would fail its condition
            owner=user_id,
            task_id=task_id,
            match=_texts(conditions.match),
            none_match=_texts(conditions.none_match),
            **values,
        )
    except StatementError as error:
        raise refusal_of(error) from None
    if not records:
        raise await _no_row_error(db, user_id, task_id, conditions)
    return _ROWS[db.keeps](*records[0])


def _texts(versions: Sequence[datetime] | None) -> list[str] | None:
    return None if versions is None else [version.isoformat() for version in versions]


async def _no_row_error(db: Database, user_id: str, task_id: UUID, conditions: Conditions) -> AppError:
    """Returns the error for a statement that matched no row. Needs a second statement if there are conditions."""
    missing = PreconditionFailedError(None) if conditions.must_exist else TaskNotFoundError()
    if conditions.match is None and conditions.none_match is None:
        return missing
    try:
        current = await get_task(db, user_id, task_id, UNCONDITIONAL)
    except TaskNotFoundError:
        return missing
    return PreconditionFailedError(entity_tag(current), conditions.failed_detail)


def entity_tag(task: WireTask) -> str:
    """Returns the strong entity tag of a task: its version in double quotes (RFC 9110 section 8.8.3)."""
    return f'"{task.updated_at}"'


def _filters(query: TaskQuery) -> dict[str, Any]:
    """Returns the values of the requested filters by name, as parameters of the statement."""
    asked = {name: value for name, value in vars(query).items() if name in _FILTERS}
    asked["status"] = None if query.status == "all" else query.status == "completed"
    search = query.search or query.q
    asked["search"] = search and _pattern(search)
    return {name: value for name, value in asked.items() if value not in (None, "", [])}


def _pattern(words: str) -> str:
    """Returns the regular expression for `words` as they are, and for other forms of the same letters."""
    literal = _literal(words)
    others = "".join(map(_forms, normalize("NFC", words)))
    return literal if literal == others else f"{literal}|{others}"


def _forms(letter: str) -> str:
    """Returns the expression for a letter in any case, composed or decomposed (Unicode NFC, NFD)."""
    if letter in "\u03a3\u03c3\u03c2":  # a sigma, final or not
        return "[\u03c3\u03c2]"
    title, decomposed = letter.title(), normalize("NFD", letter)
    # PostgreSQL tries lower and upper case only, but for a range also the letter itself, such as \u01c5.
    has_third_case = len(title) == 1 and title not in letter.lower() + letter.upper()
    composed = f"[{title}-{title}]" if has_third_case else _literal(letter)
    return composed if decomposed == letter else f"(?:{composed}|{decomposed})"


def _literal(words: str) -> str:
    return _OPERATORS.sub(r"\\\g<0>", words)


@cache
def _page(
    sort: Sort, filters: frozenset[str], *, resumed: bool, in_nulls: bool = False, keeps: bool = False
) -> Statement:
    """Returns the statement for a page. With `resumed` the page starts after a position; see `page_after`."""
    columns = (*WIRE_COLUMNS, KEPT_COLUMN) if keeps else WIRE_COLUMNS
    query = select(*columns).where(_OWNER, *(_FILTERS[name] for name in sorted(filters)))
    key, descending = SORT_KEYS[sort.removeprefix("-")], sort.startswith("-")
    ordered = page_after(query, key, col(Task.id), descending=descending, resumed=resumed, in_nulls=in_nulls)
    return statement(_bounded(ordered.limit(bindparam("limit"))), reads=True)


def _fitting(records: Sequence[Record], page_max: int, *, keeps: bool) -> list[WireTask]:
    """Returns the first tasks, at least one, whose JSON array has at most `page_max` bytes."""
    tasks: list[Any] = [WireTask(*record[:_FIELDS]) for record in records]
    if keeps:  # calls nothing for a row without kept fields
        kept = [row["kept_fields"] for row in records]
        tasks = [KeptTask(task, fields) if fields else task for task, fields in zip(tasks, kept, strict=True)]
    # JSON writes a control character in six bytes (RFC 8259 section 7).
    if not tasks or 6 * records[-1]["page weight"] + _REST_MAX * len(tasks) <= page_max:
        return tasks
    sizes = accumulate(len(orjson.dumps(task, default=jsonable)) + 1 for task in tasks)  # with a comma or a bracket
    return tasks[: max(1, sum(1 for _ in takewhile(page_max.__gt__, sizes)))]


def _bounded(page: Select[Any]) -> Select[Any]:
    """Returns the rows of the page until the weight of those before a row exceeds `page_max`.

    Each has two more columns, named as no field can be: `page weight`, the bytes of the long values up to this row, and
    `next row`, whether a row follows it.
    """
    rows = page.subquery()
    names = [name for name in (*LONG_COLUMNS, KEPT_COLUMN.name) if name in rows.c]
    sizes = [func.coalesce(func.octet_length(cast(rows.c[name], Text)), literal_column("0")) for name in names]
    size = reduce(add, sizes)
    weight = func.sum(size).over(rows=(None, 0))
    has_next = func.lead(true()).over(rows=(None, 0))
    weighed = select(
        rows, weight.label("page weight"), has_next.label("next row"), (weight - size).label("weight before")
    ).subquery()
    *columns, before = weighed.c
    return select(*columns).where(before <= bindparam("page_max"))


def _position(task: WireTask, name: str) -> Position:
    return Position(getattr(task, name), UUID(task.id))

"""A statement is compiled once, when its module is imported. What cannot work that way is refused there and then."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ARRAY,
    Boolean,
    ClauseElement,
    CompoundSelect,
    Delete,
    Float,
    Insert,
    Select,
    TextualSelect,
    Update,
)
from sqlalchemy.sql.visitors import iterate

from app.core.database.dialect import QuietDialect

_DIALECT: Final[Any] = QuietDialect()  # type: ignore[no-untyped-call]  # SQLAlchemy has no types for it
_FLOAT8, _NUMERIC = 701, 1700  # https://www.postgresql.org/docs/current/catalog-pg-type.html


class Statement(NamedTuple):
    """SQL for asyncpg: `$1` stands for the value of the first of `names`. With `reads` it changes nothing.

    `binders` are SQLAlchemy's conversions for the values, in the same order; there are none if no type has one.
    """

    sql: str
    names: tuple[str, ...]
    reads: bool
    binders: tuple[Callable[[Any], Any] | None, ...] = ()

    def arguments(self, values: Mapping[str, object]) -> list[object]:
        """Returns the values in the order of the SQL, converted. Raises TypeError for missing and unknown names."""
        if values.keys() != set(self.names):
            raise self.mismatch(values)
        binders = self.binders or (None,) * len(self.names)
        return [bind(values[name]) if bind else values[name] for name, bind in zip(self.names, binders, strict=True)]

    def mismatch(self, values: Mapping[str, object]) -> TypeError:
        """Returns the error for values that are not those of the statement."""
        missing, unknown = set(self.names) - values.keys(), values.keys() - set(self.names)
        message = f"missing: {_listed(missing)}; unknown: {_listed(unknown)}; in the values for {self.sql!r}"
        return TypeError(message)


def statement(clause: ClauseElement, *, reads: bool) -> Statement:
    """Returns the clause compiled for asyncpg. `reads` says that it changes nothing, so that it may be retried.

    Every value is a `bindparam` without a default. Raises TypeError if `reads` contradicts the clause, and ValueError
    for what only SQLAlchemy's own execution would do: literals, lists in `IN`, defaults computed in Python, and
    columns whose values it converts.
    """
    if reads and not _only_reads(clause):
        message = f"reads=True, but this may change rows: {clause}"
        raise TypeError(message)
    compiled: Any = clause.compile(dialect=_DIALECT)
    names = tuple(compiled.positiontup)
    if problems := [*_problems(compiled)]:
        message = f"{'; '.join(problems)}. Or use a Session for this statement: {compiled.string}"
        raise ValueError(message)
    binders = tuple(_binder(compiled.binds[name].type) for name in names)
    return Statement(compiled.string, names, reads, binders if any(binders) else ())


def _only_reads(clause: ClauseElement) -> bool:
    """Returns whether it is a SELECT without a data-modifying WITH. Nobody can tell for a `text()`."""
    changes = Insert | Update | Delete | TextualSelect
    return isinstance(clause, Select | CompoundSelect) and not any(
        isinstance(part, changes) for part in iterate(clause)
    )


def _problems(compiled: Any) -> Iterator[str]:
    computed = {column.key: column for column in (*(compiled.insert_prefetch or ()), *(compiled.update_prefetch or ()))}
    for column in computed.values():
        yield f"{column} has a default in Python, which is not computed here: use server_default or a bindparam"
    for name in dict.fromkeys(compiled.positiontup):
        bind = compiled.binds[name]
        if bind.expanding:
            yield f"{name} is a list for IN: write `== any_(bindparam({name!r}, type_=ARRAY(...)))`"
        elif not bind.required and name not in computed:
            yield f"{name} is the literal {bind.value!r}: write `bindparam({name!r})` and pass the value to `fetch`"
    for name, _, _, type_ in getattr(compiled, "_result_columns", ()):
        if _is_converted(type_):
            yield f"SQLAlchemy would convert the column {name} of {type_!r}, asyncpg does not: cast it to Text"


def _binder(type_: Any) -> Callable[[Any], Any] | None:
    if isinstance(type_, Boolean) or (isinstance(type_, ARRAY) and _binder(type_.item_type) is None):
        return None  # SQLAlchemy's would check what asyncpg checks, and copy the list
    binder: Callable[[Any], Any] | None = type_.dialect_impl(_DIALECT).bind_processor(_DIALECT)
    return binder


def _is_converted(type_: Any) -> bool:
    if isinstance(type_, ARRAY):
        return _is_converted(type_.item_type)
    oid = _FLOAT8 if isinstance(type_, Float) else _NUMERIC  # only numbers depend on what the server sends
    return type_.dialect_impl(_DIALECT).result_processor(_DIALECT, oid) is not None


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"

"""Statements that are compiled once, at import. A clause that needs more than that is an error at import."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import ARRAY, Boolean, ClauseElement, CompoundSelect, Float, Select
from sqlalchemy.dialects.postgresql.asyncpg import PGCompiler_asyncpg

from app.core.database.dialect import QuietDialect

_FLOAT8, _NUMERIC = 701, 1700  # https://www.postgresql.org/docs/current/catalog-pg-type.html


def _noting(visit: Callable[..., Any]) -> Any:
    def visit_and_note(compiler: "_Compiler", *clauses: Any, **options: Any) -> Any:
        compiler.may_change = True
        return visit(compiler, *clauses, **options)

    return visit_and_note


class _Compiler(PGCompiler_asyncpg):
    """Records whether the SQL may change rows. SQLAlchemy's traversal of a clause does not visit every part."""

    may_change = False

    visit_insert = _noting(PGCompiler_asyncpg.visit_insert)
    visit_update = _noting(PGCompiler_asyncpg.visit_update)
    visit_delete = _noting(PGCompiler_asyncpg.visit_delete)
    visit_textclause = _noting(PGCompiler_asyncpg.visit_textclause)  # raw SQL may change rows
    visit_textual_select = _noting(PGCompiler_asyncpg.visit_textual_select)


class _Dialect(QuietDialect):
    supports_statement_cache = True
    statement_compiler = _Compiler


# Some conversions need the driver. SQLAlchemy's dialects have no type hints.
_DIALECT: Final[Any] = _Dialect(dbapi=_Dialect.import_dbapi())  # type: ignore[no-untyped-call]


class Statement(NamedTuple):
    """SQL for asyncpg. `$1` is the value of the first of `names`. `reads` means that the statement changes nothing.

    `binders` are SQLAlchemy's conversions of the values, in the order of `names`. Empty if no value needs one.
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
    """Returns the clause compiled for asyncpg. `reads` means that it changes nothing, so that it may be retried.

    Every value must be a `bindparam` without a default. Raises TypeError if `reads` contradicts the clause. Raises
    ValueError for features that only SQLAlchemy's own execution supports: literals, lists in `IN`, defaults computed in
    Python, and columns whose values SQLAlchemy converts.
    """
    compiled: Any = clause.compile(dialect=_DIALECT)
    if reads and (not isinstance(clause, Select | CompoundSelect) or compiled.may_change):
        message = f"reads=True, but this may change rows, or has a text(): pass reads=False for {compiled.string}"
        raise TypeError(message)
    names = tuple(compiled.positiontup)
    if problems := [*_problems(compiled)]:
        raise ValueError(f"{'; '.join(problems)}. Or use a Session for this statement: {compiled.string}")
    binders = tuple(_binder(compiled.binds[name].type) for name in names)
    return Statement(compiled.string, names, reads, binders if any(binders) else ())


def _problems(compiled: Any) -> Iterator[str]:
    computed = {column.key: column for column in (*(compiled.insert_prefetch or ()), *(compiled.update_prefetch or ()))}
    for column in computed.values():
        named = getattr(column, "original", column)  # in a VALUES of several rows
        yield f"{named} has a default in Python, which is not computed here: use server_default or a bindparam"
    for name in dict.fromkeys(compiled.positiontup):
        bind = compiled.binds[name]
        if bind.expanding:
            yield f"{name} is a list for IN: write `== any_(bindparam({name!r}, type_=ARRAY(...)))`"
        elif bind.literal_execute:
            yield f"{name} would be written into the SQL at each execution: leave out literal_execute"
        elif (not bind.required or bind.value is not None) and name not in computed:
            yield f"{name} is the literal {bind.value!r}: write `bindparam({name!r})` and pass the value to `fetch`"
    for name, _, _, type_ in getattr(compiled, "_result_columns", ()):
        if _is_converted(type_):
            yield f"SQLAlchemy would convert the column {name} of {type_!r}, asyncpg does not: cast it to Text"


def _binder(type_: Any) -> Callable[[Any], Any] | None:
    impl = type_.dialect_impl(_DIALECT)
    if isinstance(impl, Boolean) or (isinstance(impl, ARRAY) and _binder(impl.item_type) is None):
        return None  # asyncpg checks these itself; SQLAlchemy's would also copy lists
    binder: Callable[[Any], Any] | None = impl.bind_processor(_DIALECT)
    return binder


def _is_converted(type_: Any) -> bool:
    impl = type_.dialect_impl(_DIALECT)
    if isinstance(impl, ARRAY):
        return impl.as_tuple or _is_converted(impl.item_type)
    oid = _FLOAT8 if isinstance(impl, Float) else _NUMERIC  # the server's type matters only for numbers
    return impl.result_processor(_DIALECT, oid) is not None


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"

"""Checks at import: a field of a task that is only in some of its places keeps the service from starting."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import fields
from typing import Any, Final, get_args, get_type_hints

from pydantic import TypeAdapter
from sqlalchemy import JSON, DateTime, Enum
from sqlmodel import SQLModel

from app.models.task import WireTask, plain_type
from app.schemas.task import TaskCreate, TaskQuery, TaskResponse, TaskUpdate
from app.schemas.words import Sort

# JSON has no such types, and strict mode converts nothing.
_NO_JSON: Final = {"date", "datetime", "time", "timedelta", "uuid", "enum", "decimal", "tuple", "set", "frozenset"}
_CONVERTERS: Final = {"function-before", "function-wrap", "function-plain"}  # validators that see the JSON first
OTHER_PARAMETERS: Final = {"q", "sort", "sort_by", "order", "sort_order", "limit", "cursor"}  # of lists: no filters
_TAKEN: Final = {"owner", "page_max", "after_key", "after_id", "idempotent"}


def check_fields() -> None:
    """Raises TypeError, with what to do, for a field that some schema lacks, or a type that cannot work."""
    replied, wired = [*TaskResponse.model_fields], [field.name for field in fields(WireTask)]
    if replied != wired:
        raise TypeError(f"Give WireTask and TaskResponse the same fields in the same order, not {wired} and {replied}.")
    for name in wired:
        _check_column(name, plain_type(SQLModel.metadata.tables["tasks"].c[name]))
    updated = get_type_hints(TaskUpdate, include_extras=True)
    created = {name: field.rebuild_annotation() for name, field in TaskCreate.model_fields.items()}
    for name, annotation in (*created.items(), *updated.items()):
        if name not in replied:
            raise TypeError(f"Add {name} to TaskResponse, WireTask and Task: TaskCreate or TaskUpdate has it.")
        _check_type(name, annotation)


def _check_column(name: str, type_: Any) -> None:
    if isinstance(type_, JSON):
        raise TypeError(f"Give {name} columns of its own, or sa_type=ARRAY(Text): WireTask cannot have JSON.")
    if isinstance(type_, Enum) and type_.enum_class and type_.enums != [each.value for each in type_.enum_class]:
        kind = type_.enum_class.__name__
        # A native enum needs CREATE TYPE, which Alembic does not write for a new column.
        advice = f"sa_type=Enum({kind}, native_enum=False, values_callable=lambda kind: [each.value for each in kind])"
        raise TypeError(f"Write {advice} at Task.{name}: the table has the names of {kind}, requests have the values.")


def _check_type(name: str, annotation: Any) -> None:
    column = plain_type(SQLModel.metadata.tables["tasks"].c[name])
    for part in _parts(TypeAdapter(annotation).core_schema):
        kind = part.get("type")
        if kind in _NO_JSON and part.get("strict") is not False:
            raise TypeError(f"Write Annotated[..., Field(strict=False)] at {name}: strict JSON has no {kind}.")
        if kind == "decimal" and "max_digits" not in part:
            raise TypeError(f"Write Field(max_digits=...) at {name}: the driver sends 0 for a very large number.")
        if kind == "datetime" and isinstance(column, DateTime):
            constraint = "aware" if column.timezone else "naive"
            if part.get("tz_constraint") != constraint:
                raise TypeError(f"Write {constraint.title()}Datetime at {name}: its column is {column!r}.")


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the parts of a pydantic schema that see the JSON of a request as it is."""
    if isinstance(schema, Mapping) and schema.get("type") not in _CONVERTERS:
        yield schema
        for part in schema.values():
            yield from _parts(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _parts(part)


def check_lists(filters: Container[str], sort_keys: Container[str]) -> None:
    """Raises TypeError, with what to do, for a parameter of lists or a word of `sort` that has no effect."""
    for name in TaskQuery.model_fields.keys() - OTHER_PARAMETERS:
        if name in _TAKEN:
            raise TypeError(f"Rename {name} in TaskQuery: the statements of lists have this parameter.")
        if name not in filters:
            raise TypeError(
                f"Add {name} to _FILTERS in services/tasks.py: TaskQuery has it, and Task has no such column."
            )
    for name in {word.removeprefix("-") for word in get_args(Sort)}:
        if name not in sort_keys or name not in TaskResponse.model_fields:
            raise TypeError(f"Add {name} to SORT_KEYS in services/tasks.py and to TaskResponse: words.Sort has it.")

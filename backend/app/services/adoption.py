"""Tells the tables of this service from those of other programs."""

from typing import Any

from sqlalchemy import Connection, inspect
from sqlmodel import SQLModel

from app.models.task import Task

_tasks: Any = SQLModel.metadata.tables[str(Task.__tablename__)]


def has_our_key(connection: Connection) -> bool:
    """Returns whether `tasks` has the primary key of this service, which the tables of other programs do not have."""
    inspector = inspect(connection)
    if not inspector.has_table("tasks"):
        return False
    types = {c["name"]: c["type"].compile(connection.dialect) for c in inspector.get_columns("tasks")}
    key = inspector.get_pk_constraint("tasks")["constrained_columns"]
    return {name: types[name] for name in key} == {
        c.name: c.type.compile(connection.dialect) for c in _tasks.primary_key
    }

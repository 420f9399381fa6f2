"""The engine and the statements that run on it."""

from app.core.database.engine import Database
from app.core.database.pool import USER
from app.core.database.statement import Statement, statement

__all__ = ["USER", "Database", "Statement", "statement"]

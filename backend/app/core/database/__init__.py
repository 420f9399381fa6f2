"""The one engine, the statements that run on it, and what is known about its database."""

from app.core.database.engine import Database
from app.core.database.statement import Statement, statement

__all__ = ["Database", "Statement", "statement"]

"""The one engine, the statements that run on it, and what is known about its database."""

from app.core.database.engine import Database, Statement, statement

__all__ = ["Database", "Statement", "statement"]

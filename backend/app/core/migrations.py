"""Brings the database to the newest revision of `alembic/`."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from app.core.errors import StartupError

_INI: Final = Path(__file__).parents[3] / "alembic.ini"


def alembic_config(dsn: str | None = None) -> Config:
    """Returns Alembic's configuration; without a `dsn`, `alembic/env.py` takes it from the settings."""
    config = Config(_INI)
    config.attributes["dsn"] = dsn
    return config


def migrate(dsn: str) -> None:
    """Upgrade to the newest revision. Safe to call from several services at once.

    Raises StartupError where the database cannot be reached or refuses.
    """
    try:
        command.upgrade(alembic_config(dsn), "head")
    except CommandError as error:
        message = f"The database could not be migrated: {error}"
        raise StartupError(message) from error

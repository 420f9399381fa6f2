"""Upgrades the database to the newest revision in `alembic/`."""

import logging
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from app.core.database.faults import may_recover, probe_delays
from app.core.errors import StartupError
from app.core.stopping import pause

VERSION_TABLE: Final = "tasks_api_version"  # Alembic's default would be the table of another program in the schema
_INI: Final = Path(__file__).parents[4] / "alembic.ini"

_logger = logging.getLogger(__name__)


def alembic_config(dsn: str | None = None) -> Config:
    """Returns Alembic's configuration. Without a `dsn`, `alembic/env.py` uses the settings."""
    config = Config(_INI)
    config.attributes["dsn"] = dsn
    return config


def migrate(dsn: str) -> None:
    """Upgrade to the newest revision. Waits while the database is unavailable. Several services may call it at once.

    Raises StartupError if the migration fails for any other reason, and Stopped after a signal.
    """
    for delay in probe_delays():  # pragma: no branch  # the delays never end
        try:
            command.upgrade(alembic_config(dsn), "head")
        except CommandError as error:
            cause = error.__cause__
            if cause is None or not may_recover(cause):
                message = f"The database could not be migrated: {error}"
                raise StartupError(message) from error
            _logger.warning("waiting for the database: %s", error)
            pause(delay)
        else:
            return

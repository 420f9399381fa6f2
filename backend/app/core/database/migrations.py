"""Upgrades the database to the newest revision in `alembic/`."""

import logging
from collections import Counter
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from app.core.database.faults import ConnectError, may_recover, probe_delays, server_error_text
from app.core.errors import StartupError
from app.core.project import ROOT
from app.core.stopping import pause

VERSION_TABLE: Final = "tasks_api_version"  # Alembic's default would be the table of another program in the schema
_INI: Final = ROOT / "alembic.ini"
_REFUSALS_MAX: Final = 30  # with the same text, after about two minutes
_HINT: Final = "; if this is a pooler, set DATABASE_URL_UNPOOLED to a direct connection"

_logger = logging.getLogger(__name__)


def alembic_config(dsn: str | None = None) -> Config:
    """Returns Alembic's configuration. Without a `dsn`, `alembic/env.py` uses the settings."""
    config = Config(_INI)
    config.attributes["dsn"] = dsn
    return config


def migrate(dsn: str) -> None:
    """Upgrade to the newest revision. Waits while the database is unavailable. Several services may call it at once.

    Raises StartupError if the migration fails for any other reason, or is refused with the same text again and again,
    by a server or by DNS. Raises Stopped after a signal.
    """
    refusals: Counter[str] = Counter()
    for delay in probe_delays():  # pragma: no branch  # the delays never end
        try:
            command.upgrade(alembic_config(dsn), "head")
        except CommandError as error:
            cause = error.__cause__
            text = server_error_text(cause)
            message = f"The database could not be migrated: {error}{_HINT if text else ''}"
            if isinstance(cause, ConnectError) and cause.lasts is None:
                text = str(cause)
            refusals[text] += bool(text)
            if cause is None or not may_recover(cause) or refusals[text] >= _REFUSALS_MAX:
                raise StartupError(message) from error
            _logger.warning("waiting for the database: %s", error)
            pause(delay)
        else:
            return

"""Where the service finds its files, whatever the working directory is."""

import os
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[3]  # the directory of alembic.ini


def home() -> Path:
    """Returns the directory of `.env` and of relative paths in the settings.

    It is the working directory if that has a `.env`, else ROOT.
    """
    return Path.cwd() if os.path.lexists(".env") else ROOT

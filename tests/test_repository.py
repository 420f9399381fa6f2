"""The files around the service: its version."""

import re
import tomllib
from pathlib import Path
from typing import Final

from app import __version__

ROOT: Final = Path(__file__).parents[1]


def test_the_version_is_written_in_one_place_and_the_newest_release_in_the_changelog_has_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    released = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert "version" in project["dynamic"]
    assert released[:1] in ([], [__version__])

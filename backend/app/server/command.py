"""The command line of `python -m app`, and the lines with which it says what it runs."""

import logging
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Final
from urllib.parse import urlsplit

from app import __version__
from app.core import project
from app.core.config import Settings
from app.core.database.dsn import parse_dsn
from app.http.authorization import MCP_PATH

_INDENT: Final = " " * 6
_DESCRIPTION: Final = f"""\
Serve the Tasks API. These settings come from the environment, and from the file .env in the working directory, or
else from {project.ROOT / ".env"}. The directory of .env is also that of relative paths.
"""

_logger = logging.getLogger("app")


def read_arguments(arguments: Sequence[str]) -> None:
    """Answer --help and --version. Any other argument ends the program, because settings are no arguments."""
    parser = ArgumentParser(
        "python -m app",
        description="\n".join([_DESCRIPTION, *map(_setting, Settings.model_fields)]),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.exit(2, f"{_advice(*unknown)}\n")


def log_summary(settings: Settings) -> None:
    """Log the version, which file, database and authentication the service uses, and whether it serves agents."""
    _logger.info("Tasks API %s", __version__)
    used, other = project.home() / ".env", project.ROOT / ".env"
    if not used.exists():
        _logger.info("Settings: no .env")
    elif other.exists() and not used.samefile(other):
        _logger.warning("Settings: %s, not %s", used, other)
    else:
        _logger.info("Settings: %s", used)
    _logger.info("Database: %s", _database(settings))
    _logger.log(logging.INFO if settings.authenticates else logging.WARNING, "Authentication: %s", _auth(settings))
    if settings.serves_tools:
        _logger.info("Tools for agents: %s", MCP_PATH)


def _setting(name: str) -> str:
    field = Settings.model_fields[name]
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    text = str(field.description) if default in (None, "") else f"{field.description} Default: {default}"
    return f"  {name.upper()}\n{fill(text, 100, initial_indent=_INDENT, subsequent_indent=_INDENT)}"


def _advice(argument: str, following: str = "", *_: str) -> str:
    """Returns the way to the setting that is meant. A value may be a secret, so only a number is repeated."""
    option, has_value, value = argument.partition("=")
    name = option.strip("-").replace("-", "_")
    if name.lower() not in Settings.model_fields:
        return f"{option}: is not known; settings come from the environment or .env, and --help lists them"
    value = value if has_value else following
    return f"{option}: set {name.upper()}={value if value.isdecimal() else '…'} in the environment or in .env instead"


def _database(settings: Settings) -> str:
    if settings.database_url:
        return ", ".join(dict.fromkeys(parse_dsn(settings.database_url.get_secret_value())["host"]))
    data = settings.embedded_postgres_path
    return f"embedded, {data.relative_to(Path.cwd()) if data.is_relative_to(Path.cwd()) else data}"


def _auth(settings: Settings) -> str:
    if settings.auth_jwks_url:
        return f"by the keys of {urlsplit(settings.auth_jwks_url)._replace(query='', fragment='').geturl()}"
    return "by secret" if settings.auth_jwt_secret else "off"

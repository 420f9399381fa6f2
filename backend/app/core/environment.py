"""Checks of the environment and `.env`. A slip stops the start if it could turn authentication off."""

import logging
import os
import re
import socket
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from io import StringIO
from typing import Final

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream
from dotenv.variables import Variable, parse_variables

from app.core.errors import StartupError
from app.core.project import home
from app.core.telemetry import SWITCH, is_collected

_LENGTH_MAX: Final = 65_536  # characters; a device never ends
_SWITCHES: Final = ("AUTH_JWT_SECRET", "BETTER_AUTH_SECRET", "AUTH_JWKS_URL")
# Names that can only mean authentication, slips such as `AUTH-JWT-SECRET` and `"AUTH_JWT_SECRET"` included.
_MEANT: Final = re.compile(r"\W*(?:(?:auth|jwt|jwks)[\W_]|better_auth_secret\b)", re.IGNORECASE)
_SIMILAR: Final = 0.86  # the ratio of difflib for AUTH_ISSUERS is greater, that for AUTH_SECRET smaller
_SLIP: Final = 0.9  # one edit in a name of 12 characters; the ratio of DATABASE_USER and DATABASE_URL is smaller
# Other text may be a line of a secret, and .env has the excluded names for compose.yaml.
_SHOWN: Final = re.compile(r"(?!COMPOSE_|(FASTAPI_)?OTEL_|POSTGRES_PASSWORD\Z)[\w.-]{1,40}")
_TELEMETRY: Final = re.compile("(FASTAPI_)?OTEL_")
_OF_LOGS: Final = re.compile("OTEL_(LOGS|EXPORTER_OTLP_LOGS|BLRP)_")
_QUOTED: Final = re.compile(r"""\s*(["'])((?:(?!\1).)*)\1\s*""", re.DOTALL)
_SWALLOWED: Final = re.compile(rf"\n\s*(?:export\s+)?{_MEANT.pattern}", re.IGNORECASE)

# Conda and some shells export HOST as the name of a platform or of this machine, such as x86_64-conda-linux-gnu.
_FOREIGN_HOST: Final = re.compile(r"(?=.*[a-z])\w+(-[\w.]+)*", re.IGNORECASE)

_logger = logging.getLogger("app")


def drop_foreign_host() -> None:
    """Remove a HOST from the environment, with a warning, if it is the name of something else and not an address.

    The default, or the HOST of `.env`, then holds. A name with a domain was meant for this service, so it is kept.
    """
    host = os.environ.get("HOST", "")
    if _FOREIGN_HOST.fullmatch(host):
        try:
            socket.getaddrinfo(host, None)
        except (OSError, UnicodeError):
            del os.environ["HOST"]
            _logger.warning("HOST: %s is not an address and is ignored; other programs set this variable too", host)


def check_environment(settings: Collection[str]) -> None:
    """Raises StartupError for an unreadable line of `.env`, and for a name of authentication that is empty or not among
    `settings`. The text never shows a value. Copies the variables of OpenTelemetry from `.env` to the environment.
    """
    if (home() / ".env").is_fifo():  # as of 1Password, which asks its user first
        _logger.warning(".env: is a named pipe; waiting for the program that writes it")
    text = _dotenv_text()
    problems = [f".env: line {line} is not NAME=value, or its quote is not closed" for line in _unreadable(text)]
    problems += [f".env: {name} refers to a variable ${{…}} that is not set" for name in _unset(text, settings)]
    if not problems:
        given = {**dotenv_values(stream=StringIO(text)), **os.environ}
        for name in filter(_TELEMETRY.match, given):  # the SDK reads only the environment
            os.environ[name] = unwrapped(given[name] or "")
        problems = [*_ignored({name.upper(): unwrapped(value or "") for name, value in given.items()}, settings)]
    if problems:
        raise StartupError("\n".join(problems))


def unwrapped(value: str) -> str:
    """Returns `value` without white space and quotation marks around it. `docker --env-file` keeps both."""
    quoted = _QUOTED.fullmatch(value)
    return (quoted[2] if quoted else value).strip()


def name_warnings(settings: Collection[str]) -> Iterator[str]:
    """Yields a sentence with the names that are ignored, and one with the `settings` that `.env` has more than once."""
    names = [binding.key for binding in parse_stream(StringIO(_dotenv_text())) if binding.key]
    if unknown := [*_unknown_names({*filter(_SHOWN.fullmatch, names)}, settings)]:
        yield f"not settings of this service, and ignored: {', '.join(unknown)}"
    count = Counter(map(str.upper, names))
    ignored = _OF_LOGS if is_collected() else _TELEMETRY
    idle = sorted(name for name in os.environ if ignored.match(name) and name != SWITCH)
    if idle and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true":  # which switches them off on purpose
        reason = "the log is only written to stdout" if is_collected() else f"{SWITCH} is not true"
        yield f"without effect, because {reason}: {', '.join(idle)}"
    if repeated := sorted(name for name in count.keys() & settings if count[name] > 1):
        yield f".env: has more than one line, and the last one counts: {', '.join(repeated)}"


def _unknown_names(in_file: set[str], settings: Collection[str]) -> Iterator[str]:
    """Yields each name in `.env` that is not among `settings`, and each name in the environment that resembles one.

    HOST and PORT resemble too many names. A name with a digit, such as DATABASE_URL2, means something else.
    """
    long = [name for name in settings if len(name) > len("HOSTS")]
    for name in sorted(name for name in in_file | os.environ.keys() if name.upper() not in settings):
        meant = [] if re.search("[0-9]", name) else get_close_matches(name.upper(), long, 1, _SLIP)
        if meant or name in in_file:
            yield f"{name} (did you mean {meant[0]}?)" if meant else name


def _dotenv_text() -> str:
    """Returns the content, empty without the file. Raises StartupError for what is no readable file of settings.

    A container engine makes a directory of a missing file.
    """
    path = home() / ".env"
    try:
        if not os.path.lexists(path):
            return ""
        with path.open(encoding="utf-8") as file:
            text = file.read(_LENGTH_MAX + 1)
    except OSError as error:
        raise StartupError(f".env: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if len(text) > _LENGTH_MAX:
        raise StartupError(f".env: {path} is longer than {_LENGTH_MAX:,} characters, so it is no file of settings")
    if "\0" in text:  # also in UTF-16 without a byte order mark
        raise StartupError(".env: must be UTF-8 text")
    return text


def _unreadable(text: str) -> Iterator[int]:
    """Yields the numbers of the lines of `.env` that do not set what they seem to set."""
    for binding in parse_stream(StringIO(text)):
        if binding.error or (binding.key and _is_misread(binding)):
            statement = binding.original.string  # begins with the blank lines before it
            yield binding.original.line + statement.removesuffix(statement.lstrip()).count("\n")


def _is_misread(binding: Binding) -> bool:
    """Returns whether there is no `=`, the name has a stray character, or a quote has swallowed further lines."""
    name = binding.key or ""
    plain = r"\w+" if _MEANT.match(name) else r"[\w.-]+"
    has_stray = not re.fullmatch(plain, name, re.ASCII)
    return bool(binding.value is None or has_stray or _SWALLOWED.search(binding.original.string.strip()))


def _unset(text: str, settings: Collection[str]) -> Iterator[str]:
    """Yields each setting of `.env` that refers to a variable that is set neither above it nor in the environment."""
    known = {*os.environ}
    for binding in parse_stream(StringIO(text)):
        parts = [part for part in parse_variables(binding.value or "") if isinstance(part, Variable)]
        if any(part.default is None and part.name not in known for part in parts) and binding.key:
            yield from {binding.key.upper()}.intersection(settings)
        known.add(binding.key or "")


def _ignored(given: Mapping[str, str | None], settings: Collection[str]) -> Iterator[str]:
    """Yields a sentence for each name that would be ignored.

    While authentication is on, such a name may belong to another program, as `AUTH_SECRET` to Auth.js. Only a name that
    resembles a setting is a slip then.
    """
    authenticates = any(map(given.get, _SWITCHES))
    names = [*filter(_MEANT.match, settings)]
    for name, value in given.items():
        if name in names:
            if not value:
                yield f"{name}: is empty; give it a value, or remove it"
        elif get_close_matches(name, names, cutoff=_SIMILAR) or (_MEANT.match(name) and not authenticates):
            yield f"{name}: is not a setting of this service; correct it or unset it (.env.example lists the settings)"

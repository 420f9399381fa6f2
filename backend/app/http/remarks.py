"""What the line of a request says besides method, route, status and time: names, and the client if LOG_CLIENT is set.

Clients choose the names of unknown fields, paths and origins. A line shows only those that look like words of a
developer.
"""

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any, Final

from starlette.types import Scope

from app.core.logging import RECORD_ATTRIBUTES
from app.models.task import USER_ID_PATTERN

REMARKS: Final = "app.remarks"  # key in the scope for the members that the line gets
ABORTED: Final = "app.aborted"  # key in the scope for the reason why a reply was lost or is incomplete
_TAKEN: Final = {*RECORD_ATTRIBUTES, "request_id", "method", "route", "status", "duration_ms"}
_NAMES_MAX: Final = 20
_SEGMENTS_MAX: Final = 10
# Letters with at most one digit at the end. Ids, tokens and hashes have other digits or more letters in a row.
_WORD: Final = "[._]{0,2}[A-Za-z]{1,20}(?:[._-][A-Za-z]{1,20}){0,3}[0-9]?"
_SEGMENT: Final = re.compile(_WORD)
_NAME: Final = re.compile(f"{_WORD}(?:/(?:{_WORD}|[0-9]{{1,3}})){{0,4}}")  # also of a field in a list or object
# What follows /api, /api/tasks or /users is a user, unless it is a word that frontends put there by mistake.
_USER: Final = re.compile(
    r"(/(?:api(?:/+(?:api|v[0-9.]+))*(?:/+(?:tasks?|todos?))?|users?)/+)"
    r"(?!(?:auth|me|tasks?|todos?|users?)(?:/|\Z))[^/]+",
    re.IGNORECASE,
)
_ORIGIN: Final = re.compile(r"null|[a-z][a-z0-9+.-]{0,19}://[A-Za-z0-9._:\[\]-]{1,253}")


def remark(scope: Scope, **members: Any) -> None:
    """Add members to the line of the request. An empty value adds none. Raises ValueError for a name that is taken."""
    if taken := members.keys() & _TAKEN:
        raise ValueError(f"the log has members of its own with these names: {', '.join(sorted(taken))}")
    scope[REMARKS].update((name, value) for name, value in members.items() if value)


def shown_names(names: Iterable[str]) -> list[str]:
    """Returns the first names, each once. `(other)` stands for a name that could be a value, such as an address."""
    return [*dict.fromkeys(name if _NAME.fullmatch(name) else "(other)" for name in names)][:_NAMES_MAX]


def shown_origin(origin: str) -> str:
    """Returns a value of `Origin`, which CORS_ORIGINS decides about, if it has the form of an origin."""
    return origin if _ORIGIN.fullmatch(origin) else "(malformed)"


def blank_path(path: str) -> str:
    """Returns the path without users and ids. A user has a known place; an id is whatever does not look like a word."""
    segments = _USER.sub(r"\1{user_id}", path).split("/", _SEGMENTS_MAX)
    shown = (part if part in {"", "{user_id}"} or _SEGMENT.fullmatch(part) else "{id}" for part in segments)
    return "/".join(shown)


def client_of(scope: Scope, setting: str) -> dict[str, str]:
    """Returns the members `client` and `user` for the value of LOG_CLIENT, as far as they are known."""
    members = {
        "client": _address(scope) if setting in {"address", "both"} else None,
        "user": _user(scope) if setting in {"user", "both"} else None,
    }
    return {name: value for name, value in members.items() if value}


def _address(scope: Scope) -> str | None:
    """Returns the address as the server knows it: a Unix socket has none, and a proxy may have named something else."""
    host, _ = scope.get("client") or ("", 0)
    try:
        return str(ip_address(host.partition("%")[0]))  # the zone of fe80::1%eth0 may be any text
    except ValueError:
        return None


def _user(scope: Scope) -> str | None:
    """Returns the user of a valid token, or the user in the path if authentication is off."""
    state = scope.get("state", {})
    if state.get("tokens", True):
        return state.get("user_id")  # type: ignore[no-any-return]  # a scope is untyped
    user_id = str(scope.get("path_params", {}).get("user_id", ""))
    return user_id if re.fullmatch(USER_ID_PATTERN, user_id) else None

"""Who has sent a request, for the log."""

import re
from ipaddress import ip_address

from starlette.types import Scope

from app.models.task import USER_ID_PATTERN


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
        return str(ip_address(host))
    except ValueError:
        return None


def _user(scope: Scope) -> str | None:
    """Returns the user of a valid token, or the user in the path if authentication is off."""
    state = scope.get("state", {})
    if state.get("tokens", True):
        return state.get("user_id")  # type: ignore[no-any-return]  # a scope is untyped
    user_id = str(scope.get("path_params", {}).get("user_id", ""))
    return user_id if re.fullmatch(USER_ID_PATTERN, user_id) else None

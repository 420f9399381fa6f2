"""`python -m app.token ada`: print a token of the user ada for trials, made with the settings of the service."""

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt

from app.core.config import Settings, load_settings
from app.core.errors import StartupError
from app.models.task import USER_ID_PATTERN

_LIFETIME: Final = timedelta(minutes=15)
_USAGE: Final = (
    "Name one user, as in `make token U=ada` or `python -m app.token ada`: 1 to 128 of A-Z a-z 0-9 _|.:@+=~-"
)


def main() -> None:
    """Print the token alone on stdout, and on stderr its end. If there can be none, exit with one sentence."""
    try:
        user_id = _user_id(sys.argv[1:])
        until = datetime.now(UTC).astimezone() + _LIFETIME
        print(_signed(load_settings(), user_id, until))  # noqa: T201  # this is what the command is for
    except StartupError as error:
        sys.exit(str(error))
    sys.stderr.write(f"The token of {user_id} is valid until {until:%H:%M:%S %Z}.\n")


def _user_id(arguments: list[str]) -> str:
    [user_id, *others] = arguments or [""]
    if others or user_id.startswith("-") or not re.fullmatch(USER_ID_PATTERN, user_id):
        raise StartupError(_USAGE)
    return user_id


def _signed(settings: Settings, user_id: str, until: datetime) -> str:
    """Returns the token. Raises StartupError if the service needs none, or only its issuer can sign one."""
    if settings.auth_jwks_url:
        raise StartupError("AUTH_JWKS_URL: only your issuer can sign tokens for its keys, so sign in there to get one")
    if not settings.auth_jwt_secret:
        raise StartupError("AUTH_JWT_SECRET: is not set, so authentication is off and requests need no token")
    claim: Any = user_id
    for name in reversed(settings.auth_user_id_claim.split(".")):
        claim = {name: claim}
    claims = {"iss": settings.auth_issuer, "aud": settings.auth_audience, "exp": until, **claim}
    given = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(given, settings.auth_jwt_secret.get_secret_value(), "HS256")


if __name__ == "__main__":
    main()

"""Bearer tokens in the header `Authorization` (RFC 6750 section 2.1)."""

import logging

from fastapi import Request

from app.core.errors import ForbiddenError, TokenInvalidError, TokenMissingError
from app.core.security.tokens import TokenVerifier
from app.http.headers import values_of
from app.http.problems import request_id_of

_logger = logging.getLogger(__name__)


async def authorize(request: Request) -> None:
    """Let the owner of the path pass, and everybody if authentication is off.

    Raises TokenMissingError, TokenInvalidError, ForbiddenError, or IssuerUnavailableError.
    """
    tokens: TokenVerifier | None = request.scope["state"]["tokens"]
    if tokens is None:
        return
    try:
        user_id = await tokens.user_id_of(_bearer_token(request))
    except TokenInvalidError as error:
        _logger.info("token refused: %s", error.reason, extra={"request_id": request_id_of(request.headers)})
        raise
    if user_id != request.path_params["user_id"]:
        raise ForbiddenError


def _bearer_token(request: Request) -> str:
    """Returns what stands in the only `Authorization`. Raises TokenMissingError or TokenInvalidError."""
    sent = values_of(request, b"authorization")
    if len(sent) > 1:
        raise TokenInvalidError("several")
    scheme, _, token = "".join(sent).partition(" ")
    if scheme.lower() != "bearer":
        raise TokenMissingError
    return token.strip(" ")

"""Parameter types of handlers: database, session, user, path identifiers, conditions and idempotency key."""

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Depends, Path, Request
from pydantic import GetPydanticSchema
from pydantic_core.core_schema import custom_error_schema
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.database import Database
from app.core.errors import MalformedHeaderError, NotFoundError, TaskNotFoundError
from app.core.security.tokens import TokenVerifier
from app.http.authorization import NotStartedError, current_user
from app.http.conditions import CODING
from app.http.fast_lane import tags_of, values_of
from app.http.kept_fields import read_kept_fields
from app.http.preferences import UNKNOWN_NAMES, UnknownNames
from app.schemas.task import KEY_MAX, UNCONDITIONAL, Conditions, UserIdText

_ANY: Final = "*"
_TIME: Final = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
_TAG: Final = re.compile(rf'(?:W/)?"({_TIME})(?:{CODING})?"', re.ASCII)
_NOT_AS_EXPECTED: Final = "The task is not in the expected state. Please load it again."
_NO_VERSION: Final = (
    "If-Match must have the version of the task in double quotes: its updated_at exactly as it was received, with all "
    "six decimals."
)
# The draft of Idempotency-Key requires a string of RFC 8941 section 3.3.3. Most clients send the key without quotes.
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_BARE: Final = re.compile(rf"[\x20-\x7e]{{1,{KEY_MAX}}}")


async def get_database(request: Request) -> Database:
    """Returns the database that the lifespan opened. Raises NotStartedError without a lifespan."""
    try:
        database: Database = request.scope["state"]["database"]
    except KeyError:
        raise NotStartedError from None
    return database


async def get_session(database: Annotated[Database, Depends(get_database)]) -> AsyncIterator[AsyncSession]:
    """Yields a session for one transaction. See `Database.session`."""
    async with database.session() as session:
        yield session


get_session.must_end_before_reply = True  # type: ignore[attr-defined]  # checked by check_routes


async def get_tokens(request: Request) -> TokenVerifier | None:
    """Returns the verifier of tokens, None if authentication is off."""
    tokens: TokenVerifier | None = request.scope["state"]["tokens"]
    return tokens


async def read_conditions(request: Request) -> Conditions:
    """Returns the conditions for the statement (RFC 9110 section 13).

    Omits the `If-None-Match` of a GET, which is applied to the response.
    """
    match = tags_of(request, b"if-match")
    none_match = None if request.scope["method"] == "GET" else tags_of(request, b"if-none-match")
    if match is None and none_match is None:
        return UNCONDITIONAL
    if none_match is not None and _ANY in none_match:  # no version can fulfil this
        return Conditions(match=(), must_exist=match == [_ANY], failed_detail=_NOT_AS_EXPECTED)
    return Conditions(
        None if match is None or match == [_ANY] else _versions(match),
        None if none_match is None else _versions(none_match),
        must_exist=match == [_ANY],
        failed_detail=_failed_detail(match, none_match),
    )


def _failed_detail(match: list[str] | None, none_match: list[str] | None) -> str | None:
    """Returns the detail of a 412 for these tags, None for the usual one."""
    if match is not None and match != [_ANY] and not (match and all(map(version_of, match))):
        return _NO_VERSION
    return None if none_match is None else _NOT_AS_EXPECTED


def _versions(tags: Iterable[str]) -> list[datetime]:
    """Returns the versions of the tags. A malformed or foreign tag has no version and matches no task."""
    return [version for version in map(version_of, tags) if version]


def version_of(tag: str) -> datetime | None:
    """Returns the version in an entity tag, which may be weak, None for a tag that no task can have."""
    ours = _TAG.fullmatch(tag)
    with suppress(ValueError):
        return datetime.fromisoformat(ours[1]) if ours else None
    return None


async def read_unknown_names(request: Request) -> UnknownNames:
    """Returns what the request has and its route does not know."""
    unknown: UnknownNames = request.scope[UNKNOWN_NAMES]
    return unknown


read_unknown_names.needs_json_route = True  # type: ignore[attr-defined]  # checked by check_routes


async def read_idempotency_key(request: Request) -> str | None:
    """Returns the key without quotes, None if the header is absent. Raises MalformedHeaderError for invalid syntax."""
    sent = values_of(request, b"idempotency-key")
    if not sent:
        return None
    key = sent[0].strip(" \t")
    if key.startswith('"'):
        quoted = _QUOTED.fullmatch(key)
        key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else ""
    if len(sent) > 1 or not _BARE.fullmatch(key):
        message = f"Idempotency-Key must be sent once and have 1 to {KEY_MAX} printable ASCII characters."
        raise MalformedHeaderError(message)
    return key


def or_missing(error: type[NotFoundError]) -> GetPydanticSchema:
    """Returns an annotation for an id in the path: `error` answers a value that no id can have, here no UUID.

    The type of the validation error is the kind of `error`, so valid ids cost nothing.
    """
    return GetPydanticSchema(
        lambda source, handler: custom_error_schema(handler(source), error.kind, custom_error_message=error.detail)
    )


Db = Annotated[Database, Depends(get_database)]
# Commits before the reply is sent: https://fastapi.tiangolo.com/tutorial/dependencies/dependencies-with-yield/
Session = Annotated[AsyncSession, Depends(get_session, scope="function")]
CurrentUser = Annotated[str, Depends(current_user)]
Tokens = Annotated[TokenVerifier | None, Depends(get_tokens)]
UserId = Annotated[UserIdText, Path(json_schema_extra={"example": "ada"})]
TaskId = Annotated[UUID, or_missing(TaskNotFoundError), Path(description="The id of one of the user's tasks.")]
RequestConditions = Annotated[Conditions, Depends(read_conditions)]
Unknown = Annotated[UnknownNames, Depends(read_unknown_names)]
KeptFields = Annotated[dict[str, Any], Depends(read_kept_fields)]
IdempotencyKey = Annotated[str | None, Depends(read_idempotency_key)]

"""What the handlers take: the database, the identifiers in the path, and what the headers ask for."""

import re
from typing import Annotated, Final
from uuid import UUID

from fastapi import Depends, Path, Request

from app.core.database import Database
from app.core.errors import MalformedHeaderError
from app.core.security.tokens import TokenVerifier
from app.http.conditions import read_conditions
from app.http.headers import KEY_MAX, values_of
from app.schemas.task import ID_BOUNDS, UserIdText
from app.schemas.version import Conditions

# RFC 8941 section 3.3.3, which the draft of Idempotency-Key asks for; most clients send the key bare.
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_BARE: Final = re.compile(rf"[\x20-\x7e]{{1,{KEY_MAX}}}")


async def _database(request: Request) -> Database:
    database: Database = request.scope["state"]["database"]
    return database


async def _tokens(request: Request) -> TokenVerifier | None:
    tokens: TokenVerifier | None = request.scope["state"]["tokens"]
    return tokens


async def _idempotency_key(request: Request) -> str | None:
    """Returns the key, quoted or not, None without one. Raises MalformedHeaderError."""
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


Db = Annotated[Database, Depends(_database)]
Tokens = Annotated[TokenVerifier | None, Depends(_tokens)]
UserId = Annotated[UserIdText, Path(openapi_examples={"ada": {"value": "ada"}})]
TaskId = Annotated[UUID, Path(description="The id of one of the user's tasks.", json_schema_extra=ID_BOUNDS)]
RequestConditions = Annotated[Conditions, Depends(read_conditions)]
IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]

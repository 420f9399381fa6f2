"""Health checks for load balancers and orchestrators. They send no query, which would wake a suspended database."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app import __version__
from app.core.errors import DatabaseUnavailableError, IssuerUnavailableError
from app.http.authorization import public
from app.http.openapi import problems
from app.routes.deps import Db, Tokens

router = APIRouter(prefix="/health", tags=["health"])


class Liveness(BaseModel):
    """The process runs, and this is its version."""

    model_config = ConfigDict(json_schema_extra={"example": {"status": "live", "version": __version__}})

    status: Literal["live"]
    version: str = Field(max_length=64, pattern="^[!-~]+$", description="The version of this document, too.")


class Readiness(BaseModel):
    """The service can work."""

    model_config = ConfigDict(json_schema_extra={"example": {"status": "ready"}})

    status: Literal["ready"]


@router.get("/live", summary="Check that the process runs", response_description="It runs.", responses=problems())
@public
async def get_liveness() -> Liveness:
    """Whether the process runs, and its version. Nothing else is checked."""
    return Liveness(status="live", version=__version__)


@router.get(
    "/ready",
    summary="Check that the service can work",
    response_description="It can.",
    responses=problems(IssuerUnavailableError(), DatabaseUnavailableError()),
)
@public
async def get_readiness(db: Db, tokens: Tokens) -> Readiness:
    """Whether the database was available when last used, and keys to verify tokens are available. Sends no query."""
    if not db.usable:
        raise DatabaseUnavailableError
    if tokens and not tokens.ready:
        raise IssuerUnavailableError
    return Readiness(status="ready")

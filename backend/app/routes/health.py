"""Health checks for load balancers and orchestrators. They send no query, which would wake a suspended database."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from app.core.errors import DatabaseUnavailableError, IssuerUnavailableError
from app.http.authorization import public
from app.http.openapi import operation_id, problems
from app.routes.deps import Db, Tokens

router = APIRouter(prefix="/health", tags=["health"], generate_unique_id_function=operation_id)


class Health(BaseModel):
    """The state of the service."""

    model_config = ConfigDict(json_schema_extra={"example": {"status": "ready"}})

    status: Literal["live", "ready"]


@router.get("/live", summary="Check that the process runs", response_description="It runs.", responses=problems())
@public
async def get_liveness() -> Health:
    """Whether the process runs. Nothing else is checked."""
    return Health(status="live")


@router.get(
    "/ready",
    summary="Check that the service can work",
    response_description="It can.",
    responses=problems(IssuerUnavailableError(), DatabaseUnavailableError()),
)
@public
async def get_readiness(db: Db, tokens: Tokens) -> Health:
    """Whether the database was available when last used, and keys to verify tokens are available. Sends no query."""
    if not db.usable:
        raise DatabaseUnavailableError
    if tokens and not tokens.ready:
        raise IssuerUnavailableError
    return Health(status="ready")

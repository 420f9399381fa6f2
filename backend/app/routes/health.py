"""Health, for load balancers and orchestrators. Neither question wakes a sleeping database."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from app.core.errors import DatabaseUnavailableError
from app.routes.deps import Db
from app.routes.openapi import problems

router = APIRouter(prefix="/health", tags=["health"])


class Health(BaseModel):
    """What is well."""

    model_config = ConfigDict(json_schema_extra={"example": {"status": "ready"}})

    status: Literal["live", "ready"]


@router.get("/live", responses=problems())
async def get_liveness() -> Health:
    """Whether the process runs. Touches nothing else."""
    return Health(status="live")


@router.get("/ready", responses=problems(DatabaseUnavailableError()))
async def get_readiness(db: Db) -> Health:
    """Whether the database answered when it was last asked. Asks nothing itself."""
    if not db.reachable:
        raise DatabaseUnavailableError
    return Health(status="ready")

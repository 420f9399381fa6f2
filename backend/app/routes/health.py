"""Health, for load balancers and orchestrators. Neither question wakes a sleeping database."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from app.core.errors import DatabaseUnavailableError
from app.routes.deps import Db
from app.routes.openapi import problems

router = APIRouter(prefix="/health", tags=["health"])


class Live(BaseModel):
    """The process runs."""

    status: Literal["live"] = "live"


class Ready(BaseModel):
    """The service can work."""

    status: Literal["ready"] = "ready"


@router.get("/live")
async def get_liveness() -> Live:
    """Whether the process runs. Touches nothing else."""
    return Live()


@router.get("/ready", responses=problems(503))
async def get_readiness(db: Db) -> Ready:
    """Whether the database answered when it was last asked. Asks nothing itself."""
    if not db.reachable:
        raise DatabaseUnavailableError
    return Ready()

"""What the handlers take: the database, and the identifiers in the path."""

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Path, Request

from app.core.database import Database
from app.schemas.task import UserIdText


async def _database(request: Request) -> Database:
    database: Database = request.state.database
    return database


Db = Annotated[Database, Depends(_database)]
UserId = Annotated[UserIdText, Path(openapi_examples={"ada": {"value": "ada"}})]
TaskId = Annotated[UUID, Path(description="The id of one of the user's tasks.")]

"""`python -m app` with one more route. It changes a task in two statements of one transaction of a `Session`."""

from functools import partial
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from sqlmodel import col, update

import app.main
from app.__main__ import main
from app.core.database import Database
from app.core.database.pool import Timeouts
from app.core.errors import TaskNotFoundError
from app.models.task import WIRE_COLUMNS, Task, WireTask
from app.routes.deps import Session, TaskId, UserId
from app.services.tasks import _NEXT_VERSION


class Replacement(BaseModel):
    title: str
    completed: bool


async def replace_task(user_id: UserId, task_id: TaskId, new: Replacement, session: Session) -> WireTask:
    """Nobody may see the new title without the new `completed`, because only the second one makes a version."""
    for changes in ({"title": new.title}, {"completed": new.completed, "updated_at": _NEXT_VERSION}):
        change = update(Task).where(col(Task.user_id) == user_id, col(Task.id) == task_id).values(**changes)
        row: Any = (await session.exec(change.returning(*WIRE_COLUMNS))).one_or_none()
        if row is None:
            raise TaskNotFoundError
    return WireTask(*row)


def create_bounded_app() -> FastAPI:
    extended = app.main.create_app(bounded=True)
    extended.put("/api/{user_id}/tasks/{task_id}/session")(replace_task)
    return extended


# Half of the usual timeout, because tests wait for it. Also in each worker, which imports this module.
pytest.MonkeyPatch().setattr("app.main.Database", partial(Database, timeouts=Timeouts(statement=2)))
app.main.create_bounded_app = create_bounded_app
pytest.MonkeyPatch().setattr("app.core.logging.QUIET", ())  # uvicorn names its processes

if __name__ == "__main__":
    main()

"""The common idiom on the same libraries: a session per request, ORM objects, commit and refresh, pre-ping.

The code is what most projects write, including its lost updates. It has no authentication and no access log.
"""

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import DateTime
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlmodel import Field, SQLModel, select

# Telemetry is on by default, and few projects switch it off.
app = FastAPI()
engine = create_async_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://").replace("&sslmode=disable", ""),
    pool_size=10,
    max_overflow=0,
    pool_pre_ping=True,
)
make_session = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with make_session() as session:
        yield session


Session = Annotated[AsyncSession, Depends(get_session)]


def now() -> datetime:
    return datetime.now(UTC)


class Task(SQLModel, table=True):
    __tablename__ = "tasks"

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    user_id: str
    title: str
    description: str | None = None
    completed: bool = False
    created_at: datetime = Field(default_factory=now, sa_type=DateTime(timezone=True))
    updated_at: datetime = Field(default_factory=now, sa_type=DateTime(timezone=True))


class TaskCreate(SQLModel):
    title: str = Field(min_length=1, max_length=200)
    description: str | None = Field(default=None, max_length=5_000)


class TaskResponse(SQLModel):
    id: UUID
    user_id: str
    title: str
    description: str | None
    completed: bool
    created_at: datetime
    updated_at: datetime


async def find(session: AsyncSession, user_id: str, task_id: UUID) -> Task:
    result = await session.execute(select(Task).where(Task.id == task_id, Task.user_id == user_id))
    task = result.scalar_one_or_none()
    if task is None:
        raise HTTPException(404, "Task not found")
    return task


@app.get("/health/live")
async def get_liveness() -> dict[str, str]:
    return {"status": "live"}


@app.get("/api/{user_id}/tasks", response_model=list[TaskResponse])
async def list_tasks(user_id: str, session: Session) -> Any:
    created_at: Any = Task.created_at
    result = await session.execute(select(Task).where(Task.user_id == user_id).order_by(created_at.desc()))
    return result.scalars().all()


@app.post("/api/{user_id}/tasks", response_model=TaskResponse, status_code=201)
async def create_task(user_id: str, body: TaskCreate, session: Session) -> Task:
    task = Task(user_id=user_id, **body.model_dump())
    session.add(task)
    await session.commit()
    await session.refresh(task)
    return task


@app.get("/api/{user_id}/tasks/{task_id}", response_model=TaskResponse)
async def get_task(user_id: str, task_id: UUID, session: Session) -> Task:
    return await find(session, user_id, task_id)


@app.patch("/api/{user_id}/tasks/{task_id}/complete", response_model=TaskResponse)
async def toggle_task(user_id: str, task_id: UUID, session: Session) -> Task:
    task = await find(session, user_id, task_id)
    task.completed = not task.completed
    task.updated_at = now()
    session.add(task)
    await session.commit()
    await session.refresh(task)
    return task

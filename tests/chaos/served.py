"""`python -m app` with one more route. It creates an entry and counts it in one transaction of a `Session`."""

from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel, col

import app.main
from app.__main__ import main
from app.routes.deps import Session, UserId


class Base(SQLModel, registry=registry()):
    """Has its own registry, so the service does not check for these tables when it starts."""


class Counter(Base, table=True):
    user_id: str = Field(primary_key=True)
    total: int


class Entry(Base, table=True):
    user_id: str = Field(primary_key=True)
    title: str = Field(primary_key=True)
    number: int


class NewEntry(BaseModel):
    title: str


async def create_entry(user_id: UserId, new: NewEntry, session: Session) -> Entry:
    first = insert(Counter).values(user_id=user_id, total=1)
    counted = first.on_conflict_do_update(index_elements=["user_id"], set_={"total": col(Counter.total) + 1})
    number = (await session.exec(counted.returning(col(Counter.total)))).scalar_one()
    entry = Entry(user_id=user_id, title=new.title, number=number)
    session.add(entry)
    return entry


def create_bounded_app() -> FastAPI:
    extended = app.main.create_app(bounded=True)
    extended.post("/api/{user_id}/entries", status_code=201)(create_entry)
    return extended


app.main.create_bounded_app = create_bounded_app  # also in each worker, which imports this module

if __name__ == "__main__":
    main()

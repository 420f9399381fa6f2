"""`python -m app` with two more routes. One creates an entry and counts it in one transaction of a `Session`."""

from typing import Final

from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel, col, select

import app.core.database.engine
import app.main
from app.__main__ import main
from app.routes.deps import Session, UserId

TABLES: Final = """
CREATE TABLE IF NOT EXISTS counter (user_id text PRIMARY KEY, total integer NOT NULL);
CREATE TABLE IF NOT EXISTS entry (user_id text, title text, number integer NOT NULL, PRIMARY KEY (user_id, title));
"""


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


async def read_entries(user_id: UserId, session: Session) -> dict[str, int]:
    """Returns the number of each entry by its title."""
    entries = await session.exec(select(Entry).where(col(Entry.user_id) == user_id))
    return {entry.title: entry.number for entry in entries}


def create_bounded_app() -> FastAPI:
    extended = app.main.create_app(bounded=True)
    extended.post("/api/{user_id}/entries", status_code=201)(create_entry)
    extended.get("/api/{user_id}/entries")(read_entries)
    return extended


app.core.database.engine.STATEMENT_TIMEOUT = 2  # type: ignore[attr-defined]  # seconds; half, because the tests wait for it
app.main.create_bounded_app = create_bounded_app  # also in each worker, which imports this module

if __name__ == "__main__":
    main()

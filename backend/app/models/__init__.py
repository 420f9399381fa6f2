"""The tables. Migrations and statements are built from these SQLModel classes."""

from typing import Any

from sqlalchemy import event
from sqlmodel import SQLModel

SQLModel.metadata.naming_convention = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}


@event.listens_for(SQLModel, "load", propagate=True)
@event.listens_for(SQLModel, "refresh", propagate=True)
def _order_attributes(row: Any, *_: object) -> None:
    """Put the members of a reply in the order of the class. SQLAlchemy fills an object in the order of a set."""
    attributes = vars(row)
    attributes |= {name: attributes.pop(name) for name in type(row).model_fields if name in attributes}

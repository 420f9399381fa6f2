"""A field of a task that is only in some of its places keeps the service from starting, with a sentence."""

import subprocess
import sys
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import AwareDatetime, BeforeValidator, Field, create_model
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import SQLModel

from app.schemas.task import TaskCreate, TaskQuery, TaskResponse, TaskUpdate
from app.schemas.words import Sort
from app.services import fields
from app.services.tasks import _FILTERS, SORT_KEYS
from tests.service import BACKEND

LAX: Final = Field(strict=False)
# Before the import of the service, a field of a module is changed.
HALF_ADDED: Final = {
    "Add a column to Task, and a migration, for size: WireTask has it.": (
        "path = Path(find_spec('app.models.task').origin);"
        "text = path.read_text().replace('    updated_at: str\\n', '    updated_at: str; size: str\\n');"
        "exec(compile(text, path, 'exec'))"
    ),
    "Add size to TaskResponse, WireTask and Task: TaskCreate or TaskUpdate has it.": (
        "import app.schemas.task as t; t.TaskCreate = create_model('TaskCreate', __base__=t.TaskCreate, size=str);"
        "import app.services.tasks"
    ),
}


class Size(Enum):
    SMALL = "s"


class _Sized(TaskUpdate):
    size: str


def create(**types: Any) -> dict[str, Any]:
    """A TaskCreate with these fields."""
    return {"TaskCreate": create_model("TaskCreate", __base__=TaskCreate, **types)}


@pytest.mark.parametrize("advice", HALF_ADDED)
def test_the_service_does_not_start_with_a_field_that_is_half_added(advice: str) -> None:
    lines = ("from pathlib import Path", "from importlib.util import find_spec", "from pydantic import create_model")
    script = "\n".join((*lines, HALF_ADDED[advice]))
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=BACKEND)

    assert ended.stderr.splitlines()[-1] == f"TypeError: {advice}"


@pytest.mark.parametrize(
    ("schemas", "advice"),
    [
        ({"TaskUpdate": _Sized}, "Add size to TaskResponse, WireTask and Task"),
        (
            {"TaskResponse": create_model("R", __base__=TaskResponse, size=str)},
            "Give WireTask and TaskResponse the same",
        ),
        (create(title=Annotated[date, LAX] | date), "at title: strict JSON has no date"),
        (create(title=UUID | None), "at title: strict JSON has no uuid"),
        (create(title=list[Decimal]), "at title: strict JSON has no decimal"),
        (create(title=Annotated[Decimal, LAX]), r"Write Field\(max_digits=...\) at title"),
        (create(title=(Size, Size.SMALL)), "at title: strict JSON has no enum"),
        (create(created_at=Annotated[datetime, LAX]), "Write AwareDatetime at created_at"),
    ],
)
def test_a_field_that_cannot_work_is_refused(
    monkeypatch: pytest.MonkeyPatch, schemas: dict[str, Any], advice: str
) -> None:
    for name, schema in schemas.items():
        monkeypatch.setattr(fields, name, schema)

    with pytest.raises(TypeError, match=advice):
        fields.check_fields()


def test_a_type_that_json_or_a_validator_can_make_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    by_validator = Annotated[date, BeforeValidator(date.fromisoformat)]
    schema = create(title=by_validator, completed=Annotated[Size, LAX], created_at=Annotated[AwareDatetime, LAX])
    monkeypatch.setattr(fields, "TaskCreate", schema["TaskCreate"])

    fields.check_fields()


@pytest.mark.parametrize(
    ("type_", "advice"),
    [
        (JSONB(), "Give title columns of its own"),
        (sa.Enum(Size), r"Write sa_type=Enum\(Size, native_enum=False, .* Task.title"),
    ],
)
def test_a_column_that_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch, type_: Any, advice: str) -> None:
    monkeypatch.setattr(SQLModel.metadata.tables["tasks"].c.title, "type", type_)

    with pytest.raises(TypeError, match=advice):
        fields.check_fields()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("size", "Add size to _FILTERS"),
        ("owner", "Rename owner in TaskQuery"),
        ("idempotent", "Rename idempotent in TaskQuery"),
    ],
)
def test_a_parameter_of_lists_that_cannot_work_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, advice: str
) -> None:
    query: Any = create_model("TaskQuery", __base__=TaskQuery, **{name: (str, "")})  # type: ignore[call-overload]
    monkeypatch.setattr(fields, "TaskQuery", query)

    with pytest.raises(TypeError, match=advice):
        fields.check_lists(_FILTERS, SORT_KEYS)


def test_a_word_that_nothing_is_sorted_by_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "Sort", Literal[Sort, "size", "-size"])

    with pytest.raises(TypeError, match="Add size to SORT_KEYS"):
        fields.check_lists(_FILTERS, SORT_KEYS)

"""The short schemas of the tools for agents allow what the validation accepts, but null, also in fields of a copy."""

import json
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import jsonschema  # type: ignore[import-untyped]
import pytest
from pydantic import BaseModel, Field, ValidationError, create_model

from app.schemas.compact import compact_schema
from app.schemas.words import Undocumented


class Priority(Enum):
    """An enumeration, which pydantic puts among the definitions."""

    LOW = "low"
    HIGH = "high"


class Place(BaseModel):
    """A nested object."""

    name: Annotated[str, Field(title="A name", max_length=3)]


Short = Annotated[str, Field(max_length=3, pattern="^l")]

TYPES: Final[tuple[Any, ...]] = (
    *(str, int, bool, date, UUID, Decimal, Priority, Place, Any, dict[str, int], tuple[int, str], int | str),
    *(Literal["low"], Literal["low", 4], Short, Annotated[int, Field(le=3)]),
    *(list[str], list[str | None], list[Priority | None], list[Place], list[int | str]),
)
VALUES: Final[tuple[Any, ...]] = (
    *(True, 3, 4, 1.5, "low", "high", "2026-11-22", "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa", "1.5"),
    *({}, {"name": "low"}, {"name": 3}, [], [3, "low"], ["low"], [{"name": "low"}]),
)


@pytest.mark.parametrize("kind", [*TYPES, *(each | None for each in TYPES)], ids=str)
def test_a_short_schema_allows_what_the_validation_accepts(kind: Any) -> None:
    model = create_model("Sent", field=(kind, ...))
    schema = compact_schema(model.model_json_schema())
    accepted = [value for value in VALUES if accepts(model, value)]

    assert [value for value in accepted if not jsonschema.Draft202012Validator(schema).is_valid({"field": value})] == []
    assert accepted
    assert not {"$ref", "$defs", "title", "description", "pattern", "format"} & set(schema["properties"]["field"])
    assert "null" not in json.dumps(schema)


def accepts(model: type[BaseModel], value: object) -> bool:
    try:
        model.model_validate_json(json.dumps({"field": value}), strict=True)
    except ValidationError:
        return False
    return True


def test_it_has_the_bounds_and_the_words_that_a_model_needs() -> None:
    text = Annotated[str, Field(min_length=1, max_length=200, pattern="^a", description="A text", examples=["a"])]
    model = create_model(
        "Sent",
        title=(text, ...),
        note=(text | None, ...),
        absent=(text | None, None),
        size=(Annotated[int, Field(ge=1, le=100)], 100),
        priority=(Priority | None, None),
        tags=(Annotated[list[text], Field(max_length=5)], []),
        other=(Annotated[str, Undocumented], ""),
    )
    string = {"type": "string", "maxLength": 200}

    assert compact_schema(model.model_json_schema()) == {
        "type": "object",
        "required": ["title", "note"],
        "properties": {
            "title": string,
            "note": string,
            "absent": string,
            "size": {"type": "integer", "maximum": 100},
            "priority": {"type": "string", "enum": ["low", "high"]},
            "tags": {"type": "array", "maxItems": 5, "items": string},
        },
    }

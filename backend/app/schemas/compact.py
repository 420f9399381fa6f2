"""JSON Schemas for models, which read them in every conversation: without what a model does not need."""

from typing import Any, Final

from app.schemas.words import UNDOCUMENTED

_NULL: Final = {"type": "null"}
_KEPT: Final[tuple[str, ...]] = ("type", "enum", "const", "maxLength", "maximum", "maxItems", "required")


def compact_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema of pydantic without titles, descriptions, patterns, formats, examples and references.

    It allows all that `schema` allows but `null`: many models send that for whatever they leave out, and Gemini refuses
    a list of types. Omits properties marked as UNDOCUMENTED.
    """
    definitions: dict[str, Any] = schema.get("$defs", {})

    def compact(part: dict[str, Any]) -> dict[str, Any]:
        part = {**definitions.get(part.get("$ref", "").rpartition("/")[2], {}), **part}
        kept = {name: part[name] for name in _KEPT if name in part}
        if "items" in part:
            kept["items"] = compact(part["items"])
        if "properties" in part:
            shown = {name: each for name, each in part["properties"].items() if UNDOCUMENTED not in each}
            kept["properties"] = {name: compact(each) for name, each in shown.items()}
        if "anyOf" in part:
            first, *others = [compact(each) for each in part["anyOf"] if each != _NULL]
            kept |= {"anyOf": [first, *others]} if others else first
        return kept

    return compact(schema)

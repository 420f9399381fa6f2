"""JSON Schemas for models, which read them in every conversation: without what a model does not need."""

from typing import Any, Final

from app.schemas.words import UNDOCUMENTED

NULL: Final = {"type": "null"}
_KEPT: Final[tuple[str, ...]] = ("type", "enum", "const", "maxLength", "maximum", "maxItems", "required")


def compact_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema of pydantic without titles, descriptions, patterns, formats, examples and references.

    It allows all that `schema` allows, but `null` only where it does not mean the default. Omits properties marked as
    UNDOCUMENTED.
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
            options = [compact(each) for each in part["anyOf"] if each != NULL or "default" not in part]
            kept |= {"anyOf": options} if len(options) > 1 else options[0]
        return kept

    return compact(schema)

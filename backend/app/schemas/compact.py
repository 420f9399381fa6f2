"""JSON Schemas for models, which read them in every conversation: without what a model does not need."""

from typing import Any, Final

from app.schemas.words import UNDOCUMENTED

_NULL: Final = {"type": "null"}
_KEPT: Final[tuple[str, ...]] = ("type", "enum", "const", "maxLength", "maximum", "maxItems", "required")


def compact_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema of pydantic without titles, descriptions, patterns, formats, examples and references.

    It allows all that `schema` allows. Omits properties marked as UNDOCUMENTED. `null` is omitted where it means the
    default.
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
            kept |= _union([compact(each) for each in part["anyOf"]], has_default="default" in part)
        return kept

    return compact(schema)


def _union(options: list[dict[str, Any]], *, has_default: bool) -> dict[str, Any]:
    first, *others = [each for each in options if each != _NULL]
    if others:
        return {"anyOf": options}
    if has_default or _NULL not in options:
        return first
    return {**first, "type": [first["type"], "null"]}

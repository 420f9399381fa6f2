"""Unknown names in a request: listed in `Ignored-Fields`, or refused with `Prefer: handling=strict` (RFC 7240)."""

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints
from urllib.parse import quote

from pydantic import AliasChoices, AliasPath, BaseModel, RootModel
from typing_extensions import is_typeddict

from app.core.errors import FieldError, InvalidRequestError
from app.http.authorization import all_dependants
from app.http.kept_fields import read_kept_fields
from app.http.problems import body_pointer, cut_name

_NAMES_SHOWN: Final = 20  # limits how much input a reply repeats, as `cut_name` does
_PREFERENCE: Final = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')  # a quoted string may have a comma (RFC 9110, 5.6.4)
# Possessive: white space would otherwise match in many ways, at a cost of the third power of its length.
_HANDLING: Final = re.compile(
    r'[ \t]*+handling[ \t]*+(?:=[ \t]*+("(?:[^"\\]|\\.)*+"[ \t]*+|[^";]*+))?(?:;|$)', re.IGNORECASE
)


class _Anything:
    def __contains__(self, _: object) -> bool:
        return True


class KnownNames(NamedTuple):
    """The known names of body fields and query parameters, and whether the route reads a body.

    `never_kept` are the names of its reply, which it does not keep as unknown fields. None if it keeps none.
    """

    has_body: bool
    fields: Container[str]
    parameters: Container[str]
    never_kept: Container[str] | None


def known_names(route: Any) -> KnownNames:
    """Returns the names that the handler of a route and its dependencies take from the body and the query."""
    dependants = [*all_dependants(route.dependant)]
    bodies = [field for dependant in dependants for field in dependant.body_params]
    parameters = [field for dependant in dependants for field in dependant.query_params]
    embedded = route._embed_body_fields  # noqa: SLF001  # the body is an object keyed by parameter
    fields = frozenset(field.alias for field in bodies) if embedded else _names_of(bodies, alone=_Anything())
    keeps = any(dependant.call is read_kept_fields for dependant in dependants)
    never_kept = _names_of(filter(None, [route.response_field])) if keeps else None
    return KnownNames(bool(bodies), fields, _names_of(parameters), never_kept)


def _names_of(fields: Iterable[Any], alone: Container[str] | None = None) -> Container[str]:
    """Returns the names in the models of `fields`. For a field without a model: its own name, or `alone` if given."""
    names: set[str] = set()
    for field in fields:
        annotation = field.field_info.annotation
        models = [kind for kind in (annotation, *get_args(annotation)) if _model_names(kind) is not None]
        if get_origin(annotation) is dict or any(_takes_any_name(model) for model in models):
            return _Anything()
        if not models and alone is not None:
            return alone
        names.update(*map(_model_names, models) if models else [_aliases(field.field_info, field.alias)])
    return names


def _takes_any_name(model: Any) -> bool:
    is_root = isinstance(model, type) and issubclass(model, RootModel)
    return is_root or getattr(model, "model_config", {}).get("extra") == "allow"


def _model_names(model: Any) -> set[str] | None:
    """Returns the field names of a pydantic model, a TypedDict or a dataclass, else None."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {alias for name, field in model.model_fields.items() for alias in _aliases(field, name)}
    if is_typeddict(model):
        return set(get_type_hints(model))
    return {field.name for field in fields_of(model)} if is_dataclass(model) else None


def _aliases(field: Any, name: str) -> set[str]:
    """Returns every name that a request may use for a field."""
    choices = field.validation_alias
    several = choices.choices if isinstance(choices, AliasChoices) else [choices]
    paths = [choice.path[0] if isinstance(choice, AliasPath) else choice for choice in several]
    return {str(each) for each in (name, field.alias, *paths) if each is not None}


def handling_headers(
    prefer: Sequence[str], fields: Sequence[str], parameters: Sequence[str], kept: Container[str] = ()
) -> dict[str, str]:
    """Returns the reply headers, given the values of `Prefer`, the unknown names in body and query, and those `kept`.

    Raises InvalidRequestError for names with a NUL character, and with `handling=strict` for all unknown names.
    """
    handling = _handling(prefer)
    headers = {"Preference-Applied": f"handling={handling}"} if handling else {}
    if not fields and not parameters:
        return headers
    refused = [[name for name in names if handling == "strict" or "\0" in name] for names in (fields, parameters)]
    if any(refused):
        error = InvalidRequestError(_unknown(*refused))
        error.headers.update(headers)
        raise error
    ignored = [*(name for name in fields if name not in kept), *parameters]
    return headers | ({"Ignored-Fields": ", ".join(map(_quoted, ignored[:_NAMES_SHOWN]))} if ignored else {})


def _handling(prefer: Sequence[str]) -> str | None:
    """Returns the first `handling` of `Prefer` if it is `strict` or `lenient` (RFC 7240 section 4.4)."""
    for preference in (each for line in prefer for each in _PREFERENCE.findall(line)):
        if found := _HANDLING.match(preference):
            value = re.sub(r"\\(.)", r"\1", (found[1] or "").strip(' \t"')).lower()
            return value if value in {"strict", "lenient"} else None
    return None


def _unknown(fields: Iterable[str], parameters: Iterable[str]) -> list[FieldError]:
    named = [(body_pointer(cut_name(name)), name) for name in fields]
    named += [(f"query/{_quoted(name)}", name) for name in parameters]
    nul, unknown = "must not contain a NUL character", "is not known here"
    return [FieldError(pointer, nul if "\0" in name else unknown) for pointer, name in named[:_NAMES_SHOWN]]


def _quoted(name: str) -> str:
    return quote(cut_name(name), safe="")

"""Unknown names in a request: listed in `Ignored-Fields`, or refused with `Prefer: handling=strict` (RFC 7240)."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints
from urllib.parse import quote

from pydantic import AliasChoices, AliasPath, BaseModel, RootModel
from typing_extensions import is_typeddict

from app.core.errors import FieldError, InvalidRequestError
from app.http.authorization import all_dependants
from app.http.problems import body_pointer, cut_name
from app.schemas.words import PAGES, UNKNOWN_WORD, Words

UNKNOWN_NAMES: Final = "app.unknown_names"  # key in the scope of a JSONRoute for its UnknownNames
_NAMES_SHOWN: Final = 20  # limits how much input a reply repeats, as `cut_name` does
_PREFERENCE: Final = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')  # a quoted string may have a comma (RFC 9110, 5.6.4)
# Possessive: white space would otherwise match in many ways, at a cost of the third power of its length.
_HANDLING: Final = re.compile(
    r'[ \t]*+handling[ \t]*+(?:=[ \t]*+("(?:[^"\\]|\\.)*+"[ \t]*+|[^";]*+))?(?:;|$)', re.IGNORECASE
)
NUL: Final = "must not contain a NUL character"
_UNKNOWN: Final = "is not known here"
_LATER_PAGE: Final = "does not lead to another page here; the header Link of each page leads to the next one"


class _Anything:
    def __contains__(self, _: object) -> bool:
        return True


class KnownNames(NamedTuple):
    """The known names of a route's body fields and query parameters, and whether the route reads a body.

    `words` has the known values of the parameters marked with Words. `reply_names` are the fields of the reply, under
    which the route keeps no unknown field. None if the route keeps no unknown fields.
    """

    has_body: bool
    fields: Container[str]
    parameters: Container[str]
    words: Mapping[str, Container[str]]
    reply_names: Container[str] | None


class UnknownNames(NamedTuple):
    """The unknown fields of a request, those of them that are kept, and the unknown parameters with their values."""

    fields: Sequence[str]
    kept: AbstractSet[str]
    parameters: Mapping[str, str]

    @property
    def ignored(self) -> list[str]:
        """The first names that have no effect, for the reply and the log."""
        return [*(name for name in self.fields if name not in self.kept), *self.parameters][:_NAMES_SHOWN]


def known_names(route: Any) -> KnownNames:
    """Returns the names that the handler of a route and its dependencies take from the body and the query."""
    dependants = [*all_dependants(route.dependant)]
    bodies = [field for dependant in dependants for field in dependant.body_params]
    parameters = [field for dependant in dependants for field in dependant.query_params]
    embedded = route._embed_body_fields  # noqa: SLF001  # the body is an object keyed by parameter
    fields = frozenset(field.alias for field in bodies) if embedded else _names_of(bodies, alone=_Anything())
    keeps = any(hasattr(dependant.call, "keeps_unknown_fields") for dependant in dependants)
    reply_names = _names_of(filter(None, [route.response_field])) if keeps else None
    return KnownNames(bool(bodies), fields, _names_of(parameters), _words_of(parameters), reply_names)


def _words_of(fields: Sequence[Any]) -> dict[str, Container[str]]:
    """Returns the known values of each parameter that is marked with `Words`."""
    infos = {field.alias: field.field_info for field in fields}
    for field in fields:
        infos |= getattr(field.field_info.annotation, "model_fields", {})
    return {name: mark.known for name, info in infos.items() for mark in info.metadata if isinstance(mark, Words)}


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


def handling_headers(prefer: Sequence[str], known: KnownNames, unknown: UnknownNames) -> dict[str, str]:
    """Returns the reply headers, given the values of `Prefer`.

    Raises InvalidRequestError for names with a NUL character and for a later page of a list that has cursors, because
    the client would take the first page for it. With `handling=strict`, raises it for all unknown names.
    """
    handling = _handling(prefer)
    headers = {"Preference-Applied": f"handling={handling}"} if handling else {}
    if not unknown.fields and not unknown.parameters:
        return headers
    details = dict.fromkeys(known.words, UNKNOWN_WORD)
    if "cursor" in known.parameters:
        details |= {name: _LATER_PAGE for name, value in unknown.parameters.items() if _is_later_page(name, value)}
    is_strict = handling == "strict"
    fields = [name for name in unknown.fields if is_strict or "\0" in name]
    parameters = [name for name in unknown.parameters if is_strict or "\0" in name or details.get(name) is _LATER_PAGE]
    if fields or parameters:
        error = unknown_names_error(fields, parameters, details)
        error.headers.update(headers)
        raise error
    return headers | ({"Ignored-Fields": ", ".join(map(_quoted, unknown.ignored))} if unknown.ignored else {})


def _handling(prefer: Sequence[str]) -> str | None:
    """Returns the first `handling` of `Prefer` if it is `strict` or `lenient` (RFC 7240 section 4.4)."""
    for preference in (each for line in prefer for each in _PREFERENCE.findall(line)):
        if found := _HANDLING.match(preference):
            value = re.sub(r"\\(.)", r"\1", (found[1] or "").strip(' \t"')).lower()
            return value if value in {"strict", "lenient"} else None
    return None


def _is_later_page(name: str, value: str) -> bool:
    """Whether the parameter asks for a page after the first one. What is not a number does not."""
    first = PAGES.get(re.sub(r"[\W_]", "", name).lower())
    with suppress(ValueError):
        return first is not None and float(value) > first
    return False


def unknown_names_error(
    fields: Iterable[str], parameters: Iterable[str], details: Mapping[str, str] = MappingProxyType({})
) -> InvalidRequestError:
    """Returns the error for unknown names in body and query. `details` has the texts for some of the query."""
    named = [(body_pointer(cut_name(name)), name, _UNKNOWN) for name in fields]
    named += [(f"query/{_quoted(name)}", name, details.get(name, _UNKNOWN)) for name in parameters]
    return InvalidRequestError(
        FieldError(pointer, NUL if "\0" in name else detail) for pointer, name, detail in named[:_NAMES_SHOWN]
    )


def _quoted(name: str) -> str:
    return quote(cut_name(name), safe="")

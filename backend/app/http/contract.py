"""How a request is read (its token, then body limits, JSON, unknown names), and what every reply to GET gets."""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, get_args
from urllib.parse import quote

from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import (
    AppError,
    BodyTooLargeError,
    FieldError,
    InvalidRequestError,
    MalformedBodyError,
    UnsupportedMediaTypeError,
)
from app.http.authorization import authorize
from app.http.conditions import unless_unchanged
from app.http.headers import values_of
from app.http.parameters import ABSENT, Parameters
from app.http.problems import body_pointer

BODY_LIMIT: Final = 65_536  # bytes
_NAMES_SHOWN: Final = 20
_NAME_LENGTH: Final = 40  # bytes; with the number of names, a bound on what a reply repeats


class ContractRoutes:
    """Finds the route of a request by its method and path, and hands on what is for none of them.

    FastAPI's router asks one route after the other, and puts three stacks around each for what dependencies leave to
    be closed: none does here.
    """

    def __init__(self, routes: Iterable[BaseRoute], otherwise: ASGIApp) -> None:
        self._otherwise = otherwise
        self._routes: dict[str, list[ContractRoute]] = {}
        for route in routes:
            if isinstance(route, ContractRoute):
                for method in route.methods or ():
                    self._routes.setdefault(method, []).append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        for route in self._routes.get(scope.get("method", ""), ()):
            if found := route.path_regex.match(path):
                scope.update(route=route, path_params=found.groupdict())
                response = await route.respond(Request(scope, receive))
                await response(scope, receive, send)
                return
        await self._otherwise(scope, receive, send)


class ContractRoute(APIRoute):
    """A route that asks for a token, then reads bodies strictly and unknown names as the client prefers (RFC 7240).

    Before it knows who asks, it reads nothing that follows the headers. An unknown body field or query parameter is
    ignored and named in `Ignored-Fields`; with `Prefer: handling=strict` it is refused. A GET gets an `ETag`, and 304
    if the client has it already. Handlers return a Response: `status_code` and `response_model` are for OpenAPI.
    """

    respond: Callable[[Request], Coroutine[Any, Any, Response]]

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        parameters = Parameters(self.dependant)
        known_query = _names(self.dependant.query_params)
        known_fields = _names(self.dependant.body_params)

        async def respond(request: Request) -> Response:
            await authorize(request)
            body = await _read(request) if self.body_field else ABSENT
            fields = [name for name in body if name not in known_fields] if isinstance(body, dict) else []
            headers = _preference(request, fields, _unknown_parameters(request, known_query))
            try:
                response: Response = await self.endpoint(**await parameters.read(request, body))
            except AppError as error:
                error.headers.update(headers)
                raise
            if request.scope["method"] == "GET":
                response = unless_unchanged(request, response)
            if headers:
                response.headers.update(headers)
            return response

        self.respond = respond
        return respond


async def _read(request: Request) -> Any:
    """Returns the body, parsed, or ABSENT. FastAPI's `max_body_size` answers an honest Content-Length in plain text,
    so the limit is kept here.
    """
    if any(int(length) > BODY_LIMIT for length in values_of(request, b"content-length")):
        raise BodyTooLargeError(BODY_LIMIT)
    content = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            text = "The connection ended before the body did."
            raise MalformedBodyError(text)
        content += message.get("body", b"")
        if len(content) > BODY_LIMIT:
            raise BodyTooLargeError(BODY_LIMIT)
        more = message.get("more_body", False)
    return _parse(request, bytes(content)) if content else ABSENT


def _parse(request: Request, content: bytes) -> Any:
    media_type = "".join(values_of(request, b"content-type")[:1]).partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if not is_json or any(coding.lower() != "identity" for coding in values_of(request, b"content-encoding")):
        raise UnsupportedMediaTypeError
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as error:
        message = f"The body is not JSON: {error}."
        raise MalformedBodyError(message) from None


def _names(fields: Iterable[Any]) -> frozenset[str]:
    """Returns the names that a client may send for `fields`: those of their models, else their own."""
    names: set[str] = set()
    for field in fields:
        annotation = field.field_info.annotation
        models = [kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "__annotations__")]
        names.update(*map(_model_names, models) if models else [[field.alias]])
    return frozenset(names)


def _model_names(model: type) -> Iterable[str]:
    return model.model_fields if issubclass(model, BaseModel) else model.__annotations__


def _unknown_parameters(request: Request, known: frozenset[str]) -> list[str]:
    return [name for name in request.query_params if name not in known] if request.scope["query_string"] else []


def _preference(request: Request, fields: list[str], parameters: list[str]) -> dict[str, str]:
    """Returns the headers that say how unknown names were handled. Raises InvalidRequestError if strictly."""
    handling = _handling(request)
    headers = {"Preference-Applied": f"handling={handling}"} if handling else {}
    if not fields and not parameters:
        return headers
    if handling == "strict":
        raise InvalidRequestError(_unknown(fields, parameters), headers)
    return headers | {"Ignored-Fields": _listed([*fields, *parameters])}


def _handling(request: Request) -> str | None:
    """Returns the first `handling` of `Prefer` if it is one of the two defined (RFC 7240 section 4.4)."""
    sent = values_of(request, b"prefer")
    for preference in ",".join(sent).split(",") if sent else ():
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "handling":
            value = value.strip().strip('"').lower()
            return value if value in {"strict", "lenient"} else None
    return None


def _unknown(fields: Iterable[str], parameters: Iterable[str]) -> list[FieldError]:
    pointers = [
        *(body_pointer(_cut(name)) for name in fields),
        *(f"query/{quote(_cut(name), safe='')}" for name in parameters),
    ]
    return [FieldError(pointer, "is not known here") for pointer in pointers[:_NAMES_SHOWN]]


def _listed(names: list[str]) -> str:
    return ", ".join(quote(_cut(name), safe="") for name in names[:_NAMES_SHOWN])


def _cut(name: str) -> str:
    return name.encode()[:_NAME_LENGTH].decode(errors="ignore")

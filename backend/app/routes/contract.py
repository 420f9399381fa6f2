"""How a request is read (its token, then body limits, JSON, unknown names), and what every reply to GET gets."""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, get_args
from urllib.parse import quote

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.core.errors import (
    AppError,
    BodyTooLargeError,
    FieldError,
    InvalidRequestError,
    MalformedBodyError,
    UnsupportedMediaTypeError,
)
from app.routes.auth import authorize
from app.routes.conditions import unless_unchanged
from app.routes.errors import body_pointer, invalid_request

BODY_LIMIT: Final = 65_536  # bytes
_NAMES_SHOWN: Final = 20
_NAME_LENGTH: Final = 40  # bytes; with the number of names, a bound on what a reply repeats


class ContractRoute(APIRoute):
    """A route that asks for a token, then reads bodies strictly and unknown names as the client prefers (RFC 7240).

    Before it knows who asks, it reads nothing that follows the headers. An unknown body field or query parameter is
    ignored and named in `Ignored-Fields`; with `Prefer: handling=strict` it is refused. A GET gets an `ETag`, and 304
    if the client has it already.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known_query = _names(self.dependant.query_params)
        known_fields = _names([self.body_field] if self.body_field else [])

        async def answer(request: Request) -> Response:
            await authorize(request)
            data = None
            if self.body_field:
                request = await _JsonRequest.read(request)
                data = request.data
            fields = [name for name in data if name not in known_fields] if isinstance(data, dict) else []
            parameters = [name for name in request.query_params if name not in known_query]
            headers = _preference(request, fields, parameters)
            try:
                response = await handle(request)
            except RequestValidationError as error:
                raise invalid_request(error, headers) from None
            except AppError as error:
                error.headers.update(headers)
                raise
            if request.method == "GET":
                response = unless_unchanged(request, response)
            response.headers.update(headers)
            return response

        return answer


class _JsonRequest(Request):
    """A request whose body has been read and parsed, as FastAPI will ask for it."""

    content: bytes
    data: Any

    @classmethod
    async def read(cls, request: Request) -> "_JsonRequest":
        parsed = cls(request.scope, request.receive)
        parsed.content = await _read(request)
        parsed.data = _parse(request, parsed.content) if parsed.content else None
        return parsed

    async def body(self) -> bytes:
        return self.content

    async def json(self) -> Any:
        return self.data


async def _read(request: Request) -> bytes:
    """FastAPI's `max_body_size` answers an honest Content-Length in plain text, so the limit is kept here."""
    content = bytearray()
    if int(request.headers.get("content-length", "0")) > BODY_LIMIT:
        raise BodyTooLargeError(BODY_LIMIT)
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > BODY_LIMIT:
                raise BodyTooLargeError(BODY_LIMIT)
    except ClientDisconnect:
        message = "The connection ended before the body did."
        raise MalformedBodyError(message) from None
    return bytes(content)


def _parse(request: Request, content: bytes) -> Any:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if not is_json or request.headers.get("content-encoding", "identity").lower() != "identity":
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
    for preference in ",".join(request.headers.getlist("prefer")).split(","):
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

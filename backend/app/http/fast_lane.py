"""JSON routes, and the fast lane: a shortcut past FastAPI's router for JSON routes with simple signatures.

FastAPI analyses the signature of a handler for every request, and opens exit stacks for `yield` dependencies. The lane
analyses each signature once, when the application is built, and takes only routes without `yield` dependencies. FastAPI
serves every other route. The tests of the routes also pass with `FastLane.enabled = False`.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from inspect import iscoroutinefunction
from typing import Any, ClassVar, Final, NamedTuple

import orjson
from fastapi import FastAPI, params
from fastapi._compat import field_annotation_is_sequence
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_typed_return_annotation, request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts, serialize_response
from pydantic import BaseModel, Json
from pydantic_core import from_json, to_json
from starlette._utils import get_route_path
from starlette.convertors import StringConvertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import BodyTooLargeError, MalformedBodyError, UnsupportedMediaTypeError
from app.http.conditions import apply_if_none_match
from app.http.preferences import UNKNOWN_NAMES, KnownNames, UnknownNames, handling_headers, known_names
from app.http.problems import EXTRA_HEADERS
from app.http.remarks import remark, shown_names
from app.models.task import jsonable

BODY_LIMIT: Final = 65_536  # bytes
_ABSENT: Final[Any] = object()  # no body was sent; not None, because `null` is a body

_TAG: Final = re.compile(r'(?:[^,"]|"[^"]*"?)+')  # a tag may have commas, and no escapes (RFC 9110 section 8.8.3)

_Handler = Callable[[Request], Awaitable[Response]]


class FastLane:
    """Serves the routes that the lane supports. Passes every other request on to `app`."""

    enabled: ClassVar = True  # switched off by tests

    def __init__(self, app: ASGIApp, api: FastAPI) -> None:
        self._app = app
        self._api = api
        contexts = [*iter_route_contexts(api.routes)]
        methods = {method for context in contexts for method in context.methods or ()}
        self._table: dict[str, list[_Entry]] = {method: [] for method in methods}
        for context in contexts:
            pattern, handler = getattr(context, "path_regex", None), _lane_handler(context)
            effective = getattr(context, "_route_context", None) or context.original_route
            entry = _Entry(pattern, effective, context.original_route, handler, _body_limit(context))
            for method in context.methods or methods:
                self._table[method].append(entry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        entries = self._table.get(scope["method"], ()) if scope["type"] == "http" else ()
        path = get_route_path(scope) if entries else ""
        for pattern, context, route, handler, limit in entries:
            found = pattern.match(path) if pattern else None
            if found and handler and self.enabled and not self._api.dependency_overrides:
                path_params = {**scope.get("path_params", {}), **found.groupdict()}
                scope.update(route=route, endpoint=route.endpoint, path_params=path_params)
                scope["fastapi"] = {"effective_route_context": context}  # as FastAPI's router leaves it
                response = await handler(Request(scope, _limited(scope, receive, limit), send))
                await response(scope, receive, send)
                return
            if found or not pattern:
                _check_convertors(context, found)
                receive = _limited(scope, receive, limit)
                break
        await self._app(scope, receive, send)


class _Entry(NamedTuple):
    pattern: Any  # None if the route may match any path
    context: Any  # the route with what `include_router` adds to it
    route: Any
    handler: _Handler | None  # None if FastAPI serves the route
    limit: int | None  # bytes of a body; None for a mounted application


def _check_convertors(context: Any, found: Any) -> None:
    """Raises HTTPException with 404 if the path has a number with more digits than Python converts."""
    convertors = getattr(context, "param_convertors", {}) if found else {}
    try:
        for name, convertor in convertors.items():
            convertor.convert(found[name])
    except ValueError:
        raise HTTPException(HTTPStatus.NOT_FOUND) from None


def _limited(scope: Scope, receive: Receive, limit: int | None) -> Receive:
    """Returns a `receive` that raises for a body above `limit` bytes. FastAPI's own limit answers in plain text."""
    if limit is None:
        return receive
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise BodyTooLargeError(limit)
    size = 0

    async def receive_within() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:  # FastAPI makes any other exception a 400
            raise HTTPException(BodyTooLargeError.status) from BodyTooLargeError(limit)
        return message

    return receive_within


class JSONRoute(APIRoute):
    """A route class for `APIRouter(route_class=JSONRoute)`. Everything not named here is as in FastAPI.

    A body must be uncompressed JSON of 64 KiB at most. Unknown names are listed in `Ignored-Fields`. A GET has an
    `ETag`.
    """

    reads_unknown_names = True

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def respond(request: Request) -> Response:
            effective = effective_route(request.scope)
            names = known_names(effective if getattr(effective, "original_route", None) is self else self)
            return await _respond(request, names, lambda request, _: handle(request))

        return respond


def _body_limit(context: RouteContext) -> int | None:
    """Returns the route's `max_body_size` or BODY_LIMIT, in bytes. None for a mounted application."""
    if not isinstance(context.original_route, Route):
        return None
    own: int | None = getattr(context, "max_body_size", None)
    return BODY_LIMIT if own is None else own


def effective_route(scope: Scope) -> Any:
    """Returns the route chosen for the request, including the options of `include_router`, or None."""
    return scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")


def _lane_handler(context: RouteContext) -> _Handler | None:
    """Returns the lane's handler for the route, None if the lane does not support the route."""
    if type(context.original_route) is not JSONRoute or not _is_supported(context):  # a subclass may add behaviour
        return None
    reader, endpoint = ArgumentReader(context.dependant), context.dependant.call

    async def call(request: Request, body: Any) -> Response:
        result = await endpoint(**await reader.read(request, body))
        if isinstance(result, Response):
            return result
        content = await serialize_response(field=context.response_field, response_content=result, is_coroutine=True)
        return JSONResponse(content, context.status_code or HTTPStatus.OK)

    return partial(_respond, names=known_names(context), call=call)


def _is_supported(context: RouteContext) -> bool:
    """Whether the handler is a coroutine that returns a Response and takes what `ArgumentReader` reads."""
    dependant: Dependant = context.dependant
    returned = get_typed_return_annotation(dependant.call) if dependant.call else None
    bodies = [type(field.field_info) for field in dependant.body_params]
    calls = [dependency.call for dependency in dependant.dependencies]
    return (
        iscoroutinefunction(dependant.call)
        and isinstance(returned, type)
        and issubclass(returned, Response)
        and bodies in ([], [params.Body])
        and all(_is_required_or_null(field.field_info) for field in dependant.body_params)
        and {field.alias for field in dependant.path_params} <= context.param_convertors.keys()
        and not dependant.header_params
        and not dependant.cookie_params
        and not context._embed_body_fields  # noqa: SLF001  # FastAPI has no other name for it
        and len(set(calls)) == len(calls)
        and all(map(_is_plain, dependant.dependencies))
        and not _has_unsupported_parameter(dependant)
        and all(type(convertor) is StringConvertor for convertor in context.param_convertors.values())
    )


def _is_required_or_null(field: Any) -> bool:
    """Whether an absent body is an error or None."""
    return field.is_required() or (field.default is None and not field.default_factory and not field.validate_default)


def _is_plain(dependency: Dependant) -> bool:
    """Whether the dependency is a coroutine function with no parameter except the request."""
    parameters = (dependency.path_params, dependency.query_params, dependency.header_params, dependency.cookie_params)
    others = (dependency.body_params, dependency.dependencies, dependency.concurrency)
    return (
        iscoroutinefunction(dependency.call)
        and not any((*parameters, *others))
        and not _has_unsupported_parameter(dependency)
    )


def _has_unsupported_parameter(dependant: Dependant) -> bool:
    """Whether the signature has a FastAPI object that the lane does not provide, such as BackgroundTasks."""
    return bool(
        dependant.response_param_name
        or dependant.background_tasks_param_name
        or dependant.security_scopes_param_name
        or (dependant.request_param_name and dependant.http_connection_param_name)
    )


class ArgumentReader:
    """Like FastAPI's dependency solver, but the signature is analysed once."""

    def __init__(self, dependant: Dependant) -> None:
        self._dependencies: list[Any] = [
            (each.name, each.call, each.request_param_name or each.http_connection_param_name)
            for each in dependant.dependencies
        ]
        self._path = [(field.name, field.alias, field.validate) for field in dependant.path_params]
        self._query = dependant.query_params
        self._query_model = self._query[0] if _is_flat_model(self._query) else None
        self._lists = _list_names(self._query_model) if self._query_model else ()
        self._body = [(field.name, field.field_info.is_required(), field.validate) for field in dependant.body_params]
        self._request = dependant.request_param_name or dependant.http_connection_param_name

    async def read(self, request: Request, body: Any) -> dict[str, Any]:
        """Returns the arguments by name. An optional body that is absent is None.

        Raises RequestValidationError with every error found.
        """
        arguments: dict[str, Any] = {}
        for name, call, request_name in self._dependencies:
            given = await call(**{request_name: request} if request_name else {})
            if name:  # a dependency of `dependencies=` has none
                arguments[name] = given
        wrong: list[Any] = []
        for name, alias, validate in self._path:
            arguments[name], errors = validate(request.scope["path_params"][alias], loc=("path", alias))
            wrong += errors
        if self._query:
            values, errors = self._read_query(request)
            arguments |= values
            wrong += errors
        for name, required, validate in self._body:
            if body is not _ABSENT:
                arguments[name], errors = validate(body, loc=("body",))
                wrong += errors
            elif required:
                wrong.append({"type": "missing", "loc": ("body",), "msg": "Field required", "input": None})
            else:
                arguments[name] = None
        if wrong:
            raise RequestValidationError(wrong, body=None if body is _ABSENT else body)
        if self._request:
            arguments[self._request] = request
        return arguments

    def _read_query(self, request: Request) -> tuple[dict[str, Any], list[Any]]:
        """Validates one model at once: 10 µs of a list. FastAPI's own function reads each field separately: 110 µs."""
        if self._query_model is None:
            return request_params_to_args(self._query, request.query_params)
        sent: dict[str, Any] = dict(request.query_params) if request.scope["query_string"] else {}
        for name in self._lists:
            if name in sent:
                sent[name] = request.query_params.getlist(name)
        value, errors = self._query_model.validate(sent, loc=("query",))
        return {self._query_model.name: value}, errors


async def _respond(
    request: Request, names: KnownNames, call: Callable[[Request, Any], Awaitable[Response]]
) -> Response:
    body = await _read(request) if names.has_body else _ABSENT
    fields = [name for name in body if name not in names.fields] if isinstance(body, dict) else []
    own = names.reply_names if fields and request.scope["state"]["database"].keeps else None
    kept = {name for name in fields if name not in own} if own is not None else set()
    parameters = {
        name: value
        for name, value in (request.query_params.items() if request.scope["query_string"] else ())
        if name not in names.parameters or (name in names.words and value.lower() not in names.words[name])
    }
    unknown = request.scope[UNKNOWN_NAMES] = UnknownNames(fields, kept, parameters)
    prefer = values_of(request, b"prefer")
    headers = handling_headers(prefer, names, unknown) if prefer or fields or parameters else None
    if headers:
        request.scope[EXTRA_HEADERS] = headers
        remark(request.scope, ignored=shown_names(unknown.ignored))
    response = await call(request, body)
    if request.scope["method"] == "GET":
        response = apply_if_none_match(response, tags_of(request, b"if-none-match"))
    if headers:
        response.headers.update(headers)
    return response


async def _read(request: Request) -> Any:
    """Returns the parsed body, or _ABSENT without one. Raises an AppError for a body that is not accepted."""
    content = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise MalformedBodyError("The connection ended before the body did.")
        content += message.get("body", b"")
        more = message.get("more_body", False)
    request._body = bytes(content)  # noqa: SLF001  # https://fastapi.tiangolo.com/how-to/custom-request-and-route/
    return _parse(request, request._body) if content else _ABSENT  # noqa: SLF001


def _parse(request: Request, content: bytes) -> Any:
    media_type = "".join(values_of(request, b"content-type")[:1]).partition(";")[0].strip().lower()
    main, _, subtype = media_type.partition("/")
    is_json = main == "application" and "/" not in subtype and (subtype == "json" or subtype.endswith("+json"))
    if not is_json or any(coding.lower() != "identity" for coding in values_of(request, b"content-encoding")):
        raise UnsupportedMediaTypeError().because("Content-Encoding" if is_json else "Content-Type")
    try:
        text = content.removeprefix(BOM_UTF8)  # RFC 8259 section 8.1
        request._json = from_json(text, allow_inf_nan=False)  # noqa: SLF001  # so that FastAPI does not parse it again
    except ValueError as error:
        raise MalformedBodyError(f"The body is not JSON: {error}.") from None
    return request._json  # noqa: SLF001


def values_of(request: Request, name: bytes) -> list[str]:
    """Returns the values of a header. `name` is in lower case. `request.headers.getlist` takes four times as long."""
    return [value.decode("latin-1") for key, value in request.scope["headers"] if key == name]


def tags_of(request: Request, name: bytes) -> list[str] | None:
    """Returns the entity tags in a header, None if it is absent."""
    values = values_of(request, name)
    return [tag.strip(" \t") for value in values for tag in _TAG.findall(value)] if values else None


def _is_flat_model(fields: list[Any]) -> bool:
    """Whether the query parameters are one model without aliases and model validators."""
    model = fields[0].field_info.annotation if len(fields) == 1 else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)) or model.model_config.get("extra"):
        return False
    if model.__pydantic_decorators__.model_validators:  # they may read other names
        return False
    return not any(field.validation_alias for field in model.model_fields.values())


def _list_names(query: Any) -> list[str]:
    """Returns the parameters of the model that may be repeated. A parameter with JSON is one text."""
    fields = query.field_info.annotation.model_fields.items()
    lists = [(name, field.metadata) for name, field in fields if field_annotation_is_sequence(field.annotation)]
    return [name for name, metadata in lists if Json not in map(type, metadata)]


class RowResponse(Response):
    """A JSON reply made of dataclasses. Their fields may have any type that pydantic can serialize."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Returns the same JSON as pydantic: times in UTC end in `Z`."""
        try:
            return orjson.dumps(content, default=jsonable, option=orjson.OPT_PASSTHROUGH_DATETIME)
        except orjson.JSONEncodeError:  # an integer of more than 64 bits, or a key that is not text
            return to_json(content, inf_nan_mode="null")

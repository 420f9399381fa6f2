"""FastAPI's OpenAPI document, completed with the real headers, errors and security of each operation."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from starlette.routing import BaseRoute

from app.core.errors import (
    AppError,
    BodyTooLargeError,
    DatabaseUnavailableError,
    FieldError,
    ForbiddenError,
    InternalError,
    InvalidRequestError,
    MalformedBodyError,
    PreconditionFailedError,
    TaskNotFoundError,
    TokenInvalidError,
    UnsupportedMediaTypeError,
)
from app.http.authorization import is_public
from app.http.fast_lane import BODY_LIMIT, JSONRoute
from app.http.headers import REQUEST_HEADERS, RESPONSE_HEADERS
from app.http.problems import MEDIA_TYPE, problem_details
from app.schemas.problem import EXAMPLE_ID, Problem
from app.schemas.words import UNDOCUMENTED

_DESCRIPTION: Final = """\
Tasks, each owned by one user. {authentication}

* Errors are [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problem details with a `detail` that can be shown.
* Unknown body fields and query parameters are ignored and named in the reply header `Ignored-Fields`;
  with the request header `Prefer: handling=strict` they are refused with 422.
* A change with `If-Match` is made only if the task is still at the version that you have seen.
* A long list comes in pages. The reply header `Link` has the path of the next one.
* Every reply has an `X-Request-ID`; a valid one that you send is kept.
* Guides: [the API](docs/assets/api.md), [a frontend to copy](docs/assets/frontend.md), [tokens](docs/assets/auth.md).
"""
_ON: Final = "A bearer token proves who asks."
_OFF: Final = "Authentication is off, so any `user_id` will do."
_KEEPS: Final = "* But POST and PUT keep unknown body fields: replies have them after the fields of the task.\n"

_SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": (
            "A JWT from your issuer, without the word Bearer, checked as RFC8725 recommends. Its user has to be the "
            "one in the path. Whoever runs the service with a secret gets one for trials from `make token U=ada`, in a "
            "container from `python -m app.token ada`."
        ),
    }
}
_PROBLEM: Final = {"$ref": "#/components/schemas/Problem"}
_ON_ALL: Final = ("Ignored-Fields", "Preference-Applied")
# Errors of several operations. Each instance is the example in the document.
_ALWAYS: Final = (
    TokenInvalidError("expired"),
    ForbiddenError(),
    InvalidRequestError([FieldError("path/user_id", "has characters that are not allowed here")]),
    DatabaseUnavailableError(),
)
_BODY: Final = (
    MalformedBodyError("The body is not JSON: EOF while parsing a string at line 1 column 15."),
    BodyTooLargeError(BODY_LIMIT),
    UnsupportedMediaTypeError(),
    InvalidRequestError([FieldError("#/title", "must contain something other than white space")]),
)
_TASK: Final = (TaskNotFoundError(), PreconditionFailedError('"2026-11-22T09:31:12.654321Z"'))


def description(*, authenticates: bool, keeps: bool) -> str:
    """Returns the description of the API. `keeps` is the setting UNKNOWN_FIELDS."""
    return _DESCRIPTION.format(authentication=_ON if authenticates else _OFF) + _KEEPS * keeps


def operation_id(route: APIRoute) -> str:
    """Returns the operation id of a route: the name of its handler."""
    return route.name


def problems(*errors: AppError) -> dict[int | str, dict[str, Any]]:
    """Returns `responses` for FastAPI: the given errors and InternalError.

    If several errors have one status, the last is the example.
    """
    return {error.status: _problem(error) for error in (*errors, InternalError())}


def _operation(
    status: int, success: str, *errors: AppError, takes: tuple[str, ...] = (), gives: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Returns the keyword arguments for a route decorator that describe its responses and headers."""
    responses = {status: _answer(success, gives), **problems(*_ALWAYS, *errors)}
    if "Cache-Control" in gives:
        responses[304] = _answer("You have it already.", ("ETag", "Cache-Control"))
    parameters = _references("parameters", (*takes, "Prefer"))
    return {"responses": responses, "openapi_extra": {"parameters": list(parameters.values())}}


def _answer(description: str, headers: Iterable[str]) -> dict[str, Any]:
    return {"description": description, "headers": _references("headers", (*headers, *_ON_ALL))}


def _references(kind: str, names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/{kind}/{name}"} for name in names}


def _problem(error: AppError) -> dict[str, Any]:
    example = problem_details(error, EXAMPLE_ID)
    headers = [name for name in RESPONSE_HEADERS if name in error.headers]
    return {**_answer(error.title, headers), "model": Problem, "content": {MEDIA_TYPE: {"example": example}}}


LIST: Final = _operation(200, "A page of tasks.", takes=("If-None-Match",), gives=("ETag", "Cache-Control", "Link"))
CREATE: Final = _operation(
    201, "The new task.", *_BODY, takes=("Idempotency-Key",), gives=("ETag", "Location", "Idempotent-Replayed")
)
READ: Final = _operation(200, "The task.", *_TASK, takes=("If-None-Match", "If-Match"), gives=("ETag", "Cache-Control"))
CHANGE: Final = _operation(
    200, "The task as it is now.", *_TASK, *_BODY, takes=("If-Match", "If-None-Match"), gives=("ETag",)
)
DELETE: Final = _operation(204, "It is gone.", *_TASK, takes=("If-Match", "If-None-Match"))


def complete_document(
    document: dict[str, Any], routes: Sequence[BaseRoute], *, authenticates: bool, keeps: bool
) -> None:
    """Add to FastAPI's `document`, in place, the security, errors and headers of every operation.

    With `authenticates` off there is no security, but the errors of tokens stay: a client may meet them elsewhere.
    """
    components = document.setdefault("components", {})
    if authenticates:
        components["securitySchemes"] = {**components.get("securitySchemes", {}), **_SCHEMES}
    components["headers"] = RESPONSE_HEADERS
    components["parameters"] = {name: {"name": name, "in": "header", **each} for name, each in REQUEST_HEADERS.items()}
    _complete_schemas(components.setdefault("schemas", {}), keeps=keeps)
    for context in iter_route_contexts(routes):
        for method in context.methods or ():
            operation = document.get("paths", {}).get(context.path_format, {}).get(method.lower())
            if operation:
                _complete_operation(operation, context, authenticates=authenticates)
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, unused unless a route refers to them
        if f'"#/components/schemas/{name}"' not in json.dumps(document):
            components["schemas"].pop(name, None)


def _complete_schemas(schemas: dict[str, Any], *, keeps: bool) -> None:
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    for name, schema in {"Problem": problem, **problem.pop("$defs")}.items():
        schemas.setdefault(name, schema)
    schemas["Problem"]["example"] = example = problem_details(_BODY[-1], EXAMPLE_ID)
    schemas["ProblemField"]["example"] = example["errors"][0]
    for name in schemas.keys() & {"TaskCreate", "TaskUpdate", "TaskResponse"} if keeps else ():
        schemas[name]["additionalProperties"] = True
    for schema in schemas.values():
        _order_example(schema)


def _complete_operation(operation: dict[str, Any], context: RouteContext, *, authenticates: bool) -> None:
    """Add the common responses and the security. A response that the route describes itself is kept."""
    public = is_public(context)
    own = operation.get("security", [])  # from dependencies that use FastAPI's `Security`
    secured = authenticates and not public
    operation["security"] = [{**scheme, "bearer": []} for scheme in own or [{}]] if secured else own
    _drop_null(operation)
    if parameters := operation.get("parameters"):
        operation["parameters"] = [each for each in parameters if UNDOCUMENTED not in each.get("schema", {})]
    responses = operation.setdefault("responses", {})
    if "HTTPValidationError" in str(responses.get("422", "")):
        del responses["422"]
    names = () if isinstance(context.original_route, JSONRoute) else _ON_ALL
    errors = [*(() if public else _ALWAYS), *(_BODY[:2] if "requestBody" in operation else ())]
    for status, response in problems(*errors).items():
        headers = {name: header for name, header in response["headers"].items() if name not in names}
        described = {"description": response["description"], "headers": headers}
        described["content"] = {MEDIA_TYPE: {**response["content"][MEDIA_TYPE], "schema": _PROBLEM}}
        responses.setdefault(str(status), described)
    for status, response in responses.items():
        if status.startswith(("4", "5")):
            response.setdefault("content", {MEDIA_TYPE: {"schema": _PROBLEM}})
        _describe(response)
    operation["responses"] = dict(sorted(responses.items()))


def _drop_null(operation: dict[str, Any]) -> None:
    """Remove the `null` of `X | None` from parameters and an optional body, where it only means that X may be absent.

    Generators would make a class of the choice between X and `null`.
    """
    body = operation.get("requestBody", {})
    contents = () if body.get("required") else body.get("content", {}).values()
    for holder in (*operation.get("parameters", ()), *contents):
        schema = holder.get("schema", {})
        if kinds := [kind for kind in schema.pop("anyOf", ()) if kind != {"type": "null"}]:
            schema.pop("title", None)
            schema.update({"anyOf": kinds} if kinds[1:] else kinds[0])


def _order_example(schema: dict[str, Any]) -> None:
    """Put the example in the order of the properties, as in replies. Pydantic sorts it by name."""
    example, properties = schema.get("example"), schema.get("properties")
    if isinstance(example, dict) and properties:
        schema["example"] = {name: example[name] for name in properties if name in example}


def _describe(response: dict[str, Any]) -> None:
    response["headers"] = response.get("headers", {}) | _references("headers", ["X-Request-ID"])
    content = response.get("content", {})
    if MEDIA_TYPE in content:
        content[MEDIA_TYPE] |= content.pop("application/json", {})

"""What a handler takes, found in a request as FastAPI describes it, so that OpenAPI stays true."""

from inspect import iscoroutinefunction
from typing import Any, Final

from fastapi.dependencies.models import Dependant
from starlette.requests import Request

from app.core.errors import InvalidRequestError
from app.http.problems import field_error

ABSENT: Final[Any] = object()  # in the place of a body that was not sent; `null` is one


class Parameters:
    """FastAPI's way from a request to the arguments of a handler, without what it finds out anew for each request.

    A handler may take path parameters, one model of query parameters, one body, the request, and dependencies,
    coroutine functions that take the request alone.
    """

    def __init__(self, dependant: Dependant) -> None:
        """Raises TypeError for a handler that takes anything else."""
        _check(dependant)
        self._dependencies: list[Any] = [(each.name, each.call) for each in dependant.dependencies]
        self._path: list[Any] = [(field.name, field.alias, field.validate) for field in dependant.path_params]
        self._query = dependant.query_params
        self._body: list[Any] = [
            (field.name, field.field_info.is_required(), field.validate) for field in dependant.body_params
        ]
        self._request = dependant.request_param_name

    async def read(self, request: Request, body: Any) -> dict[str, Any]:
        """Returns the arguments by name, without a body that was not sent and need not be: the handler has a default.

        Raises InvalidRequestError, which has all that is wrong.
        """
        arguments: dict[str, Any] = {}
        for name, call in self._dependencies:
            arguments[name] = await call(request)
        wrong: list[Any] = []
        sent = request.path_params
        for name, alias, validate in self._path:
            arguments[name], errors = validate(sent[alias], loc=("path", alias))
            wrong += errors
        for field in self._query:
            arguments[field.name], errors = field.validate(dict(request.query_params), loc=("query",))
            wrong += errors
        for name, required, validate in self._body:
            if body is not ABSENT:
                arguments[name], errors = validate(body, loc=("body",))
                wrong += errors
            elif required:
                wrong.append({"type": "missing", "loc": ("body",)})
        if wrong:
            raise InvalidRequestError(map(field_error, wrong))
        if self._request:
            arguments[self._request] = request
        return arguments


def _check(dependant: Dependant) -> None:
    fields = [*dependant.header_params, *dependant.cookie_params]
    fields += [*dependant.query_params[1:], *dependant.body_params[1:]]
    wrong = [field.name for field in fields]
    wrong += [str(each.name) for each in dependant.dependencies if not _is_plain(each)]
    if wrong:
        message = f"{dependant.call} takes what ContractRoute does not read: {', '.join(wrong)}"
        raise TypeError(message)


def _is_plain(dependency: Dependant) -> bool:
    """Whether it is a named coroutine function that takes the request alone."""
    fields = (dependency.path_params, dependency.query_params, dependency.header_params, dependency.cookie_params)
    takes = any((*fields, dependency.body_params, dependency.dependencies))
    return bool(dependency.name) and iscoroutinefunction(dependency.call) and not takes

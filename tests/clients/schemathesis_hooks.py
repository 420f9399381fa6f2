"""What no schema can say: whether a cursor, a key or a version is the right one, besides having the right form."""

from http import HTTPStatus
from typing import Any

from schemathesis import Case, HookContext, Response, hook
from schemathesis.core.failures import Failure
from schemathesis.openapi.checks import RejectedPositiveData

_WRONG_ONE = {"does not belong to this list; start again without it", "was sent before with another task"}


@hook
def filter_failure(_: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """Returns whether a failure counts."""
    if not isinstance(failure, RejectedPositiveData):
        return True
    if response.status_code == HTTPStatus.UNPROCESSABLE_ENTITY:
        return not {error["detail"] for error in response.json()["errors"]} <= _WRONG_ONE
    conditional = not {"If-Match", "If-None-Match"}.isdisjoint(case.headers)
    return response.status_code != HTTPStatus.PRECONDITION_FAILED or not conditional

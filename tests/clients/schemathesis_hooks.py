"""Facts that the document leaves out: the token of a request, whether a cursor, a key or a version is valid, and what
the service understands beside what the document tells new clients to send.

No name may have a NUL character, which code generators would not understand.
"""

import json
import os
from http import HTTPStatus
from pathlib import Path
from time import time
from typing import Any

import jwt
from schemathesis import AuthContext, Case, HookContext, Response, auth, hook
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.openapi.checks import AllowHeaderMismatch, RejectedPositiveData

_WRONG_ONE = {
    "must contain something other than white space",  # U+001D is none for the `\s` of a pattern
    "does not belong to this list; start again without it",
    "was sent before with another task",
    "contradicts the body",
    "must not contain a NUL character",  # in a name: values have a pattern
}
_LIST = json.loads(Path("openapi.json").read_text())["paths"]["/api/{user_id}/tasks"]["get"]
_SORTS = next(each["schema"]["enum"] for each in _LIST["parameters"] if each["name"] == "sort")


@auth(refresh_interval=None)
class OwnToken:
    """Each request has the token of the user in its path."""

    def get(self, case: Case[Any], _: AuthContext) -> str:
        user = case.path_parameters.get("user_id")
        claims = {"sub": user if isinstance(user, str) else "ada", "exp": time() + 900}
        return jwt.encode(claims, os.environ["AUTH_JWT_SECRET"], "HS256")

    def set(self, case: Case[Any], data: str, _: AuthContext) -> None:
        case.headers["Authorization"] = f"Bearer {data}"


@hook
def filter_failure(_: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """Returns whether a failure counts."""
    if isinstance(failure, AcceptedNegativeData):
        return not _is_understood(case)
    if not isinstance(failure, RejectedPositiveData):
        return not (isinstance(failure, AllowHeaderMismatch) and _shares_its_path(case))
    if isinstance(case.body, dict) and any("\0" in name for name in case.body):
        return False
    if response.status_code == HTTPStatus.UNPROCESSABLE_ENTITY:
        if case.operation.path.endswith("/complete") and isinstance(case.body, dict) and "completed" not in case.body:
            return False  # other names, and none of them is the state
        return not {error["detail"] for error in response.json()["errors"]} <= _WRONG_ONE
    conditional = not {"If-Match", "If-None-Match"}.isdisjoint(case.headers)
    return response.status_code != HTTPStatus.PRECONDITION_FAILED or not conditional


def _shares_its_path(case: Case[Any]) -> bool:
    """Whether the path ends in a word, such as `/tasks/pending`, and `/tasks/{task_id}` answers its other methods."""
    collection, _, word = case.operation.path.rpartition("/")
    paths = case.operation.schema.raw_schema["paths"]
    return not word.startswith("{") and any(path.rpartition("/{")[0] == collection for path in paths)


def _is_understood(case: Case[Any]) -> bool:
    """Whether the request has an order that no list knows, a parameter that is not set, or null as value or body."""
    query, body = case.query or {}, case.body if isinstance(case.body, dict) else {}
    has_other_order = str(query.get("sort", "title")) not in _SORTS
    sent = {str(each) for value in query.values() for each in (value if isinstance(value, list) else [value])}
    is_not_set = not sent.isdisjoint({"", "null", "undefined"})
    return has_other_order or is_not_set or case.body is None or None in body.values()

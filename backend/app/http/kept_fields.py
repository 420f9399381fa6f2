"""Unknown body fields that a JSONRoute with the dependency `read_kept_fields` keeps if `UNKNOWN_FIELDS=keep`."""

import json
import re
from typing import Any, Final

from pydantic_core import to_json
from starlette.requests import Request

from app.core.errors import FieldError, InvalidRequestError
from app.http.preferences import NUL, UNKNOWN_NAMES
from app.http.problems import body_pointer, cut_name
from app.models.task import KEPT_BOUND, KEPT_BYTES_MAX, KEPT_NAME_PATTERN, KEPT_NAMES_MAX

_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # in JSON, where a backslash may be an escaped one


async def read_kept_fields(request: Request) -> dict[str, Any]:
    """Returns the fields to keep. Raises InvalidRequestError for those that cannot be stored, or too many."""
    unknown = request.scope[UNKNOWN_NAMES]
    if not unknown.kept:
        return {}
    body = await request.json()  # JSONRoute has parsed it
    fields = {name: body[name] for name in unknown.fields if name in unknown.kept}
    # An early and rough bound. PostgreSQL's text may be shorter than this one, but not half as long.
    if len(fields) > KEPT_NAMES_MAX or len(to_json(fields)) > 2 * KEPT_BYTES_MAX:
        raise InvalidRequestError([FieldError("#", KEPT_BOUND)])
    if faults := [(name, fault) for name, value in fields.items() if (fault := _fault(name, value))]:
        raise InvalidRequestError(FieldError(body_pointer(cut_name(name)), fault) for name, fault in faults)
    return fields


read_kept_fields.keeps_unknown_fields = True  # type: ignore[attr-defined]  # read by known_names
read_kept_fields.needs_json_route = True  # type: ignore[attr-defined]  # checked by check_routes


def _fault(name: str, value: Any) -> str | None:
    if not re.fullmatch(KEPT_NAME_PATTERN, name):
        return "is not a name that can be kept: 1 to 40 of A-Z a-z 0-9 _, without a digit at the start"
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        return "has a number that is too large to be kept"
    return NUL if _NUL.search(text) else None

"""Unknown body fields that a JSONRoute with the dependency `read_kept_fields` keeps if `UNKNOWN_FIELDS=keep`."""

import json
import re
from decimal import Context, Decimal
from math import nan
from typing import Any, Final

from starlette.requests import Request

from app.core.errors import FieldError, InvalidRequestError
from app.http.preferences import UNKNOWN_NAMES
from app.http.problems import body_pointer, cut_name
from app.models.task import KEPT_NAME_PATTERN
from app.schemas.problem import ERRORS_MAX

_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # in JSON, where a backslash may be an escaped one
_DIGITS: Final = 20  # of a number of 64 bits, with its sign
_UNTRAPPED: Final = Context(traps=[])  # not a number for an exponent that Decimal cannot hold


async def read_kept_fields(request: Request) -> dict[str, Any]:
    """Returns the fields to keep. Raises InvalidRequestError for those that would not be given back as sent."""
    names = request.scope[UNKNOWN_NAMES].kept
    if not names:
        return {}
    sent = json.loads(request._body, parse_int=_exact, parse_float=_exact)  # noqa: SLF001  # see fast_lane
    faults = [(name, fault) for name in names if (fault := _fault(name, sent[name]))][:ERRORS_MAX]
    if faults:
        raise InvalidRequestError(FieldError(body_pointer(cut_name(name)), fault) for name, fault in faults)
    return {name: sent[name] for name in names}


read_kept_fields.keeps_unknown_fields = True  # type: ignore[attr-defined]  # read by known_names
read_kept_fields.needs_json_route = True  # type: ignore[attr-defined]  # checked by check_routes


def _fault(name: str, value: Any) -> str | None:
    if not re.fullmatch(KEPT_NAME_PATTERN, name):
        return "is not a name that can be kept: 1 to 40 of A-Z a-z 0-9 _, without a digit at the start"
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        return "has a number that is too large or too precise to be kept"
    return "must not contain a NUL character" if _NUL.search(text) else None


def _exact(text: str) -> float:
    """Returns the number, NaN for one that neither 64 bits nor a double hold."""
    if len(text) <= _DIGITS and text.lstrip("-").isdigit() and -(2**63) <= int(text) < 2**64:
        return int(text)
    number = float(text)
    return number if Decimal(text, _UNTRAPPED) == Decimal(repr(number)) else nan

"""The rules of kept fields: unknown fields of a body that are stored with the task (`UNKNOWN_FIELDS=keep`)."""

import json
from collections.abc import Mapping
from typing import Any, Final

from app.core.errors import FieldError, InvalidRequestError, StatementError
from app.models.task import KEPT_BOUND, KEPT_BYTES_MAX

Kept = Mapping[str, Any]  # JSON by name

_CONSTRAINT: Final = "ck_tasks_kept_fields"
_TOO_MUCH: Final = [FieldError("#", KEPT_BOUND)]


def kept_text(kept: Kept | None) -> str | None:
    """Returns the JSON of the fields. Raises InvalidRequestError if they alone are more than a task may keep."""
    if not kept:
        return None
    text = json.dumps(kept, ensure_ascii=False, allow_nan=False)  # as PostgreSQL writes them, apart from numbers
    if len(text.encode()) > KEPT_BYTES_MAX:
        raise InvalidRequestError(_TOO_MUCH)
    return text


def refusal_of(error: StatementError) -> Exception:
    """Returns the error to raise: another one if the database refuses the values, or too many kept fields together."""
    return InvalidRequestError(_TOO_MUCH) if error.constraint == _CONSTRAINT else error.refusal or error

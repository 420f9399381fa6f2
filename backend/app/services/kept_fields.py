"""The rules of kept fields: unknown fields of a body that are stored with the task (`UNKNOWN_FIELDS=keep`)."""

import json
from collections.abc import Mapping
from typing import Any, Final

from app.core.errors import FieldError, InvalidRequestError, StatementError
from app.models.task import KEPT_BOUND

Kept = Mapping[str, Any]  # JSON by name

_CONSTRAINT: Final = "ck_tasks_kept_fields"


def kept_text(kept: Kept | None) -> str | None:
    """Returns the JSON of the fields, None without any."""
    return json.dumps(kept, ensure_ascii=False, allow_nan=False) if kept else None


def refusal_of(error: StatementError) -> Exception:
    """Returns the error to raise: another one if the database refuses the values, or so many kept fields."""
    if error.constraint == _CONSTRAINT:
        return InvalidRequestError([FieldError("#", KEPT_BOUND)])
    return error.refusal or error

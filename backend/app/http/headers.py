"""The headers of this API, for the OpenAPI document and for CORS."""

from typing import Any, Final

from app.schemas.problem import REQUEST_ID_PATTERN
from app.schemas.task import KEY_MAX

# Bare, or quoted as in RFC 8941 section 3.3.3.
_KEY: Final = rf'^([!#-~][ -~]{{0,{KEY_MAX - 1}}}|"([ !#-\[\]-~]|\\["\\]){{1,{KEY_MAX}}}")$'
_TAG: Final = '"2026-11-22T09:30:00.123456Z"'
_REQUEST_ID: Final = {"type": "string", "pattern": REQUEST_ID_PATTERN, "maxLength": 128}

REQUEST_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "If-Match": {
        "description": f"Entity tags with their quotes, as in `{_TAG}`; 412 if none fits. `*`: the task must exist.",
        "schema": {"type": "string"},
    },
    "If-None-Match": {
        "description": f"Entity tags with their quotes, as in `{_TAG}`; if one fits, a read is 304, a change 412.",
        "schema": {"type": "string"},
    },
    "Idempotency-Key": {
        "description": "Names this creation: sent again with the same key, it creates no second task.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 2 * KEY_MAX + 2, "pattern": _KEY},
    },
    "Prefer": {
        "description": "`handling=strict` refuses unknown names with 422 (RFC 7240 section 4.4).",
        "schema": {"type": "string"},
    },
}

RESPONSE_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "ETag": {
        "description": "The version. Of a task: its `updated_at` in double quotes. Of a list: weak.",
        "schema": {"type": "string", "maxLength": 40, "pattern": r'^(W/)?"[!#-~]*"$'},
        "example": _TAG,
    },
    "Cache-Control": {
        "description": "A cache may keep a list, and asks before each use. It keeps no task and no error.",
        "schema": {"type": "string", "enum": ["private, no-cache", "no-store"]},
    },
    "Link": {
        "description": 'The next page, relative to the host: `</api/...>; rel="next"` (RFC 8288). Absent on the last.',
        "schema": {"type": "string", "maxLength": 8_192, "pattern": '^<[!-~]+>; rel="next"$'},
    },
    "Location": {
        "description": "The path of the task.",
        "schema": {"type": "string", "format": "uri-reference", "maxLength": 512},
        "example": "/api/ada/tasks/019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa",
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 60},
    },
    "Idempotent-Replayed": {
        "description": "An earlier request with this `Idempotency-Key` had created the task.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "WWW-Authenticate": {
        "description": "How to authenticate (RFC 6750 section 3). With `error` if a token was sent.",
        "schema": {"type": "string", "maxLength": 200, "pattern": "^Bearer [ -~]+$"},
        "example": 'Bearer realm="tasks", error="invalid_token", error_description="The token has expired."',
    },
    "Ignored-Fields": {
        "description": "Body fields and query parameters that are not known here, percent-encoded.",
        "schema": {"type": "string", "maxLength": 4_096, "pattern": "^[ -~]*$"},
        "example": "priority, tags",
    },
    "Preference-Applied": {
        "description": "The `handling` of `Prefer`.",
        "schema": {"type": "string", "enum": ["handling=strict", "handling=lenient"]},
    },
    "X-Request-ID": {"description": "The id of this request, also in the log.", "schema": _REQUEST_ID},
}

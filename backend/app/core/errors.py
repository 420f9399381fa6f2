"""Every error that the service returns to a client. `http/problems.py` renders them.

AppError
├── MalformedBodyError         400
├── MalformedHeaderError       400
├── MalformedRequestError      400
├── PreflightRefusedError      400
├── UnauthenticatedError       401
│   ├── TokenMissingError
│   └── TokenInvalidError
├── ForbiddenError             403
├── NotFoundError              404
│   ├── RouteNotFoundError
│   └── TaskNotFoundError
├── MethodNotAllowedError      405
├── RequestTimeoutError        408
├── ConflictError              409
├── PreconditionFailedError    412
├── BodyTooLargeError          413
├── UnsupportedMediaTypeError  415
├── MisdirectedRequestError    421
├── InvalidRequestError        422
├── HeadTooLargeError          431
├── InternalError              500
├── FeatureNotImplementedError 501
├── UnavailableError           503
│   ├── DatabaseUnavailableError
│   ├── OverloadedError
│   ├── TimedOutError
│   ├── OutcomeUnknownError
│   ├── ShuttingDownError
│   └── IssuerUnavailableError
└── HTTPVersionError           505
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Self
from urllib.parse import unquote


class FieldError(NamedTuple):
    """One broken rule and where it is.

    `pointer` is `#/name` for the body (RFC 6901 section 6, as in the example of RFC 9457 section 3),
    and `query/name`, `path/name`, `header/name` or `cookie/name` elsewhere.
    """

    pointer: str
    detail: str

    @property
    def name(self) -> str:
        return unquote(self.pointer.partition("/")[2]) or "body"


class AppError(Exception):
    """Base class. Clients recognize an error by its `kind`, which never changes. Users read its `detail`.

    To add an error, write a subclass with `status` and `kind`. It needs `detail` unless each `raise` passes one. Only
    an error that a developer causes, such as 415, may speak to developers.
    """

    status: int
    kind: str
    title: str
    detail: str
    headers_always: ClassVar[Mapping[str, str]] = MappingProxyType({})
    errors: tuple[FieldError, ...] = ()
    reason: str | None = None  # only for the log
    classes: ClassVar[dict[str, type["AppError"]]] = {}  # of all errors, by kind

    def __init_subclass__(cls, *, is_base: bool = False) -> None:
        """Complete the class. `is_base` means that only its subclasses are raised."""
        if is_base:
            return
        kind = vars(cls).get("kind")
        if not (kind and hasattr(cls, "status")) or kind in cls.classes or cls.__module__ != __name__:
            raise TypeError(
                f"{cls.__name__} needs a status, and a kind that no other error has, and belongs in {__name__}"
            )
        cls.classes[kind] = cls
        if not hasattr(cls, "title"):
            cls.title = kind.replace("-", " ").capitalize()
        if not hasattr(cls, "detail"):
            cls.detail = f"{cls.title}."

    def __init__(self, detail: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.detail = self.detail if detail is None else detail
        self.headers = {**self.headers_always, **(headers or {})}
        super().__init__(self.detail)

    def because(self, reason: str) -> Self:
        """Returns this error with a reason for the log, which must not quote the request."""
        self.reason = reason
        return self


class MalformedBodyError(AppError):
    """The body is incomplete or is not JSON (RFC 8259)."""

    status, kind = 400, "malformed-body"


class MalformedHeaderError(AppError):
    """A header has invalid syntax."""

    status, kind = 400, "malformed-header"


class MalformedRequestError(AppError):
    """The bytes are not a valid HTTP request (RFC 9112), or are ambiguous."""

    status, kind = 400, "malformed-request"
    detail = "This is not an HTTP request, or not one that can be read in one way only."


class PreflightRefusedError(AppError):
    """The settings do not allow this origin, method or header."""

    status, kind = 400, "preflight-refused"


class UnauthenticatedError(AppError, is_base=True):
    """The request is not authenticated. `WWW-Authenticate` says how to authenticate (RFC 6750 section 3)."""

    status, title = 401, "Unauthenticated"


class TokenMissingError(UnauthenticatedError):
    """The request has no bearer token. Its challenge has no error information (RFC 6750 section 3.1)."""

    kind = "token-missing"
    detail = "Please sign in."
    headers_always = MappingProxyType({"WWW-Authenticate": 'Bearer realm="tasks"'})


class TokenInvalidError(UnauthenticatedError):
    """The token is not accepted. `reason` is only for the log, because it would help a forger."""

    kind = "token-invalid"

    def __init__(self, reason: str) -> None:
        description = "The token has expired." if reason == "expired" else "The token is not accepted."
        challenge = f'Bearer realm="tasks", error="invalid_token", error_description="{description}"'
        cause = "Your session has expired." if reason == "expired" else "Your sign-in was not accepted."
        super().__init__(f"{cause} Please sign in again.", {"WWW-Authenticate": challenge})
        self.reason = reason


class ForbiddenError(AppError):
    """The token is valid, but its user is not the one in the path."""

    status, kind = 403, "forbidden"
    detail = "This belongs to somebody else."


class NotFoundError(AppError, is_base=True):
    """Base class of the 404 errors."""

    status, title = 404, "Not found"


class RouteNotFoundError(NotFoundError):
    """No route has this path."""

    kind = "route-not-found"
    detail = "There is nothing at this address."


class TaskNotFoundError(NotFoundError):
    """The task does not exist, or belongs to another user. Clients cannot tell the two apart."""

    kind = "task-not-found"
    detail = "There is no such task."


class MethodNotAllowedError(AppError):
    """The path exists, but not with this method. `allowed` becomes the header `Allow` (RFC 9110 section 15.5.6)."""

    status, kind = 405, "method-not-allowed"

    def __init__(self, allowed: Iterable[str]) -> None:
        methods = ", ".join(allowed)
        super().__init__(f"This path answers {methods}.", {"Allow": methods})


class RequestTimeoutError(AppError):
    """The request was not complete after `seconds`."""

    status, kind = 408, "request-timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request was not complete after {seconds:g} seconds.")


class ConflictError(AppError):
    """The change violates a constraint: a value is not unique, or a reference has no target or is still in use.

    Or the row was changed or deleted after a Session had read it.
    """

    status, kind = 409, "conflict"
    detail = "This conflicts with something that is already stored."


class PreconditionFailedError(AppError):
    """`If-Match` or `If-None-Match` failed. `entity_tag` is the task's current tag, None if the task is missing."""

    status, kind = 412, "precondition-failed"
    detail = "The task has been changed in the meantime. Please load it again."

    def __init__(self, entity_tag: str | None, detail: str | None = None) -> None:
        if entity_tag is None:
            super().__init__("There is no such task.")
        else:
            super().__init__(detail, {"ETag": entity_tag})


class BodyTooLargeError(AppError):
    """The body is longer than `limit` bytes."""

    status, kind = 413, "body-too-large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"This is too large: the limit is {limit:,} bytes.")


class UnsupportedMediaTypeError(AppError):
    """The body is not declared as JSON, or is compressed."""

    status, kind = 415, "unsupported-media-type"
    detail = "Send JSON, uncompressed, with the header Content-Type: application/json."
    headers_always = MappingProxyType({"Accept": "application/json"})


class MisdirectedRequestError(AppError):
    """The `Host` is not this machine, or a proxy has forwarded the request (RFC 9110 section 15.5.20).

    A malicious web page may have sent it, or anyone whom the proxy serves.
    """

    status, kind = 421, "misdirected-request"
    detail = (
        "Without authentication the service answers on localhost only, and not through a proxy or a forwarded port. "
        "Set AUTH_JWT_SECRET or AUTH_JWKS_URL."
    )


class InvalidRequestError(AppError):
    """One or more fields are invalid. `errors` is empty if the database did not name the field."""

    status, kind = 422, "invalid-request"
    detail = "One of the values is not allowed."

    def __init__(self, errors: Iterable[FieldError], detail: str | None = None) -> None:
        self.errors = tuple(errors)
        super().__init__(detail or "; ".join(f"{each.name}: {each.detail}" for each in self.errors[:3]) or None)


class HeadTooLargeError(AppError):
    """The request line and headers exceed `size` bytes or `count` headers (RFC 6585 section 5)."""

    status, kind = 431, "head-too-large"

    def __init__(self, size: int, count: int) -> None:
        super().__init__(f"The request line and headers may have {size:,} bytes and {count} headers at most.")


class InternalError(AppError):
    """A defect of the service. The log has the exception under the same request id."""

    status, kind = 500, "internal-error"
    detail = "Something went wrong on our side. Please try again later."


class FeatureNotImplementedError(AppError):
    """No resource supports this method or transfer coding (RFC 9110 section 15.6.2)."""

    status, kind = 501, "not-implemented"
    detail = "This method or transfer coding is not known here."


class UnavailableError(AppError, is_base=True):
    """The request cannot be served now; `Retry-After` is in seconds (RFC 9110 section 10.2.3)."""

    status = 503
    headers_always = MappingProxyType({"Retry-After": "1"})


class DatabaseUnavailableError(UnavailableError):
    """The database cannot be reached, or lacks what the service needs. Nothing was changed."""

    kind = "database-unavailable"
    detail = "The service is not available at the moment. Please try again."


class OverloadedError(UnavailableError):
    """No database connection became free in time, or too many requests wait for a connection."""

    kind = "overloaded"
    detail = "The service is busy at the moment. Please try again."


class TimedOutError(UnavailableError):
    """The statement was aborted because it was too slow or in conflict with others. Nothing was changed."""

    kind = "timed-out"
    detail = "This took too long. Please try again."


class OutcomeUnknownError(UnavailableError):
    """A change was sent to the database, and no answer came."""

    kind = "outcome-unknown"
    detail = "The change may or may not have been made. Please look before you try again."


class ShuttingDownError(UnavailableError):
    """The service stopped before the request was finished."""

    kind = "shutting-down"
    detail = "The service stopped. A change may or may not have been made. Please look before you try again."


class IssuerUnavailableError(UnavailableError):
    """The keys that verify tokens could not be fetched yet."""

    kind = "issuer-unavailable"
    detail = "Your sign-in cannot be checked at the moment. Please try again."


class HTTPVersionError(AppError):
    """The major version of HTTP is not supported."""

    status, kind, title = 505, "http-version-not-supported", "HTTP version not supported"
    detail = "This server speaks HTTP/1.1."


class StatementError(Exception):
    """A statement is wrong, or the role may not run it. The text has only the class and SQLSTATE of `error`.

    The driver's own text is omitted because it may quote the user's data. `constraint` is the name of the violated one.
    `refusal` is the error to raise instead if the statement has values of a client, and they are to blame.
    """

    def __init__(self, error: BaseException, refusal: AppError | None = None) -> None:
        super().__init__(f"{type(error).__name__} {getattr(error, 'sqlstate', None)}")
        self.constraint: str | None = getattr(error, "constraint_name", None)
        self.refusal = refusal


class StartupError(Exception):
    """The service cannot start. The text is one sentence for the operator."""


def without_text(error: BaseException | None) -> str:
    """Returns the class and SQLSTATE of a driver's error, and the violated constraint."""
    parts = (getattr(error, name, None) for name in ("sqlstate", "constraint_name"))
    return " ".join(filter(None, (type(error).__name__, *parts)))

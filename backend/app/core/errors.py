"""Everything the service answers instead of a result. `http/problems.py` renders it.

AppError
├── MalformedBodyError         400  the body is not JSON text
├── MalformedHeaderError       400  a header that cannot be read
├── MalformedRequestError      400  not HTTP
├── PreflightRefusedError      400  CORS does not allow it
├── UnauthenticatedError       401
│   ├── TokenMissingError           no bearer token
│   └── TokenInvalidError           one that is not accepted
├── ForbiddenError             403  the token is another user's
├── NotFoundError              404
│   ├── RouteNotFoundError          no such path
│   └── TaskNotFoundError           no such task, or another user's
├── MethodNotAllowedError      405
├── RequestTimeoutError        408  the request does not come to an end
├── PreconditionFailedError    412  If-Match or If-None-Match does not hold
├── BodyTooLargeError          413
├── UnsupportedMediaTypeError  415
├── MisdirectedError           421  not meant for this machine
├── InvalidRequestError        422  well-formed, but a field breaks a rule
├── HeadTooLargeError          431  too many or too long headers
├── InternalError              500  a defect of ours
└── UnavailableError           503
    ├── DatabaseUnavailableError    no answer
    ├── OverloadedError             too many requests, or no free connection
    ├── TimedOutError               the statement did not finish, and changed nothing
    ├── OutcomeUnknownError         a change was sent, and no answer came
    ├── ShuttingDownError           the service ends before the request does
    └── IssuerUnavailableError      no keys to check tokens with
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple
from urllib.parse import unquote


class FieldError(NamedTuple):
    """One broken rule and where it is.

    `pointer` is `#/name` for the body (RFC 6901 section 6, as in the example of RFC 9457 section 3),
    and `query/name`, `path/name` or `header/name` elsewhere.
    """

    pointer: str
    detail: str


class AppError(Exception):
    """Base of the tree: a status, a stable kind, a fixed title, a sentence for this occurrence."""

    status: ClassVar[int]
    kind: ClassVar[str]
    title: ClassVar[str]
    errors: tuple[FieldError, ...] = ()

    def __init__(self, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})


class MalformedBodyError(AppError):
    """The body is cut off or is not JSON text (RFC 8259)."""

    status = 400
    kind = "malformed-body"
    title = "Malformed body"


class MalformedHeaderError(AppError):
    """A header does not have the form that it must have."""

    status = 400
    kind = "malformed-header"
    title = "Malformed header"


class MalformedRequestError(AppError):
    """The bytes are not an HTTP request (RFC 9112)."""

    status = 400
    kind = "malformed-request"
    title = "Malformed request"

    def __init__(self) -> None:
        super().__init__("This is not an HTTP request, or not one that can be read in one way only.")


class PreflightRefusedError(AppError):
    """The settings do not allow this origin, method or header."""

    status = 400
    kind = "preflight-refused"
    title = "Preflight refused"


class UnauthenticatedError(AppError):
    """Nothing proves who asks. `WWW-Authenticate` says how to (RFC 6750 section 3)."""

    status = 401
    title = "Unauthenticated"


class TokenMissingError(UnauthenticatedError):
    """There is no bearer token."""

    kind = "token-missing"

    def __init__(self) -> None:
        super().__init__(
            "Send a token, with the header Authorization: Bearer <token>.",
            {"WWW-Authenticate": 'Bearer realm="tasks"'},
        )


class TokenInvalidError(UnauthenticatedError):
    """The token is not accepted. `reason` is for the log: whoever forges tokens is not told what to mend."""

    kind = "token-invalid"

    def __init__(self, reason: str) -> None:
        detail = "The token has expired." if reason == "expired" else "The token is not accepted."
        challenge = f'Bearer realm="tasks", error="invalid_token", error_description="{detail}"'
        super().__init__(detail, {"WWW-Authenticate": challenge})
        self.reason = reason


class ForbiddenError(AppError):
    """The token is good, but of another user than the path's."""

    status = 403
    kind = "forbidden"
    title = "Forbidden"

    def __init__(self) -> None:
        super().__init__("The token was issued for another user.")


class NotFoundError(AppError):
    """Nothing is there."""

    status = 404
    title = "Not found"


class RouteNotFoundError(NotFoundError):
    """No route has this path."""

    kind = "route-not-found"

    def __init__(self) -> None:
        super().__init__("There is nothing at this path.")


class TaskNotFoundError(NotFoundError):
    """No such task, or another user's: the two are never told apart."""

    kind = "task-not-found"

    def __init__(self) -> None:
        super().__init__("There is no such task.")


class MethodNotAllowedError(AppError):
    """The path exists, the method does not. `allowed` goes into `Allow` (RFC 9110 section 15.5.6)."""

    status = 405
    kind = "method-not-allowed"
    title = "Method not allowed"

    def __init__(self, allowed: Iterable[str]) -> None:
        methods = ", ".join(allowed)
        super().__init__(f"This path answers {methods}.", {"Allow": methods})


class RequestTimeoutError(AppError):
    """The request did not arrive in `seconds`."""

    status = 408
    kind = "request-timeout"
    title = "Request timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request was not complete after {seconds:g} seconds.")


class PreconditionFailedError(AppError):
    """The task is not at a version that the request is meant for. `entity_tag` is the current one, if there is one."""

    status = 412
    kind = "precondition-failed"
    title = "Precondition failed"

    def __init__(self, entity_tag: str | None) -> None:
        if entity_tag is None:
            super().__init__("There is no such task.")
        else:
            super().__init__(
                "The task is not at the version that the request names. The current one is in the header ETag.",
                {"ETag": entity_tag},
            )


class BodyTooLargeError(AppError):
    """The body is longer than `limit` bytes."""

    status = 413
    kind = "body-too-large"
    title = "Body too large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"A request body may have {limit:,} bytes at most.")


class UnsupportedMediaTypeError(AppError):
    """The body is not declared as JSON, or is compressed."""

    status = 415
    kind = "unsupported-media-type"
    title = "Unsupported media type"

    def __init__(self) -> None:
        super().__init__(
            "Send JSON, uncompressed, with the header Content-Type: application/json.",
            {"Accept": "application/json"},
        )


class MisdirectedError(AppError):
    """The request names another host than this machine: a web page may have led a browser here (RFC 9110 15.5.20)."""

    status = 421
    kind = "misdirected-request"
    title = "Misdirected request"

    def __init__(self) -> None:
        super().__init__("Without authentication the service answers on localhost only.")


class InvalidRequestError(AppError):
    """One or more fields break a rule; `errors` names each."""

    status = 422
    kind = "invalid-request"
    title = "Invalid request"

    def __init__(self, errors: Iterable[FieldError], headers: Mapping[str, str] | None = None) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(map(_sentence, self.errors[:3])), headers)


class HeadTooLargeError(AppError):
    """The request line and the headers are longer than `size` bytes, or more than `count` (RFC 6585 section 5)."""

    status = 431
    kind = "head-too-large"
    title = "Head too large"

    def __init__(self, size: int, count: int) -> None:
        super().__init__(f"The request line and headers may have {size:,} bytes and {count} headers at most.")


class InternalError(AppError):
    """A defect of ours. What happened is in the log under the same request id."""

    status = 500
    kind = "internal-error"
    title = "Internal error"

    def __init__(self) -> None:
        super().__init__("Something went wrong on our side. Please quote the request id when you report it.")


class UnavailableError(AppError):
    """The request cannot be served now; `Retry-After` is in seconds (RFC 9110 section 10.2.3)."""

    status = 503
    title = "Unavailable"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, {"Retry-After": "1"})


class DatabaseUnavailableError(UnavailableError):
    """The database cannot be reached. Nothing was changed."""

    kind = "database-unavailable"
    title = "Database unavailable"

    def __init__(self) -> None:
        super().__init__("The database cannot be reached at the moment. Please try again.")


class OverloadedError(UnavailableError):
    """Every connection to the database was in use for as long as a request may wait, or too many requests wait."""

    kind = "overloaded"
    title = "Overloaded"

    def __init__(self) -> None:
        super().__init__("The service is busy at the moment. Please try again.")


class TimedOutError(UnavailableError):
    """The statement was too slow, or in the way of others, and was given up. Nothing was changed."""

    kind = "timed-out"
    title = "Timed out"

    def __init__(self) -> None:
        super().__init__("The database could not finish this in time. Please try again.")


class OutcomeUnknownError(UnavailableError):
    """A change was sent to the database, and no answer came."""

    kind = "outcome-unknown"
    title = "Outcome unknown"

    def __init__(self) -> None:
        super().__init__("The change may or may not have been made. Please look before you try again.")


class ShuttingDownError(UnavailableError):
    """The service ends, and the request was not done by then."""

    kind = "shutting-down"
    title = "Shutting down"

    def __init__(self) -> None:
        super().__init__("The service was stopped before it was done. A change may or may not have been made.")


class IssuerUnavailableError(UnavailableError):
    """The keys that tokens are checked with could not be fetched yet."""

    kind = "issuer-unavailable"
    title = "Issuer unavailable"

    def __init__(self) -> None:
        super().__init__("Tokens cannot be checked at the moment. Please try again.")


class StatementError(Exception):
    """A statement failed in a way that it never should. Names the driver's class and SQLSTATE;
    the driver's own text is left out because it may quote the user's data.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__} {getattr(error, 'sqlstate', None)}")


class StartupError(Exception):
    """The service cannot start. The text is one sentence for the operator."""


def _sentence(error: FieldError) -> str:
    name = unquote(error.pointer.partition("/")[2]) or "body"
    return f"{name}: {error.detail}"

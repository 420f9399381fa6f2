"""The classes of errors, and their texts. Many frontends show `detail` to their users."""

import inspect
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest

from app.core import errors
from app.core.errors import AppError

CAUSED_BY_DEVELOPERS: Final = {400, 405, 415, 421, 431, 501, 505}  # users meet every other error
DEVELOPERS_WORD: Final = re.compile(
    r"tokens?|bearer|jwt|headers?|body|json|https?|sql|databases?|etags?|if-match|keys?|ids?|uuids?|ur[li]s?|paths?"
    r"|query|parameters?|pointers?|cursors?|nul|null|retry.*|issuers?|connections?|statements?|constraints?|octets?",
    re.IGNORECASE,
)
# The arguments of the errors that need some.
ARGUMENTS: Final[dict[str, list[tuple[Any, ...]]]] = {
    "TokenInvalidError": [("expired",), ("signature",)],
    "MethodNotAllowedError": [(["GET"],)],
    "RequestTimeoutError": [(30,)],
    "PreconditionFailedError": [(None,), ('"a"',)],
    "BodyTooLargeError": [(65_536,)],
    "InvalidRequestError": [([],)],
    "HeadTooLargeError": [(32_768, 100)],
}


def every_error() -> Iterator[AppError]:
    """Every error, but for those of developers that get their text where they are raised."""
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if not issubclass(kind, AppError) or not hasattr(kind, "kind"):
            continue
        if kind.status not in CAUSED_BY_DEVELOPERS or hasattr(kind, "detail") or name in ARGUMENTS:
            yield from (kind(*arguments) for arguments in ARGUMENTS.get(name, [()]))


@pytest.mark.parametrize("error", [*every_error()], ids=lambda error: f"{error.status} {error.detail}")
def test_a_detail_is_sentences_and_those_of_users_have_no_word_of_developers(error: AppError) -> None:
    assert re.fullmatch(r"[A-Z][ -~]*\.", error.detail)
    words = [] if error.status in CAUSED_BY_DEVELOPERS else re.findall(r"[\w-]+", error.detail)
    assert [word for word in words if DEVELOPERS_WORD.fullmatch(word)] == []


@pytest.mark.parametrize(
    ("base", "members"),
    [
        (AppError, {}),
        (AppError, {"kind": "gone"}),
        (AppError, {"status": 410}),
        (errors.NotFoundError, {}),
        (errors.TaskNotFoundError, {}),
        (errors.NotFoundError, {"kind": "task-not-found"}),
        (AppError, {"status": 410, "kind": "gone", "__module__": "app.services.tasks"}),
    ],
)
def test_an_error_that_the_document_would_not_have_or_a_reply_could_not_be_made_of_is_refused_at_import(
    base: type, members: dict[str, object]
) -> None:
    with pytest.raises(TypeError, match=r"^GoneError needs a status, and a kind that no other error has, and belongs"):
        type("GoneError", (base,), {"__module__": errors.__name__, **members})

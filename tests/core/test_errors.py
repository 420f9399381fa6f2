"""The classes of errors."""

import gc

import pytest

from app.core import errors
from app.core.errors import AppError


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
    gc.collect()  # or other tests would see a subclass

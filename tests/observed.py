"""`python -m app`, but every DELETE meets a defect."""

from typing import NoReturn

import pytest

from app.__main__ import main


async def defect(*_: object, **__: object) -> NoReturn:
    raise LookupError("defect")


pytest.MonkeyPatch().setattr("app.services.tasks.delete_task", defect)

if __name__ == "__main__":
    main()

"""`python -m app`, but a request for a list never ends and blocks the event loop."""

import logging
import os
import time
from typing import NoReturn

import pytest

from app.__main__ import main


def hang(*_: object, **__: object) -> NoReturn:
    logging.getLogger("app").info("stuck", extra={"pid": os.getpid()})
    while True:
        time.sleep(0.01)


# Also in each worker, which imports this module.
pytest.MonkeyPatch().setattr("app.services.tasks.list_tasks", hang)

if __name__ == "__main__":
    main()

"""`python -m app`, but with the lines in which uvicorn names its processes."""

import pytest

from app.__main__ import main

pytest.MonkeyPatch().setattr("app.core.logging.QUIET", ())

if __name__ == "__main__":
    main()

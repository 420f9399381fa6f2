"""`python -m app`, but a statement may take any time, so that a test decides how long a request is in flight."""

from functools import partial

import pytest

from app.__main__ import main
from app.core.database import Database
from app.core.database.pool import Timeouts

# Also in each worker, which imports this module.
pytest.MonkeyPatch().setattr("app.main.Database", partial(Database, timeouts=Timeouts(statement=3_600)))

if __name__ == "__main__":
    main()

"""`python -m app`, but a statement may take any time, so that a test decides how long a request is in flight."""

from app.__main__ import main
from app.core.database import engine

vars(engine)["STATEMENT_TIMEOUT"] = 3_600  # also in each worker, which imports this module

if __name__ == "__main__":
    main()

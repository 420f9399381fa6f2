"""A service with authentication, for tests that add to it."""

from collections.abc import Callable

import pytest

from app.core.config import Settings
from tests.support import SECRET


@pytest.fixture(scope="session")
def secured(configure: Callable[..., Settings]) -> Settings:
    return configure(auth_jwt_secret=SECRET)

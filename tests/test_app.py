"""What the application does that no request to a sound one shows."""

import httpx
import pytest
from starlette.exceptions import HTTPException

from app.core.config import Settings
from app.core.errors import StartupError
from app.main import create_app


async def test_without_a_database_it_does_not_start_and_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    app = create_app(Settings(_env_file=None))

    with pytest.raises(StartupError, match="DATABASE_URL is not set"):
        async with app.router.lifespan_context(app):
            raise AssertionError


async def test_an_exception_of_the_framework_that_nobody_expects_is_a_logged_defect(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(settings)

    @app.get("/teapot")
    async def brew() -> None:
        raise HTTPException(418)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        reply = await client.get("/teapot")

    assert (reply.status_code, reply.json()["type"]) == (500, "urn:problem-type:internal-error")
    assert "unexpected error" in caplog.messages

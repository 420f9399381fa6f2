"""`python -m app.token` prints a token that the service with the same settings accepts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from app import token
from app.core.config import load_settings
from tests.support import SECRET, serving

SECRET_ONLY = {"AUTH_JWT_SECRET": SECRET}
JWKS_URL = {"AUTH_JWKS_URL": "https://app.example.com/jwks", "AUTH_ISSUER": "a", "AUTH_AUDIENCE": "b"}

Print = Callable[..., tuple[str, str]]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Print:
    """Runs the command with an `.env` of these settings. Returns what it prints on stdout and stderr."""

    def run(settings: Mapping[str, str], *arguments: str) -> tuple[str, str]:
        Path(".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        monkeypatch.setattr("sys.argv", ["token", *arguments])
        token.main()
        return capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize(
    ("settings", "claims"),
    [
        (SECRET_ONLY | {"AUTH_ISSUER": "unchecked"}, {"sub": "auth0|ada"}),
        (
            {"BETTER_AUTH_SECRET": SECRET, "AUTH_ISSUER": "a", "AUTH_AUDIENCE": "b", "AUTH_USER_ID_CLAIM": "user.id"},
            {"user": {"id": "auth0|ada"}, "iss": "a", "aud": "b"},
        ),
    ],
    ids=["as few as possible", "all"],
)
async def test_the_service_with_the_same_settings_accepts_the_token_which_has_the_claims_that_it_demands(
    printed: Print, dsn: str, settings: dict[str, str], claims: dict[str, Any]
) -> None:
    out, err = printed({**settings, "DATABASE_URL": dsn}, "auth0|ada")

    async with serving(load_settings()) as url, httpx.AsyncClient(base_url=url) as client:
        headers = {"Authorization": f"Bearer {out.rstrip()}"}
        assert (await client.get("/api/auth0%7Cada/tasks", headers=headers)).status_code == 200
        assert (await client.get("/api/grace/tasks", headers=headers)).status_code == 403
    assert out.count("\n") == 1
    decoded = jwt.decode(out.rstrip(), options={"verify_signature": False})
    assert decoded.pop("exp")
    assert decoded == claims
    assert err.startswith("The token of auth0|ada is valid until ")


@pytest.mark.parametrize(
    ("settings", "arguments", "sentence"),
    [
        (JWKS_URL, ["ada"], "AUTH_JWKS_URL: only your issuer can sign tokens for its keys, so sign in there"),
        ({}, ["ada"], "AUTH_JWT_SECRET: is not set, so authentication is off and requests need no token"),
        (SECRET_ONLY, [], "Name one user, as in `make token U=ada`"),
        (SECRET_ONLY, ["ada", "grace"], "Name one user, as in `make token U=ada`"),
        (SECRET_ONLY, [""], "Name one user, as in `make token U=ada`"),
        (SECRET_ONLY, ["ada lovelace"], "Name one user, as in `make token U=ada`"),
        (SECRET_ONLY, ["--help"], "Name one user, as in `make token U=ada`"),
        ({"AUTH_JWT_SECRET": "short"}, ["ada"], "AUTH_JWT_SECRET: must have at least 32 bytes"),
    ],
    ids=["keys", "off", "nobody", "two", "empty", "invalid", "option", "wrong settings"],
)
def test_a_token_that_nobody_would_accept_is_refused_with_a_sentence(
    printed: Print, settings: dict[str, str], arguments: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        printed(settings, *arguments)

    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)

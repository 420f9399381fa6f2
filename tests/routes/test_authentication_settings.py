"""The settings of authentication: issuer, audience, the claim with the user id, and leeway."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from time import time
from typing import Any, Final

import httpx
import pytest

from tests.support import SECRET, make_settings, serving
from tests.tokens import carrying, claims_of, signer

CHALLENGE: Final = 'Bearer realm="tasks", error="invalid_token", error_description='

Ask = Callable[[Mapping[str, object]], Awaitable[httpx.Response]]


@asynccontextmanager
async def zoe_at(dsn: str, **authentication: Any) -> AsyncIterator[Ask]:
    """Yields a function that lists Zoe's tasks with a token of these claims, at a service with these settings."""
    settings = make_settings(dsn, auth_jwt_secret=SECRET, **authentication)
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield lambda claims: client.get("/api/zoe/tasks", headers=carrying(signer("HS256").issue(claims)))


@pytest.mark.parametrize(
    ("settings", "accepted", "refused"),
    [
        ({}, [{}, {"iss": "any", "aud": ["any"]}], []),
        ({"auth_issuer": "unchecked", "auth_audience": "unchecked"}, [{}, {"iss": "any", "aud": "any"}], []),
        ({"auth_issuer": "a"}, [{"iss": "a", "aud": "any"}], [{}, {"iss": "b"}]),
        ({"auth_audience": "b"}, [{"aud": "b"}, {"aud": ["other", "b"], "iss": "any"}], [{}, {"aud": "c"}]),
    ],
    ids=["unset", "unchecked", "issuer", "audience"],
)
async def test_issuer_and_audience_are_checked_independently(
    dsn: str, settings: dict[str, str], accepted: list[dict[str, Any]], refused: list[dict[str, Any]]
) -> None:
    async with zoe_at(dsn, **settings) as ask:
        assert [(await ask(claims_of("zoe", **claims))).status_code for claims in accepted] == [200] * len(accepted)
        assert [(await ask(claims_of("zoe", **claims))).status_code for claims in refused] == [401] * len(refused)


async def test_a_dotted_claim_path_names_the_user_instead_of_the_subject(dsn: str) -> None:
    wrong: list[object] = [None, "zoe", ["zoe"], {}, {"ID": "zoe"}, {"id": 1}, {"id": {"id": "zoe"}}]
    async with zoe_at(dsn, auth_user_id_claim="user.id") as ask:
        assert (await ask({"user": {"id": "zoe"}, "exp": int(time()) + 600})).status_code == 200
        assert (await ask(claims_of("zoe", user={"id": "eve"}))).status_code == 403
        assert [(await ask(claims_of("zoe", user=user))).status_code for user in wrong] == [401] * len(wrong)
        assert (await ask(claims_of("zoe") | {"user.id": "zoe"})).status_code == 401


@pytest.mark.parametrize(
    ("settings", "accepted", "refused"),
    [
        ({"auth_leeway_seconds": 60}, {"exp": -30, "nbf": 50, "iat": 50}, {"exp": -61, "nbf": 120, "iat": 120}),
        ({"auth_leeway_seconds": 0}, {}, {"exp": -1, "nbf": 50}),
        ({}, {"exp": -1}, {"exp": -31, "nbf": 80}),
    ],
    ids=["60 seconds", "none", "30 seconds by default"],
)
async def test_a_time_is_accepted_only_within_the_leeway(
    dsn: str, settings: dict[str, Any], accepted: dict[str, int], refused: dict[str, int]
) -> None:
    """A slow machine has about half a minute before a result would change."""
    async with zoe_at(dsn, **settings) as ask:
        for claim, seconds in accepted.items():
            assert (await ask(claims_of("zoe", **{claim: int(time()) + seconds}))).status_code == 200
        for claim, seconds in refused.items():
            reply = await ask(claims_of("zoe", **{claim: int(time()) + seconds}))
            text = "The token has expired." if claim == "exp" else "The token is not accepted."
            assert reply.headers["WWW-Authenticate"] == f'{CHALLENGE}"{text}"'

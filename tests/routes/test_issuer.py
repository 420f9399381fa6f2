"""A service with AUTH_JWKS_URL: the keys of its issuer change, are not there yet, or cannot be fetched."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Final

import httpx
import pytest

from app.core.security.jwks import JwksClient, Timing
from tests.issuer import Issuer, key_set
from tests.support import make_settings, serving, until
from tests.tokens import carrying, claims_of, new_signer

OLD: Final = new_signer("EdDSA", "old")
NEW: Final = new_signer("EdDSA", "new")


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer that has not published any key."""
    async with Issuer(key_set()) as issuer:
        yield issuer


@pytest.fixture
async def client(dsn: str, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that trusts this issuer."""
    soon = partial(JwksClient, timing=Timing(first_retry=0.01))
    monkeypatch.setattr("app.core.security.jwks.JwksClient", soon)
    settings = make_settings(dsn, auth_jwks_url=issuer.url, auth_issuer="unchecked", auth_audience="unchecked")
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


def kind_of(refusal: httpx.Response) -> tuple[int, str]:
    """Status and type of a problem."""
    kind: str = refusal.json()["type"]
    return refusal.status_code, kind.removeprefix("urn:problem-type:")


async def test_every_token_is_503_and_the_service_is_live_but_not_ready_while_it_has_no_keys(
    client: httpx.AsyncClient, user: str, tasks: str
) -> None:
    token = carrying(OLD.issue(claims_of(user)))
    for refusal in (await client.get(tasks, headers=token), await client.get("/health/ready")):
        assert kind_of(refusal) == (503, "issuer-unavailable")
        assert int(refusal.headers["Retry-After"]) > 0
        assert "WWW-Authenticate" not in refusal.headers
    assert (await client.get("/health/live")).status_code == 200
    assert kind_of(await client.get(tasks)) == (401, "token-missing")
    assert kind_of(await client.get(tasks, headers=carrying("a.b"))) == (401, "token-invalid")


async def test_a_token_is_accepted_from_the_publication_of_its_key_until_the_key_is_withdrawn(
    client: httpx.AsyncClient, issuer: Issuer, user: str, tasks: str
) -> None:
    old, new = [carrying(key.issue(claims_of(user))) for key in (OLD, NEW)]

    async def is_ready() -> bool:
        return (await client.get("/health/ready")).is_success

    issuer.answer = key_set(OLD.jwk)
    await until(is_ready)
    assert (await client.get(tasks, headers=old)).status_code == 200

    issuer.answer = key_set(NEW.jwk)
    assert (await client.get(tasks, headers=new)).status_code == 200
    assert kind_of(await client.get(tasks, headers=old)) == (401, "token-invalid")

"""Tokens of a real issuer: Better Auth, which `issuer.mjs` runs with its plugin `jwt`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from itertools import count
from typing import Final, NamedTuple
from urllib.parse import unquote

import anyio
import httpx
import jwt
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.clients.support import FOLDER, needs_node
from tests.support import make_settings, serving
from tests.tokens import carrying

pytestmark = needs_node

GRACE_PERIOD: Final = 30 * 24 * 3600  # seconds for which Better Auth still publishes an expired key
_numbers = count(1)


class Account(NamedTuple):
    """The path of the tasks of a user who has signed up, and the cookies of the session."""

    tasks: str
    cookies: dict[str, str]

    @property
    def cookie(self) -> str:
        return "; ".join(f"{name}={value}" for name, value in self.cookies.items())


class Issuer:
    """A running Better Auth."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self._client = client

    async def sign_up(self) -> Account:
        email = f"user-{next(_numbers)}@example.com"
        body = {"name": "Ada", "email": email, "password": "correct horse battery staple"}
        reply = (await self._client.post("/api/auth/sign-up/email", json=body)).raise_for_status()
        return Account(f"/api/{reply.json()['user']['id']}/tasks", dict(reply.cookies))

    async def token_of(self, account: Account) -> str:
        reply = await self._client.get("/api/auth/token", headers={"Cookie": account.cookie})
        token: str = reply.raise_for_status().json()["token"]
        return token

    async def expire_keys(self, seconds: int) -> None:
        """Expire all keys. The next token gets a new key. The old keys are published until `GRACE_PERIOD` is over."""
        (await self._client.post("/expire-keys", params={"seconds": seconds})).raise_for_status()


@asynccontextmanager
async def better_auth() -> AsyncIterator[Issuer]:
    """Yields an issuer with keys of its own, and kills it."""
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))  # because several users share the client
    async with await anyio.open_process(["node", "issuer.mjs"], cwd=FOLDER, stderr=None) as process:
        assert process.stdout
        try:
            with anyio.fail_after(60):
                url = (await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 100)).decode()
            async with httpx.AsyncClient(base_url=url, cookies=no_cookies, timeout=30) as client:
                await client.get("/api/auth/jwks")  # creates the first key; two concurrent requests could create two
                yield Issuer(url, client)
        finally:
            with suppress(ProcessLookupError):
                process.kill()


@asynccontextmanager
async def service_of(dsn: str, url: str, **others: str) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client of a new service that accepts the tokens of the issuer at `url`."""
    auth = {"auth_jwks_url": f"{url}/api/auth/jwks", "auth_issuer": url, "auth_audience": url, **others}
    async with (
        serving(make_settings(dsn, **auth)) as base_url,
        httpx.AsyncClient(base_url=base_url, timeout=30) as client,
    ):
        yield client


async def accepts(service: httpx.AsyncClient, account: Account, token: str) -> bool:
    """Whether the token is accepted. If it is not, the reply says that the token is invalid."""
    reply = await service.get(account.tasks, headers=carrying(token))
    assert reply.status_code == 200 or reply.json()["type"] == "urn:problem-type:token-invalid"
    return reply.status_code == 200


def key_of(token: str) -> str:
    key_id: str = jwt.get_unverified_header(token)["kid"]
    return key_id


@pytest.fixture(scope="module")
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer whose keys do not change."""
    async with better_auth() as issuer:
        yield issuer


async def test_a_token_opens_the_tasks_of_its_user_alone_and_cookies_open_none(dsn: str, issuer: Issuer) -> None:
    ada, eve = await issuer.sign_up(), await issuer.sign_up()
    own, stranger = [carrying(await issuer.token_of(account)) for account in (ada, eve)]
    cookie = ada.cookies["better-auth.session_token"]

    async with service_of(dsn, issuer.url) as service:
        created = await service.post(ada.tasks, json={"title": "Call Bob"}, headers=own)
        foreign = await service.get(created.headers["Location"], headers=stranger)
        without_token = await service.get(ada.tasks, headers={"Cookie": ada.cookie})
        for refused in (cookie, unquote(cookie), unquote(cookie).partition(".")[0]):
            assert not await accepts(service, ada, refused)

    assert (created.status_code, foreign.status_code) == (201, 403)
    assert without_token.json()["type"] == "urn:problem-type:token-missing"


async def test_a_cookie_signed_with_the_same_key_is_refused_for_its_audience(dsn: str, issuer: Issuer) -> None:
    ada = await issuer.sign_up()
    cookie = ada.cookies["better-auth.session_data"]
    assert key_of(cookie) == key_of(await issuer.token_of(ada))

    async with (
        service_of(dsn, issuer.url) as service,
        service_of(dsn, issuer.url, auth_audience="unchecked") as control,
    ):
        assert not await accepts(service, ada, cookie)
        assert await accepts(control, ada, cookie)


@pytest.mark.parametrize(("seconds", "published"), [(0, True), (GRACE_PERIOD, False)])
async def test_tokens_of_an_expired_key_are_accepted_until_it_is_no_longer_published(
    dsn: str, seconds: int, *, published: bool
) -> None:
    async with better_auth() as issuer, service_of(dsn, issuer.url) as service:
        ada = await issuer.sign_up()
        old = await issuer.token_of(ada)
        assert await accepts(service, ada, old)

        await issuer.expire_keys(seconds)
        new = await issuer.token_of(ada)
        assert key_of(new) != key_of(old)
        assert await accepts(service, ada, new)
        assert await accepts(service, ada, old) == published

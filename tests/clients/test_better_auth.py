"""Tokens of a real issuer: Better Auth, which `issuer.mjs` runs with its plugin `jwt`."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from itertools import count
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import anyio
import httpx
import jwt
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.clients.support import FOLDER, needs_node
from tests.support import make_settings, serving, until
from tests.tokens import carrying

pytestmark = needs_node

GRACE_PERIOD: Final = 30 * 24 * 3600  # seconds for which Better Auth still publishes an expired key
_numbers = count(1)


class Account(NamedTuple):
    """A user who has signed up, with the cookies of the session."""

    user_id: str
    cookies: dict[str, str]

    @property
    def tasks(self) -> str:
        return f"/api/{self.user_id}/tasks"


class Issuer:
    """A running Better Auth."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self._client = client

    async def sign_up(self) -> Account:
        email = f"user-{next(_numbers)}@example.com"
        body = {"name": "Ada", "email": email, "password": "correct horse battery staple"}
        reply = await self._client.post("/api/auth/sign-up/email", json=body)
        assert reply.status_code == 200, reply.text
        return Account(reply.json()["user"]["id"], dict(reply.cookies))

    async def get(self, path: str, account: Account) -> httpx.Response:
        cookies = "; ".join(f"{name}={value}" for name, value in account.cookies.items())
        reply = await self._client.get(f"/api/auth/{path}", headers={"Cookie": cookies})
        assert reply.status_code == 200, reply.text
        return reply

    async def token_of(self, account: Account) -> str:
        token: str = (await self.get("token", account)).json()["token"]
        return token

    async def expire_keys(self, seconds: int = 0) -> None:
        """Expire all keys. The next token gets a new key. The old keys are published until `GRACE_PERIOD` is over."""
        assert (await self._client.post("/expire-keys", params={"seconds": seconds})).status_code == 204


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


Service = httpx.AsyncClient


@asynccontextmanager
async def service_of(dsn: str, url: str, **others: str) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client of a new service that accepts the tokens of the issuer at `url`."""
    auth = {"auth_jwks_url": f"{url}/api/auth/jwks", "auth_issuer": url, "auth_audience": url, **others}
    async with (
        serving(make_settings(dsn, **auth)) as base_url,
        httpx.AsyncClient(base_url=base_url, timeout=30) as client,
    ):
        yield client


@pytest.fixture(scope="module")
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer whose keys do not change."""
    async with better_auth() as issuer:
        yield issuer


@pytest.fixture(scope="module")
async def service(dsn: str, issuer: Issuer) -> AsyncIterator[httpx.AsyncClient]:
    async with service_of(dsn, issuer.url) as client:
        yield client


@pytest.fixture
async def account(issuer: Issuer) -> Account:
    return await issuer.sign_up()


async def list_tasks(service: Service, account: Account, token: str) -> httpx.Response:
    return await service.get(account.tasks, headers=carrying(token))


async def accepts(service: Service, account: Account, token: str) -> bool:
    """Whether the token is accepted. If it is not, the reply says that the token is invalid."""
    reply = await list_tasks(service, account, token)
    assert reply.status_code == 200 or reply.json()["type"] == "urn:problem-type:token-invalid"
    return reply.status_code == 200


async def is_ready(service: Service) -> bool:
    return (await service.get("/health/ready")).is_success


class TestToken:
    async def test_a_token_has_the_known_format_of_better_auth(self, issuer: Issuer, account: Account) -> None:
        token = (await issuer.get("get-session", account)).headers["set-auth-jwt"]

        header, claims = jwt.get_unverified_header(token), claims_of(token)
        assert (header["alg"], len(header["kid"])) == ("EdDSA", 32)
        assert claims["sub"] == account.user_id
        assert len(claims["sub"]) == 32
        assert claims["exp"] - claims["iat"] == 900
        assert claims["iss"] == claims["aud"] == issuer.url

    async def test_a_token_opens_every_operation_on_the_tasks_of_its_user_alone(
        self, service: Service, issuer: Issuer, account: Account
    ) -> None:
        stranger = carrying(await issuer.token_of(await issuer.sign_up()))
        own = carrying(await issuer.token_of(account))
        task = (await service.post(account.tasks, json={"title": "Call Eve"}, headers=own)).json()
        path = f"{account.tasks}/{task['id']}"

        assert task["user_id"] == account.user_id
        for method, url, content, status in (
            ("POST", account.tasks, {"title": "Call Bob"}, 201),
            ("GET", account.tasks, None, 200),
            ("GET", path, None, 200),
            ("PUT", path, {"title": "Call Bob"}, 200),
            ("PATCH", f"{path}/complete", {"completed": True}, 200),
            ("DELETE", path, None, 204),
        ):
            assert (await service.request(method, url, json=content, headers=stranger)).status_code == 403
            assert (await service.request(method, url, json=content, headers=own)).status_code == status


class TestSession:
    async def test_the_cookies_of_a_session_are_refused_as_tokens_and_ignored_as_cookies(
        self, service: Service, account: Account
    ) -> None:
        cookie = account.cookies["better-auth.session_token"]
        cookies = "; ".join(f"{name}={value}" for name, value in account.cookies.items())

        for token in (cookie, unquote(cookie), unquote(cookie).partition(".")[0]):
            assert not await accepts(service, account, token)
        reply = await service.get(account.tasks, headers={"Cookie": cookies})
        assert reply.json()["type"] == "urn:problem-type:token-missing"

    async def test_a_cookie_signed_with_the_same_key_is_refused_for_its_audience(
        self, service: Service, dsn: str, issuer: Issuer, account: Account
    ) -> None:
        cookie = account.cookies["better-auth.session_data"]
        assert key_of(cookie) == key_of(await issuer.token_of(account))

        assert not await accepts(service, account, cookie)

        async with service_of(dsn, issuer.url, auth_audience="unchecked") as control:
            assert await accepts(control, account, cookie)


class TestKeys:
    async def test_tokens_of_an_expired_key_are_accepted_until_it_is_no_longer_published(self, dsn: str) -> None:
        for seconds, published in ((0, True), (GRACE_PERIOD, False)):
            async with better_auth() as issuer, service_of(dsn, issuer.url) as service:
                ada = await issuer.sign_up()
                old = await issuer.token_of(ada)
                assert await accepts(service, ada, old)

                await issuer.expire_keys(seconds)
                new = await issuer.token_of(ada)
                assert key_of(new) != key_of(old)
                assert await accepts(service, ada, new)
                assert await accepts(service, ada, old) == published

    async def test_tokens_are_accepted_while_the_issuer_is_down(self, dsn: str) -> None:
        async with AsyncExitStack() as outage:
            issuer = await outage.enter_async_context(better_auth())
            ada = await issuer.sign_up()
            token = await issuer.token_of(ada)
            async with service_of(dsn, issuer.url) as service:
                await until(lambda: is_ready(service))
                await outage.aclose()

                assert await accepts(service, ada, token)


def key_of(token: str) -> str:
    key_id: str = jwt.get_unverified_header(token)["kid"]
    return key_id


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})

"""Tokens of a real issuer: Better Auth, which `issuer.mjs` runs with its plugin `jwt`."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from itertools import count
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import anyio
import httpx
import jwt
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.clients.support import FOLDER, needs_node
from tests.support import make_settings, serving, until

pytestmark = needs_node

GRACE_PERIOD: Final = 30 * 24 * 3600  # seconds for which Better Auth still publishes an expired key
OPERATIONS: Final[tuple[tuple[str, str, dict[str, Any] | None], ...]] = (
    ("POST", "", {"title": "Call Eve"}),
    ("GET", "", None),
    ("GET", "/{}", None),
    ("PUT", "/{}", {"title": "Call Bob"}),
    ("PATCH", "/{}/complete", {"completed": True}),
    ("DELETE", "/{}", None),
)
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
async def better_auth(*arguments: object) -> AsyncIterator[Issuer]:
    """Yields an issuer with keys of its own, and kills it. The arguments are its port and the URL in its tokens."""
    command = ("node", "issuer.mjs", *map(str, arguments))
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))  # because several users share the client
    async with await anyio.open_process(command, cwd=FOLDER, stderr=None) as process:
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


@pytest.fixture(scope="module")
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer whose keys do not change."""
    async with better_auth() as issuer:
        yield issuer


@pytest.fixture(scope="module")
async def impostor(issuer: Issuer) -> AsyncIterator[Issuer]:
    """Another issuer, whose tokens name `issuer` as their issuer."""
    async with better_auth(0, issuer.url) as impostor:
        yield impostor


@pytest.fixture(scope="module")
async def service(dsn: str, issuer: Issuer) -> AsyncIterator[httpx.AsyncClient]:
    async with service_of(dsn, issuer.url) as client:
        yield client


@pytest.fixture
async def account(issuer: Issuer) -> Account:
    return await issuer.sign_up()


async def list_tasks(service: httpx.AsyncClient, account: Account, token: str) -> httpx.Response:
    return await service.get(account.tasks, headers=bearer(token))


async def accepts(service: httpx.AsyncClient, account: Account, token: str) -> bool:
    reply = await list_tasks(service, account, token)
    assert reply.status_code in {200, 401}
    return reply.status_code == 200


async def refuses(service: httpx.AsyncClient, account: Account, token: str) -> bool:
    return not await accepts(service, account, token)


async def is_ready(service: httpx.AsyncClient) -> bool:
    return (await service.get("/health/ready")).status_code == 200


async def try_every_operation(service: httpx.AsyncClient, tasks: str, task_id: str, token: str) -> list[int]:
    """Use every operation. Returns the statuses."""
    return [
        (await service.request(method, tasks + path.format(task_id), json=body, headers=bearer(token))).status_code
        for method, path, body in OPERATIONS
    ]


async def create_task(service: httpx.AsyncClient, account: Account, token: str) -> dict[str, Any]:
    reply = await service.post(account.tasks, json={"title": "Buy oat milk"}, headers=bearer(token))
    assert reply.status_code == 201
    task: dict[str, Any] = reply.json()
    return task


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def key_of(token: str) -> str:
    key_id: str = jwt.get_unverified_header(token)["kid"]
    return key_id


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def assert_refused(reply: httpx.Response) -> None:
    assert reply.status_code == 401
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.json()["type"] == "urn:problem-type:token-invalid"
    assert 'error="invalid_token"' in reply.headers["WWW-Authenticate"]


def assert_unavailable(reply: httpx.Response) -> None:
    assert reply.status_code == 503
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.json()["type"] == "urn:problem-type:issuer-unavailable"
    assert int(reply.headers["Retry-After"]) > 0


class TestToken:
    async def test_a_token_has_the_known_format_of_better_auth(self, issuer: Issuer, account: Account) -> None:
        token = await issuer.token_of(account)

        header, claims = jwt.get_unverified_header(token), claims_of(token)
        assert (header["alg"], len(header["kid"])) == ("EdDSA", 32)
        assert claims["sub"] == account.user_id
        assert len(claims["sub"]) == 32
        assert claims["exp"] - claims["iat"] == 900
        assert claims["iss"] == claims["aud"] == issuer.url

    async def test_a_user_with_a_token_may_use_every_operation(
        self, service: httpx.AsyncClient, issuer: Issuer, account: Account
    ) -> None:
        token = await issuer.token_of(account)
        task = await create_task(service, account, token)

        statuses = await try_every_operation(service, account.tasks, task["id"], token)

        assert statuses == [201, 200, 200, 200, 200, 204]
        assert task["user_id"] == account.user_id

    async def test_the_token_of_a_session_reply_is_accepted(
        self, service: httpx.AsyncClient, issuer: Issuer, account: Account
    ) -> None:
        token = (await issuer.get("get-session", account)).headers["set-auth-jwt"]

        assert await accepts(service, account, token)

    async def test_a_token_of_one_user_gives_no_access_to_the_tasks_of_another(
        self, service: httpx.AsyncClient, issuer: Issuer
    ) -> None:
        ada, grace = await issuer.sign_up(), await issuer.sign_up()
        for mine, yours in ((ada, grace), (grace, ada)):
            my_token, your_token = await issuer.token_of(mine), await issuer.token_of(yours)
            task = await create_task(service, yours, your_token)

            assert await try_every_operation(service, yours.tasks, task["id"], my_token) == [403] * 6

            assert (await list_tasks(service, yours, your_token)).json() == [task]
            assert (await list_tasks(service, yours, my_token)).json()["type"] == "urn:problem-type:forbidden"

    async def test_a_token_with_the_signature_of_another_token_is_refused(
        self, service: httpx.AsyncClient, issuer: Issuer
    ) -> None:
        ada, grace = await issuer.sign_up(), await issuer.sign_up()
        mine, yours = await issuer.token_of(ada), await issuer.token_of(grace)

        forged = yours.rpartition(".")[0] + "." + mine.rpartition(".")[2]

        assert_refused(await list_tasks(service, grace, forged))
        assert await accepts(service, grace, yours)

    async def test_a_token_of_an_issuer_with_other_keys_and_the_same_name_is_refused(
        self, service: httpx.AsyncClient, dsn: str, issuer: Issuer, impostor: Issuer
    ) -> None:
        account = await impostor.sign_up()
        token = await impostor.token_of(account)
        assert claims_of(token)["iss"] == claims_of(token)["aud"] == issuer.url

        assert_refused(await list_tasks(service, account, token))

        keys = f"{impostor.url}/api/auth/jwks"
        async with service_of(
            dsn, issuer.url, auth_jwks_url=keys
        ) as with_other_keys:  # a control: only the key is wrong
            assert await accepts(with_other_keys, account, token)


class TestSession:
    @pytest.mark.parametrize("form", ["unchanged", "decoded", "without signature"])
    async def test_the_session_cookie_is_refused_as_a_token(
        self, service: httpx.AsyncClient, account: Account, form: str
    ) -> None:
        cookie = account.cookies["better-auth.session_token"]
        decoded = unquote(cookie)
        forms = {"unchanged": cookie, "decoded": decoded, "without signature": decoded.partition(".")[0]}

        assert_refused(await list_tasks(service, account, forms[form]))

    async def test_cookies_without_a_token_are_ignored(self, service: httpx.AsyncClient, account: Account) -> None:
        cookies = "; ".join(f"{name}={value}" for name, value in account.cookies.items())

        reply = await service.get(account.tasks, headers={"Cookie": cookies})

        assert reply.status_code == 401
        assert reply.json()["type"] == "urn:problem-type:token-missing"
        assert reply.headers["WWW-Authenticate"] == 'Bearer realm="tasks"'

    async def test_a_cookie_signed_with_the_same_key_is_refused_for_its_audience(
        self, service: httpx.AsyncClient, dsn: str, issuer: Issuer, account: Account
    ) -> None:
        cookie = account.cookies["better-auth.session_data"]
        assert key_of(cookie) == key_of(await issuer.token_of(account))

        assert_refused(await list_tasks(service, account, cookie))

        async with service_of(dsn, issuer.url, auth_audience="unchecked") as without_audience:
            assert await accepts(without_audience, account, cookie)


class TestRotation:
    async def test_tokens_of_the_new_key_and_of_the_expired_key_are_accepted(self, dsn: str) -> None:
        async with better_auth() as issuer, service_of(dsn, issuer.url) as service:
            ada, grace = await issuer.sign_up(), await issuer.sign_up()
            old, unseen = await issuer.token_of(ada), await issuer.token_of(grace)
            assert await accepts(service, ada, old)

            await issuer.expire_keys()
            new = await issuer.token_of(ada)

            assert key_of(new) != key_of(old) == key_of(unseen)
            assert await accepts(service, ada, new)
            assert await accepts(service, ada, old)
            assert await accepts(service, grace, unseen)

    async def test_a_token_of_a_key_that_is_no_longer_published_is_refused(self, dsn: str) -> None:
        async with better_auth() as issuer, service_of(dsn, issuer.url) as service:
            ada, grace = await issuer.sign_up(), await issuer.sign_up()
            old, unseen = await issuer.token_of(ada), await issuer.token_of(grace)
            assert await accepts(service, ada, old)

            await issuer.expire_keys(GRACE_PERIOD)
            assert await accepts(service, ada, await issuer.token_of(ada))

            assert_refused(await list_tasks(service, ada, old))
            assert_refused(await list_tasks(service, grace, unseen))

    async def test_a_withdrawn_key_is_noticed_without_a_token_of_the_new_key(
        self, dsn: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.core.security.jwks._REFRESH", 0.05)
        monkeypatch.setattr("app.core.security.jwks._RETRY", 0.05)
        async with better_auth() as issuer, service_of(dsn, issuer.url) as service:
            ada = await issuer.sign_up()
            old = await issuer.token_of(ada)
            assert await accepts(service, ada, old)

            await issuer.expire_keys(GRACE_PERIOD)
            new = await issuer.token_of(ada)
            await until(lambda: refuses(service, ada, old))

            assert await accepts(service, ada, new)

    async def test_a_token_with_an_unknown_key_delays_the_next_fetch(
        self, dsn: str, impostor: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stranger = await impostor.sign_up()
        async with better_auth() as issuer, service_of(dsn, issuer.url) as service:
            ada = await issuer.sign_up()
            assert await accepts(service, ada, await issuer.token_of(ada))
            assert_refused(await list_tasks(service, stranger, await impostor.token_of(stranger)))

            await issuer.expire_keys()
            new = await issuer.token_of(ada)
            assert_refused(await list_tasks(service, ada, new))

            monkeypatch.setattr("app.core.security.jwks._RETRY", 0)  # as if the delay were over
            assert await accepts(service, ada, new)


class TestOutage:
    async def test_only_tokens_with_a_known_key_are_accepted_while_the_issuer_is_down(
        self, dsn: str, impostor: Issuer
    ) -> None:
        stranger = await impostor.sign_up()
        async with AsyncExitStack() as outage:
            issuer = await outage.enter_async_context(better_auth())
            ada, grace = await issuer.sign_up(), await issuer.sign_up()
            seen, unseen = await issuer.token_of(ada), await issuer.token_of(grace)
            async with service_of(dsn, issuer.url) as service:
                assert await accepts(service, ada, seen)

                await outage.aclose()

                assert await accepts(service, ada, seen)
                assert_refused(await list_tasks(service, stranger, await impostor.token_of(stranger)))
                assert await accepts(service, grace, unseen)
                assert (await list_tasks(service, grace, seen)).status_code == 403

    async def test_the_keys_of_an_issuer_that_restarts_with_new_ones_are_accepted(
        self, dsn: str, impostor: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.core.security.jwks._RETRY", 0)  # the stranger's token causes a fetch that fails
        stranger = await impostor.sign_up()
        async with AsyncExitStack() as outage:
            issuer = await outage.enter_async_context(better_auth())
            ada = await issuer.sign_up()
            old = await issuer.token_of(ada)
            async with service_of(dsn, issuer.url) as service:
                assert await accepts(service, ada, old)
                await outage.aclose()
                assert_refused(await list_tasks(service, stranger, await impostor.token_of(stranger)))
                assert await accepts(service, ada, old)

                async with better_auth(urlsplit(issuer.url).port) as restarted:
                    grace = await restarted.sign_up()

                    assert await accepts(service, grace, await restarted.token_of(grace))
                    assert_refused(await list_tasks(service, ada, old))

    async def test_a_service_that_starts_before_its_issuer_recovers(
        self, dsn: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.core.security.jwks._FIRST_RETRY", 0.05)
        async with better_auth() as issuer:
            ada = await issuer.sign_up()
            token = await issuer.token_of(ada)

        async with service_of(dsn, issuer.url) as service:
            assert_unavailable(await list_tasks(service, ada, token))
            assert_unavailable(await service.get("/health/ready"))
            assert (await service.get(ada.tasks)).status_code == 401

            async with better_auth(urlsplit(issuer.url).port) as restarted:
                await until(lambda: is_ready(service))
                grace = await restarted.sign_up()

                assert await accepts(service, grace, await restarted.token_of(grace))
                assert_refused(await list_tasks(service, ada, token))

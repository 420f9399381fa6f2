"""A valid token gives access to the tasks of its user. Every other request for tasks is refused."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from time import time
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import httpx
import pytest

from tests.support import SECRET, exchange, make_settings, serving, short
from tests.tokens import carrying, claims_of, counted_checkouts, new_signer, serving_keys, signer

MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
JSON: Final = {"Content-Type": "application/json"}
ORIGIN: Final = "http://localhost:3000"
CHALLENGE: Final = 'Bearer realm="tasks"'
REFUSED: Final = f'{CHALLENGE}, error="invalid_token", error_description="The token is not accepted."'
EXPIRED: Final = f'{CHALLENGE}, error="invalid_token", error_description="The token has expired."'
DAY: Final = 86_400

OPERATIONS: Final = [
    ("GET", ""),
    ("POST", ""),
    ("GET", f"/{MISSING}"),
    ("PUT", f"/{MISSING}"),
    ("DELETE", f"/{MISSING}"),
    ("PATCH", f"/{MISSING}/complete"),
]
every_operation: Final = pytest.mark.parametrize(("method", "path"), OPERATIONS)
# `{token}` stands for a valid token. The last entry has no scheme.
OTHER_SCHEMES: Final = [
    "",
    "Basic YWRhOnNlY3JldA==",
    'Digest username="zoe", realm="tasks", nonce="a", uri="/", response="b"',
    "Negotiate YIIJvwYGKwYBBQUCoIIJszCC",
    "DPoP {token}",
    "Token {token}",
    "Bearer-Token {token}",
    "Bearer:{token}",
    "Bearer={token}",
    "Bearer\t{token}",
    "{token}",
]

Headers = dict[str, str]


@asynccontextmanager
async def connected(dsn: str, **authentication: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client of a service with these authentication settings."""
    async with (
        serving(make_settings(dsn, **authentication)) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client


async def answered(dsn: str, claims: dict[str, object], **others: Any) -> httpx.Response:
    """The reply to Zoe's request with these claims, from a service with AUTH_JWT_SECRET and these other settings."""
    async with connected(dsn, auth_jwt_secret=SECRET, **others) as client:
        return await client.get("/api/zoe/tasks", headers=carrying(signer("HS256").issue(claims)))


def assert_unauthenticated(reply: httpx.Response, kind: str, challenge: str) -> None:
    assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, challenge)
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.headers["Cache-Control"] == "no-store"
    content = reply.json()
    assert content["instance"] == reply.headers["X-Request-ID"]
    assert (content["type"], content["title"]) == (f"urn:problem-type:{kind}", "Unauthenticated")


def assert_accepted(reply: httpx.Response) -> None:
    assert (reply.status_code, reply.text) == (200, "[]")


def assert_refused(reply: httpx.Response) -> None:
    assert_unauthenticated(reply, "token-invalid", REFUSED)


@pytest.fixture(scope="module")
async def client(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    async with connected(dsn, auth_jwt_secret=SECRET) as client:
        yield client


@pytest.fixture
def token(user: str) -> str:
    """A valid token of this user."""
    return signer("HS256").issue(claims_of(user))


@pytest.fixture
def mine(token: str) -> Headers:
    """The headers of this user's requests."""
    return carrying(token)


@pytest.fixture
def others() -> Headers:
    """The headers of another user's requests."""
    return carrying(signer("HS256").issue(claims_of("eve")))


@pytest.fixture
async def task(client: httpx.AsyncClient, tasks: str, mine: Headers) -> dict[str, Any]:
    created: dict[str, Any] = (await client.post(tasks, json={"title": "Buy oat milk"}, headers=mine)).json()
    return created


@pytest.fixture
def checkouts() -> Iterator[list[None]]:
    with counted_checkouts() as checkouts:
        yield checkouts


class TestValidToken:
    async def test_a_valid_token_opens_all_six_operations(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers
    ) -> None:
        created = await client.post(tasks, json={"title": "Buy oat milk"}, headers=mine)
        path = created.headers["Location"]

        assert created.status_code == 201
        assert (await client.get(tasks, headers=mine)).json() == [created.json()]
        assert (await client.get(path, headers=mine)).json() == created.json()
        assert (await client.put(path, json={"title": "Two"}, headers=mine)).json()["title"] == "Two"
        assert (await client.patch(f"{path}/complete", headers=mine)).json()["completed"] is True
        assert (await client.delete(path, headers=mine)).status_code == 204
        assert (await client.get(path, headers=mine)).status_code == 404

    async def test_head_with_a_valid_token_has_the_etag_of_get(
        self, client: httpx.AsyncClient, path: str, mine: Headers
    ) -> None:
        head, get = await client.head(path, headers=mine), await client.get(path, headers=mine)

        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["ETag"] == get.headers["ETag"]

    @pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR", "Bearer  "])
    async def test_the_bearer_scheme_is_case_insensitive(
        self, client: httpx.AsyncClient, tasks: str, token: str, scheme: str
    ) -> None:
        assert_accepted(await client.get(tasks, headers={"Authorization": f"{scheme} {token}"}))

    @pytest.mark.parametrize(
        "owner",
        ["R9iXZ0bEvKqLwT3m8sYcJ5uHaG2dN1pf", "auth0|5f7c", "user_2abC", "zoe+home=~@example.org", ".", "a" * 128],
        ids=short,
    )
    async def test_a_token_may_name_any_allowed_user_id(self, client: httpx.AsyncClient, owner: str) -> None:
        path = f"/api/{quote(owner, safe='').replace('.', '%2E')}/tasks"

        assert_accepted(await client.get(path, headers=carrying(signer("HS256").issue(claims_of(owner)))))

    @pytest.mark.parametrize("end", [10_000_000_000, 1e10, 253_402_300_799, 4_102_444_800.5])
    async def test_a_token_may_be_valid_for_years(
        self, client: httpx.AsyncClient, tasks: str, user: str, end: float
    ) -> None:
        token = signer("HS256").issue(claims_of(user, exp=end))

        assert_accepted(await client.get(tasks, headers=carrying(token)))

    @pytest.mark.parametrize("claims", [{"jti": "a"}, {"aud": "b"}, {"iss": "c"}, {"user": {"id": "eve"}}, {"a": [{}]}])
    async def test_additional_claims_and_header_parameters_are_ignored(
        self, client: httpx.AsyncClient, tasks: str, user: str, claims: dict[str, object]
    ) -> None:
        token = signer("HS256").issue(claims_of(user) | claims, kid="a", x5t="b", custom={"c": 1})

        assert_accepted(await client.get(tasks, headers=carrying(token)))


class TestMissingToken:
    @every_operation
    async def test_a_request_without_a_token_is_401(
        self, client: httpx.AsyncClient, tasks: str, method: str, path: str
    ) -> None:
        reply = await client.request(method, tasks + path)

        assert_unauthenticated(reply, "token-missing", CHALLENGE)

    @pytest.mark.parametrize("scheme", OTHER_SCHEMES, ids=short)
    @every_operation
    async def test_another_authorization_scheme_counts_as_no_token(
        self, client: httpx.AsyncClient, tasks: str, token: str, method: str, path: str, scheme: str
    ) -> None:
        reply = await client.request(method, tasks + path, headers={"Authorization": scheme.format(token=token)})

        assert_unauthenticated(reply, "token-missing", CHALLENGE)

    async def test_head_without_a_token_is_401(self, client: httpx.AsyncClient, tasks: str) -> None:
        reply = await client.head(tasks)

        assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, CHALLENGE)

    @pytest.mark.parametrize("name", ["access_token", "token", "jwt", "auth"])
    @every_operation
    async def test_a_token_outside_the_authorization_header_is_ignored(
        self, client: httpx.AsyncClient, tasks: str, token: str, method: str, path: str, name: str
    ) -> None:
        elsewhere = {"Cookie": f"{name}={token}", "X-Authorization": f"Bearer {token}", f"X-{name}": token}

        reply = await client.request(method, tasks + path, params={name: token}, headers=elsewhere)

        assert_unauthenticated(reply, "token-missing", CHALLENGE)

    async def test_a_request_without_a_token_neither_reads_nor_changes_a_task(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any], mine: Headers
    ) -> None:
        assert (await client.get(path)).status_code == 401
        assert (await client.put(path, json={"title": "Two"})).status_code == 401
        assert (await client.patch(f"{path}/complete")).status_code == 401
        assert (await client.delete(path)).status_code == 401
        assert (await client.get(path, headers=mine)).json() == task


class TestRefusedToken:
    @every_operation
    async def test_a_token_with_a_forged_signature_is_401(
        self, client: httpx.AsyncClient, tasks: str, user: str, method: str, path: str
    ) -> None:
        forged = new_signer("HS256").issue(claims_of(user))

        reply = await client.request(method, tasks + path, headers=carrying(forged))

        assert_refused(reply)
        assert forged not in reply.text

    @every_operation
    async def test_the_challenge_for_an_expired_token_says_that_it_has_expired(
        self, client: httpx.AsyncClient, tasks: str, user: str, method: str, path: str
    ) -> None:
        expired = signer("HS256").issue(claims_of(user, exp=int(time()) - DAY))

        reply = await client.request(method, tasks + path, headers=carrying(expired))

        assert_unauthenticated(reply, "token-invalid", EXPIRED)

    async def test_the_challenge_for_a_forged_token_does_not_say_that_it_has_expired(
        self, client: httpx.AsyncClient, tasks: str, user: str
    ) -> None:
        forged = new_signer("HS256").issue(claims_of(user, exp=int(time()) - DAY))

        assert_refused(await client.get(tasks, headers=carrying(forged)))

    async def test_head_with_a_refused_token_is_401(self, client: httpx.AsyncClient, tasks: str) -> None:
        reply = await client.head(tasks, headers=carrying("a.b.c"))

        assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, REFUSED)


class TestAnotherUser:
    @every_operation
    async def test_a_token_of_another_user_is_403(
        self, client: httpx.AsyncClient, tasks: str, others: Headers, method: str, path: str
    ) -> None:
        reply = await client.request(method, tasks + path, headers=others)

        assert reply.status_code == 403
        assert reply.headers["Content-Type"] == "application/problem+json"
        assert "WWW-Authenticate" not in reply.headers
        assert reply.json() == {
            "type": "urn:problem-type:forbidden",
            "title": "Forbidden",
            "status": 403,
            "detail": "The token was issued for another user.",
            "instance": reply.headers["X-Request-ID"],
        }

    @every_operation
    async def test_the_403_reply_does_not_reveal_whether_the_task_exists(
        self, client: httpx.AsyncClient, tasks: str, task: dict[str, Any], others: Headers, method: str, path: str
    ) -> None:
        existing = await client.request(method, tasks + path.replace(MISSING, task["id"]), headers=others)
        missing = await client.request(method, f"/api/nobody/tasks{path}", headers=others)

        assert existing.status_code == missing.status_code == 403
        assert existing.headers.keys() == missing.headers.keys()
        assert existing.json() == missing.json() | {"instance": existing.json()["instance"]}

    async def test_a_token_of_another_user_does_not_change_a_task(
        self, client: httpx.AsyncClient, path: str, task: dict[str, Any], mine: Headers, others: Headers
    ) -> None:
        assert (await client.put(path, json={"title": "Two"}, headers=others)).status_code == 403
        assert (await client.patch(f"{path}/complete", headers=others)).status_code == 403
        assert (await client.delete(path, headers=others)).status_code == 403
        assert (await client.get(path, headers=mine)).json() == task

    async def test_a_cached_token_does_not_open_the_path_of_another_user(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers
    ) -> None:
        assert_accepted(await client.get(tasks, headers=mine))
        assert (await client.get("/api/nobody/tasks", headers=mine)).status_code == 403
        assert_accepted(await client.get(tasks, headers=mine))

    @pytest.mark.parametrize(
        "owner", ["ZOE", "zoe%20", "%20zoe", "zoe%00", "zo%C3%A9", "zoe%0A", "zoe.", "zo", "%EF%BD%9Aoe"]
    )
    async def test_user_ids_are_compared_byte_by_byte(self, client: httpx.AsyncClient, owner: str) -> None:
        zoe = carrying(signer("HS256").issue(claims_of("zoe")))

        assert (await client.get(f"/api/{owner}/tasks", headers=zoe)).status_code == 403
        assert (await client.get("/api/z%6Fe/tasks", headers=zoe)).status_code == 200

    async def test_no_header_but_authorization_names_the_user(
        self, client: httpx.AsyncClient, tasks: str, user: str, others: Headers
    ) -> None:
        said = dict.fromkeys(["X-User-Id", "X-Forwarded-User", "X-Auth-Request-User", "Remote-User"], user)

        assert (await client.get(tasks, headers=others | said)).status_code == 403


class BadRequest(NamedTuple):
    """A request that is refused although its user is authorized."""

    status: int
    method: str = "POST"
    path: str = ""
    headers: Headers = JSON
    content: bytes = b"{}"


BAD_REQUESTS: Final = {
    "malformed JSON": BadRequest(400, content=b"{"),
    "missing title": BadRequest(422),
    "70 kB body": BadRequest(413, content=b" " * 70_000),
    "another content type": BadRequest(415, headers={"Content-Type": "text/plain"}),
    "compressed body": BadRequest(415, headers=JSON | {"Content-Encoding": "gzip"}),
    "malformed header": BadRequest(400, headers=JSON | {"Idempotency-Key": '""'}, content=b'{"title": "a"}'),
    "long header": BadRequest(400, headers=JSON | {"Idempotency-Key": "a" * 256}, content=b'{"title": "a"}'),
    "unknown field": BadRequest(422, headers=JSON | {"Prefer": "handling=strict"}, content=b'{"title": "a", "b": 1}'),
    "unknown parameter": BadRequest(422, "GET", "?a=b", {"Prefer": "handling=strict"}, b""),
    "bad parameter": BadRequest(422, "GET", "?limit=0", {}, b""),
    "task id that is no UUID": BadRequest(422, "GET", "/1", {}, b""),
    "completion with a task id that is no UUID": BadRequest(422, "PATCH", "/1/complete", {}, b""),
}
every_bad_request: Final = pytest.mark.parametrize("bad_request", BAD_REQUESTS.values(), ids=BAD_REQUESTS)


async def send(client: httpx.AsyncClient, tasks: str, bad_request: BadRequest, token: Headers) -> httpx.Response:
    return await client.request(
        bad_request.method, tasks + bad_request.path, content=bad_request.content, headers=bad_request.headers | token
    )


class TestOrderOfChecks:
    @every_bad_request
    async def test_authentication_is_checked_before_the_rest_of_the_request(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers, others: Headers, bad_request: BadRequest
    ) -> None:
        assert (await send(client, tasks, bad_request, {})).status_code == 401
        assert (await send(client, tasks, bad_request, carrying("a.b.c"))).status_code == 401
        assert (await send(client, tasks, bad_request, others)).status_code == 403
        assert (await send(client, tasks, bad_request, mine)).status_code == bad_request.status

    @every_operation
    async def test_an_invalid_user_id_is_answered_with_401_or_403(
        self, client: httpx.AsyncClient, mine: Headers, method: str, path: str
    ) -> None:
        assert (await client.request(method, f"/api/a%20b/tasks{path}")).status_code == 401
        assert (await client.request(method, f"/api/a%20b/tasks{path}", headers=mine)).status_code == 403

    @pytest.mark.parametrize(
        ("method", "path"), [operation for operation in OPERATIONS if operation[0] in {"POST", "PUT", "PATCH"}]
    )
    @pytest.mark.parametrize("framing", ["Content-Length: 99", "Content-Length: 70000", "Transfer-Encoding: chunked"])
    async def test_an_unauthorized_request_is_answered_before_its_body_arrives(
        self, client: httpx.AsyncClient, tasks: str, others: Headers, method: str, path: str, framing: str
    ) -> None:
        head = (
            f"{method} {tasks}{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\n{framing}\r\n"
        )

        without_token, _, _ = await exchange(client.base_url, f"{head}\r\n".encode())
        of_another, _, _ = await exchange(
            client.base_url, f"{head}Authorization: {others['Authorization']}\r\n\r\n".encode()
        )

        assert (without_token, of_another) == (401, 403)


class TestDatabase:
    """A request that can be refused without a query takes no database connection."""

    @every_operation
    async def test_a_valid_request_takes_one_database_connection(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers, checkouts: list[None], method: str, path: str
    ) -> None:
        content = {"title": "Buy oat milk"} if method in {"POST", "PUT"} else None

        reply = await client.request(method, tasks + path, json=content, headers=mine)

        assert reply.status_code in {200, 201, 404}
        assert len(checkouts) == 1

    @every_operation
    async def test_an_unauthorized_request_takes_no_database_connection(
        self, client: httpx.AsyncClient, tasks: str, others: Headers, checkouts: list[None], method: str, path: str
    ) -> None:
        for headers in ({}, carrying("a.b.c"), others):
            assert (await client.request(method, tasks + path, headers=headers)).status_code in {401, 403}

        assert checkouts == []

    @every_bad_request
    async def test_an_authorized_bad_request_takes_no_database_connection(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers, checkouts: list[None], bad_request: BadRequest
    ) -> None:
        assert (await send(client, tasks, bad_request, mine)).status_code == bad_request.status
        assert checkouts == []

    @pytest.mark.parametrize(("method", "path"), [("GET", "/nope"), ("POST", "/health/live"), ("GET", "/openapi.json")])
    async def test_a_path_outside_the_operations_takes_no_database_connection(
        self, client: httpx.AsyncClient, mine: Headers, checkouts: list[None], method: str, path: str
    ) -> None:
        await client.request(method, path, headers=mine)

        assert checkouts == []


class TestPublicPaths:
    @pytest.mark.parametrize("headers", [{}, carrying("a.b.c")], ids=["no token", "refused token"])
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/health/live", 200),
            ("GET", "/health/ready", 200),
            ("GET", "/openapi.json", 200),
            ("GET", "/docs", 200),
            ("GET", "/docs/assets/swagger-ui.css", 200),
            ("GET", "/nope", 404),
            ("GET", "/api/zoe/nope", 404),
            ("GET", "/api/a%2Fb/tasks", 404),
            ("POST", "/api/zoe/tasks/", 404),
            ("PUT", "/api/zoe/tasks", 405),
            ("TRACE", "/api/zoe/tasks", 405),
            ("OPTIONS", "/api/zoe/tasks", 405),
            ("POST", f"/api/zoe/tasks/{MISSING}", 405),
            ("GET", f"/api/zoe/tasks/{MISSING}/complete", 405),
        ],
    )
    async def test_a_path_outside_the_operations_needs_no_token(
        self, client: httpx.AsyncClient, method: str, path: str, status: int, headers: Headers
    ) -> None:
        assert (await client.request(method, path, headers=headers)).status_code == status


class TestBrowser:
    @every_operation
    async def test_a_preflight_needs_no_token(
        self, client: httpx.AsyncClient, tasks: str, method: str, path: str
    ) -> None:
        asked = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "authorization",
        }

        reply = await client.options(tasks + path, headers=asked)

        assert reply.status_code == 200
        assert "authorization" in reply.headers["Access-Control-Allow-Headers"].lower()

    async def test_a_page_of_an_allowed_origin_may_read_a_401_or_403(
        self, client: httpx.AsyncClient, tasks: str, others: Headers
    ) -> None:
        for token, status in (({}, 401), (carrying("a.b.c"), 401), (others, 403)):
            reply = await client.get(tasks, headers={"Origin": ORIGIN} | token)

            assert (reply.status_code, reply.headers["Access-Control-Allow-Origin"]) == (status, ORIGIN)
            assert "www-authenticate" in reply.headers["Access-Control-Expose-Headers"].lower()

    async def test_a_page_of_a_foreign_origin_may_not_read_a_401(self, client: httpx.AsyncClient, tasks: str) -> None:
        reply = await client.get(tasks, headers={"Origin": "https://evil.example"})

        assert reply.status_code == 401
        assert "Access-Control-Allow-Origin" not in reply.headers


class TestConnection:
    @pytest.mark.parametrize("content", [b'{"title": "a"}', b" " * 70_000], ids=["short", "long"])
    @pytest.mark.parametrize("others_token", [False, True], ids=["401", "403"])
    async def test_a_connection_stays_usable_when_the_body_of_a_refused_request_arrives_late(
        self, client: httpx.AsyncClient, tasks: str, token: str, others: Headers, content: bytes, others_token: bool
    ) -> None:
        sent = f"Authorization: {others['Authorization']}\r\n" if others_token else ""
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        async with asyncio.timeout(10):
            writer.write(f"POST {tasks} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n{sent}\r\n".encode())
            assert (await read_reply(reader))[0] == (403 if others_token else 401)

            writer.write(content)
            writer.write(f"GET {tasks} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
            assert await read_reply(reader) == (200, b"[]")
        writer.close()
        await writer.wait_closed()

    async def test_a_token_authenticates_only_its_own_request(
        self, client: httpx.AsyncClient, tasks: str, token: str
    ) -> None:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        with_token = f"GET {tasks} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"
        without = f"GET {tasks} HTTP/1.1\r\nHost: a\r\n\r\n"
        async with asyncio.timeout(10):
            writer.write((with_token + without + with_token).encode())
            assert [(await read_reply(reader))[0] for _ in range(3)] == [200, 401, 200]
        writer.close()
        await writer.wait_closed()


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Returns status and body of the next reply on a connection that stays open."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    assert length
    return int(head.split()[1]), await reader.readexactly(int(length[1]))


class TestIssuerAndAudience:
    EXPECTED: Final = {"auth_issuer": "https://auth.example.com", "auth_audience": "tasks"}

    @pytest.mark.parametrize(
        "audience", ["tasks", ["tasks"], ["other", "tasks"]], ids=["text", "list of one", "one of two"]
    )
    async def test_a_token_with_the_expected_issuer_and_audience_is_accepted(self, dsn: str, audience: object) -> None:
        claims = claims_of("zoe", iss="https://auth.example.com", aud=audience)

        assert_accepted(await answered(dsn, claims, **self.EXPECTED))

    @pytest.mark.parametrize(
        "claims",
        [
            {},
            {"iss": "https://auth.example.com"},
            {"aud": "tasks"},
            {"iss": "https://auth.example.com/", "aud": "tasks"},
            {"iss": "https://auth.example.com", "aud": "other"},
        ],
    )
    async def test_a_token_without_the_expected_issuer_or_audience_is_refused(
        self, dsn: str, claims: dict[str, object]
    ) -> None:
        assert_refused(await answered(dsn, claims_of("zoe") | claims, **self.EXPECTED))

    @pytest.mark.parametrize(
        ("expected", "good", "bad"),
        [
            ({"auth_issuer": "a"}, {"iss": "a", "aud": "any"}, {"iss": "b"}),
            ({"auth_audience": "a"}, {"aud": "a", "iss": "any"}, {"aud": "b"}),
        ],
        ids=["issuer", "audience"],
    )
    async def test_issuer_and_audience_are_checked_independently(
        self, dsn: str, expected: dict[str, str], good: dict[str, object], bad: dict[str, object]
    ) -> None:
        assert_accepted(await answered(dsn, claims_of("zoe") | good, **expected))
        assert_refused(await answered(dsn, claims_of("zoe") | bad, **expected))
        assert_refused(await answered(dsn, claims_of("zoe"), **expected))

    @pytest.mark.parametrize("settings", [{}, {"auth_issuer": "unchecked", "auth_audience": "unchecked"}])
    @pytest.mark.parametrize("claims", [{}, {"iss": "any"}, {"aud": "any"}, {"aud": ["any"]}], ids=short)
    async def test_issuer_and_audience_are_ignored_when_unset_or_unchecked(
        self, dsn: str, settings: dict[str, str], claims: dict[str, object]
    ) -> None:
        assert_accepted(await answered(dsn, claims_of("zoe") | claims, **settings))


class TestUserIdClaim:
    async def test_a_dotted_claim_path_reads_a_nested_object(self, dsn: str) -> None:
        claims = claims_of("somebody", user={"id": "zoe"})

        assert_accepted(await answered(dsn, claims, auth_user_id_claim="user.id"))

    async def test_the_subject_may_be_missing_when_another_claim_names_the_user(self, dsn: str) -> None:
        claims = {"user": {"id": "zoe"}, "exp": int(time()) + DAY}

        assert_accepted(await answered(dsn, claims, auth_user_id_claim="user.id"))

    async def test_the_subject_is_ignored_when_another_claim_names_the_user(self, dsn: str) -> None:
        claims = claims_of("zoe", user={"id": "eve"})

        assert (await answered(dsn, claims, auth_user_id_claim="user.id")).status_code == 403

    @pytest.mark.parametrize(
        "user",
        [
            None,
            "zoe",
            ["zoe"],
            1,
            True,
            {},
            {"ID": "zoe"},
            {"id": None},
            {"id": 1},
            {"id": ["zoe"]},
            {"id": {"id": "zoe"}},
        ],
        ids=short,
    )
    async def test_a_token_without_text_at_the_claim_path_is_refused(self, dsn: str, user: object) -> None:
        assert_refused(await answered(dsn, claims_of("zoe", user=user), auth_user_id_claim="user.id"))

    async def test_a_dotted_claim_path_does_not_match_a_claim_with_a_dot_in_its_name(self, dsn: str) -> None:
        assert_refused(await answered(dsn, claims_of("zoe") | {"user.id": "zoe"}, auth_user_id_claim="user.id"))


class TestLeeway:
    """A slow test has about half a minute before the result would change."""

    @pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
    async def test_a_time_within_the_leeway_is_accepted(self, dsn: str, claim: str) -> None:
        seconds = -10 if claim == "exp" else 50

        reply = await answered(dsn, claims_of("zoe") | {claim: int(time()) + seconds}, auth_leeway_seconds=60)

        assert_accepted(reply)

    @pytest.mark.parametrize(("claim", "challenge"), [("exp", EXPIRED), ("nbf", REFUSED), ("iat", REFUSED)])
    async def test_a_time_beyond_the_leeway_is_refused(self, dsn: str, claim: str, challenge: str) -> None:
        seconds = -61 if claim == "exp" else 120

        reply = await answered(dsn, claims_of("zoe") | {claim: int(time()) + seconds}, auth_leeway_seconds=60)

        assert_unauthenticated(reply, "token-invalid", challenge)

    @pytest.mark.parametrize(("claim", "challenge"), [("exp", EXPIRED), ("nbf", REFUSED)])
    async def test_a_leeway_of_zero_tolerates_no_clock_difference(self, dsn: str, claim: str, challenge: str) -> None:
        seconds = -1 if claim == "exp" else 50

        reply = await answered(dsn, claims_of("zoe") | {claim: int(time()) + seconds}, auth_leeway_seconds=0)

        assert_unauthenticated(reply, "token-invalid", challenge)

    async def test_the_default_leeway_is_30_seconds(self, dsn: str) -> None:
        assert_accepted(await answered(dsn, claims_of("zoe", exp=int(time()) - 1)))
        assert_unauthenticated(await answered(dsn, claims_of("zoe", exp=int(time()) - 31)), "token-invalid", EXPIRED)


class TestIssuerKeys:
    UNCHECKED: Final = {"auth_issuer": "unchecked", "auth_audience": "unchecked"}

    @pytest.fixture(scope="class")
    async def client(self, dsn: str) -> AsyncIterator[httpx.AsyncClient]:
        jwks = [signer(algorithm).jwk for algorithm in ("EdDSA", "ES256", "RS256")]
        async with serving_keys(*jwks) as keys, connected(dsn, auth_jwks_url=keys.url, **self.UNCHECKED) as client:
            yield client

    @pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
    async def test_a_token_signed_with_each_kind_of_issuer_key_is_accepted(
        self, client: httpx.AsyncClient, tasks: str, user: str, algorithm: str
    ) -> None:
        token = signer(algorithm).issue(claims_of(user, iss="any", aud="any"))

        assert_accepted(await client.get(tasks, headers=carrying(token)))
        assert (await client.get("/api/nobody/tasks", headers=carrying(token))).status_code == 403

    @pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
    async def test_a_token_without_a_key_id_is_accepted_if_only_one_key_has_its_algorithm(
        self, client: httpx.AsyncClient, tasks: str, user: str, algorithm: str
    ) -> None:
        nameless = signer(algorithm)._replace(kid=None)

        assert_accepted(await client.get(tasks, headers=carrying(nameless.issue(claims_of(user)))))

    async def test_a_token_signed_with_a_shared_secret_is_refused(
        self, client: httpx.AsyncClient, tasks: str, user: str
    ) -> None:
        assert_refused(await client.get(tasks, headers=carrying(signer("HS256").issue(claims_of(user)))))

    async def test_issuer_and_audience_are_checked_for_a_token_of_an_issuer_key(self, dsn: str) -> None:
        ed25519 = signer("EdDSA")
        good, bad = (carrying(ed25519.issue(claims_of("zoe", iss="a", aud=aud))) for aud in ("b", "c"))
        async with (
            serving_keys(ed25519.jwk) as keys,
            connected(dsn, auth_jwks_url=keys.url, auth_issuer="a", auth_audience="b") as client,
        ):
            assert_accepted(await client.get("/api/zoe/tasks", headers=good))
            assert_refused(await client.get("/api/zoe/tasks", headers=bad))

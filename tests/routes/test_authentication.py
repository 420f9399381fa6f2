"""A valid token gives access to the tasks of its user. Every other request for tasks is refused."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import quote

import httpx
import pytest

from tests.support import exchange, short
from tests.tokens import carrying, claims_of, counted_checkouts, new_signer, signer

MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
JSON: Final = {"Content-Type": "application/json"}
ORIGIN: Final = "http://localhost:3000"
CHALLENGE: Final = 'Bearer realm="tasks"'
REFUSED: Final = f'{CHALLENGE}, error="invalid_token", error_description="The token is not accepted."'
EXPIRED: Final = f'{CHALLENGE}, error="invalid_token", error_description="The token has expired."'
OPERATIONS: Final = [
    ("GET", ""),
    ("POST", ""),
    ("GET", f"/{MISSING}"),
    ("PUT", f"/{MISSING}"),
    ("DELETE", f"/{MISSING}"),
    ("PATCH", f"/{MISSING}/complete"),
]
every_operation: Final = pytest.mark.parametrize(("method", "path"), OPERATIONS)

Headers = dict[str, str]


def issued(user: str, **changes: object) -> Headers:
    """The headers with a token of this user and these changes of its claims."""
    return carrying(signer("HS256").issue(claims_of(user, **changes)))


@pytest.fixture(scope="module")
async def client(secured_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=secured_url, timeout=30) as client:
        yield client


@pytest.fixture
def mine(user: str) -> Headers:
    """The headers of this user's requests."""
    return issued(user)


@pytest.fixture
def others() -> Headers:
    """The headers of another user's requests."""
    return issued("eve")


class TestValidToken:
    async def test_a_valid_token_opens_all_operations(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers
    ) -> None:
        created = await client.post(tasks, json={"title": "Buy oat milk"}, headers=mine)
        path = created.headers["Location"]

        assert created.status_code == 201
        assert (await client.get(tasks, headers=mine)).json() == [created.json()]
        assert (await client.get(path, headers=mine)).json() == created.json()
        assert (await client.head(path, headers=mine)).headers["ETag"] == created.headers["ETag"]
        assert (await client.put(path, json={"title": "Two"}, headers=mine)).json()["title"] == "Two"
        assert (await client.patch(f"{path}/complete", headers=mine)).json()["completed"] is True
        assert (await client.delete(path, headers=mine)).status_code == 204
        assert (await client.get(path, headers=mine)).status_code == 404

    @pytest.mark.parametrize("scheme", ["bearer ", "bEaReR ", "Bearer  "])
    async def test_the_bearer_scheme_is_case_insensitive(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers, scheme: str
    ) -> None:
        sent = {"Authorization": mine["Authorization"].replace("Bearer ", scheme)}

        assert (await client.get(tasks, headers=sent)).status_code == 200

    @pytest.mark.parametrize("owner", ["auth0|5f7c", "zoe+home=~@example.org", ".", "a" * 128], ids=short)
    async def test_a_token_may_name_any_allowed_user_id(self, client: httpx.AsyncClient, owner: str) -> None:
        path = f"/api/{quote(owner, safe='').replace('.', '%2E')}/tasks"

        assert (await client.get(path, headers=issued(owner))).status_code == 200

    @pytest.mark.parametrize("end", [1e10, 4_102_444_800.5, 253_402_300_799])
    async def test_a_token_may_be_valid_until_the_year_9999(
        self, client: httpx.AsyncClient, tasks: str, user: str, end: float
    ) -> None:
        assert (await client.get(tasks, headers=issued(user, exp=end))).status_code == 200

    async def test_unknown_claims_and_header_parameters_are_ignored(
        self, client: httpx.AsyncClient, tasks: str, user: str
    ) -> None:
        claims = claims_of(user, jti="a", iss="c", user={"id": "eve"}, a=[{}], nbf=0)
        token = signer("HS256").issue(claims, kid="a", x5t="b", custom={"c": 1})

        assert (await client.get(tasks, headers=carrying(token))).status_code == 200


class TestRefusal:
    @every_operation
    async def test_only_a_valid_token_of_the_user_opens_an_operation_and_a_refusal_takes_no_database_connection(
        self, client: httpx.AsyncClient, tasks: str, user: str, mine: Headers, others: Headers, method: str, path: str
    ) -> None:
        forged = carrying(new_signer("HS256").issue(claims_of(user, exp=0)))
        content = {"title": "Buy oat milk"} if method in {"POST", "PUT"} else None
        with counted_checkouts() as checkouts:
            for headers, status, kind, title, challenge in (
                ({}, 401, "token-missing", "Unauthenticated", CHALLENGE),
                (forged, 401, "token-invalid", "Unauthenticated", REFUSED),
                (issued(user, exp=0), 401, "token-invalid", "Unauthenticated", EXPIRED),
                (others, 403, "forbidden", "Forbidden", None),
            ):
                reply = await client.request(method, tasks + path, json=content, headers=headers)

                assert (reply.status_code, reply.headers.get("WWW-Authenticate")) == (status, challenge)
                assert reply.headers["Content-Type"] == "application/problem+json"
                assert reply.headers["Cache-Control"] == "no-store"
                assert reply.json() == {
                    "type": f"urn:problem-type:{kind}",
                    "title": title,
                    "status": status,
                    "detail": reply.json()["detail"],
                    "instance": reply.headers["X-Request-ID"],
                }
                assert user not in reply.text
            assert checkouts == []

            accepted = await client.request(method, tasks + path, json=content, headers=mine)
            assert (accepted.status_code in {200, 201, 404}, len(checkouts)) == (True, 1)

    async def test_head_without_a_valid_token_is_401(self, client: httpx.AsyncClient, tasks: str) -> None:
        missing, malformed = await client.head(tasks), await client.head(tasks, headers=carrying("a.b.c"))

        assert (missing.status_code, missing.headers["WWW-Authenticate"]) == (401, CHALLENGE)
        assert (malformed.status_code, malformed.headers["WWW-Authenticate"]) == (401, REFUSED)

    @pytest.mark.parametrize(
        "scheme",
        ["", "Basic YWRhOnNlY3JldA==", "DPoP {}", "Bearer-Token {}", "Bearer:{}", "Bearer\t{}", "{}"],
        ids=short,
    )
    async def test_another_authorization_scheme_counts_as_no_token(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers, scheme: str
    ) -> None:
        token = mine["Authorization"].removeprefix("Bearer ")

        reply = await client.get(tasks, headers={"Authorization": scheme.format(token)})

        assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, CHALLENGE)

    @pytest.mark.parametrize("name", ["access_token", "token"])
    async def test_a_token_outside_the_authorization_header_is_ignored(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers, name: str
    ) -> None:
        bearer = mine["Authorization"]
        token = bearer.removeprefix("Bearer ")
        elsewhere = {"Cookie": f"{name}={token}", "X-Authorization": bearer, f"X-{name}": token}

        reply = await client.get(tasks, params={name: token}, headers=elsewhere)

        assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, CHALLENGE)


class TestAnotherUser:
    async def test_a_cached_token_does_not_open_the_path_of_another_user(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers
    ) -> None:
        paths = (tasks, "/api/nobody/tasks", tasks)

        assert [(await client.get(path, headers=mine)).status_code for path in paths] == [200, 403, 200]

    @pytest.mark.parametrize("owner", ["ZOE", "zoe%20", "%20zoe", "zoe%00", "zo%C3%A9", "zoe.", "zo", "%EF%BD%9Aoe"])
    async def test_user_ids_are_compared_byte_by_byte(self, client: httpx.AsyncClient, owner: str) -> None:
        assert (await client.get(f"/api/{owner}/tasks", headers=issued("zoe"))).status_code == 403
        assert (await client.get("/api/z%6Fe/tasks", headers=issued("zoe"))).status_code == 200

    async def test_no_header_but_authorization_names_the_user(
        self, client: httpx.AsyncClient, tasks: str, user: str, others: Headers
    ) -> None:
        said = dict.fromkeys(["X-User-Id", "X-Forwarded-User", "X-Auth-Request-User", "Remote-User"], user)

        assert (await client.get(tasks, headers=others | said)).status_code == 403


class TestOrderOfChecks:
    @pytest.mark.parametrize(
        ("status", "method", "path", "headers", "content"),
        [
            (400, "POST", "", JSON, "{"),
            (413, "POST", "", JSON, " " * 70_000),
            (415, "POST", "", {"Content-Type": "text/plain"}, "{}"),
            (400, "POST", "", JSON | {"Idempotency-Key": '""'}, '{"title": "a"}'),
            (422, "POST", "", JSON | {"Prefer": "handling=strict"}, '{"title": "a", "b": 1}'),
            (422, "GET", "?limit=0", {}, ""),
            (422, "GET", "/1", {}, ""),
        ],
        ids=["JSON", "length", "content type", "header", "unknown field", "parameter", "task id"],
    )
    async def test_authentication_is_checked_before_the_rest_of_the_request_and_the_database_last(
        self,
        client: httpx.AsyncClient,
        tasks: str,
        mine: Headers,
        others: Headers,
        status: int,
        method: str,
        path: str,
        headers: Headers,
        content: str,
    ) -> None:
        with counted_checkouts() as checkouts:
            for token, expected in (({}, 401), (carrying("a.b.c"), 401), (others, 403), (mine, status)):
                reply = await client.request(method, tasks + path, content=content, headers=headers | token)
                assert reply.status_code == expected
            assert checkouts == []

    async def test_an_invalid_user_id_is_answered_with_401_or_403(
        self, client: httpx.AsyncClient, mine: Headers
    ) -> None:
        assert (await client.get("/api/a%20b/tasks")).status_code == 401
        assert (await client.get("/api/a%20b/tasks", headers=mine)).status_code == 403

    @pytest.mark.parametrize("framing", ["Content-Length: 99", "Content-Length: 70000", "Transfer-Encoding: chunked"])
    async def test_an_unauthorized_request_is_answered_before_its_body_arrives(
        self, client: httpx.AsyncClient, tasks: str, others: Headers, framing: str
    ) -> None:
        head = f"POST {tasks} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\n{framing}\r\n"
        token = f"Authorization: {others['Authorization']}\r\n"

        assert (await exchange(client.base_url, f"{head}\r\n".encode()))[0] == 401
        assert (await exchange(client.base_url, f"{head}{token}\r\n".encode()))[0] == 403


class TestPublicPaths:
    @pytest.mark.parametrize("headers", [{}, carrying("a.b.c")], ids=["no token", "refused token"])
    async def test_a_path_outside_the_operations_needs_no_token(
        self, client: httpx.AsyncClient, headers: Headers
    ) -> None:
        for path in ("/health/live", "/health/ready", "/openapi.json", "/docs", "/docs/assets/swagger-ui.css"):
            assert (await client.get(path, headers=headers)).status_code == 200
        for path in ("/nope", "/api/a%2Fb/tasks", "/api/zoe/tasks/"):
            assert (await client.get(path, headers=headers)).status_code == 404
        for method in ("PUT", "OPTIONS"):
            assert (await client.request(method, "/api/zoe/tasks", headers=headers)).status_code == 405


class TestBrowser:
    async def test_a_preflight_needs_no_token(self, client: httpx.AsyncClient, tasks: str) -> None:
        asked = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "authorization"}

        reply = await client.options(f"{tasks}/{MISSING}", headers={"Origin": ORIGIN} | asked)

        assert reply.status_code == 200
        assert "authorization" in reply.headers["Access-Control-Allow-Headers"].lower()

    async def test_only_a_page_of_an_allowed_origin_may_read_a_401_or_403(
        self, client: httpx.AsyncClient, tasks: str, others: Headers
    ) -> None:
        for token, status in (({}, 401), (carrying("a.b.c"), 401), (others, 403)):
            reply = await client.get(tasks, headers={"Origin": ORIGIN} | token)
            foreign = await client.get(tasks, headers={"Origin": "https://evil.example"} | token)

            assert (reply.status_code, reply.headers["Access-Control-Allow-Origin"]) == (status, ORIGIN)
            assert "www-authenticate" in reply.headers["Access-Control-Expose-Headers"].lower()
            assert "Access-Control-Allow-Origin" not in foreign.headers


class TestConnection:
    @pytest.mark.parametrize("content", [b'{"title": "a"}', b" " * 70_000], ids=["short", "long"])
    async def test_a_connection_stays_usable_after_refusals_with_late_bodies_and_a_token_counts_for_one_request(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers, others: Headers, content: bytes
    ) -> None:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)

        async def status_of(method: str, headers: Headers, length: int = 0) -> int:
            fields = {"Host": "a", "Content-Length": str(length)} | headers
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            writer.write(f"{method} {tasks} HTTP/1.1\r\n{lines}\r\n".encode())
            return await read_status(reader)

        async with asyncio.timeout(10):
            for headers, status in (({}, 401), (others, 403)):
                assert await status_of("POST", headers, len(content)) == status
                writer.write(content)
            assert [await status_of("GET", headers) for headers in (mine, {}, mine)] == [200, 401, 200]
        writer.close()
        await writer.wait_closed()


async def read_status(reader: asyncio.StreamReader) -> int:
    """Returns the status of the next reply on a connection that stays open."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    assert length
    await reader.readexactly(int(length[1]))
    return int(head.split()[1])

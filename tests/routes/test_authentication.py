"""A valid token gives access to the tasks of its user. Every other request for tasks is refused."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import quote

import httpx
import pytest

from tests.support import short
from tests.tokens import carrying, claims_of, counted_checkouts, new_signer, signer

MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
JSON: Final = {"Content-Type": "application/json"}
CHALLENGE: Final = 'Bearer realm="tasks"'
REFUSED: Final = f'{CHALLENGE}, error="invalid_token", error_description="The token is not accepted."'
EXPIRED: Final = f'{CHALLENGE}, error="invalid_token", error_description="The token has expired."'
NOT_ACCEPTED: Final = "Your sign-in was not accepted. Please sign in again."
SESSION_EXPIRED: Final = "Your session has expired. Please sign in again."

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


class TestValidToken:
    @pytest.mark.parametrize("scheme", ["bearer ", "bEaReR ", "Bearer  "])
    @pytest.mark.parametrize("owner", ["auth0|5f7c", "zoe+home=~@example.org", ".", "a" * 128], ids=short)
    async def test_any_allowed_user_id_is_accepted_and_the_case_of_the_bearer_scheme_is_ignored(
        self, client: httpx.AsyncClient, scheme: str, owner: str
    ) -> None:
        path = f"/api/{quote(owner, safe='').replace('.', '%2E')}/tasks"
        sent = {"Authorization": issued(owner)["Authorization"].replace("Bearer ", scheme)}

        assert (await client.get(path, headers=sent)).status_code == 200

    @pytest.mark.parametrize(
        "claims",
        [{"exp": 4_102_444_800.5}, {"exp": 253_402_300_799}, {"jti": "a", "iss": "c", "user": {"id": "eve"}}],
    )
    async def test_a_token_may_have_any_expiry_up_to_the_year_9999_and_unknown_claims_and_header_parameters(
        self, client: httpx.AsyncClient, tasks: str, user: str, claims: dict[str, object]
    ) -> None:
        token = signer("HS256").issue(claims_of(user, **claims), kid="a", x5t="b", custom={"c": 1})

        assert (await client.get(tasks, headers=carrying(token))).status_code == 200


class TestRefusal:
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", ""),
            ("POST", ""),
            ("GET", f"/{MISSING}"),
            ("PUT", f"/{MISSING}"),
            ("DELETE", f"/{MISSING}"),
            ("PATCH", f"/{MISSING}/complete"),
        ],
    )
    async def test_only_a_valid_token_of_the_user_opens_an_operation_and_a_refusal_takes_no_database_connection(
        self, client: httpx.AsyncClient, tasks: str, user: str, mine: Headers, method: str, path: str
    ) -> None:
        forged = carrying(new_signer("HS256").issue(claims_of(user, exp=0)))
        content = {"title": "Buy oat milk"} if method in {"POST", "PUT"} else None
        with counted_checkouts() as checkouts:
            for headers, status, kind, title, challenge, detail in (
                ({}, 401, "token-missing", "Unauthenticated", CHALLENGE, "Please sign in."),
                (forged, 401, "token-invalid", "Unauthenticated", REFUSED, NOT_ACCEPTED),
                (issued(user, exp=0), 401, "token-invalid", "Unauthenticated", EXPIRED, SESSION_EXPIRED),
                (issued("eve"), 403, "forbidden", "Forbidden", None, "This belongs to somebody else."),
            ):
                reply = await client.request(method, tasks + path, json=content, headers=headers)

                assert (reply.status_code, reply.headers.get("WWW-Authenticate")) == (status, challenge)
                assert reply.headers["Content-Type"] == "application/problem+json"
                assert reply.headers["Cache-Control"] == "no-store"
                assert reply.json() == {
                    "type": f"urn:problem-type:{kind}",
                    "title": title,
                    "status": status,
                    "detail": detail,
                    "instance": reply.headers["X-Request-ID"],
                }
                assert user not in reply.text
            assert checkouts == []

            accepted = await client.request(method, tasks + path, json=content, headers=mine)
            assert (accepted.status_code in {200, 201, 404}, len(checkouts)) == (True, 1)

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

    async def test_a_token_outside_the_authorization_header_is_ignored(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers
    ) -> None:
        bearer = mine["Authorization"]
        token = bearer.removeprefix("Bearer ")
        elsewhere = {"Cookie": f"access_token={token}; token={token}", "X-Authorization": bearer, "X-Token": token}

        reply = await client.get(tasks, params={"access_token": token, "token": token}, headers=elsewhere)

        assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, CHALLENGE)


class TestAnotherUser:
    @pytest.mark.parametrize("owner", ["ZOE", "zoe%20", "%20zoe", "zoe%00", "zo%C3%A9", "zoe.", "zo", "%EF%BD%9Aoe"])
    async def test_user_ids_are_compared_byte_by_byte(self, client: httpx.AsyncClient, owner: str) -> None:
        assert (await client.get(f"/api/{owner}/tasks", headers=issued("zoe"))).status_code == 403
        assert (await client.get("/api/z%6Fe/tasks", headers=issued("zoe"))).status_code == 200


class TestOrderOfChecks:
    async def test_authentication_is_checked_before_the_rest_of_the_request_and_the_database_last(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers
    ) -> None:
        with counted_checkouts() as checkouts:
            for status, method, path, headers, content in (
                (400, "POST", "", JSON, "{"),
                (413, "POST", "", JSON, " " * 70_000),
                (415, "POST", "", {"Content-Type": "text/plain"}, "{}"),
                (400, "POST", "", JSON | {"Idempotency-Key": '""'}, '{"title": "a"}'),
                (422, "POST", "", JSON | {"Prefer": "handling=strict"}, '{"title": "a", "b": 1}'),
                (422, "GET", "?limit=0", {}, ""),
                (404, "GET", "/1", {}, ""),
            ):
                for token, expected in (({}, 401), (carrying("a.b.c"), 401), (issued("eve"), 403), (mine, status)):
                    reply = await client.request(method, tasks + path, content=content, headers=headers | token)
                    assert reply.status_code == expected
        assert checkouts == []


class TestBrowser:
    async def test_a_page_of_an_allowed_origin_may_send_a_token_and_read_a_401_or_403(
        self, client: httpx.AsyncClient, tasks: str
    ) -> None:
        origin = {"Origin": "http://localhost:3000"}
        asked = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "authorization"}
        preflight = await client.options(f"{tasks}/{MISSING}", headers=origin | asked)
        assert preflight.status_code == 200
        assert "authorization" in preflight.headers["Access-Control-Allow-Headers"].lower()

        for token, status in (({}, 401), (carrying("a.b.c"), 401), (issued("eve"), 403)):
            reply = await client.get(tasks, headers=origin | token)
            assert (reply.status_code, reply.headers["Access-Control-Allow-Origin"]) == (status, origin["Origin"])
            assert "www-authenticate" in reply.headers["Access-Control-Expose-Headers"].lower()


class TestConnection:
    @pytest.mark.parametrize("content", [b'{"title": "a"}', b" " * 70_000], ids=["short", "long"])
    async def test_a_refusal_does_not_wait_for_the_body_and_a_token_counts_for_one_request_of_its_connection(
        self, client: httpx.AsyncClient, tasks: str, mine: Headers, content: bytes
    ) -> None:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)

        async def status_of(method: str, headers: Headers, length: int = 0) -> int:
            fields = {"Host": "a", "Content-Length": str(length)} | headers
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            writer.write(f"{method} {tasks} HTTP/1.1\r\n{lines}\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
            return int(head.split()[1])

        async with asyncio.timeout(30):
            for headers, status in (({}, 401), (issued("eve"), 403)):
                assert await status_of("POST", headers, len(content)) == status
                writer.write(content)
            assert [await status_of("GET", headers) for headers in (mine, {}, mine)] == [200, 401, 200]
        writer.close()
        await writer.wait_closed()

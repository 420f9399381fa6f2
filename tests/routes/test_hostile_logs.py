"""Every log record stays one JSON object on one line. Neither the log nor an error reveals a secret."""

import json
import logging
import secrets
import unicodedata
from collections.abc import AsyncIterator, Iterator
from logging.config import DictConfigurator
from typing import Any, Final

import asyncpg
import httpx
import jwt
import pytest
from sqlalchemy import make_url

from app.core.logging import log_config
from tests.support import SECRET, bearer, exchange, handling, make_settings, serving, short, token

MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
JSON: Final = {"Content-Type": "application/json"}
# Text that could end a line, colour a terminal, or imitate a separate line or field.
NASTY: Final = (
    "a\r\nb",
    "a\nb",
    "a\rb",
    "\x1b[31mred\x1b[2J",
    "\x9b31m",
    "\x07\x08\x7f",
    "a\u2028b\u2029c",
    "a\x85b\x0bc\x0cd",
    "\u202eb",
    "\0",
    '{"level": "ERROR", "message": "forged"}',
    '", "level": "ERROR',
    '\n{"level": "ERROR"}\n',
    "%s %d %(message)s {0}",
    "\\r\\n",
)


class Log(logging.Handler):
    """Keeps the lines in the production format and in the terminal format."""

    def __init__(self) -> None:
        super().__init__()
        configure = DictConfigurator({}).configure_formatter
        self._json, self._terminal = (configure(log_config()["formatters"][name]) for name in ("json", "terminal"))
        self.lines: list[str] = []
        self.shown: list[str] = []
        self.tracebacks = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self._json.format(record))
        if record.exc_info:
            self.tracebacks += 1
        else:  # a traceback has several lines
            self.shown.append(self._terminal.format(record))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    with handling(Log(), caplog) as log:
        yield log


def assert_well_formed(log: Log) -> None:
    """Check that each record is one line, and that the line is an object with known fields only."""
    known = {"time", "level", "logger", "message", "request_id", "method", "route", "status", "duration_ms"}
    assert log.lines
    for line in log.lines:
        assert line.splitlines() == [line]
        assert json.loads(line).keys() <= known
        assert json.loads(line)["level"] in {"INFO", "WARNING"}
    for line in log.shown:
        assert [letter for letter in line if unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"}] == []


class TestLines:
    @pytest.mark.parametrize("nasty", NASTY, ids=short)
    @pytest.mark.parametrize(
        "template",
        [
            b"GET /api/%s/tasks HTTP/1.1\r\n",
            b"GET /api/ada/tasks/%s HTTP/1.1\r\n",
            b"GET /api/ada/tasks?%s=%s HTTP/1.1\r\n",
            b"GET /%s HTTP/1.1\r\n",
            b"%s / HTTP/1.1\r\n",
            b"GET / %s\r\n",
            b"GET / HTTP/1.1\r\n%s: a\r\n",
            b"GET /nope HTTP/1.1\r\nX-Request-ID: %s\r\n",
            b"GET /api/ada/tasks HTTP/1.1\r\nAuthorization: Bearer %s\r\n",
            b"GET /api/ada/tasks HTTP/1.1\r\nUser-Agent: %s\r\nCookie: %s\r\nReferer: %s\r\n",
            b"GET /api/ada/tasks HTTP/1.1\r\nX-Forwarded-For: %s\r\nX-Forwarded-Proto: %s\r\n",
            b"%s",
        ],
        ids=short,
    )
    async def test_hostile_bytes_anywhere_in_a_request_stay_within_one_log_line(
        self, secured_url: str, log: Log, template: bytes, nasty: str
    ) -> None:
        for value in (nasty.encode(), nasty.encode("latin-1", "replace"), escaped(nasty)):
            request = template.replace(b"%s", value) + b"Host: localhost\r\nConnection: close\r\n\r\n"
            status, _, _ = await exchange(httpx.URL(secured_url), request)
            assert 200 <= status < 500

        assert_well_formed(log)

    @pytest.mark.parametrize("nasty", NASTY, ids=short)
    async def test_hostile_text_in_a_token_stays_within_one_log_line(
        self, secured_url: str, log: Log, nasty: str
    ) -> None:
        good = {"typ": "JWT"}
        tokens = [
            token(nasty),
            token("ada", iss=nasty, name=nasty),
            token("ada", exp=nasty),
            jwt.encode({"sub": "ada"}, SECRET, "HS256", headers={**good, "kid": nasty}),
        ]
        async with httpx.AsyncClient(base_url=secured_url) as client:
            for sent in tokens:
                reply = await client.get("/api/grace/tasks", headers={"Authorization": f"Bearer {sent}"})
                assert reply.status_code in {401, 403}

        assert_well_formed(log)

    @pytest.mark.parametrize("nasty", NASTY, ids=short)
    async def test_hostile_text_in_a_body_stays_within_one_log_line(
        self, secured_url: str, user: str, log: Log, nasty: str
    ) -> None:
        headers = bearer(user) | JSON
        async with httpx.AsyncClient(base_url=secured_url, headers=headers) as client:
            for content in ({"title": nasty, nasty: nasty}, {"title": nasty * 200}, {"description": nasty}, nasty):
                reply = await client.post(f"/api/{user}/tasks", content=json.dumps(content))
                assert reply.status_code in {201, 422}

        assert_well_formed(log)

    async def test_the_check_detects_a_malformed_log_line(self, log: Log) -> None:
        logging.getLogger("app").info("a\x1b[31mb")

        with pytest.raises(AssertionError):
            assert_well_formed(log)


def escaped(text: str) -> bytes:
    return "".join(f"%{byte:02X}" for byte in text.encode()).encode()


PASSWORD: Final = secrets.token_hex()
# Values that a user sends to the service. Each value is unique.
MARKS: Final = {name: f"zq9{name}{secrets.token_hex(8)}" for name in ("title", "description", "search", "key")}


def secrets_of(*tokens: str) -> list[str]:
    """All secrets. A token is secret as a whole and in its parts."""
    parts = [part for sent in tokens for part in sent.split(".")[1:]]
    return [PASSWORD, SECRET, *MARKS.values(), *tokens, *parts]


def found(hidden: list[str], log: Log, replies: list[httpx.Response]) -> list[str]:
    """The secrets that occur in a log line or in an error."""
    refusals = [f"{reply.headers} {reply.text}" for reply in replies if reply.is_error]
    said = "\n".join([*log.lines, *log.shown, *refusals])
    return [secret for secret in hidden if secret in said]


@pytest.fixture(scope="module")
async def private_url(dsn: str) -> AsyncIterator[str]:
    """The address of a service whose database has a password."""
    url = make_url(dsn)
    private = url.set(password=url.password or PASSWORD).render_as_string(hide_password=False)
    async with serving(make_settings(private, auth_jwt_secret=SECRET)) as address:
        yield address


async def ask_everything(client: httpx.AsyncClient, user: str) -> list[httpx.Response]:
    """Sends every operation with every kind of secret, in valid and invalid requests."""
    tasks = f"/api/{user}/tasks"
    task = {"title": MARKS["title"], "description": MARKS["description"], "priority": MARKS["title"]}
    headers = {"Idempotency-Key": MARKS["key"], "If-Match": f'"{MARKS["key"]}"', "Prefer": MARKS["key"]}
    strict = {"Prefer": "handling=strict"}
    created = await client.post(tasks, json=task)
    path = f"{tasks}/{created.json()['id']}" if created.is_success else f"{tasks}/{MISSING}"
    return [
        created,
        await client.post(tasks, json={**task, "title": MARKS["title"] * 9}),
        await client.post(tasks, json={**task, "completed": MARKS["title"]}),
        await client.post(tasks, content=MARKS["title"], headers=JSON),
        await client.post(tasks, content=MARKS["title"] * 9_000, headers=JSON),
        await client.post(tasks, content=MARKS["title"]),
        await client.post(tasks, json={**task, "title": MARKS["title"] + "\0"}),
        await client.post(tasks, json=task, headers={"Idempotency-Key": MARKS["key"] * 9}),
        await client.get(tasks, params={"search": MARKS["search"]}),
        await client.get(tasks, params={"search": MARKS["search"] * 30, "limit": MARKS["search"]}),
        await client.get(tasks, params={"cursor": MARKS["search"], "sort": MARKS["search"]}),
        await client.put(path, json=task, headers=headers),
        await client.put(path, json={"title": None, "description": MARKS["description"] * 200}),
        await client.get(f"{tasks}/{MARKS['search']}"),
        await client.patch(f"{path}/complete", json={"completed": MARKS["title"]}),
        await client.delete(path, headers=headers),
        await client.post(f"/{MARKS['search']}", json=task),
        await client.put(f"{tasks}/{MISSING}", json=task),
        await client.delete(f"{tasks}/{MISSING}", headers=strict),
    ]


class TestSecrets:
    async def test_no_log_line_and_no_error_reveals_a_secret(self, private_url: str, user: str, log: Log) -> None:
        sent = token(user)
        async with httpx.AsyncClient(base_url=private_url, headers={"Authorization": f"Bearer {sent}"}) as client:
            replies = await ask_everything(client, user)

        assert {reply.status_code for reply in replies} == {200, 201, 400, 404, 412, 413, 415, 422}
        assert found(secrets_of(sent), log, replies) == []

    @pytest.mark.parametrize("kind", ["good", "forged", "expired", "garbled", "huge"])
    async def test_a_refused_token_is_not_revealed(self, private_url: str, user: str, log: Log, kind: str) -> None:
        good = token("another")
        sent = {
            "good": good,
            "forged": jwt.encode({"sub": user, "exp": 2**32}, secrets.token_hex(), "HS256"),
            "expired": token(user, exp=1),
            "garbled": good.replace(".", ".-"),
            "huge": token(user, name="a" * 9_000),
        }[kind]
        async with httpx.AsyncClient(base_url=private_url, headers={"Authorization": f"Bearer {sent}"}) as client:
            replies = await ask_everything(client, user)

        refused = {reply.status_code for reply in replies} - {404}
        assert refused == {403 if kind == "good" else 401}
        assert found(secrets_of(sent), log, replies) == []

    @pytest.mark.parametrize("scheme", ["Basic", "bearer:", "Token", "Bearer\t"])
    async def test_a_token_under_another_scheme_is_not_revealed(
        self, private_url: str, user: str, log: Log, scheme: str
    ) -> None:
        sent = token(user)
        async with httpx.AsyncClient(base_url=private_url, headers={"Authorization": f"{scheme} {sent}"}) as client:
            replies = await ask_everything(client, user)

        assert {reply.status_code for reply in replies} == {401, 404}
        assert found(secrets_of(sent), log, replies) == []

    async def test_a_defect_reveals_no_secret(
        self, private_url: str, user: str, log: Log, database: asyncpg.Connection
    ) -> None:
        """PostgreSQL's own message about a violated constraint quotes the whole row."""
        sent = token(user)
        await database.execute("ALTER TABLE tasks ADD CONSTRAINT no_zq9 CHECK (title NOT LIKE 'zq9%') NOT VALID")
        try:
            async with httpx.AsyncClient(base_url=private_url, headers={"Authorization": f"Bearer {sent}"}) as client:
                replies = await ask_everything(client, user)
        finally:
            await database.execute("ALTER TABLE tasks DROP CONSTRAINT no_zq9")

        assert (replies[0].status_code, log.tracebacks > 0) == (500, True)
        assert found(secrets_of(sent), log, replies) == []

    async def test_an_unavailable_database_reveals_no_secret(self, user: str, log: Log) -> None:
        unavailable = f"postgresql://ada:{PASSWORD}@127.0.0.1:1/tasks"
        sent = token(user)
        async with (
            serving(make_settings(unavailable, auth_jwt_secret=SECRET)) as url,
            httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {sent}"}) as client,
        ):
            replies = [*await ask_everything(client, user), await client.get("/health/ready")]

        assert {reply.status_code for reply in replies} >= {503, 422}
        assert [line for line in log.lines if "database unavailable" in line]
        assert found(secrets_of(sent), log, replies) == []

    @pytest.mark.parametrize("number", range(5))
    async def test_the_search_finds_a_revealed_secret(self, log: Log, number: int) -> None:
        sent = token("ada")
        secret = secrets_of(sent)[number::5]
        logging.getLogger("app").info("told: %s", secret[0])
        reply = httpx.Response(500, text=str(secret[-1]))

        assert {secret[0], secret[-1]} <= set(found(secrets_of(sent), log, [reply]))

    async def test_the_settings_are_shown_without_secrets(self) -> None:
        settings: Any = make_settings(f"postgresql://ada:{PASSWORD}@h/d", auth_jwt_secret=SECRET)

        assert PASSWORD not in f"{settings!r} {settings} {settings.model_dump()}"
        assert SECRET not in f"{settings!r} {settings} {settings.model_dump_json()}"

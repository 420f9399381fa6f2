"""Each request has one log line, a JSON object that says what was asked and why it failed: names, never values."""

import asyncio
import json
import logging
import secrets
import string
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn
from unittest.mock import AsyncMock

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Response
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.core import errors
from app.core.config import Settings
from app.core.logging import JsonFormatter
from app.http.authorization import public
from app.http.remarks import blank_path, remark, shown_names
from tests.support import SECRET, bearer, exchange, handling, make_settings, outermost, serving, short, token

MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
JSON: Final = {"Content-Type": "application/json"}
TASKS: Final = "/api/ada/tasks"
TASK: Final = f"{TASKS}/{MISSING}"
LIVE: Final = "/health/live"
LIST: Final = "/api/{user_id}/tasks"
STRICT: Final = {"Prefer": "handling=strict"}

Line = dict[str, Any]

ARGUMENTS: Final[dict[type[errors.AppError], tuple[Any, ...]]] = {
    errors.TokenInvalidError: ("audience",),
    errors.MethodNotAllowedError: (["GET"],),
    errors.RequestTimeoutError: (30,),
    errors.PreconditionFailedError: (None,),
    errors.BodyTooLargeError: (1,),
    errors.InvalidRequestError: ([],),
    errors.HeadTooLargeError: (1, 1),
}


class Log(logging.Handler):
    """Keeps the lines in the production format."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[str] = []
        self._requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
        if hasattr(record, "duration_ms"):
            self._requests.put_nowait(json.loads(self.lines[-1]))

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.lines) if "duration_ms" in line]

    async def request(self) -> dict[str, Any]:
        """Returns the parsed line of the next request."""
        async with asyncio.timeout(30):
            return await self._requests.get()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    with handling(Log(), caplog) as log:
        yield log


class TestLine:
    @pytest.mark.parametrize(
        ("method", "path", "route", "status", "why"),
        [
            ("HEAD", TASKS, LIST, 200, {}),
            ("PATCH", TASKS, LIST, 405, {"problem": "method-not-allowed"}),
            (
                "PATCH",
                f"{TASK}/complete",
                "/api/{user_id}/tasks/{task_id}/complete",
                404,
                {"problem": "task-not-found"},
            ),
            ("GET", f"{TASKS}/1", f"{LIST}/{{task_id}}", 404, {"problem": "task-not-found", "reason": "not a UUID"}),
            ("GET", "/openapi.json", "/openapi.json", 200, {}),
            ("GET", "/docs", "/docs", 200, {}),
            ("GET", "/docs/assets/favicon.png", "/docs/assets/{name}", 200, {}),
            (
                "GET",
                f"/api/ada/taks/{MISSING}",
                None,
                404,
                {"problem": "route-not-found", "path": "/api/{user_id}/taks/{id}"},
            ),
            ("GET", "/api/ada%2Ftasks", LIST, 404, {"problem": "route-not-found", "reason": "encoded character"}),
            ("OPTIONS", TASKS, LIST, 200, {}),
        ],
    )
    async def test_the_log_line_has_method_route_status_and_duration(
        self, client: httpx.AsyncClient, log: Log, method: str, path: str, *, route: str | None, status: int, why: Line
    ) -> None:
        before = datetime.now().astimezone()
        headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "GET"}
        reply = await client.request(method, path, headers=headers)

        line = await log.request()
        assert before <= datetime.fromisoformat(line.pop("time")) <= before + timedelta(minutes=1)
        assert 0 < line.pop("duration_ms") < 60_000
        assert line.pop("message").startswith(f"{method} {route or '(no route)'} {status} in ")
        assert line == {
            "level": "INFO",
            "logger": "app.requests",
            "request_id": reply.headers["X-Request-ID"],
            "method": method,
            "route": route,
            "status": status,
            **why,
        }
        assert len(log.lines) == 1

    @pytest.mark.parametrize(
        ("request_bytes", "method", "reason"),
        [
            (b"nonsense\r\n\r\n", "-", "Invalid method encountered"),
            (b"\x16\x03\x01\x00\xc8\x01", "-", "TLS"),
            (b"PUT / HTTP/1.1\r\n\r\n", "PUT", "Host, framing or pipeline"),
            (b"GET ftp://a HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "target"),
        ],
        ids=short,
    )
    async def test_a_request_that_the_server_refuses_has_the_request_id_of_its_reply_in_the_log(
        self, client: httpx.AsyncClient, log: Log, request_bytes: bytes, method: str, reason: str
    ) -> None:
        _, head, _ = await exchange(client.base_url, request_bytes)

        line = await log.request()
        assert (line["logger"], line["method"], line["status"]) == ("app.requests", method, 400)
        assert members(line) == {"problem": "malformed-request", "reason": reason}
        assert f"x-request-id: {line['request_id']}\r\n".encode() in head

    async def test_a_body_that_the_server_refuses_is_logged_twice_with_the_request_id_of_the_reply(
        self, client: httpx.AsyncClient, log: Log
    ) -> None:
        head = f"POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        _, reply, _ = await exchange(client.base_url, head.encode() + b"no size\r\n")

        first, second = [await log.request() for _ in range(2)]
        assert first["request_id"] == second["request_id"]
        assert f"x-request-id: {first['request_id']}\r\n".encode() in reply

    @pytest.mark.parametrize(
        ("headers", "reason"), [({"Host": "tasks.example"}, "Host"), ({"X-Forwarded-For": "192.0.2.1"}, "forwarded")]
    )
    async def test_the_line_of_a_misdirected_request_says_what_is_not_of_this_machine(
        self, client: httpx.AsyncClient, log: Log, headers: Line, reason: str
    ) -> None:
        await client.get(TASKS, headers=headers)

        assert members(await log.request()) == {"problem": "misdirected-request", "reason": reason}

    async def test_a_defect_writes_a_separate_log_line_with_the_same_request_id(
        self, client: httpx.AsyncClient, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def defect(*_: object) -> NoReturn:
            raise RuntimeError("first line\nsecond line")

        monkeypatch.setattr("app.services.tasks.get_task", defect)
        await client.get(TASK, headers={"X-Request-ID": "mine"})

        line = await log.request()
        assert (line["status"], members(line)) == (500, {"problem": "internal-error"})
        first, second = map(json.loads, log.lines)
        assert (first["level"], first["request_id"], second["request_id"]) == ("ERROR", "mine", "mine")
        assert first["exc_info"].endswith("RuntimeError: first line\nsecond line")

    @pytest.mark.parametrize("framing", [b"Content-Length: 99\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n64\r\n"])
    @pytest.mark.parametrize("is_abrupt", [False, True])
    async def test_a_client_that_disconnects_during_its_body_creates_no_task_and_is_logged_as_400(
        self, client: httpx.AsyncClient, log: Log, tasks: str, framing: bytes, *, is_abrupt: bool
    ) -> None:
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = f"POST {tasks} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + framing + b'{"title": "a"}')
        await writer.drain()
        alive = await client.get(tasks)
        writer.transport.abort() if is_abrupt else writer.close()

        lines = [await log.request() for _ in range(2)]
        [(_, get), (_, post)] = sorted((line["method"], line) for line in lines)
        assert (get["status"], post["status"], members(post)) == (200, 400, {"problem": "client-disconnected"})
        assert (alive.json(), (await client.get(tasks)).json()) == ([], [])

    @pytest.mark.parametrize(
        ("error", "problem"),
        [(errors.TaskNotFoundError(), "client-disconnected"), (errors.TimedOutError(), "timed-out")],
        ids=short,
    )
    async def test_the_line_says_that_a_client_has_left_before_its_reply_unless_the_service_failed(
        self,
        client: httpx.AsyncClient,
        log: Log,
        monkeypatch: pytest.MonkeyPatch,
        error: errors.AppError,
        problem: str,
    ) -> None:
        called, left = asyncio.Event(), asyncio.Event()

        async def fail_later(*_: object) -> NoReturn:
            called.set()
            await left.wait()
            raise error

        monkeypatch.setattr("app.services.tasks.get_task", fail_later)
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(f"GET {TASK} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await called.wait()
        writer.close()
        await writer.wait_closed()
        await client.get(LIVE)  # until then, the service has seen it
        left.set()

        assert members(await log.request()) == {"problem": problem}


def members(line: Line) -> Line:
    """What a line says besides what every line does."""
    always = {"level", "logger", "message", "time", "request_id", "method", "route", "status", "duration_ms"}
    return {name: value for name, value in line.items() if name not in always}


def preflight(origin: str, method: str = "GET") -> Line:
    return {"method": "OPTIONS", "headers": {"Origin": origin, "Access-Control-Request-Method": method}}


def body(**fields: object) -> Line:
    return {"method": "POST", "json": fields}


class TestBadMorning:
    @pytest.mark.parametrize(
        ("call", "why"),
        [
            (body(title="", completed=1), {"problem": "invalid-request", "fields": ["title", "completed"]}),
            ({"method": "POST", "json": []}, {"problem": "invalid-request", "fields": ["body"]}),
            (body(title="a", dueDate=1, _tags=2), {"ignored": ["dueDate", "_tags"]}),
            ({"params": {"sort": "mood", "utm_source": 1}}, {"ignored": ["sort", "utm_source"]}),
            (
                {"params": {"sort": "mood", "limit": 0}},
                {"problem": "invalid-request", "fields": ["limit"], "ignored": ["sort"]},
            ),
            ({"params": {"page": 2}}, {"problem": "invalid-request", "fields": ["page"]}),
            ({"params": {"tag": 2}, "headers": STRICT}, {"problem": "invalid-request", "fields": ["tag"]}),
            (
                body(
                    title="a", **{"ada@example.org": 1, MISSING: 2, "Ada Lovelace": 3, "a" * 41: 4, "\n": 5, "tag": 6}
                ),
                {"ignored": ["(other)", "tag"]},
            ),
            (
                {"method": "POST", "headers": JSON | {"Idempotency-Key": ""}, "content": "{}"},
                {"problem": "malformed-header"},
            ),
            (
                {"method": "POST", "content": "title=a"},
                {"problem": "unsupported-media-type", "reason": "Content-Type"},
            ),
            (
                {"method": "POST", "headers": JSON | {"Content-Encoding": "gzip"}, "content": "{}"},
                {"problem": "unsupported-media-type", "reason": "Content-Encoding"},
            ),
            (
                preflight("https://app.example:8443"),
                {"problem": "preflight-refused", "refused": ["origin"], "origin": "https://app.example:8443"},
            ),
            (
                preflight("null", "patch"),
                {"problem": "preflight-refused", "refused": ["origin", "method patch"], "origin": "null"},
            ),
            (
                preflight("http://localhost:3000", "a-1.2"),
                {"problem": "preflight-refused", "refused": ["method (other)"], "origin": "http://localhost:3000"},
            ),
            (
                preflight("https://" + "a" * 8_000),
                {"problem": "preflight-refused", "refused": ["origin"], "origin": "(malformed)"},
            ),
            ({"headers": {"Origin": "https://app.example"}}, {"origin": "https://app.example"}),
            ({"headers": {"Origin": "https://a\tb"}}, {"origin": "(malformed)"}),
            ({"headers": {"Origin": "https://a", "Host": "a"}}, {}),
        ],
        ids=short,
    )
    async def test_the_line_says_why_a_request_fails_or_does_not_do_what_its_client_expects(
        self, secured_url: str, log: Log, call: Line, why: Line
    ) -> None:
        sent = {"method": "GET"} | call | {"headers": bearer("ada") | call.get("headers", {})}
        async with httpx.AsyncClient(base_url=secured_url, timeout=30) as client:
            await client.request(url=TASKS, **sent)

        line = await log.request()
        assert (line["route"], members(line)) == (LIST, why)

    async def test_each_error_is_the_problem_of_its_line_also_that_of_a_foreign_handler(
        self, settings: Settings, log: Log
    ) -> None:
        kinds = [cls for cls in vars(errors).values() if hasattr(cls, "kind")]
        ours = [cls(*ARGUMENTS.get(cls, ("A sentence.",))) for cls in kinds]
        raised = [*ours, HTTPException(418), RuntimeError(), None]

        def extend(app: FastAPI) -> None:
            @app.get("/raise/{number}")
            @public
            async def _(number: int) -> Response:
                if error := raised[number]:
                    raise error
                return Response(status_code=410)

        async with serving(settings, extend) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            replies = [await client.get(f"/raise/{number}") for number in range(len(raised))]

        lines = [await log.request() for _ in replies]
        problems = [*(cls.kind for cls in kinds), "about:blank", "internal-error", "about:blank"]
        assert [line["problem"] for line in lines] == problems
        assert [line["status"] for line in lines] == [reply.status_code for reply in replies]
        assert [line["status"] for line in lines[-3:]] == [418, 500, 410]
        assert {line["route"] for line in lines} == {"/raise/{number}"}
        assert [line["reason"] for line in lines if "reason" in line] == ["audience"]

    async def test_the_route_of_a_mounted_application_begins_with_its_mount(self, settings: Settings, log: Log) -> None:
        inner = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})
        inner.get("/health/{name}")(lambda name: name)

        def extend(app: FastAPI) -> None:
            app.mount("/api/{user_id}/inner", inner)
            app.mount("/files", public(PlainTextResponse("file")))

        prefixed = settings.model_copy(update={"root_path": "/svc"})
        async with serving(prefixed, extend) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            for path in ("/api/ada/inner/health/x", "/api/ada/inner/missing", "/files/a/42.txt"):
                await client.get(path)

        lines = [await log.request() for _ in range(3)]
        assert [(line["route"], line["status"], line.get("path")) for line in lines] == [
            ("/api/{user_id}/inner/health/{name}", 200, None),
            ("/api/{user_id}/inner/{path}", 404, "/svc/api/{user_id}/inner/missing"),
            ("/files/{path}", 200, "/svc/files/a/{id}"),
        ]

    @pytest.mark.parametrize(
        ("error", "problem"),
        [
            (RuntimeError(), "internal-error"),
            (errors.TimedOutError(), "timed-out"),
            (asyncio.CancelledError(), "shutting-down"),
        ],
        ids=short,
    )
    async def test_a_reply_that_is_cut_off_has_its_problem_beside_the_status_that_was_sent(
        self, log: Log, error: BaseException, problem: str
    ) -> None:
        async def cut_off(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise error

        with pytest.raises(type(error)) as raised:
            await outermost(cut_off)(
                {"type": "http", "method": "GET", "path": "/", "headers": ()}, AsyncMock(), AsyncMock()
            )

        line = await log.request()
        assert raised.value.__notes__[-1:] == [f"request_id: {line['request_id']}"]
        assert (line["status"], members(line)) == (200, {"problem": problem, "path": "/"})


WORDS: Final = st.from_regex(r"[a-z]{1,20}", fullmatch=True)
OPAQUE: Final = st.one_of(
    st.uuids().map(str),
    st.integers().map(str),
    st.emails(),
    st.text("0123456789abcdef", min_size=21),
    st.text(string.ascii_letters + string.digits, min_size=21),
    st.text(min_size=1).filter(lambda text: not text.isalpha() and "/" not in text and len(text) > 20),
)


class TestPath:
    @pytest.mark.parametrize(
        ("path", "shown"),
        [
            ("/tasks/3", "/tasks/{id}"),
            ("/api/tasks", "/api/tasks"),
            ("/api/auth/get-session", "/api/auth/get-session"),
            ("/api/ada", "/api/{user_id}"),
            ("/api/v1/ada/tasks", "/api/v1/{user_id}/tasks"),
            ("/svc/Api//ada/Tasks/", "/svc/Api//{user_id}/Tasks/"),
            ("/api/api/ada/tasks", "/api/api/{user_id}/tasks"),
            ("/api/v12/ada/tasks", "/api/{id}/{user_id}/tasks"),
            ("/api/tasks/ada", "/api/tasks/{user_id}"),
            ("/api/tasks/tasks", "/api/tasks/tasks"),
            ("/users/ada/todos", "/users/{user_id}/todos"),
            ("/api/users/ada/todos", "/api/users/{user_id}/todos"),
            ("/.env", "/.env"),
            ("/wp-login.php", "/wp-login.php"),
            ("/a" * 20, "/a" * 9 + "/{id}"),
            ("*", "{id}"),
        ],
    )
    def test_a_path_without_a_route_is_shown_without_ids(self, path: str, shown: str) -> None:
        assert blank_path(path) == shown

    @pytest.mark.parametrize("name", ["status", "module", "message"])
    def test_a_member_of_the_log_itself_cannot_be_replaced(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"members of its own with these names: {name}"):
            remark({}, **{name: "mine"})

    def test_a_field_in_a_list_is_shown_with_its_place(self) -> None:
        assert shown_names(["tags/0/name", "tags/0/name", "tags/ada@example.org"]) == ["tags/0/name", "(other)"]

    @hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(parts=st.lists(st.one_of(WORDS, OPAQUE), max_size=20), opaque=OPAQUE)
    def test_nothing_opaque_is_shown(self, parts: list[str], opaque: str) -> None:
        shown = blank_path("/".join(["", *parts, opaque, *parts]))

        assert len(shown) < 1_000
        assert opaque not in shown.split("/")
        assert shown_names([opaque]) == ["(other)"]


# A word that a user sends to the service in every place.
WORD: Final = f"zq9{secrets.token_hex(8)}"


def found(sent: str, log: Log, replies: list[httpx.Response]) -> list[str]:
    """The secrets that occur in a log line or in an error. A token is secret as a whole and in its parts."""
    refusals = [f"{reply.headers} {reply.text}" for reply in replies if reply.is_error]
    said = "\n".join([*log.lines, *refusals])
    return [secret for secret in (SECRET, WORD, sent, *sent.split(".")[1:]) if secret in said]


async def ask_everything(url: str, authorization: str) -> list[httpx.Response]:
    """Sends every operation with the word in every place, in valid and invalid requests."""
    always = {"Authorization": authorization, "Cookie": WORD, "User-Agent": WORD, "X-Request-ID": f"{WORD}!"}
    tasks, task = f"/api/{WORD}/tasks", {"title": WORD, "description": WORD}
    calls: list[tuple[str, str, dict[str, Any]]] = [
        *(("POST", tasks, {"json": task | {"title": title}}) for title in (WORD * 15, [WORD], {WORD: 1})),
        ("POST", tasks, {"json": task | {"completed": WORD}}),
        ("POST", tasks, {"content": WORD, "headers": JSON}),
        ("POST", tasks, {"content": WORD * 9_000, "headers": JSON}),
        ("POST", tasks, {"content": WORD}),
        ("POST", tasks, {"json": task, "headers": {"Idempotency-Key": WORD * 15}}),
        ("GET", tasks, {"params": {"search": WORD}}),
        ("GET", tasks, {"params": {"search": WORD * 30, **dict.fromkeys(("limit", "cursor", "sort"), WORD)}}),
        ("GET", f"{tasks}/{WORD}", {}),
        ("PUT", f"{tasks}/{{id}}", {"json": task, "headers": {"If-Match": f'"{WORD}"', "Prefer": WORD}}),
        ("PUT", f"{tasks}/{{id}}", {"json": {"title": None, "description": WORD * 300}}),
        ("PATCH", f"{tasks}/{{id}}/complete", {"json": {"completed": WORD}}),
        ("DELETE", f"{tasks}/{{id}}", {"headers": {"Idempotency-Key": WORD}}),
        *(("GET", path, {}) for path in (f"/docs/assets/{WORD}", f"/api/{WORD}%20/tasks")),
        ("OPTIONS", tasks, {"headers": {"Origin": WORD, "Access-Control-Request-Method": WORD}}),
        (WORD, tasks, {}),
    ]
    async with httpx.AsyncClient(base_url=url, headers=always, timeout=30) as client:
        created = await client.post(tasks, json={**task, WORD: WORD})
        id_ = created.json().get("id", MISSING)
        return [created, *[await client.request(method, path.format(id=id_), **sent) for method, path, sent in calls]]


class TestSecrets:
    @pytest.mark.parametrize(
        ("scheme", "sent", "statuses"),
        [
            ("Bearer", token(WORD), {200, 201, 204, 400, 403, 404, 412, 413, 415, 422, 501}),
            ("Bearer", token("another"), {400, 403, 404, 501}),
            ("Bearer", token(WORD, exp=1), {400, 401, 404, 501}),
            ("Bearer", token(WORD).replace(".", ".-"), {400, 401, 404, 501}),
            ("Bearer", token(WORD, name="a" * 9_000), {400, 401, 404, 501}),
            ("Basic", token(WORD), {400, 401, 404, 501}),
        ],
        ids=["valid", "another user", "expired", "garbled", "huge", "another scheme"],
    )
    async def test_no_log_line_and_no_error_reveals_what_a_user_sends(
        self, secured_url: str, log: Log, scheme: str, sent: str, statuses: set[int]
    ) -> None:
        replies = await ask_everything(secured_url, f"{scheme} {sent}")

        assert {reply.status_code for reply in replies} == statuses
        assert found(sent, log, replies) == []

    async def test_the_search_finds_a_revealed_secret(self, log: Log) -> None:
        sent = token("ada")
        logging.getLogger("app").info("told: %s", WORD)

        assert found(sent, log, [httpx.Response(500, text=sent)]) == [WORD, sent, *sent.split(".")[1:]]


class TestSettings:
    @pytest.mark.parametrize(
        ("setting", "logged"),
        [("off", [("WARNING", 503)]), ("on", [("INFO", 200), ("WARNING", 503)])],
    )
    async def test_a_failed_health_check_is_always_logged_and_a_successful_one_if_log_health_is_on(
        self, log: Log, setting: str, logged: list[tuple[str, int]]
    ) -> None:
        settings = make_settings("postgresql://postgres@127.0.0.1:1/postgres", log_health=setting)
        async with serving(settings) as url, httpx.AsyncClient(base_url=url) as client:
            assert (await client.get(LIVE)).is_success
            assert (await client.get("/health/ready")).is_error

        assert [(line["level"], line["status"]) for line in log.requests] == logged

    @pytest.mark.parametrize("setting", ["none", "address", "user", "both"])
    async def test_log_client_adds_the_address_and_the_user_of_a_valid_token(
        self, configure: Callable[..., Settings], log: Log, setting: str
    ) -> None:
        settings = configure(auth_jwt_secret=SECRET, log_client=setting)
        calls = [
            (TASKS, bearer("ada")),
            ("/api/grace/tasks", bearer("ada")),  # 403
            (TASKS, bearer("ada", exp=1)),
            (TASKS, {}),
            (LIVE + "/nope", bearer("ada")),
        ]
        async with serving(settings) as url, httpx.AsyncClient(base_url=url) as client:
            for path, headers in calls:
                await client.get(path, headers=headers)

        address = {"client": "127.0.0.1"} if setting in {"address", "both"} else {}
        user = {"user": "ada"} if setting in {"user", "both"} else {}
        assert clients(log) == [address | user, address | user, address, address, address]

    async def test_without_authentication_the_user_is_the_valid_one_in_the_path_of_a_route(
        self, configure: Callable[..., Settings], log: Log
    ) -> None:
        async with serving(configure(log_client="user")) as url, httpx.AsyncClient(base_url=url) as client:
            for path in (TASKS, f"{TASK}/complete", "/api/a%20b/tasks", "/api/ada", "/nope/ada", "/docs"):
                await client.get(path)

        assert clients(log) == [{"user": "ada"}, {"user": "ada"}, {}, {}, {}, {}]

    async def test_the_address_is_the_last_that_a_proxy_on_this_machine_names_and_nothing_else(
        self, configure: Callable[..., Settings], log: Log
    ) -> None:
        forwarded = {
            ("192.0.2.1",): {"client": "192.0.2.1"},
            ("198.51.100.1, 192.0.2.1",): {"client": "192.0.2.1"},  # a proxy appends to what a client has sent
            ("198.51.100.1", "192.0.2.1"): {"client": "192.0.2.1"},
            ("[2001:db8::1]:443",): {"client": "2001:db8::1"},
            ("fe80::1%forged status=200",): {"client": "fe80::1"},
            ("forged status=200",): {},
        }
        settings = configure(auth_jwt_secret=SECRET, log_client="address")
        async with serving(settings) as url, httpx.AsyncClient(base_url=url) as proxy:
            for values in forwarded:
                await proxy.get(TASKS, headers=[("X-Forwarded-For", value) for value in values])

        assert clients(log) == [*forwarded.values()]


def clients(log: Log) -> list[dict[str, str]]:
    """Returns what each line says of the client."""
    return [{name: line[name] for name in ("client", "user") if name in line} for line in log.requests]

"""Every error reply is RFC 9457 problem details, whatever raised the error, and reveals no internals."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple, NoReturn

import asyncpg
import httpx
import pytest
from sqlalchemy import make_url
from starlette.responses import StreamingResponse

from tests.support import make_settings, serving

MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
TASKS: Final = "/api/ada/tasks"
TASK: Final = f"{TASKS}/{MISSING}"
COMPLETE: Final = f"{TASK}/complete"
ASSET: Final = "/docs/assets/swagger-ui.css"

TITLES: Final = {
    "malformed-body": "Malformed body",
    "preflight-refused": "Preflight refused",
    "route-not-found": "Not found",
    "task-not-found": "Not found",
    "method-not-allowed": "Method not allowed",
    "body-too-large": "Body too large",
    "unsupported-media-type": "Unsupported media type",
    "invalid-request": "Invalid request",
    "internal-error": "Internal error",
    "database-unavailable": "Database unavailable",
    "overloaded": "Overloaded",
}
POINTER: Final = re.compile(r"#(/.*)?|(query|path)/.+")
LIMIT: Final = 65_536


class Call(NamedTuple):
    """One request."""

    method: str
    path: str
    content: bytes | None = None
    headers: dict[str, str] | None = None

    async def send(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.request(self.method, self.path, content=self.content, headers=self.headers)


def json_call(method: str, path: str, content: str | bytes, **headers: str) -> Call:
    encoded = content.encode() if isinstance(content, str) else content
    return Call(method, path, encoded, {"Content-Type": "application/json", **headers})


OPERATIONS: Final = (
    Call("GET", TASKS),
    json_call("POST", TASKS, '{"title": "Buy oat milk"}'),
    Call("GET", TASK),
    json_call("PUT", TASK, '{"title": "Buy two"}'),
    Call("PATCH", COMPLETE),
    Call("DELETE", TASK),
)


def assert_problem(reply: httpx.Response, status: int, kind: str) -> None:
    """Check the members and headers that every error reply has."""
    assert reply.status_code == status
    assert reply.headers["Content-Type"] == "application/problem+json"
    content = reply.json()
    errors = content.pop("errors", None)
    detail = content.pop("detail")
    assert content == {
        "type": f"urn:problem-type:{kind}",
        "title": TITLES[kind],
        "status": status,
        "instance": reply.headers["X-Request-ID"],
    }
    assert isinstance(detail, str)
    assert detail.strip()
    assert bool(errors) == (status == 422)
    for error in errors or []:
        assert error.keys() == {"pointer", "detail"}
        assert POINTER.fullmatch(error["pointer"])
        assert error["detail"].strip()


UNKNOWN_PATHS: Final = (
    "/nope",
    "/api",
    "/api/ada",
    "/api//tasks",
    "//api/ada/tasks",
    "/api/a%2Fb/tasks",
    f"{TASKS}/",
    f"{TASK}/",
    f"{COMPLETE}/",
    f"{TASK}/nope",
    "/docs/",
    "/docs/assets",
    "/docs/assets/nope",
    "/docs/assets/%00",
    f"/docs/assets/{'a' * 5_000}",
    "/docs/assets/..%2F__init__.py",
    "/health",
    "/health/live/",
    "/openapi.json/",
    "/redoc",
)


class TestProblemDetails:
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/nope"),
            ("POST", f"{TASKS}/"),
            *(("GET", path) for path in UNKNOWN_PATHS),
        ],
    )
    async def test_an_unknown_path_is_404(self, client: httpx.AsyncClient, method: str, path: str) -> None:
        assert_problem(await client.request(method, path), 404, "route-not-found")

    @pytest.mark.parametrize("call", OPERATIONS[2:], ids=lambda call: call.method)
    async def test_a_missing_task_is_404(self, client: httpx.AsyncClient, call: Call) -> None:
        assert_problem(await call.send(client), 404, "task-not-found")

    @pytest.mark.parametrize(
        "content",
        [
            b"{",
            b'{"title": "a"',
            b"{'title': 'a'}",
            b'{"title": "a",}',
            b'{"title": "a"} x',
            b'{"title": NaN}',
            b'{"title": Infinity}',
            b'{"title": "a\nb"}',
            b'{"title": "\xff"}',
            rb'{"title": "\ud800"}',
            b'\xef\xbb\xbf{"title": "a"}',
            '{"title": "a"}'.encode("utf-16"),
            b"[" * 10_000 + b"]" * 10_000,
            b'{"title": ' + b"9" * 10_000 + b"}",
            b" ",
            b"\x00",
        ],
        ids=lambda content: repr(content[:20]),
    )
    @pytest.mark.parametrize(("method", "path"), [("POST", TASKS), ("PUT", TASK), ("PATCH", COMPLETE)])
    async def test_a_body_that_is_not_json_is_400(
        self, client: httpx.AsyncClient, method: str, path: str, content: bytes
    ) -> None:
        assert_problem(await json_call(method, path, content).send(client), 400, "malformed-body")

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Content-Type": ""},
            {"Content-Type": "text/plain"},
            {"Content-Type": "text/json"},
            {"Content-Type": "application/jsonx"},
            {"Content-Type": "application/x-www-form-urlencoded"},
            {"Content-Type": "multipart/form-data; boundary=a"},
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        ],
        ids=lambda headers: ", ".join(headers.values()) or "none",
    )
    @pytest.mark.parametrize(("method", "path"), [("POST", TASKS), ("PUT", TASK), ("PATCH", COMPLETE)])
    async def test_a_body_that_is_not_declared_as_json_is_415(
        self, client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]
    ) -> None:
        reply = await Call(method, path, b'{"title": "a"}', headers).send(client)

        assert_problem(reply, 415, "unsupported-media-type")
        assert reply.headers["Accept"] == "application/json"

    @pytest.mark.parametrize(
        ("call", "pointer"),
        [
            (Call("GET", "/api/a%20b/tasks"), "path/user_id"),
            (Call("GET", f"/api/{'a' * 129}/tasks"), "path/user_id"),
            (Call("GET", "/api/%00/tasks"), "path/user_id"),
            (Call("GET", "/api/%FF/tasks"), "path/user_id"),
            (Call("DELETE", f"{TASKS}/1"), "path/task_id"),
            (Call("GET", f"{TASKS}?status=done"), "query/status"),
            (Call("GET", f"{TASKS}?completed=yes"), "query/completed"),
            (Call("GET", f"{TASKS}?sort=id"), "query/sort"),
            (Call("GET", f"{TASKS}?limit=0"), "query/limit"),
            (Call("GET", f"{TASKS}?limit=1001"), "query/limit"),
            (Call("GET", f"{TASKS}?limit={'9' * 5_000}"), "query/limit"),
            (Call("GET", f"{TASKS}?search=%00"), "query/search"),
            (Call("GET", f"{TASKS}?search={'a' * 201}"), "query/search"),
            (Call("GET", f"{TASKS}?cursor=a"), "query/cursor"),
            (Call("GET", f"{TASKS}?cursor={'a' * 2_049}"), "query/cursor"),
            (Call("GET", f"{TASKS}?nope=1", headers={"Prefer": "handling=strict"}), "query/nope"),
            (Call("POST", TASKS), "#"),
            (json_call("POST", TASKS, ""), "#"),
            (json_call("POST", TASKS, "[]"), "#"),
            (json_call("PUT", TASK, "null"), "#"),
            (json_call("PATCH", COMPLETE, "1"), "#"),
            (json_call("POST", TASKS, "{}"), "#/title"),
            (json_call("POST", TASKS, '{"title": null}'), "#/title"),
            (json_call("POST", TASKS, '{"title": 1e400}'), "#/title"),
            (json_call("POST", TASKS, '{"title": "a", "completed": "yes"}'), "#/completed"),
            (json_call("PUT", TASK, '{"description": 1}'), "#/description"),
            (json_call("PATCH", COMPLETE, '{"completed": null}'), "#/completed"),
            (json_call("POST", TASKS, '{"title": "a", "a/b~c d": 1}', Prefer="handling=strict"), "#/a~1b~0c%20d"),
        ],
        ids=lambda value: value if isinstance(value, str) else value.method,
    )
    async def test_an_invalid_request_is_422_and_points_to_the_field(
        self, client: httpx.AsyncClient, call: Call, pointer: str
    ) -> None:
        reply = await call.send(client)

        assert_problem(reply, 422, "invalid-request")
        assert [error["pointer"] for error in reply.json()["errors"]] == [pointer]
        assert reply.json()["errors"][0]["detail"] in reply.json()["detail"]

    async def test_a_422_points_to_every_invalid_field(self, client: httpx.AsyncClient) -> None:
        reply = await client.post("/api/a b/tasks", json={"title": 1, "description": 2, "completed": 3})

        assert_problem(reply, 422, "invalid-request")
        pointers = {error["pointer"] for error in reply.json()["errors"]}
        assert pointers == {"path/user_id", "#/title", "#/description", "#/completed"}

    @pytest.mark.parametrize("header", ["bytes=nope", "bytes=999999999-"])
    async def test_an_invalid_range_of_an_asset_is_ignored_or_answered_with_a_problem(
        self, client: httpx.AsyncClient, header: str
    ) -> None:
        reply = await client.get(ASSET, headers={"Range": header})

        assert (reply.status_code, reply.headers["Content-Type"]) in {
            (200, "text/css; charset=utf-8"),  # a server may ignore `Range` (RFC 9110 section 14.2)
            (416, "application/problem+json"),
        }


class TestBodyLimit:
    @pytest.mark.parametrize("size", [LIMIT + 1, 10_000_000])
    @pytest.mark.parametrize(("method", "path"), [("POST", TASKS), ("PUT", TASK), ("PATCH", COMPLETE)])
    async def test_a_body_above_64_kib_is_413(
        self, client: httpx.AsyncClient, method: str, path: str, size: int
    ) -> None:
        assert_problem(await json_call(method, path, b" " * size).send(client), 413, "body-too-large")

    async def test_a_chunked_body_above_64_kib_is_413(self, client: httpx.AsyncClient) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(LIMIT // 1_024 + 1):
                yield b" " * 1_024

        reply = await client.post(TASKS, content=chunks(), headers={"Content-Type": "application/json"})

        assert "Content-Length" not in reply.request.headers
        assert_problem(reply, 413, "body-too-large")

    async def test_a_body_of_64_kib_is_read(self, client: httpx.AsyncClient, tasks: str) -> None:
        reply = await json_call("POST", tasks, b'{"title": "a"}'.ljust(LIMIT)).send(client)

        assert reply.status_code == 201

    async def test_the_connection_stays_usable_after_a_413(self, client: httpx.AsyncClient) -> None:
        await json_call("POST", TASKS, b" " * (LIMIT + 1)).send(client)

        assert (await client.get("/health/live")).status_code == 200


ALLOWED: Final = {
    TASKS: {"GET", "HEAD", "POST"},
    TASK: {"GET", "HEAD", "PUT", "DELETE"},
    COMPLETE: {"PATCH"},
    "/health/live": {"GET", "HEAD"},
    "/health/ready": {"GET", "HEAD"},
    "/openapi.json": {"GET", "HEAD"},
    "/docs": {"GET", "HEAD"},
    ASSET: {"GET", "HEAD"},
    "/": {"GET", "HEAD"},
}
METHODS: Final = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "PROPFIND"}


class TestMethodNotAllowed:
    @pytest.mark.parametrize(("path", "allowed"), ALLOWED.items())
    async def test_a_forbidden_method_is_405_and_allow_lists_the_allowed_methods(
        self, client: httpx.AsyncClient, path: str, allowed: set[str]
    ) -> None:
        for method in METHODS - allowed:
            reply = await client.request(method, path)

            assert_problem(reply, 405, "method-not-allowed")
            assert set(reply.headers["Allow"].split(", ")) == allowed
            assert reply.headers["Allow"] in reply.json()["detail"]

    async def test_head_is_405_on_a_path_without_get(self, client: httpx.AsyncClient) -> None:
        reply = await client.head(COMPLETE)

        assert reply.status_code == 405
        assert reply.headers["Allow"] == "PATCH"

    @pytest.mark.parametrize(("path", "allowed"), ALLOWED.items())
    async def test_every_method_in_allow_is_allowed(
        self, client: httpx.AsyncClient, path: str, allowed: set[str]
    ) -> None:
        assert 405 not in [(await client.request(method, path)).status_code for method in allowed]


@pytest.fixture(scope="module")
async def unmigrated(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service whose database has no tasks table, so that every statement fails."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE DATABASE unmigrated")
    other = make_url(dsn).set(database="unmigrated").render_as_string(hide_password=False)
    async with serving(make_settings(other)) as url, httpx.AsyncClient(base_url=url) as client:
        yield client
    await connection.execute("DROP DATABASE unmigrated WITH (FORCE)")
    await connection.close()


@pytest.fixture(scope="module")
async def without_database() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service whose database refuses connections."""
    settings = make_settings("postgresql://zq9account:zq9password@127.0.0.1:1/zq9name", database_pool_timeout=1)
    async with serving(settings) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


async def _defect(*_: object) -> NoReturn:
    raise RuntimeError("zq9secret")


def _late_defect(*_: object) -> StreamingResponse:
    async def content() -> AsyncIterator[bytes]:
        yield b"{"
        raise RuntimeError("zq9secret")

    return StreamingResponse(content())


def _logged_errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


class TestDefect:
    """An unexpected exception: a 500 for the client, a stack trace for the operator."""

    async def test_a_defect_is_500_and_the_reply_reveals_nothing_of_the_exception(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.services.tasks.get_task", _defect)

        reply = await client.get(TASK, headers={"Origin": "http://localhost:3000", "X-Request-ID": "mine"})

        assert_problem(reply, 500, "internal-error")
        assert reply.json()["instance"] == "mine"
        assert reply.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
        assert not re.search(r"zq9|RuntimeError|Traceback|\.py", reply.text)

    async def test_a_defect_is_logged_once_with_its_stack_and_the_request_id(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("app.services.tasks.get_task", _defect)

        reply = await client.get(TASK)

        [record] = _logged_errors(caplog)
        assert vars(record)["request_id"] == reply.headers["X-Request-ID"]
        assert "zq9secret" in caplog.text
        assert "_defect" in caplog.text

    async def test_the_request_after_a_defect_is_served(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("app.services.tasks.get_task", _defect)
            assert (await client.get(TASK)).status_code == 500

        assert (await client.get(TASK)).status_code == 404

    async def test_a_defect_after_the_reply_started_closes_the_connection(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("app.routes.tasks._reply", _late_defect)

        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            await client.post(TASKS, json={"title": "Buy oat milk"})

        assert len(_logged_errors(caplog)) == 1
        assert (await client.get("/health/live")).status_code == 200

    @pytest.mark.parametrize("call", OPERATIONS, ids=lambda call: call.method)
    async def test_a_failed_statement_is_500_and_reveals_no_sql(
        self, unmigrated: httpx.AsyncClient, call: Call, caplog: pytest.LogCaptureFixture
    ) -> None:
        reply = await call.send(unmigrated)

        assert_problem(reply, 500, "internal-error")
        [record] = _logged_errors(caplog)
        assert vars(record)["request_id"] == reply.headers["X-Request-ID"]
        assert "StatementError: UndefinedTableError 42P01" in caplog.text
        assert not re.search(r"SELECT|INSERT|UPDATE|DELETE FROM|relation|oat milk", reply.text + caplog.text)


class TestDatabaseUnavailable:
    @pytest.mark.parametrize("call", [*OPERATIONS, Call("GET", "/health/ready")], ids=lambda call: call.method)
    async def test_an_unavailable_database_is_503_with_retry_after_and_without_the_dsn(
        self, without_database: httpx.AsyncClient, call: Call, caplog: pytest.LogCaptureFixture
    ) -> None:
        reply = await call.send(without_database)

        assert_problem(reply, 503, "database-unavailable")
        assert int(reply.headers["Retry-After"]) > 0
        assert not re.search(r"zq9|127\.0\.0\.1|postgresql|asyncpg|refused", reply.text)
        assert "zq9" not in caplog.text

    async def test_an_invalid_request_is_422_while_the_database_is_unavailable(
        self, without_database: httpx.AsyncClient
    ) -> None:
        assert_problem(await json_call("POST", TASKS, "{}").send(without_database), 422, "invalid-request")

    async def test_the_process_is_live_while_the_database_is_unavailable(
        self, without_database: httpx.AsyncClient
    ) -> None:
        assert (await without_database.get("/health/live")).status_code == 200


class TestOverloaded:
    async def test_a_request_that_waits_too_long_for_a_connection_is_503(
        self, dsn: str, database: asyncpg.Connection, task: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "app")
        settings = make_settings(dsn, database_pool_size=1, database_pool_timeout=0.1)
        async with serving(settings) as url, httpx.AsyncClient(base_url=url) as client:
            async with database.transaction():
                await database.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", task["id"])
                toggle = Call("PATCH", f"/api/{task['user_id']}/tasks/{task['id']}/complete")
                both = [asyncio.create_task(toggle.send(client)) for _ in range(2)]
                [refused], [waiting] = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            assert (await waiting).status_code == 200

        assert_problem(await refused, 503, "overloaded")
        assert int((await refused).headers["Retry-After"]) > 0
        assert "unavailable: overloaded" in caplog.messages


MARK: Final = "zq9mark"


def _echoes(reply: httpx.Response) -> bool:
    """`Ignored-Fields` is left out, because its purpose is to repeat names."""
    headers = {name: value for name, value in reply.headers.items() if name != "ignored-fields"}
    return any(MARK in text.lower() for text in (reply.text, *headers.keys(), *headers.values()))


class TestEcho:
    """An error repeats only names of unknown fields, because its reader may not be the author of the request."""

    @pytest.mark.parametrize(
        "call",
        [
            json_call("POST", TASKS, f'{{"title": ["{MARK}"]}}'),
            json_call("POST", TASKS, f'{{"title": {{"{MARK}": 1}}}}'),
            json_call("POST", TASKS, f'{{"title": "{MARK * 40}"}}'),
            json_call("POST", TASKS, f'{{"title": "{MARK}\\u0000"}}'),
            json_call("POST", TASKS, f'{{"title": "a", "description": ["{MARK}"]}}'),
            json_call("POST", TASKS, f'{{"title": "a", "completed": "{MARK}"}}'),
            json_call("POST", TASKS, f'{{"{MARK}": 1}}'),
            json_call("POST", TASKS, f'"{MARK}"'),
            json_call("POST", TASKS, f'["{MARK}"]'),
            json_call("POST", TASKS, f"{MARK}"),
            json_call("POST", TASKS, f'{{"title": "{MARK}'),
            json_call("POST", TASKS, f'{{"title": "{MARK}\n"}}'),
            json_call("POST", TASKS, MARK * LIMIT),
            json_call("PUT", TASK, f'{{"title": "{MARK}"}}'),
            json_call("PUT", TASK, f'{{"description": {{"{MARK}": "{MARK}"}}}}'),
            json_call("PATCH", COMPLETE, f'{{"completed": "{MARK}"}}'),
            json_call("PATCH", COMPLETE, f'"{MARK}"'),
            Call("GET", f"{TASKS}?status={MARK}"),
            Call("GET", f"{TASKS}?completed={MARK}"),
            Call("GET", f"{TASKS}?sort={MARK}"),
            Call("GET", f"{TASKS}?limit={MARK}"),
            Call("GET", f"{TASKS}?cursor={MARK}"),
            Call("GET", f"{TASKS}?search={MARK}%00"),
            Call("GET", f"{TASKS}?limit=0&{MARK}={MARK}"),
            Call("GET", f"/api/{MARK}%20/tasks"),
            Call("GET", f"/api/{MARK}/tasks/{MISSING}"),
            Call("GET", f"{TASKS}/{MARK}"),
            Call("GET", f"/{MARK}"),
            Call("GET", f"/docs/assets/{MARK}"),
            Call("POST", f"{TASK}?{MARK}={MARK}"),
            Call("POST", TASKS, MARK.encode(), {"Content-Type": MARK}),
            Call("POST", TASKS, MARK.encode(), {"Content-Type": f"application/json; charset={MARK}"}),
            json_call("POST", TASKS, "{}", **{"Content-Encoding": MARK}),
            json_call("POST", TASKS, "{}", Prefer=f"handling={MARK}"),
            json_call("POST", TASKS, f'{{"title": "a", "b": "{MARK}"}}', Prefer="handling=strict"),
            Call("GET", TASK, headers={"X-Request-ID": f"{MARK}!"}),
            Call("GET", TASK, headers={"Authorization": f"Bearer {MARK}"}),
            Call("GET", TASK, headers={"Cookie": f"{MARK}={MARK}"}),
            Call("GET", TASK, headers={"Host": MARK}),
            Call("GET", TASK, headers={"If-Match": f'"{MARK}"', "If-None-Match": f'"{MARK}"'}),
            Call("GET", TASK, headers={"Origin": f"http://{MARK}"}),
            Call("GET", TASK, headers={MARK: MARK}),
            Call("OPTIONS", TASKS, headers={"Origin": f"http://{MARK}", "Access-Control-Request-Method": "GET"}),
            Call("OPTIONS", TASKS, headers={"Origin": "http://localhost:3000", "Access-Control-Request-Method": MARK}),
            Call(
                "OPTIONS",
                TASKS,
                headers={
                    "Origin": "http://localhost:3000",
                    "Access-Control-Request-Method": "GET",
                    "Access-Control-Request-Headers": MARK,
                },
            ),
            Call(MARK, TASKS),
        ],
    )
    async def test_an_error_does_not_repeat_the_request(self, client: httpx.AsyncClient, call: Call) -> None:
        reply = await call.send(client)

        assert 400 <= reply.status_code < 500
        assert not _echoes(reply)

    async def test_an_error_repeats_the_name_of_an_unknown_field(self, client: httpx.AsyncClient) -> None:
        reply = await json_call("POST", TASKS, f'{{"title": "a", "{MARK}": 1}}', Prefer="handling=strict").send(client)

        assert reply.status_code == 422
        assert _echoes(reply)

"""Every error reply is RFC 9457 problem details, whatever raised the error, and reveals no internals."""

import logging
import re
from collections.abc import AsyncIterator
from typing import Any, Final, NoReturn
from unittest.mock import AsyncMock

import httpx
import pytest
from starlette.responses import StreamingResponse

from tests.support import make_settings, outermost, serving, short

MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
TASKS: Final = "/api/ada/tasks"
TASK: Final = f"{TASKS}/{MISSING}"
COMPLETE: Final = f"{TASK}/complete"
POINTER: Final = re.compile(r"#(/.*)?|(query|path)/.+")
STRICT: Final = {"Prefer": "handling=strict"}

Call = dict[str, Any]  # the arguments of `httpx.AsyncClient.request`


def get(url: str, **headers: str) -> Call:
    return {"method": "GET", "url": url, "headers": headers}


def post(content: str, method: str = "POST", url: str = TASKS, **headers: str) -> Call:
    return {"method": method, "url": url, "content": content, "headers": {"Content-Type": "application/json"} | headers}


def assert_problem(reply: httpx.Response, status: int, kind: str) -> None:
    """Check the members and headers that every error reply has."""
    assert (reply.status_code, reply.headers["Content-Type"]) == (status, "application/problem+json")
    content = reply.json()
    errors, detail, title = content.pop("errors", []), content.pop("detail"), content.pop("title")
    assert content == {
        "type": f"urn:problem-type:{kind}",
        "status": status,
        "instance": reply.headers["X-Request-ID"],
    }
    assert detail.strip()
    assert title.strip()
    assert bool(errors) == (status == 422)
    for error in errors:
        assert POINTER.fullmatch(error["pointer"])
        assert error["detail"].strip()


class TestProblemDetails:
    @pytest.mark.parametrize(
        ("call", "status", "kind", "title"),
        [
            (post("{"), 400, "malformed-body", "Malformed body"),
            (post("{}", **{"Idempotency-Key": ""}), 400, "malformed-header", "Malformed header"),
            (get(TASK), 404, "task-not-found", "Not found"),
            (post(" " * 65_537), 413, "body-too-large", "Body too large"),
            (post("{}", **{"Content-Type": "text/plain"}), 415, "unsupported-media-type", "Unsupported media type"),
            (post("{}"), 422, "invalid-request", "Invalid request"),
        ],
        ids=short,
    )
    async def test_each_kind_of_error_has_its_status_type_and_title(
        self, client: httpx.AsyncClient, call: Call, status: int, kind: str, title: str
    ) -> None:
        reply = await client.request(**call)

        assert_problem(reply, status, kind)
        assert reply.json()["title"] == title

    @pytest.mark.parametrize(
        "path",
        [
            *("/nope", "/api", "/api/ada", "/api//tasks", f"{COMPLETE}/x"),
            *("/docs/assets/%00", "/docs/assets/..%2F__init__.py", "/health", "/redoc"),
        ],
    )
    async def test_an_unknown_path_is_404(self, client: httpx.AsyncClient, path: str) -> None:
        assert_problem(await client.get(path), 404, "route-not-found")

    async def test_a_422_points_to_every_invalid_field_and_tells_three_of_them(self, client: httpx.AsyncClient) -> None:
        reply = await client.post("/api/a b/tasks", json={"title": 1, "description": 2, "completed": 3})

        assert_problem(reply, 422, "invalid-request")
        pointers = [error["pointer"] for error in reply.json()["errors"]]
        assert pointers == ["path/user_id", "#/title", "#/description", "#/completed"]
        assert reply.json()["detail"].endswith("description: must be a valid string")
        assert re.findall(r"(\w+): ", reply.json()["detail"]) == ["user_id", "title", "description"]


ALLOWED: Final = {
    TASKS: {"GET", "HEAD", "POST"},
    TASK: {"GET", "HEAD", "PUT", "DELETE"},
    COMPLETE: {"PATCH"},
    "/health/live": {"GET", "HEAD"},
    "/docs/assets/swagger-ui.css": {"GET", "HEAD"},
    "/": {"GET", "HEAD"},
}


class TestMethodNotAllowed:
    @pytest.mark.parametrize(("path", "allowed"), ALLOWED.items())
    async def test_a_forbidden_method_is_405_and_allow_lists_the_allowed_methods(
        self, client: httpx.AsyncClient, path: str, allowed: set[str]
    ) -> None:
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"} - allowed:
            reply = await client.request(method, path)

            assert_problem(reply, 405, "method-not-allowed")
            assert set(reply.headers["Allow"].split(", ")) == allowed
            assert reply.headers["Allow"] in reply.json()["detail"]
        statuses = {method: (await client.request(method, path)).status_code for method in {*allowed, "HEAD"}}
        assert {method for method, status in statuses.items() if status != 405} == allowed


class Panic(BaseException):  # as PyO3 names it
    """Like the exception for a panic of a library in Rust."""


class TestDefect:
    @pytest.mark.parametrize("kind", [RuntimeError, Panic])
    async def test_a_defect_is_500_and_does_not_reveal_its_cause(
        self,
        client: httpx.AsyncClient,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        kind: type[BaseException],
    ) -> None:
        async def defect(*_: object) -> NoReturn:
            raise kind("zq9secret")

        with monkeypatch.context() as patch:
            patch.setattr("app.services.tasks.get_task", defect)
            reply = await client.get(TASK)

        assert_problem(reply, 500, "internal-error")
        assert not re.search(r"zq9|RuntimeError|Panic|Traceback|\.py", reply.text)
        assert ("unexpected error" in caplog.messages, "zq9secret" in caplog.text) == (True, True)
        assert (await client.get(TASK)).status_code == 404

    @pytest.mark.parametrize("kind", [GeneratorExit, KeyboardInterrupt, SystemExit])
    async def test_an_exception_that_ends_a_program_is_no_defect(self, kind: type[BaseException]) -> None:
        async def end(*_: object) -> NoReturn:
            raise kind

        with pytest.raises(kind):
            await outermost(end)(
                {"type": "http", "method": "GET", "path": "/", "headers": []}, AsyncMock(), AsyncMock()
            )

    async def test_a_defect_after_the_reply_started_closes_the_connection(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def content() -> AsyncIterator[bytes]:
            yield b"{"
            raise RuntimeError

        created = (await client.post(TASKS, json={"title": "Buy oat milk"})).json()
        monkeypatch.setattr("app.routes.tasks._reply", lambda *_: StreamingResponse(content()))

        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            await client.put(f"{TASKS}/{created['id']}", json={"title": "Buy oat milk"})

        assert [record.levelname for record in caplog.records if record.levelno >= logging.ERROR] == ["ERROR"]
        assert (await client.get("/health/live")).status_code == 200


async def test_an_unavailable_database_is_503_with_retry_after_and_without_the_dsn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    settings = make_settings("postgresql://zq9account:zq9password@127.0.0.1:1/zq9name", database_pool_timeout=1)
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        for call in (get(TASKS), post('{"title": "a"}'), get("/health/ready")):
            reply = await client.request(**call)

            assert_problem(reply, 503, "database-unavailable")
            assert reply.headers["Retry-After"] == "1"
            assert not re.search(r"zq9|127\.0\.0\.1|postgresql|asyncpg|refused", reply.text)
        assert (await client.request(**post("{}"))).status_code == 422
    assert "zq9" not in caplog.text
    lines = [vars(record) for record in caplog.records if hasattr(record, "duration_ms")]
    assert [line["problem"] for line in lines] == ["database-unavailable"] * 3 + ["invalid-request"]
    assert lines[0]["reason"] == "ConnectionRefusedError"

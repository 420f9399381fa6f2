"""Every exception of a route as in FastAPI's documentation is answered with a problem, or by an added handler."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Final

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from pydantic import AfterValidator, Json

from app.core.config import Settings
from tests.http.support import BASE, extended, problem_of

Client = httpx.AsyncClient
THINGS: Final = "/api/ada/things"
BECAUSE: Final = {"X-Reason": "because", "Content-Type": "text/html", "Content-Length": "1"}
# The argument `detail` of an HTTPException, and the members `detail` and `data` of the problem.
DETAILS: Final[dict[str, tuple[Any, str, Any]]] = {
    "surrogate": ("\ud800", "?", None),
    "dictionary": ({"code": 7}, "Conflict", {"code": 7}),
    "NaN": ([float("nan")], "Conflict", [None]),
    "bytes": (b"\xff", "Conflict", "_w=="),
}


class TeapotError(Exception):
    """An error of an added route."""


RAISED: Final[dict[str, Exception]] = {
    **{str(status): HTTPException(status, "Because.", BECAUSE) for status in (404, 405, 418, 599)},
    **{name: HTTPException(409, detail, BECAUSE) for name, (detail, *_) in DETAILS.items()},
    "304": HTTPException(304, headers={"ETag": '"1"'}),
    "teapot": TeapotError(),
    "http": HTTPException(418),
    "empty": RequestValidationError([]),
    "pointless": RequestValidationError([{"loc": (), "msg": "no"}]),
    "words": RequestValidationError(["text"]),
    "json": RequestValidationError([{"type": "json_invalid"}]),
}


def quote(value: int) -> int:
    message = f"{value} is refused"
    raise ValueError(message)


async def fail(name: str) -> None:
    raise RAISED[name]


async def take_json(_: Annotated[Json[Any], Query(alias="filter")]) -> None: ...


async def take_numbers(numbers: dict[str, int], zone: Annotated[int, AfterValidator(quote)] = 1) -> None: ...


def with_routes(app: FastAPI) -> None:
    app.get(f"{BASE}/raise/{{name}}")(fail)
    app.get(f"{BASE}/json")(take_json)
    app.post(f"{BASE}/numbers")(take_numbers)


@pytest.fixture(scope="module")
async def client(secured: Settings) -> AsyncIterator[Client]:
    async with extended(secured, with_routes) as client:
        yield client


class TestProblem:
    @pytest.mark.parametrize("status", [404, 405, 418, 599])
    async def test_an_http_exception_is_a_problem_with_its_detail_and_headers(
        self, client: Client, status: int
    ) -> None:
        reply = await client.get(f"{THINGS}/raise/{status}")

        problem = problem_of(reply, status)
        assert (problem["type"], problem["detail"]) == ("about:blank", "Because.")
        assert reply.headers["X-Reason"] == "because"

    @pytest.mark.parametrize("name", DETAILS)
    async def test_a_detail_that_is_no_text_is_kept_beside_one_for_people(self, client: Client, name: str) -> None:
        problem = problem_of(await client.get(f"{THINGS}/raise/{name}"), 409)

        assert (problem["detail"], problem.get("data")) == DETAILS[name][1:]

    async def test_an_http_exception_without_a_body_stays_without_one(self, client: Client) -> None:
        reply = await client.get(f"{THINGS}/raise/304")

        assert (reply.status_code, reply.content, reply.headers["ETag"]) == (304, b"", '"1"')

    @pytest.mark.parametrize("name", ["empty", "pointless", "words", "json"])
    async def test_validation_errors_that_a_handler_raises_are_a_422(self, client: Client, name: str) -> None:
        assert problem_of(await client.get(f"{THINGS}/raise/{name}"), 422)

    async def test_malformed_json_in_the_query_and_a_list_for_a_dictionary_are_a_422(self, client: Client) -> None:
        query = problem_of(await client.get(f"{THINGS}/json", params={"filter": "{"}), 422)
        body = problem_of(await client.post(f"{THINGS}/numbers", json=[]), 422)

        assert [error["pointer"] for error in query["errors"]] == ["query/filter"]
        assert body["errors"] == [{"pointer": "#", "detail": "must be a JSON object"}]

    async def test_long_names_and_values_of_the_client_are_not_repeated(self, client: Client) -> None:
        sent = {"n" * 9_000: "s3cret"}
        reply = await client.post(f"{THINGS}/numbers", json=sent, params={"zone": "7654321"})

        assert len(problem_of(reply, 422)["errors"]) == 2
        assert len(reply.text) < 1_000
        assert "7654321" not in reply.text


def refuse_in_thread(request: Request, _: Exception) -> Response:
    return PlainTextResponse(f"refused {request.headers['X-Request-ID']}", 418)


async def refuse(request: Request, error: Exception) -> Response:
    return refuse_in_thread(request, error)


class TestExceptionHandler:
    @pytest.mark.parametrize(
        ("kind", "path"),
        [
            *((kind, "things/raise/teapot") for kind in (TeapotError, 500, Exception)),
            *((kind, "things/raise/http") for kind in (418, HTTPException)),
            (RequestValidationError, "tasks?limit=none"),
        ],
    )
    @pytest.mark.parametrize("answer", [refuse_in_thread, refuse])
    async def test_an_added_handler_of_a_class_or_a_status_answers(
        self, secured: Settings, kind: Any, path: str, answer: Callable[..., Any]
    ) -> None:
        def extend(app: FastAPI) -> None:
            with_routes(app)
            app.exception_handler(kind)(answer)

        async with extended(secured, extend) as client:
            reply = await client.get(f"/api/ada/{path}")

        assert (reply.status_code, reply.text) == (418, f"refused {reply.headers['X-Request-ID']}")

    @pytest.mark.parametrize("answer", [lambda *_: None, fail])
    async def test_a_handler_of_defects_that_fails_or_returns_nothing_leaves_the_500_of_the_service(
        self, secured: Settings, answer: Callable[..., Any]
    ) -> None:
        def extend(app: FastAPI) -> None:
            with_routes(app)
            app.exception_handler(500)(answer)

        async with extended(secured, extend) as client:
            assert problem_of(await client.get(f"{THINGS}/raise/teapot"), 500)

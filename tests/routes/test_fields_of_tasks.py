"""The values of a task's fields that POST and PUT store, and those that they refuse."""

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
import httpx
import pytest
from sqlmodel import SQLModel

from tests.support import pointers, short

Send = Callable[..., Awaitable[httpx.Response]]

VALID: Final[dict[str, list[object]]] = {
    "title": [
        "x",
        "\U0001f600" * 200,
        "e\u0301" * 100,
        "  spaces at both ends  ",
        # Nobody sees these.
        *"\x01\u00ad\u034f\u115f\u180e\u200b\u200d\u202e\u2060\u2800\u3164\ufe0f\ufeff\U000e0001\U000e0100",
        "\x01\x1b[31m\x7f\u202e\u200bline one\r\nline two\tafter a tab",
        '\'; DROP TABLE tasks; -- %s {0} $1 \\ "quoted" <script>alert(1)</script>',
    ],
    "description": [None, "", " ", "\U0001f600" * 5_000, "one\r\ntwo\tthree"],
    "completed": [True, False],
}
INVALID: Final[dict[str, list[object]]] = {
    "title": ["", " \t\u3000\n\x85\u2028", "x" * 201, "\U0001f600" * 201, "a\0b", None, 1, True, ["a"], {}],
    "description": ["x" * 5_001, "\U0001f600" * 5_001, "a\0b", 0, False, []],
    "completed": [0, 1, "true", "", [], {}],
}


def _cases(values: dict[str, list[object]]) -> list[tuple[str, object]]:
    return [(field, value) for field in values for value in values[field]]


@pytest.fixture(params=["POST", "PUT"])
def send(request: pytest.FixtureRequest, client: httpx.AsyncClient, tasks: str, path: str) -> Send:
    """Creates or updates a task."""

    async def send(**content: Any) -> httpx.Response:
        return await client.request(request.param, tasks if request.param == "POST" else path, **content)

    return send


@pytest.mark.parametrize(("field", "value"), _cases(VALID), ids=short)
async def test_a_value_up_to_its_limit_is_stored_unchanged(
    client: httpx.AsyncClient, send: Send, tasks: str, field: str, value: object
) -> None:
    reply = await send(json={"title": "Buy soy milk", field: value})

    assert reply.is_success
    assert (await client.get(f"{tasks}/{reply.json()['id']}")).json()[field] == value


@pytest.mark.parametrize(("field", "value"), _cases(INVALID), ids=short)
async def test_an_invalid_value_is_refused_and_nothing_is_stored(
    client: httpx.AsyncClient, send: Send, tasks: str, task: dict[str, Any], *, field: str, value: object
) -> None:
    valid = {"title": "Buy soy milk", "description": "Any brand", "completed": True}

    assert pointers(await send(json=valid | {field: value})) == [f"#/{field}"]
    assert (await client.get(tasks)).json() == [task]


async def test_the_table_refuses_no_title_that_the_service_accepts(database: asyncpg.Connection) -> None:
    rules = [str(rule.sqltext) for rule in SQLModel.metadata.tables["tasks"].constraints if hasattr(rule, "sqltext")]
    [rule] = [rule.replace("title", "chr(point)") for rule in rules if "title" in rule]
    points = "generate_series(1, 1114111) AS point WHERE point NOT BETWEEN 55296 AND 57343"
    refused = await database.fetchval(f"SELECT string_agg(chr(point), '') FROM {points} AND NOT ({rule})")  # noqa: S608

    assert " " in refused
    assert refused.isspace()


async def test_a_refusal_names_every_invalid_field_and_quotes_no_value(send: Send) -> None:
    reply = await send(json={"title": ["oat milk"], "description": 4711, "completed": "perhaps"})

    assert pointers(reply) == ["#/title", "#/description", "#/completed"]
    assert all(name in reply.json()["detail"] for name in ("title", "description", "completed"))
    assert not re.search("oat milk|4711|perhaps", reply.text)


async def test_a_body_is_required(send: Send) -> None:
    assert (await send()).json()["errors"] == [{"pointer": "#", "detail": "is required"}]


async def test_a_new_task_requires_a_title(client: httpx.AsyncClient, tasks: str) -> None:
    reply = await client.post(tasks, json={"description": "The barista one"})

    assert pointers(reply) == ["#/title"]
    assert reply.json()["detail"] == "title: is required"

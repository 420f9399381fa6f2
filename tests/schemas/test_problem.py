"""The JSON Schema of a problem compared with a reply of the service."""

import httpx

from app.schemas.problem import Problem

NAMES = [character * 50 for character in ("/", "~", "%", "ä", "€", "\n", "\0", '"', " ")]


async def test_a_problem_with_the_longest_and_oddest_names_is_within_the_bounds_of_its_schema(
    client: httpx.AsyncClient, tasks: str
) -> None:
    body = {"title": "Buy oat milk"} | dict.fromkeys(NAMES)
    query = {f"{name}{number}": "1" for name in NAMES for number in range(2)}

    reply = await client.post(tasks, json=body, params=query, headers={"Prefer": "handling=strict"})

    assert reply.status_code == 422
    assert len(Problem.model_validate(reply.json()).errors) == 20

"""What the JSON Schema of a problem says, and what the service answers."""

import httpx

from app.schemas.problem import Problem

NAMES = [character * 50 for character in ("/", "~", "%", "ä", "€", "\n", "\0", '"', " ")]


async def test_a_problem_with_the_longest_and_strangest_names_is_within_its_bounds(
    client: httpx.AsyncClient, tasks: str
) -> None:
    body = {"title": "Buy oat milk"} | dict.fromkeys(NAMES)
    query = {f"{name}{number}": "1" for name in NAMES for number in range(2)}

    reply = await client.post(tasks, json=body, params=query, headers={"Prefer": "handling=strict"})

    assert reply.status_code == 422
    assert len(Problem.model_validate(reply.json()).errors) == 20

"""DELETE /api/{user_id}/tasks/{task_id}. See test_missing_tasks.py for tasks that do not exist."""

from typing import Any

import httpx


async def test_a_delete_removes_only_its_task_and_is_204_without_a_body(
    client: httpx.AsyncClient, tasks: str, path: str, task: dict[str, Any]
) -> None:
    kept = (await client.post(tasks, json={"title": task["title"]})).json()

    reply = await client.delete(path)

    assert (reply.status_code, reply.content) == (204, b"")
    assert (await client.get(tasks)).json() == [kept]

"""No spelling of a path, and no header gives access to another user's tasks or changes the method."""

from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest

from tests.support import bearer, exchange

OVERRIDES: Final = {
    **dict.fromkeys(("X-HTTP-Method-Override", "X-HTTP-Method"), "DELETE"),
    **dict.fromkeys(("X-Original-URL", "X-Rewrite-URL"), "/api/other/tasks"),
    **dict.fromkeys(("X-User-Id", "X-Forwarded-User", "X-Remote-User"), "other"),
    **dict.fromkeys(("X-Forwarded-Host", "X-Forwarded-Prefix", "X-Script-Name", "X-Forwarded-For", "Via"), "evil"),
    "X-Forwarded-Proto": "gopher",
    "Forwarded": "for=203.0.113.7;host=evil.example;proto=https",
}


async def ask(url: str, method: str, target: str, user: str) -> tuple[int, bytes]:
    """Send a request with a token of `user`, and with the target as it is. Returns the status and the body."""
    lines = f"Host: localhost\r\nAuthorization: {bearer(user)['Authorization']}\r\nConnection: close\r\n"
    status, _, body = await exchange(httpx.URL(url), f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode())
    return status, body


class TestPath:
    @pytest.mark.parametrize(
        "template",
        [
            "/api/{other}/tasks",
            "/api/{escaped}/tasks",
            "/api/{user}/../{other}/tasks",
            "//api//{other}//tasks/",
            "/api/{user}//api/{other}/tasks",
            "/api/{user}%2F..%2F{other}/tasks",
            "/api/{other};{user}/tasks",
            "/api/{other}%00{user}/tasks",
            "/api/{other}/tasks?user_id={user}",
            "http://localhost/api/{other}/tasks",
            "http://{user}@localhost/api/{other}/tasks/{task_id}",
            "/api/{other}/tasks/{task_id}",
            "/api/{user}/tasks/{task_id}",
            "/api/{user}/tasks/..%2F..%2F{other}%2Ftasks%2F{task_id}",
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    async def test_no_spelling_of_a_path_reaches_another_users_tasks(
        self,
        client: httpx.AsyncClient,
        secured_url: str,
        new_user: Callable[[], str],
        task: dict[str, Any],
        method: str,
        template: str,
    ) -> None:
        user, other = new_user(), task["user_id"]
        target = template.format(user=user, other=other, escaped=other.replace("u", "%75"), task_id=task["id"])

        status, body = await ask(secured_url, method, target, user)

        assert 400 <= status < 500
        assert task["title"].encode() not in body
        assert (await client.get(f"/api/{other}/tasks")).json() == [task]

    @pytest.mark.parametrize("template", ["/api/{}/tasks", "http://localhost/api/{}/tasks"])
    async def test_the_owners_token_reaches_the_owners_tasks(
        self, secured_url: str, task: dict[str, Any], template: str
    ) -> None:
        owner = task["user_id"]
        status, body = await ask(secured_url, "GET", template.format(owner.replace("u", "%75")), owner)

        assert (status, task["title"].encode() in body) == (200, True)

    @pytest.mark.parametrize(
        "template",
        [
            *("/api%2F{user}/tasks", "/api/{user}%2ftasks", "/api/{user}/tasks%2F{task_id}", "/%2Fapi/{user}/tasks"),
            *("/%61pi/{user}/tasks", "/ap%69/{user}/tasks", "/%61pi/api/{user}/tasks", "/api%2f..%2fapi/{user}/tasks"),
            *("/api/{user}/tasks%0A", "/api/{user}/tasks/{task_id}/complete%0a", "/health/live%0A", "/docs%0A"),
            *("/health%2Flive", "/docs%2Fassets/swagger-ui.css", "http://localhost/api%2F{user}/tasks"),
            *("//%61pi/{user}/tasks", "/./api/{user}/tasks", "/%2e/api/{user}/tasks", "/api/%2e/{user}/tasks"),
        ],
    )
    async def test_a_path_that_a_proxy_may_read_differently_is_404(
        self, client: httpx.AsyncClient, secured_url: str, task: dict[str, Any], template: str
    ) -> None:
        target = template.format(user=task["user_id"], task_id=task["id"])

        for url in (str(client.base_url), secured_url):
            status, body = await ask(url, "GET", target, task["user_id"])

            assert (status, b"route-not-found" in body) == (404, True)


async def test_no_header_overrides_method_path_or_user(secured_url: str, user: str, task: dict[str, Any]) -> None:
    tasks, headers = f"/api/{user}/tasks", {**bearer(user), "X-Request-ID": user}
    async with httpx.AsyncClient(base_url=secured_url, headers=headers, timeout=30) as client:
        plain = await client.get(tasks)
        reply = await client.get(tasks, headers=OVERRIDES)
        created = await client.post(tasks, headers=OVERRIDES, json={"title": "a"})
        foreign = await client.get("/api/other/tasks", headers=OVERRIDES)

    assert (reply.status_code, reply.json(), foreign.status_code) == (200, [task], 403)
    assert {**reply.headers, "date": ""} == {**plain.headers, "date": ""}
    assert created.headers["Location"] == f"{tasks}/{created.json()['id']}"

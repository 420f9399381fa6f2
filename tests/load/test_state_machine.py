"""All six endpoints in any order, by three users, against a model that fits on a page."""

import threading
from collections.abc import Iterator
from itertools import count
from typing import Any, ClassVar, Final
from uuid import UUID, uuid4

import httpx
import pytest
import uvicorn
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule, run_state_machine_as_test

from app.core.config import Settings
from app.main import create_app

Task = dict[str, Any]

# Few letters, so that searches hit, and those that a pattern or a collation could trip over.
LETTERS: Final = "abAB éÉ%_\\~\n'\"ß漢😀"
USERS: Final = st.sampled_from(["ada", "auth0|grace", "linus@example.com"])
TITLES: Final = st.text(LETTERS, min_size=1, max_size=8).filter(lambda text: not text.isspace())
DESCRIPTIONS: Final = st.none() | st.text(LETTERS, max_size=12)
CHANGES: Final = st.fixed_dictionaries(
    {}, optional={"title": TITLES, "description": DESCRIPTIONS, "completed": st.booleans(), "priority": st.integers()}
)
QUERIES: Final = st.fixed_dictionaries(
    {},
    optional={
        "sort": st.sampled_from(["created_at", "-created_at", "updated_at", "-updated_at", "title", "-title"]),
        "status": st.sampled_from(["all", "pending", "completed"]),
        "completed": st.booleans(),
        "search": st.text(LETTERS, max_size=2),
    },
)
_runs = count()


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    """The service in a thread: Hypothesis runs its machines without an event loop."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join()


def test_the_service_does_what_the_model_does(url: str) -> None:
    with httpx.Client(base_url=url) as TasksMachine.client:
        run_state_machine_as_test(
            TasksMachine,
            settings=settings(
                max_examples=30,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],  # one example is 30 requests
            ),
        )


class TasksMachine(RuleBasedStateMachine):
    """`stored` is the model: each user's tasks by id, as the last reply showed them."""

    ids = Bundle("ids")
    client: ClassVar[httpx.Client]

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, dict[str, Task]] = {}
        self.run = f"~{next(_runs)}"  # every run has users of its own

    @rule(target=ids, user=USERS, title=TITLES, description=DESCRIPTIONS, completed=st.booleans())
    def create(self, user: str, title: str, description: str | None, completed: bool) -> str:
        sent = {"title": title, "description": description, "completed": completed}
        reply = self.request("POST", user, json=sent)
        task: Task = reply.json()

        assert reply.status_code == 201
        assert UUID(task["id"]).version == 7
        assert task == {**task, **sent, "user_id": self.name(user), "updated_at": task["created_at"]}
        self.tasks(user)[task["id"]] = task
        return str(task["id"])

    @rule(user=USERS, task_id=ids)
    def get(self, user: str, task_id: str) -> None:
        self.check(self.request("GET", user, f"/{task_id}"), user, task_id, {})

    @rule(user=USERS, task_id=ids, changes=CHANGES)
    def update(self, user: str, task_id: str, changes: Task) -> None:
        known = {name: value for name, value in changes.items() if name != "priority"}
        self.check(self.request("PUT", user, f"/{task_id}", json=changes), user, task_id, known)

    @rule(user=USERS, task_id=ids)
    def toggle(self, user: str, task_id: str) -> None:
        before = self.tasks(user).get(task_id, {})
        reply = self.request("PATCH", user, f"/{task_id}/complete")
        self.check(reply, user, task_id, {"completed": not before.get("completed")})

    @rule(user=USERS, task_id=ids, completed=st.booleans())
    def complete(self, user: str, task_id: str, completed: bool) -> None:
        sent = {"completed": completed}
        self.check(self.request("PATCH", user, f"/{task_id}/complete", json=sent), user, task_id, sent)

    @rule(user=USERS, task_id=consumes(ids))
    def delete(self, user: str, task_id: str) -> None:
        existed = self.tasks(user).pop(task_id, None)
        reply = self.request("DELETE", user, f"/{task_id}")

        assert reply.status_code == (204 if existed else 404)

    @rule(user=USERS)
    def miss(self, user: str) -> None:
        self.check(self.request("GET", user, f"/{uuid4()}"), user, "none", {})

    @rule(user=USERS, query=QUERIES, limit=st.integers(1, 5))
    def list_all_pages(self, user: str, query: dict[str, Any], limit: int) -> None:
        reply = self.request("GET", user, params={**query, "limit": limit})
        listed: list[Task] = reply.json()
        while "next" in reply.links:
            reply = self.client.get(reply.links["next"]["url"])
            assert 0 < len(reply.json()) <= limit
            listed += reply.json()

        sort = query.get("sort", "-created_at")
        expected = [task for task in self.tasks(user).values() if wanted(query, task)]
        expected.sort(key=lambda task: (task[sort.removeprefix("-")], task["id"]), reverse=sort.startswith("-"))
        assert listed == expected

    def check(self, reply: httpx.Response, user: str, task_id: str, changes: Task) -> None:
        """The reply is the stored task with `changes`, newer if there are any, or 404 if it is not the user's."""
        before = self.tasks(user).get(task_id)
        if before is None:
            assert reply.status_code == 404
            return
        task: Task = reply.json()
        assert reply.status_code == 200
        assert task == {**before, **changes, "updated_at": task["updated_at"]}
        if changes:
            assert task["updated_at"] > before["updated_at"]
        else:
            assert task["updated_at"] == before["updated_at"]
        self.tasks(user)[task_id] = task

    def request(self, method: str, user: str, path: str = "", **options: Any) -> httpx.Response:
        return self.client.request(method, f"/api/{self.name(user)}/tasks{path}", **options)

    def name(self, user: str) -> str:
        return user + self.run

    def tasks(self, user: str) -> dict[str, Task]:
        return self.stored.setdefault(user, {})


def wanted(query: dict[str, Any], task: Task) -> bool:
    states = {"all": {True, False}, "pending": {False}, "completed": {True}}[query.get("status", "all")]
    texts = (text.lower() for text in (task["title"], task["description"]) if text is not None)
    return (
        task["completed"] in states
        and task["completed"] == query.get("completed", task["completed"])
        and any(query.get("search", "").lower() in text for text in texts)
    )

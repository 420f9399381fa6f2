"""All six endpoints in any order, by three users, with and without a version, compared with a small model."""

from collections.abc import Iterator
from itertools import count
from typing import Any, ClassVar, Final, get_args
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule, run_state_machine_as_test

from app.core.config import Settings
from app.schemas.task import Sort
from tests.support import serving_in_thread

Task = dict[str, Any]

# Few letters, so that searches find tasks. Some letters could confuse a pattern or a collation.
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
        "sort": st.sampled_from(get_args(Sort)),
        "status": st.sampled_from(["all", "pending", "completed"]),
        "completed": st.booleans(),
        "search": st.text(LETTERS, max_size=2),
    },
)
# The version of the task that a change requires: any, the first, or the current version.
VERSIONS: Final = st.sampled_from([None, 0, -1])
_runs = count()


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    with serving_in_thread(settings) as url:
        yield url


def test_the_service_behaves_like_the_model(url: str) -> None:
    with httpx.Client(base_url=url) as TasksMachine.client:
        run_state_machine_as_test(
            TasksMachine,
            settings=settings(
                max_examples=10,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],  # one example is 30 requests
            ),
        )


class TasksMachine(RuleBasedStateMachine):
    """`stored` is the model: each user's tasks by id, as in the last reply. `tags` has the entity tags of each task.
    The current tag is last. `made` has the id of the task that a user's key created.
    """

    ids = Bundle("ids")
    client: ClassVar[httpx.Client]

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, dict[str, Task]] = {}
        self.tags: dict[str, list[str]] = {}
        self.made: dict[tuple[str, str], str] = {}
        self.run = f"~model-{next(_runs)}"  # every run has its own users

    @rule(target=ids, user=USERS, title=TITLES, description=DESCRIPTIONS, completed=st.booleans())
    def create(self, user: str, title: str, description: str | None, completed: bool) -> str:
        sent = {"title": title, "description": description, "completed": completed}
        return self.check_new(self.request("POST", user, json=sent), user, sent, version=7)

    @rule(target=ids, user=USERS, key=st.sampled_from(["k", "K"]), completed=st.booleans())
    def create_once(self, user: str, key: str, completed: bool) -> str:
        """The first request creates the task. Later requests return it, unless they ask for a different task."""
        sent = {"title": "Once", "description": None, "completed": completed}
        task = self.tasks(user).get(self.made.get((user, key), ""))
        reply = self.request("POST", user, json=sent, headers={"Idempotency-Key": key})

        if task is None:
            self.made[user, key] = self.check_new(reply, user, sent, version=5)
        elif task["updated_at"] != task["created_at"] or task["completed"] == completed:
            assert (reply.status_code, reply.headers["Idempotent-Replayed"], reply.json()) == (201, "true", task)
        else:
            assert reply.status_code == 422
        return self.made[user, key]

    @rule(user=USERS, task_id=ids)
    def get(self, user: str, task_id: str) -> None:
        self.check(self.request("GET", user, f"/{task_id}"), user, task_id, {})

    @rule(user=USERS, task_id=ids, changes=CHANGES, version=VERSIONS)
    def update(self, user: str, task_id: str, changes: Task, version: int | None) -> None:
        known = {name: value for name, value in changes.items() if name != "priority"}
        reply = self.change("PUT", user, f"/{task_id}", version, json=changes)
        self.check(reply, user, task_id, known, version)

    @rule(user=USERS, task_id=ids, version=VERSIONS)
    def toggle(self, user: str, task_id: str, version: int | None) -> None:
        before = self.tasks(user).get(task_id, {})
        reply = self.change("PATCH", user, f"/{task_id}/complete", version)
        self.check(reply, user, task_id, {"completed": not before.get("completed")}, version)

    @rule(user=USERS, task_id=ids, completed=st.booleans(), version=VERSIONS)
    def complete(self, user: str, task_id: str, completed: bool, version: int | None) -> None:
        sent = {"completed": completed}
        reply = self.change("PATCH", user, f"/{task_id}/complete", version, json=sent)
        self.check(reply, user, task_id, sent, version)

    @rule(user=USERS, task_id=ids, version=VERSIONS)
    def delete(self, user: str, task_id: str, version: int | None) -> None:
        reply = self.change("DELETE", user, f"/{task_id}", version)
        if self.takes_place(reply, user, task_id, version):
            assert reply.status_code == 204
            del self.tasks(user)[task_id]

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
        expected = [task for task in self.tasks(user).values() if matches(query, task)]
        expected.sort(key=lambda task: (task[sort.removeprefix("-")], task["id"]), reverse=sort.startswith("-"))
        assert listed == expected

    def check_new(self, reply: httpx.Response, user: str, sent: Task, version: int) -> str:
        """The reply is a new task with the sent fields and an id of this UUID version. Returns the id."""
        task: Task = reply.json()
        assert reply.status_code == 201
        assert "Idempotent-Replayed" not in reply.headers
        assert UUID(task["id"]).version == version
        assert task == {**task, **sent, "user_id": self.name(user), "updated_at": task["created_at"]}
        self.store(reply, user)
        return str(task["id"])

    def check(self, reply: httpx.Response, user: str, task_id: str, changes: Task, version: int | None = None) -> None:
        """The reply is the stored task with `changes`, newer if there are any, or else 404 or 412."""
        if not self.takes_place(reply, user, task_id, version):
            return
        before, task = self.tasks(user)[task_id], reply.json()
        assert reply.status_code == 200
        assert task == {**before, **changes, "updated_at": task["updated_at"]}
        assert task["updated_at"] >= before["updated_at"]
        assert (task["updated_at"] != before["updated_at"]) == bool(changes)
        self.store(reply, user)

    def takes_place(self, reply: httpx.Response, user: str, task_id: str, version: int | None) -> bool:
        """Whether the user has the task in this version. If not, the reply is 404 or 412."""
        if task_id not in self.tasks(user):
            assert reply.status_code == 404
            return False
        tags = self.tags[task_id]
        if version is not None and tags[version] != tags[-1]:
            assert (reply.status_code, reply.headers["ETag"]) == (412, tags[-1])
            return False
        return True

    def store(self, reply: httpx.Response, user: str) -> None:
        task = reply.json()
        assert reply.headers["ETag"] == f'"{task["updated_at"]}"'
        self.tasks(user)[task["id"]] = task
        self.tags.setdefault(task["id"], []).append(reply.headers["ETag"])

    def change(self, method: str, user: str, path: str, version: int | None, **options: Any) -> httpx.Response:
        """Send the request. If a version is given, require it with If-Match."""
        task_id = path.split("/")[1]
        headers = {} if version is None else {"If-Match": self.tags[task_id][version]}
        return self.request(method, user, path, headers=headers, **options)

    def request(self, method: str, user: str, path: str = "", **options: Any) -> httpx.Response:
        return self.client.request(method, f"/api/{self.name(user)}/tasks{path}", **options)

    def name(self, user: str) -> str:
        return user + self.run

    def tasks(self, user: str) -> dict[str, Task]:
        return self.stored.setdefault(user, {})


def matches(query: dict[str, Any], task: Task) -> bool:
    states = {"all": {True, False}, "pending": {False}, "completed": {True}}[query.get("status", "all")]
    texts = (text.lower() for text in (task["title"], task["description"]) if text is not None)
    return (
        task["completed"] in states
        and task["completed"] == query.get("completed", task["completed"])
        and any(query.get("search", "").lower() in text for text in texts)
    )

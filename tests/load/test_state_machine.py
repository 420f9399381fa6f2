"""All six endpoints in any order, with and without a version, compared with a small model."""

from itertools import count
from typing import Any, ClassVar, Final, get_args
from uuid import UUID

import httpx
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule, run_state_machine_as_test

from app.core.config import Settings
from app.schemas.words import Sort
from tests.support import serving_in_thread

pytestmark = pytest.mark.unmeasured

Task = dict[str, Any]

# Few letters, so that searches find tasks. Some letters could confuse a pattern or a collation.
LETTERS: Final = "abAB éÉ%_\\~\n'\"ß漢😀"
TITLES: Final = st.text(LETTERS, min_size=1, max_size=8).filter(lambda text: not text.isspace())
DESCRIPTIONS: Final = st.none() | st.text(LETTERS, max_size=12)
CHANGES: Final = st.fixed_dictionaries(
    {}, optional={"title": TITLES, "description": DESCRIPTIONS, "completed": st.booleans()}
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


def test_the_service_behaves_like_the_model(settings: Settings) -> None:
    with serving_in_thread(settings) as url, httpx.Client(base_url=url, timeout=30) as TasksMachine.client:
        run_state_machine_as_test(
            TasksMachine,
            settings=hypothesis_settings(
                max_examples=10,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],  # one example is 40 requests
            ),
        )


class TasksMachine(RuleBasedStateMachine):
    """`stored` is the model: the tasks by id, as in the last reply. `tags` has the entity tags of each task, the
    current one last. `made` has the id of the task that a key created.
    """

    ids = Bundle("ids")
    client: ClassVar[httpx.Client]

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, Task] = {}
        self.tags: dict[str, list[str]] = {}
        self.made: dict[str, str] = {}
        self.user = f"model|{next(_runs)}"  # every run has its own user

    @rule(target=ids, title=TITLES, description=DESCRIPTIONS, completed=st.booleans())
    def create(self, title: str, description: str | None, completed: bool) -> str:
        sent = {"title": title, "description": description, "completed": completed}
        return self.check_new(self.request("POST", json=sent), sent, version=7)

    @rule(target=ids, key=st.sampled_from(["k", "K"]), completed=st.booleans())
    def create_once(self, key: str, completed: bool) -> str:
        """The first request creates the task. Later requests return it, unless they ask for a different task."""
        sent = {"title": "Once", "description": None, "completed": completed}
        task = self.stored.get(self.made.get(key, ""))
        reply = self.request("POST", json=sent, headers={"Idempotency-Key": key})

        if task is None:
            self.made[key] = self.check_new(reply, sent, version=5)
        elif task["updated_at"] != task["created_at"] or task["completed"] == completed:
            assert (reply.status_code, reply.headers["Idempotent-Replayed"], reply.json()) == (201, "true", task)
        else:
            assert reply.status_code == 422
        return self.made[key]

    @rule(task_id=ids, version=VERSIONS)
    def get(self, task_id: str, version: int | None) -> None:
        self.change("GET", task_id, version, {})

    @rule(task_id=ids, changes=CHANGES, version=VERSIONS)
    def update(self, task_id: str, changes: Task, version: int | None) -> None:
        self.change("PUT", task_id, version, changes, json=changes)

    @rule(task_id=ids, version=VERSIONS)
    def toggle(self, task_id: str, version: int | None) -> None:
        toggled = not self.stored.get(task_id, {}).get("completed")
        self.change("PATCH", task_id, version, {"completed": toggled}, suffix="/complete")

    @rule(task_id=ids, completed=st.booleans(), version=VERSIONS)
    def complete(self, task_id: str, completed: bool, version: int | None) -> None:
        sent = {"completed": completed}
        self.change("PATCH", task_id, version, sent, suffix="/complete", json=sent)

    @rule(task_id=ids, version=VERSIONS)
    def delete(self, task_id: str, version: int | None) -> None:
        self.change("DELETE", task_id, version, None)

    @rule(query=QUERIES, limit=st.integers(1, 5))
    def list_all_pages(self, query: dict[str, Any], limit: int) -> None:
        reply = self.request("GET", params={**query, "limit": limit})
        listed: list[Task] = reply.json()
        while "next" in reply.links:
            reply = self.client.get(reply.links["next"]["url"])
            assert 0 < len(reply.json()) <= limit
            listed += reply.json()

        sort = query.get("sort", "-created_at")
        expected = [task for task in self.stored.values() if matches(query, task)]
        expected.sort(key=lambda task: (task[sort.removeprefix("-")].lower(), task["id"]), reverse=sort.startswith("-"))
        assert listed == expected

    def change(
        self, method: str, task_id: str, version: int | None, changes: Task | None, *, suffix: str = "", **sent: Any
    ) -> None:
        """The reply is the stored task with `changes`, newer if there are any, or 404 or 412. None deletes it."""
        headers = {} if version is None else {"If-Match": self.tags[task_id][version]}
        reply = self.request(method, f"/{task_id}{suffix}", headers=headers, **sent)
        tags, before = self.tags[task_id], self.stored.get(task_id)
        if before is None:
            assert reply.status_code == 404
        elif version is not None and tags[version] != tags[-1]:
            assert (reply.status_code, reply.headers["ETag"]) == (412, tags[-1])
        elif changes is None:
            assert reply.status_code == 204
            del self.stored[task_id]
        else:
            task = reply.json()
            assert (reply.status_code, task) == (200, {**before, **changes, "updated_at": task["updated_at"]})
            assert task["updated_at"] >= before["updated_at"]
            assert (task["updated_at"] != before["updated_at"]) == bool(changes)
            self.store(reply)

    def check_new(self, reply: httpx.Response, sent: Task, version: int) -> str:
        """The reply is a new task with the sent fields and an id of this UUID version. Returns the id."""
        task: Task = reply.json()
        assert (reply.status_code, "Idempotent-Replayed" in reply.headers) == (201, False)
        assert UUID(task["id"]).version == version
        assert task == {**task, **sent, "user_id": self.user, "updated_at": task["created_at"]}
        self.store(reply)
        return str(task["id"])

    def store(self, reply: httpx.Response) -> None:
        task = reply.json()
        assert reply.headers["ETag"] == f'"{task["updated_at"]}"'
        self.stored[task["id"]] = task
        self.tags.setdefault(task["id"], []).append(reply.headers["ETag"])

    def request(self, method: str, path: str = "", **options: Any) -> httpx.Response:
        return self.client.request(method, f"/api/{self.user}/tasks{path}", **options)


def matches(query: dict[str, Any], task: Task) -> bool:
    states = {"all": {True, False}, "pending": {False}, "completed": {True}}[query.get("status", "all")]
    texts = (text.lower() for text in (task["title"], task["description"]) if text is not None)
    return (
        task["completed"] in states
        and task["completed"] == query.get("completed", task["completed"])
        and any(query.get("search", "").lower() in text for text in texts)
    )

"""Three users with tokens who try to read, change and find each other's tasks, in any order and by every way there is.

Whatever they try, they are told what they would be told of a task that is not there, and the rows stay as they are.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple
from urllib.parse import quote
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import bindparam, select
from sqlmodel import col

from app.core.database import Database, Statement, statement
from app.core.errors import AppError, ForbiddenError, TaskNotFoundError
from app.models.task import Task
from app.schemas.task import Conditions
from app.services import tasks
from tests.support import SECRET, bearer, make_settings, serving_in_thread

NAMES: Final = ("ada", "auth0|grace", "linus@example.com")
NOWHERE: Final = "a word that no title has"
FINGERPRINTS: Final = """
    SELECT user_id, md5(string_agg(t::text, '\n' ORDER BY t.id)) AS digest
    FROM tasks t WHERE user_id = ANY($1) GROUP BY user_id
"""
JSON: Final = {"Content-Type": "application/json"}
STRICT: Final = {"Prefer": "handling=strict"}


class Operation(NamedTuple):
    """What may be asked of one task."""

    method: str
    suffix: str = ""
    json: Any = None
    content: bytes | None = None
    headers: Mapping[str, str] = MappingProxyType({})


class Told(NamedTuple):
    """All that a reply tells, and how many statements it took."""

    status: int
    headers: list[tuple[str, str]]
    content: bytes
    statements: int


OPERATIONS: Final = (
    Operation("GET"),
    Operation("HEAD"),
    Operation("PUT", json={"title": "Stolen", "description": None, "completed": True}),
    Operation("PUT", json={"completed": False}),
    Operation("PUT", json={}),
    Operation("PATCH", "/complete"),
    Operation("PATCH", "/complete", json={}),
    Operation("PATCH", "/complete", json={"completed": True}),
    Operation("PATCH", "/complete", json={"completed": False}),
    Operation("DELETE"),
)
# Only others try these, too: what is wrong with them must be told alike whether the task is there or not.
FLAWED: Final = (
    Operation("PUT", json={"title": ""}),
    Operation("PUT", json={"title": "Stolen", "id": NOWHERE, "user_id": NOWHERE}),
    Operation("PUT", json={"title": "Stolen", "priority": 1}, headers={"Prefer": "handling=strict"}),
    Operation("PUT", content=b"{", headers={"Content-Type": "application/json"}),
    Operation("PUT", content=b"{}", headers={"Content-Type": "text/plain"}),
    Operation("PUT"),
    Operation("PATCH", "/complete", json={"completed": "yes"}),
    Operation("GET", headers={"Accept": "text/html", "Range": "bytes=0-1"}),
    Operation("POST"),
    Operation("DELETE", "/complete"),
)
TRIED: Final = st.permutations(OPERATIONS) | st.permutations(FLAWED)
# "current" stands for the entity tag of the task, which only the owner can know.
CONDITIONS: Final = st.dictionaries(
    st.sampled_from(["If-Match", "If-None-Match"]),
    st.sampled_from(["current", "W/current", "*", '"2026-11-22T09:30:00.123456Z"', "nonsense", ""]),
)
USERS: Final = st.sampled_from(range(len(NAMES)))
OTHERS: Final = st.sampled_from(range(1, len(NAMES)))  # how many users further
proof_of = cache(bearer)
_runs = count()


class Service(NamedTuple):
    """The service, a look past it, and the statements that it has run."""

    client: httpx.Client
    fingerprints: Callable[[list[str]], dict[str, str]]
    ran: list[Statement]


@pytest.fixture(scope="module")
def service(dsn: str) -> Iterator[Service]:
    ran: list[Statement] = []
    fetch = Database.fetch

    def noted(db: Database, query: Statement, **values: Any) -> Any:
        ran.append(query)
        return fetch(db, query, **values)

    with (
        pytest.MonkeyPatch.context() as patch,
        looking(dsn) as fingerprints,
        serving_in_thread(make_settings(dsn, auth_jwt_secret=SECRET)) as url,
        httpx.Client(base_url=url) as client,
    ):
        patch.setattr(Database, "fetch", noted)
        yield Service(client, fingerprints, ran)


@contextmanager
def looking(dsn: str) -> Iterator[Callable[[list[str]], dict[str, str]]]:
    """Yields what tells a hash of all rows of each user who has any, past the service."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(dsn))

        async def fingerprints(users: list[str]) -> dict[str, str]:
            return {row["user_id"]: row["digest"] for row in await connection.fetch(FINGERPRINTS, users)}

        yield lambda users: runner.run(fingerprints(users))
        runner.run(connection.close())


def send(service: Service, user: str, path: str, operation: Operation) -> httpx.Response:
    """Ask for it with this user's token."""
    method, suffix, json, content, headers = operation
    headers = {**headers, **proof_of(user)}
    return service.client.request(method, path + suffix, json=json, content=content, headers=headers)


def play(service: Service, **options: Any) -> None:
    """Have three users try what they can."""
    ForeignTasksMachine.service = service
    run_state_machine_as_test(
        ForeignTasksMachine,
        settings=settings(
            stateful_step_count=30,
            deadline=None,
            phases=[Phase.reuse, Phase.generate],  # to shrink an example takes minutes
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow],  # one example is some hundred requests
            **options,
        ),
    )


class ForeignTasksMachine(RuleBasedStateMachine):
    """`owners` has the owner of each task there ever was, `tags` its last entity tag."""

    ids = Bundle("ids")
    service: ClassVar[Service]

    def __init__(self) -> None:
        super().__init__()
        run = f"~{next(_runs)}"  # every run has users of its own
        self.users = [name + run for name in NAMES]
        self.owners: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.gone: set[str] = set()
        self.keys: set[tuple[str, str]] = set()
        self.acting: str | None = None
        self.seen: dict[str, str] = {}

    @initialize(target=ids)
    def settle(self) -> MultipleResults[str]:
        """Each has two tasks, so that a list has a second page."""
        made = [self.create(user) for user in self.users for _ in range(2)]
        self.seen = self.fingerprints()
        return multiple(*made)

    @rule(target=ids, number=USERS)
    def add(self, number: int) -> str:
        return self.create(self.users[number])

    @rule(target=ids, number=USERS, key=st.sampled_from(["k", "K"]))
    def add_with_a_key_that_others_use(self, number: int, key: str) -> MultipleResults[str]:
        user = self.users[number]
        if (user, key) in self.keys:
            return multiple()
        self.keys.add((user, key))
        return multiple(self.create(user, headers={"Idempotency-Key": key}))

    @rule(target=ids, task_id=ids, further=OTHERS)
    def add_in_the_name_of_another(self, task_id: str, further: int) -> str:
        claimed = {"id": task_id, "user_id": self.owners[task_id]}
        return self.create(self.other(task_id, further), claimed, ignored="id, user_id")

    @rule(task_id=ids, operation=st.sampled_from(OPERATIONS))
    def use(self, task_id: str, operation: Operation) -> None:
        """The owner's own doing, in between."""
        self.acting = owner = self.owners[task_id]
        if "title" in (operation.json or {}):
            operation = operation._replace(json={**operation.json, "title": f"A changed secret of {owner}"})
        reply = self.send(owner, self.path(owner, task_id), operation)
        assert reply.status_code == (404 if task_id in self.gone else 204 if operation.method == "DELETE" else 200)
        if operation.method == "DELETE":
            self.gone.add(task_id)
        self.tags[task_id] = reply.headers.get("ETag", self.tags[task_id])

    @rule(task_id=ids, further=OTHERS, operations=TRIED, conditions=CONDITIONS)
    def reach(self, task_id: str, further: int, operations: Sequence[Operation], conditions: Mapping[str, str]) -> None:
        """Try it on another user's task, at one's own path."""
        user = self.other(task_id, further)
        for operation in operations:
            tried = self.on_condition(operation, conditions, task_id)
            foreign = self.told(user, self.path(user, task_id), tried)
            missing = self.told(user, self.path(user, str(uuid4())), tried)

            assert foreign == missing
            assert foreign.status in {400, 404, 405, 412, 415, 422}

    @rule(task_id=ids, further=OTHERS, operations=TRIED, conditions=CONDITIONS)
    def trespass(
        self, task_id: str, further: int, operations: Sequence[Operation], conditions: Mapping[str, str]
    ) -> None:
        """Try it at the owner's path, with one's own token."""
        user, owner = self.other(task_id, further), self.owners[task_id]
        for operation in operations:
            tried = self.on_condition(operation, conditions, task_id)
            foreign = self.told(user, self.path(owner, task_id), tried)
            missing = self.told(user, self.path(owner, str(uuid4())), tried)
            nobodys = self.told(user, self.path("nobody", str(uuid4())), tried)

            assert foreign == missing == nobodys
            assert (foreign.status, foreign.statements) in {(403, 0), (405, 0)}

    @rule(number=USERS, further=OTHERS, query=st.sampled_from(["", "?limit=1", "?limit=0", "?search=secret"]))
    def trespass_on_the_list(self, number: int, further: int, query: str) -> None:
        user, owner = self.pair(number, further)
        for tried in (Operation("GET"), Operation("HEAD"), Operation("POST", json={"title": "Planted"})):
            foreign = self.told(user, self.path(owner) + query, tried)
            nobodys = self.told(user, self.path("nobody") + query, tried)

            assert foreign == nobodys
            assert (foreign.status, foreign.statements) == (403, 0)

    @rule(number=USERS, query=st.sampled_from(["", "?search=secret", "?sort=title", "?completed=false", "?limit=2"]))
    def list_all(self, number: int, query: str) -> None:
        user = self.users[number]
        listed = self.send(user, self.path(user) + query, Operation("GET")).json()

        mine = {task_id for task_id, owner in self.owners.items() if owner == user} - self.gone
        assert {task["user_id"] for task in listed} <= {user}
        assert {task["id"] for task in listed} <= mine

    @rule(number=USERS, further=OTHERS, options=st.sampled_from(["", "&status=pending", "&sort=title", "&limit=1"]))
    def search(self, number: int, further: int, options: str) -> None:
        """The words of another user's titles are as good as words that nobody uses."""
        user, owner = self.pair(number, further)

        foreign = self.told(user, f"{self.path(user)}?search={quote(f'of {owner}')}{options}", Operation("GET"))
        missing = self.told(user, f"{self.path(user)}?search={NOWHERE}{options}", Operation("GET"))

        assert foreign == missing
        assert (foreign.status, foreign.content) == (200, b"[]")

    @rule(number=USERS, further=OTHERS, sort=st.sampled_from(["title", "-title", "created_at", "-updated_at"]))
    def go_on_in_the_list_of_another(self, number: int, further: int, sort: str) -> None:
        """A cursor of another user's list is as good as a broken one."""
        user, owner = self.pair(number, further)
        page = self.send(owner, f"{self.path(owner)}?limit=1&sort={sort}", Operation("GET"))
        if "next" not in page.links:
            return
        cursor = httpx.URL(page.links["next"]["url"]).params["cursor"]

        foreign = self.told(user, f"{self.path(user)}?limit=1&sort={sort}&cursor={cursor}", Operation("GET"))
        broken = self.told(user, f"{self.path(user)}?limit=1&sort={sort}&cursor={cursor[::-1]}", Operation("GET"))

        assert foreign == broken
        assert (foreign.status, foreign.statements) == (422, 0)

    @invariant()
    def only_who_acts_on_tasks_of_their_own_changes_rows(self) -> None:
        now = self.fingerprints()
        assert [now.get(user) == self.seen.get(user) or user == self.acting for user in self.users] == [True] * 3
        self.acting, self.seen = None, now

    def create(
        self,
        user: str,
        claimed: Mapping[str, str] = MappingProxyType({}),
        headers: Mapping[str, str] = MappingProxyType({}),
        ignored: str | None = None,
    ) -> str:
        """Have the user create a task, which is a new one and the user's, whatever others have. Returns its id."""
        self.acting = user
        before = len(self.service.ran)
        sent = {**claimed, "title": f"A secret of {user}"}
        reply = self.send(user, self.path(user), Operation("POST", json=sent, headers=headers))
        task = reply.json()
        assert (reply.status_code, task["user_id"], task["title"]) == (201, user, sent["title"])
        assert (task["id"] in self.owners, len(self.service.ran) - before) == (False, 1)
        assert (reply.headers.get("Ignored-Fields"), reply.headers.get("Idempotent-Replayed")) == (ignored, None)
        self.owners[task["id"]], self.tags[task["id"]] = user, reply.headers["ETag"]
        return str(task["id"])

    def told(self, user: str, path: str, operation: Operation) -> Told:
        """What a reply tells, but for what is different in each."""
        before = len(self.service.ran)
        reply = self.send(user, path, operation)
        headers = [item for item in sorted(reply.headers.items()) if item[0] not in {"date", "x-request-id"}]
        content = reply.content.replace(reply.headers["X-Request-ID"].encode(), b"")
        return Told(reply.status_code, headers, content, len(self.service.ran) - before)

    def send(self, user: str, path: str, operation: Operation) -> httpx.Response:
        return send(self.service, user, path, operation)

    def on_condition(self, operation: Operation, conditions: Mapping[str, str], task_id: str) -> Operation:
        tags = {name: value.replace("current", self.tags[task_id]) for name, value in conditions.items()}
        return operation._replace(headers={**operation.headers, **tags})

    def path(self, user: str, task_id: str | None = None) -> str:
        return f"/api/{user}/tasks/{task_id}" if task_id else f"/api/{user}/tasks"

    def other(self, task_id: str, further: int) -> str:
        """Somebody whose task it is not."""
        return self.pair(self.users.index(self.owners[task_id]), further)[1]

    def pair(self, number: int, further: int) -> tuple[str, str]:
        return self.users[number], self.users[(number + further) % len(NAMES)]

    def fingerprints(self) -> dict[str, str]:
        return self.service.fingerprints(self.users)


def test_nobody_sees_changes_or_can_tell_apart_the_tasks_of_another(service: Service) -> None:
    play(service, max_examples=15)


class TestControl:
    """The machine finds what it is there for."""

    @pytest.mark.parametrize(
        ("name", "operation"),
        [
            ("_GET", Operation("GET")),
            ("_UPDATE", Operation("PUT", json={"title": "Stolen"})),
            ("_COMPLETE", Operation("PATCH", "/complete")),
            ("_DELETE", Operation("DELETE")),
        ],
    )
    def test_a_statement_that_reaches_everybody_is_found(
        self,
        service: Service,
        new_user: Callable[[], str],
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        operation: Operation,
    ) -> None:
        scoped: Statement = getattr(tasks, name)
        monkeypatch.setattr(tasks, name, scoped._replace(sql=scoped.sql.replace("tasks.user_id = $", "'' != $")))
        owner, thief = new_user(), new_user()
        task = send(service, owner, f"/api/{owner}/tasks", Operation("POST", json={"title": "Mine"})).json()

        assert send(service, thief, f"/api/{thief}/tasks/{task['id']}", operation).is_success
        with pytest.raises(AssertionError):
            play(service, max_examples=100, database=None)

    def test_a_reply_that_tells_of_the_tasks_of_others_is_found(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        anybodys = statement(select(col(Task.id)).where(col(Task.id) == bindparam("task_id")), reads=True)

        async def telling(db: Database, _user_id: str, task_id: UUID, _conditions: Conditions) -> AppError:
            return ForbiddenError() if await db.fetch(anybodys, task_id=task_id) else TaskNotFoundError()

        monkeypatch.setattr(tasks, "_refusal", telling)

        with pytest.raises(AssertionError, match="status: 403 != 404"):
            play(service, max_examples=100, database=None)

    @pytest.mark.parametrize(
        "operation", [operation for operation in OPERATIONS if operation.method not in {"GET", "HEAD"}]
    )
    def test_the_hash_tells_what_the_owner_changes(self, service: Service, user: str, operation: Operation) -> None:
        task = send(service, user, f"/api/{user}/tasks", Operation("POST", json={"title": "Mine"})).json()
        before = service.fingerprints([user])

        send(service, user, f"/api/{user}/tasks/{task['id']}", operation)

        assert (service.fingerprints([user]) == before) == (operation == Operation("PUT", json={}))

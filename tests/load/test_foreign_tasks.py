"""Three users with tokens try to read, change and find each other's tasks, in any order and in every way.

Each reply is the same as for a missing task, and the rows do not change.
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
    """A request for one task."""

    method: str
    suffix: str = ""
    json: Any = None
    content: bytes | None = None
    headers: Mapping[str, str] = MappingProxyType({})


class Observation(NamedTuple):
    """Everything that a reply reveals, and the number of statements that it took."""

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
# Owners do not send these. Their refusal must be the same whether or not the task exists.
INVALID: Final = (
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
TRIED: Final = st.permutations(OPERATIONS) | st.permutations(INVALID)
# "current" stands for the entity tag of the task, which only its owner can know.
CONDITIONS: Final = st.dictionaries(
    st.sampled_from(["If-Match", "If-None-Match"]),
    st.sampled_from(["current", "W/current", "*", '"2026-11-22T09:30:00.123456Z"', "nonsense", ""]),
)
USERS: Final = st.sampled_from(range(len(NAMES)))
OTHERS: Final = st.sampled_from(range(1, len(NAMES)))  # the offset of another user in the list
proof_of = cache(bearer)
_runs = count()


class Service(NamedTuple):
    """A client of the service, a function that hashes the stored rows, and the statements that have run."""

    client: httpx.Client
    fingerprints: Callable[[list[str]], dict[str, str]]
    ran: list[Statement]


@pytest.fixture(scope="module")
def service(dsn: str) -> Iterator[Service]:
    ran: list[Statement] = []
    fetch = Database.fetch

    def recorded(db: Database, query: Statement, **values: Any) -> Any:
        ran.append(query)
        return fetch(db, query, **values)

    with (
        pytest.MonkeyPatch.context() as patch,
        fingerprinting(dsn) as fingerprints,
        serving_in_thread(make_settings(dsn, auth_jwt_secret=SECRET)) as url,
        httpx.Client(base_url=url) as client,
    ):
        patch.setattr(Database, "fetch", recorded)
        yield Service(client, fingerprints, ran)


@contextmanager
def fingerprinting(dsn: str) -> Iterator[Callable[[list[str]], dict[str, str]]]:
    """Yields a function that hashes the rows of each user who has any. It does not use the service."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(dsn))

        async def fingerprints(users: list[str]) -> dict[str, str]:
            return {row["user_id"]: row["digest"] for row in await connection.fetch(FINGERPRINTS, users)}

        yield lambda users: runner.run(fingerprints(users))
        runner.run(connection.close())


def send(service: Service, user: str, path: str, operation: Operation) -> httpx.Response:
    """Send the operation with this user's token."""
    method, suffix, json, content, headers = operation
    headers = {**headers, **proof_of(user)}
    return service.client.request(method, path + suffix, json=json, content=content, headers=headers)


def run_machine(service: Service, **options: Any) -> None:
    """Run the state machine."""
    ForeignTasksMachine.service = service
    run_state_machine_as_test(
        ForeignTasksMachine,
        settings=settings(
            stateful_step_count=30,
            deadline=None,
            phases=[Phase.reuse, Phase.generate],  # shrinking an example takes minutes
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow],  # one example is some hundred requests
            **options,
        ),
    )


class ForeignTasksMachine(RuleBasedStateMachine):
    """`owners` has the owner of every task ever created, `tags` has its last entity tag."""

    ids = Bundle("ids")
    service: ClassVar[Service]

    def __init__(self) -> None:
        super().__init__()
        run = f"~{next(_runs)}"  # every run has its own users
        self.users = [name + run for name in NAMES]
        self.owners: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.gone: set[str] = set()
        self.keys: set[tuple[str, str]] = set()
        self.acting: str | None = None
        self.seen: dict[str, str] = {}

    @initialize(target=ids)
    def settle(self) -> MultipleResults[str]:
        """Each user has two tasks, so that a list has a second page."""
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

    @rule(target=ids, task_id=ids, offset=OTHERS)
    def add_in_the_name_of_another(self, task_id: str, offset: int) -> str:
        claimed = {"id": task_id, "user_id": self.owners[task_id]}
        return self.create(self.other(task_id, offset), claimed, ignored="id, user_id")

    @rule(task_id=ids, operation=st.sampled_from(OPERATIONS))
    def use(self, task_id: str, operation: Operation) -> None:
        """A request of the owner, between those of the other users."""
        self.acting = owner = self.owners[task_id]
        if "title" in (operation.json or {}):
            operation = operation._replace(json={**operation.json, "title": f"A changed secret of {owner}"})
        reply = self.send(owner, self.path(owner, task_id), operation)
        assert reply.status_code == (404 if task_id in self.gone else 204 if operation.method == "DELETE" else 200)
        if operation.method == "DELETE":
            self.gone.add(task_id)
        self.tags[task_id] = reply.headers.get("ETag", self.tags[task_id])

    @rule(task_id=ids, offset=OTHERS, operations=TRIED, conditions=CONDITIONS)
    def reach(self, task_id: str, offset: int, operations: Sequence[Operation], conditions: Mapping[str, str]) -> None:
        """Request another user's task at the requesting user's own path."""
        user = self.other(task_id, offset)
        for operation in operations:
            tried = self.on_condition(operation, conditions, task_id)
            foreign = self.observe(user, self.path(user, task_id), tried)
            missing = self.observe(user, self.path(user, str(uuid4())), tried)

            assert foreign == missing
            assert foreign.status in {400, 404, 405, 412, 415, 422}

    @rule(task_id=ids, offset=OTHERS, operations=TRIED, conditions=CONDITIONS)
    def trespass(
        self, task_id: str, offset: int, operations: Sequence[Operation], conditions: Mapping[str, str]
    ) -> None:
        """Request another user's task at its owner's path, with the requesting user's own token."""
        user, owner = self.other(task_id, offset), self.owners[task_id]
        for operation in operations:
            tried = self.on_condition(operation, conditions, task_id)
            foreign = self.observe(user, self.path(owner, task_id), tried)
            missing = self.observe(user, self.path(owner, str(uuid4())), tried)
            nobodys = self.observe(user, self.path("nobody", str(uuid4())), tried)

            assert foreign == missing == nobodys
            assert (foreign.status, foreign.statements) in {(403, 0), (405, 0)}

    @rule(number=USERS, offset=OTHERS, query=st.sampled_from(["", "?limit=1", "?limit=0", "?search=secret"]))
    def trespass_on_the_list(self, number: int, offset: int, query: str) -> None:
        user, owner = self.pair(number, offset)
        for tried in (Operation("GET"), Operation("HEAD"), Operation("POST", json={"title": "Planted"})):
            foreign = self.observe(user, self.path(owner) + query, tried)
            nobodys = self.observe(user, self.path("nobody") + query, tried)

            assert foreign == nobodys
            assert (foreign.status, foreign.statements) == (403, 0)

    @rule(number=USERS, query=st.sampled_from(["", "?search=secret", "?sort=title", "?completed=false", "?limit=2"]))
    def list_all(self, number: int, query: str) -> None:
        user = self.users[number]
        listed = self.send(user, self.path(user) + query, Operation("GET")).json()

        mine = {task_id for task_id, owner in self.owners.items() if owner == user} - self.gone
        assert {task["user_id"] for task in listed} <= {user}
        assert {task["id"] for task in listed} <= mine

    @rule(number=USERS, offset=OTHERS, options=st.sampled_from(["", "&status=pending", "&sort=title", "&limit=1"]))
    def search(self, number: int, offset: int, options: str) -> None:
        """A search for another user's titles gets the same reply as a search for unused words."""
        user, owner = self.pair(number, offset)

        foreign = self.observe(user, f"{self.path(user)}?search={quote(f'of {owner}')}{options}", Operation("GET"))
        missing = self.observe(user, f"{self.path(user)}?search={NOWHERE}{options}", Operation("GET"))

        assert foreign == missing
        assert (foreign.status, foreign.content) == (200, b"[]")

    @rule(number=USERS, offset=OTHERS, sort=st.sampled_from(["title", "-title", "created_at", "-updated_at"]))
    def go_on_in_the_list_of_another(self, number: int, offset: int, sort: str) -> None:
        """A cursor of another user's list gets the same reply as a broken cursor."""
        user, owner = self.pair(number, offset)
        page = self.send(owner, f"{self.path(owner)}?limit=1&sort={sort}", Operation("GET"))
        if "next" not in page.links:
            return
        cursor = httpx.URL(page.links["next"]["url"]).params["cursor"]

        foreign = self.observe(user, f"{self.path(user)}?limit=1&sort={sort}&cursor={cursor}", Operation("GET"))
        broken = self.observe(user, f"{self.path(user)}?limit=1&sort={sort}&cursor={cursor[::-1]}", Operation("GET"))

        assert foreign == broken
        assert (foreign.status, foreign.statements) == (422, 0)

    @invariant()
    def only_the_acting_owner_changes_rows(self) -> None:
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
        """Create a task as this user, and check that it is a new task of this user. Returns its id."""
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

    def observe(self, user: str, path: str, operation: Operation) -> Observation:
        """Send the operation. Returns the reply without the parts that differ in every reply."""
        before = len(self.service.ran)
        reply = self.send(user, path, operation)
        headers = [item for item in sorted(reply.headers.items()) if item[0] not in {"date", "x-request-id"}]
        content = reply.content.replace(reply.headers["X-Request-ID"].encode(), b"")
        return Observation(reply.status_code, headers, content, len(self.service.ran) - before)

    def send(self, user: str, path: str, operation: Operation) -> httpx.Response:
        return send(self.service, user, path, operation)

    def on_condition(self, operation: Operation, conditions: Mapping[str, str], task_id: str) -> Operation:
        tags = {name: value.replace("current", self.tags[task_id]) for name, value in conditions.items()}
        return operation._replace(headers={**operation.headers, **tags})

    def path(self, user: str, task_id: str | None = None) -> str:
        return f"/api/{user}/tasks/{task_id}" if task_id else f"/api/{user}/tasks"

    def other(self, task_id: str, offset: int) -> str:
        """A user who does not own the task."""
        return self.pair(self.users.index(self.owners[task_id]), offset)[1]

    def pair(self, number: int, offset: int) -> tuple[str, str]:
        return self.users[number], self.users[(number + offset) % len(NAMES)]

    def fingerprints(self) -> dict[str, str]:
        return self.service.fingerprints(self.users)


def test_no_user_can_read_change_or_detect_another_user_s_tasks(service: Service) -> None:
    run_machine(service, max_examples=15)


class TestControl:
    """The state machine detects the defects for which it was written."""

    @pytest.mark.parametrize(
        ("name", "operation"),
        [
            ("_GET", Operation("GET")),
            ("_UPDATE", Operation("PUT", json={"title": "Stolen"})),
            ("_COMPLETE", Operation("PATCH", "/complete")),
            ("_DELETE", Operation("DELETE")),
        ],
    )
    def test_a_statement_without_the_owner_condition_is_detected(
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
            run_machine(service, max_examples=100, database=None)

    def test_a_reply_that_reveals_another_user_s_task_is_detected(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        any_user_s_task = statement(select(col(Task.id)).where(col(Task.id) == bindparam("task_id")), reads=True)

        async def revealing(db: Database, _user_id: str, task_id: UUID, _conditions: Conditions) -> AppError:
            return ForbiddenError() if await db.fetch(any_user_s_task, task_id=task_id) else TaskNotFoundError()

        monkeypatch.setattr(tasks, "_refusal", revealing)

        with pytest.raises(AssertionError, match="status: 403 != 404"):
            run_machine(service, max_examples=100, database=None)

    @pytest.mark.parametrize(
        "operation", [operation for operation in OPERATIONS if operation.method not in {"GET", "HEAD"}]
    )
    def test_the_hash_changes_with_every_change_by_the_owner(
        self, service: Service, user: str, operation: Operation
    ) -> None:
        task = send(service, user, f"/api/{user}/tasks", Operation("POST", json={"title": "Mine"})).json()
        before = service.fingerprints([user])

        send(service, user, f"/api/{user}/tasks/{task['id']}", operation)

        assert (service.fingerprints([user]) == before) == (operation == Operation("PUT", json={}))

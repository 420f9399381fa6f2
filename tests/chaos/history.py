"""Clients that use every operation on the same tasks, and record the start, the end and the answer of each request."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from random import Random
from time import monotonic
from typing import Any, Final, NamedTuple

import httpx

from tests.chaos.linearizability import Operation, Task, contradiction
from tests.support import bearer, until

Request = Callable[["Client", str], Awaitable[object]]

NAMES: Final = ("ale", "bun", "cod")  # the tasks that all clients of a user change
PAUSE: Final = 0.05  # seconds, after a request that failed
ANSWERS: Final = {"200", "201", "204", "404", "412"}
REFUSALS: Final = {"503 database-unavailable", "503 overloaded", "503 timed-out", "ConnectError"}  # nothing was done
UNKNOWN: Final = {"503 outcome-unknown", "503 shutting-down", "ReadError", "WriteError", "RemoteProtocolError"}
# The errors of a client whose server is killed.
CONNECTION_ERRORS: Final = (httpx.ReadError, httpx.WriteError, httpx.ConnectError, httpx.RemoteProtocolError)


class Answer(NamedTuple):
    """`reply` is None if nothing was done or the outcome is unknown."""

    start: float
    end: float
    outcome: str
    reply: httpx.Response | None


class User:
    """What the clients of one user know of its tasks. The title of a task begins with its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ids: dict[str, str] = {}
        self.versions: dict[str, str] = {}  # the version of a task that a client has seen last
        self.numbers = count()
        self.unexpected: list[str] = []
        self._operations: dict[str, list[Operation]] = defaultdict(list)
        self._lists: list[tuple[float, float, dict[str, Task]]] = []  # start, end, and the tasks by name

    def note(self, name: str, operation: Operation, answer: Answer) -> None:
        if answer.outcome in REFUSALS:
            return
        if reply := answer.reply:
            task = _task(reply.json()) if reply.is_success and reply.content else None
            version = reply.headers.get("ETag", "").strip('"')
            operation = operation._replace(end=answer.end, status=reply.status_code, reply=task, version=version)
            self.versions[name] = version or self.versions.get(name, "")
        self._operations[name].append(operation)

    def note_list(self, start: float, end: float, tasks: Sequence[Task]) -> None:
        names = Counter(map(_name, tasks))
        self.unexpected += [f"made {times} times: {name}" for name, times in names.items() if times > 1]
        self._lists.append((start, end, {_name(task): task for task in tasks}))

    def faults(self) -> Iterator[str]:
        yield from self.unexpected
        listed = {name for _, _, tasks in self._lists for name in tasks}
        yield from (f"never sent: {name}" for name in listed - self._operations.keys())
        for name, operations in self._operations.items():
            since = min(operation.start for operation in operations)
            if wrong := contradiction([*operations, *self._reads(name, since)]):
                yield f"{self.name} {name}: {wrong}"

    def _reads(self, name: str, since: float) -> Iterator[Operation]:
        """Each list is a read of this task, which is missing if the list does not have it."""
        for start, end, tasks in self._lists:
            if end > since:
                yield Operation("get", start, end, 200 if name in tasks else 404, tasks.get(name))


class Client:
    """Sends requests for the tasks of one user, in cycles of all kinds in random order."""

    def __init__(self, user: User, number: int, requests: Iterable[Request], outcomes: Counter[str]) -> None:
        self.cycles = 0  # without an error
        self._user = user
        self._requests = list(requests)
        self._outcomes = outcomes
        self._tasks = f"/api/{user.name}/tasks"
        self._new: str | None = None  # a task that only this client changes
        self._random = Random(f"{user.name} {number}")  # noqa: S311  # the order is no secret

    @asynccontextmanager
    async def connected(self, url: str) -> AsyncIterator[None]:
        async with httpx.AsyncClient(base_url=url, headers=bearer(self._user.name), timeout=30) as self._http:
            yield

    async def begin(self) -> None:
        """Create the tasks. An earlier test may have left a lost connection in the pool."""
        while len(self._user.ids) < len(NAMES):
            for name in NAMES:
                await self.create(name)

    async def write(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            self._failed = False
            for request in self._random.sample(self._requests, len(self._requests)):
                await request(self, self._random.choice(NAMES))
            self.cycles += not self._failed

    async def end(self) -> None:
        """Read all tasks once more."""
        while not await self.list(""):
            pass

    async def create(self, name: str) -> None:
        """Create the task with a key, unless it is there."""
        await self._send(name, "create", "POST", {"title": name}, headers={"Idempotency-Key": name})

    async def create_new(self, _: str) -> None:
        """Create a task without a key. The next call deletes it."""
        if self._new:
            await self.get(self._new)
            await self.delete(self._new)
            self._new = None
            return
        name = f"new-{next(self._user.numbers)}"
        await self._send(name, "create", "POST", {"title": name})
        self._new = name if name in self._user.ids else None

    async def get(self, name: str) -> None:
        await self._send(name, "get", "GET")

    async def list(self, _: str) -> bool:
        answer = await self._ask("GET", self._tasks)
        if answer.reply:
            self._user.note_list(answer.start, answer.end, [_task(task) for task in answer.reply.json()])
        return answer.reply is not None

    async def rename(self, name: str) -> None:
        await self._send(name, "merge", "PUT", self._title(name))

    async def rename_if_match(self, name: str) -> None:
        await self._send(name, "merge", "PUT", self._title(name), match=self._user.versions[name])

    async def describe(self, name: str) -> None:
        await self._send(name, "merge", "PUT", {"description": str(next(self._user.numbers))})

    async def complete(self, name: str) -> None:
        await self._send(name, "merge", "PATCH", {"completed": self._random.random() < 1 / 2}, "/complete")

    async def toggle(self, name: str) -> None:
        await self._send(name, "toggle", "PATCH", at="/complete")

    async def delete(self, name: str) -> None:
        await self._send(name, "delete", "DELETE")

    async def delete_if_match(self, name: str) -> None:
        await self._send(name, "delete", "DELETE", match=self._user.versions[name])

    async def replace(self, name: str) -> None:
        """Use the route of tests/chaos/served.py."""
        sent = {**self._title(name), "completed": self._random.random() < 1 / 2}
        await self._send(name, "replace", "PUT", sent, "/session")

    def _title(self, name: str) -> dict[str, Any]:
        return {"title": f"{name} {next(self._user.numbers)}"}

    async def _send(
        self,
        name: str,
        request: str,
        method: str,
        sent: Any = None,
        at: str = "",
        *,
        match: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        path = self._tasks if method == "POST" else f"{self._tasks}/{self._user.ids[name]}{at}"
        headers = {"If-Match": f'"{match}"'} if match else headers
        answer = await self._ask(method, path, json=sent, headers=headers)
        changes = {"description": None, "completed": False, **sent} if request == "create" else sent or {}
        self._user.note(name, Operation(request, answer.start, changes=changes, match=match), answer)
        if method == "POST" and answer.reply:
            self._user.ids[name] = answer.reply.json()["id"]

    async def _ask(self, method: str, path: str, **options: Any) -> Answer:
        start, reply = monotonic(), None
        try:
            reply = await self._http.request(method, path, **options)
            result = outcome(reply)
        except CONNECTION_ERRORS as error:
            result = type(error).__name__
        self._outcomes[result] += 1
        if result in ANSWERS:
            return Answer(start, monotonic(), result, reply)
        if reply and result not in REFUSALS | UNKNOWN:
            self._user.unexpected.append(f"{method} {path} was answered {result}: {reply.text}")
        self._failed = True
        await asyncio.sleep(PAUSE)
        return Answer(start, monotonic(), result, None)


# A cycle sends each once. The service may repeat the first ones, so a slow database causes no error.
REPEATABLE: Final[Sequence[Request]] = (
    *(Client.create, Client.create, Client.create, Client.create_new, Client.get, Client.list),
    *(Client.rename, Client.describe, Client.complete, Client.delete),
)
REQUESTS: Final = (*REPEATABLE, Client.toggle, Client.rename_if_match, Client.delete_if_match)


class History:
    """All clients of a test: some users, and some clients of each."""

    def __init__(self, users: Iterable[str], requests: Iterable[Request] = REQUESTS, clients: int = 3) -> None:
        self.outcomes: Counter[str] = Counter()  # a status, a 503 with its type, or the name of a connection error
        self._users = [User(name) for name in users]
        self._clients = [
            Client(user, number, requests, self.outcomes) for user in self._users for number in range(clients)
        ]

    @property
    def unavailable(self) -> int:
        """The number of requests that were answered 503."""
        return sum(times for outcome, times in self.outcomes.items() if outcome.startswith("503"))

    @asynccontextmanager
    async def recording(self, url: str) -> AsyncIterator[None]:
        """Let all clients send requests until the end of the context."""
        stopping = asyncio.Event()
        async with AsyncExitStack() as stack:
            for client in self._clients:
                await stack.enter_async_context(client.connected(url))
            await asyncio.gather(*(client.begin() for client in self._clients))
            async with asyncio.TaskGroup() as group:
                for client in self._clients:
                    group.create_task(client.write(stopping))
                yield
                stopping.set()
            await asyncio.gather(*(client.end() for client in self._clients))

    async def cycles(self, number: int) -> None:
        """Wait for so many cycles of each client without an error. The first one may have begun before."""
        goals = [client.cycles + number for client in self._clients]
        await until(lambda: all(client.cycles >= goal for client, goal in zip(self._clients, goals, strict=True)))

    def faults(self) -> list[str]:
        """Returns what no order of the requests explains."""
        return [fault for user in self._users for fault in user.faults()]

    def summary(self) -> str:
        """The number of requests, by what is known about their outcome."""
        refused, unknown = (sum(self.outcomes[outcome] for outcome in kind) for kind in (REFUSALS, UNKNOWN))
        return f"{self.outcomes.total():,} requests, {refused:,} refused, {unknown:,} with an unknown outcome"


def _task(body: dict[str, Any]) -> Task:
    return Task(body["title"], body["description"], body["completed"], body["updated_at"])


def _name(task: Task) -> str:
    return task.title.split()[0]


def outcome(reply: httpx.Response) -> str:
    """Returns the status, with the type of a 503 that says when to try again."""
    if reply.status_code != 503 or not reply.headers.get("Retry-After", "").isdigit():
        return str(reply.status_code)
    assert reply.headers["Content-Type"] == "application/problem+json"
    return f"503 {reply.json()['type'].removeprefix('urn:problem-type:')}"

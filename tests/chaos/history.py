"""Clients that use every operation on the same tasks, and record the start, the end and the answer of each request."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
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
REFUSED: Final = {"503 database-unavailable", "503 overloaded", "503 timed-out", "ConnectError"}  # nothing was done
UNKNOWN: Final = {"503 outcome-unknown", "503 shutting-down"}
# The errors of a client whose server is killed.
CONNECTION_ERRORS: Final = (httpx.ReadError, httpx.WriteError, httpx.ConnectError, httpx.RemoteProtocolError)


class Answer(NamedTuple):
    """`outcome` is a status, a 503 status with its problem type, or the name of a connection error."""

    start: float
    end: float
    outcome: str
    reply: httpx.Response | None

    @property
    def is_refusal(self) -> bool:
        """Whether the answer means that nothing was done."""
        return self.outcome in REFUSED


class Record:
    """What the clients of one user know."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.operations: dict[str, list[Operation]] = defaultdict(list)  # by the name of the task
        self.lists: list[tuple[float, float, dict[str, Task]]] = []  # start, end, and the tasks by name
        self.ids: dict[str, str] = {}
        self.versions: dict[str, str] = {}  # the version of a task that a client read last
        self.numbers = count()
        self.entries: dict[str, int] = {}  # numbers of acknowledged entries by title
        self.refused_entries: set[str] = set()
        self.unexpected: list[str] = []

    def note(self, name: str, operation: Operation, answer: Answer) -> None:
        """Record the operation. A task in the reply keeps its name, because its title begins with it."""
        if answer.is_refusal:
            return
        if reply := answer.reply:
            task = _task(reply.json()) if reply.status_code in {200, 201} else None
            version = reply.headers.get("ETag", "").strip('"')
            operation = operation._replace(end=answer.end, status=reply.status_code, reply=task, version=version)
            self.versions[name] = version or self.versions.get(name, "")
        self.operations[name].append(operation)

    def note_list(self, answer: Answer) -> None:
        if answer.reply:
            tasks = [_task(task) for task in answer.reply.json()]
            names = Counter(_name(task) for task in tasks)
            self.unexpected += [f"created {times} times: {name}" for name, times in names.items() if times > 1]
            self.lists.append((answer.start, answer.end, {_name(task): task for task in tasks}))

    def note_entries(self, stored: dict[str, int]) -> None:
        """Compare all stored entries, a number for each title, with the acknowledged and the refused ones."""
        lost = self.entries.items() - stored.items()
        refused = self.refused_entries & stored.keys()
        self.unexpected += [f"lost entry: {entry}" for entry in lost]
        self.unexpected += [f"refused but made: {title}" for title in refused]
        if sorted(stored.values()) != [*range(1, len(stored) + 1)]:
            self.unexpected.append(f"entries and their count differ: {stored}")

    def faults(self) -> Iterator[str]:
        yield from self.unexpected
        for name, operations in self.operations.items():
            if wrong := contradiction([*operations, *self._reads(name, operations[0].start)]):
                yield f"{self.user} {name}: {wrong}"
        yield from (f"never sent: {name}" for _, _, tasks in self.lists for name in tasks.keys() - self.operations)

    def _reads(self, name: str, since: float) -> Iterator[Operation]:
        """Each list is a read of this task. It is missing if the list does not have it."""
        for start, end, tasks in self.lists:
            if end > since:
                yield Operation("get", start, end, 200 if name in tasks else 404, tasks.get(name))


class Client:
    """Sends requests for the tasks of one user, in cycles of all kinds in random order."""

    def __init__(self, record: Record, number: int, requests: Iterable[Request]) -> None:
        self.record = record
        self.answers: list[Answer] = []
        self.cycles = 0
        self._requests = list(requests)
        self._tasks = f"/api/{record.user}/tasks"
        self._new: str | None = None  # the task that only this client knows
        self._random = Random(f"{record.user} {number}")  # noqa: S311  # the order is no secret

    async def begin(self, url: str) -> None:
        """Create the tasks. An earlier test may have left a lost connection in the pool."""
        self._http = httpx.AsyncClient(base_url=url, headers=bearer(self.record.user), timeout=30)
        while len(self.record.ids) < len(NAMES):
            for name in NAMES:
                await self.create(name)

    async def write(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            for request in self._random.sample(self._requests, len(self._requests)):
                await request(self, self._random.choice(NAMES))
            self.cycles += 1

    async def end(self) -> None:
        while not (await self.list("")).reply:
            pass
        if Client.enter in self._requests:
            await self._read_entries()
        await self._http.aclose()

    def first_success(self, since: float) -> float:
        """Returns the time of the first success after `since`, or 0."""
        first = 0.0
        for answer in reversed(self.answers):
            if answer.end < since:
                break
            first = answer.end if answer.reply else first
        return first

    async def create(self, name: str) -> None:
        """Create the task with a key, unless it is there."""
        answer = await self._send(name, "create", "POST", {"title": name}, **{"Idempotency-Key": name})
        if answer.reply:
            self.record.ids[name] = answer.reply.json()["id"]

    async def create_and_delete(self, _: str) -> None:
        """Create a task without a key, or delete the one of the last cycle."""
        if self._new:
            await self.get(self._new)
            await self.delete(self._new)
            self._new = None
            return
        name = f"new-{next(self.record.numbers)}"
        answer = await self._send(name, "create", "POST", {"title": name})
        if answer.reply:
            self._new, self.record.ids[name] = name, answer.reply.json()["id"]

    async def get(self, name: str) -> None:
        await self._send(name, "get", "GET")

    async def rename(self, name: str) -> None:
        await self._send(name, "merge", "PUT", self._title(name))

    async def rename_if_match(self, name: str) -> None:
        await self._send(name, "merge", "PUT", self._title(name), match=self.record.versions[name])

    async def describe(self, name: str) -> None:
        await self._send(name, "merge", "PUT", {"description": str(next(self.record.numbers))})

    async def complete(self, name: str) -> None:
        await self._send(name, "merge", "PATCH", {"completed": self._random.random() < 1 / 2})

    async def toggle(self, name: str) -> None:
        await self._send(name, "toggle", "PATCH")

    async def delete(self, name: str) -> None:
        await self._send(name, "delete", "DELETE")

    async def delete_if_match(self, name: str) -> None:
        await self._send(name, "delete", "DELETE", match=self.record.versions[name])

    async def list(self, _: str) -> Answer:
        answer = await self._ask("GET", self._tasks)
        self.record.note_list(answer)
        return answer

    async def enter(self, _: str) -> None:
        """Create an entry. The service counts it in the same transaction."""
        title = str(next(self.record.numbers))
        answer = await self._ask("POST", f"/api/{self.record.user}/entries", json={"title": title})
        if answer.reply:
            self.record.entries[title] = answer.reply.json()["number"]
        elif answer.is_refusal:
            self.record.refused_entries.add(title)

    async def _read_entries(self) -> None:
        while not (answer := await self._ask("GET", f"/api/{self.record.user}/entries")).reply:
            pass
        self.record.note_entries(answer.reply.json())

    def _title(self, name: str) -> dict[str, str]:
        return {"title": f"{name} {next(self.record.numbers)}"}

    async def _send(
        self, name: str, request: str, method: str, sent: Any = None, match: str | None = None, **headers: str
    ) -> Answer:
        path = {"POST": "", "PATCH": f"/{self.record.ids.get(name)}/complete"}.get(
            method, f"/{self.record.ids.get(name)}"
        )
        headers |= {"If-Match": f'"{match}"'} if match else {}
        answer = await self._ask(method, self._tasks + path, json=sent, headers=headers)
        changes = {"description": None, "completed": False, **sent} if request == "create" else sent or {}
        self.record.note(name, Operation(request, answer.start, changes=changes, match=match), answer)
        return answer

    async def _ask(self, method: str, path: str, **options: Any) -> Answer:
        start, reply = monotonic(), None
        try:
            reply = await self._http.request(method, path, **options)
            outcome = _outcome(reply)
        except CONNECTION_ERRORS as error:
            outcome = type(error).__name__
        answer = Answer(start, monotonic(), outcome, reply if outcome in {"200", "201", "204", "404", "412"} else None)
        self.answers.append(answer)
        if reply and not answer.reply and outcome not in REFUSED | UNKNOWN:
            self.record.unexpected.append(f"{method} {path} was answered {outcome}: {reply.text}")
        if not answer.reply:
            await asyncio.sleep(PAUSE)
        return answer


# Each is sent once in a cycle. The tests of slow databases send those that the service may repeat.
REPEATABLE: Final = (
    Client.create,
    Client.create_and_delete,
    Client.get,
    Client.rename,
    Client.describe,
    Client.complete,
    Client.list,
)
TASK_REQUESTS: Final = (*REPEATABLE, Client.toggle, Client.rename_if_match, Client.delete, Client.delete_if_match)
ALL_REQUESTS: Final = (*TASK_REQUESTS, Client.enter)


class History:
    """All clients of a test: some users, and some clients of each."""

    def __init__(self, users: Iterable[str], requests: Iterable[Request] = TASK_REQUESTS, clients: int = 4) -> None:
        self.records = [Record(user) for user in users]
        self.clients = [Client(record, number, requests) for record in self.records for number in range(clients)]

    @asynccontextmanager
    async def recording(self, url: str) -> AsyncIterator[None]:
        """Let all clients send requests until the end of the context."""
        stopping = asyncio.Event()
        await asyncio.gather(*(client.begin(url) for client in self.clients))
        async with asyncio.TaskGroup() as group:
            for client in self.clients:
                group.create_task(client.write(stopping))
            try:
                yield
            finally:
                stopping.set()
        await asyncio.gather(*(client.end() for client in self.clients))

    def outcomes(self, since: float = 0) -> Counter[str]:
        return Counter(answer.outcome for client in self.clients for answer in client.answers if answer.end >= since)

    def summary(self) -> str:
        """The numbers of requests, by what is known about their outcome."""
        outcomes = self.outcomes()
        refused = sum(outcomes[outcome] for outcome in REFUSED)
        unknown = sum(
            outcomes[outcome] for outcome in UNKNOWN | {error.__name__ for error in CONNECTION_ERRORS} - REFUSED
        )
        return f"{outcomes.total():,} requests, {refused:,} refused, {unknown:,} with an unknown outcome"

    def refused(self, since: float) -> bool:
        """Whether any client got a 503 after `since`."""
        return any(outcome.startswith("503") for outcome in self.outcomes(since))

    async def cycles(self, number: int) -> None:
        """Wait until each client has completed so many cycles. The first one may have begun before."""
        goals = [client.cycles + number for client in self.clients]
        await until(lambda: all(client.cycles >= goal for client, goal in zip(self.clients, goals, strict=True)))

    async def recovered(self, since: float) -> float:
        """Wait for a full cycle of each client. Returns the seconds until the last client had its first success."""
        await self.cycles(2)
        await until(lambda: all(client.first_success(since) for client in self.clients))
        return max(client.first_success(since) - since for client in self.clients)

    def faults(self) -> list[str]:
        """Returns what no order of the requests explains. Call it after the recording."""
        return [fault for record in self.records for fault in record.faults()]


def _task(body: dict[str, Any]) -> Task:
    return Task(body["title"], body["description"], body["completed"], body["updated_at"])


def _name(task: Task) -> str:
    return task.title.split()[0]


def _outcome(reply: httpx.Response) -> str:
    if reply.status_code != 503 or not reply.headers.get("Retry-After", "").isdigit():
        return str(reply.status_code)
    assert reply.headers["Content-Type"] == "application/problem+json"
    return f"503 {reply.json()['type'].removeprefix('urn:problem-type:')}"

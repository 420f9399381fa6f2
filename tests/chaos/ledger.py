"""Clients that write continuously, and each keep a book of their requests and the answers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from time import monotonic
from typing import Any, Final, NamedTuple

import asyncpg
import httpx

from tests.support import until

Task = dict[str, Any]

OWN_TASKS: Final = 3
PAUSE: Final = 0.05  # seconds, after a request that failed
REFUSED: Final = {"503 database-unavailable", "503 overloaded", "503 timed-out"}
UNKNOWN: Final = {"503 outcome-unknown", "503 shutting-down"}
# The errors of a client whose server is killed.
CONNECTION_ERRORS: Final = (httpx.ReadError, httpx.WriteError, httpx.ConnectError, httpx.RemoteProtocolError)
# A trigger records each change of a task in the same transaction, so later changes do not hide earlier ones.
HISTORY: Final = """
CREATE TABLE history AS SELECT '' AS operation, * FROM tasks LIMIT 0;
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' THEN INSERT INTO history SELECT TG_OP, OLD.*;
        ELSE INSERT INTO history SELECT TG_OP, NEW.*;
        END IF;
        RETURN NULL;
    END
$$;
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION note();
CREATE TABLE counter (user_id text PRIMARY KEY, total integer NOT NULL);
CREATE TABLE entry (user_id text, title text, number integer NOT NULL, PRIMARY KEY (user_id, title));
"""


class Answer(NamedTuple):
    """`outcome` is a status, a 503 status with its problem type, or the name of a connection error."""

    at: float
    request: str
    outcome: str

    @property
    def is_success(self) -> bool:
        return self.outcome.startswith("2")

    @property
    def is_refusal(self) -> bool:
        """Whether the answer means that nothing was done."""
        return self.outcome in REFUSED


class Version(NamedTuple):
    """The state of a task after a change."""

    id: str
    updated_at: str
    title: str
    completed: bool

    @classmethod
    def of(cls, task: Task) -> "Version":
        return cls(*(task[name] for name in cls._fields))


class Book:
    """The requests of one client, and its knowledge of their outcomes."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.unexpected: list[str] = []
        self.sent: set[str] = set()  # titles of all tasks sent
        self.refused: set[str] = set()  # titles of refused tasks
        self.made: dict[str, str] = {}  # ids of acknowledged tasks by title
        self.delete_sent: set[str] = set()  # ids of tasks for which a DELETE was sent
        self.deleted: set[str] = set()  # ids of tasks whose DELETE was acknowledged
        self.versions: set[Version] = set()  # acknowledged changes
        self.unknown_toggles = 0  # number of toggles with an unknown outcome
        self.titles: list[str] = []  # the last acknowledged PUT, then those with an unknown outcome
        self.states: list[bool] = []  # values of `completed`, in the same way
        self.entries: dict[str, int] = {}  # numbers of acknowledged entries by title
        self.refused_entries: set[str] = {"never sent"}


class Client:
    """A user with three permanent tasks, each changed in one way, and other tasks that are created and deleted."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.book = Book()
        self.cycles = 0
        self._tasks = f"/api/{user}/tasks"
        self._numbers = count()
        self._retried: str | None = None

    async def begin(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=30)
        while len(self.book.made) < OWN_TASKS:  # an earlier test may have left a lost connection in the pool
            await self._create(self._title())
        self.toggled, self.put, self.set = self.book.made.values()
        self.book.titles = [title for title, made in self.book.made.items() if made == self.put]
        self.book.states = [False]

    async def write(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            await self._cycle()
            self.cycles += 1

    async def end(self) -> None:
        """Retry until the task with a key is created."""
        while self._retried:
            await self._create_with_key()
        await self._http.aclose()

    def names(self) -> dict[str, str]:
        """The values with which a test can change the data of this client directly."""
        title, kept = next((title, made) for title, made in self.book.made.items() if made not in self.book.delete_sent)
        deleted = next(iter(self.book.deleted))
        own = {"toggled": self.toggled, "put": self.put, "set": self.set}
        entries = {"entry": next(iter(self.book.entries)), "refused": next(iter(self.book.refused_entries))}
        return {"user": self.user, "title": title, "kept": kept, "deleted": deleted, **own, **entries}

    async def _cycle(self) -> None:
        await self._create_and_delete()
        await self._create_with_key()
        await self._toggle()
        await self._put()
        await self._set()
        await self._create_entry()
        await self._read()

    def _title(self) -> str:
        return f"{self.user} {next(self._numbers)}"

    async def _create(self, title: str, **headers: str) -> str | None:
        self.book.sent.add(title)
        reply = await self._ask("POST", self._tasks, {201}, json={"title": title}, headers=headers)
        if reply is None:
            return None
        self.book.made[title] = reply.json()["id"]
        return self.book.made[title]

    async def _create_with_key(self) -> None:
        """Create a task with a key. Without an acknowledgement, the next cycle sends the same task again."""
        self._retried = title = self._retried or self._title()
        if await self._create(title, **{"Idempotency-Key": title}):
            self._retried = None

    async def _create_and_delete(self) -> None:
        title = self._title()
        made = await self._create(title)
        if made is None and self._is_refused():
            self.book.refused.add(title)
        if made and self.cycles % 2:
            await self._delete(made)

    async def _delete(self, made: str) -> None:
        self.book.delete_sent.add(made)
        # 404: the service retried, because it did not know the outcome of the first attempt.
        if await self._ask("DELETE", f"{self._tasks}/{made}", {204, 404}):
            self.book.deleted.add(made)
        elif self._is_refused():
            self.book.delete_sent.remove(made)

    async def _toggle(self) -> None:
        changed = await self._change("PATCH", f"{self._tasks}/{self.toggled}/complete")
        if not changed and not self._is_refused():
            self.book.unknown_toggles += 1

    async def _put(self) -> None:
        title = self._title()
        if await self._change("PUT", f"{self._tasks}/{self.put}", json={"title": title}):
            self.book.titles = [title]
        elif not self._is_refused():
            self.book.titles.append(title)

    async def _set(self) -> None:
        state = self.cycles % 2 == 0
        if await self._change("PATCH", f"{self._tasks}/{self.set}/complete", json={"completed": state}):
            self.book.states = [state]
        elif not self._is_refused():
            self.book.states.append(state)

    async def _create_entry(self) -> None:
        """Create an entry. The service counts it in the same transaction."""
        title = self._title()
        reply = await self._ask("POST", f"/api/{self.user}/entries", {201}, json={"title": title})
        if reply is not None:
            self.book.entries[title] = reply.json()["number"]
        elif self._is_refused():
            self.book.refused_entries.add(title)

    async def _read(self) -> None:
        kept = next(made for made in reversed(self.book.made.values()) if made not in self.book.delete_sent)
        await self._ask("GET", f"{self._tasks}/{kept}", {200})
        await self._ask("GET", self._tasks, {200})

    async def _change(self, method: str, path: str, **options: Any) -> bool:
        reply = await self._ask(method, path, {200}, **options)
        if reply is not None:
            self.book.versions.add(Version.of(reply.json()))
        return reply is not None

    async def _ask(self, method: str, path: str, expected: set[int], **options: Any) -> httpx.Response | None:
        """Returns None if nothing was done or the outcome is unknown."""
        try:
            reply = await self._http.request(method, path, **options)
        except CONNECTION_ERRORS as error:
            outcome, known = type(error).__name__, False
        else:
            outcome, known = _outcome(reply), reply.status_code in expected
            if not known and outcome not in REFUSED | UNKNOWN:
                self.book.unexpected.append(f"{method} {path} was answered {outcome}: {reply.text}")
        self.book.answers.append(Answer(monotonic(), method, outcome))
        if known:
            return reply
        await asyncio.sleep(PAUSE)
        return None

    def _is_refused(self) -> bool:
        return self.book.answers[-1].is_refusal

    def first_success(self, since: float) -> float | None:
        """Returns the seconds from `since` to the first success after it."""
        first = None
        for answer in reversed(self.book.answers):
            if answer.at < since:
                break
            if answer.is_success:
                first = answer.at - since
        return first


class Ledger:
    """All clients of a test."""

    def __init__(self, users: Iterable[str]) -> None:
        self.clients = [Client(user) for user in users]

    @asynccontextmanager
    async def writing(self, url: str) -> AsyncIterator[None]:
        """Let all clients write until the end of the context."""
        stopping = asyncio.Event()
        await asyncio.gather(*(client.begin(url) for client in self.clients))
        async with asyncio.TaskGroup() as group:
            for client in self.clients:
                group.create_task(client.write(stopping))
            yield
            stopping.set()
        await asyncio.gather(*(client.end() for client in self.clients))

    def outcomes(self, since: float = 0) -> Counter[str]:
        return Counter(
            answer.outcome for client in self.clients for answer in client.book.answers if answer.at >= since
        )

    def refused(self, since: float) -> bool:
        """Whether any client got a 503 after `since`."""
        return any(outcome.startswith("503") for outcome in self.outcomes(since))

    async def recovered(self, since: float) -> float:
        """Wait for a full cycle of each client. Returns the seconds until the last client had its first success."""
        cycles = [client.cycles + 2 for client in self.clients]
        await until(
            lambda: all(
                client.cycles >= cycle and client.first_success(since) is not None
                for client, cycle in zip(self.clients, cycles, strict=True)
            )
        )
        return max(client.first_success(since) or 0 for client in self.clients)

    async def faults(self, dsn: str) -> list[str]:
        """Returns the differences between the books and the database."""
        users = [client.user for client in self.clients]
        connection = await asyncpg.connect(dsn)
        tasks = await connection.fetch("SELECT * FROM tasks WHERE user_id = ANY($1)", users)
        history = await connection.fetch("SELECT * FROM history WHERE user_id = ANY($1)", users)
        entries = await connection.fetch("SELECT * FROM entry WHERE user_id = ANY($1)", users)
        counters = await connection.fetch("SELECT * FROM counter WHERE user_id = ANY($1)", users)
        await connection.close()
        stored = {task["id"]: Version.of(task) for task in map(_as_in_replies, tasks)}
        changes = [(change["operation"], Version.of(change)) for change in map(_as_in_replies, history)]
        faults = [fault for client in self.clients for fault in _faults(client, stored, changes)]
        totals = {counter["user_id"]: counter["total"] for counter in counters}
        for client in self.clients:
            made = {entry["title"]: entry["number"] for entry in entries if entry["user_id"] == client.user}
            faults += _entry_faults(client, made, totals.get(client.user, 0))
        sent = {title for client in self.clients for title in client.book.sent}
        faults += [f"never sent: {change}" for way, change in changes if way == "INSERT" and change.title not in sent]
        return faults


def _faults(client: Client, stored: dict[str, Version], changes: list[tuple[str, Version]]) -> Iterator[str]:
    book = client.book
    inserted = Counter(change.title for way, change in changes if way == "INSERT")
    updates = Counter(change for way, change in changes if way == "UPDATE")
    yield from book.unexpected
    yield from (f"created {inserted[title]} times: {title}" for title in book.sent if inserted[title] > 1)
    yield from (f"refused but created: {title}" for title in book.refused if inserted[title])
    yield from (f"lost task: {title}" for title in book.made if not inserted[title])
    yield from (f"lost task: {made}" for made in book.made.values() if made not in book.delete_sent | stored.keys())
    yield from (f"lost deletion: {stored[deleted]}" for deleted in book.deleted & stored.keys())
    yield from (f"lost change: {version}" for version in book.versions if updates[version] != 1)
    toggles = sum(version.id == client.toggled for version in updates.keys() - book.versions)
    if toggles > book.unknown_toggles:
        yield f"{toggles} toggles without an acknowledgement, but only {book.unknown_toggles} with an unknown outcome"
    if client.put in stored and stored[client.put].title not in book.titles:
        yield f"put {book.titles}, but stored is {stored[client.put]}"
    if client.set in stored and stored[client.set].completed not in book.states:
        yield f"set {book.states}, but stored is {stored[client.set]}"


def _entry_faults(client: Client, stored: dict[str, int], total: int) -> Iterator[str]:
    book = client.book
    yield from (f"lost entry: {title}" for title, number in book.entries.items() if stored.get(title) != number)
    yield from (f"refused but created: {title}" for title in book.refused_entries & stored.keys())
    if sorted(stored.values()) != [*range(1, total + 1)]:
        yield f"not atomic: {total} entries were counted, but there are {sorted(stored.values())}"


def _as_in_replies(record: asyncpg.Record) -> Task:
    updated_at = record["updated_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {**record, "id": str(record["id"]), "updated_at": updated_at}


def _outcome(reply: httpx.Response) -> str:
    if reply.status_code != 503 or not reply.headers.get("Retry-After", "").isdigit():
        return str(reply.status_code)
    assert reply.headers["Content-Type"] == "application/problem+json"
    return f"503 {reply.json()['type'].removeprefix('urn:problem-type:')}"

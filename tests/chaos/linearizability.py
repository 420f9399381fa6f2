"""Decides whether a history of requests for one task is one that a single copy of the task could have had.

Each request must take effect at one moment between its start and its end (Herlihy and Wing, 1990), with two exceptions.
A request whose outcome is unknown may take effect at any time after its start, or never. An unconditional change may
take effect twice, because the service retries it. The search is that of Wing and Gong with Lowe's memory of the states
that led nowhere, as in Porcupine and Knossos.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, NamedTuple

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Task(NamedTuple):
    """The state of a task. After a change without an answer its version is not known, only that it is `later`."""

    title: str
    description: str | None
    completed: bool
    version: str
    later: bool = False


class Operation(NamedTuple):
    """A request and its answer. Without an answer, `end` is infinite and `status` is 0."""

    request: str  # create, merge, replace, toggle, delete or get; the service does not retry replace
    start: float
    end: float = inf
    status: int = 0
    reply: Task | None = None
    changes: Mapping[str, Any] = _NOTHING
    match: str | None = None  # the version in If-Match
    version: str = ""  # the version in the ETag of a 412

    @property
    def attempts(self) -> int:
        """The number of times that the request may take effect."""
        return 2 if self.request in {"create", "merge", "delete"} and self.match is None else 1


class _Progress(NamedTuple):
    """A partial order: the answered operations before `first` and those in `done` have taken effect, in this state."""

    first: int
    done: frozenset[int]
    unanswered: frozenset[int]  # attempts without an answer that have taken effect
    task: Task | None


def contradiction(history: Sequence[Operation]) -> str | None:
    """Returns None if an order explains every answer, else the point that no order gets past."""
    search = _Search(history)
    furthest = progress = _Progress(0, frozenset(), frozenset(), None)
    heap = [(0, 0, 0, progress)]
    numbers = count()
    while heap:
        progress = heappop(heap)[-1]
        if progress.first == len(search.answered):
            return None
        if search.is_new(progress):
            furthest = max(furthest, progress, key=_length)
            for after in search.following(progress):
                # The longest order first. Of several, the one with the fewest attempts makes the others superfluous.
                heappush(heap, (-_length(after), len(after.unanswered), -next(numbers), after))
    open_now = [search.answered[number] for number in search.open(furthest)]
    return f"after {_length(furthest)} of {len(search.answered)} operations: {furthest.task}, but then {open_now}"


def _length(progress: _Progress) -> int:
    return progress.first + len(progress.done)


def _twins(lost: Sequence[Operation]) -> list[int | None]:
    """Returns the attempt before each that does the same. Only the first of them is tried, which saves much work."""
    latest: dict[tuple[object, ...], int] = {}
    twins = []
    for number, each in enumerate(lost):
        effect = (each.request, each.match, *each.changes.items())
        twins.append(latest.get(effect))
        latest[effect] = -1 - number
    return twins


class _Search:
    def __init__(self, history: Sequence[Operation]) -> None:
        self.answered = sorted((each for each in history if each.end < inf), key=attrgetter("start"))
        # An unanswered change that the service retries is two changes.
        self._lost = sorted(
            (each for each in history if each.end == inf for _ in range(each.attempts)), key=attrgetter("start")
        )
        self._lost_starts = [each.start for each in self._lost]
        self._twins = _twins(self._lost)
        self._seen: dict[tuple[object, ...], list[frozenset[int]]] = {}

    def is_new(self, progress: _Progress) -> bool:
        """Whether the search has not been here before, with at least as many attempts left that may take effect."""
        seen = self._seen.setdefault((progress.first, progress.done, progress.task), [])
        if any(before <= progress.unanswered for before in seen):
            return False
        seen.append(progress.unanswered)
        return True

    def open(self, progress: _Progress) -> list[int]:
        """Returns the answered operations that may be next: no other one has ended before their start."""
        horizon, numbers = inf, []
        for number in range(progress.first, len(self.answered)):
            if self.answered[number].start > horizon:
                break
            if number not in progress.done:
                horizon = min(horizon, self.answered[number].end)
                numbers.append(number)
        return [number for number in numbers if self.answered[number].start <= horizon]

    def following(self, progress: _Progress) -> Iterator[_Progress]:
        """Yields the next steps. The most likely one is last: the operation that ended first."""
        numbers = sorted(self.open(progress), key=lambda number: -self.answered[number].end)
        horizon = self.answered[numbers[-1]].end
        for number in range(bisect_right(self._lost_starts, horizon)):
            if self._twins[number] in {None, *progress.unanswered}:
                yield from self._attempt(progress, -1 - number, self._lost[number])
        for number in numbers:
            if self.answered[number].attempts > 1:
                yield from self._attempt(progress, number, self.answered[number])
        for number in numbers:
            yield from self._answer(progress, number)

    def _attempt(self, progress: _Progress, number: int, operation: Operation) -> Iterator[_Progress]:
        after = _after(operation, progress.task)
        if number not in progress.unanswered and after != progress.task:
            yield progress._replace(task=after, unanswered=progress.unanswered | {number})

    def _answer(self, progress: _Progress, number: int) -> Iterator[_Progress]:
        fits, after = _answered(self.answered[number], progress.task)
        if not fits:
            return
        first, done = progress.first, progress.done | {number}
        while first in done:
            done -= {first}
            first += 1
        yield _Progress(first, done, progress.unanswered - {number}, after)


def _after(operation: Operation, task: Task | None) -> Task | None:
    """Returns the state after an operation, whatever its answer."""
    if operation.request == "create":
        return task or Task(**operation.changes, version="", later=True)
    if task is None or operation.request == "get" or not _may_match(operation, task):
        return task
    if operation.request == "delete":
        return None
    changes = {"completed": not task.completed} if operation.request == "toggle" else operation.changes
    return task._replace(**changes, version=operation.match or task.version, later=True)


def _answered(operation: Operation, task: Task | None) -> tuple[bool, Task | None]:
    """Returns whether the answer is possible in this state, and the state after it."""
    if operation.status == 404:
        return task is None and operation.request != "create", None
    if operation.status == 412:
        is_other = task is not None and operation.version != operation.match and _has(task, operation.version)
        return is_other, task and task._replace(version=operation.version, later=False)
    after = _after(operation, task)
    if operation.status == 204:
        return task is not None and after is None, None
    if after is None or operation.reply is None or (task and not _may_match(operation, task)):
        return False, None
    return after[:3] == operation.reply[:3] and _has(after, operation.reply.version), operation.reply


def _may_match(operation: Operation, task: Task) -> bool:
    return operation.match is None or _has(task, operation.match)


def _has(task: Task, version: str) -> bool:
    """Whether this may be the task's version."""
    return version > task.version if task.later else version == task.version

"""The checker accepts every history that one copy of a task can have, and no other."""

from collections.abc import Iterator, Sequence
from functools import cache
from math import inf
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.linearizability import Operation, Task, contradiction

CONTENT: Final = {"title": "a", "description": None, "completed": False}
EXAMPLES: Final = 200


def task(version: int, title: str = "a", *, completed: bool = False) -> Task:
    return Task(title, None, completed, f"{version:03}")


def get(start: float, end: float, reply: Task | None) -> Operation:
    return Operation("get", start, end, 200 if reply else 404, reply)


def rename(start: float, end: float, reply: Task, match: int | None = None) -> Operation:
    return Operation("merge", start, end, 200, reply, {"title": reply.title}, f"{match:03}" if match else None)


def toggle(start: float, end: float, reply: Task) -> Operation:
    return Operation("toggle", start, end, 200, reply)


def delete(start: float, end: float, status: int = 204) -> Operation:
    return Operation("delete", start, end, status)


def refused_rename(start: float, end: float, match: int, current: int) -> Operation:
    return Operation("merge", start, end, 412, None, {"title": "c"}, f"{match:03}", f"{current:03}")


CREATED: Final = Operation("create", 0, 1, 201, task(1), CONTENT)
RENAMED: Final = rename(2, 3, task(2, "b"))
LOST_TOGGLE: Final = Operation("toggle", 2)
LOST_RENAME: Final = Operation("merge", 2, changes={"title": "b"})
LOST_CONDITIONAL: Final = Operation("merge", 2, changes={"title": "b"}, match="001")
IMPOSSIBLE: Final = {
    "a lost update": [CREATED, RENAMED, toggle(4, 5, task(3, completed=True))],
    "a lost toggle": [CREATED, toggle(2, 5, task(2, completed=True)), toggle(3, 6, task(3, completed=True))],
    "a toggle that was applied twice": [CREATED, toggle(2, 3, task(3))],
    "a lost toggle that was applied twice": [
        CREATED,
        LOST_TOGGLE,
        get(4, 5, task(2, completed=True)),
        get(6, 7, task(3)),
    ],
    "a stale read": [CREATED, RENAMED, get(4, 5, task(1))],
    "two reads of a change in the wrong order": [
        CREATED,
        rename(2, 9, task(2, "b")),
        get(3, 4, task(2, "b")),
        get(5, 6, task(1)),
    ],
    "a created task that vanished": [CREATED, get(2, 3, None)],
    "a change that vanished": [CREATED, RENAMED, toggle(4, 5, task(3, completed=True))],
    "a deletion that vanished": [CREATED, delete(2, 3), get(4, 5, task(1))],
    "a deleted task that is changed": [CREATED, delete(2, 3), rename(4, 5, task(2, "b"))],
    "a second deletion that succeeds": [CREATED, delete(2, 3), delete(4, 5)],
    "a task that was never created": [get(0, 1, task(1))],
    "a change that is read before its start": [CREATED, get(2, 3, task(2, "b")), rename(4, 5, task(2, "b"))],
    "a lost change that is read before its start": [CREATED, get(0, 1.5, task(2, "b")), LOST_RENAME],
    "a version that does not increase": [CREATED, rename(2, 3, task(1, "b"))],
    "a version that is read with two contents": [CREATED, get(2, 3, task(1, "b"))],
    "a conditional change of an old version": [CREATED, RENAMED, rename(4, 5, task(3, "c"), match=1)],
    "a lost conditional change of an old version": [
        CREATED,
        rename(1.2, 1.4, task(2)),
        LOST_CONDITIONAL,
        get(4, 5, task(3, "b")),
    ],
    "two conditional changes of one version": [CREATED, rename(2, 5, task(2, "b"), 1), rename(3, 6, task(3, "c"), 1)],
    "a refused conditional change of the current version": [CREATED, refused_rename(2, 3, match=1, current=1)],
    "a refused conditional change that was made": [
        CREATED,
        RENAMED,
        refused_rename(4, 5, 1, 2),
        get(6, 7, task(3, "c")),
    ],
    "a repeated creation that changes the task": [CREATED, RENAMED, CREATED._replace(start=4, end=5, reply=task(3))],
}
POSSIBLE: Final = {
    "nothing": [],
    "a task that is missing": [get(0, 1, None), delete(2, 3, 404)],
    "concurrent toggles": [CREATED, toggle(2, 5, task(3)), toggle(3, 6, task(2, completed=True))],
    "concurrent changes": [CREATED, rename(2, 5, task(3, "b")), rename(3, 6, task(2, "c")), get(7, 8, task(3, "b"))],
    "a read of an old version during a change": [
        CREATED,
        rename(2, 9, task(2, "b")),
        get(3, 4, task(1)),
        get(5, 6, task(2, "b")),
    ],
    "a lost change that is made late": [CREATED, LOST_RENAME, get(4, 5, task(1)), get(6, 7, task(2, "b"))],
    "a lost change that is never made": [CREATED, LOST_TOGGLE, LOST_RENAME, get(4, 5, task(1))],
    "lost changes that are made in the other order": [
        CREATED,
        LOST_RENAME,
        LOST_TOGGLE,
        get(4, 5, task(2, completed=True)),
        get(6, 7, task(3, "b", completed=True)),
    ],
    "a lost creation": [CREATED._replace(end=inf, reply=None), get(2, 3, None), get(4, 5, task(1))],
    "a lost deletion": [CREATED, Operation("delete", 2), get(4, 5, task(1)), get(6, 7, None)],
    "a lost change under another": [CREATED, LOST_TOGGLE, rename(4, 5, task(3, "b", completed=True))],
    "a conditional change of a lost version": [CREATED, LOST_RENAME, rename(4, 5, task(3, "c"), match=2)],
    "a deletion that the service retried": [CREATED, delete(2, 3, 404)],
    "a change that the service retried around another": [
        CREATED,
        rename(2, 9, task(4, "b")),
        get(3, 4, task(2, "b")),
        rename(5, 6, task(3, "c")),
    ],
    "a lost change that the service retried around another": [
        CREATED,
        LOST_RENAME,
        get(3, 4, task(2, "b")),
        rename(5, 6, task(3, "c")),
        get(7, 8, task(4, "b")),
    ],
    "a refused conditional change": [
        CREATED,
        RENAMED,
        refused_rename(4, 5, match=1, current=2),
        get(6, 7, task(2, "b")),
    ],
    "a repeated creation": [CREATED, RENAMED, CREATED._replace(start=4, end=5, reply=task(2, "b"))],
    "a creation after the deletion": [CREATED, delete(2, 3), CREATED._replace(start=4, end=5, reply=task(2))],
}


@pytest.mark.parametrize("history", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_history_is_refused(history: list[Operation]) -> None:
    assert contradiction(history)


@pytest.mark.parametrize("history", POSSIBLE.values(), ids=POSSIBLE)
def test_a_possible_history_is_accepted(history: list[Operation]) -> None:
    assert contradiction(history) is None


def test_many_lost_changes_do_not_slow_the_search_down() -> None:
    lost = [Operation("merge", number, changes={"title": str(number)}) for number in range(20)]
    toggles = [Operation("toggle", number) for number in range(20)]
    reads = [get(100 + number, 100.5 + number, task(1)) for number in range(100)]

    assert contradiction([CREATED, *lost, *toggles, *reads]) is None
    assert contradiction([CREATED, *lost, *reads, get(300, 301, task(1, "c"))])


class Copy:
    """One copy of a task, which takes one request after the other."""

    def __init__(self, task: Task | None = None, changes: int = 0) -> None:
        self.task = task
        self.changes = changes

    def answer(self, sent: Operation) -> Operation:
        """Returns the operation with its answer."""
        if sent.request == "create":
            self.task = self.task or self._changed(CONTENT)
            return sent._replace(status=201, reply=self.task)
        if self.task is None:
            return sent._replace(status=404)
        if sent.match not in {None, self.task.version}:
            return sent._replace(status=412, version=self.task.version)
        if sent.request == "delete":
            self.task = None
            return sent._replace(status=204)
        if sent.request != "get":
            toggled = {"completed": not self.task.completed} if sent.request == "toggle" else {}
            self.task = self._changed({**self.task._asdict(), **sent.changes, **toggled})
        return sent._replace(status=200, reply=self.task)

    def _changed(self, content: dict[str, Any]) -> Task:
        self.changes += 1
        return Task(content["title"], content["description"], content["completed"], f"{self.changes:03}")


@st.composite
def histories(draw: st.DrawFn, longest: int) -> list[Operation]:
    """Requests that one copy answers at the times 1, 2, 3 and so on. Some answers are lost, and some requests."""
    copy, history = Copy(), []
    for moment in range(1, draw(st.integers(1, longest)) + 1):
        request = draw(st.sampled_from(["create", "merge", "merge", "toggle", "delete", "get"]))
        changes = {"title": draw(st.sampled_from("ab"))} if request == "merge" else {}
        match = (
            draw(st.sampled_from([None, None, f"{copy.changes:03}"]))
            if request in {"merge", "toggle", "delete"}
            else None
        )
        start, end = moment - draw(st.integers(0, 6)) / 2, moment + draw(st.integers(0, 6)) / 2
        sent = Operation(request, start, changes=CONTENT if request == "create" else changes, match=match)
        is_answered, is_received = draw(st.booleans() | st.just(value=True)), draw(st.booleans())
        answered = copy.answer(sent) if is_answered or is_received else sent
        history.append(answered._replace(end=end) if is_answered else sent)
    return history


@st.composite
def changed_histories(draw: st.DrawFn) -> list[Operation]:
    """Histories in which one answer is exchanged for another."""
    history = draw(histories(longest=4))
    at = draw(st.integers(0, len(history) - 1))
    if history[at].reply:
        other = task(draw(st.integers(1, 4)), draw(st.sampled_from("ab")), completed=draw(st.booleans()))
        history[at] = history[at]._replace(reply=other)
    elif history[at].status:
        history[at] = history[at]._replace(status=draw(st.sampled_from([204, 404])))
    return history


def is_possible(history: Sequence[Operation]) -> bool:
    """Tries every order, and every version that a change without an answer may have made."""
    versions = {
        version for each in history for version in (each.match, each.version, each.reply and each.reply.version)
    }
    attempts = [number for number, each in enumerate(history) for _ in range(each.attempts - (each.end < inf))]

    @cache
    def goes_on(todo: frozenset[int], attempts: tuple[int, ...], task: Task | None) -> bool:
        if not todo:
            return True
        horizon = min(history[number].end for number in todo)
        attempts = tuple(number for number in attempts if number in todo or history[number].end == inf)
        return any(
            goes_on(todo - {number}, attempts, after)
            for number in todo
            if history[number].start <= horizon
            for after in _states_after(history[number], task, versions)
            if _agrees(history[number], task, after)
        ) or any(
            goes_on(todo, attempts[:at] + attempts[at + 1 :], after)
            for at, number in enumerate(attempts)
            if history[number].start <= horizon
            for after in _states_after(history[number], task, versions)
            if after != task
        )

    return goes_on(frozenset(number for number, each in enumerate(history) if each.end < inf), tuple(attempts), None)


def _states_after(sent: Operation, before: Task | None, versions: set[Any]) -> Iterator[Task | None]:
    """Yields the state after the request, once for each version that it may have made."""
    copy = Copy(before, changes=900)
    copy.answer(sent)
    current = before.version if before else ""
    if copy.task in {before, None}:
        yield copy.task
        return
    later = {version for version in versions if version and version > current}
    yield from (copy.task._replace(version=version) for version in {*later, f"{current}!"})


def _agrees(sent: Operation, before: Task | None, after: Task | None) -> bool:
    """Whether a copy in the state `before` gives this answer when its next state is `after`."""
    status = Copy(before).answer(sent).status
    if status != sent.status or status == 412:
        return status == sent.status and before is not None and before.version == sent.version
    return sent.reply is None or sent.reply == after


@settings(max_examples=EXAMPLES, deadline=None)
@given(histories(longest=25))
def test_every_history_of_one_copy_is_accepted(history: list[Operation]) -> None:
    assert contradiction(history) is None


@settings(max_examples=EXAMPLES, deadline=None)
@given(changed_histories())
def test_a_search_through_all_orders_decides_the_same(history: list[Operation]) -> None:
    assert (contradiction(history) is None) == is_possible(history)

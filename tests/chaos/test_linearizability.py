"""The checker accepts every history that one copy of a task can have, and no other."""

from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.chaos.linearizability import Operation, Task, contradiction

pytestmark = pytest.mark.unmeasured

CONTENT: Final = {"title": "a", "description": None, "completed": False}


# "2-3 merge:b@1 b2" is a PUT of the title b with If-Match 1, from time 2 to 3. Its answer has title b, version 2.
# A capital letter is a completed task, and a number is a status. "412=2" has version 2 in its ETag.
IMPOSSIBLE: Final = {
    "a lost update": "0-1 create a1, 2-3 merge:b b2, 4-5 toggle A3",
    "a lost toggle": "0-1 create a1, 2-5 toggle A2, 3-6 toggle A3",
    "a toggle that was applied twice": "0-1 create a1, 2-3 toggle a3",
    "a lost toggle that was applied twice": "0-1 create a1, 2- toggle lost, 4-5 get A2, 6-7 get a3",
    "a stale read": "0-1 create a1, 2-3 merge:b b2, 4-5 get a1",
    "two reads in the wrong order": "0-1 create a1, 2-9 merge:b b2, 3-4 get b2, 5-6 get a1",
    "a creation that vanished": "0-1 create a1, 2-3 get 404",
    "a deletion that vanished": "0-1 create a1, 2-3 delete 204, 4-5 get a1",
    "a deleted task that is changed": "0-1 create a1, 2-3 delete 204, 4-5 merge:b b2",
    "a task that was never created": "0-1 get a1",
    "a read before the change": "0-1 create a1, 2-3 get b2, 4-5 merge:b b2",
    "a read before the lost change": "0-1 create a1, 2-3 get b2, 4- merge:b lost",
    "a version that does not increase": "0-1 create a1, 2-3 merge:b b1",
    "a version with two contents": "0-1 create a1, 2-3 get b1",
    "a conditional change of an old version": "0-1 create a1, 2-3 merge:b b2, 4-5 merge:c@1 c3",
    "a lost conditional change of an old version": "0-1 create a1, 2-3 merge:b b2, 4- merge:c@1 lost, 6-7 get c3",
    "two conditional changes of one version": "0-1 create a1, 2-5 merge:b@1 b2, 3-6 merge:c@1 c3",
    "a refused change of the current version": "0-1 create a1, 2-3 merge:b@1 412=1",
    "a refused change that was made": "0-1 create a1, 2-3 merge:b b2, 4-5 merge:c@1 412=2, 6-7 get c3",
    "a repeated creation that changes the task": "0-1 create a1, 2-3 merge:b b2, 4-5 create a3",
    "half of a transaction": "0-1 create a1, 2- replace:b lost, 4-5 get b1",
}
POSSIBLE: Final = {
    "a missing task": "0-1 get 404, 2-3 delete 404",
    "concurrent toggles": "0-1 create a1, 2-5 toggle a3, 3-6 toggle A2",
    "concurrent changes": "0-1 create a1, 2-5 merge:b b3, 3-6 merge:c c2, 7-8 get b3",
    "a read of the old version during a change": "0-1 create a1, 2-9 merge:b b2, 3-4 get a1, 5-6 get b2",
    "a lost change that is made late": "0-1 create a1, 2- merge:b lost, 4-5 get a1, 6-7 get b2",
    "lost changes that are never made": "0-1 create a1, 2- toggle lost, 2- merge:b lost, 2- delete lost, 4-5 get a1",
    "lost changes in the other order": "0-1 create a1, 2- merge:b lost, 3- toggle lost, 4-5 get A2, 6-7 get B3",
    "a lost creation": "0- create lost, 2-3 get 404, 4-5 get a1",
    "a lost deletion": "0-1 create a1, 2- delete lost, 4-5 get a1, 6-7 get 404",
    "a lost change under another": "0-1 create a1, 2- toggle lost, 4-5 merge:b B3",
    "a conditional change of a lost version": "0-1 create a1, 2- merge:b lost, 4-5 merge:c@2 c3",
    "a deletion that the service retried": "0-1 create a1, 2-3 delete 404",
    "a change that the service retried around another": "0-1 create a1, 2-9 merge:b b4, 3-4 get b2, 5-6 merge:c c3",
    "a lost change that was retried": "0-1 create a1, 2- merge:b lost, 3-4 get b2, 5-6 merge:c c3, 7-8 get b4",
    "a refused conditional change": "0-1 create a1, 2-3 merge:b b2, 4-5 merge:c@1 412=2, 6-7 get b2",
    "a repeated creation": "0-1 create a1, 2-3 merge:b b2, 4-5 create b2",
    "a creation after the deletion": "0-1 create a1, 2-3 delete 204, 4-5 create a2",
}


def parse(text: str) -> Operation:
    times, request, answer = text.split()
    start, end = times.split("-")
    request, _, match = request.partition("@")
    request, _, title = request.partition(":")
    changes = CONTENT if request == "create" else {"title": title} if title else {}
    sent = Operation(request, float(start), float(end or "inf"), changes=changes, match=match or None)
    if answer[0].isdigit():
        return sent._replace(status=int(answer[:3]), version=answer[4:])
    letter, version = answer[0], answer[1]
    reply = Task(letter.lower(), None, letter.isupper(), version)
    return sent if answer == "lost" else sent._replace(status=200, reply=reply)


@pytest.mark.parametrize("history", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_history_is_refused(history: str) -> None:
    assert contradiction([parse(each) for each in history.split(", ")])


@pytest.mark.parametrize("history", POSSIBLE.values(), ids=POSSIBLE)
def test_a_possible_history_is_accepted(history: str) -> None:
    assert contradiction([parse(each) for each in history.split(", ")]) is None


def test_many_lost_changes_do_not_slow_the_search_down() -> None:
    created = [parse("0-1 create a1")]
    lost = [
        parse(each) for number in range(20) for each in ("2- toggle lost", "2- delete lost", f"2- merge:{number} lost")
    ]
    reads = [parse(f"{number}-{number + 1} get a1") for number in range(4, 200, 2)]

    assert contradiction(created + lost + reads) is None
    assert contradiction([*created, *lost, *reads, parse("300-301 get c1")])


class Copy:
    """One copy of a task, which takes one request after the other."""

    def __init__(self) -> None:
        self.task: Task | None = None
        self.changes = 0

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
def histories(draw: st.DrawFn) -> list[Operation]:
    """Requests that one copy answers at the times 1, 2, 3 and so on. Some answers are lost, and some requests."""
    copy, history = Copy(), []
    for moment in range(1, draw(st.integers(1, 25)) + 1):
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


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_every_history_of_one_copy_is_accepted(history: list[Operation]) -> None:
    assert contradiction(history) is None

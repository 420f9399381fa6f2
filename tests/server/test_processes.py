"""The parent's view of a worker. tests/test_main.py and tests/test_signals.py have real ones."""

import logging
from unittest.mock import Mock

import pytest
import uvicorn

from app.server.processes import Workers, _Worker


@pytest.fixture
def worker() -> _Worker:
    """A worker that runs, and whose answers are those of the test."""
    worker = _Worker(uvicorn.Config(Mock(), log_config=None), [])
    worker.process = Mock(**{"is_alive.return_value": True, "pid": 7, "exitcode": None})
    return worker


def answer(worker: _Worker, *, serves: bool) -> None:
    assert worker.child_conn.recv() == b"ping"
    worker.child_conn.send(serves)


def checks(worker: _Worker, count: int) -> list[bool]:
    return [worker.is_alive(timeout=5) for _ in range(count)]


def test_a_worker_is_not_replaced_while_it_starts_however_long_that_takes(
    worker: _Worker, caplog: pytest.LogCaptureFixture
) -> None:
    assert all(checks(worker, 1_000))
    answer(worker, serves=False)
    assert all(checks(worker, 1_000))
    assert caplog.messages == []


def test_a_worker_that_serves_is_replaced_if_it_answers_no_ping_for_five_seconds(
    worker: _Worker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        assert all(checks(worker, 10))
        answer(worker, serves=True)

    assert checks(worker, 11) == [True] * 10 + [False]
    assert caplog.messages == ["worker [7] has ended or is stuck, and is replaced"]
    assert vars(caplog.records[0])["exit_code"] is None


def test_sighup_stops_the_workers_instead_of_restarting_them() -> None:
    workers = Mock()

    Workers.handle_hup(workers)

    assert [name for name, *_ in workers.mock_calls] == ["should_exit.set"]

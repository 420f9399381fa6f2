"""Signals in a process of its own."""

import os
import subprocess
import sys
from typing import Any, Final

import pytest

from tests.service import BACKEND
from tests.support import full_pipe

NOTED: Final = """
import signal
from app.core.stopping import exit_at_signals, note_signals

exit_at_signals()
note_signals()
signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGTERM, lambda number, _: print("handled", number))
note_signals()
signal.raise_signal(signal.SIGTERM)
"""
IMPORTING: Final = """
import signal
from app.core.stopping import exit_at_signals

exit_at_signals()
signal.raise_signal(signal.{})
print("still imports")
"""
UNDER_NOHUP: Final = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from app.core.stopping import note_signals, requested

for number in (signal.SIGHUP, signal.SIGTERM):
    note_signals()
    signal.raise_signal(number)
    print(requested.is_set())
"""
STUCK: Final = """
import signal, time
from app.core.stopping import end_in_time, last_steps, note_signals

last_steps.append(lambda: print("last step", flush=True))
note_signals()
end_in_time(60)
end_in_time(0.3)
signal.raise_signal(signal.SIGTERM)
while True:
    time.sleep(1)
"""


def run(script: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(BACKEND)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True, check=False, **options
    )


def test_a_server_handles_the_signals_that_came_before_it_was_ready() -> None:
    assert run(NOTED).stdout.split("\n") == ["handled 2", "handled 15", ""]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_process_that_only_imports_at_once_and_without_a_word(name: str) -> None:
    ended = run(IMPORTING.format(name), stderr=subprocess.PIPE)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_under_nohup_a_process_outlives_its_terminal() -> None:
    assert run(UNDER_NOHUP).stdout.split() == ["False", "True"]


def test_a_stuck_process_whose_stderr_nobody_reads_is_aborted() -> None:
    reader, writer = full_pipe()

    aborted = run(STUCK, stderr=writer)

    os.close(reader)
    os.close(writer)
    assert (aborted.returncode, aborted.stdout) == (1, "last step\n")

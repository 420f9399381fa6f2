"""Ends the process after SIGINT, SIGTERM or SIGHUP. Under `nohup`, SIGHUP stays ignored.

While the process only imports, a signal ends it at once. From then on a handler only notes the signal. If it raised an
exception, the exception could hit a callback of compiled code, such as asyncpg, which then hangs or crashes. Code that
waits checks for a noted signal and raises Stopped.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Final

INTERVAL: Final = 0.05  # seconds between two checks
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))  # Windows has no SIGHUP
_NOHUP: Final = signal.getsignal(_SIGNALS[-1]) is signal.SIG_IGN  # is inherited from `nohup`
_RESERVE: Final = 0.25  # seconds of the timeout that the last steps of `end_in_time` may need

last_steps: Final[list[Callable[[], object]]] = []  # run before a process that does not end in time is aborted
requested: Final = threading.Event()
_noted: Final[list[signal.Signals]] = []
_handlers: Final[list[Any]] = []
_limits: Final[list[float]] = []


class Stopped(SystemExit):
    """A signal has ended the work. The exit code is the one that a shell reports for the signal."""


def exit_at_signals() -> None:
    """Let signals end the process at once from now on. There is nothing to clean up yet."""
    _handle_signals(_exit)


def note_signals() -> None:
    """Note signals from now on, and pass them to the current handler of SIGTERM, also those that were noted before."""
    handler = signal.getsignal(signal.SIGTERM)
    _handle_signals(_note)
    if callable(handler) and handler not in (_note, _exit):
        _handlers.append(handler)
        for noted in _noted:
            handler(noted, None)


def _handle_signals(handler: Any) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)
    if _NOHUP:
        signal.signal(_SIGNALS[-1], signal.SIG_IGN)


def _exit(*_: object) -> None:
    os._exit(0)


def _note(number: int, frame: FrameType | None) -> None:
    is_first = not _noted
    _noted.append(signal.Signals(number))
    if is_first:  # only the first sets the event, because a handler can interrupt itself
        requested.set()
    for handler in _handlers:
        handler(number, frame)


def ignore_signals() -> None:
    """Ignore signals from now on. While Python ends, one would kill it: Ctrl+C once more, and make prints an error."""
    _handle_signals(signal.SIG_IGN)


def check() -> None:
    """Raise Stopped if a signal has been noted."""
    if _noted:
        raise Stopped(128 + _noted[0])


def cause() -> str:
    """Returns the name of the first signal that has been noted. On Windows, uvicorn ends by one that is not noted."""
    return _noted[0].name if _noted else "a signal"


def pause(seconds: float) -> None:
    """Sleep. Raises Stopped."""
    deadline = time.monotonic() + seconds
    check()
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, INTERVAL))
        check()


def end_in_time(seconds: float) -> None:
    """Abort the process if it still runs `seconds` after a signal, because its main thread is stuck.

    Of several calls, the last one before the signal holds.
    """
    _limits.append(seconds)
    if len(_limits) > 1:
        return

    def end() -> None:
        requested.wait()
        time.sleep(_limits[-1] - _RESERVE)
        for step in last_steps:
            with suppress(Exception):
                step()
        with suppress(OSError):
            if select.select([], [2], [], 0)[1]:  # otherwise its reader stalls
                os.write(2, b"The service did not end in time after a signal and was aborted.\n")
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()

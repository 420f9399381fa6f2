"""`python -m app` without what Python has on Unix only. This is no proof for Windows, which differs in more."""

import asyncio
import os
import signal
import socket
import sys
from functools import partial
from typing import Any, Final, NoReturn

MODULES: Final = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty", "uvloop")
LOOP: Final = ("add_reader", "add_signal_handler", "add_writer", "create_unix_connection", "create_unix_server")
_OS: Final = (
    "chown",
    "fchmod",
    "fork",
    "getegid",
    "geteuid",
    "getgid",
    "getuid",
    "killpg",
    "mkfifo",
    "setsid",
    "uname",
)
_SIGNALS: Final = ("SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIG_BLOCK", "SIG_UNBLOCK", "alarm", "pthread_sigmask")


def _refuse(*_: object, **__: object) -> NoReturn:
    raise NotImplementedError


# Also in each worker, which imports this module. Python itself needs these names on Unix in what it has imported here.
socket.socketpair = partial(socket.socketpair, socket.AF_UNIX)
sys.modules.update(dict.fromkeys(MODULES))  # type: ignore[arg-type]  # None makes an import fail
_missing: list[tuple[Any, tuple[str, ...]]] = [(os, _OS), (signal, _SIGNALS), (socket, ("AF_UNIX",))]
for _module, _names in _missing:
    for _name in _names:
        delattr(_module, _name)
for _name in LOOP:
    setattr(asyncio.SelectorEventLoop, _name, _refuse)

if __name__ == "__main__":
    from app.__main__ import main

    main()

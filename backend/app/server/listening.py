"""The sockets of the service. They are bound before anything slow, and refuse connections until the service serves."""

import errno
import logging
import os
import socket
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from itertools import chain
from typing import Any, Final

from app.core.errors import StartupError

_ABSENT: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_PRIVILEGED: Final = 1024  # ports below need privileges
_FREE_TO_ALL: Final = 8000
_PORTS: Final = 65_536

_Address = tuple[Any, ...]  # without a port; one of IPv6 has a flow and a scope, which names the link of fe80::1%eth0

_logger = logging.getLogger("app")


def raise_file_limit() -> None:
    """Allow as many open files, and so connections, as the system permits. The usual 1,024 are for older programs."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit, and macOS refuses an infinite one
        import resource  # noqa: PLC0415  # see above

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def bind(host: str, port: int) -> list[socket.socket]:
    """Returns a bound socket for each address of `host` that this machine has. None of them listens yet.

    Raises StartupError, also if another program listens there.
    """
    try:
        addresses = _addresses(host)
        sockets = _bind(addresses, port)
    except (socket.gaierror, ValueError):
        raise StartupError(f"HOST: {host} cannot be resolved") from None
    except OSError as error:
        raise refusal(error, host, port) from None
    left = {address[0] for address in addresses} - {bound.getsockname()[0].partition("%")[0] for bound in sockets}
    for address in left:
        _logger.warning("HOST: %s is not an address of this machine, and is left out", address)
    return sockets


def check_listening(sockets: Iterable[socket.socket]) -> None:
    """Raises OSError if a socket does not listen, because another program has begun to since `bind`."""
    for sock in sockets:
        if sock.fileno() < 0 or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def refusal(error: OSError, host: str, port: int) -> StartupError:
    """Returns the sentence for an error of binding or listening."""
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        reason = "in use" if error.errno == errno.EADDRINUSE else "only for privileged users"
        return StartupError(f"PORT: {port} is {reason}; try PORT={_free_port(host, port)} make run")
    reason = "is not an address of this machine" if error.errno in _ABSENT else f"cannot be used: {error.strerror}"
    return StartupError(f"HOST: {host} {reason}")


def page(host: str, sockets: list[socket.socket], root_path: str = "") -> str:
    """Returns the URL of the documentation, for a browser on this machine. With a prefix only a proxy has the page."""
    address, port, *_ = sockets[0].getsockname()
    host = "127.0.0.1" if ip_address(address).is_unspecified else host
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return f"{root_path}/docs at the proxy in front of {url}" if root_path else f"{url}/docs"


def _addresses(host: str) -> set[_Address]:
    """Returns the addresses of `host`: both of `localhost`, and for `::` also that of IPv4."""
    if host.lower() == "localhost":  # whatever a resolver makes of it
        return {("127.0.0.1",), ("::1", 0, 0)}
    entries = [entry[4] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    found = {(str(address).partition("%")[0], *rest) for address, _, *rest in entries}
    if ("::", 0, 0) in found:
        found.add(("0.0.0.0",))  # noqa: S104  # nosec B104  # HOST asks for it
    return found


def _bind(addresses: set[_Address], port: int) -> list[socket.socket]:
    """Raises OSError if this machine has none of the addresses, or one cannot be bound for another reason."""
    absent, sockets = OSError(), []
    with ExitStack() as opened:
        for address in sorted(addresses):
            try:
                sockets.append(opened.enter_context(_bound(address, port)))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                absent = error
        if not sockets:
            raise absent
        opened.pop_all()
    return sockets


def _bound(address: _Address, port: int) -> socket.socket:
    """Returns a socket for one family, whose port may have connections of a service that has just ended."""
    name, *scope = address
    sock = socket.socket(socket.AF_INET6 if ":" in name else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")  # elsewhere it shares the port
        if sock.family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((name, port, *scope))
    except OSError:
        sock.close()
        raise
    return sock


def _free_port(host: str, port: int) -> int:
    first = _FREE_TO_ALL if port < _PRIVILEGED else port + 1
    return next(each for each in chain(range(first, _PORTS), range(_PRIVILEGED, first)) if _is_free(host, each))


def _is_free(host: str, port: int) -> bool:
    with suppress(OSError):
        for sock in _bind(_addresses(host), port):
            sock.close()
        return True
    return False

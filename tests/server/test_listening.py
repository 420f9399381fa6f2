"""The sockets of the service: bound to what HOST and PORT say, and refused in one sentence that names the setting."""

import errno
import logging
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from app.core.errors import StartupError
from app.server.listening import bind, page, raise_file_limit
from tests.servers import free_port
from tests.support import unresolved


@contextmanager
def bound(host: str, port: int = 0) -> Iterator[tuple[list[socket.socket], int]]:
    """Yields the sockets and their port."""
    port = port or free_port()
    with ExitStack() as opened:
        yield [opened.enter_context(sock) for sock in bind(host, port)], port


def refusal(host: str, port: int) -> str:
    with pytest.raises(StartupError) as caught:
        bind(host, port)
    return str(caught.value)


def test_the_service_raises_its_limit_of_open_files_to_what_the_system_permits() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    try:
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestAddresses:
    @pytest.mark.parametrize(
        ("host", "served", "refused", "shown"),
        [
            ("127.0.0.1", ["127.0.0.1"], ["::1"], "127.0.0.1"),
            ("::1", ["::1"], ["127.0.0.1"], "[::1]"),
            ("localhost", ["127.0.0.1", "::1"], [], "localhost"),
            ("LOCALHOST", ["127.0.0.1", "::1"], [], "LOCALHOST"),
            ("0.0.0.0", ["127.0.0.1"], ["::1"], "127.0.0.1"),
            ("::", ["127.0.0.1", "::1"], [], "127.0.0.1"),
            ("0:0::0", ["127.0.0.1", "::1"], [], "127.0.0.1"),
        ],
    )
    def test_a_host_is_served_at_its_addresses_and_the_page_has_one_that_can_be_opened(
        self, host: str, served: list[str], refused: list[str], shown: str
    ) -> None:
        with bound(host) as (sockets, port):
            for address in served + refused:
                with pytest.raises(ConnectionRefusedError):  # before the service listens, a client does not wait
                    socket.create_connection((address, port))
            for sock in sockets:
                sock.listen()
            for address in served:
                socket.create_connection((address, port)).close()
            for address in refused:
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((address, port))
            assert page(host, sockets) == f"http://{shown}:{port}/docs"
            assert page(host, sockets, "/svc") == f"/svc/docs at the proxy in front of http://{shown}:{port}"

    @pytest.mark.parametrize("resolved", ["fe80::1", "fe80::1%eth0"])  # systems differ in this
    def test_the_link_of_a_link_local_address_is_bound(self, monkeypatch: pytest.MonkeyPatch, resolved: str) -> None:
        given: list[object] = []
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(None, None, None, "", (resolved, 0, 0, 4))])
        monkeypatch.setattr(socket.socket, "bind", lambda _, address: given.append(address))

        with bound("fe80::1%eth0", 8000):
            assert given == [("fe80::1", 8000, 0, 4)]

    def test_an_address_that_is_not_of_this_machine_is_left_out_with_a_warning(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        entries: list[Any] = [(None, None, None, "", (address, 0)) for address in ("127.0.0.1", "192.0.2.1")]
        with monkeypatch.context() as resolver:
            resolver.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
            with bound("tasks.internal") as (sockets, port):
                assert [sock.getsockname() for sock in sockets] == [("127.0.0.1", port)]

        warning = "HOST: 192.0.2.1 is not an address of this machine, and is left out"
        assert caplog.record_tuples == [("app", logging.WARNING, warning)]


class TestPort:
    def test_a_port_can_be_bound_again_right_after_a_service_has_ended(self) -> None:
        with bound("127.0.0.1") as ([sock], port):
            sock.listen()
            with socket.create_connection(("127.0.0.1", port)) as client:
                sock.accept()[0].close()  # the side that closes first keeps the port for a while
                assert client.recv(1) == b""

        with bound("127.0.0.1", port) as ([sock], _):
            sock.listen()

    @pytest.mark.parametrize(
        ("host", "taken"), [("127.0.0.1", "127.0.0.1"), ("localhost", "::1"), ("::", "127.0.0.1"), ("::", "::1")]
    )
    def test_a_port_in_use_is_refused_with_one_that_is_free(self, host: str, taken: str) -> None:
        family = socket.AF_INET6 if ":" in taken else socket.AF_INET
        with socket.create_server((taken, free_port()), family=family) as first:
            port = first.getsockname()[1]
            with socket.create_server((taken, port + 1), family=family):
                sentence, _, free = refusal(host, port).partition("; try PORT=")
                assert sentence == f"PORT: {port} is in use"
        with bound(host, int(free.removesuffix(" make run"))) as (_, other):
            assert other > port + 1

    def test_a_port_for_privileged_users_is_refused_with_one_for_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: socket.socket, address: tuple[str, int]) -> None:  # as root may bind any port
            if address[1] < 8001:
                raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(socket.socket, "bind", refuse)

        assert refusal("127.0.0.1", 80) == "PORT: 80 is only for privileged users; try PORT=8001 make run"


class TestHost:
    @pytest.mark.parametrize(
        ("host", "sentence"),
        [
            ("192.0.2.1", "is not an address of this machine"),
            ("2001:db8::1", "is not an address of this machine"),
            ("a..b", "cannot be resolved"),
            ("fe80::1", "cannot be used: Invalid argument"),
        ],
    )
    def test_a_host_that_cannot_be_served_is_refused_by_its_name(self, host: str, sentence: str) -> None:
        assert refusal(host, free_port()) == f"HOST: {host} {sentence}"

    def test_a_name_that_cannot_be_resolved_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", unresolved)

        assert refusal("tasks.internal", 8000) == "HOST: tasks.internal cannot be resolved"

    def test_a_machine_without_ipv6_serves_ipv4_and_refuses_an_ipv6_address(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def without_ipv6(family: int) -> Any:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            return original(family)

        original, port = socket.socket, free_port()
        monkeypatch.setattr(socket, "socket", without_ipv6)

        with bound("localhost", port) as (sockets, _):
            assert [sock.getsockname() for sock in sockets] == [("127.0.0.1", port)]
        assert refusal("::1", port) == "HOST: ::1 is not an address of this machine"

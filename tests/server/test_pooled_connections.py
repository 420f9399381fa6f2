"""HAProxy with docs/haproxy.cfg, which sends the requests of several clients over one connection to the service."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.config import Settings
from app.server.protocol import BoundedProtocol
from tests.deployments import WITHOUT_CHECKS, haproxy
from tests.server.support import CHUNKED, Connection, post
from tests.support import SECRET, serving

# By default HAProxy has a pool per thread and server, and uses it for later requests of a client only.
ONE_POOL = {
    **WITHOUT_CHECKS,
    "\nglobal\n": "\nglobal\n    nbthread 1\n",
    "balance roundrobin": "balance first\n    http-reuse always",
}

pytestmark = pytest.mark.ci


@pytest.mark.parametrize(
    "trailer", [b"X: a", b"Connection: close", b"Connection: foo, close", b"Proxy-Connection: close"]
)
@pytest.mark.parametrize("is_mended", [True, False])
async def test_no_trailer_of_a_stranger_keeps_the_request_of_another_client_from_being_answered(
    configure: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trailer: bytes,
    *,
    is_mended: bool,
) -> None:
    opened: list[BoundedProtocol] = []
    connect = BoundedProtocol.connection_made

    def note(self: BoundedProtocol, transport: object) -> None:
        connect(self, transport)  # type: ignore[arg-type]
        self.parser.set_dangerous_leniencies(lenient_keep_alive=is_mended)
        opened.append(self)

    monkeypatch.setattr(BoundedProtocol, "connection_made", note)
    async with serving(configure(auth_jwt_secret=SECRET)) as url:
        with haproxy(tmp_path, [url, url], ONE_POOL) as proxy:
            attacker, victim = Connection(proxy), Connection(proxy)
            attack = await attacker.ask(post(CHUNKED) + b"1\r\n0\r\n0\r\n%s\r\n\r\n" % trailer)
            monkeypatch.setattr(opened[0], "timeout_keep_alive", 0.2)  # after which the control is 502
            reply = await victim.ask(post(b"Content-Length: 0\r\n"))
            attacker.socket.close()
            victim.socket.close()

    assert len(opened) == 1
    assert attack.status_code == 401
    assert reply.status_code == (401 if is_mended or trailer == b"X: a" else 502)

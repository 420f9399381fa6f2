"""How connections are opened while the network or the database does not respond."""

import asyncio
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.core.database.connecting import connect
from app.core.database.dsn import parse_dsn
from app.core.database.faults import ConnectError
from tests.core.database.support import until_idle
from tests.faults import FaultProxy, fault_proxy
from tests.support import until


def options(proxy: FaultProxy, **others: Any) -> dict[str, Any]:
    return {**parse_dsn(proxy.dsn), "interval": 0.1, **others}


class TestAttempts:
    @pytest.mark.parametrize(("interval", "limit"), [(0.1, 10), (60, 0.5)])
    async def test_a_second_attempt_succeeds_where_the_packets_of_the_first_are_lost_and_a_single_one_times_out(
        self, proxy: FaultProxy, interval: float, limit: float
    ) -> None:
        proxy.hold()
        opening = asyncio.create_task(connect(**options(proxy, interval=interval, timeout=limit)))
        await until(lambda: proxy.accepted)
        proxy.lose()
        proxy.heal()

        with nullcontext() if interval < limit else pytest.raises(TimeoutError):
            await (await opening).close()

    async def test_one_of_three_connections_that_open_at_the_same_moment_is_kept(
        self, proxy: FaultProxy, server: asyncpg.Connection
    ) -> None:
        proxy.hold()
        opening = asyncio.create_task(connect(**options(proxy)))
        await until(lambda: proxy.accepted == 3)
        await asyncio.wait([opening], timeout=0.3)  # three intervals, in which no fourth attempt starts
        proxy.heal()

        connection = await opening

        assert proxy.accepted == 3
        await until_idle(server)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()

    async def test_a_refused_attempt_does_not_end_one_that_waits(self) -> None:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.append(writer)
            if len(accepted) > 1:
                writer.close()
            if len(accepted) == 3:
                accepted[0].close()

        accepted: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        with pytest.raises(ConnectionError):
            await connect(**parse_dsn(f"postgresql://ada@127.0.0.1:{port}/tasks"), interval=0.1)
        server.close()
        accepted[0].close()
        assert len(accepted) == 3

    async def test_another_host_is_tried_beside_an_unresponsive_one(self, proxy: FaultProxy, own_dsn: str) -> None:
        with fault_proxy(own_dsn) as unresponsive:
            unresponsive.hold()
            ports = [*options(unresponsive)["port"], *options(proxy)["port"]]

            connection = await connect(**options(proxy, host=["127.0.0.1"] * 2, port=ports))

            assert unresponsive.accepted
            await connection.close()


class TestThisMachine:
    async def test_a_connection_reads_no_file_of_the_home_directory(
        self, own_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for path in (".postgresql/postgresql.key", ".postgresql/postgresql.crt", ".postgresql/root.crt"):
            (tmp_path / path).mkdir(parents=True)
        (tmp_path / ".pgpass").write_bytes(b"\xff")
        (tmp_path / ".pgpass").chmod(0o600)
        monkeypatch.setenv("HOME", str(tmp_path))

        options: dict[str, Any] = {**parse_dsn(own_dsn), "ssl": "prefer"}

        await (await connect(**options)).close()
        with pytest.raises(UnicodeDecodeError):  # a control
            await asyncpg.connect(**options | {"password": None})

    async def test_a_socket_directory_may_be_missing_for_a_while_but_is_never_a_file(self) -> None:
        with pytest.raises(FileNotFoundError):
            await connect(**parse_dsn("postgresql://ada@/tasks?host=/nowhere"))
        with pytest.raises(ConnectError, match=r"^DATABASE_URL: this machine opens no connection: Not a directory$"):
            await connect(**parse_dsn("postgresql://ada@/tasks?host=/dev/null"))


class TestFailure:
    async def test_a_refused_connection_is_reported_without_a_second_attempt(self) -> None:
        with pytest.raises(ConnectionRefusedError):
            await connect(**parse_dsn("postgresql://ada@127.0.0.1:1/tasks"), interval=60)

    async def test_a_cancelled_attempt_leaves_no_connection_behind(
        self, proxy: FaultProxy, server: asyncpg.Connection
    ) -> None:
        proxy.hold()
        opening = asyncio.create_task(connect(**options(proxy)))
        await until(lambda: proxy.accepted >= 2)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        proxy.heal()

        await until(lambda: not proxy.connections)
        await until_idle(server, 0)

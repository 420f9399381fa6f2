"""What a man in the middle gets of a connection to the database. test_dsn.py tests which certificates are accepted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import pytest

from app.core.database import Database

pytestmark = pytest.mark.ci

SSL_REQUEST: Final = bytes.fromhex("00000008 04d2162f")
CLIENT_HELLO: Final = b"\x16\x03"
ASK_FOR_PASSWORD: Final = b"R" + bytes.fromhex("00000008 00000003")
PASSWORD: Final = "c0rrect-horse"  # noqa: S105  # for the man in the middle only
# An attacker can send an error before TLS begins (CVE-2024-10977), and bytes right behind the S (CVE-2021-23222).
ERROR: Final = b"E\x00\x00\x00\x2fSFATAL\0C28P01\0Mcall 0900 for a new password\0\0"
INJECTED: Final = b"S" + ASK_FOR_PASSWORD

ENCRYPTED: Final = ("sslmode=verify-full", "sslmode=require&channel_binding=require", "sslmode=require")


class Middle:
    """A man in the middle. He sends `answer`, then asks for the password, and records all bytes that arrive.

    An empty answer closes the connection.
    """

    def __init__(self, answer: bytes) -> None:
        self.arrived: list[bytes] = []
        self._answers = (answer, ASK_FOR_PASSWORD, b"")

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Yields the connection string of this server."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        yield f"postgresql://ada:{PASSWORD}@localhost:{server.sockets[0].getsockname()[1]}/tasks"
        server.close()
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.arrived)
        self.arrived.append(b"")
        with suppress(ConnectionError):
            for answer in self._answers:
                self.arrived[number] += await reader.read(4096)
                if not answer:
                    break
                writer.write(answer)
        writer.close()


async def connect(dsn: str, query: str) -> None:
    """Connect as the service does, which cannot use this database."""
    database = Database(f"{dsn}?{query}", pool_size=1, pool_timeout=10, concurrency_limit=10)
    assert not await database.check()
    await database.close()


class TestManInTheMiddle:
    @pytest.mark.parametrize("answer", [b"N", ERROR, INJECTED, b"S", b"?", b""], ids=ascii)
    async def test_an_attacker_gets_neither_name_nor_password_where_the_mode_requires_encryption(
        self, answer: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        middle = Middle(answer)

        async with middle.listening() as dsn:
            for query in ENCRYPTED:
                await connect(dsn, query)

        assert len(middle.arrived) >= len(ENCRYPTED)
        for arrived in middle.arrived:
            request, hello = arrived[:8], arrived[8:]
            assert request == SSL_REQUEST
            assert not hello or (answer.startswith(b"S") and hello.startswith(CLIENT_HELLO))
        assert "0900" not in caplog.text

    async def test_an_attacker_gets_name_and_password_with_mode_prefer(self) -> None:
        middle = Middle(b"N")

        async with middle.listening() as dsn:
            await connect(dsn, "sslmode=prefer")

        assert any(b"user\0ada\0" in arrived and PASSWORD.encode() in arrived for arrived in middle.arrived)

    async def test_an_attacker_gets_only_a_client_hello_with_direct_negotiation(self) -> None:
        middle = Middle(ERROR)

        async with middle.listening() as dsn:
            await connect(dsn, "sslmode=require&sslnegotiation=direct")

        assert {(arrived[:2], b"\x0apostgresql" in arrived) for arrived in middle.arrived} == {(CLIENT_HELLO, True)}

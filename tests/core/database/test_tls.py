"""Which servers the service accepts: PostgreSQL with each kind of certificate, PostgreSQL without TLS, an attacker."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
import trustme
from sqlalchemy import make_url

from app.core.database import Database
from tests.servers import Postgres, postgres

pytestmark = pytest.mark.ci

SSL_REQUEST: Final = bytes.fromhex("00000008 04d2162f")
CLIENT_HELLO: Final = b"\x16\x03"
ASK_FOR_PASSWORD: Final = b"R" + bytes.fromhex("00000008 00000003")
PASSWORD: Final = "c0rrect-horse"  # noqa: S105  # for the man in the middle only
# An attacker can send an error before TLS begins (CVE-2024-10977), and bytes right behind the S (CVE-2021-23222).
ERROR: Final = b"E\x00\x00\x00\x2fSFATAL\0C28P01\0Mcall 0900 for a new password\0\0"
INJECTED: Final = b"S" + ASK_FOR_PASSWORD


# {ca} is a file with the authority that issued all certificates but one. SSL_CERT_FILE makes the system trust it too.
VERIFYING: Final = {
    "sslmode=verify-full&sslrootcert={ca}",
    "sslmode=verify-full",
    "sslrootcert=system",
    "sslmode=require&channel_binding=require",
}
VERIFYING_CA: Final = {"sslmode=verify-ca&sslrootcert={ca}", "sslmode=require&sslrootcert={ca}"}
ENCRYPTED: Final = VERIFYING | VERIFYING_CA | {"sslmode=require"}
ANY: Final = ENCRYPTED | {"sslmode=prefer", ""}


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


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def ca(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The certificate of the authority. The system trusts this authority and no other."""
    path = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(path)
    monkeypatch.setenv("SSL_CERT_FILE", path)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    return path


@pytest.fixture(scope="module")
def secure(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL that refuses connections without TLS."""
    hosts = ("localhost", "127.0.0.1")
    certificates = {
        "good": authority.issue_cert(*hosts),
        "wrong host": authority.issue_cert("other.example.com"),
        "unknown CA": trustme.CA().issue_cert(*hosts),
        "expired": authority.issue_cert(*hosts, not_after=datetime(2020, 1, 1, tzinfo=UTC)),
    }
    # Each file has a key and its certificate.
    files = {name: certificate.private_key_and_cert_chain_pem.bytes() for name, certificate in certificates.items()}
    settings = {"ssl": "on", "ssl_cert_file": "good", "ssl_key_file": "good"}
    hba = "hostssl all all all scram-sha-256"
    with postgres(tmp_path_factory.mktemp("secure"), settings=settings, hba=hba, files=files) as server:
        yield server


async def accepted(dsn: str, ca: str, queries: Iterable[str] = ANY, host: str = "localhost") -> set[str]:
    """Returns the queries with which the service can use this database."""
    address = make_url(dsn).set(host=host).render_as_string(hide_password=False)
    found = set()
    for query in queries:
        database = Database(f"{address}?{query.format(ca=ca)}", pool_size=1, pool_timeout=10, concurrency_limit=10)
        if await database.check():
            found.add(query)
        await database.close()
    return found


class TestCertificates:
    @pytest.mark.parametrize(
        ("certificate", "queries"),
        [
            ("wrong host", ANY - VERIFYING),
            ("unknown CA", ANY - VERIFYING - VERIFYING_CA),
            ("expired", ANY - VERIFYING - VERIFYING_CA),
            ("good", ANY),
        ],
    )
    async def test_the_mode_decides_which_certificates_are_accepted(
        self, secure: Postgres, ca: str, tmp_path: Path, certificate: str, queries: set[str]
    ) -> None:
        other_ca = str(tmp_path / "other.pem")
        trustme.CA().cert_pem.write_to_path(other_ca)
        secure.set(ssl_cert_file=certificate, ssl_key_file=certificate)

        assert await accepted(secure.dsn, ca) == queries
        assert await accepted(secure.dsn, ca, VERIFYING, "127.0.0.1") == queries & VERIFYING
        # An sslrootcert replaces the authorities of the system.
        unrooted = {query for query in VERIFYING if "{ca}" not in query}
        assert await accepted(secure.dsn, other_ca, VERIFYING | VERIFYING_CA) == queries & unrooted


class TestManInTheMiddle:
    @pytest.mark.parametrize("answer", [b"N", ERROR, INJECTED, b"S", b"?", b""], ids=ascii)
    async def test_an_attacker_gets_neither_name_nor_password_where_the_mode_requires_encryption(
        self, ca: str, answer: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        middle = Middle(answer)

        async with middle.listening() as dsn:
            assert await accepted(dsn, ca, ENCRYPTED) == set()

        assert len(middle.arrived) >= len(ENCRYPTED)
        for arrived in middle.arrived:
            request, hello = arrived[:8], arrived[8:]
            assert request == SSL_REQUEST
            assert not hello or (answer.startswith(b"S") and hello.startswith(CLIENT_HELLO))
        assert "0900" not in caplog.text

    async def test_an_attacker_gets_name_and_password_with_mode_prefer(self, ca: str) -> None:
        middle = Middle(b"N")

        async with middle.listening() as dsn:
            assert await accepted(dsn, ca, {"sslmode=prefer"}) == set()

        assert any(b"user\0ada\0" in arrived and PASSWORD.encode() in arrived for arrived in middle.arrived)

    async def test_an_attacker_gets_only_a_client_hello_with_direct_negotiation(self, ca: str) -> None:
        middle = Middle(ERROR)

        async with middle.listening() as dsn:
            assert await accepted(dsn, ca, {"sslmode=require&sslnegotiation=direct"}) == set()

        assert {(arrived[:2], b"\x0apostgresql" in arrived) for arrived in middle.arrived} == {(CLIENT_HELLO, True)}

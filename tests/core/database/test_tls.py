"""Which servers the service accepts: PostgreSQL with each kind of certificate, PostgreSQL without TLS, an attacker."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg
import httpx
import pytest
import trustme
from sqlalchemy import make_url

from app.core.database import Database
from app.core.database.faults import may_recover
from tests.servers import Postgres, postgres
from tests.support import make_settings, serving

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

Present = Callable[[str], None]


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


@pytest.fixture(scope="module")
def ca(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def unknown_ca(tmp_path: Path) -> str:
    path = tmp_path / "unknown.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(autouse=True)
def _system(ca: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system trusts this authority and no other."""
    monkeypatch.setenv("SSL_CERT_FILE", ca)
    monkeypatch.setenv("SSL_CERT_DIR", str(Path(ca).with_name("none")))


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
    files = {}
    for name, certificate in certificates.items():
        files[f"{name}.pem"] = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        files[f"{name}.key"] = certificate.private_key_pem.bytes()
    settings = {"ssl": "on", "ssl_cert_file": "good.pem", "ssl_key_file": "good.key"}
    hba = "hostssl all all all scram-sha-256"
    with postgres(tmp_path_factory.mktemp("secure"), settings=settings, hba=hba, files=files) as server:
        yield server


@pytest.fixture
def present(secure: Postgres) -> Iterator[Present]:
    """Have the server present one of the certificates."""

    def present(name: str) -> None:
        secure.set(ssl_cert_file=f"{name}.pem", ssl_key_file=f"{name}.key")

    yield present
    present("good")


def url(dsn: str, query: str = "", host: str = "localhost") -> str:
    named = make_url(dsn).set(host=host).render_as_string(hide_password=False)
    return f"{named}?{query}" if query else named


async def answers(dsn: str) -> bool:
    """Whether the service can use this database."""
    database = Database(dsn, pool_size=1, pool_timeout=10, concurrency_limit=10)
    try:
        return await database.check()
    finally:
        await database.close()


async def accepted(dsn: str, ca: str, queries: Iterable[str] = ANY, host: str = "localhost") -> set[str]:
    """Returns the queries with which the service can use this database."""
    return {query for query in queries if await answers(url(dsn, query.format(ca=ca), host))}


class TestCertificates:
    @pytest.mark.parametrize(
        ("certificate", "queries"),
        [
            ("good", ANY),
            ("wrong host", ANY - VERIFYING),
            ("unknown CA", ANY - VERIFYING - VERIFYING_CA),
            ("expired", ANY - VERIFYING - VERIFYING_CA),
        ],
    )
    async def test_the_mode_decides_which_certificates_are_accepted(
        self, secure: Postgres, present: Present, ca: str, certificate: str, queries: set[str]
    ) -> None:
        present(certificate)

        assert await accepted(secure.dsn, ca) == queries
        assert await accepted(secure.dsn, ca, VERIFYING, "127.0.0.1") == queries & VERIFYING

    async def test_an_sslrootcert_replaces_the_authorities_of_the_system(
        self, secure: Postgres, unknown_ca: str
    ) -> None:
        assert await accepted(secure.dsn, unknown_ca, VERIFYING | VERIFYING_CA) == {
            query for query in VERIFYING if "{ca}" not in query
        }


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
        """The positive control of the test above."""
        middle = Middle(b"N")

        async with middle.listening() as dsn:
            assert await accepted(dsn, ca, {"sslmode=prefer"}) == set()

        assert any(b"user\0ada\0" in arrived and PASSWORD.encode() in arrived for arrived in middle.arrived)

    async def test_an_attacker_gets_only_a_client_hello_with_direct_negotiation(self, ca: str) -> None:
        middle = Middle(ERROR)

        async with middle.listening() as dsn:
            assert await accepted(dsn, ca, {"sslmode=require&sslnegotiation=direct"}) == set()

        assert middle.arrived
        for arrived in middle.arrived:
            assert arrived.startswith(CLIENT_HELLO)
            assert b"\x0apostgresql" in arrived
            assert b"ada" not in arrived

    @pytest.mark.parametrize(
        ("answer", "mode", "transient"), [(b"", "require", True), (b"", "prefer", True), (b"N", "require", False)]
    )
    async def test_a_start_keeps_waiting_after_a_closed_connection_but_not_after_a_refused_upgrade(
        self, answer: bytes, mode: str, *, transient: bool
    ) -> None:
        async with Middle(answer).listening() as dsn:
            with pytest.raises(OSError, match=r"connection_lost|rejected SSL upgrade") as fault:
                await asyncpg.connect(f"{dsn}?sslmode={mode}")

        assert may_recover(fault.value) is transient


class TestService:
    async def test_an_unknown_ca_is_503_and_the_reply_and_log_contain_no_secrets(
        self, secure: Postgres, unknown_ca: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        caplog.set_level(logging.WARNING, "httpx")
        dsn = url(secure.dsn, f"sslmode=verify-full&sslrootcert={unknown_ca}")

        async with serving(make_settings(dsn)) as base_url, httpx.AsyncClient(base_url=base_url) as client:
            reply = await client.post("/api/ada/tasks", json={"title": "Buy oat milk"})

        assert (reply.status_code, reply.json()["type"]) == (503, "urn:problem-type:database-unavailable")
        assert "database unavailable: SSLCertVerificationError" in caplog.text
        for secret in (str(make_url(dsn).password), "localhost", str(secure.port), unknown_ca):
            assert secret not in caplog.text + reply.text + str(reply.headers)

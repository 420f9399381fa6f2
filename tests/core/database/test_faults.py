"""Faults after which a start keeps waiting, and faults that end it."""

import ssl
from socket import gaierror

import asyncpg
import pytest

from app.core.database.faults import may_recover


@pytest.mark.parametrize(
    "error",
    [
        gaierror(),
        ConnectionError("unexpected connection_lost() call"),
        asyncpg.CannotConnectNowError("as the server has it"),
        asyncpg.TooManyConnectionsError("as the server has it"),
        asyncpg.ProtocolViolationError("server login has been failing, try again later (server_login_retry)"),
        asyncpg.InternalServerError("Couldn't connect to compute node"),
    ],
    ids=repr,
)
def test_a_start_keeps_waiting_after_a_transient_fault(error: Exception) -> None:
    assert may_recover(error)


@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLCertVerificationError(),
        ConnectionError('PostgreSQL server at "h:5432" rejected SSL upgrade'),
        asyncpg.InvalidPasswordError("as the server has it"),
        asyncpg.ProtocolViolationError("SASL authentication failed"),
        UnicodeError(),
    ],
    ids=repr,
)
def test_a_permanent_fault_ends_a_start(error: Exception) -> None:
    assert not may_recover(error)

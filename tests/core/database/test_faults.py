"""Faults after which a start keeps waiting, and faults that end it."""

import ssl
from socket import gaierror

import asyncpg
import pytest

from app.core.database.faults import may_recover


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (gaierror(), True),
        (asyncpg.CannotConnectNowError("as the server has it"), True),
        (asyncpg.ProtocolViolationError("server login has been failing, try again later (server_login_retry)"), True),
        (asyncpg.InternalServerError("Couldn't connect to compute node"), True),
        (ssl.SSLCertVerificationError(), False),
        (ConnectionError('PostgreSQL server at "h:5432" rejected SSL upgrade'), False),
        (asyncpg.InvalidPasswordError("as the server has it"), False),
        (asyncpg.ProtocolViolationError("SASL authentication failed"), False),
        (asyncpg.ProtocolViolationError("unsupported startup parameter: jit"), False),
        (asyncpg.ConnectionDoesNotExistError("transaction blocks not allowed in statement pooling mode"), False),
        (asyncpg.InternalServerError("Tenant or user not found"), False),
        (UnicodeError(), False),
    ],
    ids=repr,
)
def test_a_start_keeps_waiting_after_a_transient_fault_only(error: Exception, *, transient: bool) -> None:
    assert may_recover(error) is transient

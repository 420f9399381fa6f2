"""Faults after which a start keeps waiting, faults that end it, and faults of this machine."""

import errno
import os
import socket
import ssl
from socket import gaierror

import asyncpg
import pytest

from app.core.database.faults import connect_error, may_recover


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
        (OSError("AF_UNIX path too long"), False),
        (UnicodeError(), False),
    ],
    ids=repr,
)
def test_a_start_keeps_waiting_after_a_transient_fault_only(error: Exception, *, transient: bool) -> None:
    assert may_recover(error) is transient


@pytest.mark.parametrize(
    ("error", "lasts", "reason"),
    [
        *((OSError(number, ""), True, os.strerror(number)) for number in (errno.EACCES, errno.EPERM, errno.ENOTDIR)),
        (FileNotFoundError(errno.ENOENT, "of a certificate"), True, "no connection: No such file or directory"),
        (OSError(errno.EAFNOSUPPORT, "IPv6 is off"), True, os.strerror(errno.EAFNOSUPPORT)),
        (
            PermissionError(errno.EACCES, "Permission denied", "/home/ada/s3cret"),
            True,
            "no connection: Permission denied",
        ),
        (OSError("Multiple exceptions: [Errno 1] ('::1', 1), [Errno 1] ('127.0.0.1', 1)"), True, "not permitted"),
        (OSError(errno.EMFILE, "Too many open files"), False, "Too many open files"),
        (gaierror(socket.EAI_NONAME, "Name or service not known"), None, "the host a or b cannot be resolved: Name or"),
        (gaierror(socket.EAI_AGAIN, "Try again"), False, "the host a or b cannot be resolved: Try again"),
        (ConnectionError('PostgreSQL server at "a:1" rejected SSL upgrade'), True, "a or b has no TLS, which sslmode"),
        (UnicodeError("label empty"), True, "the host a or b cannot be resolved: it is not well-formed"),
    ],
    ids=repr,
)
def test_an_error_of_this_machine_or_of_a_name_has_a_sentence_and_says_whether_it_lasts(
    error: Exception, *, lasts: bool | None, reason: str
) -> None:
    found = connect_error(error, ["a", "b"])

    assert found
    assert str(found).startswith("DATABASE_URL: ")
    assert reason in str(found)
    assert "s3cret" not in str(found)
    assert (found.lasts, may_recover(found)) == (lasts, not lasts)


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, "") for number in (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOENT)),
        OSError("Multiple exceptions: [Errno 111] ('127.0.0.1', 1), [Errno 97] ('::1', 1)"),
        *(TimeoutError(), ConnectionError("unexpected connection_lost() call"), ssl.SSLError(1, "certificate")),
    ],
    ids=repr,
)
def test_an_error_that_a_database_causes_is_left_as_it_is(error: Exception) -> None:
    assert connect_error(error, ["/run/postgresql", "a"]) is None

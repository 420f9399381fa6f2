"""Clients that send or read too slowly, and clients that disconnect."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, Final
from unittest.mock import ANY, Mock

import asyncpg
import pytest
import uvicorn
from uvicorn.server import ServerState

from app.server.protocol import BoundedProtocol
from tests.server.support import (
    CHUNKED,
    CLOSE,
    LIVE,
    Connection,
    assert_refusal,
    converse,
    head,
    post,
    waits_for_a_lock,
)
from tests.support import short, until


async def drip(connection: Connection) -> None:
    """Send byte by byte without end."""
    while True:
        await connection.send(b"a")
        await asyncio.sleep(0.01)  # this delay is the attack and waits for nothing


def keep_alive_in(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change KEEP_ALIVE_TIMEOUT of a service that runs in this process."""
    fixed = property(lambda _: seconds, lambda *_: None)
    monkeypatch.setattr(BoundedProtocol, "timeout_keep_alive", fixed, raising=False)


BEGINS_NOTHING: Final = pytest.mark.parametrize(
    ("request_bytes", "rest"), [(post(b"Content-Length: 2\r\n"), b"{}"), (head(b"GET", LIVE), b"\r\n")], ids=short
)


@BEGINS_NOTHING
async def test_a_connection_that_idles_after_bytes_that_begin_no_request_is_closed(
    secured_url: str, monkeypatch: pytest.MonkeyPatch, request_bytes: bytes, rest: bytes
) -> None:
    keep_alive_in(0.2, monkeypatch)
    connection = Connection(secured_url)
    await connection.ask(request_bytes)

    await connection.send(rest)

    assert await connection.end() == []


class TestRequestTimeout:
    @pytest.fixture(autouse=True)
    def _short_request_timeout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The request timeout is shorter than the timeout of the test client."""
        monkeypatch.setattr("app.server.protocol.REQUEST_TIMEOUT", 0.2)

    @pytest.mark.parametrize(
        "content",
        [
            b"G",
            head(b"GET", LIVE)[:-1],
            *(post(CHUNKED) + body for body in (b"9\r\n{", b"0\r\n", b"0\r\nX: a\r\n")),
            post(b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 14\r\n"),
        ],
        ids=short,
    )
    async def test_an_incomplete_request_is_408(self, base_url: str, content: bytes) -> None:
        [reply] = await converse(base_url, content)

        assert_refusal(reply, 408)
        assert reply.json()["detail"] == "The request was not complete after 0.2 seconds."

    @pytest.mark.parametrize("content", [b"", b"\r\n"], ids=short)
    async def test_a_connection_without_a_request_is_closed_without_a_reply(
        self, base_url: str, content: bytes
    ) -> None:
        assert await converse(base_url, content) == []

    async def test_an_incomplete_second_head_has_more_time_than_an_idle_connection(
        self, base_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep_alive_in(0.05, monkeypatch)

        [first, second] = await converse(base_url, head(b"GET", LIVE) + head(b"GET", LIVE)[:-1])

        assert first.status_code == 200
        assert_refusal(second, 408)

    @pytest.mark.parametrize("beginning", [b"GET /", post(b"Content-Length: 9999\r\n")], ids=["head", "body"])
    async def test_a_request_sent_too_slowly_is_408(self, base_url: str, beginning: bytes) -> None:
        connection = Connection(base_url)
        await connection.send(beginning)
        sending = asyncio.create_task(drip(connection))

        try:
            [reply] = await connection.end()
        finally:
            sending.cancel()

        assert_refusal(reply, 408)

    @BEGINS_NOTHING
    async def test_a_connection_with_bytes_that_begin_no_request_stays_open_longer_than_a_request_may_take(
        self, secured_url: str, request_bytes: bytes, rest: bytes
    ) -> None:
        connection = Connection(secured_url)
        await connection.ask(request_bytes)
        await connection.send(rest)
        assert await converse(secured_url) == []  # the request timeout has passed

        assert (await connection.ask(head(b"GET", LIVE, CLOSE))).status_code == 200
        assert await connection.end() == []

    async def test_the_request_timeout_limits_neither_the_processing_time_nor_an_idle_connection(
        self, base_url: str, database: asyncpg.Connection, path: str
    ) -> None:
        idle = Connection(base_url)
        async with database.transaction():
            await database.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", path.rpartition("/")[2])
            talking = asyncio.create_task(converse(base_url, head(b"DELETE", path.encode(), CLOSE)))
            await waits_for_a_lock(database)
            await idle.ask(head(b"GET", LIVE))
            assert await converse(base_url) == []  # the request timeout has passed
            assert (await idle.ask(head(b"GET", LIVE))).status_code == 200

        [reply] = await talking
        assert reply.status_code == 204
        idle.socket.close()


@pytest.mark.parametrize("content", [b"", b"GET /health", post(CHUNKED) + b"9\r\n{"], ids=short)
async def test_an_incomplete_request_of_a_half_closed_connection_is_not_waited_for(
    base_url: str, content: bytes
) -> None:
    connection = Connection(base_url)
    await connection.send(content)
    connection.socket.shutdown(socket.SHUT_WR)

    assert await connection.end() == []


@pytest.mark.parametrize("rest", [b"", b"GET /hea"])
@pytest.mark.parametrize("count", [1, 3])
async def test_a_half_closed_connection_gets_the_replies_to_its_complete_requests(
    base_url: str, tasks: str, count: int, rest: bytes
) -> None:
    connection = Connection(base_url)
    create = post(b"Content-Length: 14\r\n", path=tasks.encode()) + b'{"title": "a"}'
    await connection.send(create * count + rest)
    connection.socket.shutdown(socket.SHUT_WR)

    replies = await connection.end()

    assert [reply.status_code for reply in replies] == [201] * count
    assert replies[-1].headers["Connection"] == "close"


async def test_a_client_that_reads_late_gets_all_replies(base_url: str) -> None:
    connection = Connection(base_url)
    large = head(b"GET", b"/docs/assets/swagger-ui-bundle.js")  # together more than fits into the socket buffers
    await connection.send(large * 5 + head(b"GET", LIVE, CLOSE))
    await converse(base_url, head(b"GET", LIVE, CLOSE))  # until then, the service fills the buffers

    assert [reply.status_code for reply in await connection.end()] == [200] * 6


@pytest.mark.parametrize("problem", ["client-disconnected", "reply-timeout"])
async def test_a_client_that_does_not_read_its_replies_causes_no_error_and_is_named_in_the_log(
    base_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    def problems() -> list[str]:
        return [record.problem for record in caplog.records if hasattr(record, "problem")]

    caplog.set_level(logging.INFO)
    if problem == "reply-timeout":
        monkeypatch.setattr("app.server.protocol.REPLY_TIMEOUT", 0)
    connection = Connection(base_url)
    await connection.send(head(b"GET", b"/docs/assets/swagger-ui-bundle.js") * 8)
    await converse(base_url, head(b"GET", LIVE, CLOSE))  # until then, the service fills the buffers
    if problem == "client-disconnected":
        connection.socket.close()

    await until(problems)
    assert problems() == [problem]
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    connection.socket.close()


class TestTimers:
    @pytest.fixture
    def connection(self) -> Any:
        """A connection whose event loop and transport only record their calls."""
        transport = Mock(**{"get_extra_info.return_value": None, "is_closing.return_value": False})
        connection = BoundedProtocol(uvicorn.Config(Mock(), log_config=None), ServerState(), {}, _loop=Mock())
        connection.connection_made(transport)
        return connection

    def test_a_client_has_30_seconds_to_send_a_request_and_60_to_read_on(self, connection: Any) -> None:
        call_later = connection.loop.call_later
        call_later.assert_called_once_with(30, ANY)
        connection.pause_writing()

        call_later.assert_called_with(60, ANY)
        call_later().cancel.assert_not_called()
        assert connection.flow.write_paused
        connection.resume_writing()
        call_later().cancel.assert_called_once()
        assert not connection.flow.write_paused

    @pytest.mark.parametrize("end", [BoundedProtocol.on_response_complete, BoundedProtocol.timeout_keep_alive_handler])
    def test_a_client_has_60_seconds_to_read_the_rest_of_a_connection_that_the_service_closes(
        self, connection: Any, end: Callable[[BoundedProtocol], None]
    ) -> None:
        call_later, transport = connection.loop.call_later, connection.transport
        call_later.reset_mock()
        transport.is_closing.return_value = True
        end(connection)
        connection.pause_writing()
        connection.resume_writing()

        transport.close.assert_called_once()
        call_later.assert_called_once_with(60, ANY)
        call_later().cancel.assert_not_called()
        [(_, abort), _] = call_later.call_args_list[0]
        abort()
        transport.abort.assert_called_once()
        connection.connection_lost(ConnectionResetError())
        call_later().cancel.assert_called()

    def test_the_connection_of_a_request_in_progress_ends_with_its_reply_at_shutdown(self, connection: Any) -> None:
        connection.cycle = Mock(response_complete=False, keep_alive=True)

        connection.shutdown()

        assert not connection.cycle.keep_alive

"""The server's side of a connection: uvicorn's, with bounds on what a client may send before and around a body."""

import asyncio
import logging
from collections.abc import Iterable
from http import HTTPStatus
from itertools import chain
from typing import Any, Final, NoReturn

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.datastructures import Headers
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.core.errors import AppError, HeadTooLargeError, MalformedRequestError, RequestTimeoutError
from app.http.middleware import complete_headers, new_request_id
from app.http.problems import problem

HEAD_MAX: Final = 32_768  # bytes of request line and headers
HEADERS_MAX: Final = 100
PIPELINE_MAX: Final = 100  # requests of a connection that wait for their turn
REQUEST_TIMEOUT: Final = 30  # seconds in which a request has to arrive, its body included
REPLY_TIMEOUT: Final = 60  # seconds in which a client has to take what its system does not buffer
LAST_CALL: Final = 0.2  # seconds in which a request may still come on an idle connection when the service is to end

_logger = logging.getLogger("app.requests")


class BoundedProtocol(HttpToolsProtocol):
    """Refuses heads without end and requests without end, which uvicorn waits for, and refuses as problems."""

    _deadline: asyncio.TimerHandle | None = None
    _in_head = _in_body = False
    _trailing = 0  # bytes after the body
    _unread = 0  # bytes since the last one that was part of a body
    _refusal: AppError | None = None
    _refused = False
    _stuck: asyncio.TimerHandle | None = None
    _ending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it
        super().connection_made(transport)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._clear_stuck()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._clear_stuck()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def shutdown(self) -> None:
        """Close the connection behind the request that is answered, or that may be on its way: to close an idle
        connection at once could meet one, whose client would not know what became of it.
        """
        self._ending = True
        if self._is_idle():
            self.loop.call_later(LAST_CALL, self._close_if_idle)
        elif self.cycle:
            self.cycle.keep_alive = False

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._unread += len(data)
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._go_on_without(upgrade, data)
        except HttpParserError:
            self._refuse(self._refusal or MalformedRequestError())
        else:
            if self._unread > HEAD_MAX:
                self._refuse(HeadTooLargeError(HEAD_MAX, HEADERS_MAX))
            elif self._is_idle():
                self._set_deadline()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._clear_deadline()
        self._set_deadline()
        self._in_head = True
        self._unread = self._trailing = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            self._trailing += len(name) + len(value)  # what follows a body is no header (RFC 9110 section 6.5.1)
        else:
            super().on_header(name, value)
        if self._trailing > HEAD_MAX or len(self.headers) > HEADERS_MAX:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        """Raises ValueError, which the parser takes for an error in the request."""
        if self._head_size() > HEAD_MAX:
            self._refuse_head()
        if not self._is_clear() or len(self.pipeline) >= PIPELINE_MAX:
            raise ValueError
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        if self._ending:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._clear_deadline()
        self._in_body = False
        super().on_message_complete()
        if self.cycle.response_complete:  # the end of the keep-alive was called off when the rest of this came
            self._set_deadline()

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        super().on_response_complete()
        if self._in_head:  # the next request has its own time, not that of a connection that is idle
            self._unset_keepalive_if_required()
        if self.transport.is_closing() or (self._refused and is_last):
            self._close()

    def _refuse_head(self) -> NoReturn:
        self._refusal = HeadTooLargeError(HEAD_MAX, HEADERS_MAX)
        raise ValueError

    def _head_size(self) -> int:
        return len(self.url) + sum(map(len, chain.from_iterable(self.headers)))

    def _is_clear(self) -> bool:
        """Whether it is certain for whom the request is (RFC 9112 section 3.2), and where it ends (section 6.1)."""
        version = self.parser.get_http_version()
        names = [name for name, _ in self.headers]
        hosts = names.count(b"host")
        if b"transfer-encoding" in names:
            codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
            return version == "1.1" and hosts == 1 and codings == [b"chunked"]
        return hosts == 1 if version == "1.1" else version == "1.0" and hosts <= 1

    def _set_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_TIMEOUT, self._give_up)

    def _clear_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        """Close the connection as soon as the client has what was sent, or has had the time to take it."""
        self.transport.close()
        self._abort_later()

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self._close()

    def _is_idle(self) -> bool:
        return not self._in_head and (self.cycle is None or self.cycle.response_complete)

    def _abort_later(self) -> None:
        if self._stuck is None:
            self._stuck = self.loop.call_later(REPLY_TIMEOUT, self.transport.abort)

    def _clear_stuck(self) -> None:
        if self._stuck:
            self._stuck.cancel()
            self._stuck = None

    def _give_up(self) -> None:
        if self._in_head or self._in_body:
            self._refuse(RequestTimeoutError(REQUEST_TIMEOUT))
        else:
            self._close()

    def _go_on_without(self, upgrade: HttpParserUpgrade, data: bytes) -> None:
        """Nothing but HTTP/1.1 is spoken here, so an upgrade is ignored (RFC 9110 section 7.8). The parser has taken
        the request to be complete, and what follows for something else: what frames a body is parsed again for it.
        """
        framing = [field for field in self.headers if field[0] in {b"content-length", b"transfer-encoding"}]
        if framing:
            self._set_deadline()
            self.cycle.more_body = self._in_body = True
            self.cycle.keep_alive = False
            self.parser = HttpRequestParser(_Body(self))
            self.parser.feed_data(b"POST / HTTP/1.1\r\nConnection: close\r\n%s\r\n" % _lines(framing))
        if rest := data[upgrade.args[0] :]:
            self.data_received(rest)

    def _refuse(self, error: AppError) -> None:
        """Answer with `error` and close the connection.

        Replies to earlier requests come first, and then it is only closed: the error could pass for one of them.
        """
        self._refused = True
        self._clear_deadline()
        if self._owes_replies():
            if self._in_body:
                self.pipeline.popleft()  # the request that it is about
            return
        if self._in_body:
            self.cycle.disconnected = True  # it must not answer any more
        if not (self._in_body and self.cycle.response_started):
            request_id = new_request_id()
            extra = {"request_id": request_id, "status": error.status}
            _logger.info("refused before it was read: %d %s", error.status, error.kind, extra=extra)
            self.transport.write(_rendered(error, request_id))
        self._close()

    def _owes_replies(self) -> bool:
        """Whether requests before the one that is being read are still to be answered."""
        if self._in_body:
            return bool(self.pipeline)
        return self.cycle is not None and not self.cycle.response_complete


class _Body:
    """What a parser calls that has only the rest of a request to read."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete


def _rendered(error: AppError, request_id: str) -> bytes:
    response = problem(Headers({"x-request-id": request_id}), error)
    response.headers["Connection"] = "close"
    start = {"headers": response.raw_headers}
    complete_headers(start, request_id)
    status = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
    return status.encode() + _lines(start["headers"]) + b"\r\n" + bytes(response.body)


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%s: %s\r\n" % header for header in headers)


SERVER_OPTIONS: Final[dict[str, Any]] = {
    "http": BoundedProtocol,
    "ws": "none",  # an upgrade would leave these bounds
    "access_log": False,
    "server_header": False,
}

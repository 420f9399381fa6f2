"""The HTTP protocol of uvicorn, with limits on the head, the headers, the pipeline and the time of a request."""

import asyncio
import re
from itertools import chain
from typing import Any, Final, NoReturn

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.core import errors
from app.http.middleware import REFUSAL
from app.http.remarks import ABORTED

HEAD_MAX: Final = 32_768  # bytes of request line and headers
HEADERS_MAX: Final = 100
PIPELINE_MAX: Final = 100  # requests of one connection that wait to be handled
REQUEST_TIMEOUT: Final = 30  # seconds until a request must be complete, with its body
REPLY_TIMEOUT: Final = 60  # seconds for a client to read a reply that does not fit into the socket buffers
LINGER: Final = 0.2  # seconds that an idle connection stays open after the shutdown has begun

# A URL without the user information that could disguise its host (RFC 9110 section 4.2.4). The parser checks the rest.
_ABSOLUTE: Final = re.compile(rb"(https?://([^/?#@]+))(?:/|(?=[?#])|\Z)", re.IGNORECASE)
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 section 5.6.2
_METHOD: Final = re.compile(rb"[\r\n]*%s( |\Z)" % _TOKEN)  # or what has arrived of it
_TLS: Final = b"\x16\x03"  # how a client begins that was told https (RFC 8446 section 5.1)
_CODINGS: Final = re.compile(rb"((?!chunked *,)%s[ \t]*,[ \t]*)*%s" % (_TOKEN, _TOKEN))


class BoundedProtocol(HttpToolsProtocol):
    """Adds the limits, which uvicorn does not have. A request over a limit is answered with problem details."""

    _deadline: asyncio.TimerHandle | None = None
    _in_head = _in_body = False
    _trailer_size = 0  # bytes of the trailer section
    _since_body = 0  # bytes received since the last byte of a body
    _refusal: errors.AppError | None = None
    _doubt = "target"  # for the log, if the parser has none
    _refused = False
    _running: RequestResponseCycle | None = None  # of the request that the application handles
    _earlier: RequestResponseCycle | None = None  # of the request before the current one, if its reply was pending
    _abort_timer: asyncio.TimerHandle | None = None
    _shutting_down = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it
        super().connection_made(transport)
        # The parser would drop whatever follows `Connection: close`, even in a trailer. Only a reply ends a connection.
        # HTTP/1.2 is read as HTTP/1.1 (RFC 9110 section 2.5). `on_headers_complete` refuses all other versions.
        self.parser.set_dangerous_leniencies(lenient_keep_alive=True, lenient_version=True)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._cancel_abort()
        if self._running:  # uvicorn does this to the last request only, and the reply to an earlier one would fail
            self._running.disconnected = True
            self._note_abort("client-disconnected")
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn narrows it
        """Returns whether the connection stays open for pending replies. A client may close its sending half only."""
        if self._in_body or self.cycle is None or self.cycle.response_complete:
            return False
        self._note_abort("client-disconnected")
        self.cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._cancel_abort()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def shutdown(self) -> None:
        """Close the connection after the request in progress.

        Closing an idle connection at once could drop a request in transit, and its client would not know the outcome.
        """
        self._shutting_down = True
        if self._is_idle():
            self.loop.call_later(LINGER, self._close_if_idle)
        elif self.cycle:
            self.cycle.keep_alive = False

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._since_body += len(data)
        continues = self._in_head
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._ignore_upgrade(upgrade, data)
        except HttpParserError as error:
            # A letter stands for the part of a method that came before.
            self._refuse(self._refusal or self._refusal_for(error, b"A" + data if continues else data))
        else:
            if self._since_body > HEAD_MAX:
                self._refuse(errors.HeadTooLargeError(HEAD_MAX, HEADERS_MAX))
            elif self._deadline is None and self._is_idle():  # no request has begun; the timer has been cancelled
                self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self._close)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._clear_deadline()
        self._set_deadline()
        self._in_head = True
        self._since_body = self._trailer_size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            self._trailer_size += len(name) + len(value)  # trailers are not headers (RFC 9110 section 6.5.1)
        else:
            # The parser keeps white space behind a value. In `Transfer-Encoding` it is refused, because parsers differ.
            if value[-1:] in (b" ", b"\t") and name.lower() != b"transfer-encoding":
                value = value.rstrip(b" \t")
            super().on_header(name, value)
        if self._trailer_size > HEAD_MAX or len(self.headers) > HEADERS_MAX:
            self._stop(errors.HeadTooLargeError(HEAD_MAX, HEADERS_MAX))

    def on_headers_complete(self) -> None:
        """Raises ValueError for an invalid request. The parser turns it into HttpParserError."""
        if self._head_size() > HEAD_MAX:
            self._stop(errors.HeadTooLargeError(HEAD_MAX, HEADERS_MAX))
        version = self.parser.get_http_version()
        if "1.1" < version < "2":
            version = "1.1"
        if not self._is_unambiguous(version) or len(self.pipeline) >= PIPELINE_MAX:
            self._doubt = "Host, framing or pipeline"
            raise ValueError
        if self.url[:1] != b"/":
            self._read_target()
        self.expect_100_continue &= version == "1.1"  # RFC 9110 section 10.1.1
        self._earlier = self.cycle if self.cycle and not self.cycle.response_complete else None
        super().on_headers_complete()
        self.scope["http_version"] = version
        if not self.pipeline:
            self._running = self.cycle
        self._in_head, self._in_body = False, True
        # After an early reply the client may omit the body that it has announced with `Expect`.
        if self._shutting_down or self.expect_100_continue:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._since_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._clear_deadline()
        self._in_body = False
        if self.expect_100_continue and not (self.cycle.response_started or self._shutting_down):
            self.cycle.keep_alive = self.parser.should_keep_alive()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        if self._in_head:  # the next request has its own deadline
            self._unset_keepalive_if_required()
        if self.transport.is_closing():
            self._close()

    def _stop(self, refusal: errors.AppError) -> NoReturn:
        self._refusal = refusal
        raise ValueError

    def _refusal_for(self, error: HttpParserError, data: bytes) -> errors.AppError:
        """Returns the answer to an error of the parser. `data` begins with the method if the error is about it."""
        if self.parser.get_http_version() >= "2":  # also the preface of HTTP/2
            return errors.HTTPVersionError()
        if "method" in str(error) and (self.url or _METHOD.match(data)):
            return errors.FeatureNotImplementedError()
        reason = self._doubt if isinstance(error, HttpParserCallbackError) else str(error)  # llhttp quotes nothing
        return errors.MalformedRequestError().because("TLS" if data.startswith(_TLS) else reason)

    def _head_size(self) -> int:
        return len(self.url) + sum(map(len, chain.from_iterable(self.headers)))

    def _is_unambiguous(self, version: str) -> bool:
        """Returns whether the host (RFC 9112 section 3.2) and the end of the request (section 6.1) are certain."""
        names = [name for name, _ in self.headers]
        hosts = names.count(b"host")
        if b"transfer-encoding" in names:
            codings = b",".join(value for name, value in self.headers if name == b"transfer-encoding").lower()
            if codings != b"chunked" and _CODINGS.fullmatch(codings):
                self._stop(errors.FeatureNotImplementedError())
            return version == "1.1" and hosts == 1 and codings == b"chunked"
        return hosts == 1 if version == "1.1" else version == "1.0" and hosts <= 1

    def _read_target(self) -> None:
        """Put the authority of a URL in the place of `Host` (RFC 9112 section 3.2.2), or refuse the request."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._stop(errors.FeatureNotImplementedError())
        if absolute := _ABSOLUTE.match(self.url):
            self.url = b"%s/%s" % (absolute[1], self.url[absolute.end() :])  # RFC 9110 section 4.2.3
            others = [field for field in self.headers if field[0] != b"host"]
            self.headers[:] = [(b"host", absolute[2]), *others]
        elif (method, self.url) != (b"OPTIONS", b"*"):
            raise ValueError

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_TIMEOUT, self._time_out)

    def _clear_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        """Close the connection when the client has read the replies, or after REPLY_TIMEOUT."""
        self.transport.close()
        self._abort_later()

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self._close()

    def _is_idle(self) -> bool:
        return not self._in_head and (self.cycle is None or self.cycle.response_complete)

    def _abort_later(self) -> None:
        if self._abort_timer is None:
            self._abort_timer = self.loop.call_later(REPLY_TIMEOUT, self._abort)

    def _abort(self) -> None:
        self._note_abort("reply-timeout")
        self.transport.abort()

    def _note_abort(self, reason: str) -> None:
        """Have the log say why the reply of the request in progress is incomplete or lost."""
        if self._running and not self._running.response_complete:
            self._running.scope.setdefault(ABORTED, reason)  # type: ignore[typeddict-item]

    def _cancel_abort(self) -> None:
        if self._abort_timer:
            self._abort_timer.cancel()
            self._abort_timer = None

    def _time_out(self) -> None:
        if self._in_head or self._in_body:
            self._refuse(errors.RequestTimeoutError(REQUEST_TIMEOUT))
        else:
            self._close()

    def _ignore_upgrade(self, upgrade: HttpParserUpgrade, data: bytes) -> None:
        """Ignore an upgrade, because only HTTP/1.1 is supported (RFC 9110 section 7.8).

        The parser treats such a request as complete after its head. If the request has a body, its framing headers
        are replayed into a new parser, which reads the body.
        """
        framing = [field for field in self.headers if field[0] in {b"content-length", b"transfer-encoding"}]
        if framing:
            self._set_deadline()
            self.cycle.more_body = self._in_body = True
            self.cycle.keep_alive = False
            self.parser = HttpRequestParser(_BodyCallbacks(self))
            lines = b"".join(b"%s: %s\r\n" % field for field in framing)
            self.parser.feed_data(b"POST / HTTP/1.1\r\nConnection: close\r\n%s\r\n" % lines)
        if rest := data[upgrade.args[0] :]:
            self.data_received(rest)

    def _refuse(self, error: errors.AppError) -> None:
        """Answer with `error` and close the connection.

        If replies to earlier requests are pending, the connection is closed after them without the error, which the
        client could take for one of them.
        """
        self._refused = True
        self._clear_deadline()
        earlier = self._earlier if self._in_body else self.cycle
        if earlier and not earlier.response_complete:
            earlier.keep_alive = False  # its reply says so, unless it has begun
            if self._in_body:
                self.pipeline.popleft()  # the refused request
            return
        if self._in_body:
            self._note_abort(error.kind)
            self.cycle.disconnected = True  # drops the reply of the application
            self.cycle.message_event.set()
        if self._in_body and self.cycle.response_started:
            self._close()
        else:
            self._answer(error)

    def _answer(self, error: errors.AppError) -> None:
        """Have RequestMiddleware answer the refused request. Its path is `*` unless a valid one is known."""
        if not (self._in_head or self._in_body):  # no request has begun
            super().on_message_begin()
        method = self.scope.get("method") or self._method()
        self.url = self.url if self._in_body else b"*"
        self.scope = {**self.scope, "root_path": self.root_path, REFUSAL: error}  # type: ignore[typeddict-unknown-key]
        self.cycle = None  # type: ignore[assignment]
        super().on_headers_complete()
        self.scope["method"] = method
        self.cycle.keep_alive = False

    def _method(self) -> str:
        """Returns the method of an incomplete head, or `-` before its URL, when the parser may have an earlier one."""
        method = self.parser.get_method().decode()
        return method if self.url or method == "HEAD" else "-"


class _BodyCallbacks:
    """The callbacks of a parser that reads only the body of a request."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete


SERVER_OPTIONS: Final[dict[str, Any]] = {
    "http": BoundedProtocol,
    "ws": "none",  # a WebSocket would bypass these limits
    "access_log": False,
    "server_header": False,
}

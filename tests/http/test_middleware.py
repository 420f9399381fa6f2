"""The request log goes only where Python's `logging` would send it."""

import io
import logging

import pytest

from app.core.logging import JsonFormatter
from app.http.middleware import log_request


@pytest.mark.parametrize(("silent", "lines"), [("app.requests", 0), ("app", 0), ("app.database", 1)])
def test_a_logger_that_does_not_propagate_writes_nothing_to_the_root_handler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, silent: str, lines: int
) -> None:
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonFormatter())
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("logging.root.handlers", [handler])
    monkeypatch.setattr(logging.getLogger(silent), "propagate", False)

    log_request({"request_id": "1", "method": "GET", "route": None, "status": 200, "duration_ms": 1.0})

    assert len(handler.stream.getvalue().splitlines()) == lines

"""Telemetry: whether it is on, what the service adds to FastAPI's metrics, and the ids of the current span.

Needs only the API of OpenTelemetry, which FastAPI requires. `core.exporters` needs the SDK, and is imported if
FASTAPI_OTEL_AUTO_CONFIGURE is true. Providers that are set before the application starts are used too.
"""

import asyncio
import os
from collections.abc import Callable
from threading import Thread
from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.metrics._internal import _ProxyMeterProvider

from app import __version__
from app.core.database.pool import PoolNumbers
from app.core.errors import StartupError

SWITCH: Final = "FASTAPI_OTEL_AUTO_CONFIGURE"
_FLUSH_TIME: Final = 1  # seconds; as long as the connections to the database may take to close
_POOL: Final = {"db.client.connection.pool.name": "tasks-api"}


def is_on() -> bool:
    """Returns whether the service exports telemetry itself. Raises StartupError unless a switch is true or false."""
    return _flag(SWITCH) and not _flag("OTEL_SDK_DISABLED")


def _flag(name: str) -> bool:
    value = os.environ.get(name, "").lower()
    if value not in ("true", "false", ""):  # the SDK would take it for false
        raise StartupError(f"{name}: must be true or false")
    return value == "true"


def check(workers: int) -> None:
    """Raises StartupError for what would keep telemetry that is on from being exported."""
    if is_on():
        try:
            from app.core import exporters  # noqa: PLC0415  # takes half a second
        except ImportError:
            raise StartupError(
                f"{SWITCH}: needs the packages of requirements-otel.txt, see docs/telemetry.md"
            ) from None
        exporters.check(workers)


def start() -> None:
    """Start to export if telemetry is on."""
    if is_on():
        from app.core import exporters  # noqa: PLC0415  # see above

        exporters.start()


def is_collected() -> bool:
    """Returns whether anything is collected, also by providers of others."""
    return is_on() or has_tracers() or has_meters()


def has_tracers() -> bool:
    """Returns whether somebody has set the global provider of tracers."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def has_meters() -> bool:
    """Returns whether somebody has set the global provider of meters."""
    return not isinstance(metrics.get_meter_provider(), _ProxyMeterProvider)


def observe_pool(numbers: Callable[[], PoolNumbers]) -> None:
    """Report the numbers of the connection pool, which another thread reads."""

    def count(_: CallbackOptions) -> list[Observation]:
        states = {"used": numbers().used, "idle": numbers().idle}
        return [Observation(value, _POOL | {"db.client.connection.state": state}) for state, value in states.items()]

    observe = metrics.get_meter("app", __version__).create_observable_up_down_counter
    observe("db.client.connection.count", [count], "{connection}", "Open connections by state.")
    size = [lambda _: [Observation(numbers().size, _POOL)]]
    observe("db.client.connection.max", size, "{connection}", "DATABASE_POOL_SIZE.")
    pending = [lambda _: [Observation(numbers().pending, _POOL)]]
    observe("db.client.connection.pending_requests", pending, "{request}", "Requests that wait for a connection.")


def observe_keys(age: Callable[[], float | None]) -> None:
    """Report the age of the issuer's keys in seconds. None while there are none."""
    ages = [lambda _: [Observation(seconds)] if (seconds := age()) is not None else []]
    gauge = metrics.get_meter("app", __version__).create_observable_gauge
    gauge("tasks_api.keys.age", ages, "s", "Time since the keys of AUTH_JWKS_URL were fetched.")


def span_ids() -> dict[str, str]:
    """Returns `trace_id` and `span_id` of the current span, empty without one."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}


async def flush() -> None:
    """Export what is left. A collector that does not answer delays the end by `_FLUSH_TIME` at most."""
    flushes = [getattr(get(), "force_flush", None) for get in (trace.get_tracer_provider, metrics.get_meter_provider)]
    threads = [Thread(target=each, daemon=True) for each in flushes if each]
    for thread in threads:
        thread.start()
    await asyncio.gather(*(asyncio.to_thread(thread.join, _FLUSH_TIME) for thread in threads))

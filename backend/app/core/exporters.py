"""Exports traces and metrics by the standard variables of OpenTelemetry: over OTLP, or as a page for Prometheus.

FastAPI could do the first itself. It would only warn about a wrong value, could end later than SHUTDOWN_TIMEOUT, and
refuses Prometheus (decision 46).
"""

import logging
import os
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import start_http_server
from requests import Session

from app import __version__
from app.core.errors import StartupError
from app.core.telemetry import SWITCH

# Pattern of the name, pattern of the value, sentence. The SDK would only log most of these, with a default instead.
_RULES: Final = (
    (r"EXPORTER_OTLP_(\w+_)?PROTOCOL", r"http/protobuf", "must be http/protobuf; collectors have port 4318 for it"),
    (
        r"EXPORTER_OTLP_(\w+_)?ENDPOINT",
        r"https?://([^\s/?#@]+@)?([\w.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?([/?]\S*)?",
        "must be a URL such as http://collector:4318",
    ),
    (
        r"EXPORTER_OTLP_(\w+_)?HEADERS",  # the SDK would log a wrong one, which may be a secret
        r"(\s*[\w!#$%&'*+.^`|~-]+\s*=[^\",;\\]*(,(?!$)|$))+",
        "must be name=value, with commas between several, and values percent-encoded",
    ),
    (r"RESOURCE_ATTRIBUTES", r"(\s*[^\s=,]+\s*=[^,]*(,(?!$)|$))+", "must be name=value, with commas between several"),
    (r"EXPORTER_OTLP_(\w+_)?COMPRESSION", r"none|gzip|deflate", "must be none, gzip or deflate"),
    (r"TRACES_EXPORTER", r"otlp|none", "must be otlp or none"),
    (r"METRICS_EXPORTER", r"((otlp|prometheus)(,(?!$)|$))+|none", "must be otlp, prometheus, otlp,prometheus or none"),
    (r"TRACES_SAMPLER", r"(parentbased_)?(always_on|always_off|traceidratio)", "is not the name of a sampler"),
    (r"TRACES_SAMPLER_ARG", r"0?\.[0-9]+|[01](\.0*)?", "must be a number from 0 to 1"),
    (
        r"BSP_\w+|METRIC_EXPORT_\w+|EXPORTER_OTLP_(\w+_)?TIMEOUT|EXPORTER_PROMETHEUS_PORT|\w+_LIMIT",
        r"[1-9][0-9]{0,8}",
        "must be a whole number above 0",
    ),
)
_NOISY: Final = ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal")  # log each attempt, and dropped spans

_logger = logging.getLogger(__name__)


def check(workers: int) -> None:
    """Raises StartupError with one line for each variable with a wrong value."""
    problems = [*_wrong_values()]
    if "prometheus" in _exporters("METRICS") and workers > 1:
        problems.append("OTEL_METRICS_EXPORTER: prometheus needs WEB_CONCURRENCY=1; use otlp, or several replicas")
    if not (_exporters("TRACES") or _exporters("METRICS")):
        problems.append(f"{SWITCH}: needs OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_METRICS_EXPORTER=prometheus beside it")
    if problems:
        raise StartupError("\n".join(problems))


def _wrong_values() -> Iterator[str]:
    for name, value in sorted(os.environ.items()):
        for names, values, sentence in _RULES:
            if value and re.fullmatch(f"OTEL_({names})", name) and not re.fullmatch(values, value, re.IGNORECASE):
                yield f"{name}: {sentence}"


def _exporters(signal: str) -> set[str]:
    """Returns the names of the exporters. As with FastAPI, OTLP needs an endpoint."""
    named = {*(os.environ.get(f"OTEL_{signal}_EXPORTER") or "otlp").lower().split(",")} - {"none"}
    endpoints = (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return named if any(map(os.environ.get, endpoints)) else named - {"otlp"}


@cache  # a process has one provider of each kind
def start() -> None:
    """Set the global providers, which FastAPI uses. Raises StartupError."""
    defaults = Resource({"service.name": "tasks-api", "service.version": __version__})
    resource = Resource.create().merge(defaults).merge(OTELResourceDetector().detect())
    try:
        readers = [*_readers()]
        if "otlp" in _exporters("TRACES"):
            tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
            tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(session=NotedSession("traces"))))
            trace.set_tracer_provider(tracers)
    except ValueError as error:  # two numbers that contradict each other
        raise StartupError(f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE: {error}") from None
    if readers:
        metrics.set_meter_provider(MeterProvider(readers, resource, shutdown_on_exit=False))
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _readers() -> Iterator[MetricReader]:
    if "otlp" in _exporters("METRICS"):
        yield PeriodicExportingMetricReader(OTLPMetricExporter(session=NotedSession("metrics")))
    if "prometheus" in _exporters("METRICS"):
        _serve_metrics()
        yield PrometheusMetricReader()


def _serve_metrics() -> None:
    """Serve the page on a port of its own, which Prometheus reaches and clients do not."""
    host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST") or "localhost"
    port = os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT") or "9464"
    try:
        start_http_server(int(port), host)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", error)
        raise StartupError(f"OTEL_EXPORTER_PROMETHEUS_PORT: {port} of {host} cannot be used: {reason}") from None


class NotedSession(Session):
    """Logs once that exports fail, and that they succeed again. One failed attempt may be a stale connection."""

    def __init__(self, signal: str) -> None:
        super().__init__()
        self._signal = signal
        self._last: str | None = ""  # the reason of the last failure; None for a success
        self._logged: str | None = ""

    def send(self, *args: Any, **options: Any) -> Any:
        """Send the export and note its outcome."""
        try:
            reply = super().send(*args, **options)
        except OSError as error:  # requests raises no other; its text has the endpoint
            self._note(type(error).__name__)
            raise
        self._note(None if reply.ok else f"status {reply.status_code}")
        return reply

    def _note(self, reason: str | None) -> None:
        if reason != self._logged and reason in (self._last, None):
            self._logged = reason
            if reason:
                _logger.warning("%s not exported: %s", self._signal, reason)
            else:
                _logger.info("%s exported", self._signal)
        self._last = reason

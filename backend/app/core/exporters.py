"""Exports traces and metrics by the standard variables of OpenTelemetry: over OTLP, or as a page for Prometheus.

FastAPI could export over OTLP itself, but it would only warn about a wrong value, could end after SHUTDOWN_TIMEOUT, and
refuses Prometheus (decision 46).
"""

import logging
import os
import re
from collections.abc import Iterator
from functools import cache
from http import HTTPStatus
from typing import Any, Final

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http import metric_exporter, trace_exporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk import _shared_internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import start_http_server
from requests import Response, Session, TooManyRedirects

from app import __version__
from app.core.errors import StartupError
from app.core.telemetry import SWITCH, has_meters, has_tracers

# Pattern of the name, pattern of the value, sentence. The SDK ignores these values, or logs one that may be a secret.
_RULES: Final = (
    (r"EXPORTER_OTLP_(\w+_)?PROTOCOL", r"http/protobuf", "must be http/protobuf; collectors have port 4318 for it"),
    (r"EXPORTER_OTLP_(\w+_)?ENDPOINT", r"https?://[^\s/]\S*", "must be a URL such as http://collector:4318"),
    (
        r"EXPORTER_OTLP_(\w+_)?HEADERS",
        r"(\s*[A-Z0-9_!#$%&'*+.^`|~-]+\s*=[\t !#-+\--:<-\[\]-~]*(,(?!$)|$))+",
        "must be name=value, with commas between several, and values percent-encoded",
    ),
    (r"METRICS_EXEMPLAR_FILTER", r"always_on|always_off|trace_based", "must be always_on, always_off or trace_based"),
    (r"RESOURCE_ATTRIBUTES", r"(\s*[^\s=,]+\s*=[^,]*(,(?!$)|$))+", "must be name=value, with commas between several"),
    (r"TRACES_EXPORTER", r"otlp|none", "must be otlp or none"),
    (
        r"METRICS_EXPORTER",
        r"(otlp,)?prometheus|(prometheus,)?otlp|none",
        "must be otlp, prometheus, otlp,prometheus or none",
    ),
)
_LENGTH_MAX: Final = "256"  # characters of an attribute: a Host has up to 32 KiB, and thousands of spans may wait

_logged_in: Final[dict[tuple[str, str], float]] = {}  # the hour of the last message of each kind


def check(workers: int) -> None:
    """Raises StartupError with one line for each variable with a wrong value."""
    problems = [
        f"{name}: {sentence}"
        for name, value in sorted(os.environ.items())
        for names, values, sentence in _RULES
        if value and re.fullmatch(f"OTEL_({names})", name) and not re.fullmatch(values, value, re.IGNORECASE)
    ]
    if "prometheus" in _exporters("METRICS") and workers > 1:
        problems.append("OTEL_METRICS_EXPORTER: prometheus needs WEB_CONCURRENCY=1; use otlp, or several replicas")
    for signal in ("TRACES", "METRICS"):
        named = os.environ.get(f"OTEL_{signal}_EXPORTER", "").lower().split(",")
        if "otlp" in named and "otlp" not in _exporters(signal):
            problems.append(f"OTEL_{signal}_EXPORTER: otlp needs OTEL_EXPORTER_OTLP_ENDPOINT beside it")
    if not (_exporters("TRACES") or _exporters("METRICS")):
        problems.append(f"{SWITCH}: needs OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_METRICS_EXPORTER=prometheus beside it")
    if problems:
        raise StartupError("\n".join(problems))


def _exporters(signal: str) -> set[str]:
    """Returns the names of the exporters. As with FastAPI, OTLP needs an endpoint."""
    named = {*(os.environ.get(f"OTEL_{signal}_EXPORTER") or "otlp").lower().split(",")} - {"none"}
    endpoints = (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return named if any(map(os.environ.get, endpoints)) else named - {"otlp"}


@cache  # a process has one provider of each kind
def start() -> None:
    """Add exporters to the global providers, which FastAPI uses. Set those that nobody has set. Raises StartupError."""
    defaults = Resource({"service.name": "tasks-api", "service.version": __version__})
    resource = Resource.create().merge(defaults).merge(OTELResourceDetector().detect())
    os.environ.setdefault("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", _LENGTH_MAX)
    logging.getLogger("opentelemetry.attributes").setLevel(logging.ERROR)  # logs each text that is cut
    for module in (trace_exporter, metric_exporter, _shared_internal):
        logging.getLogger(module.__name__).addFilter(once_an_hour)
    try:
        readers = [*_readers()]
        if "otlp" in _exporters("TRACES"):
            spans = BatchSpanProcessor(trace_exporter.OTLPSpanExporter(session=otlp_session()))
            tracers: Any = trace.get_tracer_provider()
            if not has_tracers():
                tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
                trace.set_tracer_provider(tracers)
            tracers.add_span_processor(spans)
        meters: Any = metrics.get_meter_provider()
        if has_meters():
            for reader in readers:
                meters.add_metric_reader(reader)
        elif readers:
            metrics.set_meter_provider(MeterProvider(readers, resource, shutdown_on_exit=False))
    except ValueError as error:
        raise StartupError(f"OpenTelemetry refuses a variable: {error}") from None
    except AttributeError:  # it is not of the SDK
        raise StartupError(f"{SWITCH}: a provider that other code has set takes no exporter") from None


def _readers() -> Iterator[MetricReader]:
    if "otlp" in _exporters("METRICS"):
        yield PeriodicExportingMetricReader(metric_exporter.OTLPMetricExporter(session=otlp_session()))
    if "prometheus" in _exporters("METRICS"):
        _serve_metrics()
        yield PrometheusMetricReader()


def otlp_session() -> Session:
    """Returns a session for which a redirect is a failed export. The SDK does not follow it, and would call it done."""
    session = Session()
    session.hooks["response"] = [_refuse_redirect]
    return session


def _refuse_redirect(reply: Response, **_: Any) -> None:
    if reply.status_code >= HTTPStatus.MULTIPLE_CHOICES and reply.ok:
        reply.close()
        raise TooManyRedirects


def _serve_metrics() -> None:
    """Serve the page on a port of its own, which Prometheus reaches and clients do not."""
    host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST") or "localhost"
    port = os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT") or "9464"
    try:
        start_http_server(int(port), host)
    except (OSError, OverflowError, ValueError) as error:
        raise StartupError(f"OTEL_EXPORTER_PROMETHEUS_PORT: {port} of {host} cannot be used: {error}") from None


def once_an_hour(record: logging.LogRecord) -> bool:
    """Returns whether to log a message of the SDK, which logs each failed attempt to reach the collector.

    Replaces an exception by its class: the text quotes the endpoint, which may contain a key.
    """
    kind, hour = (record.name, record.msg), record.created // 3600
    is_new = _logged_in.get(kind) != hour
    _logged_in[kind] = hour
    record.exc_info = record.exc_text = None
    record.args = tuple(type(each).__name__ if isinstance(each, Exception) else each for each in record.args or ())
    return is_new

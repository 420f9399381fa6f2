"""The switch of telemetry, values that cannot work, and an end without an answer."""

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import Mock

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import NoOpTracerProvider

from app.core import exporters, telemetry
from app.core.config import load_settings
from app.core.errors import StartupError
from app.core.logging import JsonFormatter
from app.main import create_app
from tests.collector import Collector
from tests.support import make_settings

ON: Final = {"FASTAPI_OTEL_AUTO_CONFIGURE": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
DSN: Final = "postgresql://localhost/tasks"
NOWHERE: Final = (
    "FASTAPI_OTEL_AUTO_CONFIGURE: needs OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_METRICS_EXPORTER=prometheus beside it"
)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Each test changes a copy, also through `.env`."""
    kept = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    Path(".env").touch()
    yield
    os.environ.clear()
    os.environ.update(kept)


def refusal(**variables: str) -> str:
    """The sentence with which a start with telemetry ends."""
    os.environ.update(ON | variables)
    with pytest.raises(StartupError) as caught:
        load_settings()
    return str(caught.value)


class TestValues:
    @pytest.mark.parametrize(
        ("name", "value", "sentence"),
        [
            ("FASTAPI_OTEL_AUTO_CONFIGURE", "on", "must be true or false"),
            ("OTEL_SDK_DISABLED", "1", "must be true or false"),
            ("OTEL_RESOURCE_ATTRIBUTES", "team=a,b", "must be name=value, with commas between several"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "must be http/protobuf; collectors have port 4318 for it"),
            ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json", "must be http/protobuf; "),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "must be a URL such as http://collector:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://", "must be a URL such as http://collector:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Bearer s3cret", "must be name=value, with commas between several, and "),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", 'a="b"', "must be name=value, "),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3crét", "must be name=value, "),
            ("OTEL_METRICS_EXEMPLAR_FILTER", "sometimes", "must be always_on, always_off or trace_based"),
            ("OTEL_TRACES_EXPORTER", "console", "must be otlp or none"),
            ("OTEL_METRICS_EXPORTER", "otlp,console", "must be otlp, prometheus, otlp,prometheus or none"),
            ("OTEL_METRICS_EXPORTER", "otlp,", "must be otlp, prometheus, otlp,prometheus or none"),
        ],
    )
    def test_a_value_that_cannot_work_is_one_sentence_at_the_start(self, name: str, value: str, sentence: str) -> None:
        assert refusal(**{name: value}).startswith(f"{name}: {sentence}")

    @pytest.mark.parametrize(
        "variables",
        [
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://key:secret@[::1]:4318/base/"},
            {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b, Authorization=Bearer a==", "OTEL_TRACES_EXPORTER": "OTLP"},
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_METRICS_EXPORTER": "none"},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_METRICS_EXPORTER": "prometheus"},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_SDK_DISABLED": "true"},
            {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a b, team=c%2Cd"},
        ],
    )
    def test_usual_values_are_accepted(self, variables: dict[str, str]) -> None:
        os.environ.update(ON | variables)

        assert load_settings()

    def test_several_workers_cannot_share_the_port_of_prometheus(self) -> None:
        sentence = "OTEL_METRICS_EXPORTER: prometheus needs WEB_CONCURRENCY=1; use otlp, or several replicas"
        assert refusal(OTEL_METRICS_EXPORTER="prometheus", WEB_CONCURRENCY="2") == sentence

    def test_telemetry_that_goes_nowhere_is_refused(self) -> None:
        assert refusal(OTEL_EXPORTER_OTLP_ENDPOINT="") == NOWHERE
        assert refusal(OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none") == NOWHERE

    def test_without_its_packages_the_start_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr("app.core.exporters")
        monkeypatch.delitem(sys.modules, "app.core.exporters")
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

        sentence = "FASTAPI_OTEL_AUTO_CONFIGURE: needs the packages of requirements-otel.txt, see docs/telemetry.md"
        assert refusal() == sentence

    def test_otlp_that_is_asked_for_needs_an_endpoint_also_beside_prometheus(self) -> None:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_METRICS_EXPORTER": "otlp,prometheus"}
        sentence = "OTEL_METRICS_EXPORTER: otlp needs OTEL_EXPORTER_OTLP_ENDPOINT beside it"
        assert refusal(**variables) == sentence

    @pytest.mark.parametrize("port", ["taken", "99999", "no"])
    def test_a_port_that_prometheus_cannot_have_is_one_sentence(self, port: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = port.replace("taken", str(taken.getsockname()[1]))
            os.environ.update(OTEL_METRICS_EXPORTER="prometheus", OTEL_EXPORTER_PROMETHEUS_PORT=port)
            os.environ.update(OTEL_EXPORTER_PROMETHEUS_HOST="127.0.0.1")
            with pytest.raises(StartupError, match=f"_PROMETHEUS_PORT: {port} of 127.0.0.1 cannot be used: "):
                exporters.start()

    @pytest.mark.parametrize("getter", ["trace.get_tracer_provider", "metrics.get_meter_provider"])
    def test_a_provider_of_others_that_takes_no_exporter_is_one_sentence(
        self, monkeypatch: pytest.MonkeyPatch, getter: str
    ) -> None:
        os.environ.update(ON)
        monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", lambda tracers: tracers.shutdown())
        monkeypatch.setattr(f"opentelemetry.{getter}", object)
        with pytest.raises(StartupError, match="a provider that other code has set takes no exporter"):
            exporters.start.__wrapped__()

    @pytest.mark.parametrize("name", ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"])
    def test_a_number_that_the_sdk_refuses_is_one_sentence(self, name: str) -> None:
        os.environ.update(ON, OTEL_METRICS_EXPORTER="none")
        os.environ[name] = "-1"
        with pytest.raises(StartupError, match=r"^OpenTelemetry refuses a variable: .* must be a "):
            exporters.start()


class TestSwitch:
    def test_variables_without_the_switch_are_a_warning_also_in_the_env_file(self) -> None:
        os.environ["OTEL_SERVICE_NAME"] = "mine"
        Path(".env").write_text("OTEL_TRACES_SAMPLER=always_off\n")

        warning = "without effect, because FASTAPI_OTEL_AUTO_CONFIGURE is not true: "
        assert load_settings().warnings == [f"{warning}OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER"]
        os.environ.update(ON, OTEL_SDK_DISABLED="true")
        assert load_settings().warnings == []

    def test_the_switch_may_be_in_the_env_file_and_the_environment_takes_precedence(self) -> None:
        Path(".env").write_text("FASTAPI_OTEL_AUTO_CONFIGURE=true\nOTEL_EXPORTER_OTLP_ENDPOINT=http://a\n")
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "'http://b'"

        assert load_settings().warnings == []
        assert (telemetry.is_on(), os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]) == (True, "http://b")

    @pytest.mark.parametrize(
        ("getter", "provider"),
        [("trace.get_tracer_provider", NoOpTracerProvider), ("metrics.get_meter_provider", NoOpMeterProvider)],
    )
    def test_a_provider_of_others_that_is_set_before_the_application_starts_is_used(
        self, monkeypatch: pytest.MonkeyPatch, getter: str, provider: type
    ) -> None:
        silent, observed = create_app(make_settings(DSN)), create_app(make_settings(DSN))
        silent.build_middleware_stack()
        assert (silent._telemetry["metrics"], telemetry.is_collected()) == (False, False)  # noqa: SLF001  # no public name

        monkeypatch.setattr(f"opentelemetry.{getter}", provider)
        observed.build_middleware_stack()
        assert (observed._telemetry["metrics"], telemetry.is_collected()) == (True, True)  # noqa: SLF001


class TestExport:
    @pytest.mark.parametrize(
        ("variables", "kind"),
        [
            ({"OTEL_METRICS_EXPORTER": "none"}, TracerProvider),
            ({"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "prometheus"}, MeterProvider),
        ],
    )
    def test_a_signal_that_is_not_exported_is_not_collected(
        self, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], kind: type
    ) -> None:
        providers: list[Any] = []
        monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", providers.append)
        monkeypatch.setattr("opentelemetry.metrics.set_meter_provider", providers.append)
        monkeypatch.setattr(exporters, "start_http_server", lambda *_: None)
        os.environ.update(ON | variables)

        exporters.start.__wrapped__()

        [provider] = providers
        provider.shutdown()
        assert type(provider) is kind

    def test_providers_of_others_get_the_exporters_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tracers, meters = TracerProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False)
        monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: tracers)
        monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", lambda: meters)
        added = Mock()
        monkeypatch.setattr(tracers, "add_span_processor", added.spans)
        monkeypatch.setattr(meters, "add_metric_reader", added.metrics)
        os.environ.update(ON)

        exporters.start.__wrapped__()

        for call in added.mock_calls:
            call.args[0].shutdown()
        assert [name for name, *_ in added.mock_calls] == ["spans", "metrics"]

    def test_an_export_that_is_redirected_has_failed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with Collector() as collector:
            collector.status = 308
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            exporter = OTLPSpanExporter(session=exporters.otlp_session())

            assert exporter.export([]) is SpanExportResult.FAILURE
            exporter.shutdown()  # type: ignore[no-untyped-call]

    def test_a_collector_that_is_down_is_logged_once_an_hour_without_its_url(self) -> None:
        error = OSError("http://collector/key")
        cause = (OSError, error, None)
        records = [logging.LogRecord("", 40, "", 0, "Failed: %s", (error,), cause) for _ in range(3)]
        for record, seconds in zip(records, (0, 3599, 3600), strict=True):
            record.created = seconds

        shown = [JsonFormatter().format(record) for record in records if exporters.once_an_hour(record)]
        assert [json.loads(line)["message"] for line in shown] == ["Failed: OSError"] * 2
        assert "key" not in "".join(shown)

    async def test_a_collector_that_does_not_answer_delays_the_end_only_for_a_moment(
        self,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        answered = Event()
        provider = SimpleNamespace(force_flush=answered.wait)
        monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
        monkeypatch.setattr("app.core.telemetry._FLUSH_TIME", 0.01)

        async with asyncio.timeout(30):
            await telemetry.flush()
        answered.set()

"""Traces and metrics of a running service, as a collector and Prometheus get them."""

import asyncio
import re
import secrets
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider

from app import __version__
from app.core.config import Settings
from tests.agents import ERAS, call
from tests.collector import Collector, values
from tests.issuer import Issuer, key_set
from tests.servers import free_port
from tests.service import Service
from tests.support import exchange, serving, until
from tests.tokens import carrying, claims_of, signer

PAGE: Final = Path(__file__).parents[1] / "docs/telemetry.md"
USER: Final = "zq9user"
WORD: Final = f"zq9{secrets.token_hex(8)}"
TASKS: Final = f"/api/{USER}/tasks"
LIST: Final = "/api/{user_id}/tasks"
ONE: Final = "/api/{user_id}/tasks/{task_id}"
TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
PARENT: Final = "b7ad6b7169203331"
METHODS: Final = ("GET", "POST", "DELETE", "PUT", "OPTIONS", "_OTHER")
REFUSED: Final = "Failed to export spans batch code: 401, reason: Unauthorized"
CALLED: Final = ("add_task", "list_tasks")  # by agents
KEYS: Final = ("http.route", "http.response.status_code", "error.type")


class Run(NamedTuple):
    """What has come out of a service with telemetry, from its start until its end."""

    collector: Collector
    service: Service
    page: str  # that Prometheus scrapes
    public: int  # the status of its path on the public port

    def span(self, name: str, status: int) -> Span:
        spans = [each for each in self.collector.spans if each.name == name]
        [span] = [each for each in spans if values(each.attributes)["http.response.status_code"] == status]
        return span

    def metric(self, name: str) -> dict[str, int]:
        """The values of a metric by the last of its attributes."""
        points = self.collector.metrics[name]
        return {[*values(each.attributes).values()][-1]: each.as_int for each in points}


@pytest.fixture(scope="module")
def run(dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return asyncio.run(observe(dsn, tmp_path_factory.mktemp("observed")))


async def observe(dsn: str, directory: Path) -> Run:
    scraped = free_port()
    (directory / ".env").write_text('OTEL_SERVICE_NAME="tasks of mine"\nOTEL_METRIC_EXPORT_INTERVAL=3600000\n')
    with Collector() as collector:
        async with Issuer(key_set(signer("EdDSA").jwk)) as issuer:
            settings = {
                "DATABASE_URL": dsn,
                "AUTH_JWKS_URL": issuer.url,
                **dict.fromkeys(("AUTH_ISSUER", "AUTH_AUDIENCE"), "unchecked"),
                "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
                "OTEL_EXPORTER_OTLP_HEADERS": "api-key=s3cret",
                "OTEL_BSP_SCHEDULE_DELAY": "20",
                "OTEL_METRICS_EXPORTER": "otlp,prometheus",
                "OTEL_EXPORTER_PROMETHEUS_PORT": str(scraped),
                "OTEL_LOGS_EXPORTER": "otlp",
                "LOG_LEVEL": "debug",
                "MCP": "on",
            }
            with Service(directory, settings, module="tests.observed") as service:
                page, public = await use(service, collector, f"http://localhost:{scraped}/metrics")
                assert await asyncio.to_thread(service.end) == 0
                return Run(collector, service, page, public)


async def use(service: Service, collector: Collector, page: str) -> tuple[str, int]:
    collector.status = 401  # for the first exports
    await asyncio.to_thread(service.ready)
    headers = carrying(signer("EdDSA").issue(claims_of(USER)))
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30) as client:
        await until(lambda: refused(client, service))
        collector.status = 200
        parent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        task = (await client.post(TASKS, json={"title": WORD}, headers=parent)).json()
        await client.get(f"{TASKS}?search={WORD}&cursor={WORD}")
        await client.get(TASKS, params={"search": WORD})
        await client.delete(f"{TASKS}/{task['id']}")
        for era, tool in zip(ERAS, CALLED, strict=True):
            fields, message = call(era, tool, title=WORD)
            await client.post("/mcp", json=message, headers=fields)
        await client.get(TASKS, headers={"Authorization": "Basic no"})
        await client.get(f"/api/{USER}/nothing/{WORD}")
        await client.put("/health/live", headers={"Host": "a" * 30_000})
        await client.options(TASKS, headers={"Origin": "http://a.example", "Access-Control-Request-Method": "GET"})
        await client.get(f"/health/live?{WORD}={WORD}")
        await exchange(client.base_url, b"nonsense\r\n\r\n")
        public = (await client.get("/metrics")).status_code
        return (await client.get(page)).text, public


async def refused(client: httpx.AsyncClient, service: Service) -> bool:
    """Whether the log says that the collector has refused a span, which a request leads to."""
    await client.get("/docs")
    return REFUSED in service.messages


class TestTraces:
    @pytest.mark.parametrize(
        ("name", "status"),
        [
            (f"POST {LIST}", 201),
            (f"GET {LIST}", 200),
            (f"GET {LIST}", 422),
            (f"GET {LIST}", 401),  # refused before a route is chosen
            ("GET /health/live", 200),  # served by FastAPI's router
            ("PUT /health/live", 405),
            *((f"POST /mcp/{tool}", 200) for tool in CALLED),
        ],
    )
    def test_a_span_has_the_route_in_its_name_and_attributes(self, run: Run, name: str, status: int) -> None:
        span = run.span(name, status)

        method, route = name.split()
        attributes = values(span.attributes)
        given = {key: attributes[key] for key in ("http.request.method", "http.route", "url.path")}
        assert given == {"http.request.method": method, "http.route": route, "url.path": route}
        assert "error.type" not in attributes
        assert span.kind == Span.SPAN_KIND_SERVER

    def test_without_a_route_a_span_has_only_the_method(self, run: Run) -> None:
        requests = [span for span in run.collector.spans if span.kind == Span.SPAN_KIND_SERVER]
        spans = [(span.name, values(span.attributes)) for span in requests]
        without = [(name, attributes) for name, attributes in spans if "http.route" not in attributes]

        statuses = {(name, attributes["http.response.status_code"]) for name, attributes in without}
        assert statuses == {("GET", 404), ("OPTIONS", 400), ("HTTP", 400)}
        assert {attributes["url.path"] for _, attributes in without} == {"REDACTED"}

    def test_a_defect_has_its_type_and_the_ids_of_its_span_are_in_both_lines_of_the_log(self, run: Run) -> None:
        span = run.span(f"DELETE {ONE}", 500)

        assert values(span.attributes)["error.type"] == "LookupError"
        assert span.status.code == Status.STATUS_CODE_ERROR
        lines = [line for line in run.service.lines if line.get("span_id") == span.span_id.hex()]
        assert [line["level"] for line in lines] == ["ERROR", "WARNING"]
        assert {line["trace_id"] for line in lines} == {span.trace_id.hex()}

    def test_a_long_text_of_a_client_is_cut_because_many_spans_may_wait(self, run: Run) -> None:
        assert values(run.span("PUT /health/live", 405).attributes)["server.address"] == "a" * 256

    def test_the_trace_of_the_client_is_continued(self, run: Run) -> None:
        span = run.span(f"POST {LIST}", 201)

        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)

    def test_nothing_of_the_user_leaves_the_service(self, run: Run) -> None:
        assert b"REDACTED" in run.collector.content
        assert [secret for secret in ("zq9", "s3cret") if secret.encode() in run.collector.content] == []
        assert "zq9" not in run.page

    def test_variables_of_the_environment_and_of_the_env_file_have_an_effect(self, run: Run) -> None:
        resource = run.collector.resource

        assert (resource["service.name"], resource["service.version"]) == ("tasks of mine", __version__)
        assert run.collector.headers["api-key"] == "s3cret"


class TestMetrics:
    """They are exported at the end, because the interval is an hour."""

    def test_requests_are_counted_by_route_and_status(self, run: Run) -> None:
        points = run.collector.metrics["http.server.request.duration"]
        counts = {tuple(values(each.attributes).get(key) for key in KEYS): each.count for each in points}

        assert counts[LIST, 401, None] == counts[LIST, 422, None] == 1
        assert counts[ONE, 500, "LookupError"] == 1
        assert [counts[f"/mcp/{tool}", 200, None] for tool in CALLED] == [1, 1]
        assert run.metric("http.server.active_requests") == dict.fromkeys(METHODS, 0)

    def test_the_pool_and_the_age_of_the_keys_are_measured(self, run: Run) -> None:
        assert run.metric("db.client.connection.count") == {"used": 0, "idle": 1}
        assert run.metric("db.client.connection.max") == {"tasks-api": 10}
        assert run.metric("db.client.connection.pending_requests") == {"tasks-api": 0}
        [age] = run.collector.metrics["tasks_api.keys.age"]
        assert 0 < age.as_double < 60

    def test_prometheus_gets_the_same_from_a_port_that_clients_do_not_reach(self, run: Run) -> None:
        lines = run.page.splitlines()

        assert run.public == 404
        [count] = [
            line for line in lines if "duration_seconds_count" in line and f'"{LIST}"' in line and '"201"' in line
        ]
        assert count.endswith(" 1.0")
        assert [line.split()[1] for line in lines if line.startswith("db_client_connection_max")] == ["10.0"]
        assert any(line.startswith("tasks_api_keys_age_seconds{") for line in lines)


async def test_a_copy_may_exclude_requests(settings: Settings) -> None:
    def exclude(app: FastAPI) -> None:
        options: Any = app._telemetry  # noqa: SLF001  # FastAPI has no public name for it
        options |= {"tracing": True, "tracer_provider": TracerProvider(), "exclude": lambda _: True}

    async with serving(settings, exclude) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/health/live")).status_code == 200


def test_the_page_about_telemetry_lists_each_metric_and_each_attribute_of_a_request(run: Run) -> None:
    rows = re.findall(r"^\| (`\w+\..*?) \|", PAGE.read_text(), re.MULTILINE)
    requests = [span for span in run.collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    attributes = {name for span in requests for name in values(span.attributes)}

    assert {*re.findall(r"`([^`]+)`", " ".join(rows))} == attributes | run.collector.metrics.keys()


def test_the_log_says_once_that_exports_fail_and_what_has_no_effect(run: Run) -> None:
    told = [line for line in run.service.lines if "method" not in line and "exc_info" not in line]

    libraries = ("opentelemetry", "fastapi", "urllib3")
    assert [line["message"] for line in told if line["logger"].startswith(libraries)] == [REFUSED]
    ignored = "without effect, because the log is only written to stdout: OTEL_LOGS_EXPORTER"
    assert ignored in [line["message"] for line in told]
    assert run.service.stderr == ""

"""An OTLP collector on a loopback address, which keeps what it gets."""

from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


def values(attributes: Iterable[Any]) -> dict[str, Any]:
    """The attributes by name."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


class Collector:
    """Answers with `status`. Keeps the headers, the attributes of the service, the spans, and the newest metrics."""

    def __init__(self) -> None:
        self.status = 200
        self.content = b""
        self.headers: dict[str, str] = {}
        self.resource: dict[str, Any] = {}
        self.spans: list[Span] = []
        self.metrics: dict[str, list[Any]] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if collector.status == 200:
                    collector.headers |= self.headers
                    collector.keep(self.path, content)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.send_header("Location", "/elsewhere")  # of a redirect
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, args=[0.01]).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def keep(self, path: str, content: bytes) -> None:
        self.content += content
        if path == "/v1/traces":
            for traces in ExportTraceServiceRequest.FromString(content).resource_spans:
                self.resource = values(traces.resource.attributes)
                self.spans += [span for scope in traces.scope_spans for span in scope.spans]
        else:
            assert path == "/v1/metrics"
            for metrics in ExportMetricsServiceRequest.FromString(content).resource_metrics:
                assert values(metrics.resource.attributes)["service.instance.id"]
                for metric in (metric for scope in metrics.scope_metrics for metric in scope.metrics):
                    self.metrics[metric.name] = list(getattr(metric, metric.WhichOneof("data")).data_points)

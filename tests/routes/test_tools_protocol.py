"""`POST /mcp` as a part of this service: its form, its limits, its log line, its telemetry and its lifespan."""

import json
import logging
import subprocess
import sys
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any, Final
from unittest.mock import AsyncMock

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.config import Settings
from app.http.fast_lane import BODY_LIMIT, FastLane
from app.main import create_app
from app.routes.tools import TOOLS
from app.schemas.task import TaskResponse
from tests.agents import ERAS, Agent
from tests.http.support import problem_of
from tests.service import BACKEND
from tests.support import handling, serving, short, until

WORD: Final = "zq9word"
MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
PING: Final = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
NOTIFICATION: Final = {"jsonrpc": "2.0", "method": "notifications/initialized"}
MOST_CHARACTERS: Final = 2_400  # of the reply to tools/list: 600 tokens
MOST_CHARACTERS_OF_A_FIELD: Final = 300  # for each field beyond the seven


@pytest.fixture
def ada(agents: httpx.AsyncClient) -> Agent:
    return Agent(agents, "ada")


class Log(logging.Handler):
    """Keeps the lines of the service, and the warnings of every library."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("app.") or record.levelno >= logging.WARNING:
            self.lines.append(vars(record))


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    with handling(Log(), caplog) as log:
        yield log.lines


class TestMessage:
    @pytest.mark.parametrize(
        "message",
        [
            *([], [PING], [PING, PING], None, WORD, 1, {}, {WORD: WORD}),
            *({**PING, "id": wrong} for wrong in (None, 1.5, [WORD])),
            *({**PING, name: wrong} for name, wrong in (("jsonrpc", "1.0"), ("method", 1), ("params", [WORD]))),
            {"jsonrpc": "2.0", "id": 1, "result": {}},
        ],
        ids=short,
    )
    async def test_a_body_that_is_no_single_message_is_refused_and_not_quoted(
        self, agent: Agent, message: object
    ) -> None:
        refusal = await agent.post(message)

        problem_of(refusal, 422)
        assert WORD not in refusal.text
        assert "JSONRPC" not in refusal.text

    @pytest.mark.parametrize(
        "params",
        ["{", "[" * 500 + "]" * 500, '"\ud800"', r'"\ud800"', "\0", "9" * 5_000, "NaN", "-Infinity", '"\xff"', ""],
        ids=short,
    )
    async def test_a_body_that_is_not_json_is_refused(self, agent: Agent, params: str) -> None:
        content = f'{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{params}}}'

        refusal = await agent.post(content.encode("latin-1" if "\xff" in params else "utf-8", errors="surrogatepass"))

        assert problem_of(refusal, 400)["type"] == "urn:problem-type:malformed-body"

    async def test_other_forms_that_no_client_of_the_protocol_sends_are_refused(self, agent: Agent) -> None:
        listing = agent.message("tools/list", {})
        for sent, status in (
            ({"Content-Type": "text/plain"}, 415),
            ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
            ({"Content-Type": "application/vnd.api+json"}, 400),
            ({"Accept": "text/html"}, 406),
            ({"Accept": "text/event-stream"}, 406),
            ({"MCP-Protocol-Version": "1999-01-01"}, 400),
        ):
            assert (await agent.post(listing, **sent)).status_code == status
        for accepted in ({"Accept": "*/*"}, {"Mcp-Session-Id": WORD}, {"Last-Event-ID": "1"}):
            assert (await agent.post(listing, **accepted)).json()["id"] == 1

    async def test_a_byte_order_mark_is_ignored(self, agent: Agent) -> None:
        reply = await agent.post(BOM_UTF8 + json.dumps(agent.message("tools/list", {})).encode())

        assert "tools" in reply.json()["result"]

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_body_may_have_64_kib(self, agent: Agent, *, chunked: bool) -> None:
        async def parts(content: bytes) -> AsyncIterator[bytes]:
            for start in range(0, len(content), 10_000):
                yield content[start : start + 10_000]

        body = json.dumps(agent.message("tools/list", {}))
        for size, status in ((BODY_LIMIT, 200), (BODY_LIMIT + 1, 413)):
            content: Any = body.ljust(size).encode()
            headers = agent.headers("tools/list", {})
            reply = await agent.client.post("/mcp", content=parts(content) if chunked else content, headers=headers)
            assert reply.status_code == status

    async def test_an_answer_to_a_question_is_refused_at_once_because_no_tool_asks(self, agent: Agent) -> None:
        refusal = await agent.send("tools/call", name="list_tasks", arguments={}, inputResponses={WORD: [{}] * 10})

        detail = problem_of(refusal, 422)["detail"]
        assert "params: must not have inputResponses, because no tool asks for input" in detail

    async def test_a_notification_gets_no_answer_and_no_warning(
        self, agent: Agent, lines: list[dict[str, Any]]
    ) -> None:
        malformed: Any = {"params": {"_meta": WORD, "requestId": [WORD]}}
        for change in ({}, {"method": WORD}, {"params": {WORD: WORD}}, {"method": "notifications/cancelled"}):
            for message in (NOTIFICATION | change, NOTIFICATION | malformed | change):
                reply = await agent.post(message)
                assert (reply.status_code, reply.content) == (202, b"")

        assert {line["levelname"] for line in lines} == {"INFO"}

    @pytest.mark.parametrize("method", ["tools/lists", "resources/list", "tasks/list"])
    async def test_an_unknown_method_is_an_error_of_json_rpc(self, agent: Agent, method: str) -> None:
        reply = await agent.send(method)

        assert reply.json()["error"]["code"] == -32601
        assert reply.status_code == (404 if agent.era == ERAS[1] else 200)

    async def test_a_subscription_is_refused_at_once(self, ada: Agent) -> None:
        reply = await ada.send("subscriptions/listen", notifications={"toolsListChanged": True})

        assert (reply.status_code, reply.json()["error"]["code"]) == (404, -32601)

    @pytest.mark.parametrize("name", [WORD, "", "Add_task", "__class__"])
    async def test_an_unknown_tool_is_an_error_that_names_the_known_ones(
        self, agent: Agent, lines: list[dict[str, Any]], name: str
    ) -> None:
        reply = await agent.send("tools/call", name=name, arguments={})

        error = {"code": -32602, "message": f"Unknown tool. Known are: {', '.join(TOOLS)}."}
        assert reply.json()["error"] == error
        await until(lambda: lines)
        assert [(line["route"], line["problem"]) for line in lines] == [("/mcp", "route-not-found")]

    @pytest.mark.parametrize(
        "changed",
        [
            *({"Mcp-Name": "delete_task"}, {"Mcp-Name": ""}, {"Mcp-Method": "tools/list"}, {"Mcp-Method": ""}),
            {"MCP-Protocol-Version": "2027-01-01"},
        ],
        ids=short,
    )
    async def test_headers_that_contradict_the_body_are_refused(self, ada: Agent, changed: dict[str, str]) -> None:
        params = {"name": "add_task", "arguments": {"title": WORD}}

        reply = await ada.post(ada.message("tools/call", params), "tools/call", **{"Mcp-Name": "add_task"} | changed)

        assert (reply.status_code, reply.json()["error"]["code"]) == (400, -32020)

    @pytest.mark.parametrize("name", ["MCP-Protocol-Version", "Mcp-Method", "Authorization"])
    async def test_a_header_that_is_sent_twice_is_refused(self, ada: Agent, name: str) -> None:
        sent = [*ada.headers("tools/list", {}).items()]
        twice = [*sent, *((each, value) for each, value in sent if each == name)]

        reply = await ada.client.post("/mcp", json=ada.message("tools/list", {}), headers=twice)

        assert reply.status_code == (401 if name == "Authorization" else 400)

    async def test_each_revision_introduces_the_server_and_no_session_is_kept(self, agents: httpx.AsyncClient) -> None:
        hello = {"capabilities": {}, "clientInfo": {"name": "a", "version": "1"}}
        for era in ("2024-11-05", "2025-03-26", "2025-06-18", ERAS[0]):
            reply = await Agent(agents, "ada", era).send("initialize", protocolVersion=era, **hello)
            result = reply.json()["result"]
            assert (result["protocolVersion"], result["serverInfo"]["name"]) == (era, "tasks")
            assert "mcp-session-id" not in reply.headers
        result = (await Agent(agents, "ada").send("server/discover")).json()["result"]
        assert (result["supportedVersions"], [*result["capabilities"]]) == ([ERAS[1]], ["tools"])


class TestPath:
    @pytest.mark.parametrize("target", ["/mcp/", "//mcp", "//mcp//", "/mcp?x=1"])
    async def test_slashes_and_a_query_make_no_difference_and_nothing_redirects(self, ada: Agent, target: str) -> None:
        body, headers = ada.message("tools/list", {}), ada.headers("tools/list", {})

        reply = await ada.client.post("/", json=body, headers=headers, extensions={"target": target.encode()})

        assert (reply.status_code, "tools" in reply.json()["result"]) == (200, True)

    async def test_a_host_behind_a_proxy_is_served(self, agent: Agent) -> None:
        names = {"Host": "tasks.example.com:8443", "X-Forwarded-Host": "tasks.example.com", "Via": "1.1 proxy"}
        for others in ({}, {"Origin": "https://claude.example"}):
            assert (await agent.post(agent.message("tools/list", {}), **names | others)).status_code == 200

    @pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT", "PATCH", "OPTIONS"])
    async def test_every_other_method_is_refused_with_the_allowed_one(self, agent: Agent, method: str) -> None:
        reply = await agent.client.request(method, "/mcp", headers=agent.headers("tools/list", {}))

        assert (reply.status_code, reply.headers["Allow"]) == (405, "POST")


class TestReply:
    async def test_a_reply_has_the_headers_of_this_service(self, agent: Agent) -> None:
        reply = await agent.send("tools/list")

        assert reply.headers["Content-Type"] == "application/json"
        assert reply.headers["Cache-Control"] == "private, no-cache"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert len(reply.headers.get_list("X-Request-ID")) == len(reply.headers.get_list("Content-Length")) == 1

    async def test_the_list_of_the_tools_costs_a_model_600_tokens_and_names_no_user(self, agent: Agent) -> None:
        reply = (await agent.send("tools/list")).text

        added = len(TaskResponse.model_fields) - 7
        assert len(reply) <= MOST_CHARACTERS + MOST_CHARACTERS_OF_A_FIELD * added
        assert [name for name in ("user_id", "userId", "owner", "$ref") if name in reply] == []

    async def test_without_the_fast_lane_replies_are_the_same(
        self, agent: Agent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replies = []
        for enabled in (True, False):
            monkeypatch.setattr(FastLane, "enabled", enabled)
            sent = [await agent.send("tools/call", name="list_tasks", arguments={}), await agent.post([])]
            replies.append([(reply.status_code, reply.text.partition("instance")[0]) for reply in sent])

        assert replies[0] == replies[1]


class TestLog:
    async def test_a_call_has_one_line_with_its_tool_its_problem_and_the_names_of_ignored_arguments(
        self, agent: Agent, lines: list[dict[str, Any]]
    ) -> None:
        calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("add_task", {"title": WORD, "colour": WORD}, {"ignored": ["colour"]}),
            ("delete_task", {"task_id": MISSING}, {"problem": "task-not-found"}),
            ("update_task", {"task_id": WORD}, {"problem": "task-not-found", "reason": "not a UUID"}),
            ("add_task", {"title": [WORD]}, {"problem": "invalid-request", "fields": ["title"]}),
        ]
        for tool, arguments, members in calls:
            lines.clear()
            reply = await agent.send("tools/call", name=tool, arguments=arguments)
            await until(lambda: lines)

            [line] = lines
            expected = {"request_id": reply.headers["X-Request-ID"], "method": "POST", "route": f"/mcp/{tool}"}
            assert {name: line[name] for name in (*expected, *members)} == expected | members
            assert members.keys() >= line.keys() & {"problem", "ignored", "fields", "reason"}
            assert WORD not in str(line)

    async def test_other_methods_have_the_path_as_their_route(self, agent: Agent, lines: list[dict[str, Any]]) -> None:
        await agent.send("tools/list")
        await until(lambda: lines)

        assert [(line["route"], "problem" in line) for line in lines] == [("/mcp", False)]

    async def test_a_defect_is_logged_once_with_its_traceback_and_its_text_is_not_told(
        self, agent: Agent, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.services.tasks.delete_task", AsyncMock(side_effect=LookupError(WORD)))

        reply = await agent.send("tools/call", name="delete_task", arguments={"task_id": MISSING})

        detail = "Something went wrong on our side. Please try again later."
        [block] = reply.json()["result"]["content"]
        assert (block["text"], reply.status_code) == (f"internal-error: {detail}", 200)
        await until(lambda: len(lines) > 1)
        traceback, line = lines
        assert (traceback["levelname"], traceback["exc_info"][0]) == ("ERROR", LookupError)
        assert traceback["request_id"] == line["request_id"] == reply.headers["X-Request-ID"]
        assert (line["route"], line["problem"]) == ("/mcp/delete_task", "internal-error")


class TestTelemetry:
    async def test_span_and_metric_have_the_tool_as_the_route(self, secured_tools: Settings, user: str) -> None:
        spans, metrics = InMemorySpanExporter(), InMemoryMetricReader()
        tracing, meters = TracerProvider(), MeterProvider([metrics])
        tracing.add_span_processor(SimpleSpanProcessor(spans))

        def observe(app: FastAPI) -> None:
            options: Any = app._telemetry  # noqa: SLF001  # FastAPI has no public name for it
            options |= {"tracer_provider": tracing, "meter_provider": meters}

        async with (
            serving(secured_tools, observe) as url,
            httpx.AsyncClient(base_url=url, timeout=30) as client,
        ):
            for era in ERAS:
                await Agent(client, user, era).done("add_task", title=WORD)

        requests = [each for each in spans.get_finished_spans() if each.kind is SpanKind.SERVER]
        found = [(each.name, (each.attributes or {})["http.route"]) for each in requests]
        assert found == [("POST /mcp/add_task", "/mcp/add_task")] * 2
        data: Any = metrics.get_metrics_data()
        points = {each.name: each.data.data_points for each in data.resource_metrics[0].scope_metrics[0].metrics}
        [point] = points["http.server.request.duration"]
        assert (point.attributes["http.route"], point.count) == ("/mcp/add_task", 2)


class TestSwitch:
    @pytest.mark.usefixtures("agents")
    def test_the_sdk_is_imported_only_if_the_tools_are_on(self) -> None:
        script = (
            "import sys; from app.core.config import Settings; from app.main import create_app\n"
            "create_app(Settings(_env_file=None)); print(*sys.modules)"
        )
        off = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True, cwd=BACKEND)

        names = {"mcp", "mcp_types", "app.routes.mcp", "app.routes.tools"}
        assert names & {*off.stdout.split()} == set()
        assert names < {*sys.modules}  # the positive control


class TestLifespan:
    async def test_it_may_run_again_and_for_two_applications_at_once(self, secured_tools: Settings, user: str) -> None:
        apps = [create_app(secured_tools) for _ in range(2)]
        for _ in range(2):
            async with AsyncExitStack() as stack:
                for app in apps:
                    state = await stack.enter_async_context(app.router.lifespan_context(app))
                    transport = httpx.ASGITransport(with_state(app, state))
                    client = await stack.enter_async_context(
                        httpx.AsyncClient(transport=transport, base_url="http://a")
                    )
                    for era in ERAS:
                        await Agent(client, user, era).done("list_tasks")


def with_state(app: ASGIApp, state: Any) -> ASGIApp:
    """The application as a server calls it, with the state of its lifespan."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict(state)}, receive, send)

    return call

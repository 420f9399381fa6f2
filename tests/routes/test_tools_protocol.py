"""`POST /mcp` as a part of this service: its form, its limits, its log line and its lifespan."""

import json
import logging
import subprocess
import sys
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import AsyncMock

import httpx
import pytest

from app.core.config import Settings
from app.http.fast_lane import BODY_LIMIT
from app.main import create_app
from app.routes.tools import TOOLS
from app.schemas.task import TaskResponse
from tests.agents import LEGACY, MODERN, Agent, call, message, token_of
from tests.http.support import problem_of
from tests.service import BACKEND
from tests.support import short, until

WORD: Final = "zq9word"
MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
PING: Final = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
NOTIFICATION: Final = {"jsonrpc": "2.0", "method": "notifications/initialized"}
MOST_CHARACTERS: Final = 2_400  # of the reply to tools/list: 600 tokens
MOST_CHARACTERS_OF_A_FIELD: Final = 300  # for each field beyond the seven

Lines = Callable[[], list[dict[str, Any]]]


class Panic(BaseException):
    """As compiled libraries raise it."""


NO_JSON: Final = SimpleNamespace(id=object(), title="")


@pytest.fixture
def ada(agents: httpx.AsyncClient) -> Agent:
    return Agent(agents, "ada")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """Returns the lines of the service, and the warnings of every library."""
    caplog.set_level(logging.INFO)
    return lambda: [vars(each) for each in caplog.records if each.name[:4] == "app." or each.levelno > logging.INFO]


class TestMessage:
    @pytest.mark.parametrize(
        "sent",
        [
            *([], [PING], None, WORD, {}, {WORD: WORD}, {"jsonrpc": "2.0", "id": 1, "result": {}}),
            *({**PING, "id": wrong} for wrong in (None, 1.5, [WORD])),
            *(
                {**PING, name: wrong}
                for name, wrong in (("jsonrpc", "1.0"), ("method", 1), ("method", WORD * 20), ("params", [WORD]))
            ),
        ],
        ids=short,
    )
    async def test_a_body_that_is_no_single_message_is_refused_and_not_quoted(self, ada: Agent, sent: object) -> None:
        refusal = await ada.post(sent)

        problem_of(refusal, 422)
        assert [word for word in (WORD, "JSONRPC") if word in refusal.text] == []

    @pytest.mark.parametrize("params", ["{", "[" * 500 + "]" * 500, r'"\ud800"', "9" * 5_000, "NaN", "\xff"], ids=short)
    async def test_a_body_that_is_not_json_is_refused(self, ada: Agent, params: str) -> None:
        content = f'{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{params}}}'

        refusal = await ada.post(content.encode("latin-1"))

        assert problem_of(refusal, 400)["type"] == "urn:problem-type:malformed-body"

    async def test_other_forms_that_no_client_of_the_protocol_sends_are_refused(self, agent: Agent) -> None:
        _, listing = message(agent.era, "tools/list")
        for sent, status in (
            ({"Content-Type": "text/plain"}, 415),
            ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
            ({"Content-Type": "application/vnd.api+json"}, 400),
            ({"Accept": "text/html"}, 406),
            ({"Accept": "text/event-stream"}, 406),
            ({"MCP-Protocol-Version": "1999-01-01"}, 400),
        ):
            refusal = await agent.post(listing, **sent)
            assert refusal.status_code == status
            assert refusal.headers["Content-Type"] in {"application/json", "application/problem+json"}

    async def test_any_accept_and_a_session_id_of_elsewhere_are_accepted(self, agent: Agent) -> None:
        headers, listing = message(agent.era, "tools/list")
        for accepted in ({"Accept": "*/*"}, {"Mcp-Session-Id": WORD}, {"Last-Event-ID": "1"}):
            assert (await agent.post(listing, **accepted)).json()["id"] == 1
        request = agent.client.build_request("POST", "/mcp", json=listing, headers=token_of(agent.user) | headers)
        del request.headers["Accept"]
        assert (await agent.client.send(request)).json()["id"] == 1

    async def test_headers_that_contradict_the_body_or_are_sent_twice_are_refused(self, ada: Agent) -> None:
        headers, body = call(MODERN, "add_task", title="a")
        sent = [*(token_of(ada.user) | headers).items()]
        for wrong in {"Mcp-Name": "delete_task"}, {"Mcp-Method": "tools/list"}, {"MCP-Protocol-Version": "2027-01-01"}:
            [name] = wrong
            reply = await ada.post(body, **headers | wrong)
            twice = await ada.client.post("/mcp", json=body, headers=[*sent, (name, headers[name])])

            assert (reply.status_code, reply.json()["error"]["code"]) == (400, -32020)
            assert twice.status_code == 400
        assert (await ada.client.post("/mcp", json=body, headers=[*sent, sent[0]])).status_code == 401

    async def test_a_byte_order_mark_is_ignored(self, ada: Agent) -> None:
        reply = await ada.post(BOM_UTF8 + json.dumps(message(MODERN, "tools/list")[1]).encode())

        assert "tools" in reply.json()["result"]

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_body_may_have_64_kib(self, ada: Agent, *, chunked: bool) -> None:
        async def parts(content: bytes) -> AsyncIterator[bytes]:
            for start in range(0, len(content), 10_000):
                yield content[start : start + 10_000]

        headers, body = message(MODERN, "tools/list")
        for size, status in ((BODY_LIMIT, 200), (BODY_LIMIT + 1, 413)):
            content: Any = json.dumps(body).ljust(size).encode()
            content = parts(content) if chunked else content
            reply = await ada.client.post("/mcp", content=content, headers=token_of(ada.user) | headers)
            assert reply.status_code == status

    async def test_an_answer_to_a_question_is_refused_at_once_because_no_tool_asks(self, ada: Agent) -> None:
        refusal = await ada.send("tools/call", name="list_tasks", arguments={}, inputResponses={WORD: [{}] * 10})

        detail = problem_of(refusal, 422)["detail"]
        assert "params: must not have inputResponses, because no tool asks for input" in detail

    async def test_a_notification_gets_no_answer_and_no_warning(self, agent: Agent, lines: Lines) -> None:
        malformed: Any = {"params": {"_meta": WORD, "requestId": [WORD]}}
        for change in ({}, {"method": WORD}, {"params": {WORD: WORD}}, {"method": "notifications/cancelled"}):
            for sent in (NOTIFICATION | change, NOTIFICATION | malformed | change):
                reply = await agent.post(sent)
                assert (reply.status_code, reply.content) == (202, b"")

        assert {line["levelname"] for line in lines()} == {"INFO"}

    async def test_an_unknown_method_is_an_error_of_json_rpc(self, agent: Agent) -> None:
        for method in ("tools/lists", "resources/list", "tasks/list"):
            reply = await agent.send(method)

            assert reply.json()["error"]["code"] == -32601
            assert reply.status_code == (404 if agent.era == MODERN else 200)

    @pytest.mark.parametrize("name", [WORD, "", "Add_task", "__class__"])
    async def test_an_unknown_tool_is_an_error_that_names_the_known_ones(
        self, agent: Agent, lines: Lines, name: str
    ) -> None:
        reply = await agent.send("tools/call", name=name, arguments={})

        error = {"code": -32602, "message": f"Unknown tool. Known are: {', '.join(TOOLS)}."}
        assert reply.json()["error"] == error
        await until(lines)
        assert [(line["route"], line["problem"]) for line in lines()] == [("/mcp", "route-not-found")]

    async def test_each_revision_introduces_the_server_and_no_session_is_kept(self, agents: httpx.AsyncClient) -> None:
        hello = {"capabilities": {}, "clientInfo": {"name": "a", "version": "1"}}
        for era in ("2024-11-05", "2025-03-26", "2025-06-18", LEGACY):
            reply = await Agent(agents, "ada", era).send("initialize", protocolVersion=era, **hello)
            result = reply.json()["result"]
            assert (result["protocolVersion"], result["serverInfo"]["name"]) == (era, "tasks")
            assert "mcp-session-id" not in reply.headers
        result = (await Agent(agents, "ada").send("server/discover")).json()["result"]
        assert (result["supportedVersions"], [*result["capabilities"]]) == ([MODERN], ["tools"])


class TestPath:
    @pytest.mark.parametrize("target", ["/mcp/", "//mcp", "//mcp//", "/mcp?x=1"])
    async def test_slashes_and_a_query_make_no_difference_and_nothing_redirects(self, ada: Agent, target: str) -> None:
        headers, body = message(MODERN, "tools/list")
        sent: dict[str, Any] = {"json": body, "headers": token_of(ada.user) | headers}

        reply = await ada.client.post("/", **sent, extensions={"target": target.encode()})

        assert (reply.status_code, "tools" in reply.json()["result"]) == (200, True)

    async def test_a_host_behind_a_proxy_is_served(self, agent: Agent) -> None:
        _, listing = message(agent.era, "tools/list")
        names = {"Host": "tasks.example.com:8443", "X-Forwarded-Host": "tasks.example.com", "Via": "1.1 proxy"}
        for others in ({}, {"Origin": "https://claude.example"}):
            assert (await agent.post(listing, **names | others)).status_code == 200


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


class TestLog:
    async def test_a_call_has_one_line_with_its_tool_its_problem_and_the_names_of_ignored_arguments(
        self, agent: Agent, lines: Lines, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("add_task", {"title": WORD, "colour": WORD}, {"ignored": ["colour"]}),
            ("delete_task", {"task_id": MISSING}, {"problem": "task-not-found"}),
            ("update_task", {"task_id": WORD}, {"problem": "task-not-found", "reason": "not a UUID"}),
            ("add_task", {"title": [WORD]}, {"problem": "invalid-request", "fields": ["title"]}),
        ]
        for tool, arguments, members in calls:
            caplog.clear()
            reply = await agent.send("tools/call", name=tool, arguments=arguments)
            await until(lines)

            [line] = lines()
            expected = {"request_id": reply.headers["X-Request-ID"], "method": "POST", "route": f"/mcp/{tool}"}
            assert {name: line[name] for name in (*expected, *members)} == expected | members
            assert members.keys() >= line.keys() & {"problem", "ignored", "fields", "reason"}
            assert WORD not in str(line)

    @pytest.mark.parametrize(
        "deletion", [{"side_effect": Panic(WORD)}, {"return_value": NO_JSON}], ids=["panic", "no JSON"]
    )
    async def test_a_defect_is_logged_once_with_its_traceback_its_text_is_not_told_and_later_calls_are_served(
        self, agent: Agent, lines: Lines, monkeypatch: pytest.MonkeyPatch, deletion: dict[str, Any]
    ) -> None:
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr("app.services.tasks.delete_task", AsyncMock(**deletion))
            reply = await agent.send("tools/call", name="delete_task", arguments={"task_id": MISSING})

        detail = "Something went wrong on our side. Please try again later."
        [block] = reply.json()["result"]["content"]
        assert (block["text"], reply.status_code) == (f"internal-error: {detail}", 200)
        await until(lambda: len(lines()) > 1)
        traceback, line = lines()
        assert (traceback["levelname"], traceback["message"]) == ("ERROR", "unexpected error")
        assert traceback["exc_info"]
        assert traceback["request_id"] == line["request_id"] == reply.headers["X-Request-ID"]
        assert (line["route"], line["problem"]) == ("/mcp/delete_task", "internal-error")
        assert (await agent.error("delete_task", task_id=MISSING)).startswith("task-not-found: ")


class TestLifespan:
    def test_the_sdk_is_imported_only_if_the_tools_are_on(self, secured_tools: Settings) -> None:
        script = (
            "import sys; from app.core.config import Settings; from app.main import create_app\n"
            "create_app(Settings(_env_file=None)); print(*sys.modules)"
        )
        off = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True, cwd=BACKEND)

        create_app(secured_tools)
        names = {"mcp", "mcp_types", "app.routes.mcp", "app.routes.tools"}
        assert names & {*off.stdout.split()} == set()
        assert names < {*sys.modules}  # the positive control

    async def test_it_may_run_again(self, secured_tools: Settings) -> None:
        """The SDK's entry may not."""
        app = create_app(secured_tools)
        for _ in range(2):
            async with app.router.lifespan_context(app) as state:
                assert state

"""Who may use the tools of agents: the user of a token, for the user's own tasks only."""

from typing import Any, Final

import httpx
import pytest

from app.core.config import Settings
from tests.agents import CLAIMS, LEGACY, MODERN, PUBLIC_URL, Agent, call, client_of, message, token_of
from tests.http.support import problem_of, status_of
from tests.support import bearer
from tests.tokens import carrying, claims_of, counted_checkouts, new_signer

METADATA: Final = "/.well-known/oauth-protected-resource"
CHALLENGE: Final = f', resource_metadata="{PUBLIC_URL}{METADATA}/mcp"'
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY")


class TestToken:
    @pytest.mark.parametrize(
        ("sent", "kind"),
        [
            ({}, "token-missing"),
            ({"Authorization": "Basic YWRhOnNlY3JldA=="}, "token-missing"),
            (carrying("a.b.c"), "token-invalid"),
            (bearer("ada", **CLAIMS, nbf=4_102_444_800), "token-invalid"),
            (bearer("ada", **CLAIMS | {"exp": 0}), "token-invalid"),
            (carrying(new_signer("HS256").issue(claims_of("ada", **CLAIMS))), "token-invalid"),
            (bearer("ada", **CLAIMS | {"aud": PUBLIC_URL}), "token-invalid"),
            (bearer("ada", **CLAIMS | {"iss": "https://other.example"}), "token-invalid"),
        ],
        ids=["none", "Basic", "malformed", "early", "expired", "foreign", "audience", "issuer"],
    )
    async def test_without_a_valid_token_every_message_is_401_and_takes_no_connection(
        self, agents: httpx.AsyncClient, sent: dict[str, str], kind: str
    ) -> None:
        headers, listing = call(MODERN, "list_tasks")
        contents: tuple[Any, ...] = (listing, message(LEGACY, "initialize")[1], [], {})
        with counted_checkouts() as checkouts:
            for content in contents:
                refusal = await agents.post("/mcp", json=content, headers=headers | sent)

                assert problem_of(refusal, 401)["type"] == f"urn:problem-type:{kind}"
                challenge = refusal.headers["WWW-Authenticate"]
                assert challenge.startswith('Bearer realm="tasks"')
                assert challenge.endswith(CHALLENGE)
                assert ("error=" in challenge) is (kind == "token-invalid")
            assert checkouts == []

            await Agent(agents, "ada").done("list_tasks")  # the positive control
            assert len(checkouts) == 1


class TestAnotherUser:
    async def test_no_way_leads_to_the_tasks_of_another_user(self, agent: Agent) -> None:
        ada, eve = agent, agent.eve
        keyed = await ada.done("add_task", title="a", idempotency_key="k1")
        await ada.done("add_task", title="b")
        before = await ada.tasks()
        cursor = (await ada.done("list_tasks", limit=1))["next_cursor"]
        names: dict[str, Any] = dict.fromkeys(("user_id", "userId", "owner", "user", "sub", "_meta"), ada.user)

        for tool in ("complete_task", "update_task", "delete_task"):
            for task in before:
                for version in ({}, {"if_updated_at": task["updated_at"]}):
                    change = {"task_id": task["id"], "title": "c", "completed": True} | names | version
                    assert (await eve.call(tool, **change)).texts[0] == "task-not-found: There is no such task."
        assert (await eve.call("list_tasks", **names)).content == {"tasks": [], "next_cursor": None}
        assert "cursor: does not belong to this list" in await eve.error("list_tasks", cursor=cursor, limit=1)
        outcome = await eve.call("add_task", title="d", idempotency_key="k1", **names)
        assert outcome.texts[1].endswith(": user_id, userId, owner, user, sub, _meta")
        assert outcome.content["task_id"] != keyed["task_id"]
        assert [task["user_id"] for task in await eve.tasks()] == [eve.user]
        assert await ada.tasks() == before

        await ada.done("delete_task", task_id=keyed["task_id"])  # the positive control
        assert len(await ada.tasks()) == 1

    async def test_a_user_beside_the_arguments_has_no_effect(self, agent: Agent) -> None:
        ada, token = agent.user, token_of(agent.user)["Authorization"]
        await agent.done("add_task", title="a")
        headers, body = call(agent.era, "list_tasks")
        body["user_id"] = body["params"]["user_id"] = ada
        body["params"]["_meta"] |= {"user_id": ada, "authorization": token}
        headers |= token_of(agent.eve.user) | {"X-User-Id": ada, "Cookie": f"user={ada}"}
        for path in ("/mcp", f"/mcp?user_id={ada}&access_token={token[7:]}"):
            reply = await agent.client.post(path, json=body, headers=headers)

            assert reply.json()["result"]["structuredContent"] == {"tasks": [], "next_cursor": None}


class TestDenial:
    async def test_below_mcp_there_is_nothing_for_any_method_with_or_without_a_token(
        self, agents: httpx.AsyncClient
    ) -> None:
        tokens = ["", token_of("ada")["Authorization"]]
        for path in ("/mcp/", "/mcp", "/mcp/ada", "/mcp/add_task", "/mcp//x/", "/%6dcp", "/mcp%2Fx", "/mcpx", "/MCP"):
            for method in METHODS:
                found = [await status_of(agents, method, path, token) for token in tokens]
                exists = path.rstrip("/") == "/mcp"
                assert found == ([404, 404] if not exists else [401, 422] if method == "POST" else [405, 405])

    async def test_without_the_setting_there_is_nothing_at_the_path(self, secured_url: str) -> None:
        async with httpx.AsyncClient(base_url=secured_url, timeout=30) as client:
            assert (await client.post("/mcp", headers=bearer("ada"))).status_code == 404


class TestMetadata:
    @pytest.mark.parametrize("path", ["", "/svc"])
    async def test_an_agent_without_a_token_learns_where_it_gets_one(self, secured_tools: Settings, path: str) -> None:
        settings = secured_tools.model_copy(update={"public_url": f"{PUBLIC_URL}{path}", "root_path": path})
        async with client_of(settings) as client:
            refusal = await client.post("/mcp")
            of_api = await client.get("/api/ada/tasks")
            metadata = await client.get(f"{METADATA}{path}/mcp")

        named = f'Bearer realm="tasks", resource_metadata="{PUBLIC_URL}{METADATA}{path}/mcp"'
        challenges = [refusal.headers["WWW-Authenticate"], of_api.headers["WWW-Authenticate"]]
        assert challenges == [named, 'Bearer realm="tasks"']
        assert metadata.json() == {
            "resource": f"{PUBLIC_URL}{path}/mcp",
            "authorization_servers": [CLAIMS["iss"]],
            "bearer_methods_supported": ["header"],
        }

    async def test_without_public_url_there_are_no_metadata(self, secured_tools: Settings) -> None:
        async with client_of(secured_tools.model_copy(update={"public_url": None})) as client:
            assert (await client.post("/mcp")).headers["WWW-Authenticate"] == 'Bearer realm="tasks"'
            assert (await client.get(f"{METADATA}/mcp")).status_code == 404


async def test_a_page_of_an_allowed_origin_may_use_the_tools(agents: httpx.AsyncClient) -> None:
    origin = {"Origin": "http://localhost:3000"}
    headers, body = message(MODERN, "tools/list")
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": ",".join(headers).lower()}

    preflight = await agents.options("/mcp", headers=asked | origin)
    reply = await agents.post("/mcp", json=body, headers=headers | token_of("ada") | origin)

    assert (preflight.status_code, reply.status_code) == (200, 200)
    assert reply.headers["Access-Control-Allow-Origin"] == origin["Origin"]

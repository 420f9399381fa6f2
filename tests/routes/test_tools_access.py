"""Who may use the tools of agents: the user of a token, for the user's own tasks only."""

from typing import Any, Final

import httpx
import pytest
from fastapi import APIRouter

from app.core.config import Settings
from app.core.errors import StartupError
from app.http.authorization import check_routes, public
from app.main import create_app
from app.routes.deps import CurrentUser
from tests.agents import CLAIMS, PUBLIC_URL, Agent, token_of
from tests.http.support import problem_of, status_of
from tests.support import bearer, serving
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
        self, agent: Agent, sent: dict[str, str], kind: str
    ) -> None:
        message = agent.message("tools/call", {"name": "list_tasks", "arguments": {}})
        others = agent.headers("tools/call", message["params"])
        del others["Authorization"]
        with counted_checkouts() as checkouts:
            contents: tuple[Any, ...] = (message, agent.message("initialize", {}), [], {})
            for content in contents:
                refusal = await agent.client.post("/mcp", json=content, headers=others | sent)

                assert problem_of(refusal, 401)["type"] == f"urn:problem-type:{kind}"
                challenge = refusal.headers["WWW-Authenticate"]
                assert challenge.startswith('Bearer realm="tasks"')
                assert challenge.endswith(CHALLENGE)
                assert ("error=" in challenge) is (kind == "token-invalid")
            assert checkouts == []

            await agent.done("list_tasks")
            assert len(checkouts) == 1


class TestAnotherUser:
    async def test_no_way_leads_to_the_tasks_of_another_user(self, agent: Agent) -> None:
        ada, eve = agent, Agent(agent.client, f"{agent.user}-eve", agent.era)
        keyed = await ada.done("add_task", title="a", idempotency_key="k1")
        await ada.done("add_task", title="b")
        before = await ada.tasks()
        cursor = (await ada.done("list_tasks", limit=1))["next_cursor"]
        names: dict[str, Any] = dict.fromkeys(("user_id", "userId", "owner", "user", "sub", "_meta"), ada.user)

        for name in ("complete_task", "update_task", "delete_task"):
            for task in before:
                for version in ({}, {"if_updated_at": task["updated_at"]}):
                    _, [text, *_] = await eve.call(
                        name, task_id=task["id"], title="c", completed=True, **names, **version
                    )
                    assert text == "task-not-found: There is no such task."
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
        ada, eve = agent, Agent(agent.client, f"{agent.user}-eve", agent.era)
        await ada.done("add_task", title="a")
        params: dict[str, Any] = {"name": "list_tasks", "arguments": {}, "user_id": ada.user}
        body = eve.message("tools/call", params) | {"user_id": ada.user}
        body["params"]["_meta"] |= {"user_id": ada.user, "authorization": token_of(ada.user)["Authorization"]}
        headers = eve.headers("tools/call", params) | {"X-User-Id": ada.user, "Cookie": f"user={ada.user}"}
        for path in ("/mcp", f"/mcp?user_id={ada.user}&access_token={token_of(ada.user)['Authorization'][7:]}"):
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

    def test_a_route_of_a_copy_below_mcp_is_closed_or_refuses_the_start(self, secured_tools: Settings) -> None:
        async def mine(user: CurrentUser) -> str:
            return user

        async def anybody() -> str:
            return "reached"

        for handler, refused in ((mine, False), (anybody, True), (public(anybody), True)):
            app, router = create_app(secured_tools), APIRouter()
            router.get("/mcp/others")(handler)
            app.include_router(router)
            if refused:
                with pytest.raises(StartupError, match="/mcp/others"):
                    check_routes(app.router)
            else:
                check_routes(app.router)


class TestMetadata:
    async def test_an_agent_without_a_token_learns_where_it_gets_one(self, agents: httpx.AsyncClient) -> None:
        refusal = await agents.post("/mcp")
        url = refusal.headers["WWW-Authenticate"].partition('resource_metadata="')[2].rstrip('"')

        metadata = await agents.get(url.removeprefix(PUBLIC_URL))

        assert metadata.status_code == 200
        assert metadata.json() == {
            "resource": f"{PUBLIC_URL}/mcp",
            "authorization_servers": [CLAIMS["iss"]],
            "bearer_methods_supported": ["header"],
        }
        assert "resource_metadata" not in (await agents.get("/api/ada/tasks")).headers["WWW-Authenticate"]

    async def test_behind_a_prefix_the_metadata_are_at_the_root_of_the_origin(self, secured_tools: Settings) -> None:
        settings = secured_tools.model_copy(update={"public_url": f"{PUBLIC_URL}/svc", "root_path": "/svc"})
        async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            refusal = await client.post("/mcp")
            metadata = await client.get(f"{METADATA}/svc/mcp")

        assert refusal.headers["WWW-Authenticate"].endswith(f'"{PUBLIC_URL}{METADATA}/svc/mcp"')
        assert metadata.json()["resource"] == f"{PUBLIC_URL}/svc/mcp"

    async def test_without_public_url_there_are_no_metadata(self, secured_tools: Settings) -> None:
        settings = secured_tools.model_copy(update={"public_url": None})
        async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            assert (await client.post("/mcp")).headers["WWW-Authenticate"] == 'Bearer realm="tasks"'
            assert (await client.get(f"{METADATA}/mcp")).status_code == 404


class TestBrowser:
    async def test_a_page_of_an_allowed_origin_may_use_the_tools(self, agent: Agent) -> None:
        asked = "authorization,content-type,mcp-protocol-version,mcp-method,mcp-name"
        headers = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
        preflight = await agent.client.options("/mcp", headers=headers | {"Origin": "http://localhost:3000"})
        reply = await agent.post(agent.message("tools/list", {}), Origin="http://localhost:3000")

        assert preflight.status_code == 200
        assert reply.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"

    async def test_without_the_setting_there_is_nothing_at_the_path(self, secured_url: str) -> None:
        async with httpx.AsyncClient(base_url=secured_url, timeout=30) as client:
            assert (await client.post("/mcp", headers=bearer("ada"))).status_code == 404

"""An agent: a client of `/mcp` that sends exactly what a test wants, by either revision of the protocol."""

import json
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import httpx

from tests.support import bearer

PUBLIC_URL: Final = "https://tasks.example.com"
CLAIMS: Final = {"iss": "https://issuer.example.com", "aud": f"{PUBLIC_URL}/mcp"}
SETTINGS: Final = {"mcp": "on", "public_url": PUBLIC_URL, "auth_issuer": CLAIMS["iss"], "auth_audience": CLAIMS["aud"]}
ERAS: Final = ("2025-11-25", "2026-07-28")
_META: Final = "io.modelcontextprotocol"


def token_of(user: str) -> dict[str, str]:
    """The header with a token for the service of the fixture `agents`."""
    return bearer(user, **CLAIMS)


class Outcome(NamedTuple):
    """What a model gets from a call. `content` is None after an error."""

    content: Any
    texts: list[str]


@dataclass
class Agent:
    """The agent of a user."""

    client: httpx.AsyncClient
    user: str
    era: str = ERAS[1]

    def headers(self, method: str, params: dict[str, Any]) -> dict[str, str]:
        """The headers of a request. The revision 2026-07-28 repeats parts of the body there."""
        headers = token_of(self.user) | {"MCP-Protocol-Version": self.era, "Content-Type": "application/json"}
        headers |= {"Accept": "application/json, text/event-stream"}
        if self.era == ERAS[1]:
            headers |= {"Mcp-Method": method} | ({"Mcp-Name": params["name"]} if "name" in params else {})
        return headers

    def message(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        meta = {f"{_META}/protocolVersion": self.era, f"{_META}/clientCapabilities": {}}
        return {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": meta} | params}

    async def post(self, content: object, method: str = "tools/list", **headers: str) -> httpx.Response:
        """Send bytes, or anything as JSON, with the headers of a request for `method`, or with others."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return await self.client.post("/mcp", content=body, headers=self.headers(method, {}) | headers)

    async def send(self, method: str, **params: Any) -> httpx.Response:
        body = self.message(method, params)
        return await self.client.post("/mcp", json=body, headers=self.headers(method, params))

    async def call(self, tool: str, **arguments: Any) -> Outcome:
        """Returns the outcome of a call that is answered with a result, which may be an error of the tool."""
        reply = await self.send("tools/call", name=tool, arguments=arguments)
        assert reply.status_code == 200, reply.text
        result = reply.json()["result"]
        content = result.get("structuredContent")
        assert result["isError"] is (content is None)
        return Outcome(content, [block["text"] for block in result["content"]])

    async def error(self, tool: str, **arguments: Any) -> str:
        """Returns the only text of a call that fails."""
        content, texts = await self.call(tool, **arguments)
        [text] = texts
        assert content is None, content
        return text

    async def done(self, tool: str, **arguments: Any) -> Any:
        """Returns the content of a call that succeeds. Its text is the same."""
        content, texts = await self.call(tool, **arguments)
        assert [json.loads(text) for text in texts] == [content]
        return content

    async def tasks(self, **query: Any) -> list[dict[str, Any]]:
        """Returns what the JSON API lists."""
        reply = await self.client.get(f"/api/{self.user}/tasks", params=query, headers=token_of(self.user))
        assert reply.status_code == 200, reply.text
        return list(reply.json())

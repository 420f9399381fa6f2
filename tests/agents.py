"""An agent: a client of `/mcp` that sends exactly what a test wants, by either revision of the protocol."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import httpx

from app.core.config import Settings
from tests.support import SECRET, bearer, serving

PUBLIC_URL: Final = "https://tasks.example.com"
CLAIMS: Final = {"iss": "https://issuer.example.com", "aud": f"{PUBLIC_URL}/mcp"}
SETTINGS: Final = {
    "mcp": "on",
    "public_url": PUBLIC_URL,
    "auth_jwt_secret": SECRET,
    "auth_issuer": CLAIMS["iss"],
    "auth_audience": CLAIMS["aud"],
}
LEGACY, MODERN = ERAS = ("2025-11-25", "2026-07-28")
_META: Final = "io.modelcontextprotocol"


def token_of(user: str) -> dict[str, str]:
    """The header with a token for a service with SETTINGS."""
    return bearer(user, **CLAIMS)


def message(era: str, method: str, **params: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the headers and the body of a request. The revision 2026-07-28 repeats parts of the body in headers."""
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    headers |= {"MCP-Protocol-Version": era}
    if era == MODERN:
        headers |= {"Mcp-Method": method} | ({"Mcp-Name": params["name"]} if "name" in params else {})
    meta = {f"{_META}/protocolVersion": era, f"{_META}/clientCapabilities": {}}
    return headers, {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": meta, **params}}


def call(era: str, tool: str, **arguments: Any) -> tuple[dict[str, str], dict[str, Any]]:
    return message(era, "tools/call", name=tool, arguments=arguments)


@asynccontextmanager
async def client_of(
    settings: Settings, serve: Callable[[Settings], AbstractAsyncContextManager[str]] = serving
) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client of a service. It opens a connection for each request (see `client`), and any number at once."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with serve(settings) as url, httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        yield client


class Outcome(NamedTuple):
    """What a model gets from a call. `content` is None after an error."""

    content: Any
    texts: list[str]


@dataclass
class Agent:
    """The agent of a user."""

    client: httpx.AsyncClient
    user: str
    era: str = MODERN

    @property
    def eve(self) -> "Agent":
        """The agent of another user."""
        return Agent(self.client, f"{self.user}-eve", self.era)

    async def post(self, content: object, method: str = "tools/list", **headers: str) -> httpx.Response:
        """Send bytes, or anything as JSON, with the headers of a request for `method`, or with others."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        sent, _ = message(self.era, method)
        return await self.client.post("/mcp", content=body, headers=token_of(self.user) | sent | headers)

    async def send(self, method: str, **params: Any) -> httpx.Response:
        headers, body = message(self.era, method, **params)
        return await self.client.post("/mcp", json=body, headers=token_of(self.user) | headers)

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
        assert [json.loads(text) for text in texts] == [content], texts
        return content

    async def rest(self, method: str, path: str = "", *, json: Any = None, **options: Any) -> httpx.Response:
        """Send a request to the JSON API."""
        headers = token_of(self.user) | options.pop("headers", {})
        return await self.client.request(method, f"/api/{self.user}/tasks{path}", json=json, headers=headers, **options)

    async def tasks(self, **query: Any) -> list[dict[str, Any]]:
        """Returns what the JSON API lists."""
        return list((await self.rest("GET", params=query)).raise_for_status().json())

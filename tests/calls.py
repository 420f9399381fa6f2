"""Calls of tools in both revisions of the protocol, as bytes or with the client of a test."""

import json
from typing import Any, Final

import httpx

LEGACY, MODERN = ERAS = ("2025-11-25", "2026-07-28")
_META: Final = "io.modelcontextprotocol"


def call(era: str, tool: str, **arguments: Any) -> tuple[dict[str, str], str]:
    """Returns the headers and the body of a call. The modern revision repeats parts of the body in headers."""
    return message(era, "tools/call", name=tool, arguments=arguments)


def message(era: str, method: str, **params: Any) -> tuple[dict[str, str], str]:
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    headers |= {"MCP-Protocol-Version": era, "Mcp-Method": method}
    headers |= {"Mcp-Name": params["name"]} if "name" in params else {}
    meta = {f"{_META}/protocolVersion": era, f"{_META}/clientCapabilities": {}}
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    return headers, json.dumps(body)


async def send(client: httpx.AsyncClient, token: dict[str, str], era: str, tool: str, **arguments: Any) -> Any:
    """Returns the content of a result, or the text of a tool error."""
    headers, body = call(era, tool, **arguments)
    return outcome(await client.post("/mcp", headers={**headers, **token}, content=body))


def outcome(reply: httpx.Response) -> Any:
    assert reply.status_code == 200, reply.text
    result = reply.json()["result"]
    return result["content"][0]["text"] if result["isError"] else result["structuredContent"]

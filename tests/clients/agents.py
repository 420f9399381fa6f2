"""Clients of the Model Context Protocol that others wrote. Each gives a result as the JSON of the protocol."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import httpx2
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.clients.support import NODE_MODULES, run
from tests.tokens import carrying

PACKAGES: Final = NODE_MODULES / "@modelcontextprotocol"
_INSPECTOR: Final = ("node", str(PACKAGES / "inspector/clients/launcher/build/index.js"), "--cli")
_OPTIONS: Final = ("--transport=http", "--stored-auth-only", "--format=json", "-q")
_TOOL_FAILED: Final = 5  # the status with which the Inspector ends


class Ask(Protocol):
    """Calls a tool, or lists all tools if it gets no name. Returns the result."""

    def __call__(self, tool: str = "", /, **arguments: object) -> Awaitable[dict[str, Any]]: ...


# Takes a URL, a token, a mode of the client, and the folder of the compiled program.
Connect = Callable[[str, str, str, Path], AbstractAsyncContextManager[Ask]]


@asynccontextmanager
async def python(url: str, token: str, mode: str, _: Path) -> AsyncIterator[Ask]:
    """The official client in Python. It checks results against the schemas of the tools."""
    async with (
        httpx2.AsyncClient(headers=carrying(token), timeout=60) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):

        async def ask(tool: str = "", /, **arguments: object) -> dict[str, Any]:
            result = await (client.call_tool(tool, arguments) if tool else client.list_tools())
            return result.model_dump(mode="json", by_alias=True, exclude_none=True)

        yield ask


@asynccontextmanager
async def typescript(url: str, token: str, mode: str, folder: Path) -> AsyncIterator[Ask]:
    """The official clients in TypeScript (agent.mts). They check results against the schemas, too."""
    async with await anyio.open_process(["node", "agent.mjs", url, token, mode], cwd=folder, stderr=None) as process:
        assert process.stdin
        assert process.stdout
        calls, results = process.stdin, BufferedByteReceiveStream(process.stdout)

        async def ask(tool: str = "", /, **arguments: object) -> dict[str, Any]:
            call = {"name": tool, "arguments": arguments} if tool else None
            await calls.send(json.dumps(call).encode() + b"\n")
            with anyio.fail_after(60):
                result: dict[str, Any] = json.loads(await results.receive_until(b"\n", 100_000))
            return result

        yield ask


@asynccontextmanager
async def inspector(url: str, token: str, mode: str, folder: Path) -> AsyncIterator[Ask]:
    """The command line of the MCP Inspector, with a process for each call."""
    options = (f"--protocol-era={mode}", "--header", f"Authorization: Bearer {token}")

    async def ask(tool: str = "", /, **arguments: object) -> dict[str, Any]:
        call = ("--method=tools/call", "--tool-name", tool, "--tool-args-json", json.dumps(arguments))
        status, lines = await inspect(folder, url, *options, *(call if tool else ("--method=tools/list",)))
        result: dict[str, Any] = json.loads(lines[0])["result"]
        assert status == (_TOOL_FAILED if result.get("isError") else 0)
        return result

    yield ask


async def inspect(folder: Path, url: str, *options: str) -> tuple[int, list[str]]:
    """Returns the status and the output of the Inspector, which writes only into the folder."""
    done = await run(folder, "env", "HOME=.", *_INSPECTOR, "--server-url", url, *_OPTIONS, *options)
    return done.returncode, done.stdout.splitlines()

"""The tools by the Model Context Protocol at `POST /mcp`: a call is one request, answered in JSON.

The SDK answers by the revision 2026-07-28, and by the earlier ones as far as they need no session:
https://modelcontextprotocol.io/specification/2026-07-28/basic/transports. Imported only if the setting MCP is on.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import mcp_types as types
from fastapi import APIRouter, Depends, FastAPI, Request
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from pydantic import AfterValidator, BaseModel, Field, StrictInt, StrictStr
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Scope

from app import __version__
from app.core.config import Settings
from app.core.errors import AppError, InternalError, RouteNotFoundError
from app.http.authorization import MCP_PATH, current_user, metadata_url, public
from app.http.fast_lane import JSONRoute, RowResponse
from app.http.middleware import log_defect
from app.http.problems import note_problem
from app.http.remarks import remark, shown_names
from app.http.telemetry import name_route
from app.routes.tools import TOOLS


def router_of(settings: Settings) -> APIRouter:
    """Returns the routes: the endpoint, and with PUBLIC_URL its metadata (RFC 9728), which name the issuer."""
    router = APIRouter(include_in_schema=False, route_class=JSONRoute, lifespan=_lifespan)
    router.post(MCP_PATH, dependencies=[Depends(current_user)])(exchange_message)
    if settings.public_url:
        metadata = {
            "resource": settings.public_url + MCP_PATH,
            "authorization_servers": [settings.auth_issuer],
            "bearer_methods_supported": ["header"],
        }

        @router.get(urlsplit(metadata_url(settings.public_url)).path)
        @public
        async def get_metadata() -> dict[str, Any]:
            return metadata

    return router


def _without_answers(params: dict[str, Any]) -> dict[str, Any]:
    """Refuse what answers a question of a tool: the SDK checks 64 KiB of it for almost a second."""
    if "inputResponses" in params:
        raise PydanticCustomError("answers", "must not have inputResponses, because no tool asks for input")
    return params


class JSONRPCMessage(BaseModel):
    """A request or a notification of JSON-RPC. The SDK's refusal of any other body would quote it."""

    jsonrpc: Literal["2.0"]
    id: StrictInt | StrictStr = ""  # absent in a notification
    method: Annotated[str, Field(max_length=100)]  # the SDK quotes one that it does not know
    params: Annotated[dict[str, Any], AfterValidator(_without_answers)] | None = None


async def exchange_message(message: JSONRPCMessage, request: Request) -> Response:
    """Returns the SDK's reply to one message of JSON-RPC."""
    if "id" not in message.model_fields_set:  # no notification has an effect, and the SDK warns of some in the log
        return Response(status_code=HTTPStatus.ACCEPTED.value)
    if "accept" not in request.headers:  # then any type will do (RFC 9110 section 12.5.1), but not for the SDK
        request.scope["headers"].append((b"accept", b"*/*"))
    unread: list[Message] = [{"type": "http.request", "body": message.model_dump_json(exclude_unset=True).encode()}]
    sent: list[Message] = []

    async def receive() -> Message:
        return unread.pop() if unread else await request.receive()

    async def send(part: Message) -> None:
        sent.append(part)

    await request.state.mcp.handle_request(request.scope, receive, send)
    start, *parts = sent
    status = int(start["status"])  # for metrics HTTPStatus.OK is another status than 200
    if status >= HTTPStatus.BAD_REQUEST and (b"content-type", b"application/json") not in start["headers"]:
        raise HTTPException(status)  # it was plain text
    reply = Response(b"".join(part.get("body", b"") for part in parts), status)
    reply.raw_headers = [*start["headers"]]
    return reply


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Yields the state `mcp`, the SDK's entry. It keeps no sessions, and RequestMiddleware checks the `Host`."""
    server = Server(
        "tasks",
        version=__version__,
        instructions="The to-do list of the user who has signed in.",
        on_list_tools=_list_tools,
        on_call_tool=_call_tool,
        get_tool_input_schema=lambda _: None,  # otherwise each call lists the tools, to look for `x-mcp-header`
    )
    server.middleware.clear()  # FastAPI has a span for the request
    manager = StreamableHTTPSessionManager(server, json_response=True, stateless=True)
    async with manager.run():
        yield {"mcp": manager}


async def _list_tools(_: ServerRequestContext, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[tool.definition for tool in TOOLS.values()])


async def _call_tool(context: ServerRequestContext, params: types.CallToolRequestParams) -> types.CallToolResult:
    """Returns the result as text and as `structuredContent`, or the problem as an error that the model can read."""
    request: Any = context.request  # Starlette's; the SDK does not say its type
    scope, sent = request.scope, params.arguments or {}
    tool = TOOLS.get(params.name)
    if tool is None:
        note_problem(scope, RouteNotFoundError())
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool. Known are: {', '.join(TOOLS)}.")
    name_route(scope, f"{MCP_PATH}/{params.name}")
    ignored = tool.ignored(sent)
    remark(scope, ignored=shown_names(ignored))
    notes = [f"Ignored, because {params.name} has no such argument: {', '.join(ignored)}"] if ignored else []
    try:
        result = await tool.call(scope["state"]["database"], scope["state"]["user_id"], sent)
        text = bytes(RowResponse(result).body).decode()
    except AppError as error:
        return _failure(scope, error, *notes)
    except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as defect:  # noqa: BLE001  # the SDK would quote it, and after a panic serve no call any more
        log_defect(scope, defect)
        return _failure(scope, InternalError())
    return types.CallToolResult(content=_texts(text, *notes), structured_content=json.loads(text))


def _failure(scope: Scope, error: AppError, *notes: str) -> types.CallToolResult:
    note_problem(scope, error)
    return types.CallToolResult(content=_texts(f"{error.kind}: {error.detail}", *notes), is_error=True)


def _texts(*texts: str) -> list[types.ContentBlock]:
    return [types.TextContent(text=text) for text in texts]

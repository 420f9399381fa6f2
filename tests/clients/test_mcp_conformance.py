"""The official conformance tests of the protocol, and how a client finds out where to get its token."""

import re
from pathlib import Path
from typing import Final

import httpx2
from fastapi import FastAPI, Request, Response
from mcp.client.auth.utils import (
    build_protected_resource_metadata_discovery_urls,
    create_oauth_metadata_request,
    extract_resource_metadata_from_www_auth,
    handle_protected_resource_response,
)
from mcp.shared.auth_utils import check_resource_allowed, resource_url_from_server_url
from starlette.middleware.base import RequestResponseEndpoint

from tests.clients.agents import PACKAGES
from tests.clients.support import FOLDER, needs_node, run
from tests.servers import free_port
from tests.support import SECRET, bearer, make_settings, serving, token

CONFORMANCE: Final = ("node", f"--import={FOLDER}/node20.mjs", str(PACKAGES / "conformance/dist/index.js"), "server")
APPLICABLE: Final = {"server-initialize", "ping", "tools-list"}
# The others demand sessions, resources, prompts, completions or logging, which are optional, or tools with given names.
# That of DNS rebinding says itself that it is for servers without authentication.
INAPPLICABLE: Final = re.compile(
    "server-sse-.+|resources-.+|prompts-.+|completion-.+|logging-.+|tools-call-.+|elicitation-.+|json-schema-.+"
    "|dns-rebinding-protection"
)
ISSUER: Final = "https://auth.example.com"


def with_token(app: FastAPI) -> None:
    """Add a token to every request, because the conformance tests send none."""

    @app.middleware("http")
    async def add(request: Request, call_next: RequestResponseEndpoint) -> Response:
        request.scope["headers"].append((b"authorization", f"Bearer {token('ada')}".encode()))
        return await call_next(request)


@needs_node
async def test_the_server_passes_every_conformance_test_for_servers_of_tools(dsn: str, tmp_path: Path) -> None:
    async with serving(make_settings(dsn, auth_jwt_secret=SECRET, mcp="on"), with_token) as url:
        report = await run(tmp_path, *CONFORMANCE, f"--url={url}/mcp", "--suite=all")

    passed = set(re.findall(r"^✓ (\S+): [1-9]\d* passed, 0 failed$", report.stdout, re.MULTILINE))
    others = set(re.findall(r"^[✓✗] (\S+): ", report.stdout, re.MULTILINE)) - passed
    assert passed == APPLICABLE, report.stdout
    assert [name for name in others if not INAPPLICABLE.fullmatch(name)] == []


async def test_a_client_finds_the_issuer_from_the_refusal_and_a_token_for_another_audience_is_refused(dsn: str) -> None:
    """Each step is a function of the official client in Python."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    auth = {"auth_jwt_secret": SECRET, "auth_issuer": ISSUER, "auth_audience": url}
    settings = make_settings(dsn, mcp="on", public_url=f"http://127.0.0.1:{port}", **auth)
    async with serving(settings, port=port), httpx2.AsyncClient(timeout=30) as client:

        async def ping(**headers: str) -> httpx2.Response:
            return await client.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers=headers)

        announced = extract_resource_metadata_from_www_auth(await ping())
        assert announced in build_protected_resource_metadata_discovery_urls(None, url)
        metadata = await handle_protected_resource_response(await client.send(create_oauth_metadata_request(announced)))
        own, other = [await ping(**bearer("ada", iss=ISSUER, aud=each)) for each in (url, f"{url}2")]

    assert metadata
    assert check_resource_allowed(resource_url_from_server_url(url), str(metadata.resource))
    assert [str(each) for each in metadata.authorization_servers] == [ISSUER]
    assert (own.status_code, other.status_code) == (200, 401)

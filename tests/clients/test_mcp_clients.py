"""Clients of `/mcp` that others wrote, with tokens of Better Auth: each does what an agent does for a user."""

import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from starlette.middleware.base import RequestResponseEndpoint

from app.routes.tools import TOOLS
from tests.agents import LEGACY, MODERN
from tests.clients.agents import Ask, Connect, inspect, inspector, python, typescript
from tests.clients.support import FOLDER, NODE_MODULES, needs_node, run
from tests.clients.test_better_auth import Issuer, better_auth
from tests.support import make_settings, serving
from tests.tokens import carrying

pytestmark = needs_node

PAGE: Final = (FOLDER.parents[1] / "docs/agents.md").read_text()
TSC: Final = "tsc --strict --noUncheckedIndexedAccess --skipLibCheck --target es2023 --module nodenext --types node"
CLIENTS: Final = [
    *((python, mode, version) for mode, version in (("legacy", LEGACY), ("auto", MODERN), (MODERN, MODERN))),
    *((typescript, mode, LEGACY) for mode in ("sdk", "legacy")),
    *((typescript, mode, MODERN) for mode in ("auto", MODERN)),
    (inspector, "modern", MODERN),  # a process for each call, so only once
]


class Service(NamedTuple):
    """A service with tools. `versions` are the revisions of the protocol that requests have named."""

    url: str
    issuer: Issuer
    versions: list[str | None]

    async def sign_up(self) -> tuple[str, str]:
        """Returns the URL of the tasks of a new user, and a token."""
        account = await self.issuer.sign_up()
        return self.url + account.tasks, await self.issuer.token_of(account)


@pytest.fixture(scope="module")
async def service(dsn: str) -> AsyncIterator[Service]:
    versions = list[str | None]()

    def note_versions(app: FastAPI) -> None:
        @app.middleware("http")
        async def note(request: Request, call_next: RequestResponseEndpoint) -> Response:
            versions.append(request.headers.get("MCP-Protocol-Version"))
            return await call_next(request)

    async with better_auth() as issuer:
        auth = {"auth_jwks_url": f"{issuer.url}/api/auth/jwks", "auth_issuer": issuer.url, "auth_audience": issuer.url}
        async with serving(make_settings(dsn, mcp="on", **auth), note_versions) as url:
            yield Service(url, issuer, versions)


@pytest.fixture(scope="module")
async def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compiled program."""
    folder = tmp_path_factory.mktemp("agent")
    shutil.copy(FOLDER / "agent.mts", folder)
    await compile_program(folder, "agent.mts")
    return folder


async def compile_program(folder: Path, name: str) -> None:
    (folder / "node_modules").symlink_to(NODE_MODULES)
    compiler = await run(folder, *TSC.split(), name)
    assert compiler.returncode == 0, compiler.stdout


@pytest.mark.parametrize(("connect", "mode", "version"), CLIENTS)
async def test_a_client_can_use_every_tool_for_its_user_and_none_for_another(
    service: Service, folder: Path, connect: Connect, mode: str, version: str
) -> None:
    tasks, token = await service.sign_up()
    foreign_tasks, foreign_token = await service.sign_up()
    async with httpx.AsyncClient(timeout=30) as rest, connect(f"{service.url}/mcp", token, mode, folder) as ask:
        rest.headers.update(carrying(foreign_token))
        foreign = (await rest.post(foreign_tasks, json={"title": "Ring Eve"})).json()
        rest.headers.update(carrying(token))
        assert [tool["name"] for tool in (await ask())["tools"]] == [*TOOLS]
        await use_every_tool(ask, rest, tasks)
        assert service.versions[-2:] == [version, None]  # of a tool, and of REST

        for tool, arguments in ("complete_task", {}), ("update_task", {"title": "Mine"}), ("delete_task", {}):
            assert await failed(ask, tool, task_id=foreign["id"], **arguments) == "task-not-found"
        rest.headers.update(carrying(foreign_token))
        assert (await rest.get(foreign_tasks)).json() == [foreign]


async def use_every_tool(ask: Ask, rest: httpx.AsyncClient, tasks: str) -> None:
    """Add, complete, update and delete a task. After each step REST shows the same."""
    task_id = await done(ask, "created", "add_task", title="Buy oat milk", description="The barista one")
    [added] = await shown(ask, rest, tasks)
    assert (added["id"], added["title"], added["description"]) == (task_id, "Buy oat milk", "The barista one")

    for _ in range(2):
        await done(ask, "completed", "complete_task", task_id=task_id)
    [completed] = await shown(ask, rest, tasks)
    assert completed == {**added, "completed": True, "updated_at": completed["updated_at"]}

    change = {"task_id": task_id, "title": "Buy milk", "description": ""}
    assert await failed(ask, "update_task", **change, if_updated_at=added["updated_at"]) == "precondition-failed"
    assert await shown(ask, rest, tasks) == [completed]
    await done(ask, "updated", "update_task", **change, if_updated_at=completed["updated_at"])
    [updated] = await shown(ask, rest, tasks)
    assert (updated["title"], updated["description"], updated["completed"]) == ("Buy milk", None, True)

    await done(ask, "deleted", "delete_task", task_id=task_id)
    assert await failed(ask, "delete_task", task_id=task_id) == "task-not-found"
    assert await shown(ask, rest, tasks) == []


async def done(ask: Ask, status: str, tool: str, **arguments: object) -> str:
    """Have a tool change a task. Returns the id of the task."""
    result = await ask(tool, **arguments)
    assert result.get("structuredContent", {}).get("status") == status, result
    task_id: str = result["structuredContent"]["task_id"]
    return task_id


async def failed(ask: Ask, tool: str, **arguments: object) -> str:
    """Have a tool fail. Returns the kind of the problem."""
    result = await ask(tool, **arguments)
    assert result["isError"], result
    kind: str = result["content"][0]["text"].partition(": ")[0]
    return kind


async def shown(ask: Ask, rest: httpx.AsyncClient, tasks: str) -> list[Any]:
    """The tasks that the tool and REST show alike."""
    listed: list[Any] = (await ask("list_tasks"))["structuredContent"]["tasks"]
    assert (await rest.get(tasks)).json() == listed
    return listed


async def test_the_inspector_says_that_it_needs_a_token(service: Service, tmp_path: Path) -> None:
    status, output = await inspect(tmp_path, f"{service.url}/mcp", "--method=tools/list")

    assert status == 3, output


async def test_the_program_of_the_page_compiles_and_adds_a_task(service: Service, tmp_path: Path) -> None:
    [code] = re.findall(r"^```ts\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "page.mts").write_text(code.replace("http://127.0.0.1:8000", service.url))
    _, token = await service.sign_up()
    await compile_program(tmp_path, "page.mts")

    program = await run(tmp_path, "env", f"TOKEN={token}", "node", "page.mjs")

    shown = r"false \{\s+task_id: '[0-9a-f-]{36}',\s+status: 'created',\s+title: 'Buy oat milk'"
    assert re.match(shown, program.stdout), program.stdout

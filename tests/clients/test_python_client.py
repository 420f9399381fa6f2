"""The package that openapi-python-client generates from the document."""

from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients.support import run
from tests.support import token

PACKAGE: Final = "generated_tasks_client"


async def test_the_package_creates_updates_toggles_and_lists_tasks_and_returns_an_error_as_a_problem(
    workspace: Path, secured_url: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--path=openapi.json", f"--output-path={PACKAGE}", "--meta=none", "--fail-on-warning")
    generator = await run(workspace, "openapi-python-client", "generate", *options)
    assert generator.returncode == 0, generator.stdout
    monkeypatch.syspath_prepend(workspace)
    models = import_module(f"{PACKAGE}.models")
    client = import_module(PACKAGE).AuthenticatedClient(secured_url, token(user), raise_on_unexpected_status=True)

    async def call(operation: str, *arguments: Any, **options: Any) -> Any:
        module = import_module(f"{PACKAGE}.api.tasks.{operation}")
        return await module.asyncio(user, *arguments, client=client, **options)

    async with client:
        task = await call("create_task", body=models.TaskCreate("Buy oat milk", "The barista one"))
        await call("update_task", task.id, body=models.TaskUpdate(description=None, completed=True))
        toggled = await call("complete_task", task.id)
        await call("complete_task", task.id, body=models.Completion(completed=True))
        [listed] = await call("list_tasks", completed=True, limit=1)
        problem = await call("create_task", body=models.TaskCreate(" "))

    assert (listed.id, listed.title, listed.description) == (task.id, "Buy oat milk", None)
    assert toggled.completed is False
    assert listed.updated_at > listed.created_at == task.created_at
    assert problem.type_ is models.ProblemType("urn:problem-type:invalid-request")
    assert (problem.status, [error.pointer for error in problem.errors]) == (422, ["#/title"])

"""The package that openapi-python-client generates from the document."""

import json
from collections.abc import AsyncIterator
from importlib import import_module
from inspect import signature
from typing import Any

import httpx
import pytest

from tests.clients.support import make_workspace, run
from tests.support import token

PACKAGE = "generated_tasks_client"


@pytest.fixture(scope="module", autouse=True)
async def document(
    client: httpx.AsyncClient, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, Any]]:
    """The document of a package that has been generated and can be imported."""
    workspace = tmp_path_factory.mktemp("python_client")
    content = (await client.get("/openapi.json")).content
    make_workspace(workspace, content)
    options = ("--path=openapi.json", f"--output-path={PACKAGE}", "--meta=none", "--fail-on-warning")
    generator = await run(workspace, "openapi-python-client", "generate", *options)
    assert generator.returncode == 0, generator.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(workspace)
        yield json.loads(content)


async def call(base_url: str, operation: str, *arguments: Any, **options: Any) -> Any:
    """Call an operation of the package, with a token of the user in its first argument."""
    sent = token(arguments[0])
    async with import_module(PACKAGE).AuthenticatedClient(base_url, sent, raise_on_unexpected_status=True) as client:
        return await import_module(f"{PACKAGE}.api.tasks.{operation}").asyncio(*arguments, client=client, **options)


async def test_the_package_creates_updates_and_lists_tasks(base_url: str, user: str) -> None:
    models = import_module(f"{PACKAGE}.models")

    task = await call(base_url, "create_task", user, body=models.TaskCreate("Buy oat milk", "The barista one"))
    await call(base_url, "update_task", user, task.id, body=models.TaskUpdate(description=None, completed=True))

    [listed] = await call(base_url, "list_tasks", user, completed=True, limit=1)
    assert (listed.id, listed.title, listed.description) == (task.id, "Buy oat milk", None)
    assert listed.updated_at > listed.created_at == task.created_at


async def test_the_package_returns_an_error_as_a_problem_with_its_fields(base_url: str, user: str) -> None:
    body = import_module(f"{PACKAGE}.models").TaskCreate(" ")

    problem = await call(base_url, "create_task", user, body=body)

    assert (problem.status, [error.pointer for error in problem.errors]) == (422, ["#/title"])


def test_every_model_has_the_fields_and_required_fields_of_its_schema(document: dict[str, Any]) -> None:
    models = import_module(f"{PACKAGE}.models")

    for name, schema in document["components"]["schemas"].items():
        fields = {parameter.name: parameter for parameter in signature(getattr(models, name)).parameters.values()}
        required = {field for field, parameter in fields.items() if parameter.default is parameter.empty}
        assert {field.rstrip("_") for field in fields} == set(schema["properties"])
        assert {field.rstrip("_") for field in required} == set(schema.get("required", []))


def test_every_operation_accepts_every_documented_parameter(document: dict[str, Any]) -> None:
    parameters = {f"#/components/parameters/{name}": it for name, it in document["components"]["parameters"].items()}

    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        module = import_module(f"{PACKAGE}.api.{operation['tags'][0]}.{operation['operationId']}")
        described = [parameters.get(item.get("$ref"), item) for item in operation.get("parameters", [])]
        names = {item["name"].lower().replace("-", "_") for item in described}
        assert set(signature(module.sync_detailed).parameters) - {"client", "body"} == names

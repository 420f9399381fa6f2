"""Swagger UI works without the internet, and the OpenAPI document says what the service does."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from playwright.async_api import ConsoleMessage, Route, async_playwright

from app import __version__
from app.routes import health, tasks

ROOT: Final = Path(__file__).parents[2]
TASKS: Final = "/api/{user_id}/tasks"
TASK: Final = "/api/{user_id}/tasks/{task_id}"
BODY_ERRORS: Final = {"400", "413", "415"}
OPERATIONS: Final = {
    "list_tasks": ("get", TASKS, {"200", "304", "422", "500", "503"}),
    "create_task": ("post", TASKS, {"201", "422", "500", "503"} | BODY_ERRORS),
    "get_task": ("get", TASK, {"200", "304", "404", "412", "422", "500", "503"}),
    "update_task": ("put", TASK, {"200", "404", "412", "422", "500", "503"} | BODY_ERRORS),
    "complete_task": ("patch", f"{TASK}/complete", {"200", "404", "412", "422", "500", "503"} | BODY_ERRORS),
    "delete_task": ("delete", TASK, {"204", "404", "412", "422", "500", "503"}),
    "get_liveness": ("get", "/health/live", {"200", "500"}),
    "get_readiness": ("get", "/health/ready", {"200", "500", "503"}),
}
_CHROMIUM: Final = shutil.which("chromium")
_SWITCHES: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class TestPage:
    async def test_the_root_leads_to_it(self, client: httpx.AsyncClient) -> None:
        reply = await client.get("/", follow_redirects=True)

        assert (reply.status_code, reply.url.path) == (200, "/docs")

    async def test_its_parts_come_from_this_service(self, client: httpx.AsyncClient) -> None:
        page = await client.get("/docs")

        parts = {}
        for address in re.findall(r"""(?:src|href)=["']([^"']+)""", page.text):
            assert re.match(r"/(?!/)", address)
            part = await client.get(address)
            assert part.status_code == 200
            parts[part.headers["Content-Type"].partition(";")[0]] = len(part.content)
        assert parts.keys() == {"text/css", "image/png", "text/javascript"}
        assert parts["text/css"] > 10_000
        assert parts["text/javascript"] > 100_000

    async def test_neither_page_nor_style_sheet_names_another_host(self, client: httpx.AsyncClient) -> None:
        page = await client.get("/docs")
        style = await client.get("/docs/assets/swagger-ui.css")

        assert "://" not in page.text
        assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", style.text)

    @pytest.mark.parametrize("address", ["/docs", "/openapi.json"])
    async def test_a_frontend_may_read_it(self, client: httpx.AsyncClient, address: str) -> None:
        reply = await client.get(address, headers={"Origin": "http://localhost:3000"})

        assert reply.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


async def test_in_a_browser_without_internet_a_task_is_created_by_try_it_out_and_execute(
    client: httpx.AsyncClient, base_url: str, user: str
) -> None:
    assert _CHROMIUM, "This test drives Swagger UI in Chromium: install it with `apt-get install chromium`."
    elsewhere: list[str] = []
    complaints: list[str] = []

    async def stay_here(route: Route) -> None:
        if route.request.url.startswith(base_url):
            await route.continue_()
        else:
            elsewhere.append(route.request.url)
            await route.abort()

    def note(message: ConsoleMessage) -> None:
        complaints.append(f"{message.type}: {message.text}")

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=_CHROMIUM, args=_SWITCHES)
        page = await browser.new_page()
        page.set_default_timeout(60_000)
        await page.route("**/*", stay_here)
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))

        await page.goto(f"{base_url}/docs")
        operation = page.locator("[id$=-create_task]")
        await operation.locator(".opblock-summary-control").click()
        await operation.get_by_role("button", name="Try it out").click()
        await operation.get_by_placeholder("user_id").fill(user)
        await operation.get_by_role("button", name="Execute").click()
        answer = operation.locator(".live-responses-table tbody")
        await answer.wait_for()

        assert await answer.locator(".response-col_status").inner_text() == "201"
        [task] = (await client.get(f"/api/{user}/tasks")).json()
        assert task["title"] == "Buy oat milk"
        assert task["id"] in await answer.inner_text()
        assert elsewhere == []
        assert complaints == []

        # If the page had asked elsewhere, we would have seen it.
        async with page.expect_console_message():
            await page.evaluate("fetch('http://elsewhere.example/').catch(() => 0)")
        assert elsewhere == ["http://elsewhere.example/"]
        assert complaints
        await browser.close()


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    reply = await client.get("/openapi.json")
    assert reply.headers["Content-Type"] == "application/json"
    content: dict[str, Any] = reply.json()
    return content


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method, path, operation


class TestDocument:
    async def test_it_is_the_one_in_the_repository(self, document: dict[str, Any]) -> None:
        assert document == json.loads((ROOT / "docs" / "openapi.json").read_text())

    async def test_it_introduces_the_service(self, document: dict[str, Any]) -> None:
        assert document["openapi"].startswith("3.1.")
        assert document["info"]["title"] == "Tasks API"
        assert document["info"]["version"] == __version__
        assert document["info"]["description"]
        assert document["info"]["contact"]["name"]
        assert document["info"]["license"]["identifier"] == "MIT"
        assert all(tag["description"] for tag in document["tags"])

    async def test_each_operation_has_the_name_of_its_function(self, document: dict[str, Any]) -> None:
        found = {operation["operationId"]: (method, path) for method, path, operation in _operations(document)}

        assert found == {name: (method, path) for name, (method, path, _) in OPERATIONS.items()}
        assert found.keys() <= {*dir(tasks), *dir(health)}

    async def test_each_operation_is_described_under_a_tag(self, document: dict[str, Any]) -> None:
        known = {tag["name"] for tag in document["tags"]}

        for _, _, operation in _operations(document):
            assert operation["summary"]
            assert operation["description"]
            assert set(operation["tags"]) <= known

    async def test_each_operation_declares_the_statuses_that_it_answers(self, document: dict[str, Any]) -> None:
        declared = {
            operation["operationId"]: (method, path, operation["responses"].keys())
            for method, path, operation in _operations(document)
        }

        assert declared == OPERATIONS

    async def test_errors_are_problems(self, document: dict[str, Any]) -> None:
        problem = {"$ref": "#/components/schemas/Problem"}

        for _, _, operation in _operations(document):
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert response["content"]["application/problem+json"]["schema"] == problem
                    assert len(response["content"]) == 1

    async def test_each_schema_has_an_example_of_its_own_fields(self, document: dict[str, Any]) -> None:
        for schema in document["components"]["schemas"].values():
            assert set(schema.get("required", ())) <= schema["example"].keys() <= schema["properties"].keys()

    async def test_no_optional_header_has_an_example(self, document: dict[str, Any]) -> None:
        """Swagger UI would fill it in, and every task that is tried out would have the same Idempotency-Key."""
        headers = document["components"]["parameters"]

        assert headers.keys() == {"If-Match", "If-None-Match", "Idempotency-Key", "Prefer"}
        assert not any(key.startswith("example") for header in headers.values() for key in [*header, *header["schema"]])

    async def test_the_example_of_an_error_has_the_status_under_which_it_stands(self, document: dict[str, Any]) -> None:
        """Swagger UI shows it there."""
        default = document["components"]["schemas"]["Problem"]["example"]

        for _, _, operation in _operations(document):
            for status, response in operation["responses"].items():
                content = response.get("content", {}).get("application/problem+json", {"example": {"status": status}})
                assert str(content.get("example", default)["status"]) == status

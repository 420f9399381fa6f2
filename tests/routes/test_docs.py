"""Swagger UI works without internet access, and the OpenAPI document describes the service."""

import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from playwright.async_api import Browser, Locator, Page, Route, async_playwright
from sqlmodel import SQLModel

from app import __version__
from app.core.config import Settings
from app.routes.docs import get_asset
from tests.nginx import BELOW_A_PATH, NAME, nginx
from tests.support import SECRET, serving, token

ROOT: Final = Path(__file__).parents[2]
TITLES: Final = {
    "/api/{user_id}/tasks": ["Create a task", "List tasks"],
    "/api/{user_id}/tasks/{task_id}": ["Read a task", "Update a task", "Delete a task"],
    "/api/{user_id}/tasks/{task_id}/complete": ["Complete a task"],
    "/health/live": ["Check that the process runs"],
    "/health/ready": ["Check that the service can work"],
}
TASK_SCHEMAS: Final = ("TaskCreate", "TaskUpdate", "TaskResponse")
OPERATIONS: Final = ("create_task", "list_tasks", "get_task", "update_task", "complete_task", "delete_task")
_CHROMIUM: Final = shutil.which("chromium") or shutil.which("google-chrome")  # which GitHub's runners have
_SWITCHES: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {NAME} 127.0.0.1",
)


class TestPage:
    async def test_the_root_redirects_to_swagger_ui_whose_assets_this_service_has(
        self, client: httpx.AsyncClient
    ) -> None:
        page = await client.get("/", follow_redirects=True)

        assert (page.status_code, page.url.path) == (200, "/docs")
        parts = {}
        for address in re.findall(r"""(?:src|href)=["']([^"']+)""", page.text):
            assert re.match(r"/(?!/)", address)
            part = await client.get(address)
            assert part.status_code == 200
            parts[part.headers["Content-Type"].partition(";")[0]] = len(part.content)
        assert parts.keys() == {"text/css", "image/png", "text/javascript"}
        assert parts["text/css"] > 10_000
        assert parts["text/javascript"] > 100_000

    async def test_the_description_links_to_guides_that_a_browser_shows_as_text(
        self, client: httpx.AsyncClient, document: dict[str, Any]
    ) -> None:
        links = re.findall(r"\]\((?!https:)(.+?)\)", document["info"]["description"])

        assert len(links) == 3
        for link in (*links, "docs/assets/agents.md"):  # which two of the guides name
            guide = await client.get(httpx.URL("http://localhost/docs").join(link).path)
            assert guide.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert guide.text == (ROOT / "docs" / Path(link).name).read_text()

    async def test_the_page_and_the_style_sheet_name_no_other_host(self, client: httpx.AsyncClient) -> None:
        page = await client.get("/docs")
        style = await client.get("/docs/assets/swagger-ui.css")

        assert "://" not in page.text
        assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", style.text)

    async def test_an_unknown_asset_is_404(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/docs/assets/redoc.standalone.js")).json()["type"] == (
            "urn:problem-type:route-not-found"
        )

    async def test_an_asset_is_sent_in_parts_so_that_a_client_that_does_not_read_occupies_no_copy_of_it(self) -> None:
        """Without a token, 300 clients with 8 requests each had occupied 880 MB."""
        reply = await get_asset("swagger-ui-bundle.js")

        sizes = [len(part) async for part in reply.body_iterator]
        assert sum(sizes) == int(reply.headers["Content-Length"]) > 1_000_000
        assert max(sizes) == 65_536

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize(
        "address", ["/docs", "/openapi.json", *(f"/docs/assets/{name}" for name in ("swagger-ui.css", "favicon.png"))]
    )
    async def test_the_page_its_assets_and_the_document_are_304_for_a_client_that_has_them(
        self, client: httpx.AsyncClient, address: str, method: str
    ) -> None:
        first = await client.get(address)
        tag = first.headers["ETag"]

        for known in (tag, f'"0", {tag}', tag.removeprefix("W/"), "*"):
            again = await client.request(method, address, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
            for name in ("Cache-Control", "Content-Security-Policy"):  # a browser's copy takes those of the 304
                assert again.headers[name] == first.headers[name]
        other = await client.request(method, address, headers={"If-None-Match": '"0"'})
        assert (other.status_code, other.content) == (200, first.content if method == "GET" else b"")

    @pytest.mark.parametrize("address", ["/docs", "/openapi.json"])
    async def test_a_frontend_may_read_swagger_ui_and_the_document(
        self, client: httpx.AsyncClient, address: str
    ) -> None:
        reply = await client.get(address, headers={"Origin": "http://localhost:3000"})

        assert reply.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


class Visit:
    """A browser at /docs that cannot reach other hosts. `elsewhere` has the URLs that it requested from other hosts."""

    def __init__(self, page: Page, base_url: str) -> None:
        self.page = page
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []
        self.heights: list[int] = []
        self._base_url = base_url

    async def start(self, path: str) -> None:
        self.page.set_default_timeout(60_000)
        await self.page.route("**/*", self._block_other_hosts)
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        await self.page.goto(f"{self._base_url}{path}")

    async def open(self, operation_id: str) -> Locator:
        """Open an operation, and note its height."""
        operation = self.page.locator(f"[id$=-{operation_id}]")
        await operation.locator(".opblock-summary-control").click()
        await operation.get_by_text("500 Internal error").wait_for()
        self.heights.append(await operation.evaluate("element => element.scrollHeight"))
        return operation

    async def authorize(self, user: str) -> None:
        await self.page.get_by_role("button", name="Authorize").click()
        dialog = self.page.locator(".auth-container")
        assert "make token U=ada" in await dialog.inner_text()
        await dialog.get_by_role("textbox").fill(token(user))
        await dialog.get_by_role("button", name="Apply credentials").click()
        await self.page.get_by_role("button", name="Close").click()

    async def try_out(self, operation_id: str, **paths: str) -> tuple[str, str]:
        """Execute an operation as a person would. Returns the status and the displayed reply."""
        operation = await self.open(operation_id)
        await operation.get_by_role("button", name="Try it out").click()
        for name, value in paths.items():
            await operation.locator(f"[data-param-name={name}] input").fill(value)
        await operation.get_by_role("button", name="Execute").click()
        answer = operation.locator(".live-responses-table tbody")
        await answer.wait_for()
        return await answer.locator(".response-col_status").inner_text(), await answer.inner_text()

    async def _block_other_hosts(self, route: Route) -> None:
        if route.request.url.startswith(self._base_url):
            await route.continue_()
        else:
            self.elsewhere.append(route.request.url)
            await route.abort()


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    assert _CHROMIUM, "These tests drive Swagger UI in Chromium: install it with `apt-get install chromium`."
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=_CHROMIUM, args=_SWITCHES)
        yield browser
        await browser.close()


@asynccontextmanager
async def visit(
    browser: Browser, base_url: str, path: str = "/docs", *, bypass_csp: bool = False
) -> AsyncIterator[Visit]:
    """Opens the page in a profile of its own."""
    visit = Visit(await browser.new_page(bypass_csp=bypass_csp, ignore_https_errors=True), base_url)
    await visit.start(path)
    yield visit
    await visit.page.close()


@pytest.mark.ci
class TestBrowser:
    async def test_the_operations_are_short_and_can_be_tried_out_in_their_order_without_internet_access(
        self, browser: Browser, client: httpx.AsyncClient, base_url: str, user: str
    ) -> None:
        async with visit(browser, base_url) as docs:
            operations = docs.page.locator("[id^=operations-tasks-]")
            await operations.nth(len(OPERATIONS) - 1).wait_for()
            shown = await operations.evaluate_all("all => all.map(each => each.id)")
            expected = [f"operations-tasks-{name}" for name in OPERATIONS]
            assert [each for each in shown if each in expected] == expected
            assert await docs.page.locator(".authorize, .authorization__btn").count() == 0

            replies = {"create_task": await docs.try_out("create_task", user_id=user)}
            [task] = (await client.get(f"/api/{user}/tasks")).json()
            assert task["title"] == "Buy oat milk"
            replies["list_tasks"] = await docs.try_out("list_tasks", user_id=user)
            for name in OPERATIONS[2:]:
                replies[name] = await docs.try_out(name, user_id=user, task_id=task["id"])

            assert [status for status, _ in replies.values()] == ["201", *["200"] * 4, "204"]
            assert [name for name, (_, reply) in replies.items() if task["id"] not in reply] == ["delete_task"]
            assert max(docs.heights) < 1_600  # two screens
            assert (docs.elsewhere, docs.complaints) == ([], [])

    async def test_headers_and_errors_unfold_at_a_click_and_a_phone_cuts_nothing_off(
        self, browser: Browser, base_url: str
    ) -> None:
        async with visit(browser, base_url) as docs:
            await docs.page.set_viewport_size({"width": 390, "height": 800})
            operation = await docs.open("list_tasks")
            folded = [
                operation.get_by_text(text).first for text in ("urn:problem-type:forbidden", "Seconds after which")
            ]
            assert [await each.is_visible() for each in folded] == [False, False]

            for summary in await operation.locator("details:not(details *) > summary").all():
                await summary.click()
            await operation.locator("tr:last-child > td > details summary").last.click()

            assert [await each.is_visible() for each in folded] == [True, True]
            assert await docs.page.evaluate("document.documentElement.scrollWidth") == 390

    async def test_the_authorize_button_adds_the_token_to_every_request_also_after_a_reload(
        self, browser: Browser, configure: Callable[..., Settings], tmp_path: Path, user: str
    ) -> None:
        """The service is below a path of nginx, and a slash at the end of the address changes none of the links."""
        settings = configure(auth_jwt_secret=SECRET, root_path="/svc")
        async with serving(settings) as url, nginx(tmp_path, url, BELOW_A_PATH) as proxy:
            address = f"https://{NAME}:{proxy.port}/svc"
            async with visit(browser, address, "/docs//?a=1") as docs:
                assert (await docs.try_out("list_tasks", user_id=user))[0] == "401"
                await docs.authorize(user)
                assert (await docs.try_out("create_task", user_id=user))[0] == "201"
                assert docs.page.url.startswith(f"{address}/docs?a=1#")
                guide = docs.page.get_by_role("link", name="a frontend to copy")
                assert await guide.evaluate("link => link.href") == f"{address}/docs/assets/frontend.md"

                await docs.page.unroute_all()  # a route turns the browser's cache off
                await docs.page.reload()
                status, listed = await docs.try_out("list_tasks", user_id=user)
                assert (status, "Buy oat milk" in listed, docs.elsewhere) == ("200", True, [])

    @pytest.mark.parametrize("bypass_csp", [False, True], ids=["with the policy", "control without the policy"])
    async def test_only_the_content_security_policy_prevents_requests_to_other_hosts(
        self, browser: Browser, base_url: str, bypass_csp: bool
    ) -> None:
        async with visit(browser, base_url, bypass_csp=bypass_csp) as docs:
            async with docs.page.expect_console_message():
                await docs.page.evaluate("fetch('http://elsewhere.example/').catch(() => 0)")

            assert docs.elsewhere == (["http://elsewhere.example/"] if bypass_csp else [])
            assert ("Content Security Policy" in docs.complaints[0]) is not bypass_csp


async def fetch_document(url: str) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=30) as client:
        reply = await client.get(f"{url}/openapi.json")
    assert reply.headers["Content-Type"] == "application/json"
    content: dict[str, Any] = reply.json()
    return content


@pytest.fixture
async def document(secured_url: str) -> dict[str, Any]:
    return await fetch_document(secured_url)


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method, path, operation


def _objects(node: Any) -> Iterator[dict[str, Any]]:
    """Yields every object in a part of the document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _objects(child)


class TestDocument:
    async def test_the_document_equals_the_one_in_the_repository(self, document: dict[str, Any]) -> None:
        assert document == json.loads((ROOT / "docs" / "openapi.json").read_text())

    async def test_exactly_the_operations_under_api_require_a_token(self, document: dict[str, Any]) -> None:
        for _, path, operation in _operations(document):
            assert operation["security"] == ([{"bearer": []}] if path.startswith("/api/") else [])

        assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"

    async def test_without_authentication_the_document_differs_only_in_having_no_security(
        self, document: dict[str, Any], base_url: str
    ) -> None:
        for _, _, operation in _operations(document):
            operation["security"] = []
        del document["components"]["securitySchemes"]
        on, off = "A bearer token proves who asks.", "Authentication is off, so any `user_id` will do."
        document["info"]["description"] = document["info"]["description"].replace(on, off)

        assert await fetch_document(base_url) == document

    async def test_the_operations_have_titles_as_people_say_them_in_the_order_of_use(
        self, document: dict[str, Any]
    ) -> None:
        """The document groups them by path. Swagger UI shows the deletion last."""
        paths = document["paths"]

        assert {path: [each["summary"] for each in paths[path].values()] for path in TITLES} == TITLES

    async def test_the_document_has_the_version_of_the_service(self, document: dict[str, Any]) -> None:
        assert document["info"]["version"] == __version__

    async def test_an_example_of_a_schema_has_its_own_fields_and_each_schema_of_tasks_and_errors_has_one(
        self, document: dict[str, Any]
    ) -> None:
        for name, schema in document["components"]["schemas"].items():
            if "example" in schema or ("properties" in schema and name.startswith(("Task", "Completion", "Problem"))):
                example = schema.get("example", {}).keys()
                fits = {*schema.get("required", ())} <= example <= schema["properties"].keys() and bool(example)
                assert fits, f"{name} needs an example (json_schema_extra), without None, with its required fields"

    async def test_no_optional_header_has_an_example(self, document: dict[str, Any]) -> None:
        """Swagger UI would send the example, so every task created in it would have the same Idempotency-Key."""
        headers = document["components"]["parameters"]

        assert headers.keys() == {"If-Match", "If-None-Match", "Idempotency-Key", "Prefer"}
        assert not any(key.startswith("example") for header in headers.values() for key in [*header, *header["schema"]])
        for name in ("If-Match", "If-None-Match"):
            assert '`"2026-11-22T09:30:00.123456Z"`' in headers[name]["description"]

    async def test_every_error_has_the_problem_schema_and_an_example_with_its_status(
        self, document: dict[str, Any]
    ) -> None:
        """Swagger UI shows the example under the status of the response."""
        default = document["components"]["schemas"]["Problem"]["example"]

        for _, _, operation in _operations(document):
            for status, response in operation["responses"].items():
                if status >= "400":
                    [(media_type, content)] = response["content"].items()
                    assert media_type == "application/problem+json"
                    assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                    assert str(content.get("example", default)["status"]) == status


class TestGenerators:
    """What generators of clients copy into code. tests/clients generates and runs some of these clients."""

    async def test_only_descriptions_have_line_feeds_and_nothing_has_another_control_character(
        self, document: dict[str, Any]
    ) -> None:
        """A generator writes a pattern into a literal of its language, where a control character is a syntax error."""
        for node in _objects(document):
            for name, value in node.items():
                text = value.replace("\n", "") if name == "description" and isinstance(value, str) else str(value)
                assert isinstance(value, dict | list) or text.isprintable(), name
                assert name.isprintable()

    async def test_every_pattern_is_about_the_whole_text(self, document: dict[str, Any]) -> None:
        """Python's client looks for a match at the start of a text, Java's checks the whole text."""
        patterns = [node["pattern"] for node in _objects(document) if isinstance(node.get("pattern"), str)]

        assert [pattern for pattern in patterns if not (pattern[0] == "^" and pattern[-1] == "$")] == []

    async def test_a_time_and_a_uuid_have_no_length(self, document: dict[str, Any]) -> None:
        """Clients parse these. A client would compare the length with that of its own text of the parsed value."""
        formats = [node for node in _objects(document) if node.get("format") in {"date-time", "uuid"}]

        assert {node["format"] for node in formats} == {"date-time", "uuid"}
        assert [node for node in formats if node.keys() & {"minLength", "maxLength", "pattern"}] == []

    async def test_null_is_a_value_only_of_fields_of_a_task_that_can_be_null(self, document: dict[str, Any]) -> None:
        """Generators make a class of its own for each other `anyOf`."""
        nullable = {
            (name, field)
            for name, schema in document["components"]["schemas"].items()
            for field, kind in schema.get("properties", {}).items()
            if {"type": "null"} in kind.get("anyOf", ())
        }

        columns = [column.name for column in SQLModel.metadata.tables["tasks"].c if column.nullable]
        schemas = {name: document["components"]["schemas"][name]["properties"] for name in TASK_SCHEMAS}
        expected = {(name, field) for name, fields in schemas.items() for field in fields if field in columns}
        assert {each for each in nullable if each[0] in TASK_SCHEMAS} == expected
        assert str(document).count("'null'") == len(nullable)
        assert not any(node.keys() & {"oneOf", "allOf", "nullable"} for node in _objects(document))

    async def test_the_body_that_toggles_or_sets_is_optional(self, document: dict[str, Any]) -> None:
        body = document["paths"]["/api/{user_id}/tasks/{task_id}/complete"]["patch"]["requestBody"]

        assert not body.get("required")
        assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Completion"}

    async def test_the_type_of_a_problem_is_an_enum_of_the_types_of_all_errors(self, document: dict[str, Any]) -> None:
        listed = re.findall(r"`(urn:problem-type:[a-z-]+)` \| \d", (ROOT / "docs" / "api.md").read_text())
        schemas = document["components"]["schemas"]

        assert schemas["Problem"]["properties"]["type"]["$ref"] == "#/components/schemas/ProblemType"
        assert sorted(schemas["ProblemType"]["enum"]) == sorted([*listed, "about:blank"])

"""No input causes a 5xx. Every refusal is a problem document."""

import json
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support import exchange

JSON: Final = {"Content-Type": "application/json"}

hostile: Final = settings(
    max_examples=30,
    deadline=None,  # the machine may be busy
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # all examples may share one user
)

any_text: Final = st.text(st.characters(exclude_categories=()), max_size=220)  # NUL and lone surrogates too
any_json: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
any_segment: Final = st.binary(max_size=150).map(lambda segment: quote(segment, safe="").replace(".", "%2E"))
# Bytes that end a header are left out. Other bytes that are forbidden in a header are included.
any_header: Final = st.binary(max_size=150).map(lambda value: value.translate(None, b"\r\n"))


def check(reply: httpx.Response, *statuses: int) -> None:
    """Check the status and the type of a reply."""
    assert reply.status_code in statuses
    assert (reply.headers["Content-Type"] == "application/problem+json") == (reply.status_code >= 400)
    assert reply.status_code < 400 or reply.json()["status"] == reply.status_code


@hostile
@given(content=any_json.map(json.dumps).map(str.encode) | st.binary())
async def test_an_arbitrary_body_is_read_or_refused(
    client: httpx.AsyncClient, task: dict[str, Any], content: bytes
) -> None:
    tasks = f"/api/{task['user_id']}/tasks"
    path = f"{tasks}/{task['id']}"

    check(await client.post(tasks, content=content, headers=JSON), 201, 400, 422)
    check(await client.put(path, content=content, headers=JSON), 200, 400, 422)
    check(await client.patch(f"{path}/complete", content=content, headers=JSON), 200, 400, 422)


@hostile
@given(owner=any_segment, task_id=any_segment.filter(bool), method=st.sampled_from(["GET", "PUT", "DELETE"]))
@example(owner="%FF%FE", task_id="%00", method="DELETE")
@example(owner="a", task_id="%7B019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa%7D", method="GET")
@example(owner="%2E%2E", task_id="%2E%2E", method="GET")
async def test_an_arbitrary_path_is_404_or_422_and_401_without_a_token(
    client: httpx.AsyncClient, secured_url: str, owner: str, task_id: str, method: str
) -> None:
    check(await client.request(method, f"/api/{owner}/tasks/{task_id}"), 404, 422)
    check(await client.request(method, f"/nope/{owner}/{task_id}"), 404)
    check(await client.request(method, f"{secured_url}/api/{owner}/tasks/{task_id}"), 401, 404)


names: Final = st.sampled_from(["status", "completed", "search", "sort", "limit", "cursor"]) | any_segment
values: Final = st.sampled_from(["", "all", "true", "-title", "1", "-1", "1e3", "1_0", "%2B1", "NaN"]) | any_segment


@hostile
@given(query=st.lists(st.tuples(names, values).map("=".join), max_size=8), separator=st.sampled_from("&;?=#"))
async def test_an_arbitrary_query_is_200_or_422(
    client: httpx.AsyncClient, tasks: str, query: list[str], separator: str
) -> None:
    check(await client.get(tasks + "?" + separator.join(query)), 200, 422)


@hostile
@given(value=any_header)
@example(value=b"application/json;" * 500)
@example(value=b"handling=strict, handling=lenient" * 200)
@example(value=b"\x00")
@example(value=b"\xff")
@pytest.mark.parametrize(
    "name", ["Accept", "Authorization", "Content-Type", "Host", "If-Match", "Origin", "Prefer", "X-Request-ID"]
)
async def test_an_arbitrary_header_value_is_accepted_or_gets_a_problem(
    client: httpx.AsyncClient, tasks: str, name: str, value: bytes
) -> None:
    lines = {b"Host": b"localhost", b"Content-Type": b"application/json", name.encode(): value}
    fields = b"".join(b"%s: %s\r\n" % line for line in lines.items())
    request = b"POST %s HTTP/1.1\r\n%sContent-Length: 14\r\nConnection: close\r\n\r\n" % (tasks.encode(), fields)

    status, head, _ = await exchange(client.base_url, request + b'{"title": "a"}')

    assert status in ({201, 400, 421} if name == "Host" else {201, 400, 415})
    assert (b"application/problem+json" in head) == (status != 201)
    assert b"\r\nx-request-id: " in head

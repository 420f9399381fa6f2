"""The tools of agents: the results and errors of each, compared with the JSON API."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx
import jsonschema  # type: ignore[import-untyped]
import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.core.config import Settings
from app.routes.tools import TOOLS
from tests.agents import ERAS, Agent, client_of

NAMES: Final = ("add_task", "list_tasks", "complete_task", "update_task", "delete_task")
ARGUMENTS: Final[dict[str, Any]] = {"add_task": {"title": "a"}, "list_tasks": {}}  # of tools that take no `task_id`
MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
NOT_FOUND: Final = "task-not-found: There is no such task."
CHANGED: Final = (
    "precondition-failed: The task has changed since. Look at it with list_tasks, then repeat with its new updated_at."
)
NO_VERSION: Final = "invalid-request: if_updated_at: must be the updated_at that list_tasks has shown"
WORD: Final = "zq9word"

examples: Final = hypothesis_settings(
    max_examples=40,
    deadline=None,  # the machine may be busy
    # All examples may share one user.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def added(agent: Agent, **arguments: Any) -> dict[str, Any]:
    """Adds a task. Returns it as the JSON API shows it."""
    done = await agent.done("add_task", **{"title": "Buy oat milk"} | arguments)
    [task] = [each for each in await agent.tasks() if each["id"] == done["task_id"]]
    return task


async def pages_of(agent: Agent) -> list[Any]:
    """Returns all pages of the tasks."""
    pages = [await agent.done("list_tasks")]
    while cursor := pages[-1]["next_cursor"]:
        pages.append(await agent.done("list_tasks", cursor=cursor))
    return [page["tasks"] for page in pages]


class TestAdd:
    async def test_a_new_task_has_what_was_sent(self, agent: Agent) -> None:
        for sent in ({"title": "a"}, {"title": "b", "description": "c", "completed": True}):
            done = await agent.done("add_task", **sent)
            newest = (await agent.tasks())[0]

            assert done == {"task_id": newest["id"], "status": "created", "title": sent["title"]}
            assert newest | {"description": None, "completed": False} | sent == newest

    async def test_a_repeated_call_with_its_key_creates_no_second_task(self, agent: Agent) -> None:
        sent = {"title": "a", "description": "b", "idempotency_key": "k1"}

        first = await agent.done("add_task", **sent)
        repeated = await asyncio.gather(*(agent.done("add_task", **sent) for _ in range(3)))

        assert repeated == [first] * 3
        assert len(await agent.tasks()) == 1
        assert (await agent.error("add_task", title="c", idempotency_key="k1")).startswith("invalid-request: This task")
        assert (await agent.done("add_task", title="a", idempotency_key="k2"))["task_id"] != first["task_id"]

    async def test_a_key_means_the_same_task_to_the_json_api_and_to_nobody_else(self, agent: Agent) -> None:
        created = await agent.rest("POST", json={"title": "a"}, headers={"Idempotency-Key": "k1"})

        tasks = [await each.done("add_task", title="a", idempotency_key="k1") for each in (agent, agent.eve)]

        assert [each["task_id"] == created.json()["id"] for each in tasks] == [True, False]

    async def test_a_key_has_the_bounds_of_the_header(self, agent: Agent) -> None:
        await agent.done("add_task", title="a", idempotency_key=" ~")
        for key in ("", "é", "a" * 256, "\n"):
            refusal = await agent.error("add_task", title="a", idempotency_key=key)
            assert refusal.startswith("invalid-request: idempotency_key: ")


class TestList:
    async def test_tasks_are_as_the_json_api_shows_them(self, agent: Agent) -> None:
        for title in ("b", "A", "c"):
            await added(agent, title=title, completed=title == "c")

        queries: tuple[dict[str, Any], ...] = (
            {},
            *({"status": status} for status in ("all", "pending", "completed")),
            *({"sort": sort} for sort in ("title", "-title", "created_at", "-created_at", "updated_at", "-updated_at")),
            {"search": "B", "limit": 1},
            {"search": "B", "limit": 1.0},
        )
        for query in queries:
            page = await agent.done("list_tasks", **query)
            assert page == {"tasks": await agent.tasks(**{**query, "limit": 100}), "next_cursor": None}

    async def test_a_cursor_leads_through_250_tasks_in_pages_of_100(
        self, agent: Agent, database: asyncpg.Connection
    ) -> None:
        await database.execute(
            "INSERT INTO tasks (user_id, id, title, completed) SELECT $1, gen_random_uuid(), i, false "
            "FROM generate_series(1, 250) i",
            agent.user,
        )
        pages = await pages_of(agent)
        cursor = (await agent.done("list_tasks", limit=1))["next_cursor"]

        assert [len(page) for page in pages] == [100, 100, 50]
        assert [task for page in pages for task in page] == await agent.tasks()
        for other in ({"status": "pending"}, {"sort": "title"}):
            refusal = await agent.error("list_tasks", cursor=cursor, **other)
            assert refusal == "invalid-request: cursor: does not belong to this list; start again without it"

    async def test_fields_that_are_kept_are_shown_and_kept(self, secured_tools: Settings, user: str) -> None:
        async with client_of(secured_tools.model_copy(update={"unknown_fields": "keep"})) as client:
            agent = Agent(client, user)
            created = await agent.rest("POST", json={"title": "a", "colour": "red"})
            await agent.call("update_task", task_id=created.json()["id"], title="b", colour="blue")
            done = await agent.done("list_tasks")

        assert [(task["title"], task["colour"]) for task in done["tasks"]] == [("b", "red")]

    async def test_only_what_the_schema_shows_is_accepted(self, agent: Agent) -> None:
        refused: dict[str, tuple[object, ...]] = {
            "limit": (0, 101, 10**400, "5", 1.5, True),
            "status": ("done", "Pending", "", 1),
            "sort": ("created", "title desc", ""),
            "search": ("a" * 201, "\0", 1),
            "cursor": (WORD, 1),
        }
        for name, values in refused.items():
            for value in values:
                assert (await agent.error("list_tasks", **{name: value})).startswith(f"invalid-request: {name}: ")
        others = {"q": "b", "sort_by": "title", "order": "sideways", "sort_order": "asc", "completed": True}
        task = await added(agent)
        page, texts = await agent.call("list_tasks", **others)
        assert page["tasks"] == [task]
        assert texts[1:] == [f"Ignored, because list_tasks has no such argument: {', '.join(others)}"]

    async def test_a_page_of_long_tasks_has_at_most_64_kib_and_the_cursor_leads_to_the_rest(
        self, agent: Agent, database: asyncpg.Connection
    ) -> None:
        """REST allows 1 MiB. Few clients show a model that much, and a call would write each emoji in 24 bytes."""
        insert = "INSERT INTO tasks (user_id, id, title, description) VALUES ($1, gen_random_uuid(), 'a', $2)"
        await database.executemany(insert, [(agent.user, text * 5_000) for text in "😀\x01" * 4])

        pages = await pages_of(agent)

        assert [task for page in pages for task in page] == await agent.tasks()
        assert max(len(orjson.dumps(page)) for page in pages) <= 65_536


class TestComplete:
    async def test_a_call_that_is_repeated_undoes_nothing(self, agent: Agent) -> None:
        task = await added(agent)
        expected = {"task_id": task["id"], "title": task["title"]}

        for sent, status in (({}, "completed"), ({"completed": None}, "completed"), ({"completed": False}, "updated")):
            for _ in range(2):
                done = await agent.done("complete_task", task_id=task["id"], **sent)
                assert done == expected | {"status": status}
                assert [each["completed"] for each in await agent.tasks()] == [status == "completed"]

    async def test_a_state_other_than_true_or_false_is_refused(self, agent: Agent) -> None:
        task = await added(agent)

        for completed in "true", 1, [0]:
            refusal = await agent.error("complete_task", task_id=task["id"], completed=completed)
            assert refusal == "invalid-request: completed: must be a valid boolean"
        assert await agent.tasks() == [task]


class TestUpdate:
    async def test_only_the_fields_that_are_sent_are_changed(self, agent: Agent) -> None:
        task = await added(agent, description="b")
        for changes in ({"title": "c"}, {"completed": True}, {"description": "d"}):
            done = await agent.done("update_task", task_id=task["id"], **changes)
            [updated] = await agent.tasks()

            assert updated == task | changes | {"updated_at": updated["updated_at"]}
            assert done == {"task_id": task["id"], "status": "updated", "title": updated["title"]}
            task = updated

    async def test_null_counts_as_absent_and_an_empty_text_clears_a_description(self, agent: Agent) -> None:
        task = await added(agent, description="b")
        nulls = {"title": None, "description": None, "completed": None, "if_updated_at": None}

        await agent.done("update_task", task_id=task["id"], **nulls)
        assert await agent.tasks() == [task]

        await agent.done("update_task", task_id=task["id"], **nulls | {"description": ""})
        [cleared] = await agent.tasks()
        assert cleared == task | {"description": None, "updated_at": cleared["updated_at"]}

    async def test_a_stale_version_changes_nothing_and_the_refusal_says_what_to_do(self, agent: Agent) -> None:
        task = await added(agent)
        change = {"task_id": task["id"], "if_updated_at": task["updated_at"]}

        await agent.done("update_task", title="b", **change)
        assert await agent.error("update_task", title="c", **change) == CHANGED
        [task] = await agent.tasks()
        assert task["title"] == "b"

        [shown] = (await agent.done("list_tasks"))["tasks"]
        await agent.done("update_task", **change | {"title": "c", "if_updated_at": shown["updated_at"]})
        assert [each["title"] for each in await agent.tasks()] == ["c"]
        assert await agent.error("update_task", **change | {"task_id": MISSING}) == NOT_FOUND

    async def test_a_malformed_version_is_refused(self, agent: Agent) -> None:
        task = await added(agent)

        for version in ("", WORD, "2026-11-22", '"', "*", '2026-11-22T09:30:00.123456Z", "'):
            assert await agent.error("update_task", task_id=task["id"], title="b", if_updated_at=version) == NO_VERSION
        refusal = await agent.error("update_task", task_id=task["id"], title="b", if_updated_at=5)
        assert refusal == "invalid-request: if_updated_at: must be a valid string"
        assert await agent.tasks() == [task]


class TestDelete:
    async def test_a_task_is_gone_and_its_title_is_told(self, agent: Agent) -> None:
        task, other = await added(agent), await added(agent)

        done = await agent.done("delete_task", task_id=task["id"])

        assert done == {"task_id": task["id"], "status": "deleted", "title": task["title"]}
        assert await agent.tasks() == [other]
        assert await agent.error("delete_task", task_id=task["id"]) == NOT_FOUND


class TestEveryTool:
    async def test_it_has_a_description_and_its_results_fit_its_output_schema(self, agent: Agent) -> None:
        listed = (await agent.send("tools/list")).json()["result"]["tools"]
        schemas = {each["name"]: each["outputSchema"] for each in listed}
        task_id = (await added(agent))["id"]
        arguments = {name: ARGUMENTS.get(name, {"task_id": task_id}) for name in NAMES}

        assert tuple(schemas) == NAMES
        assert all(each["description"] for each in listed)
        for name, schema in schemas.items():
            jsonschema.Draft202012Validator.check_schema(schema)
            jsonschema.validate(await agent.done(name, **arguments[name]), schema)
            with pytest.raises(jsonschema.ValidationError):  # the positive control
                jsonschema.validate({}, schema)

    async def test_an_id_that_no_task_has_is_not_found(self, agent: Agent) -> None:
        for name in ("complete_task", "update_task", "delete_task"):
            for task_id in (MISSING, "1", "", 5, True, [MISSING], {"id": MISSING}, "\0", MISSING + "0"):
                assert await agent.error(name, task_id=task_id) == NOT_FOUND
            for absent in ({}, {"task_id": None}):
                assert await agent.error(name, **absent) == "invalid-request: task_id: is required"

    async def test_a_refusal_also_names_the_argument_that_was_perhaps_meant(self, agent: Agent) -> None:
        _, texts = await agent.call("delete_task", id=MISSING)

        assert texts == [
            "invalid-request: task_id: is required",
            "Ignored, because delete_task has no such argument: id",
        ]

    async def test_an_argument_that_it_does_not_know_has_no_effect_and_is_named(self, agent: Agent) -> None:
        task = await added(agent)
        others = {"colour": WORD, **{f"{number:02}{'a' * 50}": WORD for number in range(30)}}
        shown = ["colour", *(f"{number:02}{'a' * 38}" for number in range(19))]
        for name in NAMES:
            known = ARGUMENTS.get(name, {"task_id": task["id"]})
            content, [text, remark] = await agent.call(name, **known, **others)

            assert json.loads(text) == content
            assert remark == f"Ignored, because {name} has no such argument: {', '.join(shown)}"

    @examples
    @given(
        title=st.text(max_size=3) | st.text("ab \0é", min_size=199, max_size=201) | st.integers(),
        others=st.fixed_dictionaries(
            {},
            optional={
                "description": st.text(max_size=3) | st.sampled_from([None, True, "a" * 5_000, "a" * 5_001]),
                "completed": st.booleans() | st.sampled_from(["true", 1, 0.0]),
            },
        ),
    )
    async def test_its_bounds_and_refusals_are_those_of_the_json_api_and_fit_its_schema(
        self, agents: httpx.AsyncClient, user: str, title: object, others: dict[str, Any]
    ) -> None:
        agent, sent = Agent(agents, user), {"title": title, **others}
        created = await agent.rest("POST", json=sent)
        task_id = created.json().get("id", MISSING)
        updated = await agent.rest("PUT", f"/{task_id}", json=sent)

        for name, ids, reply in (("add_task", {}, created), ("update_task", {"task_id": task_id}, updated)):
            content, [text] = await agent.call(name, **ids, **sent)
            if content:
                assert (reply.is_success, content["title"]) == (True, title)
                given = {key: value for key, value in sent.items() if value is not None}
                jsonschema.validate(ids | given, TOOLS[name].definition.input_schema)
            else:
                problem = reply.json()
                assert text == f"{problem['type'].rpartition(':')[2]}: {problem['detail']}"


numbers: Final = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts: Final = st.sampled_from([WORD, MISSING]) | st.text(max_size=5).map(lambda text: WORD + text)
any_value: Final = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just(WORD), inner, max_size=3),
    max_leaves=5,
)
any_name: Final = st.sampled_from(
    sorted(
        {name for tool in TOOLS.values() for name in tool.definition.input_schema["properties"]}
        | {"user_id", "_meta", "self", "colour"}
    )
)


@pytest.fixture
async def another(
    agents: httpx.AsyncClient, new_user: Callable[[], str], database: asyncpg.Connection
) -> AsyncIterator[str]:
    """The user of the task MISSING, whose own agent finds it unchanged at the end, and may delete it."""
    agent = Agent(agents, new_user())
    insert = "INSERT INTO tasks (user_id, id, title, completed) VALUES ($1, $2, 'a', false)"
    await database.execute(insert, agent.user, UUID(MISSING))
    before = await agent.tasks()
    yield agent.user
    assert await agent.tasks() == before
    assert (await agent.done("delete_task", task_id=MISSING))["status"] == "deleted"  # the positive control


@examples
@given(
    era=st.sampled_from(ERAS),
    tool=st.sampled_from(NAMES),
    arguments=st.dictionaries(any_name, any_value, max_size=4) | any_value.filter(lambda each: type(each) is not dict),
)
async def test_any_arguments_get_a_result_or_an_error_that_quotes_nothing_and_reach_no_task_of_another_user(
    agents: httpx.AsyncClient, user: str, another: str, era: str, tool: str, arguments: Any
) -> None:
    if isinstance(arguments, dict) and "user_id" in arguments:
        arguments["user_id"] = another
    reply = await Agent(agents, user, era).send("tools/call", name=tool, arguments=arguments)

    answer = reply.json()
    failed = answer.get("error") or (answer["result"] if answer["result"]["isError"] else None)
    assert reply.status_code == 200 or (reply.status_code, answer["error"]["code"]) == (400, -32602)
    assert failed is None or not any(word in json.dumps(failed) for word in (WORD, "Traceback", "pydantic", "asyncpg"))

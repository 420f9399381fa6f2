"""The tools of agents: the results and errors of each, compared with the JSON API."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.core.config import Settings
from app.routes.tools import TOOLS
from tests.agents import ERAS, Agent, token_of
from tests.support import serving, short

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
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # all examples may share one user
)


async def definitions(agent: Agent) -> dict[str, dict[str, Any]]:
    """What a model knows of each tool."""
    listed = (await agent.send("tools/list")).json()["result"]["tools"]
    return {each["name"]: each for each in listed}


async def added(agent: Agent, **arguments: Any) -> dict[str, Any]:
    """Adds a task. Returns it as the JSON API shows it."""
    done = await agent.done("add_task", **{"title": "Buy oat milk"} | arguments)
    [task] = [each for each in await agent.tasks() if each["id"] == done["task_id"]]
    return task


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
        headers = token_of(agent.user) | {"Idempotency-Key": "k1"}
        created = await agent.client.post(f"/api/{agent.user}/tasks", json={"title": "a"}, headers=headers)
        eve = Agent(agent.client, f"{agent.user}-eve", agent.era)

        tasks = [await each.done("add_task", title="a", idempotency_key="k1") for each in (agent, eve)]

        assert [each["task_id"] == created.json()["id"] for each in tasks] == [True, False]

    @pytest.mark.parametrize(
        ("key", "refused"), [("", True), ("é", True), ("a" * 256, True), ("\n", True), (" ~", False)]
    )
    async def test_a_key_has_the_bounds_of_the_header(self, agent: Agent, key: str, *, refused: bool) -> None:
        outcome = await agent.call("add_task", title="a", idempotency_key=key)

        assert (outcome.content is None) is refused
        assert not refused or outcome.texts[0].startswith("invalid-request: idempotency_key: ")


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
        pages = [await agent.done("list_tasks")]
        while cursor := pages[-1]["next_cursor"]:
            pages.append(await agent.done("list_tasks", cursor=cursor, limit=100))

        assert [len(page["tasks"]) for page in pages] == [100, 100, 50]
        assert [task for page in pages for task in page["tasks"]] == await agent.tasks()
        for other in ({"status": "pending"}, {"sort": "title"}):
            refusal = await agent.error("list_tasks", cursor=pages[0]["next_cursor"], **other)
            assert refusal == "invalid-request: cursor: does not belong to this list; start again without it"

    async def test_fields_that_are_kept_are_shown_and_kept(self, secured_tools: Settings, user: str) -> None:
        settings = secured_tools.model_copy(update={"unknown_fields": "keep"})
        async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            agent, sent = Agent(client, user), {"title": "a", "colour": "red"}
            created = await client.post(f"/api/{user}/tasks", json=sent, headers=token_of(user))
            await agent.call("update_task", task_id=created.json()["id"], title="b", colour="blue")
            done = await agent.done("list_tasks")

        assert [(task["title"], task["colour"]) for task in done["tasks"]] == [("b", "red")]

    @pytest.mark.parametrize(
        "query",
        [
            *({"limit": limit} for limit in (0, 101, 10**400, "5", 1.5, True)),
            *({"status": status} for status in ("done", "Pending", "", 1)),
            *({"sort": sort} for sort in ("created", "title desc", "")),
            *({"search": search} for search in ("a" * 201, "\0", 1)),
            *({"cursor": cursor} for cursor in (WORD, 1)),
        ],
        ids=short,
    )
    async def test_only_what_the_schema_shows_is_accepted(self, agent: Agent, query: dict[str, Any]) -> None:
        [name] = query
        assert (await agent.error("list_tasks", **query)).startswith(f"invalid-request: {name}: ")


class TestComplete:
    async def test_a_call_that_is_repeated_undoes_nothing(self, agent: Agent) -> None:
        task = await added(agent)
        expected = {"task_id": task["id"], "title": task["title"]}

        for arguments, status in (
            ({}, "completed"),
            ({"completed": None}, "completed"),
            ({"completed": False}, "updated"),
        ):
            for _ in range(2):
                assert await agent.done("complete_task", task_id=task["id"], **arguments) == expected | {
                    "status": status
                }
                assert [each["completed"] for each in await agent.tasks()] == [status == "completed"]

    @pytest.mark.parametrize("completed", ["true", 1, []])
    async def test_a_state_other_than_true_or_false_is_refused(self, agent: Agent, completed: object) -> None:
        task = await added(agent)

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

    @pytest.mark.parametrize("version", ["", WORD, "2026-11-22", '"', "*", 5, '2026-11-22T09:30:00.123456Z", "'])
    async def test_a_malformed_version_is_refused(self, agent: Agent, version: object) -> None:
        task = await added(agent)

        refusal = await agent.error("update_task", task_id=task["id"], title="b", if_updated_at=version)

        assert refusal == (
            NO_VERSION if isinstance(version, str) else "invalid-request: if_updated_at: must be a valid string"
        )
        assert await agent.tasks() == [task]


class TestDelete:
    async def test_a_task_is_gone_and_its_title_is_told(self, agent: Agent) -> None:
        task, other = await added(agent), await added(agent)

        done = await agent.done("delete_task", task_id=task["id"])

        assert done == {"task_id": task["id"], "status": "deleted", "title": task["title"]}
        assert await agent.tasks() == [other]
        assert await agent.error("delete_task", task_id=task["id"]) == NOT_FOUND


class TestEveryTool:
    async def test_its_results_fit_its_output_schema(self, agent: Agent) -> None:
        known = await definitions(agent)
        task_id = (await added(agent))["id"]
        arguments = {name: ARGUMENTS.get(name, {"task_id": task_id}) for name in NAMES}

        assert tuple(known) == NAMES
        for name in NAMES:
            jsonschema.Draft202012Validator.check_schema(known[name]["outputSchema"])
            jsonschema.validate(await agent.done(name, **arguments[name]), known[name]["outputSchema"])
            with pytest.raises(jsonschema.ValidationError):  # the positive control
                jsonschema.validate({}, known[name]["outputSchema"])

    @pytest.mark.parametrize("task_id", [MISSING, "1", "", 5, True, [], {"id": MISSING}, "\0", MISSING.upper() + "0"])
    async def test_an_id_that_no_task_has_is_not_found(self, agent: Agent, task_id: object) -> None:
        for name in ("complete_task", "update_task", "delete_task"):
            assert await agent.error(name, task_id=task_id, title="a") == NOT_FOUND
            for absent in ({}, {"task_id": None}):
                assert await agent.error(name, **absent) == "invalid-request: task_id: is required"

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
                "description": st.none()
                | st.text(max_size=3)
                | st.just("a" * 5_000)
                | st.just("a" * 5_001)
                | st.booleans(),
                "completed": st.booleans() | st.sampled_from(["true", 1, 0.0]),
            },
        ),
    )
    async def test_its_bounds_and_refusals_are_those_of_the_json_api_and_fit_its_schema(
        self, agents: httpx.AsyncClient, user: str, title: object, others: dict[str, Any]
    ) -> None:
        agent, sent = Agent(agents, user), {"title": title, **others}
        created = await agents.post(f"/api/{user}/tasks", json=sent, headers=token_of(user))
        url = created.headers.get("Location", f"/api/{user}/tasks/{uuid4()}")
        task_id = url.rpartition("/")[2]
        updated = await agents.put(url, json=sent, headers=token_of(user))

        for name, ids, reply in (("add_task", {}, created), ("update_task", {"task_id": task_id}, updated)):
            content, [text] = await agent.call(name, **ids, **sent)
            if content:
                assert (reply.is_success, content["title"]) == (True, title)
                given = {key: value for key, value in sent.items() if value is not None}
                jsonschema.validate(ids | given, TOOLS[name].definition.input_schema)
            else:
                problem = reply.json()
                assert text == f"{problem['type'].rpartition(':')[2]}: {problem['detail']}"


any_value: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([WORD, MISSING])
    | st.text(max_size=5).map(lambda text: WORD + text),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just(WORD), inner, max_size=3),
    max_leaves=5,
)
any_name: Final = st.sampled_from(
    [
        *("title", "description", "completed", "task_id", "if_updated_at", "idempotency_key", "status", "search"),
        *("sort", "limit", "cursor", "q", "order", "sort_by", "user_id", "_meta", "self", "db", WORD),
    ]
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
    arguments=st.dictionaries(any_name, any_value, max_size=4) | any_value,
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

"""The tools for agents: their arguments, what they do, and what they return. `routes/mcp.py` serves them.

A docstring of a tool is what a model reads to choose it. Every conversation repeats all names, docstrings and schemas.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final, Required, TypeVar, get_type_hints
from uuid import UUID

import mcp_types as types
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config

from app.core.database import Database
from app.core.errors import FieldError, InvalidRequestError, TaskNotFoundError
from app.http.problems import cut_name, invalid_request
from app.models.task import WireTask
from app.routes.deps import or_missing, version_of
from app.schemas import words
from app.schemas.compact import compact_schema
from app.schemas.task import KEY_MAX, UNCONDITIONAL, Conditions, TaskCreate, TaskQuery, TaskUpdate
from app.services import tasks

_NAMES_SHOWN: Final = 20
_LIMIT_MAX: Final = 100  # tasks of a page; a model reads all of it
_PAGE_MAX: Final = 65_536  # bytes of a page; clients cut longer results, and the protocol sends them twice and escaped
_CHANGED: Final = "The task has changed since. Look at it with list_tasks, then repeat with its new updated_at."

_TaskId = Annotated[UUID, Field(strict=False), or_missing(TaskNotFoundError)]
_Run = TypeVar("_Run", bound=Callable[[Database, str, Any], Awaitable[dict[str, Any]]])


class Tool:
    """A function with its definition, which is what agents see of it."""

    def __init__(self, run: _Run, output_schema: dict[str, Any], annotations: dict[str, bool]) -> None:
        *_, arguments, _ = get_type_hints(run, include_extras=True).values()
        self._run, self._arguments = run, TypeAdapter[Any](arguments)
        self.definition = types.Tool(
            name=run.__name__,
            description=inspect.getdoc(run),
            input_schema=compact_schema(self._arguments.json_schema()),
            output_schema=output_schema,
            annotations=types.ToolAnnotations(**annotations) if annotations else None,
        )
        self._known = self.definition.input_schema["properties"].keys()

    async def call(self, db: Database, user_id: str, sent: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the result. Raises AppError. `null` counts as absent, and what the schema does not show too."""
        given = {name: value for name, value in sent.items() if name in self._known and value is not None}
        try:
            arguments = self._arguments.validate_python(given)
        except ValidationError as error:
            raise invalid_request([{**each, "loc": ("body", *each["loc"])} for each in error.errors()]) from None
        return await self._run(db, user_id, arguments)

    def ignored(self, sent: Mapping[str, Any]) -> list[str]:
        """Returns the first names that the tool does not know, and that have no effect."""
        return [cut_name(name) for name in sent if name not in self._known][:_NAMES_SHOWN]


# What tools return, as JSON Schemas.
_DONE: Final = {"type": "object", "required": ["task_id", "status", "title"]}
_PAGE: Final = {"type": "object", "properties": {"tasks": {"type": "array"}}, "required": ["tasks", "next_cursor"]}

TOOLS: Final[dict[str, Tool]] = {}


def _whole(number: object) -> object:
    """Returns 5 for 5.0, an integer in JSON Schema. Some clients have no other numbers than floats."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


class AddTask(TaskCreate):
    """A new task."""

    idempotency_key: Annotated[str, Field(min_length=1, max_length=KEY_MAX, pattern="^[ -~]*$")] | None = None


class ListTasks(TaskQuery):
    """A query of lists whose words are exact, as a model can read them in the schema."""

    status: words.State = "all"
    sort: words.Sort = words.NEWEST_FIRST
    completed: Annotated[bool | None, words.Undocumented] = None
    cursor: str = ""  # its checksum refuses any other, so a bound would only lengthen the schema
    limit: Annotated[int, Field(strict=True, ge=1, le=_LIMIT_MAX), BeforeValidator(_whole)] = _LIMIT_MAX


class TaskReference(BaseModel):
    """One task."""

    task_id: _TaskId


class CompleteTask(TaskReference):
    """The state to set. A call that is repeated changes nothing more."""

    model_config = ConfigDict(strict=True)

    completed: bool = True


@with_config(strict=True)
class UpdateTask(TaskUpdate, total=False):
    """What to change in which task, and in which version of it."""

    task_id: Required[_TaskId]
    if_updated_at: str


def tool(output_schema: dict[str, Any], **annotations: bool) -> Callable[[_Run], _Run]:
    """Returns a decorator that registers a function as a tool. Its last parameter has the arguments."""

    def register(run: _Run) -> _Run:
        TOOLS[run.__name__] = Tool(run, output_schema, annotations)
        return run

    return register


def _done(task: WireTask, status: str) -> dict[str, Any]:
    return {"task_id": task.id, "status": status, "title": task.title}


@tool(_DONE, destructive_hint=False)
async def add_task(db: Database, user_id: str, new: AddTask) -> dict[str, Any]:
    """Create a task; returns its task_id. Repeat a failed call with the same idempotency_key."""
    created = await tasks.create_task(db, user_id, new, new.idempotency_key)
    return _done(created.task, "created")


@tool(_PAGE, read_only_hint=True)
async def list_tasks(db: Database, user_id: str, query: ListTasks) -> dict[str, Any]:
    """Find tasks; their id is the task_id of other tools. Unless next_cursor is null, pass it as cursor for more."""
    page = await tasks.list_tasks(db, user_id, query, _PAGE_MAX)
    return {"tasks": page.tasks, "next_cursor": page.next_cursor}


@tool(_DONE, destructive_hint=False)
async def complete_task(db: Database, user_id: str, change: CompleteTask) -> dict[str, Any]:
    """Mark a task as completed, or as pending with completed=false. Safe to repeat."""
    task = await tasks.complete_task(db, user_id, change.task_id, change.completed, UNCONDITIONAL)
    return _done(task, "completed" if change.completed else "updated")


@tool(_DONE)
async def update_task(db: Database, user_id: str, change: UpdateTask) -> dict[str, Any]:
    """Change only the fields sent; "" clears a description. With if_updated_at, fails if the task has changed since."""
    changes: Any = {name: value for name, value in change.items() if name in TaskUpdate.__annotations__}
    if changes.get("description") == "":
        changes["description"] = None
    task = await tasks.update_task(db, user_id, change["task_id"], changes, _conditions(change.get("if_updated_at")))
    return _done(task, "updated")


@tool(_DONE)
async def delete_task(db: Database, user_id: str, reference: TaskReference) -> dict[str, Any]:
    """Delete a task for good, if the user asks for it."""
    task = await tasks.delete_task(db, user_id, reference.task_id, UNCONDITIONAL)
    return _done(task, "deleted")


def _conditions(updated_at: str | None) -> Conditions:
    if updated_at is None:
        return UNCONDITIONAL
    version = version_of(f'"{updated_at}"')
    if version is None:
        raise InvalidRequestError([FieldError("#/if_updated_at", "must be the updated_at that list_tasks has shown")])
    return Conditions([version], failed_detail=_CHANGED)

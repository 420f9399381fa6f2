"""The six task endpoints."""

from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import quote, quote_plus

from fastapi import APIRouter, Body, Query, Request, Response

from app.core.errors import FieldError, InvalidRequestError
from app.http.fast_lane import JSONRoute, RowResponse
from app.http.openapi import CHANGE, CREATE, DELETE, LIST, READ
from app.http.preferences import UnknownNames, unknown_names_error
from app.models.task import WireTask
from app.routes.deps import Db, IdempotencyKey, KeptFields, RequestConditions, TaskId, Unknown, UserId
from app.schemas.task import Completion, CompletionQuery, TaskCreate, TaskList, TaskQuery, TaskResponse, TaskUpdate
from app.services import tasks

_TOGGLE_OR_SET: Final[Any] = Body(openapi_examples={"toggle": {"value": {}}, "set": {"value": {"completed": True}}})

_REPEATED: Final = TaskQuery.model_fields.keys() - {"cursor"}  # query parameters that the link to the next page repeats

router = APIRouter(prefix="/api/{user_id}/tasks", tags=["tasks"], route_class=JSONRoute)


@router.post("", summary="Create a task", response_model=TaskResponse, status_code=201, **CREATE)
async def create_task(
    db: Db, user_id: UserId, body: TaskCreate, key: IdempotencyKey, kept: KeptFields, request: Request
) -> Response:
    """Create a task. `Location` is its address. With `Idempotency-Key`, sending it again creates no second one."""
    task, replayed = await tasks.create_task(db, user_id, body, key, kept)
    headers = {"ETag": tasks.entity_tag(task), "Location": f"{_path(request)}/{task.id}"}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return RowResponse(task, HTTPStatus.CREATED, headers)


@router.get("", summary="List tasks", response_model=TaskList, **LIST)
async def list_tasks(db: Db, user_id: UserId, query: Annotated[TaskQuery, Query()], request: Request) -> Response:
    """List the user's tasks, newest first.

    When there are more, the header `Link` leads to the next page: `</api/...>; rel="next"`.
    """
    page = await tasks.list_tasks(db, user_id, query)
    reply = RowResponse(page.tasks)
    if page.next_cursor:
        reply.headers["Link"] = f'<{_next_page(request, page.next_cursor)}>; rel="next"'
    return reply


@router.get("/{task_id}", summary="Read a task", response_model=TaskResponse, **READ)
async def get_task(db: Db, user_id: UserId, task_id: TaskId, conditions: RequestConditions) -> Response:
    """Read one task."""
    return _reply(await tasks.get_task(db, user_id, task_id, conditions))


@router.put("/{task_id}", summary="Update a task", response_model=TaskResponse, **CHANGE)
async def update_task(
    db: Db, user_id: UserId, task_id: TaskId, body: TaskUpdate, conditions: RequestConditions, kept: KeptFields
) -> Response:
    """Change the fields that are sent and keep the others. `"description": null` clears the description."""
    return _reply(await tasks.update_task(db, user_id, task_id, body, conditions, kept))


@router.patch("/{task_id}/complete", summary="Complete a task", response_model=TaskResponse, **CHANGE)
async def complete_task(
    db: Db,
    user_id: UserId,
    task_id: TaskId,
    conditions: RequestConditions,
    query: Annotated[CompletionQuery, Query()],
    unknown: Unknown,
    body: Annotated[Completion | None, _TOGGLE_OR_SET] = None,
) -> Response:
    """Toggle `completed`, or set it with `{"completed": true}`, which is safe to repeat.

    A request with other names and without `completed` is refused.
    """
    completed = _state(body, query, unknown)
    return _reply(await tasks.complete_task(db, user_id, task_id, completed, conditions))


@router.delete("/{task_id}", summary="Delete a task", status_code=204, response_class=Response, **DELETE)
async def delete_task(db: Db, user_id: UserId, task_id: TaskId, conditions: RequestConditions) -> Response:
    """Delete a task for good."""
    await tasks.delete_task(db, user_id, task_id, conditions)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _state(body: Completion | None, query: CompletionQuery, unknown: UnknownNames) -> bool | None:
    """Returns the state to set, None to toggle. Raises InvalidRequestError if the request may mean something else."""
    in_body = body.get("completed") if body else None
    completed = query.completed if in_body is None else in_body
    fields = unknown.fields if in_body is None else ()
    parameters = unknown.parameters if completed is None else ()
    if fields or parameters:
        raise unknown_names_error(fields, parameters)
    if query.completed not in (None, completed):
        raise InvalidRequestError([FieldError("query/completed", "contradicts the body")])
    return completed


def _reply(task: WireTask) -> Response:
    reply = RowResponse(task, headers={"ETag": tasks.entity_tag(task)})
    # Another release may represent the same version with more fields, and a browser would keep the earlier ones.
    reply.raw_headers.append((b"cache-control", b"no-store"))  # one call; `headers` takes three
    return reply


def _path(request: Request) -> str:
    return quote(request.scope["path"])


def _next_page(request: Request, cursor: str) -> str:
    """Returns the URL relative to the host (RFC 8288 section 3.1), which stays valid behind a proxy."""
    asked = [f"{name}={quote_plus(value)}&" for name, value in request.query_params.multi_items() if name in _REPEATED]
    return f"{_path(request)}?{''.join(asked)}cursor={cursor}"

"""The six task endpoints."""

from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Body, Query, Request, Response

from app.models.task import TaskRow
from app.routes.contract import ContractRoute
from app.routes.deps import Db, TaskId, UserId
from app.routes.openapi import BODY_ERRORS, LIST_ERRORS, TASK_ERRORS, problems
from app.schemas.task import Completion, TaskCreate, TaskQuery, TaskResponse, TaskUpdate
from app.services import tasks

_TOGGLE_OR_SET: Final[Any] = Body(
    openapi_examples={"toggle": {"value": {}}, "set": {"value": {"completed": True}}},
)

router = APIRouter(prefix="/api/{user_id}/tasks", tags=["tasks"], route_class=ContractRoute)


@router.get("", response_model=list[TaskResponse], responses=problems(*LIST_ERRORS))
async def list_tasks(
    db: Db, user_id: UserId, query: Annotated[TaskQuery, Query()], request: Request, response: Response
) -> list[TaskRow]:
    """List the user's tasks, newest first.

    When there are more, the header `Link` leads to the next page: `</api/...>; rel="next"`.
    """
    page = await tasks.list_tasks(db, user_id, query)
    if page.next_cursor:
        response.headers["Link"] = f'<{_next_page(request, page.next_cursor)}>; rel="next"'
    return page.tasks


@router.post("", response_model=TaskResponse, status_code=201, responses=problems(*LIST_ERRORS, *BODY_ERRORS))
async def create_task(db: Db, user_id: UserId, body: TaskCreate, request: Request, response: Response) -> TaskRow:
    """Create a task. `Location` is its address."""
    task = await tasks.create_task(db, user_id, body)
    response.headers["Location"] = f"{quote(request.url.path)}/{task.id}"
    return task


@router.get("/{task_id}", response_model=TaskResponse, responses=problems(*TASK_ERRORS))
async def get_task(db: Db, user_id: UserId, task_id: TaskId) -> TaskRow:
    """Read one task."""
    return await tasks.get_task(db, user_id, task_id)


@router.put("/{task_id}", response_model=TaskResponse, responses=problems(*TASK_ERRORS, *BODY_ERRORS))
async def update_task(db: Db, user_id: UserId, task_id: TaskId, body: TaskUpdate) -> TaskRow:
    """Change the fields that are sent and keep the others. `"description": null` clears the description."""
    return await tasks.update_task(db, user_id, task_id, body)


@router.patch("/{task_id}/complete", response_model=TaskResponse, responses=problems(*TASK_ERRORS, *BODY_ERRORS))
async def complete_task(
    db: Db, user_id: UserId, task_id: TaskId, body: Annotated[Completion | None, _TOGGLE_OR_SET] = None
) -> TaskRow:
    """Toggle `completed`, or set it with `{"completed": true}`, which is safe to repeat."""
    return await tasks.complete_task(db, user_id, task_id, (body or {}).get("completed"))


@router.delete("/{task_id}", status_code=204, response_class=Response, responses=problems(*TASK_ERRORS))
async def delete_task(db: Db, user_id: UserId, task_id: TaskId) -> None:
    """Delete a task for good."""
    await tasks.delete_task(db, user_id, task_id)


def _next_page(request: Request, cursor: str) -> str:
    """Relative to the host (RFC 8288 section 3.1), so that no proxy in front can make it wrong."""
    asked = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    return f"{quote(request.url.path)}?{urlencode([*asked, ('cursor', cursor)])}"

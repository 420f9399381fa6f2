"""What a program does with the Python client of openapi-generator."""

import sys
from datetime import UTC, datetime
from uuid import UUID

import pytest
from openapi_client import (  # type: ignore[import-not-found]  # generated
    ApiClient,
    Completion,
    Configuration,
    ProblemType,
    TaskCreate,
    TasksApi,
    TaskUpdate,
)
from openapi_client.exceptions import NotFoundException  # type: ignore[import-not-found]  # generated

url, user, token = sys.argv[1:]
api = TasksApi(ApiClient(Configuration(host=url, access_token=token)))

task = api.create_task(user, TaskCreate(title="Buy oat milk", description="The barista one"))
assert isinstance(task.id, UUID)
assert isinstance(task.created_at, datetime)
assert task.created_at == task.updated_at <= datetime.now(UTC)
assert api.get_task(user, task.id) == task
assert api.list_tasks(user, completed=False) == [task]

updated = api.update_task(user, task.id, TaskUpdate(title="Buy milk"))
assert (updated.title, updated.description, updated.completed) == ("Buy milk", "The barista one", False)
assert updated.updated_at > updated.created_at == task.created_at
assert api.update_task(user, task.id, TaskUpdate(description=None)).description is None
assert api.complete_task(user, task.id).completed is True
assert api.complete_task(user, task.id, completion=Completion(completed=True)).completed is True
assert api.complete_task(user, task.id, completion=Completion()).completed is False

api.delete_task(user, task.id)
with pytest.raises(NotFoundException) as caught:
    api.get_task(user, task.id)
assert caught.value.data.type is ProblemType("urn:problem-type:task-not-found")
assert caught.value.data.status == caught.value.status

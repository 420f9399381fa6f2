"""The JSON Schema of a task compared with the behaviour of the service."""

import re
from datetime import UTC

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from app.http.fast_lane import RowResponse
from app.models.task import WireTask
from app.schemas.task import TaskList, TaskQuery, TaskResponse, Title
from app.services.tasks import _filters

TITLE = TypeAdapter(Title)
TIMES = st.datetimes(timezones=st.just(UTC))
TASKS = st.builds(TaskResponse, created_at=TIMES, updated_at=TIMES)  # Hypothesis knows the types of the other fields
ROWS = TASKS.map(lambda task: WireTask(**task.model_dump(mode="json")))


def accepted(title: str) -> bool:
    try:
        TITLE.validate_python(title)
    except ValidationError:
        return False
    return True


def test_the_pattern_of_a_title_allows_exactly_the_characters_that_the_service_accepts() -> None:
    pattern = re.compile(TITLE.json_schema()["pattern"])
    titles = [chr(point) for point in range(0x4000)]  # Unicode has no white space beyond this point

    assert [title for title in titles if accepted(title)] == [title for title in titles if pattern.search(title)]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(st.lists(ROWS, max_size=3))
def test_tasks_and_lists_are_serialized_as_their_schemas_say(rows: list[WireTask]) -> None:
    schema = TypeAdapter(TaskList)

    assert RowResponse(rows).body == schema.dump_json(schema.validate_python(rows, from_attributes=True))
    for row in rows:
        documented = TaskResponse.model_validate(row, from_attributes=True).model_dump_json()
        assert bytes(RowResponse(row).body).decode() == documented


def test_an_empty_parameter_of_a_list_is_as_if_absent() -> None:
    """A form sends one for a field that is not filled in. `BeforeValidator(... words.present ...)` has the effect."""
    for name in TaskQuery.model_fields:
        assert _filters(TaskQuery.model_validate({name: ""})) == {}, name

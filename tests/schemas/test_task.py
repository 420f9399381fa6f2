"""What the JSON Schema of a task says, and what the service does."""

import re

from pydantic import TypeAdapter, ValidationError

from app.schemas.task import Title

TITLE = TypeAdapter(Title)


def accepted(title: str) -> bool:
    try:
        TITLE.validate_python(title)
    except ValidationError:
        return False
    return True


def test_the_pattern_of_a_title_allows_exactly_the_characters_that_the_service_accepts() -> None:
    pattern = re.compile(TITLE.json_schema()["pattern"])
    titles = [chr(point) for point in range(0x4000)]  # beyond, Unicode has no white space

    assert [title for title in titles if accepted(title)] == [title for title in titles if pattern.search(title)]

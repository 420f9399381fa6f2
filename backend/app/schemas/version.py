"""Versions on the wire: the entity tag of a task is its `updated_at` in double quotes (RFC 9110 section 8.8.3)."""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final, NamedTuple

_TAG: Final = re.compile(r'"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)"', re.ASCII)


class Conditions(NamedTuple):
    """Which versions of a task a request is meant for (RFC 9110 section 13.1).

    One of `match`, and none of `none_match`; None puts no condition. `must_exist` makes a missing task
    a failed condition.
    """

    match: Sequence[datetime] | None = None
    none_match: Sequence[datetime] | None = None
    must_exist: bool = False


UNCONDITIONAL: Final = Conditions()


def timestamp(moment: datetime) -> str:
    """Returns RFC 3339, UTC with `Z` and always six digits of a second, so that times sort as text."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def entity_tag(updated_at: str) -> str:
    """Returns the strong entity tag of a task that was last changed then."""
    return f'"{updated_at}"'


def version_of(tag: str) -> datetime | None:
    """Returns the version that `tag` names, or None for a tag that no task can have."""
    ours = _TAG.fullmatch(tag)
    with suppress(ValueError):
        return datetime.fromisoformat(ours[1]) if ours else None
    return None

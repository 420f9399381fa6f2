"""Cursors: a decoded cursor has the encoded position, and any other text is refused."""

import string
from datetime import UTC, datetime
from typing import Final, get_args
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core.errors import InvalidRequestError
from app.schemas.task import timestamp
from app.schemas.words import Sort
from app.services.cursors import Position, _with_checksum, decode_cursor, encode_cursor
from app.services.tasks import SORT_KEYS

ID: Final = UUID("019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa")
LETTERS: Final = string.ascii_letters + string.digits + "-_"
TIMES: Final = st.datetimes(timezones=st.just(UTC)).map(timestamp)
KEYS: Final = {str: st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=200), datetime: TIMES}
SORTS: Final = st.sampled_from([sort for sort in get_args(Sort) if SORT_KEYS[sort.removeprefix("-")].kind in KEYS])
POSITIONS: Final = SORTS.flatmap(
    lambda sort: st.tuples(
        st.just(sort),
        st.builds(Position, KEYS[SORT_KEYS[sort.removeprefix("-")].kind], st.uuids()),
    )
)


def decoded(cursor: str, sort: str, scope: str = "scope") -> Position | None:
    """Returns None for a refusal, which has to name the parameter."""
    try:
        return decode_cursor(cursor, sort, scope, SORT_KEYS[sort.removeprefix("-")])
    except InvalidRequestError as error:
        refusal = error
    assert [item.pointer for item in refusal.errors] == ["query/cursor"]
    return None


class TestCursor:
    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(POSITIONS, SORTS, st.text(), st.text())
    def test_a_cursor_is_url_safe_and_valid_only_for_its_own_sort_and_scope(
        self, sorted_position: tuple[Sort, Position], other_sort: Sort, scope: str, other_scope: str
    ) -> None:
        sort, position = sorted_position

        cursor = encode_cursor(position, sort, scope)

        assert set(cursor) <= {*LETTERS}
        assert len(cursor) <= 2_048
        assert decoded(cursor, sort, scope) == position
        assert (decoded(cursor, other_sort, scope) is None) == (other_sort != sort)
        assert (decoded(cursor, sort, other_scope) is None) == (other_scope != scope)

    # Of the last character of a cursor, 0, 2 or 4 bits encode nothing.
    @pytest.mark.parametrize("title", ["a", "bb", "ccc"])
    def test_a_changed_lengthened_or_shortened_cursor_is_refused(self, title: str) -> None:
        cursor = encode_cursor(Position(title, ID), "title", "scope")
        odd = LETTERS + "+/= \0\xe9"
        changed = {cursor[:at] + letter + cursor[at + 1 :] for at in range(len(cursor)) for letter in odd}
        changed |= {part for at in range(1, len(cursor)) for part in (cursor[:at], cursor[at:])}
        changed |= {"", *(cursor + more for more in ("=", "==", "====", "A", "AAAA", "\n", "\ud800"))}

        assert [text for text in changed - {cursor} if decoded(text, "title")] == []

    @pytest.mark.parametrize("content", [ID.bytes[1:], ID.bytes + b"\xff"])
    def test_malformed_content_with_a_valid_checksum_is_refused(self, content: bytes) -> None:
        assert decoded(_with_checksum(content, "title", "scope"), "title") is None

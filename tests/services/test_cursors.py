"""Cursors: a decoded cursor has the encoded position, and a forged one does no harm."""

import string
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, get_args
from uuid import UUID

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.core.errors import InvalidRequestError
from app.schemas.task import Sort
from app.services import cursors
from app.services.cursors import Position, decode_cursor, encode_cursor
from app.services.tasks import SORT_KEYS

_SORTS: Final = get_args(Sort)
_LETTERS: Final = string.ascii_letters + string.digits + "-_+/= \0\xe9"
_ID: Final = UUID("019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa")
_OFFSETS: Final = st.integers(-1_439, 1_439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_TITLES: Final = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=200)
_TIMES: Final = st.datetimes(timezones=st.just(UTC))

# No deadlines: the duration of an example depends on the load of the machine.
_no_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
_over_http = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
_sorts = st.sampled_from(_SORTS)
_positions = _sorts.flatmap(
    lambda sort: st.tuples(
        st.just(sort), st.builds(Position, _TITLES if sort.endswith("title") else _TIMES, st.uuids())
    )
)
# A cursor has an id, then a key. These keys include malformed ones, impossible times, and keys that PostgreSQL refuses.
_keys = st.one_of(
    st.datetimes().map(datetime.isoformat),
    st.datetimes(timezones=_OFFSETS).map(datetime.isoformat),
    st.datetimes(timezones=_OFFSETS).map(str),
    st.sampled_from(
        [
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59.999999-14:00",
            "0001-01-01",
            "9999-12-31",
            "20260101T000000Z",
            "2026-W01-1",
            "infinity",
            "-infinity",
            "now",
            "NaN",
            "",
            "\0",
            "a\0b",
        ]
    ),
    st.text(max_size=300),
).map(lambda key: key.encode(errors="surrogatepass"))
_contents = st.one_of(
    st.binary(max_size=64), st.builds(lambda task_id, key: task_id.bytes + key, st.uuids(), _keys | st.binary())
)


def _sealed(content: bytes, sort: Sort, scope: str) -> str:
    """A cursor with this content and a valid checksum. The checksum needs no secret, so anybody can make one."""
    checksum = cursors._checksum(content, sort, scope)  # noqa: SLF001  # a forged cursor needs it
    return urlsafe_b64encode(checksum + content).rstrip(b"=").decode()


def _decoded(cursor: str, sort: Sort, scope: str) -> Position | None:
    """Returns None for a refusal, which has to name the parameter."""
    try:
        return decode_cursor(cursor, sort, scope, SORT_KEYS[sort.removeprefix("-")])
    except InvalidRequestError as error:
        refusal = error
    assert [item.pointer for item in refusal.errors] == ["query/cursor"]
    return None


class TestRoundTrip:
    @_no_deadline
    @given(_positions, st.text())
    def test_a_decoded_cursor_has_the_encoded_position(
        self, sorted_position: tuple[Sort, Position], scope: str
    ) -> None:
        sort, position = sorted_position

        assert _decoded(encode_cursor(position, sort, scope), sort, scope) == position

    @_no_deadline
    @given(_positions, st.text())
    def test_a_cursor_needs_no_escape_in_a_url_and_is_within_the_limit(
        self, sorted_position: tuple[Sort, Position], scope: str
    ) -> None:
        sort, position = sorted_position

        cursor = encode_cursor(position, sort, scope)

        assert str(httpx.QueryParams({"cursor": cursor})) == f"cursor={cursor}"
        assert len(cursor) <= 2_048

    def test_a_forged_cursor_has_the_format_of_a_real_one(self) -> None:
        real = encode_cursor(Position("Buy oat milk", _ID), "title", "scope")

        assert _sealed(_ID.bytes + b"Buy oat milk", "title", "scope") == real


class TestRefusals:
    @_no_deadline
    @given(_positions, _sorts)
    def test_a_cursor_of_another_order_is_refused(self, sorted_position: tuple[Sort, Position], other: Sort) -> None:
        sort, position = sorted_position

        assert (_decoded(encode_cursor(position, sort, "scope"), other, "scope") is None) == (sort != other)

    @_no_deadline
    @given(_positions, st.text(), st.text())
    def test_a_cursor_of_another_scope_is_refused(
        self, sorted_position: tuple[Sort, Position], scope: str, other: str
    ) -> None:
        sort, position = sorted_position

        assert (_decoded(encode_cursor(position, sort, scope), sort, other) is None) == (scope != other)

    @pytest.mark.parametrize("title", ["a", "bb", "ccc", "\xe9"])
    def test_a_cursor_with_any_one_character_changed_is_refused(self, title: str) -> None:
        """This includes the last character, some bits of which encode nothing."""
        cursor = encode_cursor(Position(title, _ID), "title", "scope")
        changed = {cursor[:at] + letter + cursor[at + 1 :] for at in range(len(cursor)) for letter in _LETTERS}

        assert [text for text in changed - {cursor} if _decoded(text, "title", "scope")] == []

    @pytest.mark.parametrize("title", ["a", "bb", "ccc"])
    def test_a_lengthened_or_shortened_cursor_is_refused(self, title: str) -> None:
        cursor = encode_cursor(Position(title, _ID), "title", "scope")
        changed = [
            *(cursor[:end] for end in range(len(cursor))),
            *(cursor[start:] for start in range(1, len(cursor))),
            *(cursor + more for more in ("=", "==", "===", "====", *_LETTERS, "AAAA", "\n")),
            *(more + cursor for more in _LETTERS),
        ]

        assert [text for text in changed if _decoded(text, "title", "scope")] == []

    @_no_deadline
    @given(st.text() | st.text("ABCXYZabcxyz0189-_=") | st.binary().map(lambda raw: urlsafe_b64encode(raw).decode()))
    @example("")
    @example("\ud800")
    @example("\xe9")
    def test_a_text_that_is_no_cursor_is_refused(self, text: str) -> None:
        assert [_decoded(text, sort, "scope") for sort in _SORTS] == [None] * len(_SORTS)

    @_no_deadline
    @given(_contents, _sorts)
    def test_a_forged_cursor_gives_a_valid_position_or_is_refused(self, content: bytes, sort: Sort) -> None:
        position = _decoded(_sealed(content, sort, "scope"), sort, "scope")

        if position:
            assert position.id.bytes == content[:16]
            assert _is_key(position.key, sort)

    @pytest.mark.parametrize(
        ("sort", "content"),
        [
            ("title", b""),
            ("title", b"shorter than id"),
            ("title", _ID.bytes + b"a\0b"),
            ("title", _ID.bytes + b"\xff"),
            ("title", _ID.bytes + b"\xed\xa0\x80"),
            ("created_at", _ID.bytes),
            ("created_at", _ID.bytes + b"Buy oat milk"),
            ("created_at", _ID.bytes + b"infinity"),
            ("created_at", _ID.bytes + b"2026-02-30T00:00:00+00:00"),
            ("-created_at", _ID.bytes + b"0001-01-01T00:00:00+14:00"),
            ("-updated_at", _ID.bytes + b"9999-12-31T23:59:59.999999-14:00"),
        ],
    )
    def test_malformed_content_with_a_valid_checksum_is_refused(self, sort: Sort, content: bytes) -> None:
        assert _decoded(_sealed(content, sort, "scope"), sort, "scope") is None


class TestInTheDatabase:
    """PostgreSQL can compare with every accepted position: users may send any content with a valid checksum."""

    @_over_http
    @given(_contents, _sorts)
    @example(_ID.bytes + b"0001-01-01T00:00:00", "created_at")
    @example(_ID.bytes + b"9999-12-31T23:59:59.999999", "-created_at")
    @example(_ID.bytes + b"0001-01-01T00:00:00-14:00", "updated_at")
    @example(_ID.bytes + b"2026-01-01T00:00:00+23:59:59.999999", "-updated_at")
    @example(_ID.bytes, "title")
    @example(_ID.bytes + b"a\0b", "title")
    @example(_ID.bytes + "\ufffe\U0010ffff\x01".encode(), "-title")
    @pytest.mark.usefixtures("task")
    async def test_a_forged_cursor_gives_a_page_or_422(
        self, client: httpx.AsyncClient, user: str, tasks: str, content: bytes, sort: Sort
    ) -> None:
        scope = repr((user, {}))
        cursor = _sealed(content, sort, scope)

        reply = await client.get(tasks, params={"sort": sort, "cursor": cursor})

        assert reply.status_code == (422 if _decoded(cursor, sort, scope) is None else 200)

    async def test_a_forged_cursor_with_the_scope_of_the_list_is_accepted(
        self, client: httpx.AsyncClient, user: str, tasks: str, task: dict[str, Any]
    ) -> None:
        """A control: the forged cursors above are not all refused because of their scope."""
        cursor = _sealed(UUID(int=0).bytes + b"A", "title", repr((user, {})))

        reply = await client.get(tasks, params={"sort": "title", "cursor": cursor})

        assert reply.json() == [task]


def _is_key(key: object, sort: Sort) -> bool:
    if isinstance(key, str):
        return sort.endswith("title") and "\0" not in key
    return not sort.endswith("title") and isinstance(key, datetime) and key.utcoffset() == timedelta()

"""Rows with any type of column are written as pydantic would write them."""

import enum
import json
from dataclasses import dataclass
from datetime import UTC, timedelta, timezone
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

from app.http.fast_lane import RowResponse


class Level(enum.IntEnum):
    LOW = 1


class Price(enum.Enum):
    CHEAP = Decimal("1.10")


@dataclass
class Row:
    """A row with a column of any type."""

    id: UUID
    value: Any


ROWS: Final = TypeAdapter(list[Row])
ID: Final = UUID("019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa")
ZONES: Final = st.none() | st.just(UTC) | st.integers(-1_439, 1_439).map(lambda each: timezone(timedelta(minutes=each)))
TEXTS: Final = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS: Final = st.one_of(
    st.none(),
    st.integers() | st.floats() | st.decimals(allow_nan=False) | st.booleans(),
    st.dates() | st.datetimes(timezones=ZONES) | st.times(timezones=ZONES),
    st.timedeltas(timedelta(-10_000), timedelta(10_000)),
    TEXTS | TEXTS.map(str.encode) | st.uuids() | st.ip_addresses() | st.sampled_from([*Level, *Price]),
)
KEYS: Final = TEXTS | st.integers() | st.uuids() | st.dates() | st.none()
VALUES: Final = st.recursive(
    SCALARS,
    lambda values: st.one_of(
        st.lists(values, max_size=3),
        st.lists(values, max_size=3).map(tuple),
        st.dictionaries(KEYS, values, max_size=3),
        values.map(lambda value: Row(ID, value)),
    ),
    max_leaves=10,
)


def written(value: Any) -> bytes:
    return bytes(RowResponse([Row(ID, value)]).body)


@settings(deadline=None)
@given(VALUES)
def test_a_row_is_written_as_pydantic_writes_it(value: Any) -> None:
    assert written(value) == ROWS.dump_json([Row(ID, value)])


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        (f"'{ID}'::uuid", str(ID)),
        ("1.10::numeric", "1.10"),
        ("'2026-01-31 01:02:03+02'::timestamptz", "2026-01-30T23:02:03Z"),
        ("'1 day 1.5 s'::interval", "P1DT1.5S"),
        (f"ARRAY['{ID}', NULL]::uuid[]", [str(ID), None]),
        ("'10.0.0.1'::inet", "10.0.0.1"),
        ("'Infinity'::float8", None),
    ],
)
async def test_a_value_of_postgresql_has_its_form_in_json(database: asyncpg.Connection, sql: str, value: Any) -> None:
    selected = await database.fetchval(f"SELECT {sql}")

    assert json.loads(written(selected)) == [{"id": str(ID), "value": value}]
    assert written(selected) == ROWS.dump_json([Row(ID, selected)])


@pytest.mark.parametrize("value", [2**64, {1: [2**70], "nan": float("nan")}], ids=repr)
def test_a_number_of_more_than_64_bits_is_written_in_full(value: Any) -> None:
    assert written(value) == ROWS.dump_json([Row(ID, value)])


@pytest.mark.parametrize("value", [b"\xff", "\ud800", object()], ids=["bytes", "surrogate", "object"])
def test_a_value_that_json_cannot_represent_is_an_error(value: Any) -> None:
    with pytest.raises(PydanticSerializationError):
        written(value)

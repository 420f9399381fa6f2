"""Rows with any type of column go over the wire as pydantic would write them."""

import enum
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import ip_address, ip_network
from typing import Any, Final
from uuid import UUID

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

from app.http.fast_lane import RowResponse


class Color(enum.Enum):
    RED = "r"


class Level(enum.IntEnum):
    LOW = 1


class Name(enum.StrEnum):
    ADA = "ada"


class Price(enum.Enum):
    CHEAP = Decimal("1.10")


@dataclass
class Row:
    """A row with a column of any type."""

    id: UUID
    value: Any


ROWS: Final = TypeAdapter(list[Row])
ID: Final = UUID("019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa")
ZONES: Final = st.integers(-1_439, 1_439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
NUMBERS: Final = st.integers() | st.floats() | st.decimals(allow_nan=False) | st.booleans()
TIMES: Final = st.one_of(
    st.dates(),
    st.datetimes(timezones=st.none() | st.just(UTC) | ZONES),
    st.times(timezones=st.none() | st.just(UTC) | ZONES),
    st.timedeltas(timedelta(-10_000), timedelta(10_000)),
)
SCALARS: Final = st.one_of(
    st.none(),
    NUMBERS,
    TIMES,
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.characters(exclude_categories=["Cs"])).map(str.encode),
    st.uuids(),
    st.ip_addresses(),
    st.sampled_from([*Color, *Level, *Name, *Price]),
)
KEYS: Final = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])), st.integers(), st.uuids(), st.dates(), st.none()
)
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


def sent(value: Any) -> bytes:
    return bytes(RowResponse([Row(ID, value)]).body)


@given(VALUES)
def test_a_row_is_written_as_pydantic_writes_it(value: Any) -> None:
    assert sent(value) == ROWS.dump_json([Row(ID, value)])


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (Decimal("1.10"), "1.10"),
        (Decimal("1E+30"), "1E+30"),
        (Decimal("NaN"), "NaN"),
        (date(2026, 1, 31), "2026-01-31"),
        (datetime(2026, 1, 31, 1, 2, 3, tzinfo=UTC), "2026-01-31T01:02:03Z"),
        (
            datetime(2026, 1, 31, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=5, minutes=30))),
            "2026-01-31T01:02:03.000004+05:30",
        ),
        (datetime(2026, 1, 31, 1, 2, 3), "2026-01-31T01:02:03"),  # noqa: DTZ001  # a column without time zone
        (time(1, 2, 3), "01:02:03"),
        (time(1, 2, 3, tzinfo=UTC), "01:02:03Z"),
        (timedelta(days=1, microseconds=3), "P1DT0.000003S"),
        (timedelta(seconds=-1), "-PT1S"),
        (ID, str(ID)),
        (Color.RED, "r"),
        (Level.LOW, 1),
        (Name.ADA, "ada"),
        (Price.CHEAP, "1.10"),
        ("é".encode(), "é"),
        (2**64, 2**64),
        (float("inf"), None),
        (ip_address("::1"), "::1"),
        (ip_network("10.0.0.0/8"), "10.0.0.0/8"),
        ({"a": [{"b": [Decimal("1.5"), ID, None]}]}, {"a": [{"b": ["1.5", str(ID), None]}]}),
        ({1: [2**70], "nan": float("nan")}, {"1": [2**70], "nan": None}),
        ([], []),
    ],
    ids=repr,
)
def test_a_value_of_each_type_has_its_form_in_json(value: Any, written: Any) -> None:
    assert json.loads(sent(value)) == [{"id": str(ID), "value": written}]
    assert sent(value) == ROWS.dump_json([Row(ID, value)])


SELECTED: Final = {
    f"'{ID}'::uuid": str(ID),
    "1.10::numeric": "1.10",
    "'2026-01-31'::date": "2026-01-31",
    "'2026-01-31 01:02:03+02'::timestamptz": "2026-01-30T23:02:03Z",
    "'01:02:03+02'::timetz": "01:02:03+02:00",
    "'1 day 1.5 s'::interval": "P1DT1.5S",
    "'oat'::bytea": "oat",
    "ARRAY[[1.5], [2]]::numeric[]": [["1.5"], ["2"]],
    f"ARRAY['{ID}', NULL]::uuid[]": [str(ID), None],
    "'10.0.0.1'::inet": "10.0.0.1",
    "9223372036854775807::bigint": 2**63 - 1,
}


@pytest.mark.parametrize(("sql", "written"), SELECTED.items(), ids=SELECTED)
async def test_a_value_of_a_class_of_asyncpg_is_written_as_its_standard_class(
    database: asyncpg.Connection, sql: str, written: Any
) -> None:
    value = await database.fetchval(f"SELECT {sql}")

    assert json.loads(sent(value)) == [{"id": str(ID), "value": written}]
    assert sent(value) == ROWS.dump_json([Row(ID, value)])


@pytest.mark.parametrize("value", [b"\xff", "\ud800", object()], ids=["bytes", "surrogate", "object"])
def test_a_value_that_json_cannot_carry_is_an_error_of_pydantic(value: Any) -> None:
    for write in (sent, lambda value: ROWS.dump_json([Row(ID, value)])):
        with pytest.raises(PydanticSerializationError):
            write(value)

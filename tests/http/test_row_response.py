"""Rows with any type of column are written as pydantic would write them."""

import enum
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv6Address
from typing import Any, Final
from uuid import UUID

import asyncpg
import pytest
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

from app.http.fast_lane import RowResponse


class Level(enum.IntEnum):
    LOW = 1


class Price(enum.Enum):
    CHEAP = Decimal("1.10")


@dataclass
class Row:
    id: UUID
    value: Any


ROWS: Final = TypeAdapter(list[Row])
ID: Final = UUID("019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa")
VALUES: Final[list[Any]] = [
    *(None, True, -1, 1e22, float("nan"), float("-inf"), Decimal("1E+3"), '\u2028"é', b"oat", Level.LOW, Price.CHEAP),
    *(date.min, *map(datetime.fromisoformat, ("2026-01-01", "2026-01-01 00:00Z", "0001-01-01 00:00:00.1-01:02"))),
    *(time(1), time(1, tzinfo=UTC), timedelta(-1, 1, 1), IPv6Address("::1"), (1, [Decimal(2)]), Row(ID, Row(ID, ID))),
    *({"": None}, {1: True, ID: 2.5, date.max: "x", None: (ID,)}, 2**63, 2**64, {1: [2**70], "nan": float("nan")}),
]


def written(value: Any) -> bytes:
    return bytes(RowResponse([Row(ID, value)]).body)


@pytest.mark.parametrize("value", VALUES, ids=repr)
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


@pytest.mark.parametrize("value", [b"\xff", "\ud800", object()], ids=["bytes", "surrogate", "object"])
def test_a_value_that_json_cannot_represent_is_an_error(value: Any) -> None:
    with pytest.raises(PydanticSerializationError):
        written(value)

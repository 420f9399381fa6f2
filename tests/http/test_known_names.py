"""With `Prefer: handling=strict` a JSON route refuses only the names that nothing takes."""

import enum
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, Body, Depends, Query
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, RootModel
from typing_extensions import TypedDict

from app.core.config import Settings
from app.http.fast_lane import JSONRoute
from tests.http.support import BASE, extended, problem_of


class Kind(enum.Enum):
    """A query parameter."""

    A = "a"


@dataclass
class Inherited:
    """A body with an inherited field."""

    first: int


@dataclass
class Data(Inherited):
    """A body."""

    second: int = 0


class Aliased(BaseModel):
    """A body whose field has several names."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    name: str = Field(validation_alias=AliasChoices("title", AliasPath("label", 0)))


class Typed(TypedDict):
    """A body."""

    first: int


class Open(BaseModel):
    """A body that allows any names."""

    model_config = ConfigDict(extra="allow")


class Root(RootModel[dict[str, int]]):
    """A body of any names."""


async def with_parameter(other: int = 0) -> int:
    return other


# The annotation of the only parameter, what is sent to it, and for a body whether it also takes other names.
QUERIES: Final[dict[str, tuple[Any, Any]]] = {
    "UUID": (UUID, str(UUID(int=1))),
    "Enum": (Kind, "a"),
    "list": (list[Kind], ["a", "a"]),
}
BODIES: Final[dict[str, tuple[Any, Any, bool]]] = {
    "dataclass": (Data, {"first": 1, "second": 2}, False),
    "alias": (Aliased, {"title": "x"}, False),
    "path of an alias": (Aliased, {"label": ["x"]}, False),
    "name beside an alias": (Aliased, {"name": "x"}, False),
    "TypedDict": (Typed | None, {"first": 1}, False),
    "embedded": (Annotated[Typed, Body(embed=True)], {"value": {"first": 1}}, False),
    "model that allows others": (Open, {"x": 1}, True),
    "root": (Root, {"x": 1}, True),
    "dictionary": (dict[str, int], {"x": 1}, True),
    "anything": (Annotated[Any, Body()], {"x": 1}, True),
}


@pytest.fixture(scope="module")
async def client(secured: Settings) -> AsyncIterator[httpx.AsyncClient]:
    router = APIRouter(prefix=BASE, route_class=JSONRoute)

    def add(method: str, name: str, annotation: Any, dependency: Any) -> None:
        async def handler(value: Any) -> str:
            return repr(value)

        handler.__annotations__["value"] = annotation
        router.add_api_route(f"/{name}", handler, methods=[method], dependencies=[dependency])

    for name, (annotation, _) in QUERIES.items():
        add("GET", name, Annotated[annotation, Query(validation_alias="sent")], Depends(with_parameter))
    for name, (annotation, *_) in BODIES.items():
        add("POST", name, annotation, Depends(with_parameter))
    async with extended(secured, lambda app: app.include_router(router)) as client:
        client.headers["Prefer"] = "handling=strict"
        yield client


@pytest.mark.parametrize("name", QUERIES)
async def test_a_query_parameter_of_any_type_and_those_of_dependencies_are_known(
    client: httpx.AsyncClient, name: str
) -> None:
    known = {"sent": QUERIES[name][1], "other": "1"}
    accepted = await client.get(f"/api/ada/things/{name}", params=known)
    refused = await client.get(f"/api/ada/things/{name}", params={**known, "unknown": "1"})

    assert (accepted.status_code, accepted.headers["Preference-Applied"]) == (200, "handling=strict")
    assert [error["pointer"] for error in problem_of(refused, 422)["errors"]] == ["query/unknown"]


@pytest.mark.parametrize("name", BODIES)
async def test_the_names_that_a_body_takes_are_known(client: httpx.AsyncClient, name: str) -> None:
    _, sent, takes_others = BODIES[name]
    accepted = await client.post(f"/api/ada/things/{name}", json=sent)
    other = await client.post(f"/api/ada/things/{name}", json={**sent, "other": 1})

    assert accepted.status_code == 200, accepted.text
    if takes_others:
        assert other.status_code == 200
    else:
        assert [error["pointer"] for error in problem_of(other, 422)["errors"]] == ["#/other"]

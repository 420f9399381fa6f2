"""With `Prefer: handling=strict` a JSON route refuses only the names that nothing takes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, Body, Depends, Query
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, RootModel, create_model
from typing_extensions import TypedDict

from app.core.config import Settings
from app.http.fast_lane import JSONRoute
from app.schemas.words import Words
from tests.http.support import BASE, extended, problem_of


@dataclass
class Data:
    first: int


class Aliased(BaseModel):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    name: str = Field(validation_alias=AliasChoices("title", AliasPath("label", 0)))


class Typed(TypedDict):
    first: int


Open: Final[Any] = create_model("Open", __config__={"extra": "allow"})


async def with_parameter(other: int = 0) -> int:
    return other


# The annotation of the only parameter, what is sent to it, and whether it also takes other names.
BODIES: Final[dict[str, tuple[Any, Any, bool]]] = {
    "dataclass": (Data, {"first": 1}, False),
    "alias": (Aliased, {"title": "x"}, False),
    "path of an alias": (Aliased, {"label": ["x"]}, False),
    "name beside an alias": (Aliased, {"name": "x"}, False),
    "TypedDict": (Typed | None, {"first": 1}, False),
    "embedded": (Annotated[Typed, Body(embed=True)], {"value": {"first": 1}}, False),
    "model that allows others": (Open, {"x": 1}, True),
    "root": (RootModel[dict[str, int]], {"x": 1}, True),
    "dictionary": (dict[str, int], {"x": 1}, True),
    "anything": (Annotated[Any, Body()], {"x": 1}, True),
}


@pytest.fixture(scope="module")
async def client(secured: Settings) -> AsyncIterator[httpx.AsyncClient]:
    router = APIRouter(prefix=BASE, route_class=JSONRoute)

    def add(method: str, name: str, annotation: Any) -> None:
        async def handler(value: Any) -> str:
            return repr(value)

        handler.__annotations__["value"] = annotation
        router.add_api_route(f"/{name}", handler, methods=[method], dependencies=[Depends(with_parameter)])

    add("GET", "query", Annotated[list[UUID], Query(validation_alias="sent")])
    add("GET", "words", Annotated[str, Words({"a", "b"}), Query()])
    for name, (annotation, *_) in BODIES.items():
        add("POST", name, annotation)
    async with extended(secured, lambda app: app.include_router(router)) as client:
        client.headers["Prefer"] = "handling=strict"
        yield client


async def test_the_query_parameters_of_a_handler_and_its_dependencies_are_known(client: httpx.AsyncClient) -> None:
    known = {"sent": [str(UUID(int=1)), str(UUID(int=2))], "other": "1"}
    accepted = await client.get("/api/ada/things/query", params=known)
    refused = await client.get("/api/ada/things/query", params={**known, "unknown": "1"})

    assert (accepted.status_code, accepted.headers["Preference-Applied"]) == (200, "handling=strict")
    assert [error["pointer"] for error in problem_of(refused, 422)["errors"]] == ["query/unknown"]


async def test_other_words_of_a_marked_parameter_are_refused_as_unknown(client: httpx.AsyncClient) -> None:
    accepted, refused = [await client.get(f"/api/ada/things/words?value={word}&other=1") for word in "Bc"]

    assert (accepted.status_code, accepted.text) == (200, "\"'B'\"")
    assert problem_of(refused, 422)["detail"] == "value: is not one that this list knows"


@pytest.mark.parametrize("name", BODIES)
async def test_the_names_that_a_body_takes_are_known(client: httpx.AsyncClient, name: str) -> None:
    _, sent, takes_others = BODIES[name]
    accepted = await client.post(f"/api/ada/things/{name}", json=sent)
    other = await client.post(f"/api/ada/things/{name}", json={**sent, "other": 1})

    assert (accepted.status_code, other.status_code) == (200, 200 if takes_others else 422), accepted.text
    assert takes_others or [error["pointer"] for error in problem_of(other, 422)["errors"]] == ["#/other"]

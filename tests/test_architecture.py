"""docs/architecture.md says which files and functions a request passes. A traced request shows it."""

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
import uvloop

import app
from app.core.config import Settings
from tests.support import SECRET, make_settings
from tests.test_cost import NEW_TASK, WARM_UP, Client, connected, logged

BACKEND: Final = Path(str(app.__file__)).parent
PAGE: Final = (BACKEND.parents[1] / "docs/architecture.md").read_text()
# A row of the table: its number, its file, and its functions.
ROWS: Final = re.findall(r"^\| (\d+) \| `([\w/.]+)` \| (.+?) \|", PAGE, re.MULTILINE)
NAMES: Final = re.findall(r"`((?:core|http|models|routes|schemas|server|services)/[\w./]*)`", PAGE)


async def traced(settings: Settings) -> tuple[list[str], set[str]]:
    """Returns the files that a PATCH with If-Match runs, in order, and the names of their functions."""
    files: list[str] = []
    functions: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(BACKEND):
            files.append(path.relative_to(BACKEND).as_posix())
            functions.add(frame.f_code.co_qualname)

    async with connected(settings, lambda app: app, "traced") as client:
        task = await client.send(client.request("POST", body=NEW_TASK))
        for _ in range(WARM_UP):
            task = await client.send(patch(client, task))
        before = sys.getprofile()
        sys.setprofile(note)
        await client.send(patch(client, task))
        sys.setprofile(before)
    return list(dict.fromkeys(files)), functions


def patch(client: Client, task: dict[str, Any]) -> bytes:
    condition = f'\r\nIf-Match: "{task["updated_at"]}"\r\n\r\n'.encode()
    return client.request("PATCH", f"/{task['id']}/complete").replace(b"\r\n\r\n", condition)


@pytest.fixture(scope="module")
def trace(dsn: str) -> tuple[list[str], set[str]]:
    with logged():
        return uvloop.run(traced(make_settings(dsn, auth_jwt_secret=SECRET)))


def test_a_patch_runs_the_ten_files_of_the_page_in_their_order(trace: tuple[list[str], set[str]]) -> None:
    files, _ = trace

    assert files == [file for _, file, _ in ROWS]
    assert len(files) <= 10


def test_a_patch_runs_the_functions_of_the_page(trace: tuple[list[str], set[str]]) -> None:
    _, functions = trace
    named = {name for _, _, names in ROWS for name in re.findall(r"`([\w.]+)`", names)}

    assert named <= functions
    assert not {"Database.session", "delete_task"} & functions


@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_a_file_that_the_page_names_is_there(name: str) -> None:
    assert (BACKEND / name).exists()

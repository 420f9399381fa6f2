"""docs/architecture.md says which files and functions a request passes. A traced request shows it."""

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

import httpx
import pytest

import app
from tests.support import bearer

BACKEND: Final = Path(str(app.__file__)).parent
PAGE: Final = (BACKEND.parents[1] / "docs/architecture.md").read_text()
# A row of the table: its file and its functions.
ROWS: Final = re.findall(r"^\| \d+ \| `([\w/.]+)` \| (.+?) \|", PAGE, re.MULTILINE)
NAMES: Final = re.findall(r"`((?:core|http|models|routes|schemas|server|services)/[\w./]*)`", PAGE)


async def test_a_patch_runs_the_files_and_functions_of_the_table_in_their_order(
    secured_url: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(BACKEND):
            calls.append((path.relative_to(BACKEND).as_posix(), frame.f_code.co_qualname))

    monkeypatch.setattr("logging.root.handlers", [])  # the test's own handlers would format the log line
    tasks = f"/api/{user}/tasks"
    async with httpx.AsyncClient(base_url=secured_url, headers=bearer(user), timeout=30) as client:
        task = (await client.post(tasks, json={"title": "Buy oat milk"})).json()
        for _ in range(2):  # the first request fills caches
            calls.clear()
            condition = {"If-Match": f'"{task["updated_at"]}"'}
            before = sys.getprofile()
            sys.setprofile(note)
            try:
                task = (await client.patch(f"{tasks}/{task['id']}/complete", headers=condition)).json()
            finally:
                sys.setprofile(before)

    assert [*dict.fromkeys(file for file, _ in calls)] == [file for file, _ in ROWS]
    named = {(file, name) for file, names in ROWS for name in re.findall(r"`([\w.]+)`", names)}
    assert named <= {*calls}


@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_a_file_that_the_page_names_exists(name: str) -> None:
    assert (BACKEND / name).exists()

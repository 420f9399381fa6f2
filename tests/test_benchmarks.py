"""Each benchmark runs and fills in its place on the page, and no statement of the service reads too much."""

import asyncio
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from benchmarks.growth import TASKS, Group, complaint, explain, fill

from app.core.database.migrations import migrate
from tests.support import execute, new_database

ROOT: Final = Path(__file__).parents[1]
OPERATIONS: Final = {"get", "list", "toggle", "create"}
VERSION: Final = ".".join(platform.python_version_tuple()[:2])
# The place on the page, the command with the smallest load, and what the first columns of its tables have.
BENCHMARKS: Final = {
    VERSION: ("benchmarks --clients=1", {*OPERATIONS, "Tasks API", "common idiom", "FastAPI's hello world"}),
    "agents": ("benchmarks.agents --clients=1", {"PATCH", "complete_task, 2026-07-28", "complete_task, 2025-11-25"}),
    "growth": ("benchmarks.growth --rows=2000", {*OPERATIONS - {"list"}, "first page", "far page", "20", "200"}),
    "distance": ("benchmarks.distance --pool-sizes=5", OPERATIONS),
    "fairness": ("benchmarks.fairness", {"nothing", "HEAD of that list"}),
    "workers": ("benchmarks.workers", {"1", "2", "DATABASE_URL, migrated", "embedded, data there", "app", "fastapi"}),
    "tokens": ("benchmarks.tokens", {"HS256", "EdDSA", "ES256", "RS256"}),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, "subprocess.Popen[str]"]]]:
    """A page and a running benchmark for each name. All run at once to save time."""
    started = {}
    for name, (command, _) in BENCHMARKS.items():
        page = tmp_path_factory.mktemp(name) / "performance.md"
        page.write_text(f"Before.\n<!-- begin {name} -->\nold\n<!-- end {name} -->\nAfter.\n")
        process = subprocess.Popen(
            [sys.executable, "-m", *command.split(), "--rounds=0", "--seconds=1", f"--page={page}"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": "backend"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started[name] = (page, process)
    yield started
    # Those of tests that have failed or were not selected stop what they have started.
    for _, process in started.values():
        process.send_signal(signal.SIGINT)
    for _, process in started.values():
        process.communicate()


@pytest.mark.ci
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_measures_every_case_and_writes_its_tables_into_its_place_on_the_page(
    pages: dict[str, tuple[Path, "subprocess.Popen[str]"]], name: str
) -> None:
    page, process = pages[name]

    printed, errors = process.communicate()

    assert process.returncode == 0, errors
    assert {line.split(" | ")[0].strip("| ") for line in printed.splitlines()} >= BENCHMARKS[name][1]
    if name != "tokens":  # it has no place on the page
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        assert page.read_text() == f"Before.\n{begin}\n\n{printed.strip()}\n\n{end}\nAfter.\n"


def complaints(dsn: str) -> dict[str, str]:
    """Returns what is wrong with the plans of the service's statements, by operation."""
    plans = asyncio.run(explain(dsn, "user-0"))
    return {operation: wrong for operation, plan in plans.items() if (wrong := complaint(operation, plan))}


def test_no_statement_reads_the_whole_table_or_all_tasks_of_a_user(dsn: str) -> None:
    with new_database(dsn, "grown") as grown:
        migrate(grown)
        fill(grown, [Group("user", 2, TASKS)])
        assert complaints(grown) == {}

        execute(grown, "DROP INDEX ix_tasks_user_id_created_at_id")
        assert complaints(grown).keys() == {"first page", "far page"}

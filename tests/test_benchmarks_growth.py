"""The benchmarks of growth, of distance and of workers run, and fill in their places on the page."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from benchmarks.delay import End
from benchmarks.distance import distant
from benchmarks.growth import LIMIT, TASKS, Group, complaint, explain, fill
from benchmarks.rig import database

from tests.support import execute

ROOT = Path(__file__).parents[1]
NAMES = ("growth", "distance", "workers")

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk sends the load")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page with a place for each of them."""
    page = tmp_path / "performance.md"
    places = [f"<!-- begin {name} -->\nold {name}\n<!-- end {name} -->\n" for name in NAMES]
    page.write_text(f"Before.\n{''.join(places)}After.\n")
    return page


@pytest.fixture
def grown() -> Iterator[str]:
    """A PostgreSQL of 18, as the benchmark has it, with two users."""
    with database() as db:
        fill(db.dsn, [Group("user", 2, TASKS)])
        yield db.dsn


def bench(name: str, page: Path, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", f"benchmarks.{name}", f"--page={page}", "--rounds=1", "--seconds=1", *options]
    environment = {**os.environ, "PYTHONPATH": "backend", **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def rows(page: Path) -> list[list[str]]:
    """Returns the cells of all tables, their heads included."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines]


def complaints(dsn: str) -> dict[str, str]:
    """Returns what is wrong with the plans of the service's statements, by operation."""
    plans = asyncio.run(explain(dsn, "user-0"))
    return {operation: wrong for operation, plan in plans.items() if (wrong := complaint(operation, plan))}


@needs_wrk
def test_growth_measures_each_operation_and_size_of_page_and_keeps_the_rest(page: Path) -> None:
    done = bench("growth", page, "--rows=2000")

    assert done.returncode == 0, done.stderr
    operations, lists = rows(page)[1:6], rows(page)[7:]
    assert [(row[0], row[-1]) for row in operations] == [
        ("get", "Index Scan using pk_tasks"),
        ("first page", "Index Scan using ix_tasks_user_id_created_at_id"),
        ("far page", "Index Scan using ix_tasks_user_id_created_at_id"),
        ("toggle", "Index Scan using pk_tasks"),
        ("create", "Insert, conflicts by pk_tasks"),
    ]
    assert [row[0] for row in lists] == [f"{LIMIT}", "200", "1,000"]
    written = page.read_text()
    assert "1,210 rows, then 3,210" in written
    assert written.startswith("Before.\n")
    assert written.endswith("old workers\n<!-- end workers -->\nAfter.\n")
    assert "old growth" not in written


@needs_wrk
def test_distance_measures_each_operation_with_each_pool_size(page: Path) -> None:
    done = bench("distance", page, "--pool-sizes", "5", "10")

    assert done.returncode == 0, done.stderr
    assert [row[:2] for row in rows(page)[1:]] == [
        [operation, size] for operation in ("get", "list", "toggle", "create") for size in ("5", "10")
    ]
    written = page.read_text()
    assert "At a round trip of 2 ms to the database, over 64 connections:" in written
    assert "old distance" not in written


@needs_wrk
def test_workers_measures_workers_starts_and_imports(page: Path) -> None:
    done = bench("workers", page)

    assert done.returncode == 0, done.stderr
    workers, starts, packages = rows(page)[1:5], rows(page)[6:8], rows(page)[9:]
    assert [(*row[:2], row[-1]) for row in workers] == [
        ("1", "get", "10"),
        ("1", "toggle", "10"),
        ("2", "get", "20"),
        ("2", "toggle", "20"),
    ]
    assert [row for row in workers if int(row[-2]) > int(row[-1])] == []
    assert [row[0] for row in starts] == ["DATABASE_URL, migrated", "embedded, data there"]
    assert len(packages) == 10
    assert {"app", "fastapi", "sqlalchemy"} <= {row[0] for row in packages}


@pytest.mark.parametrize("name", NAMES)
def test_without_wrk_it_ends_with_one_sentence(name: str, page: Path, tmp_path: Path) -> None:
    before = page.read_text()

    done = bench(name, page, PATH=str(tmp_path))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "wrk is not on the PATH; it sends the load: https://github.com/wg/wrk\n"
    assert page.read_text() == before


@needs_wrk
@pytest.mark.parametrize("name", NAMES)
def test_a_page_without_its_place_is_refused_before_anything_is_measured(name: str, page: Path) -> None:
    page.write_text("No place.\n")

    done = bench(name, page)

    assert done.returncode == 1
    assert done.stderr == (
        f"{page} cannot be written: <!-- begin {name} --> and <!-- end {name} --> are not in the page.\n"
    )


class Recorder(asyncio.WriteTransport):
    """Keeps what is written to it; `None` stands for its closing."""

    def __init__(self) -> None:
        self.written: list[object] = []

    def write(self, data: object) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.written.append(None)


class TestDelay:
    async def test_the_chunks_of_a_burst_wait_together_and_stay_in_order(self) -> None:
        chunks = [b"%d" % number for number in range(1_000)]
        end = End(delay=0.05)
        end.peer = peer = Recorder()

        for chunk in chunks:
            end.data_received(chunk)
        end.connection_lost(None)
        before = list(peer.written)
        await asyncio.sleep(0.1)  # set after all the timers of the burst and longer, so it ends after them

        assert (before, peer.written) == ([], [*chunks, None])

    def test_a_statement_and_its_result_pass_unchanged(self, grown: str) -> None:
        text = "".join(map(str, range(200_000)))

        async def echo(dsn: str) -> object:
            connection = await asyncpg.connect(dsn)
            result = await connection.fetchval("SELECT $1::text", text)
            await connection.close()
            return result

        with distant(grown, 2) as dsn:
            assert asyncio.run(echo(dsn)) == text


class TestPlans:
    def test_no_statement_reads_the_whole_table_or_a_whole_user(self, grown: str) -> None:
        assert complaints(grown) == {}

    def test_without_the_index_of_lists_the_pages_are_refused(self, grown: str) -> None:
        execute(grown, "DROP INDEX ix_tasks_user_id_created_at_id")

        assert complaints(grown).keys() == {"first page", "far page"}

    def test_a_scan_of_the_table_is_refused_for_each_statement_that_searches(self, grown: str) -> None:
        for kind in ("indexscan", "bitmapscan"):
            execute(grown, f"ALTER DATABASE postgres SET enable_{kind} = off")

        found = complaints(grown)

        assert found.keys() == {"get", "first page", "far page", "toggle"}
        assert found["get"] == "get is not answered from an index alone: Seq Scan"

    @pytest.mark.parametrize("generic", ["Seq Scan", "Bitmap Heap Scan, Bitmap Index Scan using pk_tasks", "Sort"])
    def test_the_plan_for_any_values_counts_too(self, generic: str) -> None:
        plan = "Index Scan using pk_tasks"

        assert complaint("get", plan) is None
        assert complaint("get", f"{plan}; for any values {generic}")

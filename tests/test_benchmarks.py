"""`make bench` runs, and its page is filled in by it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(300)  # there is a minute of load where Fastify is installed
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk sends the load")
def test_it_measures_each_operation_and_writes_the_page(tmp_path: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    page = tmp_path / "performance.md"
    page.write_text(f"Before.\n<!-- begin {version} -->\nold\n<!-- end {version} -->\nAfter.\n")

    command = [sys.executable, "-m", "benchmarks", "--rounds=1", "--seconds=1", f"--page={page}"]
    environment = os.environ | {"PYTHONPATH": "backend"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    written = page.read_text()
    assert written.startswith("Before.\n")
    assert written.endswith("\nAfter.\n")
    assert "old" not in written
    for operation in ("get", "list", "toggle", "create"):
        assert f"| {operation} | connections | CPU, µs |" in written
    assert written.count("| Tasks API |") == written.count("| common idiom |") == 2 * 4
    greetings = [line for line in written.splitlines() if line.startswith("| FastAPI's hello world |")]
    assert len(greetings) == 2 * 4
    assert [line.count("| - ") for line in greetings] == [0, 0, *[7] * 6]

"""Plant each mutant in a copy of the project, and see which test fails: `python -m tests.mutants [PART OF A NAME]`."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Final, NamedTuple

from tests.copies import copy_tree
from tests.mutants.catalog import ROOT, Mutant, load, read_table, write_table

_WORKERS: Final = int(os.environ.get("MUTANT_WORKERS", "2"))
_RUN_TIMEOUT: Final = 300  # seconds for one run of pytest
_TEST_TIMEOUT: Final = 60  # seconds for one test
# Schemathesis and the plugin of Hypothesis take half of the time to start pytest, and no test here needs them.
_OPTIONS: Final = ("-x", "-q", "-n0", f"--timeout={_TEST_TIMEOUT}", "-pno:schemathesis", "-pno:hypothesispytest")
_TEST: Final = re.compile(r"^(?:FAILED|ERROR) (tests/[^\s:]+::[^\s\[]+)", re.MULTILINE)  # without its parameters


class Verdict(NamedTuple):
    """A mutant, the test that found it, and else the reason why none did."""

    mutant: Mutant
    test: str | None
    reason: str = ""


def main(parts: list[str]) -> None:
    """Run the mutants whose names contain one of `parts`, or all. Exits with 1 if a mutant was not found."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and pytest would as well
    mutants = [mutant for mutant in load() if not parts or any(part in mutant.name for part in parts)]
    started = monotonic()
    with TemporaryDirectory(prefix="mutants-") as directory, ThreadPoolExecutor(_WORKERS) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(_WORKERS):
            copies.put(copy_tree(ROOT, Path(directory) / str(number)))
        verdicts = [*pool.map(partial(_judge, copies, read_table()), mutants)]
    if not parts:
        write_table((mutant, test) for mutant, test, _ in verdicts if test)
    missed = [verdict for verdict in verdicts if not verdict.test]
    for mutant, _, reason in missed:
        _print(f"NOT FOUND: {mutant.name}: {reason}")
    minutes, seconds = divmod(round(monotonic() - started), 60)
    _print(f"{len(verdicts) - len(missed)} of {len(verdicts)} found in {minutes} min {seconds} s")
    sys.exit(bool(missed))


def _judge(copies: "SimpleQueue[Path]", known: dict[str, str], mutant: Mutant) -> Verdict:
    """Plant the mutant, and run the test that found it last time. If that does not fail, run all of its tests."""
    copy = copies.get()
    path = copy / mutant.file
    original = path.read_text()
    path.write_text(original.replace(mutant.was, mutant.now))
    try:
        verdict = _run(copy, mutant, [known[mutant.name]]) if mutant.name in known else None
        if verdict is None or not verdict.test:
            verdict = _run(copy, mutant, mutant.tests)
            path.write_text(original)
            if verdict.test and _run(copy, mutant, [verdict.test]).reason != "no test fails":
                verdict = Verdict(mutant, None, f"{verdict.test} fails without the mutant too")
    finally:
        path.write_text(original)
        copies.put(copy)
    _print(f"{mutant.name}: {verdict.test or verdict.reason}")
    return verdict


def _run(copy: Path, mutant: Mutant, tests: Sequence[str]) -> Verdict:
    command = (sys.executable, "-m", "pytest", *_OPTIONS, *tests)
    paths = {"PYTHONPATH": str(copy / "backend"), "PYTEST_DEBUG_TEMPROOT": str(copy / ".data")}
    environment = {**os.environ, **paths, "COLUMNS": "200"}
    process = subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=_RUN_TIMEOUT)
    except subprocess.TimeoutExpired:
        _stop(process, copy)
        return Verdict(mutant, None, "the run timed out")
    if process.returncode > 1:  # a usage or import error is no failure of a test
        return Verdict(mutant, None, f"pytest ended with {process.returncode}")
    test = _TEST.search(output)
    if test and "Timeout (>" in output:
        return Verdict(mutant, None, f"{test[1]} timed out")
    return Verdict(mutant, test[1]) if test else Verdict(mutant, None, "no test fails")


def _stop(process: subprocess.Popen[str], copy: Path) -> None:
    """Interrupt pytest, so that it stops the servers of its fixtures. If it hangs, kill it and its PostgreSQL."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=_TEST_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        for file in copy.rglob("postmaster.pid"):
            os.kill(int(file.read_text().split()[0]), signal.SIGQUIT)


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])

"""The number of rounds of each fault, and a report of the results."""

import os

import pytest


@pytest.fixture(scope="session")
def rounds() -> int:
    """The number of times that each fault happens: CHAOS_ROUNDS, or 1 if it is unset."""
    return int(os.environ.get("CHAOS_ROUNDS", "1"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the values that the tests have recorded (`record_property`) if CHAOS_ROUNDS is set."""
    for outcome in ("passed", "failed") if "CHAOS_ROUNDS" in os.environ else ():
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties if report.when == "call" else ():
                terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]} {name}: {value}")

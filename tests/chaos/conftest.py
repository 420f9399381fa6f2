"""How long the faults go on, and what came of them."""

import os

import pytest


@pytest.fixture(scope="session")
def rounds() -> int:
    """How often each fault happens: CHAOS_ROUNDS, once without it."""
    return int(os.environ.get("CHAOS_ROUNDS", "1"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests have recorded (`record_property`), where somebody has asked for more than one round."""
    for outcome in ("passed", "failed") if "CHAOS_ROUNDS" in os.environ else ():
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties if report.when == "call" else ():
                terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]} {name}: {value}")

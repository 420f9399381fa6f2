"""Runs the tools that read the OpenAPI document."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import anyio
import pytest

FOLDER: Final = Path(__file__).parent
NODE_MODULES: Final = FOLDER / "node_modules"

needs_node = pytest.mark.skipif(
    not (NODE_MODULES / ".package-lock.json").exists(),  # npm writes it last
    reason="`make ci` installs these tools where there is Node.js 20.19 or newer, with npm",
)

_PATH: Final = os.pathsep.join([str(Path(sys.executable).parent), str(NODE_MODULES / ".bin"), os.environ["PATH"]])
_QUIET: Final = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}


async def run(workspace: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a tool without blocking the event loop, in which the service runs."""
    measured = {name for name in os.environ if name.startswith("COVERAGE_")}
    env = {name: value for name, value in os.environ.items() if name not in measured} | _QUIET | {"PATH": _PATH}
    done = await anyio.run_process(command, cwd=workspace, env=env, check=False, stderr=subprocess.STDOUT)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode())

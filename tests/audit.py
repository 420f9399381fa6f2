"""Ask an advisory service about the packages of the service. Fails for a known vulnerability.

pip-audit takes a package that its advisory service does not know for a good one. A mirror of PyPI without advisories
knows none, so pip-audit passes although it has checked nothing. So its report is judged here.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

_REQUIREMENTS: Final = Path(__file__).parents[1] / "requirements.txt"
_OPTIONS: Final = ("--disable-pip", "--no-deps", "--progress-spinner=off", "--format=json", "--desc=off")
# Text of a traceback or of pip-audit where the server did not answer, or is no advisory service.
_UNREACHABLE: Final = re.compile(r"(Connection|Proxy|SSL|Service)Error\b|Timeout\b|Could not connect|PyPI is not")


class Verdict(NamedTuple):
    """The conclusion from a report."""

    failed: bool
    text: str


def main() -> int:
    """Returns the exit status."""
    verdict = audit()
    sys.stderr.write(f"{verdict.text}\n")
    return int(verdict.failed)


def audit(options: Sequence[str] = ()) -> Verdict:
    """Run pip-audit on the pinned packages of the service."""
    command = [sys.executable, "-m", "pip_audit", f"--requirement={_REQUIREMENTS}", *_OPTIONS, *options]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return judge(finished.stdout, finished.stderr)


def judge(report: str, errors: str) -> Verdict:
    """Judge pip-audit's JSON, or its errors if it wrote none."""
    if report:
        return _judge_packages(json.loads(report)["dependencies"])
    if _UNREACHABLE.search(errors):
        return _nothing_audited("the advisory service did not answer")
    return Verdict(failed=True, text=errors)


def _judge_packages(packages: Sequence[dict[str, Any]]) -> Verdict:
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    found = [
        f"{package['name']} {package['version']}: {_advisory(known)}"
        for package in packages
        for known in package.get("vulns", [])
    ]
    if found:
        return Verdict(failed=True, text="\n".join(["Known vulnerabilities:", *found]))
    if len(unknown) == len(packages):
        return _nothing_audited("the advisory service knows none of the packages")
    if unknown:
        text = f"WARNING: not audited, as the advisory service does not know them: {', '.join(unknown)}"
        return Verdict(failed=False, text=text)
    return Verdict(failed=False, text=f"{len(packages)} packages audited, no known vulnerability.")


def _nothing_audited(reason: str) -> Verdict:
    return Verdict(failed=False, text=f"WARNING: NOTHING WAS AUDITED: {reason}. Run this where it can be asked.")


def _advisory(known: dict[str, Any]) -> str:
    names = ", ".join([known["id"], *known["aliases"]])
    return f"{names}; fixed in {', '.join(known['fix_versions']) or 'no version yet'}"


if __name__ == "__main__":
    sys.exit(main())

"""The files around the service: its version, the workflow, what Dependabot updates, the dev container.

jactionlint is a fork of actionlint. Its package contains the program, which that of actionlint downloads.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from app import __version__
from app.core.config import Settings

ROOT: Final = Path(__file__).parents[1]
WORKFLOW: Final = ROOT / ".github/workflows/ci.yml"
DEPENDABOT: Final = ROOT / ".github/dependabot.yml"
LINTERS: Final = {
    "jactionlint": ("--shellcheck=", "--strict-exit"),
    "zizmor": ("--offline", "--persona=auditor", "--strict-collection", "--quiet"),
}
MANIFESTS: Final = {
    "pip": "requirements*.txt",
    "npm": "package.json",
    "docker": "Dockerfile",
    "docker-compose": "compose.yaml",
    "github-actions": ".github/workflows/*",
}


def findings(linter: str, *files: Path) -> str:
    """The report of the linter, empty if it finds nothing."""
    command = [str(Path(sys.executable).with_name(linter)), *LINTERS[linter], *map(str, files)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout if done.returncode else ""


def test_the_version_is_written_in_one_place_and_the_newest_release_in_the_changelog_has_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    released = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert "version" in project["dynamic"]
    assert released[:1] in ([], [__version__])


class TestGitHub:
    @pytest.mark.ci  # which installs the linters
    @pytest.mark.parametrize("linter", LINTERS)
    def test_linters_find_nothing_in_the_workflows_and_the_settings_of_dependabot(self, linter: str) -> None:
        assert findings(linter, *WORKFLOW.parent.iterdir(), DEPENDABOT) == ""

    def test_the_jobs_call_the_scripts_and_may_only_read_the_repository(self) -> None:
        workflow: dict[str, Any] = YAML(typ="safe").load(WORKFLOW.read_text())
        jobs = workflow["jobs"].values()

        assert [[step["run"] for step in job["steps"] if "run" in step] for job in jobs] == [[".ci/run"], [".ci/image"]]
        assert [workflow["permissions"], *(job["permissions"] for job in jobs)] == [{}, *[{"contents": "read"}] * 2]
        assert {each["uses"].partition("@")[0] for job in jobs for each in job["steps"] if "uses" in each} == {
            "actions/checkout"
        }

    def test_dependabot_watches_every_file_that_names_packages_images_or_actions(self) -> None:
        watched = {
            (entry["package-ecosystem"], directory)
            for entry in YAML(typ="safe").load(DEPENDABOT.read_text())["updates"]
            for directory in entry.get("directories") or [entry["directory"]]
        }
        found = {
            (ecosystem, f"/{path.parent.relative_to(ROOT)}".removesuffix(".").replace("/.github/workflows", "/"))
            for ecosystem, pattern in MANIFESTS.items()
            for folder in ("", "*/", "*/*/")  # not those in node_modules
            for path in ROOT.glob(folder + pattern)
            if path.relative_to(ROOT).parts[0] not in (".venv", ".data")
        }

        assert watched == found


@pytest.mark.ci
@pytest.mark.parametrize(("report", "status"), [("9 passed", 0), ("9 passed, 1 skipped", 1)])
def test_the_script_of_the_workflow_installs_what_a_runner_of_github_lacks_and_accepts_no_skipped_test(
    tmp_path: Path, report: str, status: int
) -> None:
    script = tmp_path / ".ci/run"
    script.parent.mkdir()
    script.write_text((ROOT / ".ci/run").read_text().replace("/usr/", f"{tmp_path}/"))
    scripts = {"make": f"echo '{report}'", "sudo": 'exec "$@"', "apt-get": 'echo "$@" >>"$0.log"', "id": "echo 1001"}
    for name in ("java", "nginx", "node", "npm", "pgrep", "ruby", "systemd-analyze", "google-chrome", *scripts):
        (tmp_path / name).write_text(f"#!/bin/bash\n{scripts.get(name, '')}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("bash", "chmod", "dirname", "env", "grep", "rm", "tee"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "sbin").mkdir()

    done = subprocess.run(["bash", script], env={"PATH": str(tmp_path)}, capture_output=True, check=False)

    installed = (tmp_path / "apt-get.log").read_text().splitlines()[-1].partition("--no-install-recommends ")[2]
    assert installed.split() == ["haproxy", "pgbouncer", "postgresql", "wrk"]
    assert done.returncode == status
    assert [*(tmp_path / "sbin").iterdir()] == []


class TestDevContainer:
    CONTAINER: Final[dict[str, Any]] = json.loads(
        re.sub(r"^ *//.*", "", (ROOT / ".devcontainer/devcontainer.json").read_text(), flags=re.MULTILINE)
    )

    def test_its_first_command_turns_authentication_on_unless_there_is_an_env_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        command = ["sh", "-euc", self.CONTAINER["postCreateCommand"].replace("make", "echo make")]
        monkeypatch.chdir(tmp_path)

        assert subprocess.check_output(command, text=True) == "make install\n"
        secret = Path(".env").read_text()
        assert Path(".env").stat().st_mode & 0o777 == 0o600
        assert Settings(_env_file=".env").authenticates

        assert subprocess.check_output(command, text=True) == "make install\n"
        assert Path(".env").read_text() == secret

    def test_it_has_the_python_and_the_debian_of_the_image_and_forwards_the_port_of_the_service(self) -> None:
        [image, _] = re.findall(r"^FROM python:([^ @\n]+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

        assert self.CONTAINER["image"].partition("@")[0].rpartition(":")[2] == image.replace("-slim", "")
        assert self.CONTAINER["forwardPorts"] == [Settings.model_fields["port"].default]

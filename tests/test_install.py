"""`make install` and what the other commands do before they run: a copy of Makefile and install.sh in an empty project.

A stand-in for uv "installs" in no time.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
VERSION: Final = f"3.{sys.version_info.minor}"
BASE: Final = Path(sys.base_prefix) / f"bin/python{VERSION}"

# Notes the requirements that it gets, and then does what the file `uv-does` says.
UV: Final = """#!/bin/sh
[ "$1" = pip ] || exit 1
for last; do :; done
echo "$last" >> uv-installed
if [ -e uv-does ]; then . ./uv-does; fi
"""
# Prints what it runs on, and ends in order when Ctrl+C is pressed.
APP: Final = """
import signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
print("serving", flush=True)
if sys.stdin.read(1):
    signal.pause()
"""

# What GNU make prints if it reaps its child in the handler of the signal, and then waits for it.
MAKE_RACE: Final = re.compile(
    r"make: \*\*\* wait: No child processes\.  Stop\.\n(make: \*\*\* Waiting for unfinished jobs\.{4}\n)?\Z"
)


class Project:
    """A directory with this project's Makefile and requirements of no package, and a PATH of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("Makefile", "install.sh"):
            shutil.copy(ROOT / name, root)
        self.write("requirements.txt", "# service\n")
        self.write("requirements-embedded.txt", "# embedded\n-r requirements.txt\n")
        self.write("requirements-otel.txt", "# otel\n-r requirements.txt\n")
        self.write("requirements-mcp.txt", "# mcp\n-r requirements.txt\n")
        self.write("requirements-dev.txt", "# dev\n-r requirements-embedded.txt\n")
        self.write("requirements-ci.txt", "# ci\n-r requirements-dev.txt\n")
        self.write("backend/app/__main__.py", APP)
        self.program("python3", f'#!/bin/sh\nexec {BASE} "$@"\n')
        self.program("uv", UV)

    def write(self, name: str, content: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def program(self, name: str, content: str) -> None:
        self.write(f"path/{name}", content).chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        path = os.pathsep.join([str(self.root / "path"), "/usr/bin", "/bin"])
        return subprocess.Popen(
            ["make", *arguments],
            cwd=self.root,
            env={"PATH": path, "LC_ALL": "C"} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def make(self, *arguments: str, **environment: str) -> str:
        """The lines that a command prints."""
        return self.start(*arguments, **environment).communicate("")[0]

    @property
    def installed(self) -> list[str]:
        """The files of requirements that were installed since the last look."""
        log = self.root / "uv-installed"
        names = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return names


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project")


RUN: Final = "Installing about 180 MB into .venv; this takes a minute.\n"
UPDATE: Final = "Updating .venv; this takes up to a minute.\n"
OLD: Final = "#!/bin/sh\necho 'is Python 3.9'; exit 1\n"
SERVING: Final = "serving\n"


def pretend(venv: Path, minor: int) -> None:
    """Let the Python of this environment say that it is another version. Debian's has a sitecustomize.py already."""
    (packages,) = venv.glob("lib/*/site-packages")
    (packages / "pretend.pth").write_text(f"import sys; sys.version_info = (3, {minor})\n")
    (venv / f"lib/python3.{minor}/site-packages").mkdir(parents=True)


def replace(path: Path, content: str) -> None:
    path.unlink()
    path.write_text(content)
    path.chmod(0o755)


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline()


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


@pytest.mark.ci
class TestInstallation:
    def test_make_run_installs_the_packages_of_the_service_and_make_install_the_others(self, project: Project) -> None:
        assert project.make("run") == RUN + SERVING
        assert project.make("run") == SERVING
        assert project.installed == ["requirements-embedded.txt"]

        assert project.make("install") == "Adding about 460 MB to .venv; this takes a minute.\n"
        assert project.make("install", "run") == SERVING
        assert project.installed == ["requirements-dev.txt"]

        assert project.make("install-ci") == "Adding about 460 MB to .venv; this takes a minute.\n"
        assert project.make("install-ci", "install", "run") == SERVING
        assert project.installed == ["requirements-ci.txt"]

    def test_changed_requirements_are_installed_and_the_earlier_ones_again(self, project: Project) -> None:
        project.make("install")
        project.write("requirements.txt", "# later\n")
        assert project.make("run") == UPDATE + SERVING
        project.write("requirements.txt", "# service\n")

        assert project.make("install") == UPDATE
        assert project.installed == ["requirements-dev.txt", "requirements-embedded.txt", "requirements-dev.txt"]

    def test_an_installation_that_fails_is_repeated(self, project: Project) -> None:
        project.make("run")
        failing = project.write("uv-does", "echo 'no such package' >&2; exit 1\n")
        printed = project.make("install")
        assert "no such package\nThe packages are not installed. Repeat the command" in printed
        assert "serving" not in project.make("run")
        failing.unlink()

        assert project.make("run") == RUN + SERVING

    @pytest.mark.parametrize(
        ("output", "reason"),
        [
            ("error: Request failed\\n  cause: Failed to fetch: https://x/\\n  cause: no name", "no name"),
            ("WARNING: Retrying after connection broken by 'E(<c at 0x7>: no name)': /x/\\nERROR: none", "E(no name)"),
        ],
        ids=["uv", "pip"],
    )
    def test_an_unreachable_index_is_one_line(self, project: Project, output: str, reason: str) -> None:
        project.write("uv-does", f'printf "{output}" >&2; exit 1\n')

        printed = project.make("install").splitlines()[1]

        assert printed == f"The package index cannot be reached by uv ({reason}). Repeat the command when it can."

    def test_without_a_wheel_for_the_platform_the_service_is_installed_alone(self, project: Project) -> None:
        project.write("libc/platform.py", "system = lambda: 'Linux'\nlibc_ver = lambda: ('', '')\n")

        printed = project.make("run", "PYTHONPATH=libc:backend")

        assert printed == f"{RUN}There is no embedded PostgreSQL for this system: set DATABASE_URL.\n{SERVING}"
        assert project.installed == ["requirements.txt"]
        assert project.make("run") == SERVING

    def test_a_second_installation_waits_for_the_first(self, project: Project) -> None:
        project.write("uv-does", "mkfifo going 2>/dev/null && read line < going\n")
        with project.start("install") as first:
            until((project.root / "going").exists)
            with project.start("run") as second:
                printed = read_line(second)
                project.write("going", "on\n")
                assert printed == "Waiting for another installation in this folder.\n"
                assert second.communicate("")[0] == SERVING
        assert first.returncode == 0
        assert project.installed == ["requirements-dev.txt"]

    def test_pip_installs_where_there_is_no_uv_also_into_an_environment_without_it(self, project: Project) -> None:
        with zipfile.ZipFile(project.root / "thing-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("app/thing.py", "")
            wheel.writestr("thing-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1\n")
            wheel.writestr("thing-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr("thing-1.dist-info/RECORD", "")
        index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(project.root)}
        project.make("run")
        (project.root / "path/uv").unlink()
        project.write("requirements.txt", "thing==1\n")

        assert project.make("run", **index) == UPDATE + SERVING
        assert [*project.root.glob(".venv/lib/*/site-packages/app/thing.py")]

        [metadata] = project.root.glob(".venv/lib/*/site-packages/thing-1.dist-info")
        shutil.rmtree(metadata)
        project.write("requirements.txt", "thing==1\n# again\n")
        project.write("pip.conf", "[install]\ntarget = other\n")
        printed = project.make("run", **index, PIP_CONFIG_FILE=str(project.root / "pip.conf"))
        assert "No package metadata was found for thing in .venv. Look for target," in printed

        project.write("requirements.txt", "thing==2\n")
        assert "No matching distribution found for thing==2\nThe packages are not" in project.make("run", **index)


@pytest.mark.ci
class TestEnvironment:
    """A `.venv` that cannot work is made again, in place, and nothing is removed before that can be done."""

    def test_a_spoilt_environment_is_made_again(self, project: Project) -> None:
        spoilt: dict[Callable[[Path], object], str] = {
            lambda venv: (venv / "bin/python").unlink(): "its Python is gone",
            lambda venv: replace(venv / "bin/python", "#!/bin/false\n"): "its Python does not run",
            lambda venv: pretend(venv, 9): "its Python is 3.9, and 3.11 is needed",
            lambda venv: (venv / "lib" / BASE.name).rename(venv / "lib/python3.10"): f"its Python has become {VERSION}",
            lambda venv: (venv / "bin/activate").unlink(): "an installation was interrupted",
            lambda venv: (venv / "pyvenv.cfg").unlink(): "an installation was interrupted",
        }
        project.make("run")
        for spoil, reason in spoilt.items():
            spoil(project.root / ".venv")
            assert project.make("run") == f"Making .venv again: {reason}.\n{RUN}{SERVING}"
        assert project.make("run") == SERVING

    @pytest.mark.parametrize("move", [Path.rename, partial(shutil.copytree, symlinks=True)], ids=["moved", "copied"])
    def test_in_another_folder_it_is_made_again(self, project: Project, move: Callable[..., Path]) -> None:
        project.make("run")
        shutil.rmtree(project.root / "path")
        project = Project(move(project.root, project.root.with_name("it's another")))

        assert project.make("run") == f"Making .venv again: it was made in another folder.\n{RUN}{SERVING}"
        assert project.make("run") == SERVING

    def test_in_a_folder_of_any_name_it_is_made_once(self, tmp_path: Path) -> None:
        root = tmp_path / """ $(touch ran)`touch ran` "it's" \\ # *"""
        root.mkdir()
        project = Project(root)

        assert project.make("run") == RUN + SERVING
        assert project.make("run") == SERVING
        assert not (root / "ran").exists()

    def test_checkouts_may_share_one_by_a_link(self, project: Project) -> None:
        shared = project.root.with_name("shared")
        shared.mkdir()
        (project.root / ".venv").symlink_to(shared)

        assert project.make("run") == RUN + SERVING
        assert project.make("run") == SERVING
        (shared / "pyvenv.cfg").unlink()
        assert project.make("run").startswith("Making .venv again")
        assert (project.root / ".venv").readlink() == shared

    def test_another_python_stays_until_one_is_named(self, project: Project) -> None:
        project.make("run")
        pretend(project.root / ".venv", 99)

        assert project.make("run") == SERVING
        printed = project.make("run", "PYTHON=python3")
        assert printed == f"Making .venv again: its Python is 3.99, not python3.\n{RUN}{SERVING}"
        assert project.make("run", PYTHON="python3") == SERVING

    def test_another_python_is_found_if_python3_is_too_old(self, project: Project) -> None:
        (project.root / "path/python3").rename(project.root / "path/python3.13")
        project.program("python3", OLD)

        assert project.make("run") == f"Using python3.13, because python3 is Python 3.9.\n{RUN}{SERVING}"

    @pytest.mark.parametrize(
        ("python", "arguments", "reason"),
        [
            (OLD, [], "python3 is Python 3.9"),
            ("#!/bin/sh\necho 'has no venv (on Debian: …)'; exit 1\n", [], "python3 has no venv (on Debian: …)"),
            (OLD, ["PYTHON=python3.99"], "python3.99 does not run"),
        ],
    )
    def test_without_a_python_that_fits_one_line_says_what_to_do_and_the_environment_stays(
        self, project: Project, python: str, arguments: list[str], reason: str
    ) -> None:
        for name in ("python3.11", "python3.12", "python3.13", "python3.14"):
            project.program(name, "#!/bin/false\n")
        project.program("python3", python)
        kept = project.write(".venv/bin/kept", "")

        printed = project.make("run", *arguments).splitlines()[0]

        assert printed.startswith(f"{reason}; Python 3.11 or newer is needed. Install one, or name it with PYTHON=")
        assert kept.exists()

    def test_a_file_in_the_place_of_the_environment_is_named(self, project: Project) -> None:
        project.write(".venv", "another tool's")

        assert project.make("run").startswith("This account cannot write .venv here. Remove .venv if it is a file")


@pytest.mark.ci
class TestInterrupt:
    """After Ctrl+C, make says nothing. `$?` is 130 all the same, because make ends itself by the signal."""

    @pytest.fixture(autouse=True)
    def _takes_interrupts(self) -> Iterator[None]:
        """A background job ignores SIGINT, and so would every program that it starts."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    def interrupt(self, process: "subprocess.Popen[str]", sent: signal.Signals = signal.SIGINT) -> str:
        with process:
            os.killpg(process.pid, sent)
            printed = process.stdout.read() if process.stdout else ""
        if MAKE_RACE.search(printed):
            return MAKE_RACE.sub("", printed)
        assert process.returncode == -sent, printed
        return printed

    def test_make_run_ends_without_a_word(self, project: Project) -> None:
        running = project.start("run")
        until(lambda: read_line(running) == SERVING)

        assert self.interrupt(running) == ""

    @pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
    def test_an_interrupted_installation_is_made_again(self, project: Project, sent: signal.Signals) -> None:
        project.write("uv-does", "mkfifo going && read line < going\n")
        installing = project.start("run")
        until((project.root / "going").exists)

        assert self.interrupt(installing, sent) == RUN
        (project.root / "uv-does").unlink()
        assert project.make("run") == f"Making .venv again: an installation was interrupted.\n{RUN}{SERVING}"


class TestFiles:
    def test_each_requirement_is_pinned_and_in_one_file_and_the_last_file_includes_all(self) -> None:
        files = [
            (ROOT / f"requirements{name}.txt").read_text() for name in ("", "-embedded", "-otel", "-mcp", "-dev", "-ci")
        ]
        lines = [re.findall(r"^[^#\n-].*", text, re.MULTILINE) for text in files]
        included = [re.findall(r"^-r (.*)", text, re.MULTILINE) for text in files]
        names = [re.sub(r"(\[.*\])?==[\w.]+(; .*)?$", "", line).lower() for line in chain(*lines)]

        optional = ["requirements-embedded.txt", "requirements-otel.txt", "requirements-mcp.txt"]
        assert included == [[], *[["requirements.txt"]] * 3, optional, ["requirements-dev.txt"]]
        assert len({*names}) == len(names)
        assert [name for name in names if not re.fullmatch(r"[\w.-]+", name)] == []

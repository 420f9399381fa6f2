"""Copies of the project, in which tools change files. Each is a repository of its own."""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

# No setting of the developer changes what Git does in a copy, and no variable of a hook, of make or of pytest what
# other programs do there.
ENVIRONMENT: Final = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "MAKE", "PYTEST_"))},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def copy_tree(root: Path, target: Path) -> Path:
    """Copy every file of `root` that Git does not ignore, with uncommitted changes. Returns the path of the copy.

    `.venv` is a link there, and `.data` is empty. The cache of mypy saves a minute.
    """
    git(root, "init", "--quiet", target)
    command = ("git", "rev-parse", "--path-format=absolute", "--git-path", "objects")
    objects = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout
    (target / ".git/objects/info/alternates").write_text(objects)  # they have the earlier versions of files
    git(target, "reset", "--quiet", "--hard", take_tree(root, target))
    (target / ".venv").symlink_to((root / ".venv").resolve())
    (target / ".data").mkdir()
    with suppress(FileNotFoundError):
        shutil.copytree(root / ".mypy_cache", target / ".mypy_cache")
    return target


def take_tree(root: Path, copy: Path) -> str:
    """Commit the files that `root` has now, and move the tag `tree` of the copy there. Returns the commit."""
    options = (f"--git-dir={copy}/.git", f"--work-tree={root}")
    git(root, *options, "add", "--all", index=f"{copy}/.git/index-of-tree")
    files = git(root, *options, "write-tree", index=f"{copy}/.git/index-of-tree").stdout.strip()
    parent = ("-p", "tree") if git(copy, "tag", "--list", "tree").stdout else ()
    commit = git(copy, "commit-tree", files, *parent, "-m", "The tree").stdout.strip()
    git(copy, "tag", "--force", "tree", commit)
    return commit


def git(
    directory: Path, *arguments: str | Path, check: bool = True, index: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run Git in a repository, but not in one around it, and without settings of the developer."""
    command = ("git", "-c", "user.name=tree", "-c", "user.email=tree@localhost", *arguments)
    environment = ENVIRONMENT | {"GIT_CEILING_DIRECTORIES": str(directory.parent)}
    if index:
        environment["GIT_INDEX_FILE"] = index
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=check)

"""Refresh the patches in examples: `python -m tests.recipes`. With the name of a recipe, also open it in .data/recipes.

An open recipe is a copy of the project with a repository of its own, in which `git diff` shows the recipe.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.copies import ENVIRONMENT, copy_tree, git, take_tree

_DOCUMENT: Final = "docs/openapi.json"  # is generated, so nobody mends it
_OPENED: Final = ".git/opened.patch"  # the patch when the recipe was opened or written last
_NAME: Final = re.compile(r"[A-Za-z\d][\w-]*", re.ASCII)  # of a folder below .data/recipes
_VERSIONS: Final = "alembic/versions"
_ID: Final = 'revision = "'
_IDS: Final = re.compile(r'^(Revision ID: |Revises: |(?:down_)?revision = ")(\w+)', re.MULTILINE)


class RecipeError(Exception):
    """A recipe cannot be refreshed. The text says what to do."""


def main(root: Path, name: str = "") -> int:
    """Refresh all patches, or the one of a name. Prints a line for each. Returns the number of those that failed."""
    patches = {path.stem for path in (root / "examples").glob("*.patch")}
    opened = {path.name for path in (root / ".data/recipes").glob("[!.]*")}
    failed = 0
    for each in [name] if name else sorted(patches | opened):
        try:
            line = _refresh(root, each, keep=each in opened or bool(name))
        except RecipeError as error:
            line = str(error)
            failed += 1
        print(f"{each}: {line}", flush=True)  # noqa: T201
    return failed


def _refresh(root: Path, name: str, *, keep: bool) -> str:
    if not _NAME.fullmatch(name):
        raise RecipeError("this is no name for a recipe. Take letters, digits and hyphens, as in due-date.")
    patch, copy = root / f"examples/{name}.patch", root / ".data/recipes" / name
    _bring_up_to_date(root, patch, copy)
    shown = copy.relative_to(root)
    if conflicts := _conflicts(copy):
        raise RecipeError(f"conflicts in {conflicts}. Mend them in {shown}, and run `make recipes` again.")
    git(copy, "reset", "--quiet", "tree")
    git(copy, "add", "--intent-to-add", ".")
    _renumber(copy)
    _write_document(copy)
    before, text = _text(patch), recipe_of(copy)
    for path in (patch, copy / _OPENED) if text else ():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    if not keep:
        shutil.rmtree(copy)
    done = "has no changes" if not text else "unchanged" if text == before else f"wrote {patch.relative_to(root)}"
    return f"{done}. It is open in {shown}; `make recipes` writes what you change there." if keep else f"{done}."


def _bring_up_to_date(root: Path, patch: Path, copy: Path) -> None:
    """Open the recipe on the tree of today, or merge the tree of today into the one that is open."""
    if copy.exists() and _text(patch) != _text(copy / _OPENED):
        if recipe_of(copy) != _text(copy / _OPENED):
            shown = copy.relative_to(root)
            raise RecipeError(f"{patch.name} and {shown} have both changed since it was opened. Remove one of them.")
        shutil.rmtree(copy)
    if not copy.exists():
        _open(root, patch, copy)
    elif not _conflicts(copy):
        git(copy, "add", "--all")
        git(copy, "commit", "--quiet", "--allow-empty", "--message", "The recipe")
        merged = git(copy, "merge", "--no-edit", take_tree(root, copy), check=False)
        if merged.returncode and not _conflicts(copy):  # a file that only one side has
            (copy / "merge.rej").write_text(merged.stdout)


def _open(root: Path, patch: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=copy.parent, prefix=".") as unfinished:
        target = copy_tree(root, Path(unfinished) / copy.name)
        if patch.exists():
            shutil.copy(patch, target / _OPENED)
            _apply(patch, target)
        target.rename(copy)


def _apply(patch: Path, copy: Path) -> None:
    """Merge the patch. Without the earlier versions of the files, as in a shallow clone, apply it with less context."""
    if git(copy, "apply", "--3way", patch, check=False).returncode == 0 or git(copy, "ls-files", "--unmerged").stdout:
        return
    applied = git(copy, "apply", "-C1", "--recount", "--reject", patch, check=False)
    if applied.returncode:  # Git rejects hunks, but only reports a file that is missing
        (copy / f"{patch.name}.rej").write_text(applied.stderr + patch.read_text())


def _conflicts(copy: Path) -> str:
    """Returns the files that have conflict markers or rejected hunks."""
    others = ("--", ".", f":!{_DOCUMENT}", f":!{_DOCUMENT}.rej")
    marked = git(copy, "grep", "--untracked", "--name-only", "-E", "^(<{7}|>{7}) ", *others, check=False).stdout
    rejected = git(copy, "ls-files", "--others", *others).stdout
    return ", ".join([*marked.splitlines(), *(name for name in rejected.splitlines() if name.endswith(".rej"))])


def _renumber(copy: Path) -> None:
    """Put the revision of the recipe behind the newest one of the tree, which may have got another since."""
    added = git(copy, "diff", "--name-only", "--diff-filter=A", "tree", "--", _VERSIONS).stdout.split()
    tree = [path for path in (copy / _VERSIONS).glob("*.py") if path not in map(copy.joinpath, added)]
    ids = [dict(_IDS.findall(path.read_text())) for path in tree]
    newest = {each[_ID] for each in ids if _ID in each} - {each.get(f"down_{_ID}") for each in ids}
    if len(added) == len(newest) == 1:
        path = copy / added[0]
        path.write_text(_following(path.read_text(), newest.pop()))


def _following(revision: str, head: str) -> str:
    old = dict(_IDS.findall(revision))
    if old.get(f"down_{_ID}") in {head, None}:
        return revision
    new = {old[f"down_{_ID}"]: head, old[_ID]: f"{int(head) + 1:04}" if head.isdecimal() else old[_ID]}
    return _IDS.sub(lambda found: found[1] + new[found[2]], revision)


def _write_document(copy: Path) -> None:
    command = ("make", "--silent", "--assume-old=install", "openapi")
    made = subprocess.run(command, cwd=copy, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    (copy / f"{_DOCUMENT}.rej").unlink(missing_ok=True)
    if made.returncode:
        raise RecipeError(f"`make openapi` fails in .data/recipes/{copy.name}.\n{made.stderr}")


def recipe_of(copy: Path) -> str:
    """Returns the patch from the tree to what the copy has now."""
    git(copy, "add", "--intent-to-add", ".")
    return git(copy, "diff", "--full-index", "tree").stdout


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(bool(main(Path.cwd(), *sys.argv[1:])))

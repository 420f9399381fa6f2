"""The mutants can be planted, and the tests that found them exist. `make mutants` runs them."""

import re

from tests.mutants.catalog import ROOT, load, read_table


def test_every_mutant_has_its_own_name_and_can_be_planted() -> None:
    names = [mutant.name for mutant in load()]

    assert len(set(names)) == len(names) > 100


def test_every_package_has_a_mutant() -> None:
    modules = [path for path in (ROOT / "backend/app").rglob("*.py") if path.name != "__init__.py"]

    assert {path.parent for path in modules} <= {(ROOT / mutant.file).parent for mutant in load()}


def test_every_row_of_the_table_is_a_mutant() -> None:
    assert read_table()
    assert read_table().keys() <= {mutant.name for mutant in load()}


def test_every_test_of_the_table_exists() -> None:
    assert [test for test in read_table().values() if not _exists(test)] == []
    assert not _exists("tests/test_mutants.py::test_that_nobody_wrote")


def _exists(test: str) -> bool:
    path, *names = test.split("::")
    text = (ROOT / path).read_text() if (ROOT / path).exists() else ""
    return all(re.search(rf"^ *(?:async )?(?:def|class) {name}\b", text, re.MULTILINE) for name in names)

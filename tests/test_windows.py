"""The service needs nothing that Python has on Unix only. It cannot be tried on Windows itself here."""

from pathlib import Path
from signal import SIGINT
from typing import Final

import pytest
from packaging.requirements import Requirement
from sqlalchemy import make_url

from tests.faults import fault_proxy
from tests.service import BACKEND, Service
from tests.support import new_database

ROOT: Final = BACKEND.parent


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.ci)])
def test_without_what_only_unix_has_the_service_migrates_and_serves_and_ends_after_ctrl_c(
    dsn: str, tmp_path: Path, workers: str
) -> None:
    with new_database(dsn, "windows") as empty, fault_proxy(empty) as proxy:
        without_host = f"postgresql://postgres@/windows?sslmode=disable&port={make_url(proxy.dsn).port}"
        settings = {"DATABASE_URL": without_host, "WEB_CONCURRENCY": workers}
        with Service(tmp_path, settings, module="tests.windows") as service:
            created = service.ready().create("Buy oat milk")
            assert service.tasks() == [created]
            assert service.end(SIGINT) in {0, 130}
        assert service.stderr == ""
        assert "ERROR" not in {line["level"] for line in service.lines}


def test_what_has_no_wheel_for_windows_is_not_required_there() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if not line.startswith("#")]

    elsewhere = [
        each.name for each in requirements if each.marker and not each.marker.evaluate({"sys_platform": "win32"})
    ]
    assert elsewhere == ["uvloop"]

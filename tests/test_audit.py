"""The verdict of `make check` on pip-audit's report: passed, failed, or nothing audited."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from tests.audit import Verdict, audit, judge

# Parts of reports as pip-audit 2.10.1 writes them.
CLEAN: Final = '{"name": "starlette", "version": "1.10.0", "vulns": []}'
VULNERABLE: Final = (
    '{"name": "pyjwt", "version": "2.12.0", "vulns": [{"id": "CVE-2026-48522", "fix_versions": ["2.13.0"], '
    '"aliases": ["GHSA-xgmm-8j9v-c9wx"]}]}'
)
UNFIXED: Final = VULNERABLE.replace('"2.13.0"', "")
SKIPPED: Final = (
    '{"name": "uvloop", "skip_reason": "Dependency not found on PyPI and could not be audited: uvloop (0.23.0)"}'
)
WARNINGS: Final = "WARNING:pip_audit._cli:--no-deps is supported, but users are encouraged to fully hash\n"


def report(*packages: str) -> str:
    return f'{{"dependencies": [{", ".join(packages)}], "fixes": []}}'


class TestReport:
    def test_a_clean_report_passes_with_the_number_of_packages(self) -> None:
        verdict = judge(report(CLEAN, CLEAN), WARNINGS + "No known vulnerabilities found")

        assert verdict == Verdict(failed=False, text="2 packages audited, no known vulnerability.")

    @pytest.mark.parametrize(
        ("package", "fix"),
        [(VULNERABLE, "fixed in 2.13.0"), (UNFIXED, "fixed in no version yet")],
        ids=["with a fix", "without a fix"],
    )
    def test_a_vulnerability_fails_and_is_named(self, package: str, fix: str) -> None:
        verdict = judge(report(CLEAN, SKIPPED, package), WARNINGS)

        assert verdict.failed
        assert verdict.text.endswith(f"\npyjwt 2.12.0: CVE-2026-48522, GHSA-xgmm-8j9v-c9wx; {fix}")

    def test_a_report_without_a_known_package_passes_with_a_warning(self) -> None:
        verdict = judge(report(SKIPPED, SKIPPED), WARNINGS + "No known vulnerabilities found")

        assert not verdict.failed
        assert verdict.text.startswith("WARNING: NOTHING WAS AUDITED")

    def test_an_unknown_package_is_named_in_a_warning(self) -> None:
        verdict = judge(report(CLEAN, SKIPPED), WARNINGS)

        assert not verdict.failed
        assert verdict.text.startswith("WARNING: not audited")
        assert "uvloop" in verdict.text
        assert "starlette" not in verdict.text

    @pytest.mark.parametrize(
        "errors",
        [
            "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='a.example'): Max retries exceeded",
            "requests.exceptions.ReadTimeout: HTTPSConnectionPool(host='a.example'): Read timed out.",
            "pip_audit._service.interface.ServiceError",
            "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed",
        ],
        ids=["refused", "timeout", "503", "blocked"],
    )
    def test_an_unreachable_advisory_service_passes_with_a_warning(self, errors: str) -> None:
        verdict = judge("", WARNINGS + errors)

        assert not verdict.failed
        assert verdict.text.startswith("WARNING: NOTHING WAS AUDITED")

    @pytest.mark.parametrize(
        "errors", ["No module named pip_audit", "ERROR:pip_audit._cli:invalid requirements input: requirements.txt"]
    )
    def test_a_failure_of_the_tool_fails(self, errors: str) -> None:
        assert judge("", WARNINGS + errors) == Verdict(failed=True, text=WARNINGS + errors)


ADVISORY: Final = {
    "id": "GHSA-test-test-test",
    "aliases": ["CVE-2026-0"],
    "affected": [
        {
            "package": {"name": "pyjwt", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}],
        }
    ],
}


@asynccontextmanager
async def advising(*advisories: object) -> AsyncIterator[str]:
    """An advisory service that has these advisories for PyJWT alone. Yields its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        asked = json.loads(await reader.readexactly(length))
        known = advisories if asked["package"]["name"] == "pyjwt" else ()
        content = json.dumps({"vulns": known} if known else {}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        yield "http://{}:{}/v1/query".format(*server.sockets[0].getsockname())


class TestRun:
    """Runs pip-audit on the pinned packages, with an advisory service on this machine."""

    @pytest.fixture(autouse=True)
    def no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    async def test_a_known_vulnerability_fails(self) -> None:
        async with advising(ADVISORY) as url:
            verdict = await self._audit(url)

        assert verdict.failed
        assert "pyjwt" in verdict.text
        assert verdict.text.endswith("CVE-2026-0, GHSA-test-test-test; fixed in 99")

    async def test_every_package_is_audited(self) -> None:
        async with advising() as url:
            verdict = await self._audit(url)

        assert not verdict.failed
        assert verdict.text.endswith(" packages audited, no known vulnerability.")
        assert int(verdict.text.split()[0]) > 30

    async def test_an_advisory_service_that_is_down_passes_with_a_warning(self) -> None:
        async with advising() as url:
            pass

        assert (await self._audit(url)).text.startswith("WARNING: NOTHING WAS AUDITED")

    async def _audit(self, url: str) -> Verdict:
        return await asyncio.to_thread(audit, ["--vulnerability-service=osv", f"--osv-url={url}"])

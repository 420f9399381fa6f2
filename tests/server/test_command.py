"""The arguments of `python -m app`, and the lines that say what it runs."""

import logging
import os
from pathlib import Path

import pytest

from app import __version__
from app.core.config import Settings, load_settings
from app.server.command import log_summary, read_arguments
from tests.support import SECRET

UNCHECKED = {"AUTH_ISSUER": "unchecked", "AUTH_AUDIENCE": "unchecked"}


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The directory of the project. The working directory is its directory `backend`."""
    (tmp_path / "backend").mkdir()
    monkeypatch.setattr("app.core.project.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path / "backend")
    return tmp_path


class TestArguments:
    @staticmethod
    def ended(*arguments: str) -> int | str | None:
        with pytest.raises(SystemExit) as caught:
            read_arguments(arguments)
        return caught.value.code

    def test_help_lists_every_setting_with_its_meaning_and_default_and_says_where_they_come_from(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.ended("--help") == 0

        text = " ".join(capsys.readouterr().out.split())
        for name, field in Settings.model_fields.items():
            assert f" {name.upper()} {field.description}" in text
        assert " Port to listen on. Default: 8000 " in text
        assert "come from the environment, and from the file .env in the working directory" in text

    def test_version_is_that_of_the_application(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.ended("--version") == 0
        assert capsys.readouterr().out == f"{__version__}\n"

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--port", "9000"], "--port: set PORT=9000 in the environment or in .env instead"),
            (["--port=9000"], "--port: set PORT=9000 in the environment or in .env instead"),
            (["--port"], "--port: set PORT=… in the environment or in .env instead"),
            (
                ["--web-concurrency", "2"],
                "--web-concurrency: set WEB_CONCURRENCY=2 in the environment or in .env instead",
            ),
            (
                [f"--auth-jwt-secret={SECRET}"],
                "--auth-jwt-secret: set AUTH_JWT_SECRET=… in the environment or in .env instead",
            ),
            (["PORT=9000"], "PORT: set PORT=9000 in the environment or in .env instead"),
            (["--reload"], "--reload: is not known; settings come from the environment or .env, and --help lists them"),
            (["--vers"], "--vers: is not known; settings come from the environment or .env, and --help lists them"),
        ],
    )
    def test_any_other_argument_is_refused_with_the_setting_that_is_meant(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
    ) -> None:
        assert self.ended(*arguments) == 2
        assert capsys.readouterr().err == f"{sentence}\n"


class TestSummary:
    @pytest.fixture
    def summary(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> "Summary":
        return Summary(monkeypatch, caplog)

    @pytest.mark.parametrize(
        ("own", "others", "line"),
        [
            (False, False, "Settings: no .env"),
            (False, True, "Settings: {project}/.env"),
            (True, False, "Settings: {project}/backend/.env"),
            (True, True, "Settings: {project}/backend/.env, not {project}/.env"),
        ],
    )
    def test_it_names_the_file_of_the_settings_and_one_that_is_not_used(
        self, summary: "Summary", project: Path, line: str, *, own: bool, others: bool
    ) -> None:
        for directory in [Path()] * own + [project] * others:
            (directory / ".env").touch()

        assert summary.lines()[1] == line.format(project=project)

    def test_the_same_tasks_are_found_from_every_directory_of_the_project(
        self, summary: "Summary", project: Path
    ) -> None:
        assert summary.lines()[2] == f"Database: embedded, {project}/.data/postgres"

        os.chdir(project)
        assert summary.lines()[2] == "Database: embedded, .data/postgres"

    def test_it_names_the_hosts_of_the_database_and_nothing_else_of_its_url(self, summary: "Summary") -> None:
        url = "postgresql://ada:s3cret@a.example,b.example:5433/private?application_name=x"

        assert summary.lines(DATABASE_URL=url)[2] == "Database: a.example, b.example"

    @pytest.mark.parametrize(
        ("settings", "line"),
        [
            ({"BETTER_AUTH_SECRET": SECRET}, "by secret"),
            (
                {"AUTH_JWKS_URL": "https://a.example/jwks?key=s3cret#s3cret", **UNCHECKED},
                "by the keys of https://a.example/jwks",
            ),
        ],
    )
    def test_it_says_how_tokens_are_checked_without_a_secret(
        self, summary: "Summary", caplog: pytest.LogCaptureFixture, settings: dict[str, str], line: str
    ) -> None:
        assert summary.lines(**settings)[3:] == [f"Authentication: {line}"]
        assert not [record for record in caplog.records if record.levelno > logging.INFO]

    def test_it_says_that_agents_are_served(self, summary: "Summary") -> None:
        assert summary.lines(MCP="on", AUTH_JWT_SECRET=SECRET)[4:] == ["Tools for agents: /mcp"]


class Summary:
    def __init__(self, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        self._environment = environment
        self._caplog = caplog
        caplog.set_level(logging.INFO)

    def lines(self, **settings: str) -> list[str]:
        """The lines of a start with these settings."""
        for name, value in settings.items():
            self._environment.setenv(name, value)
        self._caplog.clear()
        log_summary(load_settings())
        return [record.getMessage() for record in self._caplog.records]

"""Slips in the environment and in `.env` that would turn authentication off stop the start."""

import os
import re
from pathlib import Path
from threading import Thread
from typing import Final

import pytest

from app.core.config import load_settings
from app.core.environment import check_environment
from app.core.errors import StartupError
from tests.support import SECRET, unresolved

NOT_A_LINE: Final = "is not NAME=value, or its quote is not closed"
EMPTY: Final = "is empty; give it a value, or remove it"
UNKNOWN: Final = "is not a setting of this service; correct it or unset it (.env.example lists the settings)"
COMPOSE: Final = Path(__file__).parents[2] / "compose.yaml"
JWKS: Final = "AUTH_JWKS_URL=https://a.example/jwks\nAUTH_ISSUER=a\nAUTH_AUDIENCE=a\n"


@pytest.fixture(autouse=True)
def _own_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(text: str) -> str:
    """Returns the sentence for a `.env` with this text."""
    Path(".env").write_text(text)
    with pytest.raises(StartupError) as caught:
        load_settings()
    assert SECRET not in str(caught.value)
    return str(caught.value)


class TestLines:
    @pytest.mark.parametrize(
        "line",
        [
            f"AUTH_JWT_SECRET: {SECRET}",
            f"AUTH_JWT_SECRET:{SECRET}",
            f"AUTH_JWT_SECRET:{SECRET}=",
            f"AUTH_JWT_SECRET {SECRET}",
            f"set AUTH_JWT_SECRET={SECRET}",
            f"AUTH_JWT_SECRET='{SECRET}",
            f'AUTH_JWT_SECRET="{SECRET}',
            f'AUTH_JWT_SECRET="{SECRET}" and more',
            f'AUTH_JWT_SECRET="{SECRET}\nPORT="9000"',
            f'"AUTH_JWT_SECRET": "{SECRET}",',
            f'"AUTH_JWT_SECRET"={SECRET}',
            f"AUTH-JWT-SECRET={SECRET}",
            f"\u200bAUTH_JWT_SECRET={SECRET}",
            f"- AUTH_JWT_SECRET={SECRET}",
            f"JWT_SECRET:{SECRET}=",
            f"$env:AUTH_JWT_SECRET='{SECRET}'",
            "$env:PORT=9000",
            "POR\u0422=9000",  # the last letter is Cyrillic
            f"COLOUR='blue\nAUTH_JWT_SECRET={SECRET}\nSHADE='",
            "COLOUR",
        ],
        ids=lambda line: line.replace(SECRET, "SECRET"),
    )
    def test_a_line_that_sets_nothing_is_reported_by_its_number(self, line: str) -> None:
        assert refusal(f"# colours\n\n\n{line}\n") == f".env: line 4 {NOT_A_LINE}"

    def test_every_line_that_sets_nothing_is_reported(self) -> None:
        assert refusal("A=1\nB: 2\n\nC: 3") == f".env: line 2 {NOT_A_LINE}\n.env: line 4 {NOT_A_LINE}"

    def test_valid_lines_are_accepted(self) -> None:
        key = "-----BEGIN KEY-----\nQUJD=\n-----END KEY-----"
        Path(".env").write_text(
            f"\ufeffexport PORT = '9000' # port\r\n# AUTH_JWT_SECRET: no\n\nKEY='{key}'\nmy.key=1\nEMPTY=\n"
        )

        assert load_settings().port == 9000

    def test_a_directory_and_a_dangling_link_with_the_name_env_are_refused(self) -> None:
        path = Path(".env")
        path.mkdir()
        with pytest.raises(StartupError, match=f"^.env: {path.absolute()} cannot be read: Is a directory$"):
            load_settings()

        path.rmdir()
        path.symlink_to("missing")
        with pytest.raises(StartupError, match=f"^.env: {path.absolute()} cannot be read: No such file or directory$"):
            load_settings()

    def test_a_device_and_a_file_that_is_too_long_are_no_settings(self) -> None:
        Path(".env").symlink_to("/dev/zero")
        with pytest.raises(StartupError, match=r"^\.env: .* is longer than 65,536 characters"):
            load_settings()

        Path(".env").unlink()
        assert "is longer than 65,536 characters" in refusal("#" * 65_537)
        Path(".env").write_text("#" * 65_525 + "\nPORT=9000")
        assert load_settings().port == 9000

    def test_a_named_pipe_is_waited_for_and_this_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        os.mkfifo(".env")
        program = Thread(target=Path(".env").write_text, args=["PORT=9000\nHOST"])
        program.start()

        with pytest.raises(StartupError, match=f"^.env: line 2 {NOT_A_LINE}$"):
            check_environment({"PORT"})  # reads once: a second reader could meet a writer that the first has left

        program.join()
        assert caplog.messages == [".env: is a named pipe; waiting for the program that writes it"]

    @pytest.mark.parametrize("text", ["{}", "'{}'", '"a{}"', "${{SET}}{}", "{}\nUNSET=1"])
    def test_a_setting_that_refers_to_an_unset_variable_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.setenv("SET", "1")
        for name in ("EMBEDDED_POSTGRES_DIR", "auth_jwt_secret", "DATABASE_URL"):
            line = f"{name}={text.format('${UNSET}')}"
            assert f".env: {name.upper()} refers to a variable ${{…}} that is not set" in refusal(line).splitlines()

    @pytest.mark.parametrize(
        "text", ["A=9000\nPORT=${A}", "PORT=${SET}", "PORT=9000${UNSET:-}", "PORT=9000\nB=${UNSET}"]
    )
    def test_a_variable_that_is_set_or_has_a_default_or_is_for_another_program_is_accepted(
        self, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.setenv("SET", "9000")
        Path(".env").write_text(text)

        assert load_settings().port == 9000


class TestForeignHost:
    """Conda exports the name of a platform as HOST, tcsh that of the machine."""

    @pytest.mark.parametrize(
        "host", ["x86_64-conda-linux-gnu", "arm64-apple-darwin20.0.0", "adas-laptop", "adas_laptop"]
    )
    def test_a_name_of_something_else_is_ignored_with_one_warning_and_the_file_or_the_default_holds(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, host: str
    ) -> None:
        monkeypatch.setattr("socket.getaddrinfo", unresolved)
        monkeypatch.setenv("HOST", host)

        assert [load_settings().host, load_settings().host] == ["127.0.0.1"] * 2
        assert [record.getMessage() for record in caplog.records] == [
            f"HOST: {host} is not an address and is ignored; other programs set this variable too"
        ]

        monkeypatch.setenv("HOST", host)
        Path(".env").write_text("HOST=::1")
        assert load_settings().host == "::1"

    @pytest.mark.parametrize("host", ["tasks.internal", "0.0.0.0.", "127.0.0.1:8000", "http://localhost", "a b", "999"])
    def test_what_was_meant_as_an_address_is_not_ignored_and_nor_is_a_name_in_the_file(
        self, monkeypatch: pytest.MonkeyPatch, host: str
    ) -> None:
        monkeypatch.setattr("socket.getaddrinfo", unresolved)
        monkeypatch.setenv("HOST", host)
        with pytest.raises(StartupError, match=r"^HOST: must be (a loopback|one) address"):
            load_settings()

        monkeypatch.delenv("HOST")
        assert "HOST: must be a loopback address" in refusal("HOST=x86_64-conda-linux-gnu")

    def test_a_name_that_can_be_resolved_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("socket.getaddrinfo", lambda *_: [("an address",)])
        monkeypatch.setenv("HOST", "adas-laptop")
        monkeypatch.setenv("AUTH_JWT_SECRET", SECRET)

        assert load_settings().host == "adas-laptop"


class TestNames:
    @pytest.mark.parametrize("name", ["AUTH_JWT_SECRET", "BETTER_AUTH_SECRET", "AUTH_JWKS_URL", "auth_user_id_claim"])
    @pytest.mark.parametrize("value", ["", "''", " # later", "${UNSET:-}"])
    def test_an_empty_setting_of_authentication_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        assert refusal(f"{name}={value}\n") == f"{name.upper()}: {EMPTY}"

        Path(".env").write_text(f"AUTH_JWT_SECRET={SECRET}")
        monkeypatch.setenv(name, "")
        with pytest.raises(StartupError, match=f"^{name.upper()}: {EMPTY}$"):
            load_settings()

    @pytest.mark.parametrize(
        "name", ["AUT_JWT_SECRET", "APP_AUTH_JWT_SECRET", "BETTERAUTH_SECRET", "AUTH_AUDIANCE", "AUTH_JWKS_URI"]
    )
    @pytest.mark.parametrize("rest", ["", f"AUTH_JWT_SECRET={SECRET}\n", JWKS], ids=["off", "secret", "keys"])
    def test_a_name_that_resembles_a_setting_of_authentication_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, name: str, rest: str
    ) -> None:
        assert refusal(f"{rest}{name}={SECRET}\n") == f"{name}: {UNKNOWN}"

        Path(".env").write_text(rest)
        monkeypatch.setenv(name, SECRET)
        with pytest.raises(StartupError, match=re.escape(f"{name}: {UNKNOWN}")):
            load_settings()

    @pytest.mark.parametrize("name", ["JWT_SECRET", "JWKS_URL", "AUTH_SECRET", "AUTH_GOOGLE_ID"])
    def test_a_name_that_means_authentication_elsewhere_is_refused_while_it_is_off(self, name: str) -> None:
        assert refusal(f"{name}={SECRET}\n") == f"{name}: {UNKNOWN}"

        for authentication in (f"AUTH_JWT_SECRET={SECRET}\n", f"BETTER_AUTH_SECRET={SECRET}\n", JWKS):
            Path(".env").write_text(f"{authentication}{name}={SECRET}\n")
            assert load_settings().authenticates

    @pytest.mark.parametrize("name", ["AUTHOR", "SSH_AUTH_SOCK", "BETTER_AUTH_URL", "CI_JOB_JWT", "XAUTHORITY", "JWTS"])
    def test_names_that_do_not_mean_authentication_are_accepted(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        Path(".env").write_text(f"{name}=1\n{name}_2=\n")
        monkeypatch.setenv(name, "")

        assert not load_settings().authenticates


def warnings(monkeypatch: pytest.MonkeyPatch, text: str = "", **environment: str) -> list[str]:
    """Returns the warnings about this `.env` and this environment."""
    Path(".env").write_text(text)
    for name in os.environ:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_settings().warnings


class TestUnknownNames:
    def test_a_name_in_dotenv_that_is_not_a_setting_is_reported_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = f"port=9000\nCOLOUR=blue\nCOLOUR=red\nDATABASE_ULR=s3cret\nHOSTS=a\n{'QUJD' * 11}=\n"
        found = warnings(monkeypatch, text, DATABASE_ULR="s3cret")

        names = "COLOUR, DATABASE_ULR (did you mean DATABASE_URL?), HOSTS"
        assert found == [f"not settings of this service, and ignored: {names}"]

    def test_a_setting_that_dotenv_has_twice_is_reported_and_its_last_line_counts(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = warnings(monkeypatch, "PORT=9000\nHOST=127.0.0.1\nport=9001\n")

        assert found == [".env: has more than one line, and the last one counts: PORT"]

    def test_the_variables_of_compose_yaml_are_not_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names = re.findall(r"\$\{(\w+)", COMPOSE.read_text())
        text = "".join(f"{name}={SECRET}\n" for name in names if name != "CORS_ORIGINS")

        assert warnings(monkeypatch, f"{text}COMPOSE_PROJECT_NAME=tasks\n") == []
        assert "POSTGRES_PASSWORD" in names

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            *((name, "DATABASE_URL") for name in ("DATABASE_ULR", "DATABSE_URL", "DATABASE_URLS", "DATA_BASE_URL")),
            *(("DATABASE_URL_UNPOOLD", "DATABASE_URL_UNPOOLED"), ("WEB_CONCURENCY", "WEB_CONCURRENCY")),
            *(("CORS_ORIGIN", "CORS_ORIGINS"), ("cors_orgins", "CORS_ORIGINS"), ("UNKOWN_FIELDS", "UNKNOWN_FIELDS")),
            *(("SHUTDOWN_TIMEOUTS", "SHUTDOWN_TIMEOUT"), ("EMBEDED_POSTGRES_DIR", "EMBEDDED_POSTGRES_DIR")),
        ],
    )
    def test_a_name_in_the_environment_that_is_almost_a_setting_is_reported(
        self, monkeypatch: pytest.MonkeyPatch, name: str, meant: str
    ) -> None:
        found = warnings(monkeypatch, **{name: "s3cret"})

        assert found == [f"not settings of this service, and ignored: {name} (did you mean {meant}?)"]

    def test_the_names_of_shells_containers_and_other_programs_are_not_reported(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = """
            PATH HOME HOSTNAME HOSTS HOSTTYPE POST PORTS PWD LANG SHELL TERM XAUTHORITY SSH_AUTH_SOCK CI GITHUB_TOKEN
            KUBERNETES_SERVICE_HOST KUBERNETES_PORT KUBERNETES_PORT_443_TCP DATABASE_SERVICE_HOST DATABASE_SERVICE_PORT
            DATABASE_PORT DATABASE_PORT_5432_TCP_ADDR TASKS_PORT INVOCATION_ID LISTEN_FDS NOTIFY_SOCKET JOURNAL_STREAM
            DATABASE_HOST DATABASE_USER DATABASE_PASSWORD DATABASE_NAME DATABASE_URL2 DATABASE_URL_2 TEST_DATABASE_URL
            DIRECT_URL POSTGRES_URL POSTGRES_URL_NON_POOLING PGHOST PGHOST_UNPOOLED PGPASSWORD RAILS_MAX_THREADS
            CORS_ALLOWED_ORIGINS CORS_ALLOW_ORIGINS CONCURRENCY UVICORN_PORT PYTHONPATH UV_CACHE_DIR
        """

        assert warnings(monkeypatch, **dict.fromkeys(names.split(), "1")) == []

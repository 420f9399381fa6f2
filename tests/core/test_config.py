"""Settings: the values that the environment may have, and how a wrong value is reported.

tests/test_documentation.py compares names, defaults and descriptions with the README and .env.example.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from app.core.config import Settings, load_settings
from app.core.errors import StartupError
from app.core.project import home
from tests.support import SECRET

DSN = "postgresql://ada:s3cret@db.example.com/tasks"
UNCHECKED = {"AUTH_ISSUER": "unchecked", "AUTH_AUDIENCE": "unchecked"}
JWKS = {"AUTH_JWKS_URL": "https://auth.example.com/jwks", **UNCHECKED}


@pytest.fixture(autouse=True)
def _no_dotenv_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty directory, without the .env file of the developer."""
    monkeypatch.chdir(tmp_path)


def load(**variables: str) -> Settings:
    """Returns the settings of a process with these environment variables."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        return load_settings()


def refusals(**variables: str) -> dict[str, str]:
    """Returns the sentence about each setting that is refused."""
    with pytest.raises(StartupError) as caught:
        load(**variables)
    assert "s3cret" not in str(caught.value) + repr(caught.value)
    return dict(line.split(": ", 1) for line in str(caught.value).splitlines())


class TestSources:
    @pytest.mark.parametrize("name", [name for name in Settings.model_fields if not name.startswith("auth_")])
    def test_an_empty_variable_means_the_default(self, name: str) -> None:
        assert load(**{name.upper(): ""}) == Settings.model_construct()

    @pytest.mark.parametrize("written", ['"{}"', "'{}'", " {}\r\n", '\t" {} "\n'])
    def test_quotation_marks_and_white_space_around_any_value_are_removed(self, written: str) -> None:
        plain = {"DATABASE_URL": DSN, "PORT": "9000", "UNKNOWN_FIELDS": "keep", "HOST": "::1", **JWKS}
        plain |= {"CORS_ORIGINS": '["https://a.example"]', "EMBEDDED_POSTGRES_DIR": "/srv/data"}

        assert load(**{name: written.format(value) for name, value in plain.items()}) == load(**plain)
        assert load(PORT=written.format("")).port == 8000
        assert refusals(AUTH_JWT_SECRET=written.format(SECRET)).keys() == {"AUTH_JWT_SECRET"}
        assert refusals(AUTH_JWT_SECRET=SECRET, AUTH_ISSUER=written.format("")).keys() == {"AUTH_ISSUER"}

    def test_the_environment_takes_precedence_over_a_dotenv_file_with_any_variables(self) -> None:
        Path(".env").write_text("PORT=9000\nDATABASE_COLOUR=blue\n")

        assert load().port == 9000
        assert load(PORT="9001").port == 9001

    def test_without_a_dotenv_file_in_the_working_directory_that_of_the_project_is_used(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        project = tmp_path / "project"
        project.mkdir()
        monkeypatch.setattr("app.core.project.ROOT", project)
        assert (load().port, home()) == (8000, project)

        (project / ".env").write_text("PORT=9000")
        assert (load().port, home()) == (9000, project)

        Path(".env").write_text("PORT=9001")
        assert (load().port, home()) == (9001, tmp_path)

    def test_a_dotenv_file_that_is_not_text_is_refused(self) -> None:
        for text, encoding in (("PORT=9000 # café", "latin-1"), ("PORT=9000", "utf-16"), ("PORT=9000", "utf-16-le")):
            Path(".env").write_bytes(text.encode(encoding))
            assert refusals() == {".env": "must be UTF-8 text"}

    def test_settings_cannot_be_changed(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            load().port = 9000  # type: ignore[misc]  # what this test is about

    def test_secrets_are_not_part_of_printed_settings(self) -> None:
        settings = load(DATABASE_URL=DSN, DATABASE_URL_UNPOOLED=DSN, AUTH_JWT_SECRET=SECRET)

        printed = repr(settings) + settings.model_dump_json()
        assert "s3cret" not in printed
        assert SECRET not in printed

    def test_a_validation_error_does_not_quote_the_value(self) -> None:
        with pytest.raises(ValidationError) as caught:
            Settings.model_validate({"port": "s3cret"})
        assert "s3cret" not in str(caught.value)

    def test_all_wrong_settings_are_reported_in_one_sentence_each(self) -> None:
        found = refusals(PORT="0", WEB_CONCURRENCY="1.5", CORS_ORIGINS="*,app.example.com", HOST="0.0.0.0")

        assert found.keys() == {"HOST", "PORT", "WEB_CONCURRENCY", "CORS_ORIGINS"}
        assert found["PORT"] == "Input should be greater than or equal to 1"
        assert refusals(PORT="8000/tcp", DATABASE_POOL_TIMEOUT="5s") == {
            "PORT": "Input should be a valid integer",
            "DATABASE_POOL_TIMEOUT": "Input should be a valid number",
        }

    @pytest.mark.parametrize(
        ("name", "too_low", "lowest", "highest", "too_high"),
        [
            ("DATABASE_POOL_SIZE", 0, 1, 100, 101),
            ("DATABASE_POOL_TIMEOUT", 0, 0.001, 60, 60.1),
            ("CONCURRENCY_LIMIT", 0, 1, 100_000, 100_001),
            ("AUTH_LEEWAY_SECONDS", -0.1, 0, 60, 60.1),
            ("PORT", 0, 1, 65_535, 65_536),
            ("WEB_CONCURRENCY", 0, 1, 64, 65),
            ("SHUTDOWN_TIMEOUT", 2, 3, 600, 601),
        ],
    )
    def test_a_number_is_accepted_up_to_its_bounds_and_refused_beyond_them(
        self, name: str, too_low: float, lowest: float, highest: float, too_high: float
    ) -> None:
        for value in (lowest, highest):
            settings = load(AUTH_JWT_SECRET=SECRET, **{name: str(value)})
            assert getattr(settings, name.lower()) == value
        for wrong in (too_low, too_high, "nan", "inf", "soon"):
            assert refusals(AUTH_JWT_SECRET=SECRET, **{name: str(wrong)}).keys() == {name}


class TestEmbeddedPostgresDir:
    def test_a_tilde_is_the_home_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/ada")

        assert load(EMBEDDED_POSTGRES_DIR="~/tasks data").embedded_postgres_dir == Path("/home/ada/tasks data")
        found = refusals(EMBEDDED_POSTGRES_DIR="~nobody-has-this-name/tasks")
        assert found == {"EMBEDDED_POSTGRES_DIR": "begins with ~, but that home directory is not known"}

    @pytest.mark.parametrize("text", ["postgresql://h/tasks", "file:///srv", "$HOME/tasks", "${D}", "a\nb", "a\udcff"])
    def test_what_is_no_path_is_refused(self, text: str) -> None:
        assert "must be the path of a directory" in refusals(EMBEDDED_POSTGRES_DIR=text)["EMBEDDED_POSTGRES_DIR"]
        assert load(EMBEDDED_POSTGRES_DIR="C:/a$b").embedded_postgres_dir == Path("C:/a$b")


class TestRootPath:
    def test_a_slash_at_its_end_makes_no_difference_and_one_alone_is_no_prefix(self) -> None:
        written = {"/svc": "/svc", "/svc/": "/svc", "/a.b/..c/~d_e-1/": "/a.b/..c/~d_e-1", "/": ""}

        assert {text: load(ROOT_PATH=text).root_path for text in written} == written

    @pytest.mark.parametrize(
        "text",
        [
            *("svc", "//svc", "/svc//", "/a//b", "//", "https://a.example/svc", "..", "/../svc", "/a/./b", "/a/.."),
            *("/svc?a=b", "/svc#a", "/sv%63", "/a b", "/a\nb", "/svc\\", "/${SVC}", "/{svc}", "/caf\xe9", "/a;b"),
        ],
    )
    def test_what_is_no_path_is_refused(self, text: str) -> None:
        sentence = "must be a path such as /svc: names of letters, digits and -._~ with one / before each"
        assert refusals(ROOT_PATH=text) == {"ROOT_PATH": sentence}


class TestHost:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "tasks.internal"])
    def test_an_address_other_than_loopback_is_accepted_only_with_authentication(self, host: str) -> None:
        assert "must be a loopback address" in refusals(HOST=host)["HOST"]

        assert load(HOST="::1").host == "::1"
        for authentication in ({"AUTH_JWT_SECRET": SECRET}, JWKS):
            assert load(HOST=host, **authentication).host == host

    @pytest.mark.parametrize(
        "host",
        [
            *("http://127.0.0.1", "0.0.0.0/0", "127.0.0.1:8000", "localhost:8000", "[::1]", "[::1]:8000", "*"),
            *("127.0.0.1,::1", "127.0.0.1 ::1", "::1%", "fe80::1%25%"),
        ],
    )
    def test_what_is_more_than_one_address_or_name_is_refused_with_and_without_authentication(self, host: str) -> None:
        sentence = "must be one address or name alone, such as 127.0.0.1 or ::1, without scheme, port and brackets"
        for authentication in ({}, {"AUTH_JWT_SECRET": SECRET}):
            assert refusals(HOST=host, **authentication) == {"HOST": sentence}
        assert load(HOST="fe80::1%eth0", AUTH_JWT_SECRET=SECRET).host == "fe80::1%eth0"

    @pytest.mark.parametrize("name", ["AUTH_JWT_SECRET", "AUTH_JWKS_URL"])
    def test_authentication_that_is_invalid_is_not_also_reported_as_missing(self, name: str) -> None:
        assert refusals(HOST="0.0.0.0", **{name: "s3cret"}).keys() == {name}


class TestAuthentication:
    @pytest.mark.parametrize("name", ["AUTH_JWT_SECRET", "BETTER_AUTH_SECRET"])
    def test_a_secret_under_either_name_turns_authentication_on(self, name: str) -> None:
        settings = load(**{name: SECRET})

        assert settings.authenticates
        assert settings.auth_jwt_secret == SecretStr(SECRET)
        assert (settings.auth_issuer, settings.auth_audience) == (None, None)
        assert not load().authenticates

    def test_auth_jwt_secret_takes_precedence_over_better_auth_secret(self) -> None:
        assert load(AUTH_JWT_SECRET=SECRET, BETTER_AUTH_SECRET=SECRET[::-1]).auth_jwt_secret == SecretStr(SECRET)

    @pytest.mark.parametrize("name", ["AUTH_JWT_SECRET", "BETTER_AUTH_SECRET"])
    def test_a_weak_secret_and_a_secret_together_with_a_jwks_url_are_refused(self, name: str) -> None:
        assert "must have at least 32 bytes" in refusals(**{name: "s3cret"})["AUTH_JWT_SECRET"]
        assert "unset one of them" in refusals(**JWKS, **{name: SECRET})["AUTH_JWKS_URL"]

    def test_an_insecure_jwks_url_is_refused(self) -> None:
        url = "https://ada:s3cret@auth.example.com/jwks"
        assert "must look like https://" in refusals(AUTH_JWKS_URL=url, **UNCHECKED)["AUTH_JWKS_URL"]

    @pytest.mark.parametrize("missing", UNCHECKED)
    def test_a_jwks_url_requires_an_issuer_and_an_audience_or_the_word_unchecked(self, missing: str) -> None:
        assert load(**JWKS).authenticates

        others = {name: value for name, value in JWKS.items() if name != missing}
        sentence = "must be set with AUTH_JWKS_URL, to what your tokens have or to `unchecked`"
        assert refusals(**others) == {missing: sentence}

    @pytest.mark.parametrize("name", [*UNCHECKED, "AUTH_USER_ID_CLAIM", "AUTH_LEEWAY_SECONDS"])
    def test_another_authentication_setting_requires_a_secret_or_a_jwks_url(self, name: str) -> None:
        assert refusals(**{name: "10"}) == {name: "needs AUTH_JWT_SECRET or AUTH_JWKS_URL beside it"}

    @pytest.mark.parametrize("claim", ["user.", ".id", "user..id", "user id", "user.i d", "https://a.example/id"])
    def test_a_claim_may_be_a_path_without_an_empty_part_or_a_space(self, claim: str) -> None:
        for path in ("https://example/id", "a.b.c"):
            assert load(AUTH_JWT_SECRET=SECRET, AUTH_USER_ID_CLAIM=path).auth_user_id_claim == path

        assert refusals(AUTH_JWT_SECRET=SECRET, AUTH_USER_ID_CLAIM=claim) == {
            "AUTH_USER_ID_CLAIM": "must be a name such as sub, or nested names as in user.id; "
            "a name that has a dot itself cannot be used"
        }

    @pytest.mark.parametrize("name", UNCHECKED)
    @pytest.mark.parametrize("value", ['["tasks"]', "*", "UNCHECKED", "Unchecked"])
    def test_a_list_and_a_wildcard_are_no_value_of_a_claim(self, name: str, value: str) -> None:
        for similar in ("unchecked-tasks", "https://a.example/*"):
            assert getattr(load(AUTH_JWT_SECRET=SECRET, **{name: similar}), name.lower()) == similar

        sentence = "must be one value, exactly as your tokens have it, or `unchecked` in small letters"
        assert refusals(**{**JWKS, name: value}) == {name: sentence}


AGENTS = {"MCP": "on", "AUTH_JWT_SECRET": SECRET, "AUTH_ISSUER": "https://issuer.example.com"}


class TestMcp:
    def test_tools_for_agents_are_off_unless_they_are_switched_on(self) -> None:
        assert [settings.serves_tools for settings in (load(), load(**AGENTS))] == [False, True]
        assert refusals(MCP="yes").keys() == {"MCP"}

    def test_they_need_their_packages_and_authentication(self, monkeypatch: pytest.MonkeyPatch) -> None:
        no_user = "needs AUTH_JWT_SECRET or AUTH_JWKS_URL beside it, because a tool acts for the user of a token"
        assert refusals(MCP="on") == {"MCP": no_user}

        monkeypatch.setitem(sys.modules, "mcp_types", None)
        assert not load().serves_tools
        assert refusals(**AGENTS) == {"MCP": "needs the packages of requirements-mcp.txt, see docs/agents.md"}


class TestPublicUrl:
    @pytest.mark.parametrize(
        "url", ["https://a.example", "https://a.example:8443/mcp-a/svc", "http://localhost:8000", "http://[::1]:8000"]
    )
    def test_it_is_an_origin_that_may_have_a_path(self, url: str) -> None:
        for text in (url, f"{url}/"):
            assert load(PUBLIC_URL=text, **AGENTS).public_url == url

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            *(
                (f"https://a.example{end}", "must be a URL such as ")
                for end in ("?a=b", "#a", "?", "//", "/..", "/mcp/")
            ),
            *((text, "must be a URL such as ") for text in ("https://a.example/${SVC}", "tasks.example.com", "/svc")),
            *((f"{text}a.example", "must begin with https://, ") for text in ("http://", "ftp://")),
            ("https://A.example", "has capital letters; "),
            ("https://[::1", "Invalid IPv6 URL"),
        ],
    )
    def test_anything_else_is_refused(self, text: str, sentence: str) -> None:
        assert refusals(PUBLIC_URL=text, **AGENTS)["PUBLIC_URL"].startswith(sentence)

    @pytest.mark.parametrize("issuer", [{}, {"AUTH_ISSUER": "unchecked"}, {"AUTH_ISSUER": "ftp://issuer.example.com"}])
    def test_it_needs_the_url_of_the_issuer(self, issuer: dict[str, str]) -> None:
        given = {"MCP": "on", "AUTH_JWT_SECRET": SECRET, **issuer}

        found = refusals(PUBLIC_URL="https://a.example", **given)

        assert found["PUBLIC_URL"].startswith("needs AUTH_ISSUER beside it, and there the URL of the issuer, ")
        assert load(**given).public_url is None

    @pytest.mark.parametrize("wrong", [{"AUTH_ISSUER": "*"}, {"AUTH_JWT_SECRET": "s3cret"}, {"MCP": "yes"}])
    def test_a_setting_that_is_invalid_is_not_also_reported_as_missing(self, wrong: dict[str, str]) -> None:
        assert refusals(PUBLIC_URL="https://a.example", **AGENTS | wrong).keys() == wrong.keys()

    def test_without_mcp_it_may_belong_to_another_program(self) -> None:
        assert load(PUBLIC_URL="/", AUTH_JWT_SECRET=SECRET).public_url is None


class TestCorsOrigins:
    @pytest.mark.parametrize(
        "text",
        [
            " https://a.example.com , http://[::1]:3000, ",
            '["https://a.example.com", "http://[::1]:3000"]',
            "['https://a.example.com',\r\n 'http://[::1]:3000',]\n",
            '"https://a.example.com","http://[::1]:3000"',
        ],
    )
    def test_origins_are_separated_by_commas_and_may_be_a_json_list(self, text: str) -> None:
        assert load(CORS_ORIGINS=text).cors_origins == ("https://a.example.com", "http://[::1]:3000")

    @pytest.mark.parametrize("text", [",", "[]"])
    def test_a_list_may_be_empty(self, text: str) -> None:
        assert load(CORS_ORIGINS=text).cors_origins == ()

    @pytest.mark.parametrize(
        "text",
        [
            *("http://localhost", "http://127.0.0.1:3000", "https://my_host:8443", "http://a.example:443"),
            *("https://a.example:80", "https://a.example:65535", "https://a.example.", "https://xn--bcher-kva.example"),
            *("http://[::1]", "http://[::ffff:7f00:1]:8080", "http://[2001:db8::1]"),
            *("tauri://localhost", "capacitor://localhost", "ionic://localhost", "app://-", "app://host:8080"),
            *(
                "chrome-extension://mdplmiioglkpgkgblfdilgebpppgdlm",
                "moz-extension://5f3d9e0a-1c2b-4d5e-8f90-a1b2c3d4e5f6",
            ),
            "safari-web-extension://5F3D9E0A-1C2B-4D5E-8F90-A1B2C3D4E5F6",
        ],
    )
    def test_a_value_that_browsers_send_as_an_origin_is_accepted(self, text: str) -> None:
        assert load(CORS_ORIGINS=text).cors_origins == (text,)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("null", "is null, which browsers send for every sandboxed page and local file"),
            *((text, "has a *; list each origin") for text in ("*", "https://*.a.example", "http://localhost:*")),
            *(
                (f"http://a.example{mark}http://b.example", "has white space or a semicolon in it; separate origins")
                for mark in " ;"
            ),
            *((f"https://{text}.example", "has a placeholder in it; put") for text in ("<tenant>", "${TENANT}", "$T")),
            *((text, "has no scheme; put http") for text in ("app.example.com", "localhost:3000", "//a", "data:a")),
            *((f"{text}/", "has a slash at the end; remove it") for text in ("https://a.example", "tauri://localhost")),
            *((f"https://a.example{end}", "has a path; ") for end in ("/b", "?", "#", "/b/")),
            *((text, "has capital letters; ") for text in ("https://A.example", "HTTPS://a.example", "http://[::FF]")),
            *((text, "has the default port; ") for text in ("http://a.example:80", "https://a.example:443")),
            *((text, "is not what browsers send, ") for text in ("ftp://a.example", "ws://a.example", "https://")),
            *((text, "is not what browsers send, ") for text in ("https://ada:s3cret@a.example", "app://a:0")),
            *(
                (f"https://a.example:{port}", "is not what browsers send, ")
                for port in ("", "0", "0443", "08443", "65536", "123456", "+1", "\u0661")
            ),
            *(
                (f"http://{host}:3000", "is not what browsers send, ")
                for host in ("127.1", "127.0.0.01", "0x7f.0.0.1", "2130706433", "256.0.0.1")
            ),
            *(
                (f"http://[{host}]", "is not what browsers send, ")
                for host in ("0:0:0:0:0:0:0:1", "::01", "::ffff:127.0.0.1", "::1%25lo", ":")
            ),
            *(
                (f"https://{name}", "is not what browsers send, ")
                for name in ("bücher.example", "xn--a", "%61.example")
            ),
        ],
    )
    def test_a_value_that_no_browser_sends_as_an_origin_is_refused(self, text: str, sentence: str) -> None:
        origins = f"https://app.example.com,{text}"
        assert refusals(CORS_ORIGINS=origins)["CORS_ORIGINS"].startswith(f"item 2 {sentence}")


class TestLogLevel:
    @pytest.mark.parametrize(("level", "meant"), [("DEBUG", "debug"), ("Warning", "warning"), ("WARN", "warning")])
    def test_a_level_may_have_any_case_and_warn_is_warning(self, level: str, meant: str) -> None:
        assert load(LOG_LEVEL=level).log_level == meant


class TestDatabaseUrl:
    @pytest.mark.parametrize(
        ("variables", "dsn"),
        [
            ({}, None),
            ({"DATABASE_URL": f" {DSN}\r\n"}, DSN),
            ({"DATABASE_URL": f"'{DSN}'"}, DSN),
            ({"DATABASE_URL": f'"{DSN}"\n'}, DSN),
            ({"DATABASE_URL": f"psql '{DSN}'"}, DSN),
            ({"DATABASE_URL": f"psql {DSN}"}, DSN),
            ({"DATABASE_URL": DSN, "DATABASE_URL_UNPOOLED": f"{DSN}?connect_timeout=9"}, f"{DSN}?connect_timeout=9"),
            ({"DATABASE_URL": "postgresql://ep-x-pooler.aws.neon.tech/db"}, "postgresql://ep-x.aws.neon.tech/db"),
        ],
    )
    def test_migrations_use_the_unpooled_url_or_the_direct_host(self, variables: Any, dsn: str | None) -> None:
        assert load(**variables).migration_dsn == dsn

    @pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_URL_UNPOOLED"])
    def test_an_insecure_connection_and_dropped_parameters_are_reported_with_the_name_of_the_setting(
        self, name: str
    ) -> None:
        secure = {"DATABASE_URL": f"{DSN}?sslmode=verify-full"}

        assert load(**secure).warnings == []
        assert load(**{**secure, name: f"{DSN}?sslmode=require"}).warnings == [
            f"{name}: the connection is encrypted but not verified, because sslmode is require"
        ]
        assert load(**{**secure, name: f"{DSN}?sslmode=verify-full&connection_limit=1"}).warnings == [
            f"{name}: has parameters of another program, which change nothing here: connection_limit"
        ]

    @pytest.mark.parametrize(
        ("url", "number"),
        [("https://frontend/jwks", 0), ("http://localhost/jwks", 0), ("HTTP://frontend:3000/jwks", 1)],
    )
    def test_keys_over_plain_http_from_another_machine_are_reported_once(self, url: str, number: int) -> None:
        warning = "AUTH_JWKS_URL: the keys come over plain http"

        found = load(AUTH_JWKS_URL=url, **UNCHECKED).warnings

        assert [each.partition(",")[0] for each in found] == [warning] * number

    def test_the_operator_can_turn_prepared_statements_on_and_off(self) -> None:
        assert [load(DATABASE_PREPARED_STATEMENTS=text).prepares for text in ("on", "off")] == [True, False]

    def test_an_unpooled_url_requires_database_url(self) -> None:
        assert refusals(DATABASE_URL_UNPOOLED=DSN) == {"DATABASE_URL_UNPOOLED": "needs DATABASE_URL beside it"}

    @pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_URL_UNPOOLED"])
    @pytest.mark.parametrize("dsn", [DSN.replace("postgresql", "mysql"), f"{DSN}?sslmode=s3cret"])
    def test_only_an_invalid_url_is_refused_and_it_is_not_quoted(self, name: str, dsn: str) -> None:
        assert refusals(**{"DATABASE_URL": DSN, "DATABASE_URL_UNPOOLED": DSN, name: dsn}).keys() == {name}

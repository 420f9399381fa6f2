"""Settings: the values that the environment may have, and how a wrong value is reported.

tests/test_documentation.py compares names, defaults and descriptions with the README and .env.example.
"""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from app.core.config import Settings, load_settings
from app.core.errors import StartupError
from tests.support import SECRET

DSN = "postgresql://ada:s3cret@db.example.com/tasks"
UNCHECKED = {"AUTH_ISSUER": "unchecked", "AUTH_AUDIENCE": "unchecked"}
JWKS = {"AUTH_JWKS_URL": "https://auth.example.com/jwks", **UNCHECKED}


@pytest.fixture(autouse=True)
def _no_dotenv_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty directory, without the .env file of the developer."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    return monkeypatch


def load(env: pytest.MonkeyPatch, **variables: str) -> Settings:
    """Returns the settings of a process with these environment variables."""
    for name, value in variables.items():
        env.setenv(name, value)
    return Settings()


def refused(env: pytest.MonkeyPatch, **variables: str) -> dict[str, str]:
    """Returns the message about each setting that is refused. No message may quote a secret."""
    with pytest.raises(ValidationError) as caught:
        load(env, **variables)
    error = caught.value
    assert "s3cret" not in str(error) + repr(error) + str(error.errors(include_input=False))
    return {str(detail["loc"][0]): detail["msg"] for detail in error.errors()}


class TestSources:
    @pytest.mark.parametrize("name", Settings.model_fields)
    def test_an_empty_variable_means_the_default(self, env: pytest.MonkeyPatch, name: str) -> None:
        assert load(env, **{name.upper(): ""}) == Settings.model_construct()

    def test_a_dotenv_file_is_read_and_its_other_variables_are_ignored(self) -> None:
        Path(".env").write_text("PORT=9000\nDATABASE_COLOUR=blue\n")

        assert load_settings().port == 9000

    def test_the_environment_takes_precedence_over_a_dotenv_file(self, env: pytest.MonkeyPatch) -> None:
        Path(".env").write_text("PORT=9000\n")

        assert load(env, PORT="9001").port == 9001

    def test_a_dotenv_file_that_is_not_text_is_refused(self) -> None:
        Path(".env").write_bytes("PORT=9000 # café".encode("latin-1"))

        with pytest.raises(StartupError, match=r"^\.env: must be UTF-8 text$"):
            load_settings()

    def test_settings_cannot_be_changed(self, env: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            load(env).port = 9000  # type: ignore[misc]  # what this test is about

    def test_secrets_are_not_part_of_printed_settings(self, env: pytest.MonkeyPatch) -> None:
        settings = load(env, DATABASE_URL=DSN, DATABASE_URL_UNPOOLED=DSN, AUTH_JWT_SECRET=SECRET)

        printed = repr(settings) + settings.model_dump_json()
        assert "s3cret" not in printed
        assert SECRET not in printed


class TestBounds:
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
        self, env: pytest.MonkeyPatch, name: str, too_low: float, lowest: float, highest: float, too_high: float
    ) -> None:
        env.setenv("AUTH_JWT_SECRET", SECRET)  # a leeway requires it
        for value in (lowest, highest):
            assert getattr(load(env, **{name: str(value)}), name.lower()) == value
        for wrong in (too_low, too_high, "nan", "inf", "soon"):
            assert refused(env, **{name: str(wrong)}).keys() == {name.lower()}

    def test_a_fraction_is_refused_for_a_whole_number(self, env: pytest.MonkeyPatch) -> None:
        assert refused(env, DATABASE_POOL_SIZE="1.5").keys() == {"database_pool_size"}

    def test_a_directory_may_have_a_space(self, env: pytest.MonkeyPatch) -> None:
        assert load(env, EMBEDDED_POSTGRES_DIR="/srv/my data").embedded_postgres_dir == Path("/srv/my data")

    def test_all_wrong_settings_are_reported_with_one_line_each(self, env: pytest.MonkeyPatch) -> None:
        for name, value in {"PORT": "0", "CORS_ORIGINS": "*,app.example.com", "HOST": "0.0.0.0"}.items():
            env.setenv(name, value)

        with pytest.raises(StartupError) as caught:
            load_settings()

        lines = str(caught.value).splitlines()
        assert [line.partition(": ")[0] for line in lines] == ["HOST", "PORT", "CORS_ORIGINS"]
        assert lines[1] == "PORT: Input should be greater than or equal to 1"
        assert lines[2].startswith("CORS_ORIGINS: must list origins")


class TestHost:
    @pytest.mark.parametrize("host", ["127.0.0.2", "::1", "localhost"])
    def test_a_loopback_address_is_accepted_without_authentication(self, env: pytest.MonkeyPatch, host: str) -> None:
        assert load(env, HOST=host).host == host

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "tasks.internal"])
    def test_another_address_is_accepted_only_with_authentication(self, env: pytest.MonkeyPatch, host: str) -> None:
        assert "must be a loopback address" in refused(env, HOST=host)["host"]

        assert load(env, AUTH_JWT_SECRET=SECRET).host == host

    def test_another_address_is_accepted_with_a_jwks_url(self, env: pytest.MonkeyPatch) -> None:
        assert load(env, HOST="0.0.0.0", **JWKS).host == "0.0.0.0"

    @pytest.mark.parametrize(("name", "value"), [("AUTH_JWT_SECRET", "s3cret"), ("AUTH_JWKS_URL", "s3cret")])
    def test_authentication_that_is_invalid_is_not_also_reported_as_missing(
        self, env: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        assert refused(env, HOST="0.0.0.0", **{name: value}).keys() == {name.lower()}


class TestAuthentication:
    @pytest.mark.parametrize("name", ["AUTH_JWT_SECRET", "BETTER_AUTH_SECRET"])
    def test_a_secret_under_either_name_turns_authentication_on(self, env: pytest.MonkeyPatch, name: str) -> None:
        assert not load(env).authenticates

        settings = load(env, **{name: SECRET})
        assert settings.authenticates
        assert settings.auth_jwt_secret == SecretStr(SECRET)
        assert (settings.auth_issuer, settings.auth_audience) == (None, None)

    def test_auth_jwt_secret_takes_precedence_over_better_auth_secret(self, env: pytest.MonkeyPatch) -> None:
        settings = load(env, AUTH_JWT_SECRET=SECRET, BETTER_AUTH_SECRET=SECRET[::-1])

        assert settings.auth_jwt_secret == SecretStr(SECRET)

    @pytest.mark.parametrize("name", ["AUTH_JWT_SECRET", "BETTER_AUTH_SECRET"])
    def test_a_weak_secret_is_refused(self, env: pytest.MonkeyPatch, name: str) -> None:
        assert "must have at least 32 bytes" in refused(env, **{name: "s3cret"})["auth_jwt_secret"]

    @pytest.mark.parametrize("name", ["AUTH_JWT_SECRET", "BETTER_AUTH_SECRET"])
    def test_a_secret_together_with_a_jwks_url_is_refused(self, env: pytest.MonkeyPatch, name: str) -> None:
        assert "unset one of them" in refused(env, **JWKS, **{name: SECRET})["auth_jwks_url"]

    @pytest.mark.parametrize("url", ["http://auth.example.com/jwks", "https://ada:s3cret@auth.example.com/jwks"])
    def test_an_insecure_jwks_url_is_refused(self, env: pytest.MonkeyPatch, url: str) -> None:
        assert "must look like https://" in refused(env, AUTH_JWKS_URL=url, **UNCHECKED)["auth_jwks_url"]

    @pytest.mark.parametrize("missing", ["AUTH_ISSUER", "AUTH_AUDIENCE"])
    def test_a_jwks_url_requires_an_issuer_and_an_audience_or_the_word_unchecked(
        self, env: pytest.MonkeyPatch, missing: str
    ) -> None:
        assert load(env, **JWKS).authenticates

        [(name, message)] = refused(env, **{missing: ""}).items()
        assert name == missing.lower()
        assert "must be set with AUTH_JWKS_URL, to what your tokens have or to `unchecked`" in message

    @pytest.mark.parametrize(
        ("name", "value"),
        [*UNCHECKED.items(), ("AUTH_USER_ID_CLAIM", "user.id"), ("AUTH_LEEWAY_SECONDS", "10")],
    )
    def test_another_authentication_setting_requires_a_secret_or_a_jwks_url(
        self, env: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        env.setenv(name, value)

        with pytest.raises(StartupError, match=f"^{name}: needs AUTH_JWT_SECRET or AUTH_JWKS_URL beside it$"):
            load_settings()

    @pytest.mark.parametrize("claim", ["user.id", "https://example/id", "a.b.c"])
    def test_a_claim_may_be_a_path(self, env: pytest.MonkeyPatch, claim: str) -> None:
        assert load(env, AUTH_JWT_SECRET=SECRET, AUTH_USER_ID_CLAIM=claim).auth_user_id_claim == claim

    @pytest.mark.parametrize("claim", [".", "user.", ".id", "user..id", "user id", "user.i d"])
    def test_a_claim_with_an_empty_part_or_a_space_is_refused(self, env: pytest.MonkeyPatch, claim: str) -> None:
        names = refused(env, AUTH_JWT_SECRET=SECRET, AUTH_USER_ID_CLAIM=claim).keys()

        assert names == {"auth_user_id_claim"}


class TestCorsOrigins:
    @pytest.mark.parametrize(
        ("text", "origins"),
        [
            (" https://a.example.com , http://localhost:3000, ", ("https://a.example.com", "http://localhost:3000")),
            ("http://[::1]:3000", ("http://[::1]:3000",)),
            (",", ()),
        ],
    )
    def test_origins_are_separated_by_commas(
        self, env: pytest.MonkeyPatch, text: str, origins: tuple[str, ...]
    ) -> None:
        assert load(env, CORS_ORIGINS=text).cors_origins == origins

    @pytest.mark.parametrize(
        "text",
        [
            "*",
            "https://*.example.com",
            "https://app.example.com,*",
            "https://app.example.com/",
            "https://app.example.com?q",
            "https://App.example.com",
            "https://ada@app.example.com",
            "https://app.example.com:https",
            "https://app.example.com:123456",
            "https://a.example.com https://b.example.com",
            "https://",
            "ftp://app.example.com",
            "app.example.com",
            "null",
        ],
    )
    def test_a_value_that_no_browser_sends_as_an_origin_is_refused(self, env: pytest.MonkeyPatch, text: str) -> None:
        assert "must list origins such as https://app.example.com" in refused(env, CORS_ORIGINS=text)["cors_origins"]


class TestDatabaseUrl:
    @pytest.mark.parametrize(
        ("variables", "dsn"),
        [
            ({}, None),
            ({"DATABASE_URL": f" {DSN}\r\n"}, DSN),
            ({"DATABASE_URL": DSN, "DATABASE_URL_UNPOOLED": f"{DSN}?connect_timeout=9"}, f"{DSN}?connect_timeout=9"),
            (
                {"DATABASE_URL": "postgresql://ada:s3cret@ep-x-pooler.eu-west-2.aws.neon.tech/neondb"},
                "postgresql://ada:s3cret@ep-x.eu-west-2.aws.neon.tech/neondb",
            ),
        ],
        ids=["embedded", "the only URL, with white space", "both URLs", "Neon's pooler"],
    )
    def test_migrations_use_the_unpooled_url_or_the_direct_host(
        self, env: pytest.MonkeyPatch, variables: dict[str, Any], dsn: str | None
    ) -> None:
        assert load(env, **variables).migration_dsn == dsn

    @pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_URL_UNPOOLED"])
    def test_an_insecure_connection_is_reported_with_the_name_of_the_setting(
        self, env: pytest.MonkeyPatch, name: str
    ) -> None:
        assert load(env, DATABASE_URL=f"{DSN}?sslmode=verify-full").warnings == []

        assert load(env, **{name: f"{DSN}?sslmode=require"}).warnings == [
            f"{name}: the connection is encrypted but not verified, because sslmode is require"
        ]

    @pytest.mark.parametrize(("text", "prepares"), [("on", True), ("off", False), ("auto", None)])
    def test_the_operator_can_turn_prepared_statements_on_and_off(
        self, env: pytest.MonkeyPatch, text: str, *, prepares: bool | None
    ) -> None:
        assert load(env, DATABASE_PREPARED_STATEMENTS=text).prepares is prepares

    def test_an_unpooled_url_requires_database_url(self, env: pytest.MonkeyPatch) -> None:
        assert refused(env, DATABASE_URL_UNPOOLED=DSN) == {
            "database_url_unpooled": "Value error, needs DATABASE_URL beside it"
        }

    def test_an_invalid_database_url_is_not_also_reported_as_missing(self, env: pytest.MonkeyPatch) -> None:
        names = refused(env, DATABASE_URL="mysql://ada@db.example.com/tasks", DATABASE_URL_UNPOOLED=DSN).keys()

        assert names == {"database_url"}

    @pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_URL_UNPOOLED"])
    @pytest.mark.parametrize("dsn", [DSN.replace("postgresql", "mysql"), f"{DSN}?sslmode=s3cret"])
    def test_an_invalid_url_is_refused_and_not_quoted(self, env: pytest.MonkeyPatch, name: str, dsn: str) -> None:
        assert refused(env, **{"DATABASE_URL": DSN, name: dsn}).keys() == {name.lower()}

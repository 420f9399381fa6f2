"""Settings: the values that the environment may have, and how a wrong value is reported."""

import base64
import secrets
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from app.core.config import Settings, load_settings
from app.core.errors import StartupError
from tests.support import SECRET

DSN = "postgresql://ada:s3cret@db.example.com/tasks"


def load() -> Settings:
    """Settings from the environment alone, without the developer's .env file."""
    return Settings(_env_file=None)


def refusal() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        load()
    return caught.value


class TestDefaults:
    def test_every_setting_has_a_default(self) -> None:
        assert load().model_dump() == {
            "database_url": None,
            "database_url_unpooled": None,
            "database_prepared_statements": "auto",
            "database_pool_size": 10,
            "database_pool_timeout": 5,
            "concurrency_limit": 1000,
            "embedded_postgres_dir": Path(".data/postgres"),
            "auth_jwt_secret": None,
            "auth_jwks_url": None,
            "auth_issuer": None,
            "auth_audience": None,
            "auth_user_id_claim": "sub",
            "auth_leeway_seconds": 30,
            "host": "127.0.0.1",
            "port": 8000,
            "web_concurrency": 1,
            "shutdown_timeout": 10,
            "cors_origins": (
                "http://localhost:3000",
                "http://127.0.0.1:3000",
                "http://localhost:5173",
                "http://127.0.0.1:5173",
            ),
        }

    @pytest.mark.parametrize("name", Settings.model_fields)
    def test_an_empty_value_means_unset(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv(name.upper(), "")

        assert getattr(load(), name) == Settings.model_fields[name].get_default()

    def test_other_variables_are_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_COLOUR", "blue")

        assert "database_colour" not in load().model_dump()

    def test_a_dotenv_file_is_read(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("PORT=9000\nDATABASE_COLOUR=blue\n")
        monkeypatch.chdir(tmp_path)

        assert load_settings().port == 9000

    def test_a_dotenv_file_that_is_not_text_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / ".env").write_bytes("PORT=9000 # café".encode("latin-1"))
        monkeypatch.chdir(tmp_path)

        with pytest.raises(StartupError, match=r"^\.env: must be UTF-8 text$"):
            load_settings()

    def test_the_environment_takes_precedence_over_a_dotenv_file(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / ".env").write_text("PORT=9000\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PORT", "9001")

        assert load_settings().port == 9001

    def test_settings_are_frozen(self) -> None:
        settings = load()

        with pytest.raises(ValidationError, match="frozen"):
            settings.port = 9000  # type: ignore[misc]  # what this test is about

    def test_every_setting_has_a_description(self) -> None:
        assert all(field.description for field in Settings.model_fields.values())


class TestBounds:
    @pytest.mark.parametrize(
        ("name", "value", "read"),
        [
            ("DATABASE_POOL_SIZE", "1", 1),
            ("DATABASE_POOL_SIZE", "100", 100),
            ("DATABASE_POOL_TIMEOUT", "0.001", 0.001),
            ("DATABASE_POOL_TIMEOUT", "60", 60),
            ("PORT", "1", 1),
            ("PORT", "65535", 65_535),
            ("WEB_CONCURRENCY", "1", 1),
            ("WEB_CONCURRENCY", "64", 64),
            ("EMBEDDED_POSTGRES_DIR", "/srv/my data", Path("/srv/my data")),
        ],
    )
    def test_a_value_at_a_bound_is_accepted(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str, read: object
    ) -> None:
        monkeypatch.setenv(name, value)

        assert getattr(load(), name.lower()) == read

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("DATABASE_POOL_SIZE", "0"),
            ("DATABASE_POOL_SIZE", "101"),
            ("DATABASE_POOL_SIZE", "1.5"),
            ("DATABASE_POOL_TIMEOUT", "0"),
            ("DATABASE_POOL_TIMEOUT", "60.1"),
            ("DATABASE_POOL_TIMEOUT", "nan"),
            ("DATABASE_POOL_TIMEOUT", "inf"),
            ("PORT", "0"),
            ("PORT", "65536"),
            ("PORT", "http"),
            ("WEB_CONCURRENCY", "0"),
            ("WEB_CONCURRENCY", "65"),
        ],
    )
    def test_a_value_outside_the_bounds_is_refused_by_name(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        monkeypatch.setenv(name, value)

        assert [error["loc"] for error in refusal().errors()] == [(name.lower(),)]

    def test_all_wrong_settings_are_named_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"PORT": "0", "WEB_CONCURRENCY": "many", "HOST": "0.0.0.0"}.items():
            monkeypatch.setenv(name, value)

        assert {error["loc"][0] for error in refusal().errors()} == {"port", "web_concurrency", "host"}


class TestHost:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
    def test_a_loopback_address_is_accepted(self, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
        monkeypatch.setenv("HOST", host)

        assert load().host == host

    @pytest.mark.parametrize(
        "host",
        [
            "0.0.0.0",
            "::",
            "192.168.1.1",
            "203.0.113.7",
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "2130706433",
        ],
    )
    def test_another_address_is_refused_without_authentication(
        self, monkeypatch: pytest.MonkeyPatch, host: str
    ) -> None:
        monkeypatch.setenv("HOST", host)

        assert "must be a loopback address" in str(refusal())

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "tasks.internal"])
    def test_another_address_is_accepted_with_authentication(self, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
        monkeypatch.setenv("HOST", host)
        monkeypatch.setenv("AUTH_JWT_SECRET", SECRET)

        assert load().host == host

    def test_an_invalid_secret_is_not_also_reported_as_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOST", "0.0.0.0")
        monkeypatch.setenv("AUTH_JWT_SECRET", "short")

        assert [error["loc"] for error in refusal().errors()] == [("auth_jwt_secret",)]


class TestAuthentication:
    @pytest.mark.parametrize("name", ["AUTH_JWT_SECRET", "BETTER_AUTH_SECRET"])
    def test_a_secret_under_either_name_turns_authentication_on(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        assert not load().authenticates
        monkeypatch.setenv(name, SECRET)

        assert load().authenticates
        assert load().auth_jwt_secret == SecretStr(SECRET)

    def test_auth_jwt_secret_takes_precedence_over_better_auth_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AUTH_JWT_SECRET", SECRET)
        monkeypatch.setenv("BETTER_AUTH_SECRET", SECRET[::-1])

        assert load().auth_jwt_secret == SecretStr(SECRET)

    @pytest.mark.parametrize("name", ["AUTH_JWT_SECRET", "BETTER_AUTH_SECRET"])
    @pytest.mark.parametrize(
        ("secret", "reason"),
        [
            ("s3cret", "must have at least 32 bytes"),
            (SECRET[:31], "must have at least 32 bytes"),
            ("better-auth-secret-123456789012345678", "looks like a placeholder"),
            ("your-super-long-random-text-goes-here", "looks like a placeholder"),
            ("CHANGE_ME_CHANGE_ME_CHANGE_ME_CHANGE_ME", "looks like a placeholder"),
            ("a" * 64, "looks like a placeholder"),
            ("0123456789abcdef" * 4, "looks like a placeholder"),
            (f"{SECRET}\n", "must not begin or end with white space"),
            (f" {SECRET}", "must not begin or end with white space"),
            ("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----", "not a key in PEM"),
            ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtT ada@localhost", "not a key in PEM"),
            ('{"kty": "oct", "k": "GawgguFyGrWKav7AX4VKUg"}', "not a key in PEM"),
            ('{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS"}]}', "not a key in PEM"),
        ],
        ids=map(str, range(13)),
    )
    def test_a_weak_secret_is_refused_and_not_quoted(
        self, monkeypatch: pytest.MonkeyPatch, name: str, secret: str, reason: str
    ) -> None:
        monkeypatch.setenv(name, secret)

        error = refusal()

        assert reason in str(error)
        assert "openssl rand -hex 32" in str(error)
        assert secret not in str(error) + repr(error) + str(error.errors(include_input=False))

    @pytest.mark.parametrize(
        "secret",
        [SECRET[:32], base64.b64encode(secrets.token_bytes(32)).decode(), "é" * 3 + secrets.token_urlsafe(24)],
        ids=["hexadecimal", "base64", "not ASCII"],
    )
    def test_a_random_secret_of_32_bytes_is_accepted(self, monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
        monkeypatch.setenv("AUTH_JWT_SECRET", secret)

        assert load().auth_jwt_secret == SecretStr(secret)

    def test_the_secret_is_not_part_of_printed_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AUTH_JWT_SECRET", SECRET)

        assert SECRET not in repr(load()) + load().model_dump_json()

    @pytest.mark.parametrize("name", ["AUTH_JWT_SECRET", "BETTER_AUTH_SECRET"])
    def test_a_secret_together_with_a_jwks_url_is_refused(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        jwks(monkeypatch, AUTH_ISSUER="unchecked", AUTH_AUDIENCE="unchecked")
        monkeypatch.setenv(name, SECRET)

        assert "unset one of them" in str(refusal())

    @pytest.mark.parametrize("missing", ["AUTH_ISSUER", "AUTH_AUDIENCE"])
    def test_a_jwks_url_without_issuer_or_audience_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, missing: str
    ) -> None:
        jwks(monkeypatch, **({"AUTH_ISSUER": "a", "AUTH_AUDIENCE": "a"} | {missing: ""}))

        [error] = refusal().errors()
        assert error["loc"] == (missing.lower(),)
        assert "must be set with AUTH_JWKS_URL, to what your tokens have or to `unchecked`" in error["msg"]

    def test_the_checks_of_issuer_and_audience_may_be_turned_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        jwks(monkeypatch, AUTH_ISSUER="unchecked", AUTH_AUDIENCE="unchecked")

        assert load().authenticates

    def test_a_secret_does_not_require_issuer_and_audience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AUTH_JWT_SECRET", SECRET)

        assert (load().auth_issuer, load().auth_audience) == (None, None)

    @pytest.mark.parametrize("url", ["http://auth.example.com/jwks", "https://ada:s3cret@auth.example.com/jwks"])
    def test_an_insecure_jwks_url_is_refused(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        jwks(monkeypatch, url, AUTH_ISSUER="unchecked", AUTH_AUDIENCE="unchecked")

        assert "must look like https://" in str(refusal())
        assert "s3cret" not in str(refusal())

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("AUTH_ISSUER", "https://auth.example.com"),
            ("AUTH_AUDIENCE", "unchecked"),
            ("AUTH_USER_ID_CLAIM", "user.id"),
            ("AUTH_LEEWAY_SECONDS", "10"),
        ],
    )
    def test_another_authentication_setting_is_refused_without_a_secret_or_a_jwks_url(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        monkeypatch.setenv(name, value)

        with pytest.raises(StartupError, match=f"^{name}: needs AUTH_JWT_SECRET or AUTH_JWKS_URL beside it$"):
            load_settings()

    @pytest.mark.parametrize("claim", ["sub", "user.id", "https://example/id", "a.b.c"])
    def test_a_claim_may_be_a_path(self, monkeypatch: pytest.MonkeyPatch, claim: str) -> None:
        monkeypatch.setenv("AUTH_JWT_SECRET", SECRET)
        monkeypatch.setenv("AUTH_USER_ID_CLAIM", claim)

        assert load().auth_user_id_claim == claim

    @pytest.mark.parametrize("claim", [".", "user.", ".id", "user..id", "user id", " "])
    def test_a_claim_with_an_empty_part_or_a_space_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, claim: str
    ) -> None:
        monkeypatch.setenv("AUTH_JWT_SECRET", SECRET)
        monkeypatch.setenv("AUTH_USER_ID_CLAIM", claim)

        assert [error["loc"] for error in refusal().errors()] == [("auth_user_id_claim",)]

    @pytest.mark.parametrize("seconds", ["-1", "61", "nan", "inf", "soon"])
    def test_a_leeway_outside_its_bounds_is_refused(self, monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
        monkeypatch.setenv("AUTH_JWT_SECRET", SECRET)
        monkeypatch.setenv("AUTH_LEEWAY_SECONDS", seconds)

        assert [error["loc"] for error in refusal().errors()] == [("auth_leeway_seconds",)]


def jwks(monkeypatch: pytest.MonkeyPatch, url: str = "https://auth.example.com/jwks", **others: str) -> None:
    for name, value in {"AUTH_JWKS_URL": url, **others}.items():
        monkeypatch.setenv(name, value)


class TestCorsOrigins:
    @pytest.mark.parametrize(
        ("text", "origins"),
        [
            ("https://app.example.com", ("https://app.example.com",)),
            ("https://a.example.com,http://localhost:3000", ("https://a.example.com", "http://localhost:3000")),
            (" https://a.example.com , https://b.example.com, ", ("https://a.example.com", "https://b.example.com")),
            ("http://[::1]:3000", ("http://[::1]:3000",)),
            (",", ()),
        ],
    )
    def test_origins_are_separated_by_commas(
        self, monkeypatch: pytest.MonkeyPatch, text: str, origins: tuple[str, ...]
    ) -> None:
        monkeypatch.setenv("CORS_ORIGINS", text)

        assert load().cors_origins == origins

    @pytest.mark.parametrize(
        "text",
        [
            "*",
            "https://*.example.com",
            "https://app.example.com,*",
            "https://app.example.com/",
            "https://app.example.com/tasks",
            "https://app.example.com?q",
            "https://app.example.com#top",
            "app.example.com",
            "//app.example.com",
            "ftp://app.example.com",
            "null",
            "https://",
            "https://a.example.com https://b.example.com",
        ],
    )
    def test_a_value_that_is_not_an_origin_is_refused(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        monkeypatch.setenv("CORS_ORIGINS", text)

        assert "must list origins such as https://app.example.com" in str(refusal())

    @pytest.mark.parametrize(
        "text",
        [
            "https://App.example.com",
            "https://ada@app.example.com",
            "https://:3000",
            "https://app.example.com:https",
            "https://app.example.com\\tasks",
            "https://app.example\t.com",
        ],
    )
    def test_an_origin_in_a_form_that_no_browser_sends_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.setenv("CORS_ORIGINS", text)

        assert "must list origins such as https://app.example.com" in str(refusal())


class TestDatabaseUrl:
    def test_migrations_use_the_unpooled_url(self, monkeypatch: pytest.MonkeyPatch) -> None:
        direct = "postgresql://ada:s3cret@direct.example.com/tasks"
        monkeypatch.setenv("DATABASE_URL", DSN)
        monkeypatch.setenv("DATABASE_URL_UNPOOLED", direct)

        assert load().migration_dsn == direct

    def test_migrations_use_database_url_if_it_is_the_only_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", DSN)

        assert load().migration_dsn == DSN

    def test_migrations_use_the_direct_host_of_neon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://ada:s3cret@ep-x-pooler.eu-west-2.aws.neon.tech/neondb")

        assert load().migration_dsn == "postgresql://ada:s3cret@ep-x.eu-west-2.aws.neon.tech/neondb"

    def test_white_space_around_the_url_is_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", f" {DSN}\r\n")

        assert load().migration_dsn == DSN

    def test_an_insecure_connection_is_reported_with_the_name_of_the_setting(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert load().warnings == []
        monkeypatch.setenv("DATABASE_URL", f"{DSN}?sslmode=verify-full")
        assert load().warnings == []

        monkeypatch.setenv("DATABASE_URL_UNPOOLED", f"{DSN}?sslmode=require")

        assert load().warnings == [
            "DATABASE_URL_UNPOOLED: the connection is encrypted but not verified, because sslmode is require"
        ]

    @pytest.mark.parametrize(("text", "prepares"), [("on", True), ("off", False), ("auto", None)])
    def test_the_operator_can_turn_prepared_statements_on_and_off(
        self, monkeypatch: pytest.MonkeyPatch, text: str, *, prepares: bool | None
    ) -> None:
        monkeypatch.setenv("DATABASE_PREPARED_STATEMENTS", text)

        assert load().prepares is prepares

    def test_migrations_use_the_embedded_database_without_a_url(self) -> None:
        assert load().migration_dsn is None

    def test_an_unpooled_url_without_database_url_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL_UNPOOLED", DSN)

        assert "needs DATABASE_URL beside it" in str(refusal())

    def test_an_invalid_database_url_is_not_also_reported_as_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "mysql://ada@db.example.com/tasks")
        monkeypatch.setenv("DATABASE_URL_UNPOOLED", DSN)

        assert [error["loc"] for error in refusal().errors()] == [("database_url",)]

    @pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_URL_UNPOOLED"])
    @pytest.mark.parametrize(
        ("dsn", "reason"),
        [
            ("mysql://ada:s3cret@db.example.com/tasks", "must look like postgresql://"),
            ("postgresql://ada:s3cret@db.example.com:port/tasks", "must look like postgresql://"),
            (f"{DSN}?sslmode=s3cret", "has an unknown sslmode"),
            (f"{DSN}?colour=s3cret", "has a parameter that is not supported: colour"),
        ],
    )
    def test_an_invalid_url_is_refused_and_not_quoted(
        self, monkeypatch: pytest.MonkeyPatch, name: str, dsn: str, reason: str
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", DSN)
        monkeypatch.setenv(name, dsn)

        error = refusal()

        assert reason in str(error)
        assert "s3cret" not in str(error)
        assert "s3cret" not in repr(error)
        assert "s3cret" not in str(error.errors(include_input=False))

    def test_the_password_is_not_part_of_printed_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", DSN)

        assert "s3cret" not in repr(load())
        assert "s3cret" not in load().model_dump_json()

"""Connection strings as operators paste them."""

import ssl

import pytest

from app.core.dsn import parse_dsn

NEON = "ep-cool-darkness-a1b2c3d4-pooler.us-east-2.aws.neon.tech"


class TestAddress:
    @pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
    def test_every_usual_scheme_means_asyncpg(self, scheme: str) -> None:
        url, _ = parse_dsn(f"{scheme}://ada:pw@db.example.com:6432/tasks")

        assert url.render_as_string(hide_password=False) == "postgresql+asyncpg://ada:pw@db.example.com:6432/tasks"

    @pytest.mark.parametrize(
        ("written", "password"),
        [("p%40ss%2Fw%3Ard%25", "p@ss/w:rd%"), ("p:ss", "p:ss"), ("%C3%BC", "ü"), ("a+b", "a+b")],
    )
    def test_a_password_may_be_percent_encoded(self, written: str, password: str) -> None:
        url, _ = parse_dsn(f"postgresql://ada:{written}@db.example.com/tasks")

        assert (url.password, url.host, url.database) == (password, "db.example.com", "tasks")

    @pytest.mark.parametrize(
        ("dsn", "host", "port"),
        [
            ("postgresql://ada@[::1]/tasks", "::1", None),
            ("postgresql://ada@[2001:db8::7]:5433/tasks", "2001:db8::7", 5433),
            ("postgresql://ada@127.0.0.1:5433/tasks", "127.0.0.1", 5433),
            ("postgresql://ada@/tasks", None, None),
        ],
    )
    def test_a_host_may_be_an_address(self, dsn: str, host: str | None, port: int | None) -> None:
        url, _ = parse_dsn(dsn)

        assert (url.host, url.port, url.username, url.database) == (host, port, "ada", "tasks")

    @pytest.mark.parametrize("path", ["/run/postgresql", "/tmp/it's%20mine", "/tmp/a%3Ab"])  # noqa: S108  # not opened
    def test_a_host_may_be_the_directory_of_a_socket(self, path: str) -> None:
        url, _ = parse_dsn(f"postgresql://ada@/tasks?host={path}&port=5433")

        assert (url.host, url.query) == (None, {"host": path.replace("%20", " ").replace("%3A", ":"), "port": "5433"})

    @pytest.mark.parametrize(
        "dsn",
        [
            "",
            "garbage",
            "postgresql",
            "//ada:s3cret@db.example.com/tasks",
            "mysql://ada:s3cret@db.example.com/tasks",
            "postgresql+psycopg://ada:s3cret@db.example.com/tasks",
            "https://ada:s3cret@db.example.com/tasks",
            "'postgresql://ada:s3cret@db.example.com/tasks'",
            "psql 'postgresql://ada:s3cret@db.example.com/tasks'",
            "DATABASE_URL=postgresql://ada:s3cret@db.example.com/tasks",
            "host=db.example.com user=ada password=s3cret",
            "postgresql://ada:s3cret@db.example.com:port/tasks",
            "postgresql://ada:s3cret@db.example.com:99999/tasks",
        ],
    )
    def test_anything_else_is_refused_without_being_shown(self, dsn: str) -> None:
        with pytest.raises(ValueError, match=r"^must look like postgresql://user:password@host/database$") as caught:
            parse_dsn(dsn)

        assert caught.value.__suppress_context__


class TestParameters:
    @pytest.mark.parametrize(
        "name",
        ["application_name", "colour", "connect_timeout", "options", "pgbouncer", "sslcert", "sslrootcert", "SSLMODE"],
    )
    def test_an_unknown_one_is_named_and_its_value_is_not_shown(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"^has a parameter that is not supported: {name}$"):
            parse_dsn(f"postgresql://ada:s3cret@db.example.com/tasks?{name}=hidden")

    def test_all_unknown_ones_are_named(self) -> None:
        with pytest.raises(ValueError, match=r"not supported: colour, options$"):
            parse_dsn("postgresql://ada@db.example.com/tasks?options=-c&sslmode=require&colour=blue")

    @pytest.mark.parametrize("query", ["sslmode=s3cret", "sslmode=REQUIRE", "sslmode=require&sslmode=disable"])
    def test_an_unknown_sslmode_is_refused_without_being_shown(self, query: str) -> None:
        with pytest.raises(ValueError, match=r"^has an unknown sslmode; use one of allow, disable, prefer") as caught:
            parse_dsn(f"postgresql://ada@db.example.com/tasks?{query}")

        assert "s3cret" not in str(caught.value)

    def test_none_of_them_reaches_the_driver(self) -> None:
        url, _ = parse_dsn(f"postgresql://ada@{NEON}/tasks?sslmode=require&channel_binding=require")

        assert url.query == {}


class TestEncryption:
    @pytest.mark.parametrize(
        ("query", "mode"),
        [
            ("", "prefer"),
            ("?sslmode=disable", "disable"),
            ("?sslmode=allow", "allow"),
            ("?sslmode=prefer", "prefer"),
            ("?sslmode=require", "require"),
            ("?sslmode=require&channel_binding=prefer", "require"),
            ("?channel_binding=disable", "prefer"),
        ],
    )
    def test_sslmode_means_what_it_means_elsewhere(self, query: str, mode: str) -> None:
        _, connect_args = parse_dsn(f"postgresql://ada@db.example.com/tasks{query}")

        assert connect_args["ssl"] == mode

    @pytest.mark.parametrize(
        "dsn",
        [
            "postgresql://ada@db.example.com/tasks?sslmode=verify-ca",
            "postgresql://ada@db.example.com/tasks?sslmode=verify-full",
            "postgresql://ada@db.example.com/tasks?channel_binding=require",
            "postgresql://ada@db.example.com/tasks?sslmode=require&channel_binding=require",
            f"postgresql://ada:pw@{NEON}/tasks?sslmode=require&channel_binding=require",
            f"postgresql://ada:pw@{NEON}/tasks?sslmode=require",
            f"postgresql://ada:pw@{NEON}/tasks",
            f"postgresql://ada:pw@{NEON.upper()}/tasks?sslmode=require",
            f"postgresql://ada:pw@/tasks?host={NEON}&sslmode=require",
        ],
    )
    def test_the_certificate_is_verified_where_that_is_asked_for_and_at_neon(self, dsn: str) -> None:
        _, connect_args = parse_dsn(dsn)

        context = connect_args["ssl"]
        assert isinstance(context, ssl.SSLContext)
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)

    @pytest.mark.parametrize("host", ["neon.tech.example.com", "notneon.tech"])
    def test_a_host_that_only_looks_like_neon_is_like_any_other(self, host: str) -> None:
        _, connect_args = parse_dsn(f"postgresql://ada@{host}/tasks?sslmode=require")

        assert connect_args["ssl"] == "require"

    def test_channel_binding_without_encryption_is_refused(self) -> None:
        with pytest.raises(ValueError, match="channel_binding"):
            parse_dsn("postgresql://ada@db.example.com/tasks?sslmode=disable&channel_binding=require")

"""Connection strings in the forms that operators paste."""

import ssl
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from app.core.database.dsn import insecurity, parse_dsn, unpooled

NEON: Final = "ep-cool-darkness-a1b2c3d4.us-east-2.aws.neon.tech"
POOLED: Final = NEON.replace(".", "-pooler.", 1)
# Connection strings that consoles, integrations and guides of Neon hand out, beside the plain one.
HANDED_OUT: Final = (
    f"postgresql://ada:npg_s3cret@{POOLED}/neondb?sslmode=require&channel_binding=require",
    f"postgresql://ada:npg_s3cret@{NEON}/neondb?sslmode=require&channel_binding=require",
    f"postgres://ada:npg_s3cret@{POOLED}/neondb?sslmode=require",
    f"postgres://ada:npg_s3cret@{POOLED}:5432/neondb?pgbouncer=true&connect_timeout=15&sslmode=require",
    f"postgresql+psycopg2://ada:npg_s3cret@{POOLED}/neondb?sslmode=verify-full&sslrootcert=system",
    f"postgresql://ada:npg_s3cret@{NEON}/neondb?sslmode=require&options=endpoint%3Dep-cool-darkness-a1b2c3d4",
    f"postgresql://ada:npg_s3cret@{NEON}/neondb?sslmode=require&sslnegotiation=direct",
    f"postgresql+asyncpg://ada:npg_s3cret@{POOLED}/neondb?ssl=true&application_name=tasks",
)


def connect_args(dsn: str) -> dict[str, Any]:
    return parse_dsn(dsn)


def addresses(dsn: str) -> list[tuple[str, int]]:
    """The hosts and ports, in the order in which they are tried."""
    arguments = connect_args(dsn)
    return list(zip(arguments["host"], arguments["port"], strict=True))


def is_verified(context: object) -> tuple[bool, bool]:
    """Whether the certificate is verified, and whether the host name is."""
    assert isinstance(context, ssl.SSLContext)
    return context.verify_mode is ssl.CERT_REQUIRED, context.check_hostname


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of a certificate authority."""
    path = tmp_path_factory.mktemp("root") / "root.crt"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


class TestNeon:
    @pytest.mark.parametrize("dsn", HANDED_OUT)
    def test_every_string_that_neon_hands_out_is_accepted_and_verified(self, dsn: str) -> None:
        arguments = connect_args(dsn)

        [host] = arguments["host"]
        assert host in {NEON, POOLED}
        assert (arguments["password"], arguments["database"]) == ("npg_s3cret", "neondb")
        assert is_verified(arguments["ssl"]) == (True, True)
        assert insecurity(dsn) is None

    def test_a_neon_host_is_verified_without_parameters(self) -> None:
        assert is_verified(connect_args(f"postgresql://ada:pw@{NEON.upper()}/neondb")["ssl"]) == (True, True)
        assert is_verified(connect_args(f"postgresql://ada:pw@/neondb?host={NEON}")["ssl"]) == (True, True)
        assert is_verified(connect_args(f"postgresql://ada:pw@{NEON}./neondb")["ssl"]) == (True, True)

    @pytest.mark.parametrize("host", ["neon.tech.example.com", "notneon.tech"])
    def test_a_host_that_only_resembles_neon_is_treated_like_any_other(self, host: str) -> None:
        assert is_verified(connect_args(f"postgresql://ada@{host}/tasks?sslmode=require")["ssl"]) == (False, False)

    @pytest.mark.parametrize("options", ["-c statement_timeout=1s", "endpoint=a b", ""])
    def test_options_that_neon_would_silently_drop_are_refused(self, options: str) -> None:
        with pytest.raises(ValueError, match=r"not supported: options$"):
            parse_dsn(f"postgresql://ada@{NEON}/neondb?options={options}")

    @pytest.mark.parametrize(
        ("pooled", "direct"),
        [
            (HANDED_OUT[0], HANDED_OUT[1]),
            (f"postgres://a:b-pooler.c@{POOLED}:5432,{POOLED}/d", f"postgres://a:b-pooler.c@{NEON}:5432,{NEON}/d"),
            (f"postgresql:///d?host={POOLED.upper()}", f"postgresql:///d?host={NEON.upper()}"),
            ("postgresql://a@db-pooler.example.com/d", "postgresql://a@db-pooler.example.com/d"),
            (
                "postgresql://a@ep-x-pooler.neon.tech.example.com/d",
                "postgresql://a@ep-x-pooler.neon.tech.example.com/d",
            ),
        ],
    )
    def test_the_direct_host_is_derived_from_the_pooled_one(self, pooled: str, direct: str) -> None:
        assert unpooled(pooled) == direct
        assert unpooled(direct) == direct


class TestAddress:
    @pytest.mark.parametrize(
        "scheme",
        [
            "postgres",
            "postgresql",
            "postgresql+asyncpg",
            "postgresql+psycopg",
            "postgresql+psycopg2",
            "postgres+psycopg",
        ],
    )
    def test_all_usual_schemes_have_the_same_meaning(self, scheme: str) -> None:
        arguments = connect_args(f"{scheme}://ada:pw@db.example.com:6000/tasks")

        names = ("user", "password", "host", "port", "database")
        assert [arguments[name] for name in names] == ["ada", "pw", ["db.example.com"], [6000], "tasks"]

    @pytest.mark.parametrize(
        ("written", "password"),
        [
            ("p%40ss%2Fw%3Ard%25", "p@ss/w:rd%"),
            ("%C3%BC", "ü"),
            ("a+b", "a+b"),
            ("p:ss", "p:ss"),
            ("p@ss", "p@ss"),
            ("p/ss?w=rd#1", "p/ss?w=rd#1"),
            ("12/34", "12/34"),
            ("Zk9@x7/Qw==", "Zk9@x7/Qw=="),
        ],
    )
    def test_a_password_may_be_percent_encoded_or_plain(self, written: str, password: str) -> None:
        arguments = connect_args(f"postgresql://ada:{written}@db.example.com/tasks")

        assert (arguments["password"], arguments["host"], arguments["database"]) == (
            password,
            ["db.example.com"],
            "tasks",
        )

    def test_an_at_sign_in_the_query_does_not_make_a_password(self) -> None:
        arguments = connect_args("postgresql://db.example.com:5432/tasks?application_name=a@b")

        assert (arguments["user"], arguments["password"], arguments["host"]) == (None, None, ["db.example.com"])

    @pytest.mark.parametrize(
        ("dsn", "expected"),
        [
            ("postgresql://ada@[::1]/tasks", [("::1", 5432)]),
            ("postgresql://ada@[2001:db8::7]:5433/tasks", [("2001:db8::7", 5433)]),
            ("postgresql:///tasks?host=2001:db8::7&port=5433", [("2001:db8::7", 5433)]),
            ("postgresql://ada@127.0.0.1:5433/tasks", [("127.0.0.1", 5433)]),
            ("postgresql://ada@h/tasks?port=5433", [("h", 5433)]),
            ("postgresql://ada@h:1/tasks?port=5433", [("h", 1)]),
            ("postgresql://ada@h/tasks?host=other", [("other", 5432)]),
        ],
    )
    def test_host_and_port_are_read_from_the_address_and_the_query(
        self, dsn: str, expected: list[tuple[str, int]]
    ) -> None:
        assert addresses(dsn) == expected

    @pytest.mark.parametrize("dsn", ["postgresql://ada@/tasks", "postgresql:///tasks", "postgresql://"])
    def test_a_missing_host_means_this_machine(self, monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
        monkeypatch.setenv("PGHOST", "db.example.com")

        assert [host for host, _ in addresses(dsn)] == ["/run/postgresql", "/var/run/postgresql", "localhost"]

    @pytest.mark.parametrize(
        ("dsn", "directory"),
        [
            ("postgresql://ada@/tasks?host=/run/postgresql&port=5433", "/run/postgresql"),
            ("postgresql://ada@/tasks?host=/var/it's%20mine&port=5433", "/var/it's mine"),
            ("postgresql://ada@/tasks?host=/var/a%3Ab+c&port=5433", "/var/a:b+c"),
            ("postgresql://ada@%2Frun%2Fpostgresql:5433/tasks", "/run/postgresql"),
        ],
    )
    def test_a_host_may_be_a_socket_directory(self, dsn: str, directory: str) -> None:
        assert addresses(dsn) == [(directory, 5433)]

    @pytest.mark.parametrize(
        "dsn",
        [
            "postgresql://ada@a:1,[::2]:2,c/tasks",
            "postgresql://ada@/tasks?host=a,[::2],c&port=1,2,5432",
            "postgresql://ada@/tasks?host=a:1&host=[::2]:2&host=c",
        ],
    )
    def test_several_hosts_are_tried_in_order_until_one_is_writable(self, dsn: str) -> None:
        assert addresses(dsn) == [("a", 1), ("::2", 2), ("c", 5432)]
        assert connect_args(dsn)["target_session_attrs"] == "read-write"

    def test_another_number_of_ports_than_of_hosts_is_refused(self) -> None:
        with pytest.raises(ValueError, match="another number of ports than of hosts"):
            parse_dsn("postgresql://ada@a,b,c/tasks?port=1,2")

    @pytest.mark.parametrize(
        "dsn",
        [
            "",
            "garbage",
            "postgresql",
            "//ada:s3cret@db.example.com/tasks",
            "mysql://ada:s3cret@db.example.com/tasks",
            "postgresql+pg8000://ada:s3cret@db.example.com/tasks",
            "https://ada:s3cret@db.example.com/tasks",
            "'postgresql://ada:s3cret@db.example.com/tasks'",
            "psql 'postgresql://ada:s3cret@db.example.com/tasks'",
            "DATABASE_URL=postgresql://ada:s3cret@db.example.com/tasks",
            "host=db.example.com user=ada password=s3cret",
            "postgresql://ada:s3cret@db.example.com:port/tasks",
            "postgresql://ada:s3cret@db.example.com:99999/tasks",
            "postgresql://ada:s3cret@db.example.com/tasks?port=s3cret",
            "postgresql://ada:s3cret@db example.com/tasks",
            "postgresql://ada:s3cret@db.example.com/tasks\n",
            "postgresql://ada:s3cret@db.example.com/ta\0sks",
            "postgresql://ada:x@s3cret?host=a@db.example.com/tasks",
        ],
    )
    def test_a_malformed_string_is_refused_and_not_quoted(self, dsn: str) -> None:
        with pytest.raises(ValueError, match=r"^must look like postgresql://user:password@host/database$"):
            parse_dsn(dsn)


class TestParameters:
    @pytest.mark.parametrize("name", ["colour", "keepalives", "passfile", "pool_timeout", "sslcert", "SSLMODE"])
    def test_an_unknown_parameter_is_named_and_its_value_is_not_quoted(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"^has a parameter that is not supported: {name}$"):
            parse_dsn(f"postgresql://ada:s3cret@db.example.com/tasks?{name}=hidden")

    def test_all_unknown_parameters_are_named(self) -> None:
        with pytest.raises(ValueError, match=r"not supported: colour, options$"):
            parse_dsn("postgresql://ada@db.example.com/tasks?options=-c&sslmode=require&colour=blue")

    def test_a_duplicate_parameter_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"^has a parameter that is there twice: sslmode$"):
            parse_dsn("postgresql://ada@db.example.com/tasks?sslmode=require&sslmode=disable")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("sslmode", "s3cret"),
            ("sslmode", "REQUIRE"),
            ("ssl", "yes"),
            ("channel_binding", "s3cret"),
            ("sslnegotiation", "s3cret"),
            ("gssencmode", "require"),
            ("target_session_attrs", "standby"),
            ("target_session_attrs", "read-only"),
            ("pgbouncer", "1"),
            ("connect_timeout", "s3cret"),
            ("connect_timeout", "-1"),
            ("connect_timeout", "61"),
            ("connect_timeout", ""),
        ],
    )
    def test_an_unknown_value_is_refused_and_not_quoted(self, name: str, value: str) -> None:
        with pytest.raises(ValueError, match=rf"^has an unknown {name}; use ") as caught:
            parse_dsn(f"postgresql://ada@db.example.com/tasks?{name}={value}")

        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize(("value", "seconds"), [("1", 1), ("60", 60), ("0", 10)])
    def test_connect_timeout_is_in_seconds_and_0_is_the_default(self, value: str, seconds: int) -> None:
        assert connect_args(f"postgresql://ada@h/tasks?connect_timeout={value}")["timeout"] == seconds
        assert connect_args("postgresql://ada@h/tasks")["timeout"] == 10

    def test_application_name_becomes_a_server_setting(self) -> None:
        assert connect_args("postgresql://ada@h/tasks?application_name=a+b")["server_settings"] == {
            "application_name": "a+b"
        }
        assert connect_args("postgresql://ada@h/tasks")["server_settings"] == {"application_name": "tasks-api"}

    def test_user_password_and_database_may_be_parameters(self) -> None:
        arguments = connect_args("postgresql://h/?user=ada&password=p%26w&dbname=tasks")

        assert [arguments[name] for name in ("user", "password", "database")] == ["ada", "p&w", "tasks"]

    @pytest.mark.parametrize("query", ["gssencmode=prefer", "target_session_attrs=read-write", "pgbouncer=false"])
    def test_other_usual_parameters_are_accepted(self, query: str) -> None:
        assert addresses(f"postgresql://ada@h/tasks?{query}") == [("h", 5432)]


class TestEncryption:
    @pytest.mark.parametrize(
        ("query", "mode"),
        [
            ("", "prefer"),
            ("?sslmode=disable", "disable"),
            ("?sslmode=allow", "allow"),
            ("?sslmode=prefer", "prefer"),
            ("?ssl=false", "prefer"),
            ("?channel_binding=disable", "prefer"),
        ],
    )
    def test_a_mode_below_require_is_left_to_the_driver_and_reported(self, query: str, mode: str) -> None:
        dsn = f"postgresql://ada@db.example.com/tasks{query}"

        assert connect_args(dsn)["ssl"] == mode
        assert insecurity(dsn) == (f"the connection may not be encrypted, because sslmode is {mode}")

    @pytest.mark.parametrize("query", ["sslmode=require", "ssl=true", "sslmode=require&channel_binding=prefer"])
    def test_mode_require_encrypts_and_the_missing_verification_is_reported(self, query: str) -> None:
        dsn = f"postgresql://ada@db.example.com/tasks?{query}"

        assert is_verified(connect_args(dsn)["ssl"]) == (False, False)
        assert insecurity(dsn) == ("the connection is encrypted but not verified, because sslmode is require")

    @pytest.mark.parametrize(
        ("query", "name_too"),
        [
            ("sslmode=verify-full", True),
            ("sslmode=verify-ca", False),
            ("channel_binding=require", True),
            ("sslmode=require&channel_binding=require", True),
            ("sslrootcert=system", True),
            ("sslmode=verify-full&sslrootcert={root}", True),
            ("sslmode=require&sslrootcert={root}", False),
            ("sslrootcert={root}", False),
        ],
    )
    def test_the_certificate_is_verified_where_a_parameter_asks_for_it(
        self, root: Path, query: str, *, name_too: bool
    ) -> None:
        dsn = f"postgresql://ada@db.example.com/tasks?{query.format(root=root)}"

        assert is_verified(connect_args(dsn)["ssl"]) == (True, name_too)
        assert insecurity(dsn) is None

    @pytest.mark.parametrize("host", ["", "localhost", "127.0.0.1:5433", "[::1]", "%2Frun%2Fpostgresql"])
    def test_no_insecurity_is_reported_for_a_host_on_this_machine(self, host: str) -> None:
        assert insecurity(f"postgresql://ada@{host}/tasks") is None

    @pytest.mark.parametrize(
        "dsn",
        [
            f"postgresql://ada@{NEON}/tasks?sslmode=disable",
            "postgresql://ada@h/tasks?sslmode=disable&channel_binding=require",
            "postgresql://ada@h/tasks?sslmode=disable&sslrootcert=/etc/root.crt",
        ],
    )
    def test_contradicting_parameters_are_refused(self, dsn: str) -> None:
        with pytest.raises(ValueError, match=r"^has sslmode=disable, but its host or another param"):
            parse_dsn(dsn)

    @pytest.mark.parametrize("path", ["/nowhere/root.crt", "/dev/null", "%00", "/"])
    def test_an_unreadable_sslrootcert_is_refused(self, path: str) -> None:
        with pytest.raises(ValueError, match=r"^has an sslrootcert that cannot be read$"):
            parse_dsn(f"postgresql://ada@h/tasks?sslmode=verify-full&sslrootcert={path}")

    @pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
    def test_sslnegotiation_direct_begins_with_tls(self, mode: str) -> None:
        assert connect_args(f"postgresql://ada@h/tasks?sslmode={mode}&sslnegotiation=direct")["direct_tls"] is True
        assert connect_args(f"postgresql://ada@h/tasks?sslmode={mode}&sslnegotiation=postgres")["direct_tls"] is False

    def test_sslnegotiation_direct_without_required_encryption_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^has sslnegotiation=direct, which needs sslmode=require, ve"):
            parse_dsn("postgresql://ada@h/tasks?sslnegotiation=direct")


class TestPreparedStatements:
    @pytest.mark.parametrize(
        "dsn",
        [
            "postgresql://ada@h/tasks",
            "postgresql://ada@a,b/tasks",
            "postgresql://ada@/tasks?host=/run/postgresql",
            f"postgresql://ada@{NEON}/tasks",
            f"postgresql://ada@{POOLED}/tasks",
            f"postgresql://ada@{POOLED}:6543/tasks?pgbouncer=false",
        ],
    )
    def test_prepared_statements_are_used_at_direct_hosts_and_at_neon(self, dsn: str) -> None:
        assert "statement_cache_size" not in connect_args(dsn)

    @pytest.mark.parametrize(
        "dsn",
        [
            "postgresql://ada@aws-0-eu-west-1.pooler.supabase.com:5432/tasks",
            "postgresql://ada@PgBouncer/tasks",
            "postgresql://ada@h:6432/tasks",
            "postgresql://ada@h:6543/tasks",
            "postgresql://ada@a,b:6432/tasks",
            "postgresql://ada@h/tasks?pgbouncer=true",
            f"postgresql://ada@{POOLED}/tasks?pgbouncer=true",
        ],
    )
    def test_prepared_statements_are_not_used_where_a_pooler_may_mix_them_up(self, dsn: str) -> None:
        assert connect_args(dsn)["statement_cache_size"] == 0

    def test_the_setting_takes_precedence_over_host_and_port(self) -> None:
        assert "statement_cache_size" not in parse_dsn("postgresql://ada@h:6432/d", prepares=True)
        assert parse_dsn("postgresql://ada@h/d", prepares=False)["statement_cache_size"] == 0

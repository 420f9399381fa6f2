"""Connection strings in the forms that operators paste. Fuzz tests compare the parser with that of asyncpg."""

import re
import ssl
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import pytest
import trustme

from app.core.database.dsn import insecurity, parse_dsn, unpooled, unused
from tests.support import SECRET

NEON: Final = "ep-cool-darkness-a1b2c3d4.us-east-2.aws.neon.tech"
POOLED: Final = NEON.replace(".", "-pooler.", 1)
# Connection strings that consoles, integrations and guides of Neon hand out.
HANDED_OUT: Final = (
    f"postgresql://ada:npg_s3cret@{NEON}/neondb",
    f"postgresql://ada:npg_s3cret@{POOLED}/neondb?sslmode=require&channel_binding=require",
    f"postgres://ada:npg_s3cret@{POOLED}:5432/neondb?pgbouncer=true&connect_timeout=15&sslmode=require",
    f"postgresql+psycopg2://ada:npg_s3cret@{POOLED}/neondb?sslmode=verify-full&sslrootcert=system",
    f"postgresql://ada:npg_s3cret@{NEON}/neondb?sslmode=require&options=endpoint%3Dep-cool-darkness-a1b2c3d4",
    f"postgresql+asyncpg://ada:npg_s3cret@{POOLED}/neondb?ssl=true&application_name=tasks&sslnegotiation=direct",
    f"postgresql+asyncpg://ada:npg_s3cret@{POOLED}/neondb?ssl=require&prepared_statement_cache_size=0",
)


def addresses(dsn: str) -> list[tuple[str, int]]:
    """The hosts and ports, in the order in which they are tried."""
    arguments = parse_dsn(dsn)
    return list(zip(arguments["host"], arguments["port"], strict=True))


def is_verified(dsn: str) -> tuple[bool, bool]:
    """Whether the certificate is verified, and whether the host name is."""
    context = parse_dsn(dsn)["ssl"]
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
        arguments = parse_dsn(dsn)

        assert arguments["host"] in ([NEON], [POOLED])
        assert (arguments["password"], arguments["database"]) == ("npg_s3cret", "neondb")
        assert is_verified(dsn) == (True, True)
        assert insecurity(dsn) is None

    @pytest.mark.parametrize(
        ("host", "verified"),
        [(NEON.upper(), True), (f"{NEON}.", True), ("neon.tech.example.com", False), ("notneon.tech", False)],
    )
    def test_exactly_the_hosts_of_neon_are_verified_without_a_parameter(self, host: str, *, verified: bool) -> None:
        assert is_verified(f"postgresql://ada@{host}/tasks?sslmode=require") == (verified, verified)

    @pytest.mark.parametrize(
        ("pooled", "direct"),
        [
            (f"postgres://a:b-pooler.c@{POOLED}:5432,{POOLED}/d", f"postgres://a:b-pooler.c@{NEON}:5432,{NEON}/d"),
            (f"postgresql:///d?host={POOLED.upper()}", f"postgresql:///d?host={NEON.upper()}"),
            ("postgresql://a@db-pooler.example.com/d", "postgresql://a@db-pooler.example.com/d"),
            ("postgresql://a@e-pooler.neon.tech.example.com/d", "postgresql://a@e-pooler.neon.tech.example.com/d"),
        ],
    )
    def test_the_direct_host_is_derived_from_the_pooled_one(self, pooled: str, direct: str) -> None:
        assert unpooled(pooled) == direct


class TestAddress:
    @pytest.mark.parametrize("written", ["p%40ss%2Fw%3Ard%25", "a+b", "p@ss", "p/ss?w=rd#1", "12/34"])
    def test_a_password_may_be_percent_encoded_or_plain(self, written: str) -> None:
        arguments = parse_dsn(f"postgresql://ada:{written}@db.example.com/tasks")

        assert arguments["password"] == unquote(written)
        assert (arguments["host"], arguments["database"]) == (["db.example.com"], "tasks")

    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("[2001:db8::7]:5433/tasks", [("2001:db8::7", 5433)]),
            ("/tasks?host=2001:db8::7&port=5433", [("2001:db8::7", 5433)]),
            ("h/tasks?port=5433&application_name=a@b", [("h", 5433)]),
            ("h:1/tasks?port=5433", [("h", 1)]),
            ("h:65535/tasks?host=other", [("other", 5432)]),
            ("/tasks?host=/var/a%3Ab+c&port=65535", [("/var/a:b+c", 65535)]),
            ("%2Frun%2Fpostgresql:5433/tasks", [("/run/postgresql", 5433)]),
        ],
    )
    def test_host_and_port_are_read_from_the_address_and_the_query(
        self, address: str, expected: list[tuple[str, int]]
    ) -> None:
        assert addresses(f"postgresql://ada@{address}") == expected

    def test_a_missing_host_means_this_machine(self) -> None:
        hosts = [host for host, _ in addresses("postgresql://")]

        assert hosts == ["/run/postgresql", "/var/run/postgresql", "localhost"]

    def test_a_port_without_a_host_is_one_of_this_machine(self) -> None:
        arguments = parse_dsn("postgresql://ada@:5433,db.example.com/tasks")

        assert (arguments["host"], arguments["port"]) == (["localhost", "db.example.com"], [5433, 5432])

    def test_a_missing_user_is_that_of_the_process_and_a_missing_password_that_of_the_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def getuser() -> str:
            raise KeyError  # a container may run under a number that has no name

        monkeypatch.setenv("PGPASSWORD", SECRET)
        assert parse_dsn("postgresql://h/tasks")["password"] == SECRET
        monkeypatch.setattr("app.core.database.dsn.getuser", lambda: "ada")
        assert parse_dsn("postgresql://h/tasks")["user"] == "ada"
        monkeypatch.setattr("app.core.database.dsn.getuser", getuser)
        with pytest.raises(ValueError, match=r"^has no user, and the user of this process has no name$"):
            parse_dsn("postgresql://h/tasks")

    @pytest.mark.parametrize("address", ["a:1,[::2]:2,c/tasks", "/?host=a,[::2],c&port=1,2,5432"])
    def test_several_hosts_are_tried_in_order_until_one_is_writable(self, address: str) -> None:
        assert addresses(f"postgresql://ada@{address}") == [("a", 1), ("::2", 2), ("c", 5432)]
        assert parse_dsn(f"postgresql://ada@{address}")["target_session_attrs"] == "read-write"


class TestParameters:
    @pytest.mark.parametrize(
        ("query", "argument", "value"),
        [
            ("", "timeout", 10),
            ("connect_timeout=0", "timeout", 10),
            ("connect_timeout=60", "timeout", 60),
            ("", "server_settings", {"application_name": "tasks-api"}),
            ("application_name=a+b", "server_settings", {"application_name": "a+b"}),
            ("", "target_session_attrs", "any"),
            ("target_session_attrs=primary", "target_session_attrs", "primary"),
            ("user=grace", "user", "grace"),
            ("password=p%26w", "password", "p&w"),
            ("dbname=other", "database", "other"),
        ],
    )
    def test_a_parameter_becomes_an_argument_of_asyncpg(self, query: str, argument: str, value: Any) -> None:
        assert parse_dsn(f"postgresql://ada@h/tasks?{query}")[argument] == value

    @pytest.mark.parametrize(
        "query",
        [
            "connection_limit=1&pool_timeout=0&schema=public",  # Prisma
            "pgbouncer=true&socket_timeout=5&sslaccept=accept_invalid_certs",
            "sslmode=require&uselibpqcompat=true",  # node-postgres
            "currentSchema=public&prepareThreshold=5&ssl=true",  # JDBC
            "pool=5&encoding=unicode",  # Rails
            "conn_max_age=600&client_encoding=UTF8",  # Django
            "pool_max_conns=10",  # pgx
            "keepalives_idle=30&fallback_application_name=a",  # libpq
            "sslmode=require&supa=base-pooler.x",
        ],
    )
    def test_parameters_of_other_programs_that_change_nothing_are_dropped_and_reported(self, query: str) -> None:
        plain = "&".join(part for part in query.split("&") if part.startswith(("pgbouncer", "ssl=", "sslmode")))
        dropped = sorted(part.split("=")[0] for part in query.split("&") if part not in plain.split("&"))

        arguments = parse_dsn(f"postgresql://ada@h/tasks?{query}")
        expected = parse_dsn(f"postgresql://ada@h/tasks?{plain}")
        assert arguments | {"ssl": None} == expected | {"ssl": None}
        assert type(arguments["ssl"]) is type(expected["ssl"])
        warning = f"has parameters of another program, which change nothing here: {', '.join(dropped)}"
        assert unused(f"postgresql://ada@h/tasks?{query}") == warning
        assert unused(f"postgresql://ada@h/tasks?{plain}") is None


class TestEncryption:
    @pytest.mark.parametrize(
        ("query", "mode"),
        [
            ("", "prefer"),
            ("sslmode=disable", "disable"),
            ("ssl=false", "prefer"),
            ("ssl=disable", "disable"),
            ("ssl=allow", "allow"),
            ("sslmode=disable&ssl=prefer", "prefer"),
        ],
    )
    def test_a_mode_below_require_is_left_to_the_driver_and_reported_if_any_host_is_another_machine(
        self, query: str, mode: str
    ) -> None:
        dsn = f"postgresql://ada@localhost,db.example.com/tasks?{query}"

        assert parse_dsn(dsn)["ssl"] == mode
        assert insecurity(dsn) == f"the connection may not be encrypted, because sslmode is {mode}"

    @pytest.mark.parametrize(
        "query",
        ["sslmode=require", "ssl=true", "ssl=require", "sslmode=prefer&ssl=require", "sslmode=require&ssl=false"],
    )
    def test_mode_require_encrypts_and_the_missing_verification_is_reported(self, query: str) -> None:
        dsn = f"postgresql://ada@db.example.com/tasks?{query}"

        assert is_verified(dsn) == (False, False)
        assert insecurity(dsn) == "the connection is encrypted but not verified, because sslmode is require"

    @pytest.mark.parametrize(
        ("query", "name_too"),
        [
            ("sslmode=verify-full", True),
            ("sslmode=verify-ca", False),
            ("ssl=verify-full", True),
            ("ssl=verify-ca", False),
            ("sslmode=require&ssl=verify-full", True),
            ("sslmode=verify-full&ssl=true", True),
            ("channel_binding=require", True),
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

        assert is_verified(dsn) == (True, name_too)
        trusts_only_root = len(parse_dsn(dsn)["ssl"].get_ca_certs()) == 1
        assert trusts_only_root is ("{root}" in query)
        assert insecurity(dsn) is None

    @pytest.mark.parametrize("host", ["", "localhost", "127.0.0.1:5433", "[::1]", "%2Frun%2Fpostgresql"])
    def test_no_insecurity_is_reported_for_a_host_on_this_machine(self, host: str) -> None:
        assert insecurity(f"postgresql://ada@{host}/tasks") is None

    @pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
    def test_only_sslnegotiation_direct_begins_with_tls(self, mode: str) -> None:
        dsn = f"postgresql://ada@h/tasks?sslmode={mode}&sslnegotiation="

        assert [parse_dsn(dsn + value)["direct_tls"] for value in ("direct", "postgres")] == [True, False]


class TestPreparedStatements:
    @pytest.mark.parametrize(
        ("address", "setting", "prepares"),
        [
            ("a,b/tasks", None, True),
            ("/tasks?host=/run/postgresql", None, True),
            (f"{POOLED}:6543/tasks?pgbouncer=false", None, True),
            (f"{POOLED}/tasks?pgbouncer=true", None, False),
            ("h/tasks?prepared_statement_cache_size=0", None, False),
            ("h/tasks?statement_cache_size=0&prepared_statement_cache_size=100", None, False),
            ("h/tasks?statement_cache_size=100", None, True),
            ("h/tasks?statement_cache_size=0", True, True),
            ("aws-0-eu-west-1.Pooler.supabase.com/tasks", None, False),
            ("pgbouncer/tasks", None, False),
            ("a,b:6543/tasks", None, False),
            ("h:6432/tasks", None, False),
            ("h:6432/tasks", True, True),
            ("h/tasks", False, False),
        ],
    )
    def test_statements_are_prepared_unless_a_pooler_may_mix_them_up_or_a_setting_decides(
        self, address: str, setting: bool | None, *, prepares: bool
    ) -> None:
        arguments = parse_dsn(f"postgresql://ada@{address}", prepares=setting)

        assert arguments.get("statement_cache_size") == (None if prepares else 0)


DSN: Final = "postgresql://ada:s3cret@db.example.com/tasks"
FORM: Final = "must look like postgresql://user:password@host/database"
OTHER: Final = f"has a scheme that is not supported; it {FORM}"
PLACEHOLDER: Final = "has a placeholder such as <password>, [YOUR-PASSWORD] or **** in it; put the real value there"
UNSUPPORTED: Final = "has a parameter that is not supported"
CONTRADICTION: Final = "has sslmode=disable or ssl=disable, but its host or another parameter asks for encryption"
UNREADABLE: Final = "has an sslrootcert that is no readable file of PEM certificates"
NO_PORT: Final = "has a port that is no number from 1 to 65535, or an IPv6 address without brackets"
INVISIBLE: Final = "has a line break or another invisible character in it; remove it"


class TestRefusal:
    @pytest.mark.parametrize(
        ("address", "message"),
        [
            ("a,b,c/tasks?port=1,2", "has another number of ports than of hosts"),
            ("h/tasks?SSLMODE=s3cret", f"{UNSUPPORTED}: SSLMODE"),
            (
                "h/tasks?options=s3cret&sslmode=require&colour=s3cret",
                f"{UNSUPPORTED}: colour, options \\(only endpoint=… of Neon is\\)$",
            ),
            ("h/tasks?schema=s3cret", f"{UNSUPPORTED}: schema \\(set search_path with ALTER ROLE\\)$"),
            ("h/tasks?currentSchema=publicity", f"{UNSUPPORTED}: currentSchema \\(set search_path"),
            ("h/tasks?statement_timeout=1", f"{UNSUPPORTED}: statement_timeout \\(set it with ALTER"),
            ("h/tasks?prepareThreshold=0", f"{UNSUPPORTED}: prepareThreshold \\(set DATABASE_PREPARED"),
            ("h/tasks?sslcert=s3cret", f"{UNSUPPORTED}: sslcert \\(client certificates are not supported\\)$"),
            ("h/tasks?sslaccept=strict", f"{UNSUPPORTED}: sslaccept \\(use sslmode=verify-full\\)$"),
            ("h/tasks?uselibpqcompat=false", f"{UNSUPPORTED}: uselibpqcompat$"),
            ("h/tasks?pool=true&client_encoding=latin1", f"{UNSUPPORTED}: client_encoding, pool$"),
            ("h/tasks?sslmode=no-verify", "has sslmode=no-verify of node-postgres; use require, which does not verify"),
            ("h/tasks?ssl=no-verify", "has sslmode=no-verify of node-postgres"),
            (f"{NEON}/tasks?options=-c statement_timeout=1s", f"{UNSUPPORTED}: options"),
            (f"{NEON}/tasks?options=endpoint=a b", f"{UNSUPPORTED}: options"),
            (f"{NEON}/tasks?options=", f"{UNSUPPORTED}: options"),
            ("h/tasks?s3cret@db.example.com/tasks", f"{UNSUPPORTED}: its name is not shown"),
            ("h/tasks?sslmode=require&sslmode=s3cret", "has a parameter that is there twice: sslmode"),
            ("h/tasks?sslmode=REQUIRE", "has an unknown sslmode; use "),
            ("h/tasks?ssl=s3cret", "has an unknown ssl; use "),
            (
                "h/tasks?ssl=True",
                "has an unknown ssl; use one of true, false, disable, allow, prefer, require, verify-ca, verify-full",
            ),
            ("h/tasks?statement_cache_size=s3cret", "has an unknown statement_cache_size; use a whole number, "),
            ("h/tasks?prepared_statement_cache_size=-1", "has an unknown prepared_statement_cache_size; use "),
            ("h/tasks?channel_binding=s3cret", "has an unknown channel_binding; use "),
            ("h/tasks?sslnegotiation=s3cret", "has an unknown sslnegotiation; use "),
            ("h/tasks?gssencmode=require", "has an unknown gssencmode; use "),
            ("h/tasks?target_session_attrs=read-only", "has an unknown target_session_attrs; use "),
            ("h/tasks?pgbouncer=1", "has an unknown pgbouncer; use "),
            ("h/tasks?connect_timeout=61", "has an unknown connect_timeout; use "),
            ("h/tasks?connect_timeout=", "has an unknown connect_timeout; use "),
            (f"{NEON}/tasks?sslmode=disable", CONTRADICTION),
            ("h/tasks?sslmode=disable&channel_binding=require", CONTRADICTION),
            ("h/tasks?sslmode=disable&sslrootcert=/etc/root.crt", CONTRADICTION),
            (f"{NEON}/tasks?ssl=disable", CONTRADICTION),
            ("h/tasks?sslmode=disable&ssl=true", CONTRADICTION),
            ("h/tasks?ssl=disable&sslmode=require", CONTRADICTION),
            ("h/tasks?sslnegotiation=direct", "has sslnegotiation=direct, which needs sslmode=require, verify-ca"),
            ("h/tasks?sslmode=verify-full&sslrootcert=/nowhere/root.crt", UNREADABLE),
            (f"h/tasks?sslmode=verify-full&sslrootcert={__file__}", UNREADABLE),
        ],
    )
    def test_a_wrong_parameter_is_named_and_its_value_is_not_quoted(self, address: str, message: str) -> None:
        with pytest.raises(ValueError, match=f"^{message}") as caught:
            parse_dsn(f"postgresql://ada:s3cret@{address}")

        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("dsn", "sentence"),
        [
            *(
                (f"postgresql://ada:s3cret@{address}", NO_PORT)
                for address in (
                    *("h:65536/tasks", "h:0/tasks", "h:port/tasks", "h:/tasks?sslmode=s3cret", "h:1:1/tasks"),
                    *("h:port", "::1:5432/tasks", "h/tasks?port=s3cret", "h/tasks?port=0"),
                )
            ),
            *((f"{text}://ada:s3cret@h:5432/tasks>", FORM) for text in ("<postgresql", "`postgresql")),
            *((f"postgresql:{text}", FORM) for text in ("/ada:s3cret@h/d", "ada:s3cret@h/d")),
            ("postgresql://ada:s3cret@db example.com/tasks", FORM),
            *(
                (text, INVISIBLE)
                for text in (f"{DSN}\n", f"{DSN}\u200b", f"\u200b{DSN}", f"{DSN[:20]}\u00a0{DSN[20:]}")
            ),
            *((f"{DSN}?application_name=%00", INVISIBLE), ("postgresql://ada:s3cret%00@h/d", INVISIBLE)),
            ("postgresql://ada:x@s3cret?host=a@db.example.com/tasks", FORM),
            *((text, f"has no scheme; it {FORM}") for text in ("", "h/tasks", "h:5432/d", "ada:s3cret@h/d", "//h/d")),
            ("mysql://ada:s3cret@h/tasks", f"has the scheme mysql; it {FORM}"),
            ("mysql+pymysql://ada:s3cret@h/tasks", f"has the scheme mysql; it {FORM}"),
            ("sqlite:///./s3cret.db", f"has the scheme sqlite; it {FORM}"),
            ("mongodb+srv://ada:s3cret@h/tasks", f"has the scheme mongodb; it {FORM}"),
            ("https://console.neon.tech/s3cret", f"has the scheme https; it {FORM}"),
            ("jdbc:postgresql://h/tasks?password=s3cret", f"has the scheme jdbc; it {FORM}"),
            ("prisma+postgres://h/?api_key=s3cret", f"has the scheme prisma; it {FORM}"),
            *((f"{text}://ada:s3cret@h/d", OTHER) for text in ("postgresql+pg8000", "postgre", "s3cret")),
            ("host=db.example.com user=ada password=s3cret", f"is of the form name=value; it {FORM}"),
            *(
                (f"{text}DATABASE_URL=postgresql://ada:s3cret@h/d", f"is of the form name=value; it {FORM}")
                for text in ("", "export ")
            ),
            (
                "psql -h s3cret",
                "is a command for psql; keep only what looks like postgresql://user:password@host/database",
            ),
            ("postgresql://user:password@host/database", PLACEHOLDER),
            (f"postgresql://user:password@{POOLED}/neondb", PLACEHOLDER),
            *(
                (f"postgresql://ada:{text}@h/d", PLACEHOLDER)
                for text in ("<s3cret>", "[YOUR-PASSWORD]", "${s3cret}", "npg_****", "your_password")
            ),
            ("postgresql://ada:s3cret@<host>/d", PLACEHOLDER),
            ("postgresql://ada:s3cret@[host]:5432/d", PLACEHOLDER),
        ],
    )
    def test_what_is_no_connection_string_is_described_and_not_quoted(self, dsn: str, sentence: str) -> None:
        with pytest.raises(ValueError, match=rf"^{re.escape(sentence)}$"):
            parse_dsn(dsn)

    @pytest.mark.parametrize("password", ["password", "a<b>c", "$ecret", "p[1]", "**", "x${"])
    def test_a_password_that_resembles_a_placeholder_is_accepted(self, password: str) -> None:
        assert parse_dsn(f"Postgresql://user:{password}@host.docker.internal/d")["password"] == password

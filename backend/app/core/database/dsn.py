"""Turns a connection string into the arguments of asyncpg.

The syntax and the parameters are those of libpq (https://www.postgresql.org/docs/current/libpq-connect.html).
`_PARAMETERS` lists the supported ones, `_UNUSED` those that are dropped. SQLAlchemy's schemes, its syntax for several
hosts, and the parameters that it passes to asyncpg are supported too.
"""

import os
import re
import socket
import ssl
from collections.abc import Iterable, Mapping
from getpass import getuser
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote

from app.core.security.loopback import is_loopback

_CONNECT_TIMEOUT: Final = 10  # seconds; a suspended Neon compute starts in less
_SOCKETS: Final = ("/run/postgresql", "/var/run/postgresql") if hasattr(socket, "AF_UNIX") else ()  # not on Windows
_PORT: Final = 5432
_PORT_MAX: Final = 65_535
_POOLER_PORTS: Final = frozenset({6432, 6543})  # PgBouncer and Supabase
_POOLER_NAMES: Final = ("pooler", "pgbouncer")

_SCHEME: Final = r"postgres(?:ql)?(?:\+asyncpg|\+psycopg\w*)?"
_HOST: Final = r"(?:\[[0-9A-Fa-f:.]+\]|[^:,@/?\[\]\s]*)(?::[0-9]{1,5})?"
_HOST_AND_PORT: Final = re.compile(r"(?P<name>\[[^\]]+\]|[^/:][^:]*|)(?::(?P<port>[0-9]{1,5}))?")
_NAME: Final = re.compile("[A-Za-z_]{1,40}")  # other text may belong to a password that is not percent-encoded
_ENDPOINT: Final = re.compile(r"(?:endpoint|project)=[A-Za-z0-9-]+")
_NEON_POOLER: Final = re.compile(r"-pooler(?=[.][A-Za-z0-9.-]+[.]neon[.]tech\b)", re.IGNORECASE)

_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_ENCRYPTED: Final = _MODES[3:]
_VERIFIED: Final = _MODES[4:]
_MODE_OF: Final = {"true": "require", "false": "prefer"}  # of `ssl`, which may also be one of _MODES
_UNPREPARED: Final = {"pgbouncer": "true", "statement_cache_size": "0", "prepared_statement_cache_size": "0"}
_NUMBERS: Final = {"connect_timeout": 60, "statement_cache_size": 9_999, "prepared_statement_cache_size": 9_999}
# The supported parameters and their allowed values. None allows any text.
_PARAMETERS: Final[Mapping[str, tuple[str, ...] | None]] = {
    **dict.fromkeys(("host", "port", "user", "password", "dbname", *_NUMBERS)),
    "application_name": None,
    "channel_binding": ("disable", "prefer", "require"),
    "gssencmode": ("disable", "prefer"),
    "options": None,
    "pgbouncer": ("true", "false"),
    "ssl": (*_MODE_OF, *_MODES),
    "sslmode": _MODES,
    "sslnegotiation": ("postgres", "direct"),
    "sslrootcert": None,
    "target_session_attrs": ("any", "primary", "read-write"),
}
# Pools, timeouts, caches and keepalives of Prisma, Rails, Django, JDBC, pgx and libpq; this service has its own.
# Also names of the application, and marks that Vercel sets for Supabase.
_OWN: Final = """
connection_limit max_connection_lifetime max_idle_connection_lifetime pool_timeout socket_timeout
checkout_timeout idle_timeout reaping_frequency conn_health_checks conn_max_age disable_server_side_cursors
connectTimeout loginTimeout socketTimeout tcpKeepAlive defaultRowFetchSize preparedStatementCacheQueries
reWriteBatchedInserts pool_health_check_period pool_max_conn_idle_time pool_max_conn_lifetime pool_max_conns
pool_min_conns keepalives keepalives_count keepalives_idle keepalives_interval tcp_user_timeout
ApplicationName fallback_application_name supa workaround
"""
# Parameters of other programs that change nothing here, with the values for which this is so.
_UNUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(_OWN.split(), ".*"),
    **dict.fromkeys(("charset", "client_encoding", "encoding"), "(?i:utf-?8|unicode)"),
    **dict.fromkeys(("currentSchema", "schema"), "public"),
    "pool": "[0-9]+",  # Rails
    "prepareThreshold": "[1-9][0-9]*",  # JDBC
    "sslaccept": "accept_invalid_certs",  # Prisma
    "uselibpqcompat": "true",  # node-postgres: read sslmode as libpq does
}
_ALTER: Final = "with ALTER ROLE"
# What to do instead of parameters that would change something.
_INSTEAD: Final[Mapping[str, str]] = {
    **dict.fromkeys(("currentSchema", "schema", "schema_search_path", "search_path"), f"set search_path {_ALTER}"),
    **dict.fromkeys(("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout"), f"set it {_ALTER}"),
    **dict.fromkeys(("prepare", "prepareThreshold", "prepared_statements"), "set DATABASE_PREPARED_STATEMENTS"),
    **dict.fromkeys(("sslcert", "sslidentity", "sslkey", "sslpassword"), "client certificates are not supported"),
    "options": "only endpoint=… of Neon is",
    "sslaccept": "use sslmode=verify-full",
}

_PLACEHOLDER: Final = "has a placeholder such as <password>, [YOUR-PASSWORD] or **** in it; put the real value there"
_NO_PORT: Final = f"has a port that is no number from 1 to {_PORT_MAX}, or an IPv6 address without brackets"
_WRONG_PORT: Final = r"@[\w.-]*:(?![0-9]{1,5}(?:[/?,]|\Z))[^@/?,\]]*(?:[/?,][^@]*)?\Z"
_INVISIBLE: Final = "has a line break or another invisible character in it; remove it"
_FORM: Final = "postgresql://user:password@host/database"
_MALFORMED: Final = f"must look like {_FORM}"
# What is pasted instead of a connection string, the first that applies. A sentence shows nothing but the named scheme.
_MISTAKES: Final = (
    (
        r"[:/@](?:<[^<>@/]*>|\[(?![0-9a-f:.]*:)[^\[\]@/]*\])(?=[:/@?]|\Z)|\$\{\w+\}|:\w*\*{4,}@|:your[_-]?password@",
        _PLACEHOLDER,
    ),
    (r"//user:password@(?:host[:/]|ep-cool-darkness-)", _PLACEHOLDER),
    (r"\Apsql\b", f"is a command for psql; keep only what looks like {_FORM}"),
    (r"\A(?:export\s+)?\w+\s*=", f"is of the form name=value; it {_MALFORMED}"),
    (
        r"\A(https?|jdbc|mariadb|mongodb|mssql|mysql|prisma|redis|sqlite|sqlserver)\b[^/]*:",
        f"has the scheme {{}}; it {_MALFORMED}",
    ),
    (rf"\A(?!{_SCHEME}:)[a-z][\w+.-]*://", f"has a scheme that is not supported; it {_MALFORMED}"),
    (r"\A(?!postgres|.*://)", f"has no scheme; it {_MALFORMED}"),
)


class _Host(NamedTuple):
    name: str
    port: int

    @property
    def is_neon(self) -> bool:
        return self.name.lower().rstrip(".").endswith(".neon.tech")

    @property
    def is_local(self) -> bool:
        return self.name.startswith("/") or is_loopback(self.name)

    @property
    def mixes_clients(self) -> bool:
        """Whether this may be a pooler that does not keep the prepared statements of its clients apart. Neon's does."""
        is_pooler = self.port in _POOLER_PORTS or any(name in self.name.lower() for name in _POOLER_NAMES)
        return is_pooler and not self.is_neon


def parse_dsn(dsn: str, *, prepares: bool | None = None) -> dict[str, Any]:
    """Returns the arguments of `asyncpg.connect`. `prepares` says whether statements may be prepared. With None, the
    hosts, the ports, the parameter `pgbouncer` and the sizes of the caches decide.

    The certificate is verified for `sslmode=verify-ca` and `verify-full`, with `channel_binding=require`, with
    `sslrootcert`, and for every host of Neon. Raises ValueError, which names the invalid part but never its value.
    """
    options, hosts, mode = _parse(dsn)
    if prepares is None:
        prepares = not _UNPREPARED.items() & options.items() and not any(host.mixes_clients for host in hosts)
    connect_args: dict[str, Any] = {
        "host": [host.name for host in hosts],
        "port": [host.port for host in hosts],
        "user": options.get("user") or _login(),
        "password": options.get("password", os.environ.get("PGPASSWORD", "")),  # with None, asyncpg reads ~/.pgpass
        "database": options.get("dbname"),
        "ssl": _tls(mode, options) if mode in _ENCRYPTED else mode,
        "direct_tls": _starts_with_tls(mode, options),
        "target_session_attrs": options.get("target_session_attrs", "any" if len(hosts) == 1 else "read-write"),
        "timeout": int(options.get("connect_timeout", "0")) or _CONNECT_TIMEOUT,
        "server_settings": {"application_name": options.get("application_name", "tasks-api")},
    }
    if not prepares:
        connect_args["statement_cache_size"] = 0
    return connect_args


def _login() -> str:
    """Returns the user of this process, as libpq does. A container may give it no name. Raises ValueError."""
    try:
        return os.environ.get("PGUSER") or getuser()
    except (KeyError, OSError):  # until and since Python 3.13
        raise ValueError("has no user, and the user of this process has no name") from None


def insecurity(dsn: str) -> str | None:
    """Returns a warning if the connection may be unencrypted or unverified, else None. Raises ValueError."""
    _, hosts, mode = _parse(dsn)
    if mode in _VERIFIED or all(host.is_local for host in hosts):
        return None
    what = "is encrypted but not verified" if mode == "require" else "may not be encrypted"
    return f"the connection {what}, because sslmode is {mode}"


def unused(dsn: str) -> str | None:
    """Returns a warning with the names of the parameters that are dropped, else None. Raises ValueError."""
    names = _parse(dsn)[0].keys() - _PARAMETERS.keys()
    return _with_names("has parameters of another program, which change nothing here", names) if names else None


def unpooled(dsn: str) -> str:
    """Returns `dsn` with the host of a Neon pooler replaced by the direct host."""
    return _NEON_POOLER.sub("", dsn)


def _parse(dsn: str) -> tuple[dict[str, str], list[_Host], str]:
    """Returns the parameters, the hosts in the order in which they are tried, and the effective `sslmode`."""
    options = _options(dsn)
    hosts = _hosts(options)
    is_neon = any(host.is_neon for host in hosts)
    _check_parameters(options, is_neon=is_neon)
    return options, hosts, _sslmode(options, is_neon=is_neon)


def _url_pattern(password: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?i:{_SCHEME})://"
        rf"(?:(?P<user>[^:@/?]*)(?::(?P<password>{password}))?@)?"
        rf"(?P<host>{_HOST}(?:,{_HOST})*)(?:/(?P<dbname>[^?@]*))?(?:[?](?P<query>.*))?",
        re.DOTALL,
    )


# The second pattern allows a password that is not percent-encoded.
_URLS: Final = (_url_pattern("[^@/?]*"), _url_pattern(".*?"))


def _options(dsn: str) -> dict[str, str]:
    """Returns the parameters and the parts of the URL, under the names of libpq. A parameter overrides a part."""
    for pattern, sentence in _MISTAKES:
        if mistake := re.search(pattern, dsn, re.IGNORECASE | re.DOTALL):
            raise ValueError(sentence.format(*mistake.groups()))
    match = _URLS[0].fullmatch(dsn) or _URLS[1].fullmatch(dsn)
    if not dsn.isprintable():
        raise ValueError(_INVISIBLE)
    if match is None:
        raise ValueError(_NO_PORT if re.search(_WRONG_PORT, dsn) else _MALFORMED)
    options = {name: unquote(match[name]) for name in ("user", "password", "dbname") if match[name]}
    if match["host"]:
        options["host"] = match["host"]
    given: dict[str, list[str]] = {}
    for name, value in parse_qsl((match["query"] or "").replace("+", "%2B"), keep_blank_values=True):
        given.setdefault(name, []).append(value)
    if duplicates := [name for name, values in given.items() if len(values) > 1 and name not in {"host", "port"}]:
        raise ValueError(_with_names("has a parameter that is there twice", duplicates))
    options |= {name: ",".join(values) for name, values in given.items()}
    if any("\0" in value for value in options.values()):
        raise ValueError(_INVISIBLE)
    return {**options, "host": options.get("host") or ",".join((*_SOCKETS, "localhost"))}


def _hosts(options: Mapping[str, str]) -> list[_Host]:
    """Returns the hosts in the order in which they are tried."""
    names = options["host"].split(",")
    ports = options.get("port", "").split(",")
    if len(ports) == 1:
        ports *= len(names)
    if len(ports) != len(names):
        raise ValueError("has another number of ports than of hosts")
    return list(map(_host, names, ports))


def _host(name: str, port: str) -> _Host:
    match = _HOST_AND_PORT.fullmatch(name)  # None for a socket directory and for an IPv6 address without brackets
    if match:
        name, port = unquote(match["name"].strip("[]")), match["port"] or port
    if "@" in name:
        raise ValueError(_MALFORMED)
    if not re.fullmatch("[0-9]{0,5}", port) or not 0 < int(port or _PORT) <= _PORT_MAX:
        raise ValueError(_NO_PORT)
    return _Host(name or "localhost", int(port or _PORT))


def _with_names(sentence: str, names: Iterable[str], advice: Mapping[str, str] = MappingProxyType({})) -> str:
    shown = [name for name in sorted(names) if _NAME.fullmatch(name)]
    shown = [f"{name} ({advice[name]})" if name in advice else name for name in shown]
    return f"{sentence}: {', '.join(shown) or 'its name is not shown'}"


def _check_parameters(options: Mapping[str, str], *, is_neon: bool) -> None:
    """Raises ValueError for an unknown parameter or value. `options` may only name the endpoint of a Neon host, and is
    not sent: Neon finds the endpoint by the name of the host.
    """
    unknown = {name for name in options.keys() - _PARAMETERS.keys() if not _is_unused(name, options[name])}
    if "options" in options and not (is_neon and _ENDPOINT.fullmatch(options["options"])):
        unknown |= {"options"}
    if unknown:
        raise ValueError(_with_names("has a parameter that is not supported", unknown, _INSTEAD))
    if "no-verify" in (options.get("sslmode"), options.get("ssl")):
        message = "has sslmode=no-verify of node-postgres; use require, which does not verify either, or verify-full"
        raise ValueError(message)
    for name, values in _PARAMETERS.items():
        if values and options.get(name, values[0]) not in values:
            raise ValueError(f"has an unknown {name}; use one of {', '.join(values)}")
    for name, maximum in _NUMBERS.items():  # 0 means the default of connect_timeout, as in libpq
        if not re.fullmatch("0|[1-9][0-9]{0,3}", number := options.get(name, "0")) or int(number) > maximum:
            raise ValueError(f"has an unknown {name}; use a whole number, {maximum} at most")


def _is_unused(name: str, value: str) -> bool:
    return name in _UNUSED and bool(re.fullmatch(_UNUSED[name], value, re.DOTALL))


def _sslmode(options: Mapping[str, str], *, is_neon: bool) -> str:
    """Returns the requested mode, or a stricter one. asyncpg does not support channel binding. Verification of the
    certificate for the name of the host is used instead, and protects from the same attacker.
    """
    given = [_MODE_OF.get(options[name], options[name]) for name in ("sslmode", "ssl") if name in options]
    mode = max(given, key=_MODES.index, default="prefer")
    root = options.get("sslrootcert")
    verified = is_neon or options.get("channel_binding") == "require" or root == "system"
    if "disable" in given and (verified or root or mode in _ENCRYPTED):
        raise ValueError("has sslmode=disable or ssl=disable, but its host or another parameter asks for encryption")
    if verified:
        return "verify-full"
    return "verify-ca" if root and mode not in _VERIFIED else mode


def _tls(mode: str, options: Mapping[str, str]) -> ssl.SSLContext:
    root = options.get("sslrootcert", "system")
    try:
        context = ssl.create_default_context(cafile=None if root == "system" else root)
    except (OSError, ValueError):
        raise ValueError("has an sslrootcert that is no readable file of PEM certificates") from None
    context.set_alpn_protocols(["postgresql"])
    if root != "system":  # as in libpq; private authorities seldom meet all of RFC 5280
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = mode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if mode in _VERIFIED else ssl.CERT_NONE
    return context


def _starts_with_tls(mode: str, options: Mapping[str, str]) -> bool:
    """Returns whether the connection starts with the TLS handshake, without asking the server for TLS first."""
    direct = options.get("sslnegotiation") == "direct"
    if direct and mode not in _ENCRYPTED:
        raise ValueError("has sslnegotiation=direct, which needs sslmode=require, verify-ca or verify-full")
    return direct

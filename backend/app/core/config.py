"""Settings, read once from the environment and `.env`. README.md and .env.example repeat their descriptions."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.core import telemetry
from app.core.database.dsn import insecurity, parse_dsn, unpooled, unused
from app.core.environment import check_environment, drop_foreign_host, name_warnings, unwrapped
from app.core.errors import StartupError
from app.core.origins import check_origin, split_origins
from app.core.project import home
from app.core.security.loopback import is_host, is_loopback
from app.core.security.tokens import check_secret

_UNCHECKED: Final = "unchecked"
_PLAIN_HTTP: Final = (
    "AUTH_JWKS_URL: the keys come over plain http, so whoever controls that network can sign in as any user"
)

_FRONTENDS = tuple(f"http://{host}:{port}" for port in (3000, 5173) for host in ("localhost", "127.0.0.1"))
_NO_CLAIM: Final = re.compile(r"(?i:\[|\*\Z|(?!(?-i:unchecked))unchecked\Z)")
_CLAIM_PATH: Final = re.compile(r"(?!.*://.*\.)[^.\s]+(\.[^.\s]+)*")  # a URL with a dot would be taken for nested names
_DIRECTORY: Final = re.compile(r"(?!\$|\w{2,}:/).*")  # a path has one slash where a URL has two
_ROOT_PATH: Final = re.compile(r"(/(?!\.\.?(/|\Z))[A-Za-z0-9._~-]+)*/?")
_PSQL = re.compile(r"""\Apsql\s+(["']?)(postgres.*)\1\Z""")  # the command that Neon's console shows


def _jwks_url(url: str) -> str:
    from app.core.security.jwks import check_jwks_url  # noqa: PLC0415  # importing httpx takes a tenth of a start-up

    return check_jwks_url(url)


def _secret(secret: SecretStr) -> SecretStr:
    check_secret(secret.get_secret_value())
    return secret


def _excludes_secret(url: str, info: ValidationInfo) -> str:
    if info.data.get("auth_jwt_secret"):
        raise ValueError("cannot be used together with AUTH_JWT_SECRET or BETTER_AUTH_SECRET; unset one of them")
    return url


def _is_authentication_configured(info: ValidationInfo) -> bool:
    """An invalid setting counts as configured, so that it is not also reported as missing."""
    return bool(info.data.get("auth_jwt_secret", True) or info.data.get("auth_jwks_url", True))


def _required_with_jwks_url(value: str | None, info: ValidationInfo) -> str | None:
    """An issuer may sign tokens for other services with its published keys. A secret is shared only with this one."""
    if value is None and info.data.get("auth_jwks_url"):
        raise ValueError(f"must be set with AUTH_JWKS_URL, to what your tokens have or to `{_UNCHECKED}`")
    return None if value == _UNCHECKED else value


def _claim_value(value: str) -> str:
    """A value that no token has would refuse every request."""
    if _NO_CLAIM.match(value):
        raise ValueError(f"must be one value, exactly as your tokens have it, or `{_UNCHECKED}` in small letters")
    return value


def _claim_path(path: str) -> str:
    if not _CLAIM_PATH.fullmatch(path):
        raise ValueError(
            "must be a name such as sub, or nested names as in user.id; a name that has a dot itself cannot be used"
        )
    return path


def _directory(path: Path) -> Path:
    if not _DIRECTORY.fullmatch(str(path)) or not str(path).isprintable():
        raise ValueError(
            "must be the path of a directory, not a URL or $VARIABLE, and printable UTF-8 text on one line"
        )
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("begins with ~, but that home directory is not known") from None


def _host(host: str, info: ValidationInfo) -> str:
    if not is_host(host):
        raise ValueError(
            "must be one address or name alone, such as 127.0.0.1 or ::1, without scheme, port and brackets"
        )
    if not is_loopback(host) and not _is_authentication_configured(info):
        raise ValueError(
            "must be a loopback address such as 127.0.0.1 as long as there is no authentication; "
            "set AUTH_JWT_SECRET or AUTH_JWKS_URL to listen elsewhere"
        )
    return host


def _root_path(path: str) -> str:
    if not _ROOT_PATH.fullmatch(path):
        raise ValueError("must be a path such as /svc: names of letters, digits and -._~ with one / before each")
    return path.removesuffix("/")


def _log_level(level: str) -> str:
    return {"warn": "warning"}.get(level.lower(), level.lower())


def _mcp(switch: str) -> str:
    if switch == "on" and find_spec("mcp_types") is None:  # older versions of the SDK do not have it
        raise ValueError("needs the packages of requirements-mcp.txt, see docs/agents.md")
    return switch


def _public_url(url: str | None, info: ValidationInfo) -> str | None:
    """Without MCP the name may belong to something else, such as a frontend."""
    if url is None or info.data.get("mcp", "off") == "off":
        return None
    parts = urlsplit(url)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    if url != origin + parts.path or not _ROOT_PATH.fullmatch(parts.path) or path.endswith("/mcp"):
        raise ValueError("must be a URL such as https://tasks.example.com or https://example.com/svc, without /mcp")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ValueError("must begin with https://, or tokens could be read on their way")
    if not (info.data.get("auth_issuer", "https://") or "").startswith(("https://", "http://")):
        raise ValueError("needs AUTH_ISSUER beside it, and there the URL of the issuer, where agents get their token")
    return check_origin(origin) + path


def _dsn(secret: SecretStr) -> SecretStr:
    dsn = _PSQL.sub(r"\2", secret.get_secret_value())
    parse_dsn(dsn)
    return SecretStr(dsn)


def _requires_database_url(secret: SecretStr, info: ValidationInfo) -> SecretStr:
    if "database_url" in info.data and info.data["database_url"] is None:
        raise ValueError("needs DATABASE_URL beside it")
    return secret


Dsn = Annotated[SecretStr, AfterValidator(_dsn)]
_RequiredClaim = Annotated[Annotated[str, AfterValidator(_claim_value)] | None, AfterValidator(_required_with_jwks_url)]


class Settings(BaseSettings):
    """The settings of the service, frozen. Raises pydantic's ValidationError, which names each invalid setting."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    database_url: Dsn | None = Field(
        default=None, description="URL of a PostgreSQL 14 to 18. If unset, an embedded PostgreSQL is started."
    )
    database_url_unpooled: Annotated[Dsn, AfterValidator(_requires_database_url)] | None = Field(
        default=None,
        description="Direct URL for migrations. If unset: DATABASE_URL, with the direct host for a Neon pooler.",
    )
    database_prepared_statements: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Set `off` behind a pooler without prepared statements. `auto` decides by host and port.",
    )
    database_pool_size: int = Field(
        default=10,
        ge=1,
        le=100,
        description="Maximum number of connections per worker. The total is workers times this number.",
    )
    database_pool_timeout: float = Field(
        default=5,
        gt=0,
        le=60,
        description="Seconds to wait for a free connection before a 503, at least 10 while a connection is opening.",
    )
    concurrency_limit: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="Maximum requests per worker that use or wait for the database. One user may have half. "
        "Further ones get a 503.",
    )
    embedded_postgres_dir: Annotated[Path, AfterValidator(_directory)] = Field(
        default=Path(".data/postgres"), description="Data directory of the embedded PostgreSQL."
    )
    auth_jwt_secret: Annotated[SecretStr, AfterValidator(_secret)] | None = Field(
        default=None,
        validation_alias=AliasChoices("auth_jwt_secret", "better_auth_secret"),
        description="Secret that signs the tokens (HS256), at least 32 bytes. BETTER_AUTH_SECRET is an alias.",
    )
    auth_jwks_url: Annotated[str, AfterValidator(_jwks_url), AfterValidator(_excludes_secret)] | None = Field(
        default=None, description="URL of the issuer's public keys (EdDSA, ES256, RS256), instead of a secret."
    )
    auth_issuer: _RequiredClaim = Field(
        default=None,
        description="Required `iss` claim of tokens. Must be set with AUTH_JWKS_URL; `unchecked` disables the check.",
    )
    auth_audience: _RequiredClaim = Field(
        default=None,
        description="Required `aud` claim of tokens. Must be set with AUTH_JWKS_URL; `unchecked` disables the check.",
    )
    auth_user_id_claim: Annotated[str, AfterValidator(_claim_path)] = Field(
        default="sub",
        description="Claim that holds the user id. A dot separates the names of nested objects, as in `user.id`.",
    )
    auth_leeway_seconds: float = Field(
        default=30, ge=0, le=60, description="Seconds by which the clocks of issuer and service may differ."
    )
    host: Annotated[str, AfterValidator(_host)] = Field(
        default="127.0.0.1", description="Address to listen on. Without authentication it must be a loopback address."
    )
    port: int = Field(default=8000, ge=1, le=65_535, description="Port to listen on.")
    root_path: Annotated[str, AfterValidator(_root_path)] = Field(
        default="", description="Prefix that a proxy takes away from each path, such as `/svc`. Links begin with it."
    )
    web_concurrency: int = Field(default=1, ge=1, le=64, description="Number of worker processes.")
    shutdown_timeout: int = Field(
        default=10,
        ge=3,
        le=600,
        description="Maximum number of seconds from SIGTERM to exit. Requests in flight may use all but the last two.",
    )
    keep_alive_timeout: int = Field(
        default=75,
        ge=1,
        le=3_600,
        description="Seconds until an idle connection is closed. Let a proxy close its idle connections first.",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_log_level)] = Field(
        default="info",
        description="Lowest level of the log: `debug`, `info`, `warning` or `error`. "
        "Requests are `info`, replies of 500 and above `warning`.",
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="Format of the log. `auto` is `text` on a terminal and `json` elsewhere."
    )
    log_health: Literal["on", "off"] = Field(
        default="off", description="Set `on` to log successful health checks too. Those that fail are always logged."
    )
    log_client: Literal["none", "address", "user", "both"] = Field(
        default="none",
        description="What the log says of a client: its `address`, the `user` of its token, `both`, or `none`.",
    )
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(check_origin)], ...], NoDecode, BeforeValidator(split_origins)
    ] = Field(
        default=_FRONTENDS, description="Origins of browser frontends, with commas or as a JSON list. `*` is refused."
    )

    unknown_fields: Literal["ignore", "keep"] = Field(
        default="ignore",
        description="Unknown body fields are ignored, or with `keep` stored with the task and given back: "
        "at most 20 and 4 KiB.",
    )

    mcp: Annotated[Literal["on", "off"], AfterValidator(_mcp)] = Field(
        default="off",
        description="Set `on` to serve the operations as tools for agents at `/mcp`. Needs requirements-mcp.txt.",
    )
    public_url: Annotated[str | None, AfterValidator(_public_url)] = Field(
        default=None,
        description="URL of this service, such as `https://tasks.example.com`, so that agents can find the issuer.",
    )

    @model_validator(mode="before")
    @classmethod
    def _unwraps(cls, given: dict[str, Any]) -> dict[str, Any]:
        """A quoted secret stays as it is and is refused, because its issuer may sign with the quotation marks."""
        texts = [name for name in given if isinstance(given[name], str) and not name.endswith("_secret")]
        plain = given | {name: unwrapped(given[name]) for name in texts}
        return {name: value for name, value in plain.items() if value != ""}

    @model_validator(mode="after")
    def _requires_authentication(self) -> Self:
        for name in sorted(self.model_fields_set):
            if name.startswith("auth_") and not self.authenticates:
                raise ValueError(f"{name.upper()}: needs AUTH_JWT_SECRET or AUTH_JWKS_URL beside it")
        if self.serves_tools and not self.authenticates:
            raise ValueError(
                "MCP: needs AUTH_JWT_SECRET or AUTH_JWKS_URL beside it, because a tool acts for the user of a token"
            )
        return self

    @property
    def authenticates(self) -> bool:
        """Whether requests must carry a token."""
        return bool(self.auth_jwt_secret or self.auth_jwks_url)

    @property
    def keeps(self) -> bool:
        """Whether unknown fields of bodies are stored."""
        return self.unknown_fields == "keep"

    @property
    def serves_tools(self) -> bool:
        """Whether agents are served at `/mcp`."""
        return self.mcp == "on"

    @property
    def embedded_postgres_path(self) -> Path:
        """The data directory of the embedded PostgreSQL. A relative one is in the directory of `.env`."""
        return home() / self.embedded_postgres_dir

    @property
    def migration_dsn(self) -> str | None:
        """The connection string for migrations, or None for the embedded PostgreSQL."""
        if self.database_url_unpooled:
            return self.database_url_unpooled.get_secret_value()
        return unpooled(self.database_url.get_secret_value()) if self.database_url else None

    @property
    def warnings(self) -> list[str]:
        """Warnings for the operator, one sentence each. The names are read from the environment and `.env` again."""
        warnings = [*name_warnings(_names())]
        warnings += [
            f"{name.upper()}: {warning}"
            for name in ("database_url", "database_url_unpooled")
            if (secret := getattr(self, name))
            for check in (insecurity, unused)
            if (warning := check(secret.get_secret_value()))
        ]
        jwks = urlsplit(self.auth_jwks_url or "")
        return warnings + [_PLAIN_HTTP] * (jwks.scheme == "http" and not is_loopback(jwks.hostname or ""))

    @property
    def prepares(self) -> bool | None:
        """Whether statements are prepared. None means that host and port decide."""
        return {"on": True, "off": False}.get(self.database_prepared_statements)


def load_settings() -> Settings:
    """Returns the settings of this process. Raises StartupError with one line for each invalid setting."""
    drop_foreign_host()
    try:
        check_environment(_names())
        settings = Settings(_env_file=home() / ".env")
    except ValidationError as error:
        raise StartupError("\n".join(dict.fromkeys(map(_setting_error, error.errors())))) from None
    telemetry.check(settings.web_concurrency)
    return settings


def _names() -> set[str]:
    return {name.upper() for name in (*Settings.model_fields, "better_auth_secret")}


def _setting_error(error: ErrorDetails) -> str:
    sentence = error["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    name, *position = error["loc"] or ("",)
    if position and isinstance(position[0], int):
        sentence = f"item {position[0] + 1} {sentence}"
    return f"{str(name).upper()}: {sentence}" if name else sentence

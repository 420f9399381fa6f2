"""Settings, read once from the environment and `.env`. README.md and .env.example list them too."""

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self

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

from app.core.database.dsn import insecurity, parse_dsn, unpooled
from app.core.errors import StartupError
from app.core.security.loopback import is_loopback
from app.core.security.tokens import check_secret

UNCHECKED: Final = "unchecked"

_FRONTENDS = tuple(f"http://{host}:{port}" for port in (3000, 5173) for host in ("localhost", "127.0.0.1"))
# What a browser sends (RFC 6454 section 6.2): lower case, no path, no user.
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def _jwks_url(url: str) -> str:
    from app.core.security.jwks import check_jwks_url  # noqa: PLC0415  # its HTTP client is a tenth of a start without one

    return check_jwks_url(url)


def _split(text: object) -> object:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if isinstance(text, str) else text


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        message = "must list origins such as https://app.example.com, without a path and without *"
        raise ValueError(message)
    return text


def _secret(secret: SecretStr) -> SecretStr:
    check_secret(secret.get_secret_value())
    return secret


def _instead_of_secret(url: str, info: ValidationInfo) -> str:
    if info.data.get("auth_jwt_secret"):
        message = "cannot be used together with AUTH_JWT_SECRET or BETTER_AUTH_SECRET; unset one of them"
        raise ValueError(message)
    return url


def _authenticates(info: ValidationInfo) -> bool:
    """A setting that is wrong, and so is not among the data, is not also called missing."""
    return bool(info.data.get("auth_jwt_secret", True) or info.data.get("auth_jwks_url", True))


def _expected(value: str | None, info: ValidationInfo) -> str | None:
    """Keys that an issuer publishes may sign the tokens of other services too; a secret is shared for this one."""
    if value is None and info.data.get("auth_jwks_url"):
        message = f"must be set with AUTH_JWKS_URL, to what your tokens have or to `{UNCHECKED}`"
        raise ValueError(message)
    return value


def _host(host: str, info: ValidationInfo) -> str:
    if not is_loopback(host) and not _authenticates(info):
        message = (
            "must be a loopback address such as 127.0.0.1 as long as there is no authentication; "
            "set AUTH_JWT_SECRET or AUTH_JWKS_URL to listen elsewhere"
        )
        raise ValueError(message)
    return host


def _dsn(secret: SecretStr) -> SecretStr:
    dsn = secret.get_secret_value().strip()  # a file with a secret often ends with a new line
    parse_dsn(dsn)
    return SecretStr(dsn)


def _beside_pooled(secret: SecretStr, info: ValidationInfo) -> SecretStr:
    if "database_url" in info.data and info.data["database_url"] is None:
        message = "needs DATABASE_URL beside it"
        raise ValueError(message)
    return secret


Dsn = Annotated[SecretStr, AfterValidator(_dsn)]
_Expected = Annotated[str | None, AfterValidator(_expected)]


class Settings(BaseSettings):
    """Frozen. Raises pydantic's ValidationError naming each wrong setting."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: Dsn | None = Field(
        default=None, description="PostgreSQL to use, 14 to 18. Unset: an embedded PostgreSQL is started."
    )
    database_url_unpooled: Annotated[Dsn, AfterValidator(_beside_pooled)] | None = Field(
        default=None,
        description="Direct URL, for migrations. Unset: DATABASE_URL, for a pooler of Neon with the direct host.",
    )
    database_prepared_statements: Literal["auto", "on", "off"] = Field(
        default="auto", description="Set to `off` behind a pooler that cannot take them; `auto` tells by host and port."
    )
    database_pool_size: int = Field(
        default=5, ge=1, le=100, description="Connections per worker, at most. Total: workers times this."
    )
    database_pool_timeout: float = Field(
        default=5,
        gt=0,
        le=60,
        description="Seconds to wait for a free connection before a 503; at least 10 while one is being opened.",
    )
    concurrency_limit: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="Requests per worker that use or wait for the database; the next is answered 503 at once.",
    )
    embedded_postgres_dir: Path = Field(
        default=Path(".data/postgres"), description="Where the embedded PostgreSQL keeps its data."
    )
    auth_jwt_secret: Annotated[SecretStr, AfterValidator(_secret)] | None = Field(
        default=None,
        validation_alias=AliasChoices("auth_jwt_secret", "better_auth_secret"),
        description="Secret that tokens are signed with (HS256), 32 bytes or more. BETTER_AUTH_SECRET is another name.",
    )
    auth_jwks_url: Annotated[str, AfterValidator(_jwks_url), AfterValidator(_instead_of_secret)] | None = Field(
        default=None,
        description="Where the issuer publishes the keys of its tokens (EdDSA, ES256, RS256), instead of a secret.",
    )
    auth_issuer: _Expected = Field(
        default=None,
        description="The `iss` that tokens must have. With AUTH_JWKS_URL it must be set, if only to `unchecked`.",
    )
    auth_audience: _Expected = Field(
        default=None,
        description="The `aud` that tokens must have. With AUTH_JWKS_URL it must be set, if only to `unchecked`.",
    )
    auth_user_id_claim: str = Field(
        default="sub",
        pattern=r"^[^.\s]+(\.[^.\s]+)*$",
        description="The claim with the user id; dots lead into objects, as in `user.id`.",
    )
    auth_leeway_seconds: float = Field(
        default=30, ge=0, le=60, description="Seconds by which the clocks of issuer and service may differ."
    )
    host: Annotated[str, AfterValidator(_host)] = Field(
        default="127.0.0.1", description="Address to listen on. Loopback only, as long as there is no authentication."
    )
    port: int = Field(default=8000, ge=1, le=65_535, description="Port to listen on.")
    web_concurrency: int = Field(default=1, ge=1, le=64, description="Worker processes.")
    shutdown_timeout: int = Field(
        default=10,
        ge=3,
        le=600,
        description="Seconds from SIGTERM to the end, at most. Requests in flight have all but the last two.",
    )
    cors_origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_split)] = (
        Field(default=_FRONTENDS, description="Origins of browser frontends, separated by commas. Never `*`.")
    )

    @model_validator(mode="after")
    def _authenticates_if_told_how(self) -> Self:
        for name in sorted(self.model_fields_set):
            if name.startswith("auth_") and not self.authenticates:
                message = f"{name.upper()}: needs AUTH_JWT_SECRET or AUTH_JWKS_URL beside it"
                raise ValueError(message)
        return self

    @property
    def authenticates(self) -> bool:
        """Whether a request has to prove whose it is."""
        return bool(self.auth_jwt_secret or self.auth_jwks_url)

    @property
    def migration_dsn(self) -> str | None:
        """The connection string for migrations, or None for the embedded PostgreSQL."""
        if self.database_url_unpooled:
            return self.database_url_unpooled.get_secret_value()
        return unpooled(self.database_url.get_secret_value()) if self.database_url else None

    @property
    def warnings(self) -> list[str]:
        """What the operator should know about the settings, a sentence each."""
        return [
            f"{name.upper()}: {warning}"
            for name in ("database_url", "database_url_unpooled")
            if (secret := getattr(self, name)) and (warning := insecurity(secret.get_secret_value()))
        ]

    @property
    def prepares(self) -> bool | None:
        """Whether statements are prepared; None leaves it to the host and port."""
        return {"on": True, "off": False}.get(self.database_prepared_statements)


def load_settings() -> Settings:
    """Returns the settings of this process. Raises StartupError, a line for each that is wrong."""
    try:
        return Settings()
    except UnicodeDecodeError:
        message = ".env: must be UTF-8 text"
        raise StartupError(message) from None
    except ValidationError as error:
        raise StartupError("\n".join(dict.fromkeys(map(_setting_error, error.errors())))) from None


def _setting_error(error: ErrorDetails) -> str:
    sentence = error["msg"].removeprefix("Value error, ")
    return f"{str(error['loc'][0]).upper()}: {sentence}" if error["loc"] else sentence

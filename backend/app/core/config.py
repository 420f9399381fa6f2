"""Settings, read once from the environment and `.env`. README.md and .env.example list them too."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.core.dsn import parse_dsn
from app.core.errors import StartupError

_FRONTENDS = tuple(f"http://{host}:{port}" for port in (3000, 5173) for host in ("localhost", "127.0.0.1"))
# What a browser sends (RFC 6454 section 6.2): lower case, no path, no user.
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def _split(text: object) -> object:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if isinstance(text, str) else text


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        message = "must list origins such as https://app.example.com, without a path and without *"
        raise ValueError(message)
    return text


def _loopback(host: str) -> str:
    if host == "localhost":
        return host
    try:
        loopback = ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        message = "must be a loopback address such as 127.0.0.1, because the service has no authentication yet"
        raise ValueError(message)
    return host


def _dsn(secret: SecretStr) -> SecretStr:
    parse_dsn(secret.get_secret_value())
    return secret


def _beside_pooled(secret: SecretStr, info: ValidationInfo) -> SecretStr:
    if "database_url" in info.data and info.data["database_url"] is None:
        message = "needs DATABASE_URL beside it"
        raise ValueError(message)
    return secret


Dsn = Annotated[SecretStr, AfterValidator(_dsn)]


class Settings(BaseSettings):
    """Frozen. Raises pydantic's ValidationError naming each wrong setting."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: Dsn | None = Field(
        default=None, description="PostgreSQL to use, 14 to 18. Unset: an embedded PostgreSQL is started."
    )
    database_url_unpooled: Annotated[Dsn, AfterValidator(_beside_pooled)] | None = Field(
        default=None, description="Direct URL for migrations, where DATABASE_URL goes through a pooler."
    )
    database_pool_size: int = Field(
        default=5, ge=1, le=100, description="Connections per worker, at most. Total: workers times this."
    )
    database_pool_timeout: float = Field(
        default=5, gt=0, le=60, description="Seconds to wait for a free connection before answering 503."
    )
    embedded_postgres_dir: Path = Field(
        default=Path(".data/postgres"), description="Where the embedded PostgreSQL keeps its data."
    )
    host: Annotated[str, AfterValidator(_loopback)] = Field(
        default="127.0.0.1", description="Address to listen on. Loopback only, as long as there is no authentication."
    )
    port: int = Field(default=8000, ge=1, le=65_535, description="Port to listen on.")
    web_concurrency: int = Field(default=1, ge=1, le=64, description="Worker processes.")
    cors_origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_split)] = (
        Field(default=_FRONTENDS, description="Origins of browser frontends, separated by commas. Never `*`.")
    )

    @property
    def migration_dsn(self) -> str | None:
        """The connection string for migrations, or None for the embedded PostgreSQL."""
        secret = self.database_url_unpooled or self.database_url
        return secret.get_secret_value() if secret else None


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
    name = str(error["loc"][0]).upper()
    return f"{name}: {error['msg'].removeprefix('Value error, ')}"

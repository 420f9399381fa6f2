"""SQLAlchemy's dialect for asyncpg, without the questions that it asks on its first connection."""

from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

URL = "postgresql+tasks://"


class QuietDialect(PGDialect_asyncpg):
    """Knows what it would ask: PostgreSQL 14 or newer, the schema `public`, READ COMMITTED.

    The stock dialect needs ten round trips more on its first connection. It also installs codecs for JSON, which would
    change what `Database.fetch` returns on the same connections. Here SQLAlchemy's JSON type decodes the text itself.
    """

    supports_statement_cache = True
    supports_native_json_deserialization = False
    server_version_info = (14,)
    default_schema_name = "public"
    default_isolation_level = "READ COMMITTED"

    def initialize(self, connection: Any) -> None:
        """Ask nothing: what `PGDialect.initialize` sets besides are its defaults for PostgreSQL 14."""

    def on_connect(self) -> None:
        """Install no codecs."""


registry.register(URL.removesuffix("://").replace("+", "."), __name__, QuietDialect.__name__)

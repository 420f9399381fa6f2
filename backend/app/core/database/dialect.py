"""SQLAlchemy's dialect for asyncpg, without the queries of its first connection."""

from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

URL = "postgresql+tasks://"


class QuietDialect(PGDialect_asyncpg):
    """Assumes PostgreSQL 14 or newer, the schema `public` and READ COMMITTED instead of asking the server.

    The stock dialect makes ten more round trips on its first connection. It also installs JSON codecs, which would
    change the results of `Database.fetch` on the same connections. Here SQLAlchemy's JSON type decodes the text.
    """

    supports_statement_cache = True
    supports_native_json_deserialization = False
    server_version_info = (14,)
    default_schema_name = "public"
    default_isolation_level = "READ COMMITTED"

    def initialize(self, connection: Any) -> None:
        """Send no query. The other attributes of `PGDialect.initialize` keep their defaults for PostgreSQL 14."""

    def on_connect(self) -> None:
        """Install no codecs."""


registry.register(URL.removesuffix("://").replace("+", "."), __name__, QuietDialect.__name__)

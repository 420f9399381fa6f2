"""Changes of the table while services of the previous release still use it."""

import ast
import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from textwrap import indent
from typing import Final

import asyncpg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from app.core.database import migrations
from app.core.database.migrations import alembic_config, migrate
from tests.deployments import EXPANSION, Load
from tests.support import connected, make_settings, new_database, serving, until

VERSIONS: Final = Path(migrations.__file__).parents[4] / "alembic/versions"
HARMLESS: Final = r"['\"](CREATE INDEX|ALTER TABLE \w+ VALIDATE CONSTRAINT|UPDATE|COMMENT) [^;]+"
# The template of the revisions in these tests.
NEXT: Final = """
from alembic import op
import sqlalchemy as sa

revision = "9999"
down_revision = "0001"
{rest}

def upgrade() -> None:
{body}

def downgrade() -> None:
    op.drop_column("tasks", "due_at")
"""
ADD_COLUMN: Final = 'op.add_column("tasks", sa.Column("due_at", sa.DateTime(timezone=True)))'


@pytest.fixture
def own(dsn: str) -> Iterator[str]:
    """A migrated database for this test alone."""
    with new_database(dsn, "expanding") as own:
        migrate(own)
        yield own


@pytest.fixture
async def beside(own: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the database without timeouts."""
    async with connected(own) as connection:
        yield connection


@pytest.fixture
async def load(own: str) -> AsyncIterator[Load]:
    """Clients that use a service of this release continuously."""
    async with serving(make_settings(own)) as url, Load(url).running() as load:
        await load.full_round()
        yield load


def revision_with(body: str, rest: str = "") -> str:
    return NEXT.format(rest=rest, body=indent(body, "    "))


@pytest.mark.ci
class TestLoad:
    async def test_an_older_service_works_before_during_and_after_an_expansion(
        self, load: Load, own: str, beside: asyncpg.Connection
    ) -> None:
        for sql in EXPANSION:
            await beside.execute(sql)
            await load.full_round()
        await asyncio.to_thread(migrate, own)
        await load.full_round()

        assert load.faults == []

    async def test_a_contraction_causes_faults(self, load: Load, beside: asyncpg.Connection) -> None:
        """The positive control of the test above."""
        await beside.execute("ALTER TABLE tasks RENAME COLUMN title TO name")

        await until(lambda: load.faults)

    async def test_a_migration_that_cannot_lock_the_table_fails_without_faults_for_clients(
        self, load: Load, own: str, beside: asyncpg.Connection, tmp_path: Path
    ) -> None:
        (tmp_path / "next.py").write_text(revision_with(ADD_COLUMN))
        config = alembic_config(own)
        config.set_main_option("version_locations", os.pathsep.join(map(str, (VERSIONS, tmp_path))))
        async with beside.transaction():
            await beside.execute("LOCK TABLE tasks IN ACCESS SHARE MODE")  # as a long read does
            with pytest.raises(CommandError, match="lock timeout"):
                await asyncio.to_thread(command.upgrade, config, "head")
        await load.full_round()

        assert load.faults == []


def contractions(source: str) -> list[str]:
    """Returns the operations of a revision that can break an older service. A revision with CONTRACT has none."""
    module = ast.parse(source)
    if any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CONTRACT" for node in module.body):
        return []
    [upgrade] = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "upgrade"]
    calls = [node for node in ast.walk(upgrade) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if ast.unparse(call.func).startswith("op.") and not expands(call)]


def expands(call: ast.Call) -> bool:
    """Whether an operation only adds to the table, and adds no rule that an older service could violate."""
    text = ast.unparse(call)
    match ast.unparse(call.func):
        case "op.create_index":
            return "unique=True" not in text
        case "op.add_column":
            return "nullable=False" not in text or "server_default=" in text
        case "op.alter_column":
            return "nullable=True" in text and not re.search(r"\b(type_|new_column_name)=", text)
        case "op.execute":
            return re.fullmatch(HARMLESS, ast.unparse(call.args[0])) is not None
        case name:
            return name in {"op.create_table", "op.f", "op.get_context", "op.get_context().autocommit_block"}


class TestRevisions:
    """A revision after the first may remove only a part of the table that a release has stopped using."""

    def test_every_revision_only_expands_or_has_a_contract_line(self) -> None:
        revisions = ScriptDirectory.from_config(alembic_config()).walk_revisions()
        found = {
            script.path: contractions(Path(script.path).read_text()) for script in revisions if script.down_revision
        }

        assert {path: calls for path, calls in found.items() if calls} == {}

    @pytest.mark.parametrize(
        "body",
        [
            'op.drop_column("tasks", "description")',
            'op.alter_column("tasks", "description", nullable=False)',
            'op.add_column("tasks", sa.Column("due_at", sa.DateTime(timezone=True), nullable=False))',
            'op.create_index("ux_tasks_title", "tasks", ["user_id", "title"], unique=True)',
            'op.execute("COMMENT ON TABLE tasks IS NULL; DROP TABLE tasks")',
            'with op.batch_alter_table("tasks") as batch:\n    batch.drop_column("description")',
        ],
    )
    def test_a_contraction_without_a_contract_line_is_found(self, body: str) -> None:
        """The positive control of the test above."""
        assert contractions(revision_with(body)) != []
        assert contractions(revision_with(body, rest='CONTRACT = "1.4 has stopped to use it"')) == []

    @pytest.mark.parametrize(
        "body",
        [
            ADD_COLUMN,
            'op.add_column("tasks", sa.Column("due", sa.Date(), server_default=sa.func.now(), nullable=False))',
            'op.alter_column("tasks", "title", nullable=True, existing_type=sa.Text())',
            'with op.get_context().autocommit_block():\n    op.execute("CREATE INDEX CONCURRENTLY i ON tasks (title)")',
        ],
    )
    def test_an_expansion_is_not_taken_for_a_contraction(self, body: str) -> None:
        assert contractions(revision_with(body)) == []

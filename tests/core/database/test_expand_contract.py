"""Changes of the table while services of the previous release still use it."""

import ast
import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from app.core.database.migrations import alembic_config, migrate
from tests.deployments import EXPANSION, Load
from tests.support import connected, make_settings, new_database, serving, until

# Operations that only add to the table, and add no rule that an older service could violate.
EXPANSIONS: Final = (
    r"op\.(f|get_context)\(.*",
    r"op\.create_table\((?!.*ForeignKey(?!.*ondelete='CASCADE')).*",  # it would keep older services from deleting
    r"op\.create_index\((?!.*unique=True).*",
    r"op\.add_column\(((?!.*nullable=False)|.*server_default=).*",
    r"op\.alter_column\((?!.*\b(type_|new_column_name)=).*nullable=True.*",
    r"op\.execute\(['\"](?:\\n| )*(CREATE INDEX|ALTER TABLE \w+ VALIDATE CONSTRAINT|UPDATE|COMMENT) [^;]+",
)
ADVICE: Final = """{path} may break the release that still runs, with
{calls}
Write the rule of a new column into its sa.Column(...), as alembic/versions/20261129_keep_unknown_fields.py does. For a
part that no release uses any more, write CONTRACT = "...", which names the release that stopped using it."""


@pytest.fixture
def own(dsn: str) -> Iterator[str]:
    with new_database(dsn, "expanding") as own:
        migrate(own)
        yield own


@pytest.fixture
async def beside(own: str) -> AsyncIterator[asyncpg.Connection]:
    async with connected(own) as connection:
        yield connection


@pytest.fixture
async def load(own: str) -> AsyncIterator[Load]:
    """Clients that use a service of this release continuously."""
    async with serving(make_settings(own)) as url, Load(url).running() as load:
        await load.full_round()
        yield load


@pytest.mark.ci
class TestLoad:
    async def test_an_older_service_works_during_an_expansion_and_a_migration_that_cannot_lock_the_table(
        self, load: Load, own: str, beside: asyncpg.Connection
    ) -> None:
        for sql in EXPANSION:
            await beside.execute(sql)
            await load.full_round()
        await asyncio.to_thread(migrate, own)
        await load.full_round()
        async with beside.transaction():
            await beside.execute("LOCK TABLE tasks IN ACCESS SHARE MODE")  # as a long read does
            with pytest.raises(CommandError, match="lock timeout"):
                await asyncio.to_thread(command.downgrade, alembic_config(own), "base")
        await load.full_round()

        assert load.faults == []

    async def test_a_contraction_causes_faults(self, load: Load, beside: asyncpg.Connection) -> None:
        """The positive control of the test above."""
        await beside.execute("ALTER TABLE tasks RENAME COLUMN title TO name")

        await until(lambda: load.faults)


def contractions(source: str) -> list[str]:
    """Returns the operations of a revision that can break an older service. A revision with CONTRACT has none."""
    module = ast.parse(source)
    if any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CONTRACT" for node in module.body):
        return []
    [upgrade] = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "upgrade"]
    calls = [ast.unparse(node) for node in ast.walk(upgrade) if isinstance(node, ast.Call)]
    return [call for call in calls if call.startswith("op.") and not re.fullmatch("|".join(EXPANSIONS), call)]


class TestRevisions:
    """A revision after the first may remove only a part of the table that a release has stopped using."""

    def test_every_revision_only_expands_or_has_a_contract_line(self) -> None:
        for script in ScriptDirectory.from_config(alembic_config()).walk_revisions():
            if script.down_revision:
                refused = contractions(Path(script.path).read_text())
                assert not refused, ADVICE.format(path=script.path, calls="\n".join(refused))

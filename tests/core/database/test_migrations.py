"""Migrations: the tables that they create, concurrent and repeated runs, and their errors."""

import asyncio
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path
from socket import EAI_AGAIN, EAI_NONAME, gaierror
from typing import Any, Final

import asyncpg
import pytest
from alembic import command
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel

from app.adopt import run
from app.core.database import migrations
from app.core.database.dsn import parse_dsn
from app.core.database.migrations import alembic_config, migrate
from app.core.errors import StartupError
from app.server.embedded import embedded_postgres
from tests.core.database.support import refusing
from tests.deployments import expand
from tests.faults import fault_proxy
from tests.support import LATIN1, REVISION, execute, new_database

ROOT: Final = Path(migrations.__file__).parents[4]
COLUMNS: Final = """
    SELECT table_name, column_name, data_type, is_nullable, column_default, collation_name
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name !~ '_version$' ORDER BY 1, 2
"""
CONSTRAINTS: Final = """
    SELECT conname, contype::text, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text !~ '_version$' ORDER BY 1
"""
INDEXES: Final = """
    SELECT indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename !~ '_version$' ORDER BY 1
"""
BEFORE: Final = ScriptDirectory.from_config(alembic_config()).get_revision(REVISION).down_revision
INSERT: Final = "INSERT INTO tasks (user_id, id, title, description) VALUES ($1, gen_random_uuid(), $2, $3)"


@pytest.fixture
def empty(dsn: str) -> Iterator[str]:
    with new_database(dsn, "migrations") as empty:
        yield empty


def structure(dsn: str) -> list[list[tuple[Any, ...]]]:
    return [execute(dsn, query) for query in (COLUMNS, CONSTRAINTS, INDEXES)]


class TestSchema:
    def test_a_downgrade_and_an_upgrade_restore_the_same_tables(self, dsn: str, empty: str) -> None:
        migrate(empty)
        command.downgrade(alembic_config(empty), "base")
        assert structure(empty) == [[], [], []]
        migrate(empty)
        migrate(empty)

        assert structure(empty) == structure(dsn)

    def test_the_migrations_create_the_tables_of_the_models(self, dsn: str, empty: str) -> None:
        async def create_from_models() -> None:
            engine = create_async_engine("postgresql+asyncpg://", connect_args=parse_dsn(empty))
            async with engine.begin() as connection:
                await connection.run_sync(SQLModel.metadata.create_all)
            await engine.dispose()

        asyncio.run(create_from_models())

        assert structure(empty) == structure(dsn)

    def test_every_index_begins_with_the_owner(self, dsn: str) -> None:
        definitions = [definition for _, definition in execute(dsn, INDEXES)]

        assert definitions
        assert all("USING btree (user_id, " in definition for definition in definitions)

    @pytest.mark.parametrize(
        ("rule", "user_id", "title", "description"),
        [
            ("ck_tasks_title", "rules", " \t\r\n\v\f", None),
            ("ck_tasks_title", "rules", "t" * 201, None),
            ("ck_tasks_description", "rules", "t", "d" * 5_001),
            ("ck_tasks_user_id", "", "t", None),
            ("ck_tasks_user_id", "r" * 129, "t", None),
            ("ck_tasks_user_id", "ends\n", "t", None),
            ("ck_tasks_user_id", "ümlaut", "t", None),
        ],
    )
    async def test_the_database_refuses_a_value_outside_the_limits(
        self, database: asyncpg.Connection, rule: str, user_id: str, title: str, description: str | None
    ) -> None:
        with pytest.raises(asyncpg.CheckViolationError, match=rule):
            await database.execute(INSERT, user_id, title, description)


class TestMigrate:
    def test_a_migration_waits_for_the_database_and_logs_it_without_the_password(
        self, empty: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with fault_proxy(empty) as proxy, ThreadPoolExecutor(1) as threads:
            url = make_url(proxy.dsn).set(password="s3cret").update_query_dict({"connect_timeout": "1"})  # noqa: S106
            proxy.hold()
            migration = threads.submit(migrate, url.render_as_string(hide_password=False))
            while not caplog.messages:
                assert not migration.done()
                time.sleep(0.01)
            proxy.heal()
            migration.result()

        assert {*caplog.messages} == {"waiting for the database: TimeoutError: no answer"}
        assert execute(empty, "SELECT count(*) FROM tasks") == [(0,)]

    @pytest.mark.parametrize("words", [("XX000", "The endpoint has been disabled"), ("08P01", "no such database: x")])
    def test_a_migration_ends_if_the_server_refuses_it_again_and_again(
        self, monkeypatch: pytest.MonkeyPatch, words: tuple[str, str]
    ) -> None:
        monkeypatch.setattr(migrations, "probe_delays", lambda: repeat(0))
        answers = chain([words] * 40, repeat(("28P01", "the last answer")))

        with refusing(answers) as dsn, pytest.raises(StartupError, match=f"{words[1]}.+DATABASE_URL_UNPOOLED"):
            migrate(dsn)

    def test_a_migration_waits_for_a_server_as_long_as_it_is_starting_or_full(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(migrations, "probe_delays", lambda: repeat(0))
        busy = [("57P03", "the database system is starting up"), ("53300", "sorry, too many clients already")]
        answers = [*busy * 40, ("28P01", "the last answer")]

        with refusing(iter(answers)) as dsn, pytest.raises(StartupError, match=r"Error: the last answer$"):
            migrate(dsn)

    def test_a_migration_waits_for_dns_and_ends_if_there_is_no_such_host_again_and_again(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def resolve(*_: object, **__: object) -> None:
            raise next(answers)

        down, unknown = gaierror(EAI_AGAIN, "Try again"), gaierror(EAI_NONAME, "Name or service not known")
        answers = chain([down] * 4, repeat(unknown, 3))
        monkeypatch.setattr(migrations, "probe_delays", lambda: repeat(0))
        monkeypatch.setattr(migrations, "_REFUSALS_MAX", 3)
        monkeypatch.setattr("socket.getaddrinfo", resolve)
        sentence = "DATABASE_URL: the host ep-x.neon.tech cannot be resolved: {}"

        with pytest.raises(StartupError, match=re.escape(sentence.format(unknown.strerror)) + "$"):
            migrate("postgresql://ada:s3cret@ep-x.neon.tech/tasks")

        assert caplog.messages[0] == f"waiting for the database: {sentence.format(down.strerror)}"
        assert (len(caplog.messages), next(answers, None)) == (6, None)

    @pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
    def test_a_database_in_another_encoding_is_refused_by_every_command_before_anything_is_made(
        self, dsn: str, monkeypatch: pytest.MonkeyPatch, encoding: str
    ) -> None:
        sentence = f"DATABASE_URL: the database has the encoding {encoding}; create it with ENCODING 'UTF8'"
        with new_database(dsn, "encoded", LATIN1.replace("LATIN1", encoding)) as encoded:
            monkeypatch.setenv("DATABASE_URL", encoded)
            for start in (lambda: command.upgrade(alembic_config(), "head"), lambda: run(["--yes"])):
                with pytest.raises(CommandError, match=f"^{re.escape(sentence)}$"):
                    start()
            monkeypatch.setenv("DATABASE_URL_UNPOOLED", encoded)
            with pytest.raises(StartupError, match="migrated: DATABASE_URL_UNPOOLED: the database has the encoding"):
                migrate(encoded)

            assert structure(encoded) == [[], [], []]


class TestLaterRelease:
    """A later release has migrated the database: its revision is not among the files of this one."""

    @pytest.fixture
    def later(self, empty: str) -> str:
        migrate(empty)
        expand(empty)
        execute(empty, "CREATE TABLE others (id integer PRIMARY KEY)")
        execute(empty, "COMMENT ON TABLE tasks IS 'Things to do'")
        execute(empty, "COMMENT ON COLUMN tasks.title IS 'What to do'")
        execute(empty, "ALTER TABLE tasks ALTER COLUMN title DROP NOT NULL")
        execute(empty, "UPDATE tasks_api_version SET version_num = '9999'")
        return empty

    def test_an_upgrade_leaves_an_expanded_database_alone_with_one_warning(
        self, later: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = structure(later)

        migrate(later)

        assert caplog.messages == ["the database is at revision 9999 of a later release: nothing is migrated"]
        assert structure(later) == before
        assert execute(later, "SELECT version_num FROM tasks_api_version") == [("9999",)]

    @pytest.mark.parametrize(
        "change",
        [
            "ALTER TABLE tasks DROP COLUMN description",
            "ALTER TABLE tasks RENAME COLUMN title TO name",
            "ALTER TABLE tasks ALTER COLUMN title TYPE varchar(9)",
            "ALTER TABLE tasks ALTER COLUMN description SET NOT NULL",
            "ALTER TABLE tasks ALTER COLUMN created_at DROP DEFAULT",
            "ALTER TABLE tasks ADD COLUMN needed integer NOT NULL",
            "CREATE UNIQUE INDEX ON tasks (user_id, title)",
            "DROP TABLE tasks CASCADE",  # with the foreign keys of tables that extend ours
            "INSERT INTO tasks_api_version VALUES ('0001')",
        ],
    )
    def test_a_database_that_lacks_what_this_release_needs_is_reported_with_what_to_do(
        self, later: str, change: str
    ) -> None:
        execute(later, change)

        with pytest.raises(StartupError) as caught:
            migrate(later)

        assert re.fullmatch(
            r"The database could not be migrated: tasks_api_version names (9999|0001, 9999|9999, 0001), "
            r"which fits neither this release nor a later one that it works with; start the release .+",
            str(caught.value),
        )

    def test_tables_without_a_revision_are_reported_with_what_to_do(self, empty: str) -> None:
        migrate(empty)
        for damage in ("DELETE FROM tasks_api_version", "DROP TABLE tasks_api_version"):
            execute(empty, damage)

            with pytest.raises(StartupError, match=r"names no revision, .+ restore tasks_api_version, or use"):
                migrate(empty)


class TestVersionTable:
    """The revision is in a table of its own. Earlier releases had it in Alembic's default, `alembic_version`."""

    @pytest.fixture
    def upgrade_earlier(self, empty: str, tmp_path: Path) -> Callable[[], None]:
        """Migrates as the release did whose only revision was 0001."""
        shutil.copytree(ROOT / "alembic", tmp_path / "alembic")
        for path in (tmp_path / "alembic/versions").glob("*.py"):
            if "0001" not in re.findall('^revision = "(.*)"', path.read_text(), re.MULTILINE):
                path.unlink()
        env = (tmp_path / "alembic/env.py").read_text()
        assert "version_table=VERSION_TABLE" in env
        (tmp_path / "alembic/env.py").write_text(env.replace("=VERSION_TABLE", '="alembic_version"'))
        config = alembic_config(empty)
        config.set_main_option("script_location", str(tmp_path / "alembic"))
        return lambda: command.upgrade(config, "head")

    def test_an_earlier_installation_is_migrated_and_the_earlier_release_can_still_be_restarted(
        self, dsn: str, empty: str, upgrade_earlier: Callable[[], None]
    ) -> None:
        upgrade_earlier()
        execute(empty, INSERT, "ada", "Buy oat milk", None)
        assert structure(empty) != structure(dsn)

        for release in (migrate, lambda _: upgrade_earlier(), migrate):
            release(empty)

            assert structure(empty) == structure(dsn)
            assert execute(empty, "SELECT version_num FROM alembic_version") == [("0001",)]
            assert execute(empty, "SELECT version_num FROM tasks_api_version") == [(REVISION,)]
        assert execute(empty, "SELECT title FROM tasks") == [("Buy oat milk",)]
        command.check(alembic_config(empty))
        command.downgrade(alembic_config(empty), "-1")

    def test_the_earlier_release_starts_on_a_new_database_after_the_documented_statements(
        self, dsn: str, empty: str, upgrade_earlier: Callable[[], None]
    ) -> None:
        migrate(empty)
        with pytest.raises(CommandError, match="names no revision"):
            upgrade_earlier()
        documented = (ROOT / "docs/operate.md").read_text()
        for statement in re.findall(r"^(?:CREATE TABLE|INSERT INTO) alembic_version.*;$", documented, re.MULTILINE):
            execute(empty, statement)

        upgrade_earlier()
        migrate(empty)

        assert structure(empty) == structure(dsn)

    @pytest.mark.parametrize("revision", ["0001", "1975ea83b712", None])
    def test_the_version_table_of_another_program_has_no_effect_and_is_left_alone(
        self, dsn: str, empty: str, revision: str | None
    ) -> None:
        execute(empty, "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        execute(empty, "INSERT INTO alembic_version SELECT $1::text WHERE $1 IS NOT NULL", revision)
        before = execute(empty, "SELECT * FROM alembic_version")

        for _ in range(2):
            migrate(empty)
            command.check(alembic_config(empty))

        assert structure(empty) == structure(dsn)
        command.downgrade(alembic_config(empty), "base")
        migrate(empty)
        assert structure(empty) == structure(dsn)
        assert execute(empty, "SELECT * FROM alembic_version") == before

    @pytest.mark.parametrize("revision", ["0001", "1975ea83b712", None])
    @pytest.mark.parametrize("key", ["id integer PRIMARY KEY", "id integer, user_id text, PRIMARY KEY (user_id, id)"])
    def test_the_tasks_of_another_program_are_left_alone_and_the_error_says_how_to_take_them_over(
        self, empty: str, revision: str | None, key: str
    ) -> None:
        execute(empty, "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        execute(empty, "INSERT INTO alembic_version SELECT $1::text WHERE $1 IS NOT NULL", revision)
        execute(empty, f"CREATE TABLE tasks ({key})")
        before = structure(empty)

        with pytest.raises(StartupError, match=r"tasks of another program; `python -m app\.adopt` takes"):
            migrate(empty)

        assert structure(empty) == before


class TestSettings:
    @pytest.fixture(autouse=True)
    def _without_dotenv(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)

    def test_settings_are_ignored_where_a_dsn_is_given(self, monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
        monkeypatch.setenv("PORT", "wrong")

        migrate(dsn)

    def test_alembic_migrates_the_unpooled_database_of_the_settings(
        self, monkeypatch: pytest.MonkeyPatch, empty: str
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://ada@127.0.0.1:1/pooled")
        monkeypatch.setenv("DATABASE_URL_UNPOOLED", empty)

        command.upgrade(alembic_config(), "head")

        assert execute(empty, "SELECT count(*) FROM tasks") == [(0,)]

    @pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_URL_UNPOOLED"])
    def test_what_a_server_refuses_is_said_of_the_setting_that_was_used(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        answers = [("28P01", "a password"), ("3D000", "no database"), ("42501", "no right"), ("58000", "no disk")]
        monkeypatch.setenv("DATABASE_URL", "postgresql://ada@127.0.0.1:1/tasks")
        with refusing(iter(answers)) as dsn:
            monkeypatch.setenv(name, dsn)
            for _, text in answers[:3]:
                with pytest.raises(CommandError, match=rf"^{name}: \w+Error: {text}$"):
                    command.upgrade(alembic_config(), "head")
            with pytest.raises(CommandError, match=r"^\w+Error: no disk$"):
                command.upgrade(alembic_config(), "head")

    def test_a_wrong_setting_is_an_error_of_alembic(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "nonsense")

        with pytest.raises(CommandError, match=r"^DATABASE_URL: has no scheme; it must look like postgresql://"):
            command.upgrade(alembic_config(), "head")

    @pytest.mark.ci
    def test_the_command_migrates_the_embedded_database_without_a_setting_and_says_what_it_did(
        self, tmp_path: Path
    ) -> None:
        def run(*arguments: str) -> str:
            command = [sys.executable, "-m", "alembic", "--config", str(ROOT / "alembic.ini"), *arguments]
            return subprocess.check_output(command, cwd=tmp_path, text=True)

        (tmp_path / ".env").touch()  # or it would use the project's
        assert run("upgrade", "head") == f"The database went from no revision to revision {REVISION}.\n"
        assert run("upgrade", "head") == "The database is at the newest revision: nothing to do.\n"
        assert run("downgrade", "-1") == f"The database went from revision {REVISION} to revision {BEFORE}.\n"

        with embedded_postgres(tmp_path / ".data" / "postgres") as dsn:
            assert execute(dsn, "SELECT count(*) FROM tasks") == [(0,)]

    def test_a_new_revision_has_the_next_number_and_needs_no_change_of_its_format(
        self, empty: str, tmp_path: Path
    ) -> None:
        shutil.copytree(ROOT / "alembic", tmp_path / "alembic")
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
        config = alembic_config(empty)
        config.set_main_option("script_location", str(tmp_path / "alembic"))

        made = command.revision(config, "Add a thing")

        assert isinstance(made, Script)
        assert made.revision == f"{int(REVISION) + 1:04}"
        for words in (["check"], ["format", "--check"]):
            subprocess.run([sys.executable, "-m", "ruff", *words, tmp_path / "alembic"], cwd=tmp_path, check=True)

"""The program in TypeScript that docs/agents.md shows. It is compiled, and run with a token."""

import re
from pathlib import Path
from typing import Final

from tests.clients.support import FOLDER, NODE_MODULES, needs_node, run
from tests.support import SECRET, make_settings, serving, token

pytestmark = needs_node

PAGE: Final = (FOLDER.parents[1] / "docs/agents.md").read_text()
TSC: Final = (
    "tsc --strict --noUncheckedIndexedAccess --skipLibCheck --target es2023 --module nodenext --types node page.mts"
)


async def test_the_program_of_the_page_compiles_and_adds_a_task(dsn: str, user: str, tmp_path: Path) -> None:
    [code] = re.findall(r"^```ts\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)

    async with serving(make_settings(dsn, auth_jwt_secret=SECRET, mcp="on")) as url:
        (tmp_path / "page.mts").write_text(code.replace("http://127.0.0.1:8000", url))
        compiler = await run(tmp_path, *TSC.split())
        assert compiler.returncode == 0, compiler.stdout
        program = await run(tmp_path, "env", f"TOKEN={token(user)}", "node", "page.mjs")

    assert re.match(
        r"false \{\s+task_id: '[0-9a-f-]{36}',\s+status: 'created',\s+title: 'Buy oat milk'", program.stdout
    )

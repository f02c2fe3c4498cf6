"""The Python blocks of pages that say so run, each after the first of its page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "migrate.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(1, len(BLOCKS)))
def test_migrate(number: int) -> None:
    if "# needs diffrax" in BLOCKS[number]:
        pytest.importorskip("diffrax")
    names: dict[str, object] = {}
    imports = [block for block in BLOCKS[:number] if block.lstrip().startswith("import odenet.compat")]
    for block in (BLOCKS[0], *imports, BLOCKS[number]):
        exec(compile(block, f"docs/migrate.md, block {number}", "exec"), names)

"""The Python blocks of the README, docs/migrate.md, docs/events.md, docs/compiling.md and docs/field.md run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "migrate.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def jax_precision() -> Iterator[None]:
    """A block that sets JAX's x64 mode sets it for the whole process."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_x64", False)


@pytest.mark.parametrize("number", range(len(README)))
def test_readme(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Each block by itself."""
    exec(compile(README[number], f"README.md, block {number}", "exec"), {})


@pytest.mark.parametrize("number", range(1, len(BLOCKS)))
def test_migrate(number: int) -> None:
    if "# needs diffrax" in BLOCKS[number]:
        pytest.importorskip("diffrax")
    names: dict[str, object] = {}
    imports = [block for block in BLOCKS[:number] if block.lstrip().startswith("import odenet.compat")]
    for block in (BLOCKS[0], *imports, BLOCKS[number]):
        exec(compile(block, f"docs/migrate.md, block {number}", "exec"), names)


EVENTS = re.findall(r"```python\n(.*?)```", (DOCS / "events.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EVENTS)))
def test_events(number: int) -> None:
    exec(compile(EVENTS[number], f"docs/events.md, block {number}", "exec"), {})


COMPILING = re.findall(r"```python\n(.*?)```", (DOCS / "compiling.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(COMPILING)))
def test_compiling(number: int) -> None:
    exec(compile(COMPILING[number], f"docs/compiling.md, block {number}", "exec"), {})


FIELD = re.findall(r"```python\n(.*?)```", (DOCS / "field.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(FIELD)))
def test_field_page(number: int) -> None:
    exec(compile(FIELD[number], f"docs/field.md, block {number}", "exec"), {})

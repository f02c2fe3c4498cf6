"""Run programs that import torchdiffeq on this library."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

_PACKAGE = __name__.rpartition(".")[0]


def register() -> None:
    """Make `import torchdiffeq`, and its submodules, return this package; call it before the first such import."""
    loaded = sys.modules.get("torchdiffeq")
    if loaded is not None and loaded is not sys.modules[_PACKAGE]:
        raise RuntimeError("torchdiffeq has been imported already: call register() before anything that imports it")
    importlib.import_module(f"{_PACKAGE}._impl")
    for name, module in list(sys.modules.items()):
        if name == _PACKAGE or name.startswith(f"{_PACKAGE}._impl"):
            sys.modules["torchdiffeq" + name.removeprefix(_PACKAGE)] = module


_USAGE = """usage: python -m odenet.compat.torchdiffeq (-m MODULE | SCRIPT.py) [arguments]

Runs an unmodified program that imports torchdiffeq on this library's solvers."""


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        raise SystemExit(0 if arguments else 2)
    register()
    if arguments[0] == "-m":
        if len(arguments) < 2:
            print(f"-m needs the name of a module\n{_USAGE}", file=sys.stderr)
            raise SystemExit(2)
        sys.argv = arguments[1:]
        sys.path.insert(0, "")
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    script = Path(arguments[0])
    if not script.is_file():
        print(f"no such file: {script}\n{_USAGE}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = arguments
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")

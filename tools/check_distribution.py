"""Builds sdist and wheel, and runs the README's examples on the wheel alone in an empty environment.

What it does: `python -m build` makes both files; the wheel must contain the package and nothing else, the sdist what a
developer needs; a new virtual environment gets the wheel with what it requires, pinned by constraints.txt; and every
Python block of the README runs there, in an empty folder, without this checkout on the path.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SDIST_HAS = (
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "benchmarks/",
    "docs/",
    "examples/",
    "src/odenet/py.typed",
    "tests/",
)


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    subprocess.run([str(word) for word in command], cwd=cwd, check=True)


def check_wheel(wheel: Path) -> None:
    """Raise unless the wheel has the package, its marker of types and its metadata, and nothing else."""
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        metadata = file.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    allowed = re.compile(r"(odenet|odenet_command)/|torch_odenet-[^/]+\.dist-info/")
    foreign = [name for name in names if not allowed.match(name)]
    if foreign or "odenet/py.typed" not in names:
        raise SystemExit(f"{wheel.name} has foreign files {foreign} or lacks odenet/py.typed")
    missing = [field for field in ("Project-URL", "Description-Content-Type") if f"{field}:" not in metadata]
    if missing:
        raise SystemExit(f"{wheel.name}: its metadata lacks {missing}")
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1024:.0f} KiB")


def check_sdist(sdist: Path) -> None:
    """Raise unless the sdist has docs, examples, tests and benchmarks too."""
    with tarfile.open(sdist) as file:
        names = [name.partition("/")[2] for name in file.getnames()]
    missing = [part for part in SDIST_HAS if not any(name.startswith(part) for name in names)]
    if missing:
        raise SystemExit(f"{sdist.name} lacks {missing}")
    print(f"{sdist.name}: {len(names)} files, {sdist.stat().st_size / 1024:.0f} KiB")


def run_readme(wheel: Path, folder: Path) -> None:
    """Install the wheel with what it requires in a new environment, and run the README's Python blocks there."""
    venv.create(folder / "venv", with_pip=True)
    python, empty = folder / "venv" / "bin" / "python", folder / "empty"
    empty.mkdir()
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel, cwd=empty)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    for number, block in enumerate(blocks, 1):
        script = empty / f"block_{number}.py"
        script.write_text(block, encoding="utf-8")
        run(python, "-I", script, cwd=empty)
    print(f"README.md: {len(blocks)} Python blocks ran on {wheel.name} alone")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
        wheel, sdist = next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))
        check_wheel(wheel)
        check_sdist(sdist)
        run_readme(wheel, folder)


if __name__ == "__main__":
    main()

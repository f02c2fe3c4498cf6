"""Every page of the docs and the README: Python blocks run, commands exist, and what is named is there.

The Python blocks of a page run from top to bottom in one namespace, as for a reader who types them in. A block that
begins with `# needs NAME` is left out where NAME, a package or a folder that a command of the page makes, is not there.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import markdown
import pytest

import odenet

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SLOW = {"docs/compiling.md", "docs/gradients.md"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
TASKS_FILE = ROOT / "src" / "odenet" / "train" / "tasks" / "__init__.py"
TASKS = "|".join(re.findall(r'^    "(\w+)": "', TASKS_FILE.read_text(encoding="utf-8"), re.MULTILINE))
COMMAND = re.compile(
    rf"^(?:\$ )?(odenet (?:train (?:{TASKS})|compare|predict|export|bench)|make|python|pytest|torchrun)\b([^\n`|&;#]*)",
    re.MULTILINE,
)
FILE = re.compile(r"^(?:\w[\w-]*/)+[\w-]+\.(?:py|md|png|csv)$|^(?:src|tests|docs|tools|benchmarks|examples)/[\w/]+$")
TO_ADD = {"methods/rosenbrock.py", "methods/bdf.py", "methods/switching.py"}  # which docs/design.md says one would add
TEST = re.compile(r"\b(test_\w+)(?!\w*\.py|\w*/)")
TESTS = "".join(p.read_text(encoding="utf-8") for p in ROOT.glob("tests/**/*.py"))
NN_PARTS = ("baselines", "controlled", "flows", "latent", "recurrent")
REFERENCE = "\n".join(p.read_text(encoding="utf-8") for p in ROOT.glob("docs/api/*.md"))


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The line before each block, and its text."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(2)), m[2]) for m in FENCE.finditer(text) if m[1] == language]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@functools.cache
def anchors(page: Path) -> set[str]:
    converter = markdown.Markdown(extensions=["toc", "fenced_code"])
    page_as_html = converter.convert(page.read_text(encoding="utf-8"))
    return set(re.findall(r'<h\d id="([^"]+)"', page_as_html))


def is_there(path: str, page: Path) -> bool:
    """Of the repository, of the package, or beside the page. What runs/ has is written by commands."""
    return path.startswith("runs/") or any(
        (folder / path).exists() for folder in (ROOT, ROOT / "src", ROOT / "src" / "odenet", page.parent)
    )


@functools.cache
def help_of(command: str) -> str:
    words = [sys.executable, "-c", "import odenet_command; odenet_command.main()", *command.split(), "--help"]
    wide = {**os.environ, "COLUMNS": "300", "NO_COLOR": "1"}
    return subprocess.run(words, capture_output=True, text=True, check=True, env=wide).stdout


def faults_of(program: str, words: list[str]) -> list[str]:
    """What of a command line is not there: targets, files, modules, options."""
    options = [w.partition("=")[0] for w in words if w.startswith("--")]
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        return [w for w in words[:1] if w[0].islower() and not re.search(rf"^{w}:", makefile, re.MULTILINE)]
    if program.startswith("odenet"):
        return [o for o in options if o not in help_of(program.removeprefix("odenet "))]
    if program == "python" and "-m" in words:
        return [w for w in [words[words.index("-m") + 1]] if importlib.util.find_spec(w) is None]
    files = [w for w in words if re.fullmatch(r"[\w./]+/[\w./]+(?:::\w+)?", w)]
    missing = [f for f in files if not (ROOT / f.partition("::")[0]).exists()]
    if program == "python" and files and not missing:
        source = (ROOT / files[0]).read_text(encoding="utf-8")
        missing += [o for o in options if o not in source]
    return missing


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=name(p), marks=[pytest.mark.slow] if name(p) in SLOW else [])
        for p in PAGES
        if blocks(p, "python")
    ],
)
def test_python_blocks(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.chdir(ROOT)
    namespace: dict[str, object] = {"__name__": "page"}
    for line, block in blocks(page, "python"):
        needed = re.match(r"# needs ([\w/.]+)", block)
        if (
            needed is None
            or (ROOT / needed[1]).exists()
            or ("/" not in needed[1] and importlib.util.find_spec(needed[1]))
        ):
            exec(compile("\n" * line + block, str(page), "exec", dont_inherit=True), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands(page: Path) -> None:
    """Those of shell blocks and of inline code: their targets, files, modules and options exist."""
    text = "\n".join([block for _, block in blocks(page, "")] + CODE.findall(prose(page)))
    faults = {m[0]: faults_of(m[1], m[2].split()) for m in COMMAND.finditer(text)}
    assert {command: missing for command, missing in faults.items() if missing} == {}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page: Path) -> None:
    broken = []
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names(page: Path) -> None:
    """Files and tests in inline code are there."""
    codes = CODE.findall(prose(page))
    files = [c.partition("::")[0] for code in codes for c in code.split()]
    assert [f for f in files if re.fullmatch(r"\w+\.py", f) and not any(ROOT.glob(f"[!.]*/**/{f}"))] == []
    tests = {t for code in codes for t in TEST.findall(code)}
    assert [f for f in files if FILE.match(f) and f not in TO_ADD and not is_there(f, page)] == []
    assert [t for t in sorted(tests) if f"def {t}(" not in TESTS] == []


@pytest.mark.parametrize(
    "module",
    [
        *("odenet", "odenet.nn", "odenet.series", "odenet.methods"),
        *(f"odenet.nn.{part}" for part in NN_PARTS),
        *("odenet.compat.torchcde", "odenet.compat.torchdiffeq"),
    ],
)
def test_reference(module: str) -> None:
    """The reference has every public name."""
    public = set(importlib.import_module(module).__all__) - {"nn", "series", *NN_PARTS, "METHODS", "Cache"}
    public -= set(odenet.nn.__all__) if module.startswith("odenet.nn.") else set()  # they stand there as odenet.nn's
    found = set(re.findall(rf"^::: {re.escape(module)}\.(?:\w+\.)?(\w+)$", REFERENCE, re.MULTILINE))
    assert public - found == set()

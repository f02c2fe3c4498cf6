"""MkDocs hook: files of the repository outside docs/ that pages link to become part of the site."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/*.py", "benchmarks/results/*", "examples/**/*.py")
LINK = re.compile(r"(\]\()([^)#\s:]+)([^)\s]*\))")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    for path in sorted(p for pattern in OUTSIDE for p in ROOT.glob(pattern) if p.is_file()):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links are written as they hold in the repository; docs/ is the root of the site."""
    here = Path(page.file.abs_src_path).parent
    if page.file.src_uri.startswith("benchmarks/results/"):
        page.meta["search"] = {"boost": 0.1}  # long tables of every name there is

    def moved(link: re.Match[str]) -> str:
        target = os.path.normpath(here / link[2])
        if not os.path.exists(target):
            return link[0]  # the build names it
        place = os.path.relpath(target, ROOT).removeprefix("docs" + os.sep)
        place = "index.md" if place == "README.md" else place
        return link[1] + Path(os.path.relpath(place, Path(page.file.src_uri).parent)).as_posix() + link[3]

    return LINK.sub(moved, markdown)

"""Griffe extension: a docstring's `name: text` lines become a list, and its doctests code."""

from __future__ import annotations

import re
from typing import Any

import griffe

# At the start of a line or of a sentence; values such as True: or 0: are text.
ENTRY = re.compile(r"(?:^|(?<=[.)] ))((?:[a-z]\w*, )*[a-z]\w*): (?=\S)", re.MULTILINE)
PAGE = re.compile(r"\b(docs/(\w+)\.md)")


def listed(paragraph: str) -> str:
    """The paragraph as a list of its entries, with the text before the first of them above."""
    found = list(ENTRY.finditer(paragraph))
    if not found or paragraph.startswith(" "):
        return paragraph
    ends = [m.start() for m in found[1:]] + [len(paragraph)]
    items = [
        f"- **`{m[1].replace(', ', '`**, **`')}`**: {' '.join(paragraph[m.end() : end].split())}"
        for m, end in zip(found, ends, strict=True)
    ]
    return "\n\n".join([*filter(None, [paragraph[: found[0].start()].strip()]), "\n".join(items)])


def escaped(text: str) -> str:
    """Brackets and stars outside of backticks as they are, not as links and emphasis."""
    parts = text.split("`")
    return "`".join(p if i % 2 else re.sub(r"([\[*])", r"\\\1", p) for i, p in enumerate(parts))


def block(paragraph: str, lists: bool) -> str:
    if paragraph.startswith(">>>"):
        return f"```pycon\n{paragraph}\n```"
    if paragraph.startswith("    "):
        return paragraph  # a formula, as code
    return listed(escaped(paragraph)) if lists else escaped(paragraph)


def markdown(text: str) -> str:
    lists = re.search(r"^(Attributes|Raises):$", text, re.MULTILINE) is None  # else it is in Google's style
    paragraphs = re.split(r"\n\s*\n", text.strip("\n"))
    return PAGE.sub(r"[\1](../\2.md)", "\n\n".join(block(p, lists) for p in paragraphs))


class Docstrings(griffe.Extension):
    """Rewrites every docstring before mkdocstrings reads it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)

"""What the pages of the benchmarks are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

NONE = "-"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    # a pipe in a note would end its cell
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def met(value: float | None, target: float | None) -> str:
    """Whether a value is at most its target."""
    if target is None:
        return ""
    return NONE if value is None else "yes" if value <= target else "no"


def number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def head(title: str, command: str, machine: Mapping[str, str | int], quick: bool, alt: str, figure: str) -> str:
    """The top of a page: the command, whether its numbers count, the machine, the figure."""
    facts = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in machine.items())
    smoke = "A smoke run (--quick): too small and too short for its numbers to say anything.\n\n" if quick else ""
    return f"# {title}\n\n```\n{command}\n```\n\n{smoke}{facts}.\n\n![{alt}]({figure})\n"

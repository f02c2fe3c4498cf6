"""Takes out of a loop's C++ code what every turn would do again: handles of tensors that stay the same, and memory.

Inductor writes the body of a loop as if it ran once: at every turn each input gets a new handle, and each intermediate
value new memory. For states of a few hundred numbers that takes several times as long as the arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_LOOP = re.compile(r"^(?P<opening>([ \t]*)while \(1\) \{)\n(?P<body>(?:.*\n)*?)(?P<closing>\2\})$", re.MULTILINE)
_NAME = re.compile(r"\w+")
_HANDLE = re.compile(r"\s*AtenTensorHandle (\w+)_handle;$")
_ALIAS = re.compile(
    r"(\s*auto (\w+) = wrap_with_raii_handle_if_needed\(reinterpret_tensor_wrapper\((\w+), .*\)\);) \3\.reset\(\);.*"
)
_RESET = re.compile(r"\s*(\w+)\.reset\(\);$")
_MADE = re.compile(r"\s*(?:auto|RAIIAtenTensorHandle) (\w+)\b")
_MOVE = re.compile(r"\s*(?:auto )?(\w+) = std::move\((.*)\);")
_ONCE = re.compile(r"\bRAIIAtenTensorHandle\((tmp_\w+)\)")
_ALWAYS = "static constexpr int64_t"


def hoisted(source: str) -> str:
    """The same program. Loops that are not written as expected stay as they are."""
    return _LOOP.sub(_lean, source)


def _owned(text: str) -> tuple[list[str], list[str]]:
    """Owners for handles made before the loop, and the body with them: Inductor has each use of one free it."""
    made_here = set(re.findall(r"AtenTensorHandle (tmp_\w+);", text))
    names = [name for name in dict.fromkeys(_ONCE.findall(text)) if name not in made_here]
    for name in names:
        text = text.replace(f"RAIIAtenTensorHandle({name})", f"{name}_owner")
    return [f"RAIIAtenTensorHandle {name}_owner({name});" for name in names], text.split("\n")[:-1]


def _lean(loop: re.Match[str]) -> str:
    before, body = _owned(loop["body"])
    kept = _handed_on(body)  # what a turn hands to the next one is made anew at each
    varying = {m.group(1) for line in body if (m := _MOVE.match(line))}
    inside: list[str] = []
    out_of_it: set[str] = set()
    i = 0
    while i < len(body):
        line, handle = body[i], _HANDLE.match(body[i])
        three = body[i : i + 3]
        if line.lstrip().startswith(_ALWAYS):
            before.append(line)
        elif (
            handle and len(three) == 3 and three[2].strip() == f"RAIIAtenTensorHandle {handle[1]}({handle[1]}_handle);"
        ):
            stays = handle[1] not in kept and _stays(three[1], handle[1], varying)
            (before if stays else inside).extend(three)
            (out_of_it if stays else varying).add(handle[1])
            i += 2
        elif (alias := _ALIAS.match(line)) and alias[3] in out_of_it and alias[2] not in kept:
            before.append(alias[1])
            out_of_it.add(alias[2])
        elif not ((reset := _RESET.match(line)) and reset[1] in out_of_it):
            inside.append(line)
            if made := _MADE.match(line):
                varying.add(made[1])
        i += 1
    return "\n".join(["{", *before, loop["opening"], *inside, loop["closing"], "}"])


def _stays(call: str, name: str, varying: set[str]) -> bool:
    """Whether a handle is the same at every turn: memory, or an input that no turn changes."""
    if "aoti_torch_empty_strided(" in call:
        return True
    return "aoti_torch_assign_tensors_out(" in call and not (set(_NAME.findall(call)) - {name}) & varying


def _handed_on(body: Sequence[str]) -> set[str]:
    """Names of values that outlive the turn, or whose memory does."""
    names: set[str] = set()
    for line in reversed(body):
        if moved := _MOVE.match(line):
            names |= set(_NAME.findall(moved[2]))
        elif (alias := _ALIAS.match(line)) and alias[2] in names:
            names.add(alias[3])
    return names

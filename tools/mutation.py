"""Mutants of control, engine and gradients, by mutmut: how many the tests kill, and which live.

    python tools/mutation.py                                  # all of them: hours
    python tools/mutation.py --folders control                # one folder
    python tools/mutation.py --folders engine --sample 150 --seed 0
    python tools/mutation.py --folders engine --again         # those that lived, with the tests as they are now

Each folder has its own tests here, those that are about it and quick; mutmut runs for a mutant those that call the
mutated function. Annotations, docstrings and decorated functions (properties, dataclasses' fields) are not mutated, nor
what TorchDynamo reads (unrolled.py), which cannot record a mutant's switch.
Survivors in which only a message, the `strict=` of a zip or the spelling of "inf" differs are counted apart, as
`harmless`: no result depends on them.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "mutation"
TESTS = {
    "control": ["tests/control", "tests/engine/test_loop.py"],
    "engine": [
        "tests/engine",
        "tests/captured/test_random_draws.py",
        "tests/control",
        "tests/failures/test_alone.py",
        "tests/gradients/test_functional.py",
        "tests/test_errors.py",
        "tests/test_events.py",
        "tests/test_hybrid.py",
        "tests/test_reaching_zero.py",
    ],
    "gradients": [
        "tests/captured/test_closed_forms.py",
        "tests/engine/test_jumps.py",
        "tests/gradients/test_gradients.py",
        "tests/gradients/test_settings.py",
        "tests/failures/test_alone.py",
        "tests/test_hybrid.py",
    ],
}
NAMED = "not traced and not compiled"
CONFIG = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = ["src/odenet/{folder}/*"]
do_not_mutate = ["*/unrolled.py"]
pytest_add_cli_args = ["-p", "no:randomly", "-p", "no:cacheprovider", "-m", "not slow", "-k", "{named}"]
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"
timeout_constant = 10.0
"""
KILLED, LIVED, UNTESTED, TIMEOUT = "killed", "lived", "no test", "timeout"
VERDICTS = {0: LIVED, 5: UNTESTED, 33: UNTESTED, 24: TIMEOUT, -24: TIMEOUT, 36: TIMEOUT, 152: TIMEOUT}


def prepare(folder: str) -> Path:
    """A copy of the tree with mutmut's settings for this folder; results of an earlier run there are used again."""
    place = WORK / folder
    place.mkdir(parents=True, exist_ok=True)
    for part in ("src", "tests", "docs", "examples"):
        shutil.copytree(ROOT / part, place / part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tests = json.dumps(TESTS[folder])
    (place / "pyproject.toml").write_text(
        settings + CONFIG.format(folder=folder, named=NAMED, tests=tests), encoding="utf-8"
    )
    return place


def mutmut(place: Path, *arguments: str, may_fail: bool = False) -> None:
    # without the working tree on the path, the tests would import what is installed, not the mutants
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"}
    surroundings.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(command, cwd=place, env=surroundings, capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        raise SystemExit(
            f"{' '.join(command[:4])} ... in {place} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )


def verdicts(place: Path, folder: str) -> dict[str, int | None]:
    """Exit code of the tests by mutant; None: not run."""
    found: dict[str, int | None] = {}
    for meta in sorted((place / "mutants" / "src" / "odenet" / folder).rglob("*.meta")):
        found |= json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
    return found


def differences(place: Path, folder: str) -> Iterator[tuple[str, list[str]]]:
    """Each mutant with its changed lines, from the file in which mutmut keeps all variants of a function."""
    for meta in sorted((place / "mutants" / "src" / "odenet" / folder).rglob("*.meta")):
        source = meta.with_suffix("").read_text(encoding="utf-8")
        lines_of = source.splitlines()
        functions = {
            node.name: lines_of[node.lineno - 1 : node.end_lineno]
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef)
        }
        for key in json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]:
            name = key.rsplit(".", 1)[1]
            before = functions.get(re.sub(r"mutmut_\d+$", "mutmut_orig", name), [])
            after = functions.get(name, [])
            lines = difflib.unified_diff(before, after, lineterm="", n=0)
            kept = [x for x in lines if x[:1] in "+-" and not x.startswith(("+++", "---")) and "mutmut_" not in x]
            yield key, kept


def harmless(lines: list[str]) -> bool:
    """Whether only a message, `strict=` or the spelling of "inf" is another. One line against one, else it is not."""
    if len(lines) != 2:
        return False
    before, after = (line[1:].strip() for line in lines)
    if "raise " in before or before.startswith(('f"', '"')):
        return True
    same = [re.sub(r",?\s*strict=\w+|,\s*(?=\))", "", x) for x in (before, after)]
    same = [re.sub(r'float\("(\w+)"\)', lambda m: f'float("{m[1].lower()}")', x) for x in same]
    return same[0] == same[1]


def measure(folder: str, sample: int | None, seed: int, children: int, again: bool) -> Counter[str]:
    place = prepare(folder)
    many = ("--max-children", str(children))
    if again:
        before = verdicts(place, folder)
        chosen = [name for name, code in before.items() if code is not None]
        lived = [name for name in chosen if VERDICTS.get(before[name] or 0, KILLED) in (LIVED, UNTESTED)]
        if lived:
            mutmut(place, "run", *many, *lived)
    elif sample is not None:  # a name that no mutant has: they are made, and none is run
        mutmut(place, "run", *many, "none", may_fail=True)
        chosen = sorted(verdicts(place, folder))
        chosen = random.Random(seed).sample(chosen, min(sample, len(chosen)))
        if not chosen:
            raise SystemExit(f"mutmut made no mutants in {place}: run `python -m mutmut run` there to see why")
        mutmut(place, "run", *many, *chosen)
    else:
        mutmut(place, "run", *many)
        chosen = sorted(verdicts(place, folder))
    names = sorted(verdicts(place, folder))
    codes, changed = verdicts(place, folder), dict(differences(place, folder))
    counted: Counter[str] = Counter(total=len(names))
    for name in chosen:
        code = codes[name]
        verdict = "not run" if code is None else VERDICTS.get(code, KILLED)
        if verdict in (LIVED, UNTESTED):
            if harmless(changed[name]):
                verdict = "harmless"
            else:
                print(f"{verdict}: {name.removeprefix('odenet.')}", *(f"    {x}" for x in changed[name]), sep="\n")
        counted[verdict] += 1
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", nargs="+", choices=sorted(TESTS), default=sorted(TESTS))
    parser.add_argument("--sample", type=int, help="mutants of each folder, drawn at random; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--children", type=int, default=2, help="mutants at a time")
    parser.add_argument("--again", action="store_true", help="of those run before, run those that lived once more")
    given = parser.parse_args()
    rows = {folder: measure(folder, given.sample, given.seed, given.children, given.again) for folder in given.folders}
    print("\n| folder | mutants | run | killed | by timeout | harmless | lived | without a test | score |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for folder, n in rows.items():
        run = n[KILLED] + n[TIMEOUT] + n["harmless"] + n[LIVED] + n[UNTESTED]
        score = (n[KILLED] + n[TIMEOUT]) / max(run - n["harmless"], 1)
        cells = (folder, n["total"], run, n[KILLED], n[TIMEOUT], n["harmless"], n[LIVED], n[UNTESTED], f"{score:.1%}")
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()

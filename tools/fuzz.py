"""Random calls of the public face, kept in a report: what was called, how each call ended, and what was found.

    python tools/fuzz.py --calls 20000 --seed 0        # benchmarks/results/fuzz.md and .csv; some minutes
    python tools/fuzz.py --call "Valid(field='scale', ...)"   # one call again, with the traceback of what is wrong

The calls and what is demanded of them: tests/fuzz. Ends with status 1 where something was found.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import platform
import shlex
import signal
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT / "tests")  # in the place of this folder, whose fuzz.py is not the package

import torch  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402

import odenet  # noqa: E402
from fuzz import strategies  # noqa: E402
from fuzz.calls import run  # noqa: E402
from fuzz.ledger import Ledger  # noqa: E402

LONGEST = 60  # seconds of a processor that one call may take
SIZE = 200  # calls drawn with one seed
PRINTED = 3  # findings of one message in the report


def hung(*_: Any) -> None:
    raise TimeoutError(f"the call took more than {LONGEST} s")


class Part(NamedTuple):
    """Some calls of one kind, and how they ended. slowest: seconds, and the call."""

    kind: str
    made: int
    ends: Counter[tuple[str, str]]
    findings: list[tuple[str, str]]
    slowest: tuple[float, str]


def part(kind: str, count: int, number: int, last: Path) -> Part:
    """`count` calls drawn with the seed `number`. The one at hand is in `last`, should the interpreter crash."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, hung)
    ledger, findings, made, slowest = Ledger(), [], 0, (0.0, "")
    strategy, _ = strategies.KINDS[kind]

    def one(call: Any) -> None:
        nonlocal made, slowest
        if made == count:
            return
        made += 1
        last.write_text(f"{call!r}\n", encoding="utf-8")
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        try:
            run(call, ledger)
        except Exception as error:
            findings.append((f"{type(error).__name__}: {error}", repr(call)))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, (time.process_time() - start, repr(call)))

    for again in range(100):  # hypothesis may end before the count where few examples are left
        if made < count:
            drawn = settings(
                max_examples=count - made, database=None, deadline=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(given(strategy)(one))  # fmt: skip
            seed(number + again * 1_000_003)(drawn)()
    last.unlink()
    return Part(kind, made, ledger.ends, findings, slowest)


def report(parts: list[Part], command: str, seconds: float) -> str:
    ends, made = Counter[tuple[str, str]](), Counter[str]()
    for one in parts:
        ends.update(one.ends)
        made[one.kind] += one.made
    findings = [x for one in parts for x in one.findings]
    values = sum(n for (_, end), n in ends.items() if end == "value")
    lines = [
        "# Random calls of the public face",
        "",
        f"`{command}`",
        "",
        f"{sum(made.values())} generated calls ({', '.join(f'{n} {k}' for k, n in made.items())}), {len(findings)} "
        f"findings, {seconds:.0f} s. PyTorch {torch.__version__}, Python {platform.python_version()}, odenet "
        f"{odenet.__version__}, {platform.machine()}.",
        "",
        "A generated call may lead to others, such as the same one with its times shifted, or `sol(t)`: "
        f"{sum(ends.values())} in all, {values} of which gave a value. Values of calls with a known answer are",
        "compared with it, and so are gradients; what they may differ by follows from the tolerances or the step",
        "(tests/fuzz/known.py). Calls with wrong arguments or a wrong field have to give a right value, or an error",
        "that names the argument. A warning that is not documented is a finding, and so are a call of more than "
        f"{LONGEST} s,",
        "an input changed in place, and changed global settings.",
        "",
        "| entry point | ended with | calls |",
        "| --- | --- | ---: |",
        *(f"| {entry} | {end} | {n} |" for (entry, end), n in sorted(ends.items())),
        "",
        "## Findings",
        "",
    ]
    seen = Counter[str]()
    for message, call in findings:
        seen[message[:60]] += 1
        if seen[message[:60]] <= PRINTED:
            lines += [f"- {' '.join(message.split())[:400]}", "", f"  `{call}`", ""]
    return "\n".join(lines if findings else [*lines, "None.", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000, help="generated calls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kinds", nargs="*", choices=sorted(strategies.KINDS), help="only these, all calls shared by them"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--call", help="one call as a report or a failing test printed it")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of fuzz.md and fuzz.csv"
    )
    given_ = parser.parse_args()
    torch.set_num_threads(1)
    if given_.call:
        try:
            run(eval(given_.call, vars(strategies)), Ledger())
        except Exception:
            traceback.print_exc()
            return 1
        print("as it should be")
        return 0
    given_.out.mkdir(parents=True, exist_ok=True)
    kinds = given_.kinds or list(strategies.KINDS)
    total = sum(strategies.KINDS[k][1] for k in kinds)
    start, tasks = time.perf_counter(), []
    for number, kind in enumerate(kinds):
        left = round(given_.calls * strategies.KINDS[kind][1] / total)
        while left > 0:
            tasks.append((kind, min(left, SIZE), given_.seed * 10_007 + number * 1009 + len(tasks)))
            left -= SIZE
    parts = []
    with ProcessPoolExecutor(given_.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(part, *task, given_.out / f"fuzz.{i}.last") for i, task in enumerate(tasks)]
        for future in futures:
            parts.append(one := future.result())
            print(
                f"{one.kind}: {one.made} calls, slowest {one.slowest[0]:.1f} s, {len(one.findings)} findings",
                flush=True,
            )
            for message, call in one.findings:
                print(f"{message[:300]}\n  {call}", flush=True)
    command = shlex.join(["python", "tools/fuzz.py", *sys.argv[1:]])
    (given_.out / "fuzz.md").write_text(report(parts, command, time.perf_counter() - start), encoding="utf-8")
    counts = sum((one.ends for one in parts), Counter[tuple[str, str]]())
    with (given_.out / "fuzz.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["entry", "end", "calls"])
        writer.writerows([entry, end, n] for (entry, end), n in sorted(counts.items()))
    seconds, slowest = max(one.slowest for one in parts)
    print(f"slowest: {seconds:.1f} s {slowest}")
    return int(any(one.findings for one in parts))


if __name__ == "__main__":
    sys.exit(main())

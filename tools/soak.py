"""Solves a million times and trains a thousand steps, and looks for growth: of memory, objects, caches, files, threads.

    python tools/soak.py --out benchmarks/results/soak.md

Exit code 1 where something grows. What grows for a reason (a cache that fills up to its bound) has done so in the
first part, which is not judged. Memory is judged by the slope of a line through the resident size over the second
half; counts by whether the last third's least is above the middle third's most.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

import odenet
from odenet.nn import MLPField, NeuralODE

Kind = Callable[[int], Any]  # one solve, given how many there were before

LOOKS = 30  # at memory and counts in a run
BOUND = 4.0  # MiB that the resident size may grow by, in a whole run, by the line through its second half
GRADIENTS = ("discrete", "backprop", "adjoint", "gauss", "reversible", "forward")
Y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
ROWS = torch.tensor([[1.0, 0.5], [0.2, 2.0], [0.0, -1.0]], dtype=torch.float64)
LOOSE = {"rtol": 1e-2, "atol": 1e-2}


# The solves. Each makes its field anew: a cache that holds on to a field, or is keyed by it, grows.


def plain(i: int) -> None:
    rate = -1.0 - i % 7
    odenet.solve(lambda t, y: rate * y, Y0, [0.0, 0.1], method="euler", step=0.1)


def trained(i: int) -> None:
    rate = torch.tensor(-1.0 - i % 7, dtype=torch.float64, requires_grad=True)
    how = GRADIENTS[i % len(GRADIENTS)]
    sol = odenet.solve(lambda t, y: rate * y, Y0, [0.0, 0.2], method="heun", gradient=how, **LOOSE)
    sol.y1.sum().backward()


def own_steps(i: int) -> None:
    rate = torch.full((3, 1), -1.0 - i % 7, dtype=torch.float64, requires_grad=True)
    f = lambda t, y, k: k * y  # noqa: E731 - a field that nobody had before
    sol = odenet.solve(f, ROWS, [0.0, 0.1], args=(rate,), method="heun", per_sample=True, **LOOSE)
    sol.y1.sum().backward()


def dense(i: int) -> None:
    sol = odenet.solve(lambda t, y: -y, Y0, [0.0, 0.1 + 0.001 * (i % 9)], method="heun", dense=True, **LOOSE)
    sol(0.05)


def event(i: int) -> None:
    level = 0.9 + 0.01 * (i % 5)
    falls = odenet.Event(lambda t, y: y[0] - level)
    odenet.solve(lambda t, y: -y, Y0, [0.0, 0.3], method="rk4", step=0.3, event=falls)


def module(i: int) -> None:
    layer = NeuralODE(MLPField(2, hidden=(3,)).double(), method="midpoint", step=0.2, ts=(0.0, 0.2))
    layer(ROWS[: 1 + i % 3]).sum().backward()


def failing(i: int) -> None:
    if i % 2:
        odenet.solve(lambda t, y: y * y, 1e3 * Y0, [0.0, 1.0], method="heun", max_steps=2, on_failure="return")
        return
    try:
        odenet.solve(lambda t, y: y * float("nan"), Y0, [0.0, 1.0], method="euler", step=0.5)
    except odenet.SolveError:
        return
    raise AssertionError("a field of NaN was solved")


def implicit(i: int) -> None:
    rate = torch.tensor(-50.0 - i % 7, dtype=torch.float64, requires_grad=True)
    odenet.solve(lambda t, y: rate * y, Y0, [0.0, 0.1], method="implicit_euler", step=0.1).y1.sum().backward()


def own_code(i: int) -> None:
    """A field whose code is new too, as in a notebook cell that is run again."""
    names: dict[str, Any] = {}
    exec("def f(t, y): return -y", names)
    odenet.solve(names["f"], Y0, [0.0, 0.1], method="euler", step=0.1)


def transformed(i: int) -> None:
    def end(y: Tensor) -> Tensor:
        return odenet.solve(lambda t, x: -x, y, [0.0, 0.1], method="euler", step=0.1).y1.sum()

    torch.func.vmap(torch.func.grad(end))(ROWS[: 1 + i % 3])


def compiled(i: int) -> None:
    """Other tolerances each time, other times and weights, a field of its own."""
    rate = torch.tensor(-1.0 - i % 7, dtype=torch.float64, requires_grad=True)
    tolerance = 1e-2 * (1 + (i % 1009) / 1009)
    f = lambda t, y: rate * y  # noqa: E731
    ts = [0.0, 0.2 + 0.001 * (i % 11)]
    y0 = ROWS[: 2 + i % 2]
    odenet.solve(f, y0, ts, method="heun", rtol=tolerance, atol=tolerance, compile=True).y1.sum().backward()


def compiled_module(i: int) -> None:
    """A module that is dropped, with its weights, after one solve."""
    layer = NeuralODE(MLPField(2, hidden=(3,)).double(), method="euler", step=0.2, ts=(0.0, 0.2), compile=True)
    layer(ROWS).sum().backward()


def compiled_code(i: int) -> None:
    names: dict[str, Any] = {}
    exec("def f(t, y): return -y", names)
    with torch.no_grad():
        odenet.solve(names["f"], Y0, [0.0, 0.1], method="euler", step=0.1, compile=True)


# One cycle of the run: how often each. The shortest solve is most of them, as it shows most solves a second.
CYCLE: tuple[tuple[Kind, int], ...] = (
    (plain, 470), (trained, 6), (own_steps, 3), (dense, 4), (event, 2), (module, 2), (failing, 4), (implicit, 2),
    (own_code, 4), (transformed, 3),
)  # fmt: skip
COMPILED: tuple[tuple[Kind, int], ...] = ((compiled, 40),)
RARE: tuple[tuple[Kind, int], ...] = ((compiled_module, 1), (compiled_code, 1))  # each takes TorchDynamo anew


# What is watched.


def resident() -> float:
    """MiB of this process in memory, after what is free has been given back."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _sized(owner: str, name: str, value: Any) -> Iterator[tuple[str, int]]:
    if hasattr(value, "cache_info") and not isinstance(value, type):
        info = value.cache_info()
        if info.maxsize is None or info.currsize > info.maxsize:
            yield f"{owner}.{name}", info.currsize
    elif isinstance(value, (Mapping, Set, MutableSequence, WeakSet)):
        yield f"{owner}.{name}", len(value)


def caches() -> dict[str, int]:
    """Sizes of all that odenet's modules hold, and of PyTorch's compiler. Found, not listed: new caches are seen."""
    found: dict[str, int] = {}
    for owner, code in [(k, m) for k, m in sys.modules.items() if k.split(".")[0] == "odenet" and m is not None]:
        for name, value in list(vars(code).items()):
            if name.startswith("__"):
                continue
            found.update(_sized(owner, name, value))
            if type(value).__module__ == owner and hasattr(value, "__dict__"):
                for inner, held in list(vars(value).items()):
                    found.update(_sized(f"{owner}.{name}", inner, held))
    if "odenet.compiled.field_graph" in sys.modules:
        found |= compilers()
    return found


def compilers() -> dict[str, int]:
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list
    from torch._inductor.codecache import PyCodeCache

    calls = sys.modules["odenet.compiled.field_graph"]
    of_a_code = [calls_ for _, calls_ in list(calls._calls._values.values())]
    guarded = [getattr(call, "_torchdynamo_orig_callable", None) for each in of_a_code for call in each.values()]
    entries = sum(len(_debug_get_cache_entry_list(f.__code__)) for f in guarded if isinstance(f, FunctionType))
    return {"TorchDynamo's graphs": entries, "Inductor's modules": len(PyCodeCache.modules)}


def counts() -> dict[str, int]:
    """What there is by number: objects by type, tensors, caches, files, threads."""
    for _ in range(2):  # what a finaliser frees goes with the second
        gc.collect()
    types: Counter[str] = Counter()
    for kind, n in Counter(map(type, gc.get_objects())).items():
        types[f"objects: {kind.__module__}.{kind.__qualname__}"] += n
    seen = dict(types)
    seen["tensors"] = sum(
        n for name, n in types.items() if name in ("objects: torch.Tensor", "objects: torch.nn.parameter.Parameter")
    )
    seen["objects"] = sum(types.values())
    seen |= {f"cache: {name}": n for name, n in caches().items()}
    seen["open files"] = len(os.listdir("/proc/self/fd"))
    seen["threads"] = len(os.listdir("/proc/self/task"))
    seen["mapped libraries"] = len(
        {x.split()[-1] for x in Path("/proc/self/maps").read_text().splitlines() if ".so" in x}
    )
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    seen["files of the compile cache"] = sum(len(files) for _, _, files in os.walk(folder)) if folder else 0
    return seen


@dataclass
class Watch:
    """Looks at the process. The lists themselves are made before the first look, so that they do not show as growth."""

    title: str
    total: int
    sizes: list[float] = field(default_factory=list)
    seen: list[dict[str, int]] = field(default_factory=list)
    seconds: float = 0.0
    judged: Callable[[str], bool] = lambda name: True  # which counts must not grow
    begin: float = field(default_factory=time.perf_counter)

    def look(self) -> None:
        self.seen.append(counts())
        self.sizes.append(resident())
        self.seconds = time.perf_counter() - self.begin
        print(f"{self.seconds:7.0f} s: {self.title}, look {len(self.sizes)}, {self.sizes[-1]:.1f} MiB", file=sys.stderr)

    def growth(self) -> float:
        """MiB by which the resident size grows in a whole run: the slope over the second half, times the run."""
        half = self.sizes[len(self.sizes) // 2 :]
        mean_x, mean_y = (len(half) - 1) / 2, sum(half) / len(half)
        over = sum((i - mean_x) * (y - mean_y) for i, y in enumerate(half))
        return over / sum((i - mean_x) ** 2 for i in range(len(half))) * len(self.sizes)

    def grown(self) -> dict[str, tuple[int, int]]:
        """What there is ever more of: the most in the middle third, the least in the last."""
        third = len(self.seen) // 3
        names = {name for seen in self.seen for name in seen if self.judged(name)}
        middle = {k: max(s.get(k, 0) for s in self.seen[third : 2 * third]) for k in names}
        last = {k: min(s.get(k, 0) for s in self.seen[2 * third :]) for k in names}
        return {k: (middle[k], last[k]) for k in sorted(names) if last[k] > middle[k] + len(self.seen) * (k in OWN)}


# A look leaves a few of these behind, its own.
OWN = ("objects: builtins.dict", "objects")


def cycle(kinds: tuple[tuple[Kind, int], ...]) -> list[Kind]:
    """Each as often as it says, spread evenly."""
    places = [((k + 0.5) / often, kind) for kind, often in kinds for k in range(often)]
    return [kind for _, kind in sorted(places, key=lambda x: x[0])]


def solve_all(watch: Watch, kinds: tuple[tuple[Kind, int], ...], looks: int = LOOKS) -> Watch:
    """`watch.total` solves or some more, in whole cycles. Every look is at the end of a cycle: all see the same."""
    turn, counters = cycle(kinds), {kind: itertools.count() for kind, _ in kinds}
    cycles = max(looks, -(-watch.total // len(turn)))
    for k in range(cycles):
        for kind in turn:
            kind(next(counters[kind]))
        if (k + 1) * looks // cycles > k * looks // cycles:
            watch.look()
    watch.total = cycles * len(turn)
    return watch


def ours(name: str) -> bool:
    """What this library answers for. TorchDynamo keeps some 180 small objects of every code that it has captured."""
    return "odenet" in name or not name.startswith(("objects", "cache:"))


def train(steps: int, compile: bool, looks: int = LOOKS) -> Watch:
    """Training steps of a small model: each gradient in turn, and the compiled solve."""
    watch = Watch("training steps", steps)
    torch.manual_seed(0)
    ways: list[dict[str, Any]] = [{"gradient": name} for name in GRADIENTS if name != "forward"]
    ways += [{"compile": True}] if compile else []
    model = nn.ModuleList([NeuralODE(MLPField(2, hidden=(8,)), method="bosh3", **LOOSE, **way) for way in ways])
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for k in range(steps):
        y0 = torch.randn(16, 2)
        loss = (model[k % len(ways)](y0) - y0.flip(1)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (k + 1) * looks // steps > k * looks // steps:
            watch.look()
    return watch


def lines(watch: Watch, bound: float) -> Iterator[str]:
    quarters = [watch.sizes[round(q * (len(watch.sizes) - 1))] for q in (0, 0.25, 0.5, 0.75, 1)]
    first, half, last = watch.seen[0], watch.seen[len(watch.seen) // 2], watch.seen[-1]
    yield f"## {watch.total} {watch.title}: {watch.seconds:.0f} s"
    yield ""
    yield f"Resident size at the first look and each quarter, MiB: {', '.join(f'{x:.1f}' for x in quarters)}."
    yield f"Growth in a whole run by the line through the second half: {watch.growth():+.2f} MiB (bound {bound:g})."
    yield ""
    yield "| number of | first look | half | end |"
    yield "| --- | --- | --- | --- |"
    for name in sorted(last):
        if not name.startswith("objects:") and (not name.startswith("cache:") or first.get(name) != last[name]):
            yield f"| {name} | {first.get(name, 0)} | {half.get(name, 0)} | {last[name]} |"
    still = sum(name.startswith("cache:") and first.get(name) == n for name, n in last.items())
    yield f"| caches and tables of the same size throughout | {still} | {still} | {still} |"
    yield ""
    if watch.judged is ours:
        before, after = first["objects"], last["objects"]
        yield f"All objects, TorchDynamo's own among them: {before} to {after}; neither they nor the size are judged."
        yield ""
    for name, (middle, end) in watch.grown().items():
        yield f"GROWS: {name}, at most {middle} in the middle third, at least {end} in the last."
    if watch.judged is not ours and watch.growth() > bound:
        yield f"GROWS: memory, by {watch.growth():.2f} MiB a run, more than {bound:g}."


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solves", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--looks", type=int, default=LOOKS, help="at memory and counts")
    parser.add_argument("--bound", type=float, default=BOUND, help="MiB of growth in a run")
    parser.add_argument("--no-compile", action="store_true", help="without compile=True (no compiler, or no time)")
    parser.add_argument("--out", type=Path, help="the report as Markdown; it is printed too")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # of its own: other processes put files into the common one
        kinds = CYCLE if given.no_compile else CYCLE + COMPILED
        if not given.no_compile:
            for i in range(300):  # what has a bound is filled
                compiled(i)
        watches = [solve_all(Watch("short solves", given.solves), kinds, given.looks)]
        if not given.no_compile:
            anew = Watch("compiled solves whose f is captured anew", given.solves // 5_000, judged=ours)
            watches.append(solve_all(anew, RARE, given.looks))
        watches.append(train(given.steps, not given.no_compile, given.looks))
    said = " ".join(["python tools/soak.py", *(sys.argv[1:] if arguments is None else arguments)])
    text = [
        "# Soak",
        "",
        "```",
        said,
        "```",
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}, one thread.",
    ]
    text += ["", *(line for watch in watches for line in lines(watch, given.bound))]
    verdict = [line for line in text if line.startswith("GROWS")]
    text += ["", "Nothing grows." if not verdict else f"{len(verdict)} things grow."]
    print("\n".join(text))
    if given.out:
        given.out.write_text("\n".join(text) + "\n", encoding="utf-8")
    return 1 if verdict else 0


if __name__ == "__main__":
    sys.exit(main())

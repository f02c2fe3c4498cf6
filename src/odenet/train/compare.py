"""Train the paper's nets on one data set, measure them, print the table and draw the figures."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from ..errors import SolveError
from ..nn import Classifier
from ..nn.classifier import KINDS
from . import checkpoint, files, lock, plots, report
from .data import Batches, ImageData
from .measure import cost
from .problems import UserError
from .processes import Processes
from .runner import PATIENCE, Run, history, prepare, train
from .tasks import Settings, Task


def run(
    kinds: list[str], data: ImageData, s: Settings, out: Path, resume: bool, processes: Processes, command: str
) -> list[Path]:
    """Everything of `odenet compare`; gives the files it wrote. Of several processes only the first writes any."""
    processes.check_batch(s.batch_size)
    if resume and not lock.begun(out):
        raise UserError(f"--resume: {out} holds no run; leave --resume out to start one, or give its --out")
    with lock.hold(out):
        return _run(kinds, data, s, out, resume, processes, command)


def _run(
    kinds: list[str], data: ImageData, s: Settings, out: Path, resume: bool, processes: Processes, command: str
) -> list[Path]:
    if not resume and any(checkpoint.exists(out / kind) for kind in kinds):
        raise UserError(f"--out {out} holds a run already: add --resume to go on with it, or choose another --out")
    # what cannot be taken up is refused before anything is written, also of the folder's other nets: it has one table
    there = [kind for kind in KINDS if checkpoint.exists(out / kind)]
    ended = [kind for kind in there if _ended(prepare(kind, data, s, out, True, processes))]
    first = lock.first_process()
    say = partial(Console(stderr=True, quiet=not first).print, soft_wrap=True)
    if first:
        files.clean(out, *(out / kind for kind in kinds))
        files.write(out / "settings.json", json.dumps(s.as_dict(), indent=2) + "\n")
    tasks: dict[str, Task] = {}
    for kind in [k for k in KINDS if k in kinds or k in ended]:
        start = time.perf_counter()
        tasks[kind] = train(kind, data, s, out, kind in there, processes)
        took = "already" if kind in ended else f"in {time.perf_counter() - start:.0f} s"
        say(f"{KINDS[kind]}: trained {took}{_early(len(history(out, kind)), s) if first else ''}")
    if not first:
        return []
    for kind in (k for k in there if k not in tasks):
        say(f"{KINDS[kind]}: begun in {out} and not trained to its end, so not in the table; go on with --resume")
    try:
        return _measured(tasks, data, s, out, command, ended, [k for k in ended if k not in kinds])
    except SolveError as error:
        raise UserError(
            f"the nets are trained, but a solve to measure them failed: {error} Try another --tolerance or --method, "
            "with another --out"
        ) from None


def _ended(run: Run) -> bool:
    return run.found is not None and run.found.state["odenet"]["ended"]


def _early(epochs: int, s: Settings) -> str:
    if epochs >= s.epochs:
        return ""
    return f"; stopped after {epochs} of {s.epochs} epochs, the last {PATIENCE} without a better validation error"


def _measured(
    tasks: dict[str, Task],
    data: ImageData,
    s: Settings,
    out: Path,
    command: str,
    ended: list[str],
    earlier: list[str],
) -> list[Path]:
    """The table and the figures of the trained nets; gives the files that this run wrote.

    ended: nets that were trained already; earlier: those of them that the command does not name.
    """
    rows = []
    for kind, task in tasks.items():
        net = _net(task)
        rows.append(report.Row(kind, test_error(net, data), cost(net, data, s.batch_size, 2 if s.quick else 5)))
    written = [out / "settings.json"]
    for kind in tasks:
        written += [out / kind / name for name in ("metrics.csv", *([] if kind in ended else [checkpoint.LAST]))]
    written += report.save(rows, out)
    report.show(rows, f"{data.name}: {len(data.test)} test images")
    drawn = figures({k: _net(t) for k, t in tasks.items()}, data, s, out)
    epochs = {kind: len(history(out, kind)) for kind in tasks}
    written += [report.page(rows, s, command, drawn, out, epochs, earlier), *drawn]
    return [f for f in written if f.exists()]


def _net(task: Task) -> Classifier:
    net = task.net.cpu()
    assert isinstance(net, Classifier)
    return net


@torch.no_grad()
def test_error(net: Classifier, data: ImageData) -> float:
    """Per cent of the test images that the net takes for another class."""
    net.eval()
    wrong = sum(int((net(images).argmax(1) != labels).sum()) for images, labels in Batches(data.test, 256))
    return 100.0 * wrong / len(data.test)


def figures(nets: dict[str, Classifier], data: ImageData, s: Settings, out: Path) -> list[Path]:
    """Draw what the trained nets allow."""
    batch = min(s.batch_size, 32 if s.quick else 128)
    first = next(iter(nets.values()))
    drawn = [
        plots.training({k: history(out, k) for k in nets}, out / "training.png"),
        plots.memory(first, data, s.channels, batch, out / "memory.png", s.quick),
    ]
    if "odenet" in nets:
        net = nets["odenet"]
        drawn.append(plots.trade_off(net, data, min(batch, 32), s.method, out / "trade_off.png", s.quick))
        drawn.append(plots.trajectories(net, data, out / "trajectories.png"))
    return drawn

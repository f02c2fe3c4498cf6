"""The command line."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

from ..errors import unknown_name
from ..nn.classifier import KINDS
from .interrupt import Stopped, stoppable, stopped
from .lock import first_process
from .problems import UserError

_EXTRA = 'the command line needs the extra "train": pip install "torch-odenet[train]"'

_BROUGHT = {"filelock", "lightning", "sklearn", "matplotlib", "rich", "pooch", "tensorboard"}

try:
    import typer
except ImportError:
    print(f"odenet: {_EXTRA}", file=sys.stderr)
    sys.exit(2)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Neural ODEs: train and compare continuous-depth networks.",
)

DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 30, "batch_size": 64, "channels": 32, "lr": 5e-3, "tolerance": 1e-2, "method": "bosh3"},
    "mnist": {"epochs": 8, "batch_size": 128, "channels": 64, "lr": 3e-3, "tolerance": 1e-3, "method": "bosh3"},
}

OutDir = Annotated[Path | None, typer.Option("--out", help="Folder for all results (default: runs/DATA)")]
DataDir = Annotated[Path | None, typer.Option(help="Folder with MNIST's four IDX files, gzipped or not")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the training images")]
BatchSize = Annotated[int | None, typer.Option(min=2, help="Images a training step")]
Channels = Annotated[int | None, typer.Option(min=1, help="Feature maps of the block")]
Rate = Annotated[float | None, typer.Option(min=1e-8, help="Highest learning rate of the cycle")]
Tolerance = Annotated[float | None, typer.Option(min=1e-12, help="Relative and absolute tolerance of the ODE solver")]
MethodName = Annotated[str | None, typer.Option(help="Solver: tsit5, dopri5, bosh3, ...")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights and batches")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
Devices = Annotated[int | None, typer.Option(help="Processes on each machine, a device each; docs/scaling.md")]
Nodes = Annotated[int | None, typer.Option(help="Machines")]
PerSample = Annotated[
    bool, typer.Option("--per-sample", help="Each image has its own solver steps, whatever it is solved with")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, to the same result")]
Quick = Annotated[bool, typer.Option("--quick", help="A few images and one epoch: a smoke run")]


def _command() -> str:
    """The command as the user wrote it, but for --resume: without it, it makes the same results from nothing."""
    return shlex.join(["odenet", *(word for word in sys.argv[1:] if word != "--resume")])


def _start(
    kinds: list[str],
    *,
    data: str,
    out: Path | None,
    data_dir: Path | None,
    seed: int,
    device: str,
    devices: int | None,
    nodes: int | None,
    resume: bool,
    quick: bool,
    **chosen: Any,
) -> None:
    """Run one command. `chosen`: the settings of DEFAULTS that the user gave; None takes the default."""
    from .. import check
    from .compare import run
    from .data import load
    from .processes import chosen as processes_of
    from .tasks import Settings

    for name in ("lr", "tolerance"):
        if chosen[name] is not None and not math.isfinite(chosen[name]):
            raise UserError(f"--{name} {chosen[name]}: a finite number is needed")
    images = load(data, data_dir)
    defaults: dict[str, Any] = DEFAULTS[data] | ({"epochs": 1, "batch_size": 32, "channels": 8} if quick else {})
    values: dict[str, Any] = defaults | {k: v for k, v in chosen.items() if v is not None}
    method, tolerance = values["method"], values.pop("tolerance")
    try:
        solver = check.method(method)
    except ValueError as error:
        raise UserError(f"--method: {error}") from None
    if solver.error_order is None:
        raise UserError(f"--method {method} needs constant steps; choose an adaptive one such as tsit5")
    processes = processes_of(device, devices, nodes)
    settings = Settings(data=data, rtol=tolerance, atol=tolerance, seed=seed, quick=quick, **values)
    folder = Path("runs") / data if out is None else out
    files = run(kinds, images.small() if quick else images, settings, folder, resume, processes, _command())
    if first_process():
        _list(files)


def _list(files: Iterable[Path]) -> None:
    typer.echo("Wrote:")
    for file in files:
        typer.echo(f"  {file}")


@app.command()
def compare(
    data: Annotated[str, typer.Argument(help="digits (embedded) or mnist")],
    out: OutDir = None,
    data_dir: DataDir = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    channels: Channels = None,
    lr: Rate = None,
    tolerance: Tolerance = None,
    method: MethodName = None,
    per_sample: PerSample = False,
    seed: Seed = 0,
    device: Device = "cpu",
    devices: Devices = None,
    nodes: Nodes = None,
    resume: Resume = False,
    quick: Quick = False,
) -> None:
    """Train a residual net, an RK-Net and an ODE-Net side by side; print the paper's table, draw its figures."""
    _start(list(KINDS), **locals())


@app.command()
def train(
    net: Annotated[str, typer.Argument(help="resnet, rknet or odenet")],
    data: Annotated[str, typer.Option(help="digits (embedded) or mnist")] = "digits",
    out: OutDir = None,
    data_dir: DataDir = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    channels: Channels = None,
    lr: Rate = None,
    tolerance: Tolerance = None,
    method: MethodName = None,
    per_sample: PerSample = False,
    seed: Seed = 0,
    device: Device = "cpu",
    devices: Devices = None,
    nodes: Nodes = None,
    resume: Resume = False,
    quick: Quick = False,
) -> None:
    """Train one of the nets of `compare`."""
    options = locals()
    if options.pop("net") not in KINDS:
        raise UserError(str(unknown_name("net", net, KINDS)))
    _start([net], **options)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="gradients or peers")],
    out: Annotated[Path, typer.Option(help="Folder for all results")] = Path("runs/bench"),
    seed: Seed = 0,
    device: Device = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run whose numbers say nothing")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="peers: a field, or work_precision; may be given again (default: all)")
    ] = None,
) -> None:
    """Measure every gradient beside its targets (gradients), or this library side by side with others (peers)."""
    from ..bench import NAMES, gradients
    from ..bench.fields import FIELDS
    from ..bench.peers import run as peers
    from ..bench.progress import shown
    from .files import write
    from .processes import check_device

    if name not in NAMES:
        raise UserError(str(unknown_name("name", name, NAMES)))
    if only and name != "peers":
        raise UserError(f"--only chooses among the fields of `odenet bench peers`; {name} has none")
    parts = [*(field.name for field in FIELDS), peers.PRECISION]
    for part in only or ():
        if part not in parts:
            raise UserError(str(unknown_name("--only", part, parts)))
    check_device(device)
    files: dict[Path, None] = {}
    with shown() as tell:
        if name == "peers":
            results = peers.run(peers.Settings(seed, device, quick, _command(), tuple(only or ())), tell)
        else:
            results = gradients.run(gradients.Settings(seed, device, quick, _command()), tell)
        for file, content in results:
            write(out / file, content)
            files[out / file] = None
    _list(files)


def main() -> None:
    """Entry point: a mistake of the user ends in one line on stderr and exit code 2; Ctrl-C too, and exit code 130."""
    try:
        with stoppable():
            _end(app)
    except Stopped as stop:  # at the very end
        _interrupted(stop.signum)


def _end(command: Callable[[], None]) -> None:
    try:
        command()
    except UserError as error:
        print(f"odenet: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BaseException as error:
        signum = stopped()
        if signum is not None:
            _interrupted(signum)
        if not isinstance(error, ImportError) or (error.name or "").split(".")[0] not in _BROUGHT:
            raise
        print(f"odenet: {_EXTRA} ({error.name} is missing)", file=sys.stderr)
        sys.exit(2)


def _interrupted(signum: int) -> NoReturn:
    if first_process():
        print("odenet: interrupted; every file is whole, a training run goes on with --resume", file=sys.stderr)
    sys.exit(128 + signum)


if __name__ == "__main__":
    main()

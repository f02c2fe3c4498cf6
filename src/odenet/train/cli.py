"""The command line."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

from .. import __version__
from ..errors import unknown_name
from ..nn.classifier import KINDS
from . import children, interrupt
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

# what --quick takes instead; its images: data.ImageData.small
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 32, "channels": 8}


def _folder(given: str) -> Path:
    if not given:
        raise UserError("--out is empty: give a folder")
    return Path(given)


def _option(name: str, text: str, **limits: Any) -> Any:
    """An option of DEFAULTS, whose help tells its defaults."""
    values = {data: f"{own[name]:g}" if name != "method" else own[name] for data, own in DEFAULTS.items()}
    same = len(set(values.values())) == 1
    told = [values["digits"]] if same else [f"{value} for {data}" for data, value in values.items()]
    told += [f"{QUICK[name]} with --quick"] if name in QUICK else []
    return typer.Option(help=f"{text} (default: {', '.join(told)})", **limits)


OutDir = Annotated[
    Path | None,
    typer.Option("--out", parser=_folder, metavar="<path>", help="Folder for all results (default: runs/DATA)"),
]
DataDir = Annotated[Path | None, typer.Option(help="Folder with MNIST's four IDX files, gzipped or not")]
Epochs = Annotated[
    int | None,
    _option(
        "epochs",
        "At most so many passes over the training images: a net's training ends after 20 in a row without a better "
        "validation error",
        min=1,
    ),
]
BatchSize = Annotated[int | None, _option("batch_size", "Images a training step", min=2)]
Channels = Annotated[int | None, _option("channels", "Feature maps of the block", min=1)]
Rate = Annotated[float | None, _option("lr", "Highest learning rate of the cycle", min=1e-8)]
Tolerance = Annotated[
    float | None, _option("tolerance", "Relative and absolute tolerance of the ODE solver", min=1e-12)
]
MethodName = Annotated[
    str | None, _option("method", "Solver, one that chooses its steps: bosh3, tsit5, dopri5, dopri8, heun, ...")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights and batches")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
_STARTED = "default: 1, or what torchrun or Slurm has started"
Devices = Annotated[
    int | None, typer.Option(help=f"Processes on each machine, a device each; docs/scaling.md ({_STARTED})")
]
Nodes = Annotated[int | None, typer.Option(help=f"Machines ({_STARTED})")]
PerSample = Annotated[
    bool,
    typer.Option(
        "--per-sample",
        help="Choose the solver's steps for each image by itself, instead of the same steps for a whole batch",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the run in --out, to the same result; give all options of its start again"
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick", help="A smoke run: one epoch of 128 training images, 64 to validate, 64 to test, and a small net"
    ),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"odenet {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
]


@app.callback()
def _top(version: Version = False) -> None: ...


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
    defaults: dict[str, Any] = DEFAULTS[data] | (QUICK if quick else {})
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
    vain = [f"--{name.replace('_', '-')}" for name in ("tolerance", "method", "per_sample") if chosen[name]]
    if vain and kinds == ["resnet"] and first_process():
        print(f"odenet: resnet solves no ODE: {', '.join(vain)} without effect", file=sys.stderr)
    folder = Path("runs") / data if out is None else out
    interrupt.run_in(folder)
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
    """Train a residual net, an RK-Net and an ODE-Net side by side.

    Prints the table of the Neural ODE paper (Chen et al. 2018) and draws its figures.
    """
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
    except BaseException as error:
        signum = error.signum if isinstance(error, Stopped) else stopped()
        if signum is not None:
            _interrupted(signum)
        if isinstance(error, SystemExit):  # typer's own end, a good one too
            if isinstance(error.code, int) and error.code != 0:
                children.end()
                children.leave(error.code)
            raise
        children.end()
        if isinstance(error, UserError):
            interrupt.say(f"odenet: {' '.join(str(error).split())}")
            children.leave(2)
        if not isinstance(error, ImportError) or (error.name or "").split(".")[0] not in _BROUGHT:
            raise
        print(f"odenet: {_EXTRA} ({error.name} is missing)", file=sys.stderr)
        sys.exit(2)


def _interrupted(signum: int) -> NoReturn:
    children.end()
    if first_process():
        interrupt.say(interrupt.line())
    children.leave(128 + signum)


if __name__ == "__main__":
    main()

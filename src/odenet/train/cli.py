"""The command line."""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from inspect import Parameter, Signature, cleandoc
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import torch
import typer
from typer import Argument, Option

from .. import __version__
from ..api.checks import method as method_named
from ..errors import SolveError
from .processes import device as device_named
from .processes import first_process, together, trainer_options
from .tasks import TASKS, task_class
from .tasks.images import DATA, ImageSettings
from .user_error import UserError

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Train neural ODEs, and use what was trained."
)
trainer = typer.Typer(no_args_is_help=True, help="Train a network on a task; each task has its own --help.")
app.add_typer(trainer, name="train")
_STARTED = "default: 1, or what torchrun or Slurm has started"
Device = Annotated[str, Option(help="cpu, cuda, mps, or auto: cuda where there is one, else cpu")]
Run = Callable[["RunOptions", Mapping[str, Any]], None]


@dataclass(frozen=True)
class RunOptions:
    """Where and how a training runs: options on which its result does not depend."""

    out: Annotated[Path | None, Option(help="Folder for all results (default: runs/TASK)", show_default=False)] = None
    resume: Annotated[
        bool, Option("--resume", help="Go on with the run in --out, to the same result; its settings need not be given")
    ] = False
    device: Device = "auto"
    devices: Annotated[int | None, Option(min=1, help=f"Processes on each machine, a device each ({_STARTED})")] = None
    nodes: Annotated[int | None, Option(min=1, help=f"Machines ({_STARTED})")] = None


@dataclass(frozen=True)
class Comparison(ImageSettings):
    """The options of `odenet compare`."""

    data: Annotated[str, Argument(help=DATA)] = "digits"


def _add(to: typer.Typer, name: str, about: str, settings: type[Any], run: Run, without: str = "") -> None:
    """A command whose options are the fields of `settings` and RunOptions; `run` gets the settings that were given."""

    def command(ctx: typer.Context, **values: Any) -> None:
        run_options = RunOptions(**{field.name: values.pop(field.name) for field in fields(RunOptions)})
        given = {k: v for k, v in values.items() if getattr(ctx.get_parameter_source(k), "name", "") == "COMMANDLINE"}
        run(run_options, given)

    parameters = [Parameter("ctx", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for options in (settings, RunOptions):
        types = get_type_hints(options, include_extras=True)
        for field in fields(options):
            if field.name != without:
                option = Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default)
                parameters.append(option.replace(annotation=types[field.name]))
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    to.command(name, help=about)(command)


def _begin(task: str, options: RunOptions, given: Mapping[str, Any], name: str) -> tuple[Any, Path, dict[str, Any]]:
    """Settings and folder of a run, and the options of its trainer for processes."""
    from .run import resolve_settings

    out = options.out or Path("runs") / name
    settings = resolve_settings(task_class(task), given, out, options.resume)
    try:
        method = method_named(settings.method)
    except ValueError as error:
        raise UserError(f"--method: {error}") from None
    if method.error_order is None:
        raise UserError(f"--method {settings.method} needs constant steps: choose an adaptive one such as tsit5")
    return settings, out, trainer_options(options.device, options.devices, options.nodes)


def _train(task: str, options: RunOptions, given: Mapping[str, Any]) -> None:
    from .run import train

    settings, out, processes = _begin(task, options, given, task)
    made = task_class(task)(settings)
    done = train(made, task, out, options.resume, processes)
    if done.files:
        units = {f"test_{name}": f" ({unit})" for name, unit in made.UNITS.items()}
        _show([{"metric": name + units.get(name, ""), "value": value} for name, value in done.test.items()], [])
        _show(done.table, done.files)


def _compare(options: RunOptions, given: Mapping[str, Any]) -> None:
    from .images.compare import compare

    settings, out, processes = _begin("images", options, given, Path(given.get("data", "digits")).stem)
    command = shlex.join(["odenet", *(word for word in sys.argv[1:] if word != "--resume")])
    rows, files = compare(settings, out, options.resume, processes, command)
    if files:
        _show(rows, files)


def _show(rows: list[dict[str, Any]], files: Iterable[Path]) -> None:
    """Print a table, and which files were written."""
    from rich.console import Console
    from rich.table import Table

    if rows:
        table = Table()
        for i, name in enumerate(rows[0]):
            table.add_column(name, justify="right" if i else "left")
        for row in rows:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    for i, file in enumerate(files):
        typer.echo(f"{'' if i else f'Wrote:{os.linesep}'}  {file}")


_WRITES = """

Writes into --out: settings.json, metrics.csv and tensorboard/ (metrics of each epoch), checkpoints/ (to --resume),
model.safetensors (the trained weights), results.json and figures as PNG.
"""
_COMPARE = """Train a residual net, an RK-Net and an ODE-Net on the same images, side by side.

Prints the table of the Neural ODE paper (Chen et al. 2018). Writes into --out: results.md, .csv and .json, figures, and
a run of `odenet train images` for each net. digits: two minutes on two CPU cores; mnist: hours; --quick: a minute.
"""
for _name in TASKS:
    _task = task_class(_name)
    _add(trainer, _name, cleandoc(_task.__doc__ or _name) + _WRITES, _task.Settings, partial(_train, _name))
_add(app, "compare", _COMPARE, Comparison, _compare, without="net")
RunFolder = Annotated[Path, Argument(help="Folder of a run of `odenet train`, or runs/NAME/odenet of a comparison")]


@app.command()
def predict(
    run: RunFolder,
    files: Annotated[
        list[Path],
        Argument(
            help="images: images, folders of them, .npz; flow: .csv, .npy, .npz, .parquet; series: .csv, .parquet, .ts"
        ),
    ],
    out: Annotated[Path | None, Option(help="Folder for predictions.csv; without it, the table is only shown")] = None,
    times: Annotated[
        str, Option(help="series: times to predict at, with commas between (default: those in the file)")
    ] = "",
    device: Device = "auto",
) -> None:
    """Say what a trained network makes of files. Takes seconds.

    images: a table of file, class and probability; flow: of file, row and log-density in nats, low where a row is
    unusual; series: of each series' class probabilities or number, or of means and deviations at times.
    """
    from .files import write_csv
    from .trained import open_run

    absent = [file for file in files if not file.exists() and ".npz:" not in file.name]
    if absent:
        raise UserError(f"{absent[0]} is not there")
    found = open_run(run)
    asked, net = _times(times), found.net.to(device_named(device))
    task, info = found.task, found.info
    rows = task.predict_at(net, info, files, asked) if asked else task.predict(net, info, files)
    if not rows:
        raise UserError(f"{files[0]} has no files to predict")
    _show(rows, [] if out is None else [write_csv(out / "predictions.csv", rows)])


def _times(text: str) -> list[float]:
    try:
        times = [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise UserError(f"--times {text!r}: give numbers with commas between, as 0.5,1,2") from None
    if not all(map(math.isfinite, times)):
        raise UserError(f"--times {text!r}: give finite numbers")
    return times


@app.command()
def sample(
    run: RunFolder,
    out: Annotated[Path, Option(help="File for the samples: .csv, .npy or .parquet", show_default=False)],
    n: Annotated[int, Option("--n", min=1, help="How many")] = 1000,
    method: Annotated[str, Option(help="Solver, or sampler of flow matching such as dpmpp_2m (default: dopri5)")] = "",
    steps: Annotated[int | None, Option(min=1, help="Even steps; without it, the solver chooses them")] = None,
    seed: Annotated[int, Option(min=0, max=2**32 - 1, help="Seed of the noise")] = 0,
    device: Device = "auto",
) -> None:
    """Draw samples of a trained flow, in the units of its data. Takes seconds.

    Discrete columns get values of their lattice: the pixels of digits are whole numbers from 0 to 16. A count may come
    out negative where the flow gives such values a little weight.
    """
    from .flows.table_files import check_suffix, write_table
    from .trained import open_run

    check_suffix(out)
    found = open_run(run)
    torch.manual_seed(seed)
    net = found.net.to(device_named(device))
    try:
        columns, values = found.task.sample(net, found.info, n, method, steps)
    except SolveError as error:
        raise UserError(f"{error} Try another --method, or more --steps") from None
    _show([], [write_table(out, columns, values)])


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path | None, Option(help="Folder for the files (default: that of the run)")] = None,
) -> None:
    """Write a trained network as model.pt2 (torch.export) and model.onnx, and model.json, which describes them.

    Both are run and compared with the network before they are written. Takes half a minute; needs the extra "onnx".
    """
    from .export import export as exported

    files, differences = exported(run, out or run)
    _show([{"program": k, "difference of the largest entry": v} for k, v in differences.items()], files)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(ctx: typer.Context, name: Annotated[str, Argument(help="gradients, peers, ...")]) -> None:
    """Run a benchmark of the source repository: python -m benchmarks NAME, with the options that follow. Minutes."""
    if not Path("benchmarks", "__main__.py").is_file():
        raise UserError("the benchmarks are in the source repository: start this in a checkout of it")
    raise SystemExit(subprocess.run([sys.executable, "-m", "benchmarks", name, *ctx.args], check=False).returncode)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"odenet {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None: ...


def main() -> NoReturn:
    """Entry point: a mistake of the user ends in one line on stderr and exit code 2, Ctrl-C in one and 130."""
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    for signum in signals:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _stop)
    # a log writer's thread passes its OSError on to the main thread, which reports it
    threading.excepthook = lambda e: None if issubclass(e.exc_type, OSError) else threading.__excepthook__(e)
    try:
        status = app(standalone_mode=False) or 0
    except BaseException as error:
        for signum in signals:
            signal.signal(signum, signal.SIG_IGN)
        status = _status(error)
    if together():  # threads of the process group would be torn down in the middle of an exchange
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _stop(signum: int, frame: Any) -> None:
    """End the command. Not by a KeyboardInterrupt, for which Lightning and Typer have ends of their own."""
    raise SystemExit(128 + signum)


def _status(error: BaseException) -> int:
    """The exit status after an error, which is printed in one line; a bug is shown whole."""
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else 1
        if status > 128 and first_process():
            _say("interrupted; every file is whole, a training run goes on with --resume")
        return status
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
        print(error, file=sys.stderr)
    elif isinstance(error, typer.TyperException):
        _say(f"{getattr(error, 'format_message', error.__str__)()} (see --help)")
    elif isinstance(error, (UserError, SolveError)):  # the second outside of the training, as in a prediction
        _say(str(error))
    elif isinstance(error, OSError):
        _say(f"{error.filename or 'a file'} could not be read or written ({error.strerror or error})")
    else:
        traceback.print_exception(error)
        return 1
    return 2


def _say(words: str) -> None:
    with suppress(OSError, ValueError):  # its reader, or the terminal, may be gone
        print(f"odenet: {' '.join(words.split())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

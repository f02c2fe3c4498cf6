"""The command line."""

from __future__ import annotations

import csv
import io
import os
import shlex
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import typer
from typer import Argument, Option

from .. import __version__
from ..check import method as method_named
from . import processes as of_run
from . import stop
from .errors import UserError
from .tasks import TASKS, task_class
from .trained import SETTINGS

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Train neural ODEs, and use what was trained.")
trainer = typer.Typer(no_args_is_help=True, help="Train a network on a task; each task has its own --help.")
app.add_typer(trainer, name="train")
_BROUGHT = {"filelock", "lightning", "sklearn", "matplotlib", "rich", "pooch", "tensorboard", "PIL", "safetensors"}
_SETTLE = 1.0  # seconds in which a signal may come that ended the other process
_STARTED = "default: 1, or what torchrun or Slurm has started"
Device = Annotated[str, Option(help="cpu, cuda, mps, or auto: cuda where there is one, else cpu")]


@dataclass(frozen=True)
class Place:
    """Where and how a training runs: options on which its result does not depend."""

    out: Annotated[Path | None, Option(help="Folder for all results  [default: runs/NAME]", show_default=False)] = None
    resume: Annotated[
        bool, Option("--resume", help="Go on with the run in --out, to the same result; its settings need not be given")
    ] = False
    device: Device = "auto"
    devices: Annotated[int | None, Option(min=1, help=f"Processes on each machine, a device each ({_STARTED})")] = None
    nodes: Annotated[int | None, Option(min=1, help=f"Machines ({_STARTED})")] = None


def _parameters(options: type[Any], leave_out: Iterable[str] = ()) -> list[Parameter]:
    """The fields of a dataclass as options."""
    hints = get_type_hints(options, include_extras=True)
    return [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in fields(options)
        if field.name not in leave_out
    ]


def _add(to: typer.Typer, name: str, about: str, parameters: list[Parameter], run: Callable[..., None]) -> None:
    """A command with these parameters; `run` gets its place, and the settings that were given."""

    def command(ctx: typer.Context, **values: Any) -> None:
        where = Place(**{field.name: values.pop(field.name) for field in fields(Place)})
        given = {k: v for k, v in values.items() if getattr(ctx.get_parameter_source(k), "name", "") == "COMMANDLINE"}
        run(where, given)

    context = Parameter("ctx", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    signature = Signature([context, *parameters])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    to.command(name, help=about)(command)


def _begin(task: str, where: Place, given: Mapping[str, Any], name: str) -> tuple[Any, Path, of_run.Processes]:
    """Settings, folder and processes of a run; where it needs several processes, they are started, and this one ends."""
    from .run import settle

    out = where.out or Path("runs") / name
    settings = settle(task_class(task), given, out, where.resume)
    try:
        method = method_named(settings.method)
    except ValueError as error:
        raise UserError(f"--method: {error}") from None
    if method.error_order is None:
        raise UserError(f"--method {settings.method} needs constant steps: choose an adaptive one such as tsit5")
    processes = of_run.chosen(where.device, where.devices, where.nodes)
    if processes.all > 1 and not processes.started:
        raise SystemExit(of_run.supervise(processes))
    stop.speak_of(out / SETTINGS)
    return settings, out, processes


def _train(task: str, where: Place, given: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from .run import train

    settings, out, processes = _begin(task, where, given, task)
    done = train(task_class(task)(settings), task, out, where.resume, processes)
    if not of_run.first_process():
        return
    table = Table("metric", "value", title=f"{task}: test data, after {len(done.history)} epochs")
    for name, value in done.test.items():
        table.add_row(name, f"{value:.4g}")
    Console(width=120).print(table)
    _list(done.files)


def _compare(where: Place, given: Mapping[str, Any]) -> None:
    from .images.compare import compare

    settings, out, processes = _begin("images", where, given, Path(given.get("data", "digits")).stem)
    command = shlex.join(["odenet", *(word for word in sys.argv[1:] if word != "--resume")])
    files = compare(settings, out, where.resume, processes, command)
    if files:
        _list(files)


def _list(files: Iterable[Path]) -> None:
    typer.echo("Wrote:")
    for file in dict.fromkeys(files):
        typer.echo(f"  {file}")


_WRITES = (
    "\n\nWrites into --out: settings.json, metrics.csv and tensorboard/ (metrics of each epoch), checkpoints/ (to "
    "--resume), model.safetensors, results.json and figures as PNG."
)
for _name in TASKS:
    _class = task_class(_name)
    _about = (sys.modules[_class.__module__].__doc__ or _name).strip()
    _add(
        trainer,
        _name,
        f"{_about}{_WRITES} {_class.TIME}",
        [*_parameters(_class.Settings), *_parameters(Place)],
        lambda where, given, name=_name: _train(name, where, given),
    )
_data = Parameter(
    "data",
    Parameter.POSITIONAL_OR_KEYWORD,
    annotation=Annotated[str, Argument(help="digits (embedded), mnist, a FOLDER with a sub-folder a class, or a .npz")],
)
_add(
    app,
    "compare",
    "Train a residual net, an RK-Net and an ODE-Net on the same images, side by side.\n\nPrints the table of the Neural "
    "ODE paper (Chen et al. 2018) and draws its figures. Writes into --out: results.md, .csv and .json, four figures, and "
    "a run of `odenet train images` for each net. digits: two minutes on two CPU cores; mnist: hours; --quick: 20 seconds.",
    [_data, *_parameters(task_class("images").Settings, ("data", "net")), *_parameters(Place)],
    _compare,
)


@app.command()
def predict(
    run: Annotated[Path, Argument(help="Folder of a run of `odenet train`, or runs/NAME/odenet of a comparison")],
    files: Annotated[list[Path], Argument(help="Images, folders of images, .npz files")],
    out: Annotated[Path | None, Option(help="Folder for predictions.csv; without it only the table is shown")] = None,
    device: Device = "auto",
) -> None:
    """Say what a trained network makes of files: a table of file, class and probability. Seconds."""
    from rich.console import Console
    from rich.table import Table

    from .trained import opened

    absent = [file for file in files if not file.exists()]
    if absent:
        raise UserError(f"{absent[0]} is not there")
    task, settings, info, net = opened(run)
    kind = of_run.device(device)
    rows = task.predict(net.to(kind), settings, info, files)
    if not rows:
        raise UserError(f"{files[0]} has no files to predict")
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if out is not None:
        from .files import write

        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        _list([write(out / "predictions.csv", text.getvalue())])


@app.command()
def export(
    run: Annotated[Path, Argument(help="Folder of a run of `odenet train`, or runs/NAME/odenet of a comparison")],
    out: Annotated[Path | None, Option(help="Folder for the files  [default: RUN]", show_default=False)] = None,
) -> None:
    """Write a trained network as model.pt2 (torch.export) and model.onnx, and model.json, which describes them.

    Both are run and compared with the network before they are written. About half a minute; needs the extra "onnx".
    """
    from .export import export as exported

    files, differences = exported(run, out or run)
    for name, apart in differences.items():
        typer.echo(f"{name}: {apart:.1e} of the largest entry away from the network")
    _list(files)


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
    stop.install()
    threading.excepthook = _thread_failed
    try:
        status = app(standalone_mode=False) or 0
    except BaseException as error:
        status = _end(error)
    stop.ignore()
    if of_run.supervised() or of_run.together():
        sys.stdout.flush()
        os._exit(status)  # threads of a process group would be torn down in the middle of an exchange
    sys.exit(status)


def _thread_failed(given: threading.ExceptHookArgs) -> None:
    """A log writer's thread passes its OSError on to the main thread, which reports it once."""
    if not issubclass(given.exc_type, OSError):
        threading.__excepthook__(given)


def _end(error: BaseException) -> int:
    """The exit status after an error, and its line; a bug is shown whole."""
    signum = stop.received()
    if signum is not None:
        stop.ignore()
        if of_run.first_process() and not of_run.supervised():  # else who has started this process says it
            _say(stop.line())
        return 128 + signum
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, typer.TyperException):
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help of the command
            print(error, file=sys.stderr)
            return 2
        context = getattr(error, "ctx", None)
        _say(f"{error} See {context.command_path if context is not None else 'odenet'} --help")
        return 2
    if isinstance(error, UserError):
        _say(str(error))
        return 2
    if isinstance(error, OSError):
        _say(f"{error.filename or 'a file'} could not be read or written ({error.strerror or error})")
        return 2
    if of_run.lost(error):
        time.sleep(_SETTLE)
        _say("another process of this run has ended, or cannot be reached: go on with --resume")
        return 2
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] in _BROUGHT:
        _say(f'{error.name} is missing: pip install "torch-odenet[train]"')
        return 2
    traceback.print_exception(error)
    return 1


def _say(words: str) -> None:
    with suppress(OSError, ValueError):  # its reader, or the terminal, may be gone
        print(f"odenet: {' '.join(words.split())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

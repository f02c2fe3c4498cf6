"""Makes a drawn call, and demands a right value or a documented error. `run` is the door."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

import odenet
from odenet import nn
from odenet.compat import torchdiffeq
from odenet.core.pytrees import flatten

from . import hostile, wrong_fields
from .known import Built, built, exact, wide
from .ledger import SOURCE, Finding, Ledger, demand, documented, raised_in, watched
from .strategies import BadField, Command, Compat, Layer, Report, Valid, Wrong
from .valid_calls import gradients, near, run_layer_of, run_report, run_valid, same

COMPAT_ERRORS = (AssertionError, AttributeError)  # torchdiffeq's classes, which the compatibility package keeps
CALLABLES = (
    "f",
    "func",
    "field",
    "layer",
    "event_fn",
    "odeint_interface",
    "loss",
    "norm",
    "progress",
    "step",
    "accept",
    "reject",
    "times",
    "step_ts",
    "jump_ts",
)


def run(call: Any, ledger: Ledger) -> None:
    """A `Finding` where the call did what it should not."""
    runners[type(call)](call, ledger)


def run_compat(call: Compat, ledger: Ledger) -> None:
    case = call.case
    made = built(case)
    options: dict[str, Any] = {"method": call.method, "options": dict(call.options)}
    if case.tol is not None:
        options |= {"rtol": case.tol, "atol": case.tol}
    t, f = made.ts, made.f
    if call.entry == "odeint_event":
        event_run(call, made, options, ledger)
        return
    with watched():
        if call.entry == "odeint_dense":
            sol = ledger.call("odeint_dense", torchdiffeq.odeint_dense, f, made.y0, t[0], t[-1], **options)
            found = ledger.call("Solution", sol, t.detach())
        else:
            found = ledger.call(call.entry, getattr(torchdiffeq, call.entry), f, made.y0, t, **options)
        want = exact(case, made.leaves, made.k, made.times, made.times[0])
        near(flatten(found)[0], want, case, "ys", rough(call))
        if call.entry != "odeint_dense":
            demand(
                all(same(a.detach()[0], b.detach()) for a, b in zip(flatten(found)[0], made.leaves, strict=True)),
                "ys[0]",
            )
            gradients(case, Found(found), made, want, rough(call))


class Found:
    """Where `gradients` looks for ys."""

    def __init__(self, ys: Any) -> None:
        self.ys = ys


def rough(call: Compat) -> float:
    """Errors that the method may have, over those that its case allows."""
    given = dict(call.options)
    if call.case.tol is not None:
        return 12.0 if call.method == "fehlberg2" else 3.0  # its estimate is too small, by 120 times as seen
    own = {"euler": 500.0, "implicit_euler": 500.0, "midpoint": 60.0, "heun2": 60.0}.get(str(call.method), 60.0)
    grid = 1.0 if "step_size" in given else 2000.0  # one step from each time to the next
    lines = 30.0 if given.get("interp") == "linear" else 1.0
    return own * grid * lines


def event_run(call: Compat, made: Built, options: dict[str, Any], ledger: Ledger) -> None:
    start, end = float(made.times.detach()[0]), float(made.times.detach()[-1])
    at = start + 0.6 * (end - start)
    t0 = torch.tensor(start, dtype=torch.float64)
    with watched():
        t, found = ledger.call(
            "odeint_event", torchdiffeq.odeint_event, made.f, made.y0, t0, event_fn=lambda t, y: t - at,
            reverse_time=end < start, **options,
        )  # fmt: skip
        t = t.detach()
        demand(abs(float(t) - at) < 1e-6 * max(1.0, abs(at)), f"event at {float(t)}, not {at}")
        times = torch.tensor([start, at], dtype=torch.float64)
        near(flatten(found)[0], exact(call.case, made.leaves, made.k, times, times[0]), call.case, "ys", rough(call))


def run_layer(layer: Layer, ledger: Ledger) -> None:
    torch.manual_seed(layer.seed)
    dtype = getattr(torch, layer.dtype)
    B, C = layer.shape[0], layer.shape[-1]
    options: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2, "gradient": layer.gradient, "per_sample": layer.per_sample}
    if layer.kind in ("ConvField", "classifier") and layer.gradient == "forward":
        options["gradient"] = "discrete"  # that one carries a tangent for each parameter
    ts = [0.0, 0.3, 0.5] if layer.own_ts else None
    wide_by = layer.extra if layer.kind == "Augmented" else 0
    if layer.kind in ("ConvField", "classifier"):
        C = 2 * C
        y = torch.randn(B, C, 4, 4, dtype=dtype)
        field: Any = nn.ConvField(C, layer.hidden[0] * 2 if layer.hidden else None, None, layer.activation, layer.time)
    else:
        y = torch.randn(*layer.shape, dtype=dtype)
        C += wide_by
        field = nn.MLPField(C, layer.hidden, layer.activation, layer.time)
    with watched(random=True):  # initial weights are drawn
        if layer.kind == "classifier":
            if dtype not in (torch.float32, torch.float64):
                return
            kind = ("resnet", "rknet", "odenet")[layer.seed % 3]
            rest = {} if kind == "resnet" else {"rtol": 1e-2, "atol": 1e-2}
            net = nn.classifier(kind, 1 + layer.seed % 2, 8, 1 + layer.extra, 4, 1, **rest).to(dtype)
            x = torch.randn(B, 1 + layer.seed % 2, 8, 8, dtype=dtype)
            out = ledger.call("classifier", net, x)
            demand(out.shape == (B, 1 + layer.extra) and out.dtype == dtype, f"logits {out.dtype} {tuple(out.shape)}")
        else:
            net: Any = nn.NeuralODE(field.to(dtype), **options)
            if layer.kind == "Augmented":
                net = nn.Augmented(net, layer.extra, -1)
            x = y.clone().requires_grad_()
            out = ledger.call(layer.kind, net, x, ts)
            shape = list(y.shape)
            if ts is not None:
                shape.insert(int(layer.per_sample), 3)
            demand(
                list(out.shape) == shape and out.dtype == dtype, f"{layer.kind} gives {out.dtype} {tuple(out.shape)}"
            )
            if ts is not None:
                demand(same(out.detach().select(int(layer.per_sample), 0), y), "the trajectory does not start at y0")
        out.float().square().mean().backward()
    for name, p in net.named_parameters():
        demand(p.grad is not None and bool(p.grad.isfinite().all()), f"the gradient of {name} is {p.grad}")


def entered(ledger: Ledger, entry: str, error: BaseException, names: tuple[str, ...], also: Any = ()) -> None:
    ledger.add(entry, documented(error, names, also))


def run_wrong(call: Wrong, ledger: Ledger) -> None:
    entry = hostile.ENTRIES[call.entry]
    changes = {name: hostile.JUNK[junk]() for name, junk in call.changes}
    names = tuple(alias for name, _ in call.changes for alias in entry.names.get(name, (name,)))
    also = COMPAT_ERRORS if call.entry.startswith("odeint") else ()
    try:
        with watched(random=True):
            out = entry.call(**changes)
    except Finding:
        raise
    except Exception as error:
        if any(
            name in CALLABLES and junk in ("class", "module", "identity", "method", "function")
            for name, junk in call.changes
        ):
            ledger.add(call.entry, f"{type(error).__name__} of the callable that was given")
            return
        sized = call.entry in ("MLPField", "ConvField", "classifier") and not raised_in(error, SOURCE)
        if sized and all(junk in ("one", "zero", "numpy int") for _, junk in call.changes):
            ledger.add(call.entry, f"{type(error).__name__} of a layer on an input of another size")
            return
        entered(ledger, call.entry, error, names, also)
        return
    ledger.add(call.entry, "value")
    if isinstance(out, odenet.Solution):
        decays(out, changes)


def decays(sol: odenet.Solution, changes: dict[str, Any]) -> None:
    """What was accepted after all has to be the solution of y' = -y from the y0 that was given."""
    if "f" in changes:
        demand(all(bool(x.isfinite().all()) for x in flatten(sol.ys)[0]), "values that are not finite")
        return
    loose = {"rtol", "atol", "step", "min_step", "controller", "times"} & changes.keys()
    limit = 0.9 if loose else 5e-2
    y0, batched = flatten(changes.get("y0", hostile.Y0))[0], bool(changes.get("per_sample")) or sol.ts.ndim == 2
    reached = torch.as_tensor(sol.status) == int(odenet.Status.SUCCESS)
    ts = sol.ts.detach().double()
    for x, ys in zip(y0, flatten(sol.ys)[0], strict=True):
        lanes = ts if ts.ndim == 2 else ts.expand(len(x), -1) if batched else ts
        decay = torch.exp(lanes[..., :1] - lanes)
        x = wide(x.detach())
        want = (
            x[:, None] * decay.reshape(*decay.shape, *(1,) * (x.ndim - 1)) if batched
            else decay.reshape(-1, *(1,) * x.ndim) * x
        )  # fmt: skip
        got = wide(ys.detach())
        if not bool(reached.all()):
            keep = got.isfinite()
            got, want = got[keep], want[keep]
        miss = float(((got - want).abs() / (1 + want.abs())).max()) if got.numel() else 0.0
        demand(miss < limit, f"a value that is off by {miss:.2e}")


def run_bad_field(call: BadField, ledger: Ledger) -> None:
    field = wrong_fields.FIELDS[call.field]
    f = wrong_fields.buffered() if field.end == "buffer" else wrong_fields.going_wrong(field, call.at)
    parts = [
        torch.tensor([[1.0, 2.0], [0.5, 3.0]], dtype=torch.float64) for _ in range({"tensor": 1}.get(call.structure, 2))
    ]
    kept = [x.clone() for x in parts]
    if call.grad:
        parts = [x.requires_grad_() for x in parts]
    y0 = {"tensor": parts[0], "dict": dict(zip("ab", parts, strict=False)), "tuple": tuple(parts)}[call.structure]
    options: dict[str, Any] = {"method": call.method, "gradient": call.gradient, "per_sample": call.per_sample}
    options |= {} if call.method in ("tsit5", "dopri8", "bosh3") else {"step": 0.125}
    options["dense"] = call.dense and call.entry == "solve"
    gradient = call.gradient
    if gradient == "reversible" and call.method in ("gl4", "implicit_adams"):
        options["gradient"] = gradient = "discrete"
    try:
        with watched(random=True):
            if call.entry == "solve":
                ys = odenet.solve(f, y0, [0.0, 0.5, 1.0], **options).ys
            else:
                ys = nn.NeuralODE(f, **options)(y0, [0.0, 0.5, 1.0])
            found = flatten(ys)[0]
            if call.grad and any(x.requires_grad for x in found):
                torch.autograd.grad(sum(x.sum() for x in found), parts, allow_unused=True)
    except Finding:
        raise
    except wrong_fields.OwnError as error:
        demand(field.end == "own" and str(error) == "own", "an exception of the caller's from nowhere")
        ledger.add(call.entry, "the caller's own exception")
        return
    except Exception as error:
        bad_end(field, error, call, ledger)
        return
    ledger.add(call.entry, "value")
    late = call.at > 1 and field.end not in ("growth", "type")  # it may have ended before it went wrong
    demand(
        field.end in ("value", "value without graph", "growth") or late, f"a field that is {call.field!r} was accepted"
    )
    if not all(same(a, b.detach()) for a, b in zip(kept, parts, strict=True)):
        raise Finding("y0 was changed in place")
    sign = 1.0 if field.end == "growth" else -1.0
    for x, y in zip(kept, found, strict=True):
        want = x * torch.exp(torch.tensor(sign))
        miss = float((y.detach().select(int(call.per_sample), -1) - want).abs().max())
        demand(
            miss < (0.5 if call.method == "euler" else 2e-2),
            f"y1 is off by {miss:.1e} after a field that is {call.field!r}",
        )


def bad_end(field: wrong_fields.Field, error: Exception, call: BadField, ledger: Ledger) -> None:
    kind = type(error).__name__
    if raised_in(error, wrong_fields.__file__):
        ledger.add(call.entry, f"{kind} of PyTorch inside f")
        return
    if field.end in ("type", "own or type"):
        demand(isinstance(error, (TypeError, NotImplementedError)), f"{kind}: {error}")
        ledger.add(call.entry, f"{kind} of the callable that was given")
        return
    if field.end == "solve error":
        demand(isinstance(error, odenet.SolveError), f"{kind}: {error}")
    elif field.end not in ("error", "buffer", "error or torch") and "draws random numbers" not in str(error):
        raise Finding(f"{kind}: {error}") from error
    entered(ledger, call.entry, error, ("f", "f's"))


def run_command(call: Command, ledger: Ledger) -> None:
    from odenet.train import UserError, cli

    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    # nothing of these is to be trained: whatever gets past the checks ends here
    with (
        patch.object(sys, "argv", ["odenet", *call.words]),
        # imported here, it takes `train` from run.py, which is why that is replaced after it
        patch("odenet.train.images.compare.compare", return_value=([], [])),
        patch("odenet.train.run.train", side_effect=UserError("all checks passed")),
        patch("odenet.train.cli.subprocess.run", return_value=SimpleNamespace(returncode=0)),
        patch("odenet.train.cli.signal.signal"),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    text = err.getvalue()
    demand(code in (0, 2), f"exit status {code}: {text}")
    demand("Traceback" not in text and bool(text.strip()) == (code == 2), f"status {code} with {text!r}")
    ledger.add("command line", "help or run" if code == 0 else "refused with status 2")


def run_case(case: Valid, ledger: Ledger) -> None:
    run_valid(case, ledger)
    if case.seed % 8 == 0 and not case.compiled:  # the layer hands over its own times
        run_layer_of(case, ledger)


runners: dict[type, Any] = {
    Valid: run_case,
    Compat: run_compat,
    Layer: run_layer,
    Report: run_report,
    Wrong: run_wrong,
    BadField: run_bad_field,
    Command: run_command,
}

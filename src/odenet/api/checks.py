"""Checks of the arguments of `solve`: each error names the argument, shows what was given and says the cure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..control import PID, ConstantStep, Controller, Predictive
from ..core.distributed_guard import refuse_wrapped
from ..core.leaves import Leaves, real_dtype
from ..core.norms import Tolerance
from ..core.pytrees import flatten, flatten_like, flatten_with_names
from ..core.torch_func import all_true, inside_transform, largest, unwrapped
from ..core.validate import describe, integer, is_real, number
from ..core.validate import function as callable_as
from ..engine.callbacks import Callbacks
from ..errors import unknown_name
from ..events.event import Event
from ..gradients import GRADIENTS, Gradient
from ..methods import METHODS, Adams, ExplicitRK, ImplicitRK, Method

ON_FAILURE = ("raise", "return")  # what on_failure can be
FEW = 64  # times that are looked at quicker in Python
_OTHERS_NAMES = {  # of SciPy, torchdiffeq and diffrax, where the nearest of ours by spelling would be another method
    **{"rk45": "dopri5", "rk23": "bosh3", "dop853": "dopri8", "adaptive_heun": "heun", "heun2": "heun"},
    **{"radau": "radauIIA5", "bdf": "esdirk54", "lsoda": "esdirk54", "kvaerno4": "kvaerno5"},
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


def function(f: Any) -> None:
    """Whether f can be called, and that in several processes as often as each likes."""
    callable_as("f", f, "f(t, y, *args)")
    refuse_wrapped(f)


def state(y0: Any, per_sample: bool) -> tuple[list[str], list[Tensor]]:
    """Paths and leaves of y0."""
    pairs = flatten_with_names(y0)
    if not pairs:
        raise ValueError(f"y0 has no tensor in it; got {y0!r}")
    for name, leaf in pairs:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"y0{name} must be a tensor; got {type(leaf).__name__} {leaf!r}: use torch.tensor(..., dtype=...)"
            )
        if leaf.dtype not in _FLOATS:
            raise TypeError(f"y0{name} must be real or complex floating point; got {leaf.dtype}: use y0.float()")
        if leaf.layout is not torch.strided or leaf.is_meta:
            what = "device meta" if leaf.is_meta else f"layout {leaf.layout}: use y0.to_dense()"
            raise TypeError(f"y0{name} must be a dense tensor that holds its values; got {what}")
        if leaf.numel() == 0:
            raise ValueError(f"y0{name} has no elements; got shape {tuple(leaf.shape)}: solve no empty batch")
    names, leaves = [n for n, _ in pairs], [x for _, x in pairs]
    # a tensor made in inference mode takes no part in autograd, but its copy does
    if not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled():
        leaves = [x.clone() if x.is_inference() else x for x in leaves]
    devices = {str(x.device) for x in leaves}
    if len(devices) > 1:
        raise ValueError(f"y0's tensors must be on one device; got {', '.join(sorted(devices))}")
    if per_sample:
        sizes = [x.shape[0] if x.ndim else None for x in leaves]
        if None in sizes or len(set(sizes)) > 1:
            shapes = ", ".join(f"y0{n} {tuple(x.shape)}" for n, x in zip(names, leaves, strict=True))
            raise ValueError(f"per_sample=True needs the same leading batch axis on all of y0; got {shapes}")
    return names, leaves


def narrowest(leaves: list[Tensor]) -> Tensor:
    """That of the leaves whose dtype has the smallest range."""
    return min(leaves, key=lambda x: torch.finfo(x.dtype).max)


def times(ts: Any, per_sample: bool, leaf: Tensor) -> Tensor:
    """ts as a tensor in its own dtype (Python numbers: float64), (T,) or (B, T)."""
    if isinstance(ts, (int, float)):
        raise TypeError(f"ts must hold at least two times, ts[0] where y0 holds; got the number {ts!r}")
    if isinstance(ts, (str, bytes)):
        raise TypeError(f"ts must be a sequence, array or tensor of times; got {describe(ts)}")
    try:
        out = ts if isinstance(ts, Tensor) else _stacked(ts)
        if not torch.compiler.is_compiling() and out.is_inference() and not torch.is_inference_mode_enabled():
            out = out.clone()  # as for y0
    except (TypeError, ValueError, RuntimeError, OverflowError, IndexError) as error:
        raise TypeError(f"ts must be a sequence, array or tensor of times; got {type(ts).__name__}: {error}") from None
    if out.is_meta or out.layout is not torch.strided:
        raise TypeError(f"ts must be a dense tensor that holds its values; got {describe(out)}")
    if out.is_complex() or out.dtype == torch.bool:
        raise TypeError(f"ts must be real numbers; got {out.dtype}")
    if not out.is_floating_point():
        out = out.double()
    out = out.to(leaf.device)
    if out.ndim == 2 and not per_sample:
        raise ValueError(f"ts of shape {tuple(out.shape)} gives each sample its own times: that needs per_sample=True")
    if out.ndim not in (1, 2) or out.shape[-1] < 2:
        raise ValueError(
            f"ts must have shape (T,), or (B, T) with per_sample, with at least two times; got {tuple(out.shape)}"
        )
    if out.ndim == 2 and out.shape[0] != leaf.shape[0]:
        raise ValueError(f"ts has {out.shape[0]} rows, but y0 has {leaf.shape[0]} samples: give one row a sample")
    flat = out.detach()
    many = flat.ndim > 1 or len(flat) > FEW or inside_transform() or torch.compiler.is_compiling()
    finite, ordered, span = _many_times(flat) if many else _few_times(flat.tolist())
    if not finite:
        entries = unwrapped(flat).tolist() if flat.numel() < 20 else "NaN or infinite entries"
        raise ValueError(f"ts must be finite; got {entries}")
    if not ordered:
        raise ValueError(
            "ts must increase or decrease throughout (equal neighbours are allowed); got "
            f"{unwrapped(flat).tolist() if flat.numel() < 20 else f'times of shape {tuple(flat.shape)} that turn back'}"
        )
    most = torch.finfo(torch.promote_types(real_dtype(leaf.dtype), torch.float32)).max
    if span > most:
        raise ValueError(
            f"ts spans {span:.3g}, and numbers beyond {most:.2g} do not exist in y0's dtype {leaf.dtype}, by whose "
            "slopes steps in time are multiplied: count time in a larger unit, or use float64"
        )
    return out.expand(leaf.shape[0], -1) if per_sample and out.ndim == 1 else out


def _few_times(ts: list[float]) -> tuple[bool, bool, float]:
    """Whether all are finite, whether none turns back, and how far they reach: from one copy to Python."""
    pairs = list(itertools.pairwise(ts))
    ordered = all(a <= b for a, b in pairs) or all(a >= b for a, b in pairs)
    return all(map(math.isfinite, ts)), ordered, abs(ts[-1] - ts[0])


def _many_times(ts: Tensor) -> tuple[bool, bool, float]:
    steps = ts.diff(dim=-1)
    ordered = all_true((steps >= 0).all(-1) | (steps <= 0).all(-1))
    return all_true(torch.isfinite(ts)), ordered, 0.0 if torch.compiler.is_compiling() else largest(steps.sum(-1).abs())


def _stacked(ts: Any) -> Tensor:
    items = list(ts) if isinstance(ts, Sequence) else ts
    if isinstance(items, list) and any(isinstance(x, Tensor) for x in items):
        return torch.stack([x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64) for x in items])
    if isinstance(items, list) and not any(isinstance(x, (list, tuple)) or hasattr(x, "__len__") for x in items):
        return torch.tensor(items, dtype=torch.float64)
    return torch.as_tensor(ts) if hasattr(ts, "__array__") else torch.tensor(ts, dtype=torch.float64)


def tolerance(name: str, given: Any, y0: Any, leaves: Leaves) -> Tolerance:
    """One number or tensor a leaf."""
    if is_real(given) or (isinstance(given, Tensor) and given.ndim == 0):
        values = [given] * len(leaves)
    else:
        own = flatten(y0)[1]
        values, spec = flatten_like(given, own)
        if spec != own:
            raise TypeError(f"{name} must be a number, or have y0's structure; got {given!r}")
    out: list[float | Tensor] = []
    for value, leaf in zip(values, leaves, strict=True):
        if isinstance(value, Tensor):
            if value.is_meta or value.layout is not torch.strided:
                raise TypeError(f"{name} must be a dense tensor that holds its values; got {describe(value)}")
            if value.requires_grad:
                raise ValueError(f"{name} must not require a gradient; use {name}.detach()")
            try:
                fits = torch.broadcast_shapes(value.shape, leaf.shape) == leaf.shape
            except RuntimeError:
                fits = False
            if not fits:
                raise ValueError(f"{name} of shape {tuple(value.shape)} does not broadcast to y0's {tuple(leaf.shape)}")
            if value.is_complex():
                raise TypeError(f"{name} must be real; got {describe(value)}")
            value = value.to(leaf.device, real_dtype(leaf.dtype))
            good = all_true((value >= 0) & torch.isfinite(value))
        elif is_real(value):
            value = number(name, value)
            good = 0 <= value < float("inf")
        else:
            raise TypeError(f"{name} must be a number, or have y0's structure; got {given!r}")
        if not good:
            raise ValueError(f"{name} must be zero or positive, and finite; got {given!r}")
        out.append(value)
    return out


def method(given: Any) -> Method:
    if isinstance(given, Method):
        return given
    if not isinstance(given, str):
        raise TypeError(f"method must be a name or a Method instance; got {describe(given)}")
    if given not in METHODS:
        raise unknown_name("method", given, METHODS, _OTHERS_NAMES.get(given.lower()))
    return METHODS[given]


def gradient(given: Any, argument: str = "gradient") -> Gradient:
    if isinstance(given, Gradient):
        return given
    if isinstance(given, type) and issubclass(given, Gradient):
        raise TypeError(f"{argument} must be a name or an instance; got the class: write {given.__name__}()")
    if not isinstance(given, str):
        raise TypeError(f"{argument} must be a name or a Gradient instance; got {type(given).__name__} {given!r}")
    if given not in GRADIENTS:
        raise unknown_name(argument, given, GRADIENTS)
    return GRADIENTS[given]()


def controller(given: Any, step: Any, solver: Method) -> Controller:
    if step is not None:
        if given is not None:
            raise ValueError("step and controller exclude each other: give controller=ConstantStep(step, ...) alone")
        if not is_real(step) and not (isinstance(step, Tensor) and step.numel() == 1 and not step.is_complex()):
            raise TypeError(f"step must be one positive number; got {describe(step)}")
        return ConstantStep(number("step", step.detach() if isinstance(step, Tensor) else step))
    if given is None:
        given = Predictive() if solver.predictive else PID()
    if not isinstance(given, Controller):
        raise TypeError(f"controller must be a Controller instance such as PID() or ConstantStep(0.1); got {given!r}")
    if solver.lookahead and (given.jump_ts is not None or given.perturb):
        raise ValueError(
            f"method={solver.name!r} evaluates f up to {solver.lookahead:.2g} of a step past its end: with jump_ts (or "
            "perturb) take 'esdirk54', which does not look beyond a jump"
        )
    if given.adaptive and solver.error_order is None:
        others = "an adaptive method such as 'tsit5'"
        if isinstance(solver, ImplicitRK):
            others = "one for stiff equations that chooses its steps: 'esdirk54', 'radauIIA5', 'kvaerno3' or 'trbdf2'"
        raise ValueError(
            f"step is required: method={solver.name!r} has no error estimate to choose steps by. Give step=..., or "
            f"take {others}."
        )
    return given


def terms(f: Any, solver: Method) -> None:
    """Whether f has the parts that the method evaluates."""
    if not solver.parts:
        return
    missing = [name for name in solver.parts if name not in getattr(f, "parts", ())]
    if missing:
        raise TypeError(
            f"method={solver.name!r} needs f in parts ({', '.join(solver.parts)}): give odenet.Partitioned(velocity, "
            f"force), or another `Terms` that has {', '.join(missing)}; got {describe(f)}"
        )


def stop_times(control: Controller, ts: Tensor) -> None:
    """The controller's step_ts and jump_ts against the samples of ts."""
    for name in ("step_ts", "jump_ts"):
        given = getattr(control, name)
        shape = () if given is None or callable(given) else torch.as_tensor(given).shape
        if len(shape) == 2 and (ts.ndim == 1 or shape[0] != len(ts)):
            samples = f"{len(ts)} samples" if ts.ndim == 2 else "one set of steps (per_sample=False)"
            raise ValueError(f"{name} of shape {tuple(shape)} has one row a sample, but this solve has {samples}")


def constant_stops(control: Controller, gradient: str) -> None:
    """Refuse times that ask a continuous adjoint for a gradient: it knows no steps, and would leave it out unseen."""
    for name in ("step_ts", "jump_ts"):
        given = getattr(control, name)
        if isinstance(given, Tensor) and given.requires_grad:
            raise ValueError(
                f"gradient={gradient!r} has no gradient to {name} of the controller: take gradient='discrete', or give "
                f"{name}.detach()"
            )


def positive_tolerance(rtol: Tolerance, atol: Tolerance, control: Controller) -> None:
    """Refuse to choose steps by an error of zero."""
    if control.adaptive and not any(isinstance(x, Tensor) or x > 0 for x in (*rtol, *atol)):
        raise ValueError("rtol and atol are both 0: no step has an error that small; give one of them a positive value")


def max_steps(given: Any) -> int:
    return integer("max_steps", given, maximum=2**62)


def arguments(args: Any) -> tuple[Any, ...]:
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple of f's further arguments; got {type(args).__name__}: write args=(x,)")
    return tuple(args)


def events(given: Any) -> list[Event]:
    many = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    for one in many:
        if not isinstance(one, Event):
            raise TypeError(f"event must be an Event or a list of them; got {one!r}: write event=Event(fn)")
    return many


def observers(callbacks: Any, progress: Any) -> None:
    if callbacks is not None and not isinstance(callbacks, Callbacks):
        raise TypeError(f"callbacks must be a Callbacks instance; got {type(callbacks).__name__}")
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress must be True, False or a callable (fraction, stats); got {progress!r}")


def tolerance_option(name: str, given: Any) -> None:
    """A tolerance as far as it can be told without y0."""
    if given is None or isinstance(given, (bool, str)):
        raise TypeError(f"{name} must be a number, or have y0's structure; got {given!r}")
    if is_real(given) and not 0 <= number(name, given) < float("inf"):
        raise ValueError(f"{name} must be zero or positive, and finite; got {given!r}")


def known_options(given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name == "args":
            raise TypeError("option='args' is unknown: args belong to each call, as in solver(y0, ts, args=(x,))")
        if name not in known:
            raise TypeError(str(unknown_name("option", name, known)))


def jacobian(given: Any, y0: Sequence[Tensor], solver: Method) -> Callable[..., Any] | None:
    if given is None:
        return None
    if isinstance(solver, (ExplicitRK, Adams)):
        raise ValueError(
            f"jacobian is for implicit methods, and method={solver.name!r} uses none: leave it out, or take 'esdirk54'"
        )
    if any(y.is_complex() for y in y0):
        raise ValueError("jacobian is for real states; leave it out where y0 is complex, and it is found by autograd")
    return callable_as("jacobian", given, "jacobian(t, y, *args)")


def function_or_none(name: str, given: Any) -> Callable[..., Any] | None:
    return None if given is None else callable_as(name, given, f"{name}(t, y, *args)")

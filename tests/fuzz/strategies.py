"""What is drawn: calls as plain values, whose repr is the call (`python tools/fuzz.py --call REPR` makes it again)."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from math import prod
from typing import Any

import hypothesis.strategies as st

from odenet.compat.torchdiffeq.method_names import SCIPY, SOLVERS
from odenet.core.pytrees import flatten
from odenet.gradients import GRADIENTS
from odenet.methods import METHODS, Adams, ImplicitRK

from . import hostile, wrong_fields
from .fields import FIELDS, PLAIN, REAL_ONLY, STRUCTURES

REAL = ("float64", "float32", "bfloat16", "float16")
DTYPES = (*REAL, "complex64", "complex128", "mixed")
LAYOUTS = ("contiguous", "transposed", "expanded", "strided", "offset")
TS_FORMS = ("list", "tuple", "float64", "float32", "numpy", "mixed", "integers")
PASSING = ("args", "tree", "closure", "partial", "module")
RELATIONS = ("none", "again", "row", "shift", "reverse", "scale", "permute", "without_grad")
UNITS = (1.0, 1.0, 1.0, 1e-9, 1e-3, 1e3, 1e6)


class Call:
    """Prints what differs from the defaults."""

    def __repr__(self) -> str:
        given = ((x, getattr(self, x.name)) for x in fields(self))  # type: ignore[arg-type]
        shown = (f"{x.name}={value!r}" for x, value in given if x.default is MISSING or value != x.default)
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class Valid(Call):
    """A call of `solve` whose answer is known. ts in units of `unit`; step too. See fields.py and checks.py."""

    field: str = "scale"
    structure: str = "tensor"
    shape: tuple[int, ...] = (3,)
    dtype: str = "float64"
    layout: str = "contiguous"
    grad: str = "none"  # y0: none, leaf, inner
    k: float = 1.0
    k_grad: bool = False
    passing: str = "args"
    ts: tuple[Any, ...] = (0.0, 1.0)
    unit: float = 1.0
    ts_form: str = "list"
    ts_grad: bool = False
    method: str = "tsit5"
    instance: bool = False
    tol: float | None = 1e-6
    tol_form: str = "number"
    step: float | None = None
    controller: str = "none"
    gradient: str = "discrete"
    setting: str = "name"
    per_sample: bool = False
    dense: bool = False
    event: str = "none"
    on_failure: str = "raise"
    progress: bool = False
    callbacks: bool = False
    compiled: bool = False
    relation: str = "none"
    seed: int = 0


@dataclass(frozen=True, repr=False)
class Compat(Call):
    """A call of odenet.compat.torchdiffeq, made of what `case` says of field, state, times and gradients."""

    case: Valid
    entry: str = "odeint"
    method: str | None = None
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, repr=False)
class Layer(Call):
    """A layer or model of odenet.nn."""

    kind: str
    shape: tuple[int, ...] = (2, 3)
    dtype: str = "float32"
    gradient: str = "discrete"
    hidden: tuple[int, ...] = (4,)
    activation: str = "tanh"
    time: bool = True
    own_ts: bool = False
    extra: int = 1
    per_sample: bool = False
    seed: int = 0


@dataclass(frozen=True, repr=False)
class Report(Call):
    """A call of gradient_report."""

    case: Valid
    gradients: tuple[str, ...] = ("discrete",)


@dataclass(frozen=True, repr=False)
class Wrong(Call):
    """A call with one or two arguments replaced. entry: what is called; changes: (argument, key of hostile.JUNK)."""

    entry: str
    changes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, repr=False)
class BadField(Call):
    """A call of `solve` with a field of wrong_fields.FIELDS that goes wrong (or not) at its `at`-th evaluation."""

    field: str
    at: int = 1
    structure: str = "tensor"
    method: str = "tsit5"
    gradient: str = "discrete"
    per_sample: bool = False
    grad: bool = False
    dense: bool = False
    entry: str = "solve"


@dataclass(frozen=True, repr=False)
class Command(Call):
    """Words after `odenet`."""

    words: tuple[str, ...]


def _controllers(method: str, adaptive: bool) -> list[str]:
    """By name; a method that looks past the end of a step refuses those under which f jumps there."""
    made = {name: make(1.0) for name, make in (hostile.PIDS if adaptive else hostile.STEPS).items()}
    jumps = {name for name, control in made.items() if control.jump_ts is not None or control.perturb}
    return [name for name in made if METHODS[method].lookahead == 0.0 or name not in jumps]


def _tolerances(method: str, dtype: str) -> tuple[float, ...]:
    if dtype in ("bfloat16", "float16"):
        return (1e-2, 1e-3)
    tight = METHODS[method].order
    if dtype not in ("float64", "complex128"):
        return (1e-2, 1e-4) if tight < 4 else (1e-3, 1e-5)
    return (1e-2, 1e-4) if tight < 3 else (1e-3, 1e-5) if tight < 4 else (1e-3, 1e-6, 1e-9)


@st.composite
def times(draw: st.DrawFn) -> tuple[float, ...]:
    """2 to 5 times, in units, increasing or decreasing, some repeated, seldom all."""
    start = draw(st.sampled_from([0.0, 0.0, 1.0, -1.5]))
    spans = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.625, 1e-3, 1.0]), min_size=1, max_size=3))
    sign = draw(st.sampled_from([1.0, -1.0]))
    out, total = [start], 0.0
    for span in spans:
        total = min(total + span, 1.5)
        out.append(start + sign * total)
    return tuple(out)


def events(per_sample: bool) -> st.SearchStrategy[str]:
    """What the event of a call is: none, or one of those that known.py knows the time of."""
    going_on = ["never", "noted", "same"]  # the solution is what it is without them
    return st.sampled_from(["none"] * 5 + going_on + ([] if per_sample else ["time", "state", "several"]))


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    field = draw(st.sampled_from(sorted(FIELDS)))
    dtype = draw(st.sampled_from(REAL if field in REAL_ONLY else DTYPES[:-1] if field == "swap" else DTYPES))
    per_sample = draw(st.booleans())
    least = int(per_sample) + (field == "matrix")
    axes = draw(st.integers(least, 4))
    shape = tuple(draw(st.integers(1, 3 if axes < 3 else 2)) for _ in range(axes))
    return {
        "field": field,
        "dtype": dtype,
        "per_sample": per_sample,
        "shape": shape,
        "structure": draw(st.sampled_from(sorted(STRUCTURES))),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "grad": draw(st.sampled_from(["none", "leaf", "inner"])),
        "k": draw(st.sampled_from([1.0, 0.5, -0.75, 0.0])),
        "k_grad": draw(st.booleans()),
        "passing": draw(st.sampled_from((*PASSING, "rows") if per_sample else PASSING)),
        "unit": 1.0 if dtype == "float16" else draw(st.sampled_from(UNITS)),  # f / unit would not fit into it
        "seed": draw(st.integers(0, 999)),
    }


@st.composite
def valid(draw: st.DrawFn) -> Valid:
    given = draw(states())
    method, dtype = draw(st.sampled_from(sorted(METHODS))), given["dtype"]
    adaptive = METHODS[method].error_order is not None and draw(st.integers(0, 3)) > 0
    slow = isinstance(METHODS[method], ImplicitRK)
    own_times = given["per_sample"] and draw(st.booleans())
    ts: tuple[Any, ...] = draw(times())
    if own_times:
        rows = [draw(times()) for _ in range(given["shape"][0])]
        longest = max(map(len, rows))
        ts = tuple(row + (row[-1],) * (longest - len(row)) for row in rows)
    form = draw(st.sampled_from([f for f in TS_FORMS if not own_times or f in ("list", "float64", "float32", "numpy")]))
    gradients = [
        g for g in sorted(GRADIENTS) if g != "reversible" or not isinstance(METHODS[method], (ImplicitRK, Adams))
    ]
    gradient = draw(st.sampled_from(gradients))
    leaves = len(flatten(STRUCTURES[given["structure"]])[0])
    if gradient == "forward" and leaves * prod(given["shape"]) > 8:
        gradient = "discrete"  # it would carry a tangent for each number
    event = draw(events(given["per_sample"]))
    return Valid(
        **given,
        ts=ts,
        ts_form=form,
        ts_grad=form in ("float64", "float32", "mixed") and draw(st.booleans()),
        method=method,
        instance=draw(st.booleans()),
        tol=draw(st.sampled_from(_tolerances(method, dtype))) if adaptive else None,
        tol_form=draw(st.sampled_from(["number", "tensor", "tree", "numpy"])),
        step=None if adaptive else 0.25 if slow else draw(st.sampled_from([0.125, 0.0625, 0.3])),
        controller=draw(st.sampled_from(["none", "none", *_controllers(method, adaptive)])),
        gradient=gradient,
        setting=draw(st.sampled_from(["name", "instance", *hostile.SETTINGS[gradient]])),
        dense=draw(st.booleans()),
        event=event,
        on_failure=draw(st.sampled_from(["raise", "return"])),
        progress=draw(st.booleans()),
        callbacks=draw(st.booleans()),
        relation=draw(st.sampled_from(RELATIONS)),
    )


@st.composite
def compiled(draw: st.DrawFn) -> Valid:
    """With `compile=True`. What decides which library is needed takes few values: each costs seconds, once."""
    field, method, tol, step = draw(
        st.sampled_from(
            [("scale", "tsit5", 1e-6, None), ("forced", "dopri5", 1e-3, None), ("logistic", "rk4", None, 0.0625)]
        )
    )
    shape, per_sample = draw(st.sampled_from([((3,), False), ((4, 2), True)]))
    wanted = draw(st.booleans())
    first, last = draw(st.sampled_from([(0.0, 1.0), (1.0, -0.5), (-1.5, -1.0), (0.5, 0.5)]))
    ts: tuple[Any, ...] = (first, first + draw(st.sampled_from([0.0, 0.3, 1.0])) * (last - first), last)
    if per_sample and draw(st.booleans()):
        ts = tuple(tuple(first + (t - first) * (1 - i / 8) for t in ts) for i in range(shape[0]))
    return Valid(
        field=field,
        shape=shape,
        dtype=draw(st.sampled_from(["float64", "float32"])),
        layout=draw(st.sampled_from(LAYOUTS)),
        grad="leaf" if wanted else "none",
        k=draw(st.sampled_from([1.0, 0.5, -0.75, 0.0])),
        k_grad=wanted,
        passing=draw(st.sampled_from(["args", "closure"])),
        ts=ts,
        ts_form=draw(st.sampled_from(["list", "float64", "numpy"])),
        method=method,
        tol=None if tol is None else draw(st.sampled_from([tol, tol / 10])),
        step=step,
        per_sample=per_sample,
        compiled=True,
        relation=draw(st.sampled_from([x for x in RELATIONS if x not in ("row", "permute")])),
        seed=draw(st.integers(0, 999)),
    )


@st.composite
def compat(draw: st.DrawFn) -> Compat:
    entry = draw(st.sampled_from(["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]))
    method = draw(st.sampled_from([None, *(m for m in SOLVERS if m != SCIPY)]))
    given = draw(states())
    given |= {"per_sample": False, "passing": draw(st.sampled_from(["closure", "module"])), "unit": 1.0}
    given["structure"] = draw(st.sampled_from([s for s in PLAIN if s != "one"]))
    if given["dtype"] == "mixed" or entry == "odeint_event":
        given["dtype"] = "float64"
    if entry == "odeint_adjoint":
        given["passing"] = "module"
    ts = tuple(dict.fromkeys(draw(times())))
    if len(ts) < 2:
        ts = (0.0, 0.5)
    ours = None if method is None else METHODS.get(SOLVERS[method])
    adaptive = method in (None, "dopri8", "dopri5", "tsit5", "bosh3", "fehlberg2", "adaptive_heun")
    options: dict[str, Any] = {}
    if adaptive:
        options |= draw(
            st.sampled_from([{}, {"first_step": 0.05}, {"max_step": 0.25}, {"safety": 0.8}, {"min_step": 1e-6}])
        )
    elif draw(st.booleans()) or entry == "odeint_event" or ours is not None:
        options |= {"step_size": 0.125, "interp": draw(st.sampled_from(["linear", "cubic"]))}
    dtype = given["dtype"]
    low = method in ("fehlberg2", "adaptive_heun", "bosh3")
    tol = (
        (1e-2 if dtype in ("bfloat16", "float16") else 1e-4) if low or dtype not in ("float64", "complex128") else 1e-6
    )
    case = Valid(
        **given, ts=ts, ts_form="float64", ts_grad=entry == "odeint" and draw(st.booleans()),
        tol=tol if adaptive else None,
        step=None if adaptive else 0.125, method="tsit5" if adaptive else "rk4",
    )  # fmt: skip
    return Compat(case, entry, method, tuple(options.items()))


def layers() -> st.SearchStrategy[Layer]:
    return st.builds(
        Layer,
        kind=st.sampled_from(["NeuralODE", "MLPField", "ConvField", "Augmented", "classifier"]),
        shape=st.lists(st.integers(1, 4), min_size=2, max_size=3).map(tuple),
        dtype=st.sampled_from(["float32", "float64", "bfloat16", "float16"]),
        gradient=st.sampled_from(sorted(GRADIENTS)),
        hidden=st.lists(st.integers(1, 5), max_size=2).map(tuple),
        activation=st.sampled_from(["relu", "softplus", "tanh", "silu", "gelu", "elu"]),
        time=st.booleans(),
        own_ts=st.booleans(),
        extra=st.integers(1, 3),
        per_sample=st.booleans(),
        seed=st.integers(0, 99),
    )


@st.composite
def reports(draw: st.DrawFn) -> Report:
    field = draw(
        st.sampled_from(["scale", "forced"])
    )  # the others' gradient by the rate may vanish, and errors are relative
    dtype = draw(st.sampled_from(["float64", "float32"]))
    case = Valid(
        field=field, shape=(2,), structure=draw(st.sampled_from(["tensor", "dict"])), k_grad=True, grad="leaf",
        passing=draw(st.sampled_from(PASSING)), dtype=dtype, tol=1e-5,
        seed=draw(st.integers(0, 99)), k=draw(st.sampled_from([1.0, 0.5])),
    )  # fmt: skip
    names = draw(st.lists(st.sampled_from(sorted(GRADIENTS)), min_size=1, max_size=2, unique=True))
    return Report(case, tuple(names))


@st.composite
def wrong(draw: st.DrawFn) -> Wrong:
    entry = draw(st.sampled_from(["solve"] * 4 + sorted(hostile.ENTRIES)))
    names = hostile.ENTRIES[entry].arguments
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2 if entry == "solve" else 1, unique=True))
    return Wrong(entry, tuple((name, draw(st.sampled_from(sorted(hostile.JUNK)))) for name in chosen))


def bad_fields() -> st.SearchStrategy[BadField]:
    return st.builds(
        BadField,
        field=st.sampled_from(sorted(wrong_fields.FIELDS)),
        at=st.sampled_from([1, 1, 2, 3, 7, 12]),
        structure=st.sampled_from(["tensor", "dict", "tuple"]),
        method=st.sampled_from(["tsit5", "rk4", "dopri8", "bosh3", "gl4", "implicit_adams", "euler"]),
        gradient=st.sampled_from(sorted(GRADIENTS)),
        per_sample=st.booleans(),
        grad=st.booleans(),
        dense=st.booleans(),
        entry=st.sampled_from(["solve", "solve", "solve", "NeuralODE"]),
    )


def commands() -> st.SearchStrategy[Command]:
    """Command lines that are wrong, or only ask."""
    letters = st.characters(exclude_categories=["Cc", "Cs", "Nd"])
    number = st.one_of(
        st.sampled_from(["-1", "0", "nan", "inf", "x", "", "1e400", "--", "1.5"]),
        st.integers(max_value=0).map(str),
        st.text(letters, min_size=2).map(lambda text: f"_{text}"),
    )
    option = st.sampled_from(
        ["--epochs", "--batch-size", "--channels", "--lr", "--tolerance", "--devices", "--nonsense"]
    )
    wrong_number = st.tuples(st.just("train"), st.just("images"), option, number)
    wrong_name = st.tuples(
        st.sampled_from(["train", "compare", "bench", "odenet", ""]), st.sampled_from(["x", "", "0", "é"])
    )
    wrong_choice = st.tuples(
        st.just("train"), st.just("images"), st.sampled_from(["--method", "--device", "--data"]),
        st.sampled_from(["x", "", "rk4", "gl4", "tpu", "imagenet"]),
    )  # fmt: skip
    asks = st.tuples(st.sampled_from(["train", "compare", "bench", "--help"]), st.just("--help"))
    return st.one_of(wrong_number, wrong_name, wrong_choice, asks).map(Command)


KINDS: dict[str, tuple[st.SearchStrategy[Any], float]] = {  # with its share of all calls
    "valid": (valid(), 0.08),
    "compiled": (compiled(), 0.02),
    "compat": (compat(), 0.23),
    "layers": (layers(), 0.03),
    "reports": (reports(), 0.005),
    "wrong": (wrong(), 0.43),
    "fields": (bad_fields(), 0.2),
    "commands": (commands(), 0.005),
}

"""Captures f as a graph of tensor operations, and finds the tensors that f uses in every solve.

TorchDynamo does both: its guards tell whether the graph still is what f does (after a changed attribute, or in another
branch), and it lifts every tensor that f reaches, parameters included, to an input of the graph. One guarded call a
solve returns the graph and the tensors; the call computes nothing.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.node import map_arg

from ..core.leaves import Leaves
from ..core.pytrees import Spec, flatten_like, unflatten
from .compile_lock import LOCK
from .gc_pause import gc_paused
from .passes.column_layout import largest_product
from .torch_private import UnsupportedTorchError, dynamo, has_unbacked_symbols, recording
from .weak_cache import WeakIdCache


class NotCompilableError(Exception):
    """Tells why a solve cannot be compiled."""


def describe_error(error: Exception) -> str:
    """What stopped a compiler, in one line."""
    inner = getattr(error, "inner_exception", None)
    error = inner if isinstance(inner, NotCompilableError) else error
    if isinstance(error, (NotCompilableError, UnsupportedTorchError)):
        return str(error)
    if type(error).__name__ == "FailOnRecompileLimitHit":
        return (
            "an attribute or number that f depends on has had many values, each of which is compiled for: hold it in a "
            "tensor, as a buffer or through args"
        )
    lines = str(error).strip().splitlines()
    if lines and "data-dependent" in lines[0].lower():
        return BRANCHES
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


Place = tuple[str, int]
"""Kind and number of a tensor: "in" and "out" of the graph, "t", "y" (a leaf) or "capture" (what f uses besides)."""


@dataclass(eq=False)
class FieldGraph:
    """f as a graph. roles: which tensor each input is. results: which tensor each leaf of dy/dt is.

    digest: of what the graph computes, the same in every process; None if it holds tensors of its own. largest_product:
    multiplications of its largest matrix product.
    """

    module: GraphModule
    roles: list[Place]
    results: list[Place]
    digest: str | None
    largest_product: float

    def __call__(self, t: Tensor, y: Sequence[Tensor], captures: Sequence[Tensor]) -> Leaves:
        given = {"t": _at_least_1d((t,)), "y": _at_least_1d(y), "capture": captures}
        inputs = [given[kind][i] for kind, i in self.roles]
        outputs = self.module(*inputs)
        return tuple((outputs if where == "out" else inputs)[i] for where, i in self.results)


class _LastCall(threading.local):
    """Graph and inputs of this thread's last guarded call."""

    graph: _Graph | None = None
    inputs: tuple[Any, ...] = ()


class _Graph:
    """TorchDynamo's graph as a callable that stores its inputs and returns placeholders for its outputs."""

    def __init__(self, module: GraphModule, example_inputs: Sequence[Any]) -> None:
        _refuse_effects(module)
        self.module = module = _without_transforms(module)
        (output,) = (n for n in module.graph.nodes if n.op == "output")
        self.largest_product = largest_product(module)
        self.placeholders = [torch.empty(0) for _ in output.args[0]]
        self.fields: dict[tuple[Place, ...], FieldGraph] = {}

    def __call__(self, *inputs: Any) -> list[Tensor]:
        _last.graph, _last.inputs = self, inputs
        return self.placeholders


def _refuse_effects(module: GraphModule) -> None:
    """Raise NotCompilableError if f has side effects: the guarded call would have them too.

    TorchDynamo still records at this point, so no effect has happened yet.
    """
    names = dynamo()
    output = names.InstructionTranslator.current_tx().output
    # a number that only decides leaves no node, and no guard where PyTorch believes to know it (x % 1.0 is not 0)
    if has_unbacked_symbols(output.shape_env):
        raise NotCompilableError(READS_NUMBER)
    effects = output.side_effects
    changed = (x for x in effects.id_to_variable.values() if effects.is_modified(x))
    if any(not isinstance(x.mutation_type, (names.AttributeMutationNew, names.ValueMutationNew)) for x in changed):
        raise NotCompilableError(
            "f changes something outside of it: an attribute, a list, a global or nonlocal variable"
        )
    for node in module.graph.nodes:
        if isinstance(node.meta.get("example_value"), (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise NotCompilableError(READS_NUMBER)  # Inductor would round it
    # the fake tensor that f was traced with counts changes, but also the view of a larger storage that its tensor is
    given = [n.meta.get("example_value") for n in module.graph.nodes if n.op == "placeholder"]
    if any(getattr(x, "_version", 0) > 0 for x in given) and _changes_inputs(module, given):
        raise NotCompilableError(IN_PLACE)


def _without_transforms(module: GraphModule) -> GraphModule:
    """The graph with the derivatives that f takes by `torch.func` as operations of their own.

    TorchDynamo writes the transforms as calls that hold their level in the stack of transforms, so the graph could not
    be recorded again inside another transform.
    """
    if not any(getattr(n.target, "__module__", "").startswith("torch._functorch") for n in module.graph.nodes):
        return module
    names = recording()
    given = [n.meta["example_value"] for n in module.graph.nodes if n.op == "placeholder"]
    with names.FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
        inputs = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in given]
        return names.make_fx(module, _allow_non_fake_inputs=True)(*inputs)


def _changes_inputs(module: GraphModule, like: Sequence[Any]) -> bool:
    """Whether the graph changes one of its inputs, run on fake tensors with a storage of their own each."""
    with recording().FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
        inputs = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device, requires_grad=x.requires_grad)
            if isinstance(x, Tensor)
            else x
            for x in like
        ]
        module(*inputs)
    return any(getattr(x, "_version", 0) > 0 for x in inputs)


@dataclass
class _Failure:
    """Why an f could not be captured. skip: solves until the next attempt; f may have changed by then."""

    reason: str
    count: int
    skip: int


BRANCHES = "f branches on a number that it reads from a tensor, such as t or y: use torch.where"
READS_NUMBER = "f reads a number from a tensor (item, tolist)"
IN_PLACE = "f changes a tensor in place that it did not make (as BatchNorm does in training)"
MAX_SKIP = 1024  # solves from one attempt to the next
MAX_KINDS = 64  # of states that an f is captured for; each costs seconds and memory

Kind = tuple[tuple[Any, ...], ...]
"""What selects the graph beside f and args: dtypes, devices, shapes and strides."""

_last = _LastCall()
_failures: WeakIdCache[dict[Kind, _Failure]] = WeakIdCache()
_calls: WeakIdCache[dict[Kind, Callable[..., list[Any]]]] = WeakIdCache()
_numbers = itertools.count()
_lock = threading.Lock()


def _at_least_1d(tensors: Sequence[Tensor]) -> list[Tensor]:
    """t or y as the guarded call gets them: 0-d tensors of shape (1,).

    TorchDynamo makes a number that is read from a 0-d input a guard, and the graph holds for that number alone. But t
    and y change in the loop, without guards. To read a number from a tensor that was computed is an error.
    """
    return [x.reshape(1) if x.ndim == 0 else x for x in tensors]


def _call(
    f: Callable[..., Any], spec: Spec, args: tuple[Any, ...], *at: Tensor, zero_d: Sequence[bool] = ()
) -> list[Any]:
    t, *y = [x.reshape(()) if is_0d else x for x, is_0d in zip(at, zero_d, strict=True)]
    return flatten_like(f(t, unflatten(y, spec), *args), spec)[0]


def _kind(*tensors: Tensor) -> Kind:
    return tuple((x.dtype, x.device, x.shape, x.stride(), x.requires_grad) for x in tensors)


def _values_of(values: WeakIdCache[dict[Kind, Any]], key: Any) -> dict[Kind, Any]:
    """The values of an f; a new, empty dictionary if there are none."""
    held = values.get(key)
    if held is None:
        values.set(key, held := {})
    return held


def _guarded(f: Callable[..., Any], kind: Kind) -> Callable[..., list[Any]]:
    """`_call` with guards: a function for each code of f and kind of state, as TorchDynamo limits entries by code."""
    with _lock:
        calls = _values_of(_calls, _code(f) or type(f))
        if kind not in calls:
            with gc_paused():
                dynamo()
            own = FunctionType(_call.__code__.replace(co_name=f"_call_{next(_numbers)}"), _call.__globals__)
            own.__kwdefaults__ = {"zero_d": tuple(not shape for _, _, shape, *_ in kind)}
            calls[kind] = torch.compile(own, backend=_Graph, fullgraph=True, dynamic=False)
        return calls[kind]


def _code(f: Callable[..., Any]) -> Any:
    return getattr(f.__func__ if inspect.ismethod(f) else f, "__code__", None)


@contextmanager
def _first_call() -> Generator[None]:
    """Without the warning that TorchDynamo causes by reading .grad of every tensor that f reaches, computed ones too.

    For the first call of a code on a kind of state only: leaving `catch_warnings` makes Python forget which warnings
    it has shown. The guarded call is compiled without its own profiling, which takes a tenth of its time.
    """
    unprofiled = dynamo().config.patch(record_runtime_overhead=False)
    with gc_paused(), warnings.catch_warnings(), unprofiled:
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        yield


def _traced(f: Callable[..., Any], spec: Spec, args: tuple[Any, ...], kind: Kind, at: Sequence[Tensor]) -> list[Any]:
    """The guarded call. After a failure the next calls are skipped for a while, as each takes as long as the first."""
    code = _code(f)
    failures, known = _values_of(_failures, code or f), _calls.get(code or type(f)) or {}
    failure = failures.get(kind)
    if failure is not None and failure.skip > 0:
        failure.skip -= 1
        raise NotCompilableError(failure.reason)
    call = known.get(kind)
    if call is None and len(known) >= MAX_KINDS:
        raise NotCompilableError(f"f has been compiled for {MAX_KINDS} shapes, strides and dtypes of the state")
    try:
        quiet = _first_call() if call is None else nullcontext()
        call = call or _guarded(f, kind)
        # else the graph would not show where f itself disables gradients
        with LOCK, torch.enable_grad(), quiet:
            out = call(f, spec, args, *at)
    except Exception as error:
        reason = describe_error(error)
        count = 1 if failure is None else failure.count + 1
        failures[kind] = _Failure(reason, count, min(2**count, MAX_SKIP))
        raise NotCompilableError(reason) from error
    failures.pop(kind, None)
    return out


def capture(
    f: Callable[..., Any], spec: Spec, args: tuple[Any, ...], t: Tensor, y: Leaves
) -> tuple[FieldGraph, list[Tensor]]:
    """f as a graph, and the tensors that it uses beside t and y: of args, parameters, closures.

    Raises NotCompilableError, or an error of f or TorchDynamo.
    """
    _last.graph = None
    at = _at_least_1d((t, *y))
    out = _traced(f, spec, args, _kind(t, *y), at)
    graph, inputs = _last.graph, _last.inputs
    _last.inputs = ()
    if graph is None:
        raise NotCompilableError("f has no tensor operation of t or y")
    roles: list[Place] = []
    captures: list[Tensor] = []
    known: dict[int, Place] = {id(at[0]): ("t", 0)} | {id(x): ("y", i) for i, x in enumerate(at[1:])}
    for x in inputs:
        if not isinstance(x, Tensor):
            raise NotCompilableError(f"f depends on a {type(x).__name__} that changes from call to call")
        role = known.get(id(x))
        if role is None:
            role = "capture", len(captures)
            captures.append(x)
        roles.append(role)
    field = graph.fields.get(tuple(roles))
    if field is None:
        places = [_place(x, {"out": graph.placeholders, "in": inputs}) for x in out]
        results = [place for place in places if place is not None]
        if len(results) < len(places):
            raise NotCompilableError("f returns something that is not a tensor made of t and y")
        field = FieldGraph(graph.module, roles, results, _digest(graph.module, roles, results), graph.largest_product)
        graph.fields[tuple(roles)] = field
    return field, captures


def _place(x: Any, known: dict[str, Sequence[Any]]) -> Place | None:
    return next(((kind, i) for kind, tensors in known.items() for i, y in enumerate(tensors) if x is y), None)


def _digest(module: GraphModule, roles: list[Place], results: list[Place]) -> str | None:
    if any(n.op in ("get_attr", "call_module") for n in module.graph.nodes):
        return None
    # numbers in place of names, which depend on where f stands in the caller's program
    names: dict[Any, str] = {}
    lines = [repr(roles), repr(results)]
    for node in module.graph.nodes:
        names[node] = f"%{len(names)}"
        target = node.target
        if callable(target):
            target = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', repr(target))}"
        if node.op == "placeholder":
            target = ""
        given = map_arg((node.args, node.kwargs), names.__getitem__)
        lines.append(f"{names[node]} {node.op} {target} {given}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()

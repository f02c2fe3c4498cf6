"""Captures f as a graph of tensor operations, and finds again at every solve the tensors that it uses.

TorchDynamo does both: its guards tell whether the graph still stands for what f does (an attribute that changed,
another branch), and it lifts every tensor that f reaches, its parameters too, to an input of the graph. One guarded
call a solve gives graph and tensors; the call computes nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.node import map_arg

from ..core.leaves import Leaves, Spec, flatten_like, unflatten
from .gc_pause import paused
from .passes.column_layout import largest_product
from .while_alive import WhileAlive


class NotCompilableError(Exception):
    """Says why a solve cannot be compiled."""


def told(error: Exception) -> str:
    """What stopped a compiler, in one line."""
    if isinstance(error, NotCompilableError):
        return str(error)
    if type(error).__name__ == "FailOnRecompileLimitHit":
        return (
            "an attribute or number that f depends on has had many values, each of which is compiled for: hold it in a "
            "tensor, as a buffer or through args"
        )
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


Place = tuple[str, int]
"""Which tensor: of the graph's inputs ("in") and outputs ("out"), or "t", "y" (a leaf) and "other" (what f reaches)."""


@dataclass(eq=False)
class FieldGraph:
    """f as a graph: inputs that play the `roles`, in their order -> outputs. Leaf i of dy/dt is `results[i]`.

    text: says what the graph computes, the same in any process; None where it holds tensors of its own. largest:
    multiplications of its largest matrix product.
    """

    module: GraphModule
    roles: list[Place]
    results: list[Place]
    text: str | None
    largest: float

    def __call__(self, t: Tensor, y: Sequence[Tensor], others: Sequence[Tensor]) -> Leaves:
        given = {"t": [t], "y": y, "other": others}
        inputs = [given[kind][i] for kind, i in self.roles]
        outputs = self.module(*inputs)
        return tuple((outputs if where == "out" else inputs)[i] for where, i in self.results)


class _Seen(threading.local):
    """What the last guarded call came upon."""

    graph: _Graph | None = None
    inputs: tuple[Any, ...] = ()


class _Graph:
    """A graph as TorchDynamo hands it over. Calling it takes its inputs down and gives stand-ins for its outputs."""

    def __init__(self, module: GraphModule, example_inputs: Sequence[Any]) -> None:
        _refuse_effects(module)
        self.module = module
        (output,) = (n for n in module.graph.nodes if n.op == "output")
        self.largest = largest_product(module)
        self.stand_ins = [torch.empty(0) for _ in output.args[0]]
        self.fields: dict[tuple[Place, ...], FieldGraph] = {}

    def __call__(self, *inputs: Any) -> list[Tensor]:
        _seen.graph, _seen.inputs = self, inputs
        return self.stand_ins


def _refuse_effects(module: GraphModule) -> None:
    """Raise NotCompilableError where f does more than compute: a call of it that computes nothing would do that too.

    Raised while TorchDynamo still records, so that nothing has been done yet.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._dynamo.variables.base import AttributeMutationNew, ValueMutationNew

    effects = InstructionTranslator.current_tx().output.side_effects
    changed = (x for x in effects.id_to_variable.values() if effects.is_modified(x))
    if any(not isinstance(x.mutation_type, (AttributeMutationNew, ValueMutationNew)) for x in changed):
        raise NotCompilableError(
            "f changes something outside of it: an attribute, a list, a global or nonlocal variable"
        )
    for node in module.graph.nodes:
        if isinstance(node.meta.get("example_value"), (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise NotCompilableError("f reads a number from a tensor (item, tolist)")  # Inductor would round it
    # the stand-in that f was traced with counts what changed it; being put into a larger storage, as its tensor is, too
    given = [n.meta.get("example_value") for n in module.graph.nodes if n.op == "placeholder"]
    if any(getattr(x, "_version", 0) > 0 for x in given) and _changes_inputs(module, given):
        raise NotCompilableError(IN_PLACE)


def _changes_inputs(module: GraphModule, like: Sequence[Any]) -> bool:
    """Whether the graph changes one of its inputs: it is run on stand-ins that have a storage of their own each."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
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
    """Why an f could not be captured. It is tried again ever more rarely: something about it may have changed."""

    reason: str
    count: int
    rest: int


def quietly(module: str) -> None:
    """Import part of PyTorch's compiler; loading it warns of what PyTorch itself is to change.

    Ctrl-C waits until it is there: half of it would stay in the process, and be of no use from then on.
    """
    if module not in sys.modules:
        with uninterrupted(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C comes at the end."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # it comes to the main thread alone, or to nobody
        return
    came: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda *what: came.append(what))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])


IN_PLACE = "f changes a tensor in place that it did not make (as BatchNorm does in training)"
LONGEST_REST = 1024  # solves from one try to the next
MOST_KINDS = 64  # of states that an f is captured for; each costs seconds and memory

Kind = tuple[tuple[Any, ...], ...]  # what decides, beside f and args, which graph is needed

turn = threading.Lock()  # of what records: TorchDynamo refuses to work beside another thread's recording
_seen = _Seen()
_failures: WhileAlive[dict[Kind, _Failure]] = WhileAlive()
_calls: WhileAlive[dict[Kind, Callable[..., list[Any]]]] = WhileAlive()
_numbers = itertools.count()
_lock = threading.Lock()


def _call(f: Callable[..., Any], spec: Spec, args: tuple[Any, ...], t: Tensor, *y: Tensor) -> list[Any]:
    return flatten_like(f(t, unflatten(list(y), spec), *args), spec)[0]


def _kind(*tensors: Tensor) -> Kind:
    return tuple((x.dtype, x.device, x.shape, x.stride(), x.requires_grad) for x in tensors)


def _held(values: WhileAlive[dict[Kind, Any]], key: Any) -> dict[Kind, Any]:
    """The values of an f, {} at first."""
    held = values.get(key)
    if held is None:
        values.set(key, held := {})
    return held


def _guarded(f: Callable[..., Any], kind: Kind) -> Callable[..., list[Any]]:
    """`_call` with guards, one for each code that an f may have and each kind of state: a code's cache has a limit."""
    with _lock:
        calls = _held(_calls, _code(f) or type(f))
        if kind not in calls:
            with paused():
                quietly("torch._dynamo")
            own = FunctionType(_call.__code__.replace(co_name=f"_call_{next(_numbers)}"), _call.__globals__)
            calls[kind] = torch.compile(own, backend=_Graph, fullgraph=True, dynamic=False)
        return calls[kind]


def _code(f: Callable[..., Any]) -> Any:
    return getattr(f.__func__ if inspect.ismethod(f) else f, "__code__", None)


@contextmanager
def _about_leaves() -> Iterator[None]:
    """Without a warning: TorchDynamo looks for .grad of every tensor that f reaches, computed ones too.

    For the first call of a code on such a state only: leaving `catch_warnings` makes Python forget which warnings it
    has shown. The guarded call is made without its own profiling, which would take a tenth of its time.
    """
    quietly("torch._dynamo")
    unprofiled = sys.modules["torch._dynamo"].config.patch(record_runtime_overhead=False)
    with paused(), warnings.catch_warnings(), unprofiled:
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        yield


def _traced(f: Callable[..., Any], spec: Spec, args: tuple[Any, ...], t: Tensor, y: Leaves) -> list[Any]:
    """The guarded call; after a failure the next ones are spared for a while, as each takes as long as the first."""
    kind, code = _kind(t, *y), _code(f)
    failures, known = _held(_failures, code or f), _calls.get(code or type(f)) or {}
    failure = failures.get(kind)
    if failure is not None and failure.rest > 0:
        failure.rest -= 1
        raise NotCompilableError(failure.reason)
    call = known.get(kind)
    if call is None and len(known) >= MOST_KINDS:
        raise NotCompilableError(f"f has been compiled for {MOST_KINDS} shapes, strides and dtypes of the state")
    try:
        quiet = _about_leaves() if call is None else nullcontext()
        call = call or _guarded(f, kind)
        # enabled, else the graph would not tell where f itself turns gradients off
        with turn, torch.enable_grad(), quiet:
            out = call(f, spec, args, t, *y)
    except Exception as error:
        inner = getattr(error, "inner_exception", None)
        reason = told(inner if isinstance(inner, NotCompilableError) else error)
        count = 1 if failure is None else failure.count + 1
        failures[kind] = _Failure(reason, count, min(2**count, LONGEST_REST))
        raise NotCompilableError(reason) from error
    failures.pop(kind, None)
    return out


def capture(
    f: Callable[..., Any], spec: Spec, args: tuple[Any, ...], t: Tensor, y: Leaves
) -> tuple[FieldGraph, list[Tensor]]:
    """f as a graph, and what it uses beside t and y: tensors of args, parameters, what it closes over.

    Raises NotCompilableError, or whatever error comes out of f or TorchDynamo.
    """
    _seen.graph = None
    out = _traced(f, spec, args, t, y)
    graph, inputs = _seen.graph, _seen.inputs
    _seen.inputs = ()
    if graph is None:
        raise NotCompilableError("f has no tensor operation of t or y")
    roles, others, known = [], [], {id(t): ("t", 0)} | {id(x): ("y", i) for i, x in enumerate(y)}
    for x in inputs:
        if not isinstance(x, Tensor):
            raise NotCompilableError(f"f depends on a {type(x).__name__} that changes from call to call")
        role = known.get(id(x))
        if role is None:
            role = "other", len(others)
            others.append(x)
        roles.append(role)
    field = graph.fields.get(tuple(roles))
    if field is None:
        found = [_place(x, {"out": graph.stand_ins, "in": inputs}) for x in out]
        results = [place for place in found if place is not None]
        if len(results) < len(found):
            raise NotCompilableError("f returns something that is not a tensor made of t and y")
        field = FieldGraph(graph.module, roles, results, _text(graph.module, roles, results), graph.largest)
        graph.fields[tuple(roles)] = field
    return field, others


def _place(x: Any, known: dict[str, Sequence[Any]]) -> Place | None:
    return next(((kind, i) for kind, tensors in known.items() for i, y in enumerate(tensors) if x is y), None)


def _text(module: GraphModule, roles: list[Place], results: list[Place]) -> str | None:
    if any(n.op in ("get_attr", "call_module") for n in module.graph.nodes):
        return None
    # numbers in place of names, which come from where f stands in the caller's program
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

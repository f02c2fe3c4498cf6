"""Which solves can be compiled, and the cache of their libraries."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..control import PID, ConstantStep, Grid
from ..core.leaves import Leaves, cast, forward_mode
from ..engine.integrate import Request
from ..engine.problem import Problem
from ..gradients import Discrete
from ..gradients.gradient import Gradient
from ..methods.explicit import ExplicitRK
from ..methods.tableau import Tableau
from .backward_graph import backward_graph
from .build import BackgroundBuild, Library, block_library, library
from .field_graph import FieldGraph, NotCompilableError, capture, describe_error
from .forward_graph import forward_graph
from .graph_recording import RecordedLoop
from .plan import Plan

TAPE_BYTES = 2**28  # allocated at once; memory that is not written is never mapped
MAX_ROWS = 4096
SMALL_STATE = 4096  # elements of a state or a weight

Key = tuple[str, Plan, int]
"""Direction, plan and number of threads of a library."""
Record = Callable[[Plan, FieldGraph], RecordedLoop]


def refuse_unsupported(p: Problem, how: Gradient, request: Request) -> None:
    """Raise NotCompilableError for options that have no compiled form."""
    recording = torch.is_grad_enabled()
    reasons = {
        "method": not isinstance(p.method, ExplicitRK) and f"method={p.method.name!r} is not an explicit one",
        "controller": type(p.controller) not in (PID, ConstantStep, Grid)
        and "only the controllers PID, ConstantStep and Grid have a compiled form",
        "jumps": p.stops.rule.perturb and "f is taken to jump at the ends of every step (perturb)",
        "steps": request.steps is not None and "save_steps=True keeps every step",
        "event": request.events is not None and "an event is looked for",
        "callbacks": (request.progress or request.callbacks) and "progress and callbacks look at every step",
        "gradient": recording and type(how) is not Discrete and f"gradient={how.name!r} is not 'discrete'",
        "memory": recording
        and isinstance(how, Discrete)
        and (how.checkpoints or how.memory)
        and "the number of checkpoints is bounded",
        "times": recording and p.times_differentiable and "ts asks for a gradient",
        "tangent": forward_mode() and "forward-mode derivatives pass through",
        "device": p.y0[0].device.type not in ("cpu", "cuda") and f"the state is on {p.y0[0].device}",
        "devices": any(x.device != p.y0[0].device for x in p.y0) and "the state is on several devices",
        "dtype": any(x.is_complex() for x in p.y0) and "the state is complex",
        "autocast": torch.is_autocast_enabled(p.y0[0].device.type) and "autocast chooses f's dtypes",
        "empty": any(x.numel() == 0 for x in p.y0) and "the state is empty",
    }
    for reason in reasons.values():
        if reason:
            raise NotCompilableError(reason)


def capture_field(p: Problem) -> tuple[FieldGraph, list[Tensor]]:
    """f of this problem as a graph, and the tensors that it uses beside t and y."""
    t = cast(p.ts.detach()[..., 0], p.f.time_dtype)
    y = tuple(cast(x.detach(), d) for x, d in zip(p.y0, p.f.dtypes, strict=True))  # objects of their own
    graph, captures = capture(*p.f.user_call, t, y)
    if any(x.device != t.device for x in captures):
        raise NotCompilableError("f uses tensors of another device than the state's")
    return graph, captures


def has_native_loop(device: torch.device) -> bool:
    """Whether a loop is one library there, condition included; else the host runs it in blocks."""
    return device.type == "cpu"


def tape_rows(y: Leaves, coefficients: int) -> int:
    """The rows of a tape for states like y and this many coefficients of a polynomial."""
    row = sum(x.numel() * x.element_size() for x in y) * (2 + coefficients)
    return min(MAX_ROWS, 2 ** max(3, (TAPE_BYTES // max(row, 1)).bit_length() - 1))


class PlanCache:
    """Libraries by plan, each compiled once a process; the disk serves other processes unless f's graph holds tensors.

    They are dropped with the graph of f: a program that makes its fields anew would fill the memory with them.
    """

    def __init__(self) -> None:
        self.libraries: WeakKeyDictionary[FieldGraph, dict[Key, Library]] = WeakKeyDictionary()
        self.failed: WeakKeyDictionary[FieldGraph, dict[Key, str]] = WeakKeyDictionary()
        self.pending: WeakKeyDictionary[FieldGraph, dict[Key, BackgroundBuild]] = WeakKeyDictionary()

    def forward(self, plan: Plan, graph: FieldGraph, and_back: bool) -> Library:
        """The forward library. and_back: also start to make the backward library, in another thread."""
        threads = torch.get_num_threads()
        key, back = ("forward", plan, threads), ("backward", plan, threads)
        known, failed = self.libraries.setdefault(graph, {}), self.failed.setdefault(graph, {})
        if not failed and (ready := known.get(key)) is not None:
            return ready
        for wanted in (key, back) if and_back else (key,):
            if wanted in failed:
                raise NotCompilableError(failed[wanted])
        if key not in known:
            pending = self.pending.setdefault(graph, {})
            if and_back and back not in known and back not in pending and has_native_loop(plan.device):
                digest, used = _digest(graph, *back), _used_threads(plan, threads)
                pending[back] = BackgroundBuild(digest, lambda: backward_graph(plan, graph), used, plan.batched)
            try:
                known[key] = self._make(graph, key, forward_graph)
            except Exception:
                self._await(graph, back)
                raise
            except BaseException:  # Ctrl-C does not wait
                if back in pending:
                    pending[back].interrupted = True
                raise
            self._await(graph, back)
        return known[key]

    def backward(self, plan: Plan, graph: FieldGraph) -> Library:
        key, known = ("backward", plan, torch.get_num_threads()), self.libraries.setdefault(graph, {})
        self._await(graph, key)
        if key not in known:
            known[key] = self._make(graph, key, backward_graph)
        return known[key]

    def _await(self, graph: FieldGraph, key: Key) -> None:
        """Wait for a library that another thread makes, or was making when Ctrl-C came."""
        pending = self.pending.get(graph, {})
        build = pending.get(key)
        if build is None:
            return
        try:
            self.libraries[graph][key] = build.wait()
        except Exception as error:
            if build.interrupted:  # Ctrl-C ended the C++ compiler too
                return
            self.failed[graph][key] = describe_error(error)
            raise
        finally:
            if not build.working():
                pending.pop(key, None)

    def _make(self, graph: FieldGraph, key: Key, record: Record) -> Library:
        failed = self.failed.setdefault(graph, {})
        if key in failed:
            raise NotCompilableError(failed[key])
        try:
            return self._compile(graph, key, record)
        except Exception as error:
            failed[key] = describe_error(error)
            raise

    def _compile(self, graph: FieldGraph, key: Key, record: Record) -> Library:
        _, plan, threads = key
        if not has_native_loop(plan.device):
            return block_library(lambda: record(plan, graph))
        used = _used_threads(plan, threads)
        return library(_digest(graph, *key), lambda: record(plan, graph), used, plan.batched)


PLAN_CACHE = PlanCache()


def _used_threads(plan: Plan, threads: int) -> int:
    """One thread for a small state, where waking several takes longer than the work."""
    largest = max(math.prod(spec.shape) for spec in (*plan.y, *plan.captures))
    return 1 if largest <= SMALL_STATE else threads


def _digest(graph: FieldGraph, direction: str, plan: Plan, threads: int) -> str | None:
    """A digest of everything that a library depends on; None if something has no digest."""
    if graph.digest is None or plan.controller.norm is not None:
        return None
    rest = [(x.name, repr(getattr(plan, x.name))) for x in fields(plan) if x.compare]
    capability = torch.backends.cpu.get_cpu_capability()
    surroundings = (threads, torch.get_default_dtype(), torch.__version__, capability)
    return hashlib.sha256(repr((direction, graph.digest, rest, surroundings, _own_source())).encode()).hexdigest()


def solver_settings(p: Problem) -> tuple[Any, ...]:
    """Method and controller as values that can be compared, without the times that end a step."""
    assert isinstance(p.method, ExplicitRK)
    # in the order of their definition
    control = tuple([x for x in vars(p.controller).items() if x[0] not in ("step_ts", "jump_ts")])
    return (_Coefficients(p.method.tableau), p.method.interpolation, type(p.controller).__name__, control)


class _Coefficients:
    """A tableau with a fast hash."""

    def __init__(self, tableau: Tableau) -> None:
        self.tableau, self.fsal = tableau, tableau.fsal

    def __hash__(self) -> int:
        return hash(self.tableau.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Coefficients) and (self.tableau is other.tableau or self.tableau == other.tableau)

    def __repr__(self) -> str:
        return repr(self.tableau)


@lru_cache(maxsize=1)
def _own_source() -> str:
    """A digest of the source files of this package that take part in a graph."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    for name in ("compiled", "control", "core", "engine", "methods"):
        for file in sorted((root / name).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()

"""What can be compiled, which plan a solve has, and where its libraries are found."""

from __future__ import annotations

import hashlib
import math
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
from ..gradients.base import Gradient
from ..methods.explicit import ExplicitRK
from ..methods.tableau import Tableau
from .backward_graph import backward
from .build import Beside, Library, library, queued
from .capture import FieldGraph, NotCompilableError, capture, told
from .forward_graph import forward
from .plan import Plan

TAPE_BYTES = 2**28  # of memory that is asked for at once; what is not written is never touched
MOST_SLOTS = 4096
FEW = 4096  # elements of a state or a weight

Place = tuple[str, Plan, int]  # forward or backward, and the threads it is for


def refuse(p: Problem, how: Gradient, request: Request) -> None:
    """Raise NotCompilableError for what the compiled driver does not do."""
    recording = torch.is_grad_enabled()
    reasons = {
        "method": not isinstance(p.method, ExplicitRK) and f"method={p.method.name!r} is not an explicit one",
        "controller": type(p.controller) not in (PID, ConstantStep, Grid) and "the controller is the caller's own",
        "jumps": (p.stops.jumps is not None or p.stops.rule.perturb) and "f jumps (jump_ts, perturb)",
        "steps": request.steps is not None and "save_steps=True keeps every step",
        "event": request.events is not None and "an event is looked for",
        "calls": (request.progress or request.callbacks) and "progress and callbacks look at every step",
        "gradient": recording and type(how) is not Discrete and f"gradient={how.name!r} is not 'discrete'",
        "memory": recording
        and isinstance(how, Discrete)
        and (how.checkpoints or how.memory)
        and "the number of checkpoints is bounded",
        "times": recording and p.times_move and "ts asks for a gradient",
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


def captured(p: Problem) -> tuple[FieldGraph, list[Tensor]]:
    """f of this problem as a graph, and the tensors it uses beside t and y."""
    t = cast(p.ts.detach()[..., 0], p.f.time_dtype)
    y = tuple(cast(x.detach(), d) for x, d in zip(p.y0, p.f.dtypes, strict=True))  # objects that nobody else holds
    graph, others = capture(*p.f.parts, t, y)
    if any(x.device != t.device for x in others):
        raise NotCompilableError("f uses tensors of another device than the state's")
    return graph, others


def looped(device: torch.device) -> bool:
    """Whether a loop there is one library, with its condition in it; else it is run in blocks from the host."""
    return device.type == "cpu"


def slots_for(y: Leaves, powers: int) -> int:
    row = sum(x.numel() * x.element_size() for x in y) * (2 + powers)
    return min(MOST_SLOTS, 2 ** max(3, (TAPE_BYTES // max(row, 1)).bit_length() - 1))


class Plans:
    """Libraries by plan; each compiled once a process, and once at all where its graph holds no tensor.

    They go with the graph of f: a program that makes its fields anew would else fill the memory with them.
    """

    def __init__(self) -> None:
        self.made: WeakKeyDictionary[FieldGraph, dict[Place, Library]] = WeakKeyDictionary()
        self.failed: WeakKeyDictionary[FieldGraph, dict[Place, str]] = WeakKeyDictionary()
        self.pending: WeakKeyDictionary[FieldGraph, dict[Place, Beside]] = WeakKeyDictionary()

    def forward(self, plan: Plan, graph: FieldGraph, and_back: bool) -> Library:
        """and_back: the backward library will be wanted too; it is made now, beside this one."""
        threads = torch.get_num_threads()
        place, back = ("forward", plan, threads), ("backward", plan, threads)
        made, failed = self.made.setdefault(graph, {}), self.failed.setdefault(graph, {})
        if not failed and (known := made.get(place)) is not None:
            return known
        for wanted in (place, back) if and_back else (place,):
            if wanted in failed:
                raise NotCompilableError(failed[wanted])
        if place not in made:
            pending = self.pending.setdefault(graph, {})
            if and_back and back not in made and back not in pending and looped(plan.device):
                key = _key(graph, *back)
                pending[back] = Beside(key, lambda: backward(plan, graph), _threads(plan, threads), plan.batched)
            try:
                made[place] = self._make(graph, place, forward)
            except Exception:
                self._await(graph, back)
                raise
            except BaseException:  # Ctrl-C does not wait
                if back in pending:
                    pending[back].interrupted = True
                raise
            self._await(graph, back)
        return made[place]

    def backward(self, plan: Plan, graph: FieldGraph) -> Library:
        place, made = ("backward", plan, torch.get_num_threads()), self.made.setdefault(graph, {})
        self._await(graph, place)
        if place not in made:
            made[place] = self._make(graph, place, backward)
        return made[place]

    def _await(self, graph: FieldGraph, place: Place) -> None:
        """Wait for a library that a thread is making, or was making when Ctrl-C came."""
        pending = self.pending.get(graph, {})
        beside = pending.get(place)
        if beside is None:
            return
        try:
            self.made[graph][place] = beside.wait()
        except Exception as error:
            if beside.interrupted:  # Ctrl-C ended the C++ compiler, too
                return
            self.failed[graph][place] = told(error)
            raise
        finally:
            if not beside.working():
                pending.pop(place, None)

    def _make(self, graph: FieldGraph, place: Place, record: Any) -> Library:
        failed = self.failed.setdefault(graph, {})
        if place in failed:
            raise NotCompilableError(failed[place])
        try:
            return self._made(graph, place, record)
        except Exception as error:
            failed[place] = told(error)
            raise

    def _made(self, graph: FieldGraph, place: Place, record: Any) -> Library:
        _, plan, threads = place
        if not looped(plan.device):
            return queued(lambda: record(plan, graph))
        return library(_key(graph, *place), lambda: record(plan, graph), _threads(plan, threads), plan.batched)


PLANS = Plans()


def _threads(plan: Plan, threads: int) -> int:
    """For loops over a small state one thread is faster than several that have to be woken up."""
    largest = max(math.prod(look.shape) for look in (*plan.y, *plan.others))
    return 1 if largest <= FEW else threads


def _key(graph: FieldGraph, which: str, plan: Plan, threads: int) -> str | None:
    """A digest of everything that a library depends on; None where it cannot be told."""
    if graph.text is None or plan.controller.norm is not None:
        return None
    rest = [(x.name, repr(getattr(plan, x.name))) for x in fields(plan) if x.compare]
    capability = torch.backends.cpu.get_cpu_capability()
    surroundings = (threads, torch.get_default_dtype(), torch.__version__, capability)
    return hashlib.sha256(repr((which, graph.text, rest, surroundings, _own_source())).encode()).hexdigest()


def settings(p: Problem) -> tuple[Any, ...]:
    """What method and controller are, as values that can be compared; times that end a step are no part of a graph."""
    assert isinstance(p.method, ExplicitRK)
    # in the order in which the class sets them
    control = tuple([x for x in vars(p.controller).items() if x[0] not in ("step_ts", "jump_ts")])
    return (_Coefficients(p.method.tableau), p.method.interpolation, type(p.controller).__name__, control)


class _Coefficients:
    """A tableau that is quick to hash."""

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
    """A digest of the library's own source that a graph is recorded from."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    for name in ("compiled", "control", "core", "engine", "methods"):
        for file in sorted((root / name).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()

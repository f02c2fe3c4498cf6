"""VectorField: counts the evaluations of the user's f, and finds the tensors that it uses."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .batch_slicing import SlicedArgs, infer_sliced_args, take_rows
from .capture import CapturedTensors, OperandRecorder, graph_marker
from .distributed_guard import refusing_wrapped_modules
from .field_output import check_field_output, check_jacobian
from .leaf_function import IN_PLACE_MESSAGE, LeafFunction, bypasses_autograd
from .leaves import Leaves, as_graph_inputs, cast, constants, forward_mode
from .pytrees import flatten, flatten_with_names
from .random_state import DrawsRandomNumbers, Generators, same_states
from .reachable import find_reachable, generators
from .sample_mixing import refuse_mixed_values, refuse_mixing, time_may_broadcast_wrongly
from .save_function import SaveFunction
from .segment_ends import SegmentEnds
from .torch_func import transforming


class VectorField(LeafFunction, DrawsRandomNumbers):
    """A `LeafFunction` of a solve. `calls` counts evaluations."""

    user_jacobian: Callable[..., Any] | None = None  # (t, y, *args) -> df/dy
    save: SaveFunction | None = None  # what is kept of the solution, in place of the state
    calls = 0
    captured: CapturedTensors | None = None
    on_first_call: Callable[[Tensor, Leaves, Leaves], object] | None = None  # gets t, y and the slope, attached
    needs_time_derivative = False  # a derivative by its time will be asked for
    _grad_inside = False
    _usual = False  # nothing is left to find out: f is called on one tensor, and its result looked at
    _first_seen: tuple[Tensor, Leaves, Leaves] | None = None  # t, y and the slope, until narrowed
    _cut: SlicedArgs | None = None
    _look: tuple[Tensor, Leaves] | None = None  # t and y of the first evaluation, until it is looked again
    segment_ends: SegmentEnds | None = None  # of a solve that begins or ends at an event

    def part(self, name: str) -> Callable[..., Leaves]:
        """A part of an f that is `Terms`, as a field (t, y) -> dy/dt; its evaluations count as those of f do."""
        inner = getattr(self._f, name)

        def field(t: Tensor, y: Leaves, side: Tensor | None = None) -> Leaves:
            whole, self._f = self._f, inner
            try:
                return self(t, y, side)
            finally:
                self._f = whole

        return field

    @property
    def jacobian(self) -> Callable[[Tensor, Leaves], Tensor] | None:
        """df/dy by the caller's function, (n, n) or (B, n, n) with the n entries of a state; None: there is none."""
        given = self.user_jacobian
        return None if given is None else lambda t, y: self._checked_jacobian(given, t, y)

    def _checked_jacobian(self, given: Callable[..., Any], t: Tensor, y: Leaves) -> Tensor:
        found = given(cast(t, self.time_dtype), self.pack(y), *self._given)
        n = sum(x.numel() for x in y) // (len(t) if t.ndim else 1)
        check_jacobian(found, (*t.shape, n, n))
        return found

    @property
    def differentiable_args(self) -> Leaves:
        return tuple(x for x in self._args if isinstance(x, Tensor) and x.requires_grad)

    def nonfinite_args(self) -> list[str]:
        """Names of those of args that hold NaN or infinity, such as "args[0]['rate']"."""
        numbers = [(k, x) for k, x in flatten_with_names(self._given) if isinstance(x, (Tensor, float, complex))]
        return [f"args{k}" for k, x in numbers if not bool(torch.isfinite(torch.as_tensor(x)).all())]

    def with_args(self, tensors: Leaves) -> VectorField:
        """The same field, with its own count, and the differentiable args replaced by `tensors` (in their order)."""
        other = copy.copy(self)
        other.calls = 0
        fresh = iter(tensors)
        other._give([next(fresh) if isinstance(x, Tensor) and x.requires_grad else x for x in self._args])
        return other

    def map_args(self, change: Callable[[Tensor], Tensor]) -> VectorField:
        """The same field, its count going on, with every floating-point tensor in args changed."""
        other = copy.copy(self)

        def changed(x: Any) -> Any:
            return change(x) if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) else x

        other._give([changed(x) for x in self._args])
        return other

    def on_segment(self, edges: SegmentEnds) -> VectorField:
        """The same field, its count going on, seen from within a solve between events."""
        other = copy.copy(self)
        other.segment_ends = edges
        return other

    def supports_subset(self) -> bool:
        """Whether f works on a part of the batch: found out, once it has been evaluated, when first asked."""
        if self.random or self.save is not None:
            return False  # fewer rows would draw other numbers; which args `save` wants cut is not known
        if self._cut is None and self._first_seen is not None:
            self._cut, self._first_seen = self._ask(*self._first_seen), None
        return self._cut is not None

    def subset(self, rows: Tensor) -> VectorField | None:
        """The field of some samples of a batch, with its count going on; None where f does not work on a part of it."""
        if not self.supports_subset() or self._cut is None:
            return None
        other = copy.copy(self)
        other._give([take_rows(x, rows) if cut else x for x, cut in zip(self._args, self._cut, strict=True)])
        other.segment_ends, other._look = None if self.segment_ends is None else self.segment_ends.subset(rows), None
        return other

    @property
    def sliced_args(self) -> tuple[bool, ...]:
        """For each of the differentiable args, whether a narrowed field has only some rows of it."""
        cut = self._cut or (False,) * len(self._args)
        return tuple(c for x, c in zip(self._args, cut, strict=True) if isinstance(x, Tensor) and x.requires_grad)

    def _ask(self, t: Tensor, y: Leaves, slope: Leaves) -> SlicedArgs | None:
        def evaluate(rows: Tensor, cut: SlicedArgs) -> Leaves:
            trial = copy.copy(self)
            trial._give([x.index_select(0, rows) if c else x for x, c in zip(self._args, cut, strict=True)])
            trial.segment_ends = trial._look = None  # the time is what f was given already, and of other rows
            return trial(t[rows], tuple(x.index_select(0, rows) for x in y))

        with torch.no_grad():
            return infer_sliced_args(self._args, len(t), evaluate, slope)

    def detached(self) -> VectorField:
        """The same field with leaf copies of its differentiable args, ready to look for captured tensors."""
        other = self.with_args(as_graph_inputs(self.differentiable_args))
        other.captured = CapturedTensors(self._f if self.save is None else (self._f, self.save.fn))
        return other

    def capture(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The tensors that f used in the forward solve, and leaves that it may have; no other may turn up now."""
        if self.captured is None:
            return (), ()
        self.captured.close()
        return tuple(self.captured.used), tuple(self.captured.unused)

    def vjp(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], bars: Sequence[Tensor], create_graph: bool = False
    ) -> Sequence[Tensor | None]:
        """Cotangents of `inputs`, each an input in its own right, from those of what evaluations made; or None."""
        if self.captured is None:
            return torch.autograd.grad(outputs, inputs, bars, allow_unused=True, create_graph=create_graph)
        return self.captured.vjp(outputs, inputs, bars, create_graph)

    def __call__(self, t: Tensor, y: Leaves, side: Tensor | None = None) -> Leaves:
        """dy/dt. `side` (+1, 0, -1, a lane) moves t to its next neighbour in f's own time dtype: see jump_ts."""
        if self.segment_ends is not None:
            t, y = self.segment_ends.move_inside(t, y, self.time_dtype)
        elif t.dtype is not self.time_dtype:
            t = t.to(self.time_dtype)
        if side is not None:
            infinite = torch.where(side == 0, t, side.to(t.dtype) * torch.inf)
            t = t + (torch.nextafter(t, infinite) - t).detach()
        self.calls += 1
        if not self._usual or t.is_inference() or (x := y[0]).is_inference():
            return self._unusual(t, y)
        # what `_evaluate` does, for one tensor: on a small state that is half of the time
        kind, dtype, flags = x.dtype, self.dtypes[0], (t.requires_grad, x.requires_grad)
        before, more = (t._version, x._version), [a.requires_grad for a in self._tensors] if self._tensors else None
        try:
            out = self._f(t, x if kind is dtype else x.to(dtype), *self._given)
        except RuntimeError as error:
            return self._if_grad_was_missing(error, t, y)
        if before != (t._version, x._version):
            raise ValueError(IN_PLACE_MESSAGE)
        if flags != (t.requires_grad, x.requires_grad) or (more and more != [a.requires_grad for a in self._tensors]):
            self._unmark((t, x, *self._tensors), (*flags, *(more or ())), 0)
        fits = isinstance(out, Tensor) and out.dtype is dtype and out.shape == x.shape and out.device == x.device
        if not fits or out.layout is not torch.strided:
            check_field_output(*flatten(out), self._spec, self._names, (x,), self.dtypes)
        ((ref, version),) = self._last
        if (last := ref()) is not None and last._version != version:
            self._refuse_buffer()
        self._last = [(weakref.ref(out), out._version)]
        return (out if out.dtype is kind else out.to(kind),)

    def _unusual(self, t: Tensor, y: Leaves) -> Leaves:
        """An evaluation where something is left to find out, or to look after."""
        if not self.checked:
            return self._first(t, y)
        if self._look is None or not bool((t != self._look[0]).all()):
            out = self._later(t, y)
            self._usual = self._is_usual(y[0])
            return out
        drawn = self.generators or Generators(y[0].device, [])
        states, out = drawn.get_states(), self._later(t, y)
        with drawn.with_states(states):
            self._look_again(self._look, t, y, out)
        self._look = None  # a mixing f is refused again where this evaluation was only tried
        return out

    def _later(self, t: Tensor, y: Leaves) -> Leaves:
        captured = self.captured
        if captured is not None and (captured.watching or (captured.makes_leaves and torch.is_grad_enabled())):
            return self._watched(captured, t, y)
        if self._grad_inside and not torch.is_grad_enabled():
            return self._under_grad(t, y)
        try:
            return self._evaluate(t, y)
        except RuntimeError as error:
            return self._if_grad_was_missing(error, t, y)

    def _if_grad_was_missing(self, error: RuntimeError, t: Tensor, y: Leaves) -> Leaves:
        """The evaluation again in grad mode, where f differentiates inside itself (a divergence); else the error."""
        if torch.is_grad_enabled() or "does not require grad" not in str(error):
            raise error
        self._grad_inside, self._usual = True, False
        return self._under_grad(t, y)

    def _is_usual(self, y: Tensor) -> bool:
        """Whether every evaluation from now on is a plain call of f on one tensor."""
        if self.captured is not None and (self.captured.watching or self.captured.makes_leaves):
            return False
        known = self._look is None and len(self._last) == 1
        return self._bare and known and not (self._marks or self._grad_inside or y.is_inference())

    def _first(self, t: Tensor, y: Leaves) -> Leaves:
        with refusing_wrapped_modules():
            try:
                out = self._plain_first(t, y) if self.captured is None else self._captured_first(self.captured, t, y)
            except RuntimeError as error:
                if not bypasses_autograd(error) or any(x.requires_grad for x in (t, *y)):
                    raise
                out = self._evaluate(t, y)  # f leaves PyTorch, so what it is given must not ask for a gradient
        self.checked = True
        if t.ndim and len(t) > 1 and not (transforming() or forward_mode() or torch.is_inference_mode_enabled()):
            self._look = t.detach(), constants(y)
        if t.ndim:
            self._first_seen = t.detach(), constants(y), constants(out)
        return out

    @torch.no_grad()
    def _look_again(self, first: tuple[Tensor, Leaves], t: Tensor, y: Leaves, out: Leaves) -> None:
        """Refuse mixing by values too, of t above all: at first all samples have the same time, as a rule."""
        states = self.random_states()

        def again(t: Tensor, y: Leaves) -> Leaves:
            self.set_random_states(states)
            with refusing_wrapped_modules():
                return self._later(t, y)

        at, like = t.detach(), constants(y)
        eps = max(torch.finfo(x).eps for x in self.dtypes)
        refuse_mixed_values(self._f, again, first, at, like, constants(out), eps)

    def _plain_first(self, t: Tensor, y: Leaves) -> Leaves:
        if not t.ndim or not torch.is_grad_enabled() or transforming() or forward_mode():
            return self._evaluate(t, y)  # without grad mode mixing is looked for by values alone, which takes less time
        asking = any(x.requires_grad for x in (t, *y))
        marker = graph_marker()
        t = t if t.requires_grad else t.detach().requires_grad_(time_may_broadcast_wrongly(t, y))
        state = tuple(x if x.requires_grad else x.detach().requires_grad_() for x in y)
        out = self._evaluate(t, state)
        try:
            refuse_mixing(self._f, t, state, out)
        except ValueError:  # or f closes over what was made of y0, and so meets other rows behind its back
            at, own = t.detach().requires_grad_(t.requires_grad), as_graph_inputs(y)
            refuse_mixing(self._f, at, own, self._evaluate(at, own))
        asking = asking or CapturedTensors(self._f).uses_any(out, (t, *state), marker)
        return out if asking else constants(out)

    def _captured_first(self, captured: CapturedTensors, t: Tensor, y: Leaves) -> Leaves:
        """Find what f uses, and whether it draws random numbers. What is given attached stays so."""
        recorded = torch.is_grad_enabled() and all(x.requires_grad for x in y)
        # those of f's own have to be known before it draws from them: their states are to be set again
        before = find_reachable(self._f)
        self.generators = Generators(y[0].device, generators(before, self._args))
        self.first_states = self.generators.get_states()
        with torch.enable_grad():
            marker = graph_marker()
            if not recorded or not t.requires_grad:
                t = t.detach().requires_grad_(time_may_broadcast_wrongly(t, y) or self.needs_time_derivative)
                captured.exclude(t)
            y = y if recorded else as_graph_inputs(y)
            inputs = (t, *y, *self.differentiable_args)
            out = self._evaluate(t, y)
            self.random = not same_states(self.first_states, self.generators.get_states())
            if not captured.record_first((*out, *self._kept(t, y)), inputs, marker, before):
                self.calls += 1
                with self.with_random_states(self.first_states), OperandRecorder(graph_marker()) as operands:
                    out = self._evaluate(t, y)
                    kept = self._kept(t, y)
                captured.record_operands((*out, *kept), inputs, operands)
            if t.ndim:
                refuse_mixing(self._f, t, y, out)
        if recorded:
            return out
        keep, self.on_first_call = self.on_first_call, None  # it may hold what holds this field
        if keep is not None:
            keep(t, y, out)
        return constants(out)

    def _kept(self, t: Tensor, y: Leaves) -> Leaves:
        return () if self.save is None else self.save(t, self.pack(y), self._given)

    def save_output(self, t: Tensor, y: Leaves) -> Leaves:
        """What is kept of the state y at t, one state of all samples."""
        assert self.save is not None
        return self.save(cast(t, self.time_dtype), self.pack(y), self._given)

    def save_outputs(self, ts: Tensor, ys: Leaves) -> Leaves:
        """What is kept of the states ys at ts, with an axis for the times."""
        assert self.save is not None
        return self.save.over_times(cast(ts, self.time_dtype), ys, self.pack, self._given)

    def _watched(self, captured: CapturedTensors, t: Tensor, y: Leaves) -> Leaves:
        """An evaluation of an f that may use what it has not used before, or that makes leaves of its own."""
        attached = torch.is_grad_enabled()
        marker = graph_marker()
        with torch.enable_grad(), OperandRecorder(marker) if captured.makes_leaves else nullcontext() as seen:
            if not attached:
                t, y = t.detach(), as_graph_inputs(y)
            out = self._evaluate(t, y)
        if seen is not None:
            captured.exclude_made(seen, out, (t, *y, *self.differentiable_args))
        if captured.watching:
            self.collect_captured(out, t, y, marker)
        return out if attached else constants(out)

    def collect_captured(self, out: Leaves, t: Tensor, y: Leaves, marker: int) -> None:
        """Check that what f used for `out` is known."""
        if self.captured is not None:
            self.captured.collect(out, (t, *y, *self.differentiable_args), marker)

    def _under_grad(self, t: Tensor, y: Leaves) -> Leaves:
        with torch.enable_grad():
            out = self._evaluate(t.detach(), as_graph_inputs(y))
        return constants(out)

    def _give(self, args: list[Any]) -> None:
        super()._give(args)
        self._usual = False

    def _marked(self, x: Tensor) -> None:
        self._usual = False
        if self.captured is not None:
            self.captured.exclude(x)

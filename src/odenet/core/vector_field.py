"""VectorField: evaluates the caller's f in a solve, counts the evaluations, and finds the tensors that f captures."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .batch_slicing import SlicedArgs, infer_sliced_args, take_rows
from .capture import CapturedTensors, OperandRecorder, graph_marker
from .distributed_guard import refusing_wrapped_modules
from .field_output import check_field_output, check_jacobian
from .inner_derivatives import refuse_past, watched_evaluation
from .leaf_function import IN_PLACE_MESSAGE, LeafFunction, bypasses_autograd
from .leaves import Leaves, as_graph_inputs, cast, constants, forward_mode
from .pytrees import flatten
from .random_state import DrawsRandomNumbers, Generators, same_states
from .reachable import find_reachable, generators
from .sample_mixing import refuse_mixed_values, refuse_mixing, time_may_broadcast_wrongly
from .segment_ends import SegmentEnds
from .torch_func import transforming

_log = logging.getLogger("odenet")


class VectorField(LeafFunction, DrawsRandomNumbers):
    """The `LeafFunction` of a solve. calls: the number of evaluations."""

    user_jacobian: Callable[..., Any] | None = None  # (t, y, *args) -> df/dy
    calls = 0
    captured: CapturedTensors | None = None
    on_first_call: Callable[[Tensor, Leaves, Leaves], object] | None = None  # called with t, y and the attached slope
    needs_time_derivative = False
    segment_ends: SegmentEnds | None = None
    _grad_inside = False  # f differentiates inside itself, and needs grad mode
    _fast = False  # every further evaluation is a plain call on one tensor with fast checks
    _in_derivative: Tensor | None = None  # captured; f differentiates with respect to it
    _first_evaluation: tuple[Tensor, Leaves, Leaves] | None = None  # t, y and slope, until `supports_subset` uses them
    _sliced_args: SlicedArgs | None = None
    _first_state: tuple[Tensor, Leaves] | None = None  # t and y, until mixing is checked by values

    def part(self, name: str) -> Callable[..., Leaves]:
        """A part of f, which is `Terms`, as a field (t, y) -> dy/dt; its evaluations count as evaluations of f."""
        part_function = getattr(self._f, name)

        def field(t: Tensor, y: Leaves, side: Tensor | None = None) -> Leaves:
            f, self._f = self._f, part_function
            try:
                return self(t, y, side)
            finally:
                self._f = f

        return field

    @property
    def jacobian(self) -> Callable[[Tensor, Leaves], Tensor] | None:
        """df/dy by the caller's function, (n, n) or (B, n, n) for n entries of the state; None without one."""
        function = self.user_jacobian
        return None if function is None else lambda t, y: self._checked_jacobian(function, t, y)

    def _checked_jacobian(self, function: Callable[..., Any], t: Tensor, y: Leaves) -> Tensor:
        jacobian = function(cast(t, self.time_dtype), self.pack(y), *self._args_tree)
        n = sum(x.numel() for x in y) // (len(t) if t.ndim else 1)
        check_jacobian(jacobian, (*t.shape, n, n))
        return jacobian

    def with_args(self, tensors: Leaves) -> VectorField:
        """A copy with `tensors` as the differentiable args, in their order, and with its own count."""
        other = copy.copy(self)
        other.calls = 0
        replacements = iter(tensors)
        other._set_args([next(replacements) if isinstance(x, Tensor) and x.requires_grad else x for x in self._args])
        return other

    def map_args(self, change: Callable[[Tensor], Tensor]) -> VectorField:
        """A copy with `change` applied to each real or complex tensor in args; its count continues."""
        other = copy.copy(self)
        numbers = [isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) for x in self._args]
        other._set_args([change(x) if is_number else x for x, is_number in zip(self._args, numbers, strict=True)])
        return other

    def on_segment(self, ends: SegmentEnds) -> VectorField:
        """A copy that takes one-sided limits at the ends of a segment; its count continues."""
        other = copy.copy(self)
        other.segment_ends = ends
        return other

    def supports_subset(self) -> bool:
        """True when f works on a subset of the samples: tried once, after the first evaluation."""
        if self.random or self.save is not None:
            return False  # fewer rows would draw other random numbers; the args that `save` needs sliced are unknown
        if self._sliced_args is None and self._first_evaluation is not None:
            self._sliced_args, self._first_evaluation = self._infer_sliced_args(*self._first_evaluation), None
            if self._sliced_args is None:
                _log.info("f does not work on a subset of the samples: finished samples stay in the batch")
        return self._sliced_args is not None

    def subset(self, rows: Tensor) -> VectorField | None:
        """A copy for some samples of the batch, whose count continues; None if f needs the full batch."""
        if not self.supports_subset() or self._sliced_args is None:
            return None
        other = copy.copy(self)
        pairs = zip(self._args, self._sliced_args, strict=True)
        other._set_args([take_rows(x, rows) if sliced else x for x, sliced in pairs])
        other.segment_ends = None if self.segment_ends is None else self.segment_ends.subset(rows)
        other._first_state = None
        return other

    @property
    def sliced_args(self) -> tuple[bool, ...]:
        """For each differentiable arg: True if `subset` takes rows of it."""
        mask = self._sliced_args or (False,) * len(self._args)
        return tuple(s for x, s in zip(self._args, mask, strict=True) if isinstance(x, Tensor) and x.requires_grad)

    def _infer_sliced_args(self, t: Tensor, y: Leaves, slope: Leaves) -> SlicedArgs | None:
        def evaluate(rows: Tensor, mask: SlicedArgs) -> Leaves:
            trial = copy.copy(self)
            trial._set_args([x.index_select(0, rows) if s else x for x, s in zip(self._args, mask, strict=True)])
            trial.segment_ends = trial._first_state = None  # t is f's own time already, and has other rows
            return trial(t[rows], tuple(x.index_select(0, rows) for x in y))

        with torch.no_grad():
            return infer_sliced_args(self._args, len(t), evaluate, slope)

    def detached(self) -> VectorField:
        """A copy with detached differentiable args that require a gradient, and that records captured tensors."""
        other = self.with_args(as_graph_inputs(self.differentiable_args))
        other.captured = CapturedTensors(self._f if self.save is None else (self._f, self.save.fn))
        return other

    def capture(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The captured tensors that f used, and those that it did not use; a new one is an error from here on."""
        if self.captured is None:
            return (), ()
        self.captured.close()
        return tuple(self.captured.used), tuple(self.captured.unused)

    def vjp(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        create_graph: bool = False,
    ) -> Sequence[Tensor | None]:
        """The VJP of evaluations: cotangents of `inputs`, each an independent variable; None for unused inputs."""
        if self.captured is None:
            return torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True, create_graph=create_graph)
        return self.captured.vjp(outputs, inputs, cotangents, create_graph)

    def __call__(self, t: Tensor, y: Leaves, side: Tensor | None = None) -> Leaves:
        """dy/dt. side, -1, 0 or +1, () or (B,), moves t to the next number in f's time dtype: a one-sided limit."""
        if self.segment_ends is not None:
            t, y = self.segment_ends.move_inside(t, y, self.time_dtype)
        elif t.dtype is not self.time_dtype:
            t = t.to(self.time_dtype)
        if side is not None:
            infinite = torch.where(side == 0, t, side.to(t.dtype) * torch.inf)
            t = t + (torch.nextafter(t, infinite) - t).detach()
        self.calls += 1
        if not self._fast or t.is_inference() or (x := y[0]).is_inference():
            return self._slow_call(t, y)
        # `_evaluate`, written out for one tensor: this halves the overhead on a small state
        dtype, user_dtype, flags = x.dtype, self.dtypes[0], (t.requires_grad, x.requires_grad)
        arg_flags = [a.requires_grad for a in self._arg_tensors] if self._arg_tensors else None
        before = t._version, x._version
        try:
            out = self._f(t, x if dtype is user_dtype else x.to(user_dtype), *self._args_tree)
        except RuntimeError as error:
            return self._retry_with_grad(error, t, y)
        if before != (t._version, x._version):
            raise ValueError(IN_PLACE_MESSAGE)
        if flags != (t.requires_grad, x.requires_grad) or (
            arg_flags and arg_flags != [a.requires_grad for a in self._arg_tensors]
        ):
            self._restore_flags((t, x, *self._arg_tensors), (*flags, *(arg_flags or ())), 0)
        valid = isinstance(out, Tensor) and out.dtype is user_dtype and out.shape == x.shape and out.device == x.device
        if not valid or out.layout is not torch.strided:
            check_field_output(*flatten(out), self._spec, self._names, (x,), self.dtypes)
        ((ref, version),) = self._last_output
        if (last := ref()) is not None and last._version != version:
            self._refuse_output_buffer()
        self._last_output = [(weakref.ref(out), out._version)]
        return (out if out.dtype is dtype else out.to(dtype),)

    def _slow_call(self, t: Tensor, y: Leaves) -> Leaves:
        """An evaluation with further checks: the first ones, or of an f that always needs them."""
        if not self.checked:
            return self._first_call(t, y)
        if self._first_state is None or not bool((t != self._first_state[0]).all()):
            out = self._checked_call(t, y)
            self._fast = self._is_fast(y[0])
            return out
        source = self.generators or Generators(y[0].device, [])
        states, out = source.get_states(), self._checked_call(t, y)
        with source.with_states(states):
            self._refuse_mixed_values(self._first_state, t, y, out)
        self._first_state = None  # not after an error, which a trial evaluation may catch: the next call checks again
        return out

    def _checked_call(self, t: Tensor, y: Leaves) -> Leaves:
        refuse_past(y, self._in_derivative)
        captured = self.captured
        if captured is not None and (captured.watching or (captured.makes_leaves and torch.is_grad_enabled())):
            return self._collecting_call(captured, t, y)
        if self._grad_inside and not torch.is_grad_enabled():
            return self._call_with_grad(t, y)
        try:
            return self._evaluate(t, y)
        except RuntimeError as error:
            return self._retry_with_grad(error, t, y)

    def _retry_with_grad(self, error: RuntimeError, t: Tensor, y: Leaves) -> Leaves:
        """Evaluate again in grad mode if f differentiates inside itself, as for a divergence; else raise the error."""
        if torch.is_grad_enabled() or "does not require grad" not in str(error):
            raise error
        self._grad_inside, self._fast = True, False
        return self._call_with_grad(t, y)

    def _is_fast(self, y: Tensor) -> bool:
        """True when every further evaluation is a plain call of f on one tensor."""
        captured = self.captured
        watched = self._in_derivative is not None or (captured and (captured.watching or captured.makes_leaves))
        checked = not watched and self._first_state is None and len(self._last_output) == 1
        return self._single_tensor and checked and not (self._marks_inputs or self._grad_inside or y.is_inference())

    def _first_call(self, t: Tensor, y: Leaves) -> Leaves:
        with refusing_wrapped_modules():
            try:
                out = self._first_plain(t, y) if self.captured is None else self._first_captured(self.captured, t, y)
            except RuntimeError as error:
                if not bypasses_autograd(error) or any(x.requires_grad for x in (t, *y)):
                    raise
                out = self._evaluate(t, y)  # f leaves PyTorch, so its arguments must not require a gradient
        self.checked = True
        if t.ndim and len(t) > 1 and not (transforming() or forward_mode() or torch.is_inference_mode_enabled()):
            self._first_state = t.detach(), constants(y)
        if t.ndim:
            self._first_evaluation = t.detach(), constants(y), constants(out)
        return out

    @torch.no_grad()
    def _refuse_mixed_values(self, first: tuple[Tensor, Leaves], t: Tensor, y: Leaves, out: Leaves) -> None:
        """Refuse mixing by values, too: above all of times, as at the first evaluation samples often share one."""
        states = self.random_states()

        def evaluate(t: Tensor, y: Leaves) -> Leaves:
            self.set_random_states(states)
            with refusing_wrapped_modules():
                return self._checked_call(t, y)

        eps = max(torch.finfo(x).eps for x in self.dtypes)
        refuse_mixed_values(self._f, evaluate, first, t.detach(), constants(y), constants(out), eps)

    def _first_plain(self, t: Tensor, y: Leaves) -> Leaves:
        """The first evaluation without a record of captured tensors."""
        if not torch.is_grad_enabled() or transforming() or forward_mode():
            return self._evaluate(t, y)  # without grad mode mixing is checked by values alone, which takes less time
        if not t.ndim:
            return self._watched(t, y)
        attached = any(x.requires_grad for x in (t, *y))
        marker = graph_marker()
        t = t if t.requires_grad else t.detach().requires_grad_(time_may_broadcast_wrongly(t, y))
        state = tuple(x if x.requires_grad else x.detach().requires_grad_() for x in y)
        out = self._watched(t, state)
        try:
            refuse_mixing(self._f, t, state, out)
        except ValueError:  # or f captures a tensor computed from y0, and reaches other rows through that
            time, inputs = t.detach().requires_grad_(t.requires_grad), as_graph_inputs(y)
            refuse_mixing(self._f, time, inputs, self._evaluate(time, inputs))
        attached = attached or CapturedTensors(self._f).uses_any(out, (t, *state), marker)
        return out if attached else constants(out)

    def _watched(self, t: Tensor, y: Leaves) -> Leaves:
        """An evaluation in grad mode that finds out with respect to what f differentiates."""
        source = self.generators or Generators(y[0].device, [])
        evaluate = partial(self._evaluate, t)
        out, self._in_derivative, count = watched_evaluation(self._f, evaluate, y, self.differentiable_args, source)
        self.calls += count - 1
        return out

    def _first_captured(self, captured: CapturedTensors, t: Tensor, y: Leaves) -> Leaves:
        """The first evaluation: record captured tensors, and whether f draws random numbers. Attached if y is."""
        attached = torch.is_grad_enabled() and all(x.requires_grad for x in y)
        # f's own generators must be known before f draws from them, as their states are restored
        before = find_reachable(self._f)
        self.generators = Generators(y[0].device, generators(before, self._args))
        self.first_states = self.generators.get_states()
        with torch.enable_grad():
            marker = graph_marker()
            if not attached or not t.requires_grad:
                t = t.detach().requires_grad_(time_may_broadcast_wrongly(t, y) or self.needs_time_derivative)
                captured.exclude(t)
            y = y if attached else as_graph_inputs(y)
            inputs = (t, *y, *self.differentiable_args)
            out = self._watched(t, y)
            self.random = not same_states(self.first_states, self.generators.get_states())
            first = captured.record_first((*out, *self._saved(t, y)), inputs, marker, before)
            if first is not None:
                self.calls += 1
                with self.with_random_states(self.first_states), OperandRecorder(graph_marker()) as operands:
                    out = self._evaluate(t, y)
                    saved = self._saved(t, y)
                captured.record_operands((*out, *saved), inputs, operands, first)
            if t.ndim:
                refuse_mixing(self._f, t, y, out)
        if attached:
            return out
        on_first_call, self.on_first_call = self.on_first_call, None  # the callback may refer to this field
        if on_first_call is not None:
            on_first_call(t, y, out)
        return constants(out)

    def _collecting_call(self, captured: CapturedTensors, t: Tensor, y: Leaves) -> Leaves:
        """An evaluation of an f that may use new captured tensors, or that makes leaves."""
        attached = torch.is_grad_enabled()
        marker = graph_marker()
        with torch.enable_grad(), OperandRecorder(marker) if captured.makes_leaves else nullcontext() as operands:
            if not attached:
                t, y = t.detach(), as_graph_inputs(y)
            out = self._evaluate(t, y)
        if operands is not None:
            captured.exclude_made(operands, out, (t, *y, *self.differentiable_args))
        if captured.watching:
            self.collect_captured(out, t, y, marker)
        return out if attached else constants(out)

    def collect_captured(self, out: Leaves, t: Tensor, y: Leaves, marker: int) -> None:
        """Check that the evaluation `out` used known captured tensors alone."""
        if self.captured is not None:
            self.captured.collect(out, (t, *y, *self.differentiable_args), marker)

    def _call_with_grad(self, t: Tensor, y: Leaves) -> Leaves:
        with torch.enable_grad():
            return constants(self._evaluate(t.detach(), as_graph_inputs(y)))

    def _set_args(self, args: list[Any]) -> None:
        super()._set_args(args)
        self._fast = False

    def _on_marked(self, x: Tensor) -> None:
        self._fast = False
        if self.captured is not None:
            self.captured.exclude(x)

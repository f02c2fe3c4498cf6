"""LeafFunction: calls the caller's f on leaves, and checks its result."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .field_output import call_note, check_field_output, matches
from .field_protocols import UserField
from .leaves import Leaves, cast, versions
from .pytrees import Spec, flatten, flatten_like, flatten_with_names, pack_leaves, unflatten
from .save_function import SaveFunction

_SHAPE_ERRORS = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError)
_NO_ARGS = flatten(())[1]
IN_PLACE_MESSAGE = "f changes its t or y in place, which the solver still uses: let f work on y.clone()"


def bypasses_autograd(error: RuntimeError) -> bool:
    """True when f left autograd: it converted a tensor to NumPy, or wrote into an existing tensor (out=)."""
    return "Can't call numpy()" in str(error) or "don't support automatic differentiation" in str(error)


def _separate(x: Tensor) -> Tensor:
    """x if it requires a gradient; else a view, on which f may call requires_grad_() and differentiate."""
    return x if x.requires_grad else x.view_as(x)  # unlike detach, a view keeps a forward-mode tangent


class LeafFunction:
    """f(t, y, *args) on leaves: called in the caller's structure and dtypes.

    dtypes: the caller's. A half-precision state is kept in float32 and rounded only for f, so that small steps are not
    lost. time_dtype: of f's t. save: the caller's function of the state, if any. checked: f has been evaluated, and its
    result matched y; later only the fast checks run.
    """

    save: SaveFunction | None = None

    def __init__(
        self,
        f: UserField,
        spec: Spec,
        names: list[str],
        dtypes: tuple[torch.dtype, ...],
        time_dtype: torch.dtype,
        args: tuple[Any, ...] = (),
    ) -> None:
        self._f, self._spec, self._names, self.dtypes, self.time_dtype = f, spec, names, dtypes, time_dtype
        leaves, self._args_spec = flatten(args) if args else ([], _NO_ARGS)
        self._set_args(leaves)
        self._args_tree = args  # the caller's own containers
        self._single_tensor = spec.is_leaf()  # y needs no flattening at each evaluation
        self.checked = False
        self._marks_inputs = False  # f calls requires_grad_() on its arguments
        self._last_output: list[tuple[weakref.ref[Tensor], int]] = []  # tensors and their versions

    def _set_args(self, args: list[Any]) -> None:
        """Set the leaves of the further arguments of f."""
        empty = self._args_spec is _NO_ARGS
        self._args, self._args_tree = args, () if empty else unflatten(args, self._args_spec)
        self._arg_tensors = [x for x in args if isinstance(x, Tensor)]

    def pack(self, leaves: Leaves) -> Any:
        """The state in the caller's structure and dtypes."""
        return pack_leaves(leaves, self.dtypes, self._spec)

    @property
    def user_call(self) -> tuple[UserField, Spec, tuple[Any, ...]]:
        """The caller's f, the structure of y, and the further arguments of f."""
        return self._f, self._spec, self._args_tree

    def _saved(self, t: Tensor, y: Leaves) -> Leaves:
        return () if self.save is None else self.save(t, self.pack(y), self._args_tree)

    def save_output(self, t: Tensor, y: Leaves) -> Leaves:
        """The result of `save` for the state y at t, () or (B,)."""
        assert self.save is not None
        return self.save(cast(t, self.time_dtype), self.pack(y), self._args_tree)

    def save_outputs(self, ts: Tensor, ys: Leaves) -> Leaves:
        """The results of `save` for the states ys at ts, (T,) or (B, T), with an axis for the times."""
        assert self.save is not None
        return self.save.over_times(cast(ts, self.time_dtype), ys, self.pack, self._args_tree)

    @property
    def differentiable_args(self) -> Leaves:
        """The tensors in args that require a gradient."""
        return tuple(x for x in self._args if isinstance(x, Tensor) and x.requires_grad)

    def nonfinite_args(self) -> list[str]:
        """Names of the args that contain NaN or infinity, such as "args[0]['rate']"."""
        numbers = [(k, x) for k, x in flatten_with_names(self._args_tree) if isinstance(x, (Tensor, float, complex))]
        return [f"args{k}" for k, x in numbers if not bool(torch.isfinite(torch.as_tensor(x)).all())]

    def _evaluate(self, t: Tensor, y: Leaves) -> Leaves:
        separate = self._marks_inputs or not self.checked
        if t.is_inference() or y[0].is_inference():  # these count no versions: an in-place change would go unnoticed
            t, y = t.clone(), tuple([x.clone() for x in y])
        if separate:
            t, y = _separate(t), tuple(map(_separate, y))
        before, inputs = versions((t, *y)), (t, *y, *self._arg_tensors)
        flags = [x.requires_grad for x in inputs]
        out = self._call(t, y)
        if before != versions((t, *y)):
            raise ValueError(IN_PLACE_MESSAGE)
        if flags != [x.requires_grad for x in inputs]:
            self._restore_flags(inputs, flags, 1 + len(y) if separate else 0)
        single = self._single_tensor and isinstance(out, Tensor)
        leaves, spec = ([out], self._spec) if single else flatten_like(out, self._spec)
        if not self.checked or spec != self._spec or not matches(leaves, y, self.dtypes):
            check_field_output(leaves, spec, self._spec, self._names, y, self.dtypes)
        self._refuse_output_buffer()
        self._last_output = [(weakref.ref(x), x._version) for x in leaves if not x.is_inference()]
        return tuple([k if k.dtype is x.dtype else k.to(x.dtype) for k, x in zip(leaves, y, strict=True)])

    def _refuse_output_buffer(self) -> None:
        """Raise ValueError if f changed its last result in place while that is still in use."""
        for ref, before in self._last_output:
            x = ref()
            if x is not None and x._version != before:
                raise ValueError(
                    "f changed what it had returned before: it writes each result into the same tensor. "
                    "Return a new tensor, such as out.clone()"
                )

    def _restore_flags(self, inputs: Sequence[Tensor], flags: Sequence[bool], num_separate: int) -> None:
        """Undo requires_grad_() of f on its inputs, except on the first `num_separate`, which are views for f alone."""
        for i, (x, flag) in enumerate(zip(inputs, flags, strict=True)):
            if x.requires_grad and not flag:
                self._on_marked(x)
                if i >= num_separate:
                    x.requires_grad_(False)
        self._marks_inputs = True

    def _on_marked(self, x: Tensor) -> None:
        """Called when f has marked its argument x: the graph of this evaluation may end at x."""

    def _call(self, t: Tensor, y: Leaves) -> Any:
        """f's result as f returns it; an error of the first evaluation gets a note about f's arguments."""
        if self.checked:
            return self._f(t, self.pack(y), *self._args_tree)
        try:
            return self._f(t, self.pack(y), *self._args_tree)
        except _SHAPE_ERRORS as error:
            if "requires grad is being used in an in-place operation" in str(error):
                raise ValueError(IN_PLACE_MESSAGE) from error
            if type(error) in _SHAPE_ERRORS:  # a subclass is f's own error, and needs no note
                error.add_note(call_note(self._names, t, y, self.dtypes, len(self._args_tree), error))
            raise

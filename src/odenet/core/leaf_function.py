"""LeafFunction: calls the user's f on flat leaves, and checks what comes back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .field_output import call_note, check_field_output, matches
from .leaves import Leaves, versions
from .pytrees import Spec, flatten, flatten_like, pack_leaves, unflatten

_ILL_FITTING = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError)


_NO_ARGS = flatten(())[1]
IN_PLACE_MESSAGE = "f changes its t or y in place, which are the solver's own: let it work on y.clone()"


def bypasses_autograd(error: RuntimeError) -> bool:
    """Whether f does what autograd cannot follow: by NumPy, or into a tensor that is there (out=)."""
    return "Can't call numpy()" in str(error) or "don't support automatic differentiation" in str(error)


def _own(x: Tensor) -> Tensor:
    """x for f alone, which may mark it, and go back to it in a backward pass; attached where x is."""
    return x if x.requires_grad else x.view_as(x)  # a tangent goes with it


class LeafFunction:
    """f(t, y, *args) on flat leaves, in the caller's structure and dtypes.

    `dtypes` are the caller's dtypes: a half-precision state is carried in float32 and rounded only where f sees it, so
    that small steps are not lost. `time_dtype` is what f's t has.
    checked: f has been evaluated, and its result fits; what is quick to see is looked at every time.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        spec: Spec,
        names: list[str],
        dtypes: tuple[torch.dtype, ...],
        time_dtype: torch.dtype,
        args: tuple[Any, ...] = (),
    ) -> None:
        self._f, self._spec, self._names, self.dtypes, self.time_dtype = f, spec, names, dtypes, time_dtype
        leaves, self._args_spec = flatten(args) if args else ([], _NO_ARGS)
        self._give(leaves)
        self._given = args  # the caller's own containers
        self._bare = spec.is_leaf()  # y is one tensor: nothing to take apart at every evaluation
        self.checked = False
        self._marks = False  # f marks what it is given by requires_grad_()
        self._last: list[tuple[weakref.ref[Tensor], int]] = []  # what f gave last, and its versions

    def _give(self, args: list[Any]) -> None:
        """Set the leaves of the further arguments of f."""
        self._args, self._given = args, unflatten(args, self._args_spec) if args else ()
        self._tensors = [x for x in args if isinstance(x, Tensor)]

    def pack(self, leaves: Leaves) -> Any:
        """The state in the caller's structure and dtypes."""
        return pack_leaves(leaves, self.dtypes, self._spec)

    @property
    def user_call(self) -> tuple[Callable[..., Any], Spec, tuple[Any, ...]]:
        """The caller's f, the structure of y, and the further arguments of f."""
        return self._f, self._spec, self._given

    def _evaluate(self, t: Tensor, y: Leaves) -> Leaves:
        owns = self._marks or not self.checked
        if t.is_inference() or y[0].is_inference():  # nothing would tell that f has changed them
            t, y = t.clone(), tuple([x.clone() for x in y])
        if owns:
            t, y = _own(t), tuple(map(_own, y))
        before, given = versions((t, *y)), (t, *y, *self._tensors)
        flags = [x.requires_grad for x in given]
        out = self._call(t, y)
        if before != versions((t, *y)):
            raise ValueError(IN_PLACE_MESSAGE)
        if flags != [x.requires_grad for x in given]:
            self._unmark(given, flags, 1 + len(y) if owns else 0)
        leaves, spec = ([out], self._spec) if self._bare and isinstance(out, Tensor) else flatten_like(out, self._spec)
        if not self.checked or spec != self._spec or not matches(leaves, y, self.dtypes):
            check_field_output(leaves, spec, self._spec, self._names, y, self.dtypes)
        self._refuse_buffer()
        self._last = [(weakref.ref(x), x._version) for x in leaves if not x.is_inference()]
        return tuple([k if k.dtype is x.dtype else k.to(x.dtype) for k, x in zip(leaves, y, strict=True)])

    def _refuse_buffer(self) -> None:
        """Raise where f has changed what it gave the last time, and that is still in use."""
        for ref, before in self._last:
            x = ref()
            if x is not None and x._version != before:
                raise ValueError(
                    "f changed what it had returned before: it writes each result into the same tensor. "
                    "Return a new one, out.clone()"
                )

    def _unmark(self, given: Sequence[Tensor], flags: Sequence[bool], own: int) -> None:
        """f has marked what it was given by requires_grad_(): all but the first `own` ask for no gradient."""
        for i, (x, flag) in enumerate(zip(given, flags, strict=True)):
            if x.requires_grad and not flag:
                self._marked(x)
                if i >= own:
                    x.requires_grad_(False)
        self._marks = True

    def _marked(self, x: Tensor) -> None:
        """x, one of its arguments, was marked by f: it may be an end of the graph of this evaluation."""

    def _call(self, t: Tensor, y: Leaves) -> Any:
        """f's own result; what it raises at its first evaluation gets a note that says what it was given."""
        if self.checked:
            return self._f(t, self.pack(y), *self._given)
        try:
            return self._f(t, self.pack(y), *self._given)
        except _ILL_FITTING as error:
            if "requires grad is being used in an in-place operation" in str(error):
                raise ValueError(IN_PLACE_MESSAGE) from error
            if type(error) in _ILL_FITTING:  # a kind of its own is f's word to its caller
                error.add_note(call_note(self._names, t, y, self.dtypes, len(self._given), error))
            raise

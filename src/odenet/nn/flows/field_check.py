"""What a flow asks of its field: checked where it is given, and at its first evaluations."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from ...core.sample_mixing import batch_norm_in_training, find_mixing, time_may_broadcast_wrongly
from ...core.torch_func import inside_transform
from ...core.validate import describe, describe_shape, function
from ..call_order import takes, time_is_second
from .traces import Field


@final
class FieldCheck:
    """The checks of one field, field(t, x) or field(t, x, context).

    Raises TypeError for a field that cannot be called so, or whose parameters are by their names state and time.
    """

    def __init__(self, field: Any) -> None:
        self.field: Field = function("field", field, "field(t, x) or field(t, x, context)")
        if isinstance(field, type):
            raise TypeError(f"field must be an instance; got the class: write {field.__name__}(...)")
        second = time_is_second(field)
        if second or not (takes(field, 2) or takes(field, 3)):
            name = getattr(field, "__name__", type(field).__name__)
            how = "takes the state before the time, by its names" if second else "cannot be called so"
            raise TypeError(
                f"field must be a field(t, x) or field(t, x, context), and {name} {how}: give "
                f"odenet.nn.adapt({name.lower()}), which makes a field of a network of another signature"
            )
        self._counts: set[int] = set()  # of contexts that it can be called with
        self._evaluated: set[tuple[bool, bool]] = set()  # in training or not, with several rows or not
        self._trained: set[bool] = set()  # with several rows or not

    def arguments(self, args: tuple[Any, ...]) -> None:
        """Raise TypeError unless the field can be called with these arguments, the context or none."""
        if torch.compiler.is_compiling() or len(args) in self._counts:
            return
        if not takes(self.field, 2 + len(args)):
            raise TypeError(
                "context was given, and field takes none: leave it out, or take a field(t, x, context)"
                if args
                else "context is missing: field is called as field(t, x, context); give context="
            )
        self._counts.add(len(args))

    def evaluation(self, t: Tensor, y: Tensor, args: tuple[Any, ...]) -> None:
        """Evaluate the field with plain values, before it is differentiated for the first time.

        An adapted network finds its form there. Raises ValueError for a result that is none, and for one whose trace
        would be wrong: for autograd it does not depend on y although it changes with y, or its rows mix.
        """
        state = bool(getattr(self.field, "training", False)), len(y) > 1
        if state in self._evaluated or torch.compiler.is_compiling() or inside_transform():
            return
        with torch.enable_grad():
            at = y.detach().requires_grad_()
            dy = self.field(t, at, *args)
        _check_shape("field must return the shape of x", dy, y.shape)
        if not torch.is_inference_mode_enabled():
            if not _depends_on(dy, at):
                self._refuse_hidden_dependence(t, y, dy, args)
            with torch.enable_grad():
                self._refuse_mixing(t.detach(), at, dy)
        if hasattr(self.field, "with_trace"):
            self._check_closed_form(t, y, args)
        self._evaluated.add(state)

    def training_point(self, t: Tensor, y: Tensor, args: tuple[Any, ...]) -> None:
        """Raise ValueError, at the first point, for a field whose rows mix: samples would follow another one.

        A batch norm in training mixes them, and does not once it is in evaluation. t: (B,).
        """
        several = len(y) > 1
        if several in self._trained or torch.compiler.is_compiling() or inside_transform():
            return
        if batch_norm_in_training(self.field) is None and not torch.is_inference_mode_enabled():
            with torch.enable_grad():
                t = t.detach().requires_grad_(time_may_broadcast_wrongly(t, (y,)))
                at = y.detach().requires_grad_()
                self._refuse_mixing(t, at, self.field(t, at, *args))
        self._trained.add(several)

    @torch.no_grad()
    def _refuse_hidden_dependence(self, t: Tensor, y: Tensor, dy: Tensor, args: tuple[Any, ...]) -> None:
        moved = self.field(t, y + 0.01 * (1.0 + y.abs()), *args)
        if not torch.equal(moved, dy):
            raise ValueError(
                "field changes with x, and autograd sees no derivative of it (torch.no_grad, detach or NumPy inside?): "
                "the density would be wrong"
            )

    def _refuse_mixing(self, t: Tensor, y: Tensor, dy: Tensor) -> None:
        found = find_mixing(t, (y,), (dy,))
        if found is None:
            return
        name, row, source = found
        if name == "t":
            raise ValueError(
                f"field mixes the samples: row {row} of field(t, x) depends on t[{source}]. t is of shape ({len(t)},), "
                f"a time for each sample: make it broadcast along the first axis of x, as in "
                f"t.view({', '.join(['-1', *['1'] * (y.ndim - 1)])}), or give odenet.nn.adapt(field)"
            )
        norm = batch_norm_in_training(self.field)
        cure = (
            f"BatchNorm in training ({norm}) takes its mean over the batch: use another norm, or field.eval()"
            if norm
            else "is there a mean, a norm or attention over the batch? Data of more axes than one need event_shape="
        )
        raise ValueError(
            f"field mixes the samples: row {row} of field(t, x) depends on x[{source}], and a sample has no density of "
            f"its own. {cure}"
        )

    @torch.no_grad()
    def _check_closed_form(self, t: Tensor, y: Tensor, args: tuple[Any, ...]) -> None:
        both: Any = self.field.with_trace(t, y, *args)  # pyright: ignore[reportFunctionMemberAccess]
        if not isinstance(both, tuple) or len(both) != 2:
            raise ValueError(f"with_trace of the field must return dx/dt and the trace; it returned {describe(both)}")
        _check_shape("with_trace of the field must return dx/dt of the shape of x", both[0], y.shape)
        if not isinstance(both[1], Tensor) or both[1].shape[:1] != y.shape[:1]:
            raise ValueError(
                f"with_trace of the field must return a trace for each sample, ({len(y)},); got "
                f"{describe_shape(both[1])}"
            )


def _check_shape(must: str, value: Any, shape: torch.Size) -> None:
    if not isinstance(value, Tensor) or value.shape != shape:
        raise ValueError(f"{must}, {tuple(shape)}; it returned {describe_shape(value)}")


def _depends_on(out: Tensor, x: Tensor) -> bool:
    if not out.requires_grad:
        return False
    with torch.enable_grad():
        gradients: Any = torch.autograd.grad(out.sum(), x, allow_unused=True, retain_graph=True)
    return gradients[0] is not None

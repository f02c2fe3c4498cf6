"""Finds the tensors that f uses without being given them: parameters, and whatever else it closes over.

What was used is told by the autograd graph of an evaluation: a tensor that its operations took, that asks for a
gradient, and that the evaluation did not make. Where the graph alone does not give the tensor, or does not tell whether
f made it, f is evaluated once more while every operation shows its operands. What f can merely reach (a loss that was
kept, a feature of the last step) is no input of the solve, but for leaves: another branch of f may use them later.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from ..errors import CaptureError
from .leaves import Leaves
from .pytrees import flatten
from .reachable import Edge, Reachable, find_reachable
from .vjp import accumulated_vjp, gradient_edge, local_vjp, without_hooks

NodeSet = set[Any]
"""Nodes of autograd's graphs."""


def _leaf_node() -> type[Any]:
    """What ends a graph at a leaf; a look at the type is quicker than one for the attribute that only it has."""
    with torch.inference_mode(False), torch.enable_grad():
        node = torch.zeros((), requires_grad=True).view(()).grad_fn
    assert node is not None
    return type(node.next_functions[0][0])


_LEAF = _leaf_node()
_REENTRANT = cast(Any, CheckpointFunction)._backward_cls


def graph_marker() -> int:
    """A point in the order in which autograd nodes are made: nodes of later operations have larger numbers.

    Each thread counts its own, and a backward pass on a GPU runs in another thread than the forward pass.
    """
    with torch.enable_grad():
        node = torch.zeros((), requires_grad=True).view(()).grad_fn
    assert node is not None
    return node._sequence_nr()


@final
class OperandRecorder(TorchFunctionMode):
    """Notes the operands of every operation inside.

    computed: edge -> operand, of operands with a history older than `marker`. made: where leaves lie that they gave.
    """

    def __init__(self, marker: int) -> None:
        super().__init__()
        self.marker = marker
        self.computed: dict[Edge, Tensor] = {}
        self.made: set[int] = set()
        self.kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        for x in given:
            node = x.grad_fn if x.requires_grad else None
            if node is not None and node._sequence_nr() <= self.marker:
                self.computed.setdefault((node, x.output_nr), x)
        out = func(*args, **kwargs)
        for x in flatten(out)[0]:
            if isinstance(x, Tensor) and x.is_leaf and not any(x is y for y in given):
                self.made.add(_memory(x))
                self.kept.append(x)  # so that nothing else comes to lie where it is
        return out

    def makes(self, x: Tensor) -> bool:
        """Whether the leaf x was made inside, be it as a parameter around what was."""
        return _memory(x) in self.made


def _memory(x: Tensor) -> int:
    return id(x) if x.layout is not torch.strided else x.untyped_storage()._cdata


class CapturedTensors:
    """The tensors that f was found to use beside its arguments, and a check that no other turns up.

    used: those that an evaluation used, leaves and computed ones, each cut from its own history. spare: leaves that f
    can reach and did not use: another branch of f may.
    """

    def __init__(self, f: Any) -> None:
        self._f = f
        self.used: list[Tensor] = []
        self.unused: list[Tensor] = []
        self.reachable = Reachable()
        self._leaves: set[int] = set()
        self._computed: dict[Edge, Tensor] = {}
        self._own: dict[int, weakref.ref[Tensor]] = {}
        self._open = True
        self._suspects = False
        self._chained = False
        self._reentrant = False  # f uses torch.utils.checkpoint with use_reentrant=True
        self._marker = graph_marker()
        self.makes_leaves = False

    @property
    def tensors(self) -> Leaves:
        """All of them: inputs of the solve."""
        return (*self.used, *self.unused)

    @property
    def watching(self) -> bool:
        """Whether every evaluation of the forward solve is to be shown: f can reach computed tensors not yet used."""
        return self._open and self._suspects

    @property
    def closed(self) -> bool:
        return not self._open

    def update_reachable(self, again: bool = True) -> None:
        """Find what may be used later; `again` where f may reach something else than when it was last looked at."""
        if again:
            self.reachable = find_reachable(self._f)
        for key, (_, x) in self.reachable.leaves.items():
            if key not in self._leaves and not self._is_own(x):
                self._leaves.add(key)
                # what is used inside a reentrant checkpoint, no graph shows
                (self.used if self._reentrant else self.unused).append(x)
        self._suspects = any(edge not in self._computed for edge in self.reachable.computed)

    def close(self) -> None:
        """From now on a tensor not seen before is an error: its gradient could no longer be given."""
        if not self._open:
            return
        self._open = False
        ends = {gradient_edge(x) for x in self.tensors}
        self._chained = any(self._leads_on(x, ends) for x in self.used if x.grad_fn is not None)

    def exclude(self, x: Tensor) -> None:
        """x is a leaf that f made, or one of its arguments that f marked: no input of the solve."""
        self._own[id(x)] = weakref.ref(x)

    def _is_own(self, x: Tensor) -> bool:
        known = self._own.get(id(x))
        return known is not None and known() is x

    def _leads_on(self, x: Tensor, ends: set[Edge]) -> bool:
        """Whether x was computed from another one of them; raises where it was computed from a state of this solve."""
        node = cast(Any, x.grad_fn)
        during = node._sequence_nr() > self._marker
        stack, seen, found = [node], {node}, False
        while stack and (during or not found):
            for edge in stack.pop().next_functions:
                after = edge[0]
                if after is None or after in seen:
                    continue
                if edge in ends:
                    found = True
                    continue
                seen.add(after)
                if type(after) is not _LEAF:
                    stack.append(after)
                elif during:
                    raise CaptureError(
                        f"f uses a tensor of shape {tuple(x.shape)} that an earlier evaluation of it made of its t, y "
                        "or args: an evaluation has to depend on these alone. Keep x.detach() in f, or use "
                        "gradient='backprop'."
                    )
        return found

    def vjp(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], bars: Sequence[Tensor], create_graph: bool = False
    ) -> Sequence[Tensor | None]:
        """Cotangents of `inputs`, captured tensors among them, from those of outputs; None where there is none."""
        if self._reentrant:
            if self._chained or create_graph:
                raise CaptureError(
                    "f calls torch.utils.checkpoint with use_reentrant=True (PyTorch's default), which gives neither "
                    "second derivatives nor those to tensors that were computed outside f: use_reentrant=False does"
                )
            return accumulated_vjp(outputs, inputs, bars, self.tensors)
        if self._chained:
            return local_vjp(outputs, inputs, bars, create_graph)
        hooked = [x for x in inputs if x._backward_hooks]
        if hooked:
            with without_hooks(hooked):
                return self.vjp(outputs, inputs, bars, create_graph)
        return torch.autograd.grad(outputs, inputs, bars, allow_unused=True, create_graph=create_graph)

    def collect(
        self, outputs: Iterable[Tensor], inputs: Iterable[Tensor], marker: int, seen: NodeSet | None = None
    ) -> None:
        """Check that evaluations used nothing that is not known; until `close`, what f can reach becomes known.

        inputs: f's own arguments. marker: taken before the evaluations. seen: nodes that were walked before, which may
        be of another thread; those of this walk are added.
        """
        leaves, computed = self._borders(outputs, inputs, marker, seen)
        if computed and self._open:
            self.update_reachable()
            computed = [edge for edge in computed if not self._reachable(edge)]
        if leaves:
            shape = tuple(leaves[0].shape)
            raise _error(f"a tensor of shape {shape} that f did not use at its first evaluation")
        if computed:
            raise _error(f"a tensor computed outside f by {computed[0][0].name()}, of shape {_shape(*computed[0])}")

    def record_first(self, outputs: Leaves, inputs: Iterable[Tensor], marker: int, before: Reachable) -> bool:
        """Take in what the first evaluation used; False where it has to be shown by its operands.

        before: what f could reach before it; a leaf that was not there may be made anew in each evaluation.
        """
        leaves, computed = self._borders(outputs, inputs, marker)
        self.reachable = found = find_reachable(self._f)
        if any(id(x) not in before.leaves for x in leaves) or any(edge not in found.computed for edge in computed):
            return False
        for x in leaves:
            self._use(x)
        for edge in computed:
            self._use(found.computed[edge][1])
        self.update_reachable(again=False)
        return True

    def record_operands(self, outputs: Leaves, inputs: Iterable[Tensor], operands: OperandRecorder) -> None:
        """Take in what an evaluation used that was shown by its operands."""
        leaves, computed = self._borders(outputs, inputs, operands.marker)
        for x in leaves:
            if operands.makes(x):
                self.exclude(x)
                self.makes_leaves = True
            else:
                self._use(x)
        self.reachable = find_reachable(self._f)
        for edge in computed:
            x = operands.computed.get(edge)
            if x is None and edge in self.reachable.computed:
                x = self.reachable.computed[edge][1]
            if x is None:
                raise _error(f"a tensor computed outside f by {edge[0].name()}, of shape {_shape(*edge)}")
            self._use(x)
        self.update_reachable(again=False)

    def uses_any(self, outputs: Leaves, inputs: Iterable[Tensor], marker: int) -> bool:
        """Whether an evaluation used any tensor that asks for a gradient, beside its inputs."""
        return any(self._borders(outputs, inputs, marker))

    def exclude_made(self, operands: OperandRecorder, outputs: Leaves, inputs: Iterable[Tensor]) -> None:
        """Leaves that f made in an evaluation."""
        for x in self._borders(outputs, inputs, operands.marker)[0]:
            if operands.makes(x):
                self.exclude(x)

    def _reachable(self, edge: Edge) -> bool:
        if edge not in self.reachable.computed:
            return False
        self._use(self.reachable.computed[edge][1])
        return True

    def _use(self, x: Tensor) -> None:
        if x.grad_fn is None:
            self._leaves.add(id(x))
        else:
            self._computed[x.grad_fn, x.output_nr] = x
        self.used.append(x)

    def _borders(
        self, outputs: Iterable[Tensor], inputs: Iterable[Tensor], marker: int, seen: NodeSet | None = None
    ) -> tuple[list[Tensor], list[Edge]]:
        """Leaves and edges at which the graph of an evaluation ends, but for inputs and what is known."""
        known, edges, given = set(self._leaves), set(self._computed), set()
        for x in inputs:
            if x.grad_fn is None:
                known.add(id(x))
            else:
                given.add((x.grad_fn, x.output_nr))
        seen = set() if seen is None else seen
        leaves: list[Tensor] = []
        computed: list[Edge] = []
        stack: list[Iterable[Edge]] = [[(x.grad_fn, x.output_nr) for x in outputs if x.grad_fn is not None]]
        ends = [x for x in outputs if x.grad_fn is None and x.requires_grad]
        leaves += [x for x in ends if id(x) not in known and not self._is_own(x)]
        while stack:
            for edge in stack.pop():
                node = edge[0]
                if node is None or node in seen or (edges and edge in edges):
                    continue
                if type(node) is _LEAF:
                    seen.add(node)
                    variable: Tensor = cast(Any, node).variable
                    if id(variable) not in known and not self._is_own(variable):
                        leaves.append(variable)
                elif node._sequence_nr() <= marker:
                    if edge not in given:
                        computed.append(edge)
                    edges.add(edge)
                else:
                    seen.add(node)
                    stack.append(node.next_functions)
                    if type(node) is _REENTRANT:
                        self._reentrant = True
        return leaves, computed


def _error(what: str) -> CaptureError:
    return CaptureError(
        f"f closes over {what}: its gradient cannot be given with this choice of `gradient`. "
        "Hand it to f through `args` (solve(f, y0, ts, args=(...,)) and f(t, y, ...)), or use gradient='backprop'."
    )


def _shape(node: Any, number: int) -> tuple[int, ...] | str:
    metadata = getattr(node, "_input_metadata", None)
    return tuple(metadata[number].shape) if metadata and number < len(metadata) else "unknown"

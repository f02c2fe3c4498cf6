"""Finds captured tensors: parameters and other tensors that f uses without receiving them as arguments.

The autograd graph of an evaluation shows which tensors it used: those that require a gradient, that are operands of its
operations, and that it did not make. If the graph alone does not give such a tensor, or does not show whether f made
it, f is evaluated once more while every operation records its operands. A tensor that f can reach but did not use (a
stored loss, a feature of the last step) is no input of the solve, unless it is a leaf: another branch of f may use it
later.
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
from .torch_func import unwrapped
from .vjp import Node, accumulated_vjp, gradient_edge, local_vjp, without_hooks

NodeSet = set[Node]
"""Nodes of autograd graphs."""


def _accumulate_grad_type() -> type[Any]:
    """The type of the node that ends a graph at a leaf; a type check is faster than one for its `variable`."""
    with torch.inference_mode(False), torch.enable_grad():
        node = torch.zeros((), requires_grad=True).view(()).grad_fn
    assert node is not None
    return type(node.next_functions[0][0])


_ACCUMULATE_GRAD = _accumulate_grad_type()
_REENTRANT_CHECKPOINT = cast(Any, CheckpointFunction)._backward_cls


def graph_marker() -> int:
    """The present position in the order in which autograd nodes are made: later nodes have larger sequence numbers.

    Each thread counts its own nodes, and a backward pass on a GPU runs in another thread than the forward pass.
    """
    with torch.enable_grad():
        node: Node = torch.zeros((), requires_grad=True).view(()).grad_fn
    return node._sequence_nr()


@final
class OperandRecorder(TorchFunctionMode):
    """Records the operands of every operation in its context.

    computed: edge -> operand, for operands with a history that is older than `marker`. made: the leaves that the
    operations returned, by id. made_memory: addresses of those that share no memory with something older.
    """

    def __init__(self, marker: int) -> None:
        super().__init__()
        self.marker = marker
        self.computed: dict[Edge, Tensor] = {}
        self.made: dict[int, Tensor] = {}  # alive, otherwise another tensor could get the same id or address
        self.made_memory: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # f may use torch.func: what counts are the tensors inside its wrappers
        operands = [unwrapped(x) for x in flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        for x in operands:
            node: Node = x.grad_fn if x.requires_grad else None
            if node is not None and node._sequence_nr() <= self.marker:
                self.computed.setdefault((node, x.output_nr), x)
        out = func(*args, **kwargs)
        for x in [unwrapped(x) for x in flatten(out)[0] if isinstance(x, Tensor)]:
            if x.is_leaf and not any(x is y for y in operands):
                self.made[id(x)] = x
                # w.detach() is a new leaf in the memory of w, which is not made
                if not any(_address(x) == _address(y) for y in operands):
                    self.made_memory.add(_address(x))
        return out

    def makes(self, x: Tensor, known: Iterable[Tensor]) -> bool:
        """True when the context made the leaf x, which is not among `known`.

        An operation returned it, or it is a parameter, which no operation returns, in memory that is new, or that of a
        tensor in `known`.
        """
        address = _address(x)
        return id(x) in self.made or address in self.made_memory or any(address == _address(y) for y in known)


def _address(x: Any) -> int:
    return id(x) if x.layout is not torch.strided else x.untyped_storage()._cdata


class CapturedTensors:
    """The captured tensors of one f, and a check that no other appears later.

    used: tensors that an evaluation used, leaves and computed ones; the solve differentiates with respect to each,
    without following a computed one's history. unused: leaves that f can reach and has not used: another branch of f
    may. makes_leaves: f makes leaves that require a gradient in each evaluation.
    """

    def __init__(self, f: Any) -> None:
        self._f = f
        self.used: list[Tensor] = []
        self.unused: list[Tensor] = []
        self.reachable = Reachable()
        self.makes_leaves = False
        self._leaf_ids: set[int] = set()
        self._computed: dict[Edge, Tensor] = {}
        self._excluded: dict[int, weakref.ref[Tensor]] = {}
        self._closed = False
        self._new_computed = False  # f can reach computed tensors that it has not used
        self._chained = False  # a used tensor was computed from another one
        self._reentrant = False  # f uses torch.utils.checkpoint with use_reentrant=True
        self._marker = graph_marker()

    @property
    def tensors(self) -> Leaves:
        """All captured tensors: inputs of the solve."""
        return (*self.used, *self.unused)

    @property
    def watching(self) -> bool:
        """True when each evaluation must be collected: f can reach computed tensors that it has not used yet."""
        return not self._closed and self._new_computed

    @property
    def closed(self) -> bool:
        return self._closed

    def update_reachable(self, search: bool = True) -> None:
        """Add leaves that f may use later; search: False if `reachable` is up to date."""
        if search:
            self.reachable = find_reachable(self._f)
        for key, (_, x) in self.reachable.leaves.items():
            if key not in self._leaf_ids and not self._is_excluded(x):
                self._leaf_ids.add(key)
                # no graph shows the tensors that are used inside a reentrant checkpoint
                (self.used if self._reentrant else self.unused).append(x)
        self._new_computed = any(edge not in self._computed for edge in self.reachable.computed)

    def close(self) -> None:
        """From here on a new captured tensor is an error: its gradient can no longer be given."""
        if self._closed:
            return
        self._closed = True
        ends = {gradient_edge(x) for x in self.tensors}
        self._chained = any(self._depends_on(x, ends) for x in self.used if x.grad_fn is not None)

    def exclude(self, x: Tensor) -> None:
        """x is a leaf that f made, or an argument that f marked by requires_grad_(): no input of the solve."""
        self._excluded[id(x)] = weakref.ref(x)

    def _is_excluded(self, x: Tensor) -> bool:
        ref = self._excluded.get(id(x))
        return ref is not None and ref() is x

    def _depends_on(self, x: Tensor, ends: set[Edge]) -> bool:
        """True when x was computed from another captured tensor, an edge in `ends`.

        Raises CaptureError when x was computed from a state of this solve.
        """
        node: Node = x.grad_fn
        during_solve = node._sequence_nr() > self._marker
        stack, seen, depends = [node], {node}, False
        while stack and (during_solve or not depends):
            for edge in stack.pop().next_functions:
                source = edge[0]
                if source is None or source in seen:
                    continue
                if edge in ends:
                    depends = True
                    continue
                seen.add(source)
                if type(source) is not _ACCUMULATE_GRAD:
                    stack.append(source)
                elif during_solve:
                    raise CaptureError(
                        f"f uses a tensor of shape {tuple(x.shape)} that an earlier evaluation of f computed from its "
                        "t, y or args: an evaluation may depend on its own arguments alone. Store x.detach() in f, or "
                        "use gradient='backprop'."
                    )
        return depends

    def vjp(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        create_graph: bool = False,
    ) -> Sequence[Tensor | None]:
        """The VJP: cotangents of `inputs`, also captured tensors, from those of outputs; None for unused inputs."""
        if self._reentrant:
            if self._chained or create_graph:
                raise CaptureError(
                    "f calls torch.utils.checkpoint with use_reentrant=True (PyTorch's default), which gives neither "
                    "second derivatives nor those to tensors that were computed outside f: use_reentrant=False does"
                )
            return accumulated_vjp(outputs, inputs, cotangents, self.tensors)
        if self._chained:
            return local_vjp(outputs, inputs, cotangents, create_graph)
        hooked = [x for x in inputs if x._backward_hooks]
        if hooked:
            with without_hooks(hooked):
                return self.vjp(outputs, inputs, cotangents, create_graph)
        return torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True, create_graph=create_graph)

    def collect(
        self, outputs: Iterable[Tensor], inputs: Iterable[Tensor], marker: int, seen: NodeSet | None = None
    ) -> None:
        """Check that evaluations used no unknown tensor; before `close`, tensors that f can reach become known.

        inputs: f's own arguments. marker: `graph_marker` before the evaluations. seen: nodes that need no visit, of any
        thread; the nodes of this walk are added.
        """
        leaves, computed = self._graph_ends(outputs, inputs, marker, seen)
        if computed and not self._closed:
            self.update_reachable()
            computed = [edge for edge in computed if not self._use_reachable(edge)]
        if leaves:
            shape = tuple(leaves[0].shape)
            raise _capture_error(f"a tensor of shape {shape} that f did not use at its first evaluation")
        if computed:
            edge = computed[0]
            raise _capture_error(f"a tensor computed outside f by {edge[0].name()}, of shape {_shape(edge)}")

    def record_first(
        self, outputs: Leaves, inputs: Iterable[Tensor], marker: int, before: Reachable
    ) -> list[Tensor] | None:
        """Record the tensors that the first evaluation used; or return its leaves if `record_operands` needs them.

        before: the tensors that f could reach before the evaluation; a leaf that is not among them may be one that f
        makes in each evaluation.
        """
        leaves, computed = self._graph_ends(outputs, inputs, marker)
        self.reachable = after = find_reachable(self._f)
        if any(id(x) not in before.leaves for x in leaves) or any(edge not in after.computed for edge in computed):
            return leaves
        for x in leaves:
            self._use(x)
        for edge in computed:
            self._use(after.computed[edge][1])
        self.update_reachable(search=False)
        return None

    def record_operands(
        self, outputs: Leaves, inputs: Sequence[Tensor], operands: OperandRecorder, first: Sequence[Tensor]
    ) -> None:
        """Record the tensors that an evaluation used.

        operands: the recorder of that evaluation. first: the leaves of the one before it, at the same point: a leaf
        that both used is none that f makes.
        """
        leaves, computed = self._graph_ends(outputs, inputs, operands.marker)
        older = (*inputs, *first, *(x for _, x in self.reachable.leaves.values()))
        used = {id(x) for x in older}
        for x in leaves:
            if id(x) not in used and operands.makes(x, older):
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
                raise _capture_error(f"a tensor computed outside f by {edge[0].name()}, of shape {_shape(edge)}")
            self._use(x)
        self.update_reachable(search=False)

    def uses_any(self, outputs: Leaves, inputs: Iterable[Tensor], marker: int) -> bool:
        """True when an evaluation used a captured tensor that requires a gradient."""
        return any(self._graph_ends(outputs, inputs, marker))

    def exclude_made(self, operands: OperandRecorder, outputs: Leaves, inputs: Sequence[Tensor]) -> None:
        """Exclude the leaves that f made in a recorded evaluation."""
        for x in self._graph_ends(outputs, inputs, operands.marker)[0]:
            if operands.makes(x, (*inputs, *self.tensors)):
                self.exclude(x)

    def _use_reachable(self, edge: Edge) -> bool:
        if edge not in self.reachable.computed:
            return False
        self._use(self.reachable.computed[edge][1])
        return True

    def _use(self, x: Tensor) -> None:
        if x.grad_fn is None:
            self._leaf_ids.add(id(x))
        else:
            self._computed[x.grad_fn, x.output_nr] = x
        self.used.append(x)

    def _graph_ends(
        self, outputs: Iterable[Tensor], inputs: Iterable[Tensor], marker: int, seen: NodeSet | None = None
    ) -> tuple[list[Tensor], list[Edge]]:
        """Unknown leaves, and unknown edges older than `marker`, at which the graph of an evaluation ends."""
        known_ids, known_edges, input_edges = set(self._leaf_ids), set(self._computed), set[Edge]()
        for x in inputs:
            if x.grad_fn is None:
                known_ids.add(id(x))
            else:
                input_edges.add((x.grad_fn, x.output_nr))
        seen = set() if seen is None else seen
        leaves: list[Tensor] = []
        computed: list[Edge] = []
        stack: list[Iterable[Edge]] = [[(x.grad_fn, x.output_nr) for x in outputs if x.grad_fn is not None]]
        output_leaves = [x for x in outputs if x.grad_fn is None and x.requires_grad]
        leaves += [x for x in output_leaves if id(x) not in known_ids and not self._is_excluded(x)]
        while stack:
            for edge in stack.pop():
                node = edge[0]
                if node is None or node in seen or (known_edges and edge in known_edges):
                    continue
                if type(node) is _ACCUMULATE_GRAD:
                    seen.add(node)
                    variable: Tensor = node.variable
                    if id(variable) not in known_ids and not self._is_excluded(variable):
                        leaves.append(variable)
                elif node._sequence_nr() <= marker:
                    if edge not in input_edges:
                        computed.append(edge)
                    known_edges.add(edge)
                else:
                    seen.add(node)
                    stack.append(node.next_functions)
                    if type(node) is _REENTRANT_CHECKPOINT:
                        self._reentrant = True
        return leaves, computed


def _capture_error(tensor: str) -> CaptureError:
    return CaptureError(
        f"f closes over {tensor}: its gradient cannot be given with this choice of `gradient`. "
        "Hand it to f through `args` (solve(f, y0, ts, args=(...,)) and f(t, y, ...)), or use gradient='backprop'."
    )


def _shape(edge: Edge) -> tuple[int, ...] | str:
    node, number = edge
    metadata = getattr(node, "_input_metadata", None)
    return tuple(metadata[number].shape) if metadata and number < len(metadata) else "unknown"

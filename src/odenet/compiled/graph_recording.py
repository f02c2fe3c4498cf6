"""Records functions of pytrees of tensors as graphs, and joins the graphs of a loop."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from ..core.leaves import flatten, unflatten
from .capture import IN_PLACE, NotCompilableError, quietly
from .passes.graph_editor import Editor
from .passes.matmul_passes import lifted
from .passes.softplus import softplus

aten = torch.ops.aten

_VIEWS = {
    *(aten.alias.default, aten.view.default, aten.expand.default),
    *(aten.select.int, aten.squeeze.dim, aten.unsqueeze.default),
    *(aten.permute.default, aten.slice.Tensor, aten.detach.default),
}


def fake_mode() -> Any:
    """Tensors in it have shapes and no values."""
    quietly("torch._inductor.compile_fx")
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True)


def outputs_of(module: GraphModule) -> list[Node]:
    return list(module.graph.output_node().args[0])  # pyright: ignore


def looks(module: GraphModule) -> list[Tensor]:
    """What its inputs look like."""
    return [n.meta["val"] for n in module.graph.find_nodes(op="placeholder")]


def record(function: Callable[..., Any], fakes: Sequence[Any], mode: Any, unused: bool = False) -> GraphModule:
    """`function` as a graph of functional core operations, for pytrees like `fakes`; with `unused`, all that it did.

    The graph takes the leaves of what the function is given, and gives those of what it returns.
    """
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    leaves, spec = flatten(tuple(fakes))
    with torch.no_grad(), mode:
        pure = torch.func.functionalize(lambda *x: tuple(flatten(function(*unflatten(x, spec)))[0]))
        table = _with_ours(select_decomp_table())
        recorded = make_fx(pure, decomposition_table=table, _allow_non_fake_inputs=True)
        # each a tensor of its own: one that comes twice would be taken for one input
        module = recorded(*(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in leaves))
    _refuse_effects(module)
    _part_outputs(module)
    if not unused:
        module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _with_ours(usual: dict[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """Inductor's decompositions with the library's own, which say NotImplemented where they are not meant."""

    def either(ours: Callable[..., Any], theirs: Callable[..., Any] | None) -> Callable[..., Any]:
        def apply(*args: Any, **kwargs: Any) -> Any:
            made = ours(*args, **kwargs)
            return theirs(*args, **kwargs) if made is NotImplemented and theirs is not None else made

        return apply

    own = {aten.softplus.default: softplus, aten.bmm.default: _folded}
    return usual | {operation: either(ours, usual.get(operation)) for operation, ours in own.items()}


def _folded(left: Tensor, right: Tensor) -> Any:
    """Products of many matrices with one and the same, as one product: a library would compute them one by one."""
    count, rows, inner = left.shape
    if right.stride(0) != 0 or count < 2:
        return NotImplemented
    return torch.mm(left.reshape(count * rows, inner), right[0]).view(count, rows, right.shape[2])


def _refuse_effects(module: GraphModule) -> None:
    """Raise NotCompilableError for what a step that is taken again would do differently, or once more."""
    for node in module.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise NotCompilableError("f draws random numbers (as Dropout does in training)")
        if node.target is aten.copy_.default and node.args[0].op == "placeholder":
            raise NotCompilableError(IN_PLACE)


def _part_outputs(module: GraphModule) -> None:
    """Make each output a value of its own, neither an input nor another output: a loop may hold both."""
    output = module.graph.output_node()
    seen: set[Node] = set()
    results = []
    for node in outputs_of(module):
        if node.op == "placeholder" or node in seen or node.target in _VIEWS:
            with module.graph.inserting_before(output):
                copy = module.graph.call_function(aten.clone.default, (node,))
            copy.meta["val"] = node.meta["val"]
            node = copy
        seen.add(node)
        results.append(node)
    output.args = (tuple(results),)


@dataclass
class Recorded:
    """A loop ready to be compiled, as graphs.

    begin: inputs -> what is carried. turn: (what is carried, inputs) -> what is carried; the loop goes on while the
    first of that is positive. What every turn would compute anew is moved from here to `begin`. end: (what is carried,
    inputs) -> outputs; None: they are what is carried. carried: how many. calls: evaluations of f at the start (or
    end), and in each turn. kept: how a row of what the tape keeps beside states and polynomials looks. counted: the
    caller knows how often the loop turns.
    """

    begin: GraphModule
    turn: GraphModule
    end: GraphModule | None
    mode: Any
    carried: int
    calls: tuple[int, int]
    kept: tuple[tuple[tuple[int, ...], torch.dtype], ...] = ()
    counted: bool = False

    def __post_init__(self) -> None:
        lifted(self.begin, self.turn, self.carried)

    def whole(self) -> GraphModule:
        """begin, the loop as PyTorch's operator, and end, as one graph."""
        root, graph = nn.Module(), Graph()

        def then(part: GraphModule, inputs: Sequence[Node]) -> list[Node]:
            known = dict(zip(part.graph.find_nodes(op="placeholder"), inputs, strict=False))
            for node in part.graph.find_nodes(op="get_attr"):
                known[node] = attribute(getattr(part, str(node.target)))
                known[node].meta = node.meta
            return list(graph.graph_copy(part.graph, known))  # pyright: ignore

        def attribute(value: Any) -> Node:
            name = f"part{len(list(root.children())) + len(list(root.buffers()))}"
            root.add_module(name, value) if isinstance(value, nn.Module) else root.register_buffer(name, value)
            return graph.get_attr(name)

        inputs: list[Node] = []
        for i, like in enumerate(looks(self.begin)):
            inputs.append(graph.placeholder(f"x{i}"))
            inputs[i].meta["val"] = like
        begun = then(self.begin, inputs)
        first, given = tuple(begun[: self.carried]), tuple(begun[self.carried :])
        go = record(lambda *x: x[0] > 0, [n.meta["val"] for n in begun], self.mode)
        go.graph.output_node().args = (outputs_of(go)[0],)
        go.recompile()
        loop = torch.ops.higher_order.while_loop
        looped = graph.call_function(loop, (attribute(go), attribute(self.turn), first, given))
        looped.meta["val"] = tuple(n.meta["val"] for n in first)
        edit = Editor(graph, self.mode)
        results = [edit(operator.getitem, looped, i) for i in range(self.carried)]
        graph.output(tuple(results if self.end is None else then(self.end, [*results, *inputs])))
        return GraphModule(root, graph)


def widened(module: GraphModule, more: Sequence[Tensor]) -> GraphModule:
    """The graph with further inputs, which nothing reads."""
    with module.graph.inserting_after(module.graph.find_nodes(op="placeholder")[-1]):
        for i, like in reversed(list(enumerate(more))):
            module.graph.placeholder(f"more{i}").meta["val"] = like
    module.recompile()
    return module


def written(body: GraphModule, count: int, counts: int, mode: Any) -> GraphModule:
    """The graph with its last `count` outputs written into its last `count` inputs instead.

    counts: the number of an input, the first element of which is the row.
    What a loop takes down stays where it is: values that a loop hands from turn to turn are copied at every turn.
    """
    edit, output, results = Editor(body.graph, mode), body.graph.output_node(), outputs_of(body)
    places = body.graph.find_nodes(op="placeholder")
    with body.graph.inserting_before(output):
        flat = edit(aten.view.default, places[counts], [-1])
        row = edit(aten.slice.Tensor, flat, 0, 0, 1)
        for tape, value in zip(places[-count:], results[-count:], strict=True):
            edit(aten.index_put_.default, tape, [row], edit(aten.unsqueeze.default, value, 0))
    output.args = (tuple(results[:-count]),)
    body.recompile()
    return body

"""Records functions of pytrees of tensors as graphs, and joins the graphs of a loop."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from ..core.pytrees import flatten, unflatten
from .field_graph import IN_PLACE, NotCompilableError
from .passes.graph_editor import GraphEditor
from .passes.matmul_passes import hoist_invariants
from .passes.softplus import softplus
from .tape_pool import RowSpec
from .torch_private import recording

aten = torch.ops.aten

_VIEWS = {
    *(aten.alias.default, aten.view.default, aten.expand.default),
    *(aten.select.int, aten.squeeze.dim, aten.unsqueeze.default),
    *(aten.permute.default, aten.slice.Tensor, aten.detach.default),
}

Decomposition = Callable[..., Any]


def fake_mode() -> Any:
    """A mode for tensors with shapes and no values."""
    names = recording()
    return names.FakeTensorMode(shape_env=names.ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True)


def output_nodes(module: GraphModule) -> list[Node]:
    return list(cast("tuple[Node, ...]", module.graph.output_node().args[0]))


def input_fakes(module: GraphModule) -> list[Tensor]:
    """A fake tensor for each input of the graph."""
    return [n.meta["val"] for n in module.graph.find_nodes(op="placeholder")]


def record_graph(
    function: Callable[..., Any], fakes: Sequence[Any], mode: Any, keep_unused: bool = False
) -> GraphModule:
    """`function` of pytrees like `fakes` as a graph of functional core operations, from leaves to leaves.

    keep_unused: nodes that no output depends on stay.
    """
    names = recording()
    leaves, spec = flatten(tuple(fakes))
    with torch.no_grad(), mode:
        pure = torch.func.functionalize(lambda *x: tuple(flatten(function(*unflatten(x, spec)))[0]))
        table = _with_own(names.select_decomp_table())
        recorder = names.make_fx(pure, decomposition_table=table, _allow_non_fake_inputs=True)
        # a tensor that is passed twice would become one input
        module = recorder(*(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in leaves))
    _refuse_effects(module)
    _separate_outputs(module)
    if not keep_unused:
        module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _with_own(usual: dict[Any, Decomposition]) -> dict[Any, Decomposition]:
    """Inductor's decompositions and this package's, which return NotImplemented where Inductor's is to be used."""

    def first_of(own: Decomposition, usual: Decomposition | None) -> Decomposition:
        def decompose(*args: Any, **kwargs: Any) -> Any:
            result = own(*args, **kwargs)
            return usual(*args, **kwargs) if result is NotImplemented and usual is not None else result

        return decompose

    own = {aten.softplus.default: softplus, aten.bmm.default: _bmm_of_one}
    return usual | {operation: first_of(own, usual.get(operation)) for operation, own in own.items()}


def _bmm_of_one(left: Tensor, right: Tensor) -> Any:
    """The products of many matrices with one matrix as one product; a library would compute them one by one."""
    count, rows, inner = left.shape
    if right.stride(0) != 0 or count < 2:
        return NotImplemented
    return torch.mm(left.reshape(count * rows, inner), right[0]).view(count, rows, right.shape[2])


def _refuse_effects(module: GraphModule) -> None:
    """Raise NotCompilableError for what a loop or a repeated step would do differently."""
    operator_of_graphs = recording().HigherOrderOperator
    for node in module.graph.nodes:
        if isinstance(node.target, operator_of_graphs):  # in a loop, PyTorch 2.13 gave wrong values for torch.cond
            raise NotCompilableError(f"f uses torch.ops.higher_order.{node.target}")
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise NotCompilableError("f draws random numbers (as Dropout does in training)")
        if node.target is aten.copy_.default and node.args[0].op == "placeholder":
            raise NotCompilableError(IN_PLACE)


def _separate_outputs(module: GraphModule) -> None:
    """Copy each output that is an input, a view or another output: a loop may hold both."""
    output = module.graph.output_node()
    seen: set[Node] = set()
    results: list[Node] = []
    for node in output_nodes(module):
        if node.op == "placeholder" or node in seen or node.target in _VIEWS:
            with module.graph.inserting_before(output):
                copy = module.graph.call_function(aten.clone.default, (node,))
            copy.meta["val"] = aten.clone.default(node.meta["val"])  # its own storage, or Inductor removes the copy
            node = copy
        seen.add(node)
        results.append(node)
    output.args = (tuple(results),)


@dataclass
class RecordedLoop:
    """A loop as graphs, ready to be compiled.

    begin: inputs -> carried tensors. body: (carried, inputs) -> carried; the loop goes on while the first of them is
    positive. Invariants of the loop are moved from here to `begin`. end: (carried, inputs) -> outputs; None: the
    outputs are the carried tensors. carried: their number. evaluations: of f at the start (or end), and in an
    iteration. saved_rows: rows of the tape beside states and polynomials. counted: the caller knows the number of
    iterations.
    """

    begin: GraphModule
    body: GraphModule
    end: GraphModule | None
    mode: Any
    carried: int
    evaluations: tuple[int, int]
    saved_rows: tuple[RowSpec, ...] = ()
    counted: bool = False

    def __post_init__(self) -> None:
        hoist_invariants(self.begin, self.body, self.carried)
        self._keep_layouts()

    def _keep_layouts(self) -> None:
        """Give each result of an iteration the layout in memory of the carried tensor that it replaces.

        A sum with a transposed term may have the term's layout, and the loop carries tensors of one layout.
        """
        output, results = self.body.graph.output_node(), output_nodes(self.body)
        edit = GraphEditor(self.body.graph, self.mode)
        with self.body.graph.inserting_before(output):
            for i, place in enumerate(self.body.graph.find_nodes(op="placeholder")[: self.carried]):
                wanted = place.meta["val"].stride()
                if results[i].meta["val"].stride() != wanted:
                    results[i] = edit.with_strides(results[i], list(wanted))
        output.args = (tuple(results),)
        self.body.recompile()

    def whole(self) -> GraphModule:
        """begin, PyTorch's `while_loop` over body, and end, as one graph."""
        root, graph = nn.Module(), Graph()

        def attribute(value: Any) -> Node:
            name = f"part{len(list(root.children())) + len(list(root.buffers()))}"
            root.add_module(name, value) if isinstance(value, nn.Module) else root.register_buffer(name, value)
            return graph.get_attr(name)

        def append(part: GraphModule, inputs: Sequence[Node]) -> list[Node]:
            known = dict(zip(part.graph.find_nodes(op="placeholder"), inputs, strict=False))
            for node in part.graph.find_nodes(op="get_attr"):
                known[node] = attribute(getattr(part, str(node.target)))
                known[node].meta = node.meta
            return list(cast("tuple[Node, ...]", graph.graph_copy(part.graph, cast("dict[Node, Node]", known))))

        inputs: list[Node] = []
        for i, like in enumerate(input_fakes(self.begin)):
            inputs.append(graph.placeholder(f"x{i}"))
            inputs[i].meta["val"] = like
        begun = append(self.begin, inputs)
        carried, invariants = tuple(begun[: self.carried]), tuple(begun[self.carried :])
        condition = record_graph(lambda *x: x[0] > 0, [n.meta["val"] for n in begun], self.mode)
        condition.graph.output_node().args = (output_nodes(condition)[0],)
        condition.recompile()
        operands = (attribute(condition), attribute(self.body), carried, invariants)
        looped = graph.call_function(torch.ops.higher_order.while_loop, operands)
        looped.meta["val"] = tuple(n.meta["val"] for n in carried)
        edit = GraphEditor(graph, self.mode)
        results = [edit(operator.getitem, looped, i) for i in range(self.carried)]
        graph.output(tuple(results if self.end is None else append(self.end, [*results, *inputs])))
        return GraphModule(root, graph)


def add_inputs(module: GraphModule, more: Sequence[Tensor]) -> GraphModule:
    """Append inputs that nothing reads."""
    with module.graph.inserting_after(module.graph.find_nodes(op="placeholder")[-1]):
        for i, like in reversed(list(enumerate(more))):
            module.graph.placeholder(f"more{i}").meta["val"] = like
    module.recompile()
    return module


def write_outputs_to_tape(body: GraphModule, count: int, counts: int, mode: Any) -> GraphModule:
    """Write the last `count` outputs into rows of the last `count` inputs instead of returning them.

    counts: the number of the input whose first element is the row. The tape is written in place, as the tensors that a
    loop carries are copied in every iteration.
    """
    edit, output, results = GraphEditor(body.graph, mode), body.graph.output_node(), output_nodes(body)
    places = body.graph.find_nodes(op="placeholder")
    with body.graph.inserting_before(output):
        flat = edit(aten.view.default, places[counts], [-1])
        row = edit(aten.slice.Tensor, flat, 0, 0, 1)
        for tape, value in zip(places[-count:], results[-count:], strict=True):
            edit(aten.index_put_.default, tape, [row], edit(aten.unsqueeze.default, value, 0))
    output.args = (tuple(results[:-count]),)
    body.recompile()
    return body

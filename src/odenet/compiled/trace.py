"""Records functions of tensors as graphs, and joins graphs: one after another, and as the body of a loop."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from .capture import IN_PLACE, NotCompilableError, quietly
from .products import lifted
from .softplus import softplus

Fakes = Sequence[Tensor]
_VIEWS = {
    *(torch.ops.aten.alias.default, torch.ops.aten.view.default, torch.ops.aten.expand.default),
    *(torch.ops.aten.select.int, torch.ops.aten.squeeze.dim, torch.ops.aten.unsqueeze.default),
    *(torch.ops.aten.permute.default, torch.ops.aten.slice.Tensor, torch.ops.aten.detach.default),
}


def fake_mode() -> Any:
    """Tensors in it have shapes and no values."""
    quietly("torch._inductor.compile_fx")
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True)


def record(function: Callable[..., Sequence[Tensor]], fakes: Fakes, mode: Any, unused: bool = False) -> GraphModule:
    """`function` as a graph of functional core operations, for inputs like `fakes`; with `unused`, all that it did."""
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad(), mode:
        pure = torch.func.functionalize(lambda *x: tuple(function(*x)))
        usual = select_decomp_table()
        recorded = make_fx(pure, decomposition_table=usual | _ours(usual), _allow_non_fake_inputs=True)
        # each a tensor of its own: one that comes twice would be taken for one input
        module = recorded(*(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in fakes))
    _refuse_effects(module)
    _part_outputs(module)
    if not unused:
        module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _ours(usual: dict[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    def either(operation: Any, ours: Callable[..., Any]) -> Callable[..., Any]:
        def apply(*args: Any, **kwargs: Any) -> Any:
            made = ours(*args, **kwargs)
            theirs = usual.get(operation)
            return theirs(*args, **kwargs) if made is NotImplemented and theirs is not None else made

        return apply

    own = {torch.ops.aten.softplus.default: softplus, torch.ops.aten.bmm.default: _folded}
    return {operation: either(operation, ours) for operation, ours in own.items()}


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
        if node.target is torch.ops.aten.copy_.default and node.args[0].op == "placeholder":
            raise NotCompilableError(IN_PLACE)


def _part_outputs(module: GraphModule) -> None:
    """Make each output a value of its own, neither an input nor another output: a loop may hold both."""
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    seen: set[Node] = set()
    results = []
    for node in output.args[0]:
        if node.op == "placeholder" or node in seen or node.target in _VIEWS:
            with module.graph.inserting_before(output):
                copy = module.graph.call_function(torch.ops.aten.clone.default, (node,))
            copy.meta["val"] = node.meta["val"]
            node = copy
        seen.add(node)
        results.append(node)
    output.args = (tuple(results),)


class Joined:
    """A graph put together from recorded ones."""

    def __init__(self, fakes: Fakes) -> None:
        self.graph, self.root = Graph(), nn.Module()
        self.inputs = [self._input(i, x) for i, x in enumerate(fakes)]

    def _input(self, i: int, like: Tensor) -> Node:
        node = self.graph.placeholder(f"x{i}")
        node.meta["val"] = like
        return node

    def _attribute(self, value: Any) -> str:
        name = f"part{len(list(self.root.named_children())) + len(list(self.root.named_buffers()))}"
        if isinstance(value, nn.Module):
            self.root.add_module(name, value)
        else:
            self.root.register_buffer(name, value)
        return name

    def then(self, part: GraphModule, inputs: Sequence[Node]) -> list[Node]:
        """The operations of `part` on these inputs; its outputs."""
        places = [n for n in part.graph.nodes if n.op == "placeholder"]
        known: dict[Node, Node] = dict(zip(places, inputs, strict=True))
        for node in part.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                return [known[n] for n in node.args[0]]
            copied = self.graph.node_copy(node, lambda n: known[n])
            if node.op == "get_attr":
                copied.target = self._attribute(getattr(part, str(node.target)))
            known[node] = copied
        raise AssertionError("a graph without an output")

    def loop(self, go: GraphModule, body: GraphModule, carried: Sequence[Node], others: Sequence[Node]) -> list[Node]:
        """While `go`, replace the carried by what `body` makes of (*carried, *others); the last ones."""
        body, before = lifted(body, len(carried))
        if before is not None:
            made = self.then(before, others)
            others = [*others, *made]
            go = widened(go, [n.meta["val"] for n in made])
        parts = [self.graph.get_attr(self._attribute(part)) for part in (go, body)]
        looped = self.graph.call_function(
            torch.ops.higher_order.while_loop, (*parts, tuple(carried), tuple(others)), {}
        )
        values = [n.meta["val"] for n in carried]
        looped.meta["val"] = tuple(values)
        results = []
        for i, value in enumerate(values):
            results.append(self.graph.call_function(operator.getitem, (looped, i)))
            results[-1].meta["val"] = value
        return results

    def done(self, outputs: Sequence[Node]) -> GraphModule:
        self.graph.output(tuple(outputs))
        return GraphModule(self.root, self.graph)


def widened(module: GraphModule, more: Sequence[Tensor]) -> GraphModule:
    """The graph with further inputs, which nothing reads."""
    places = [n for n in module.graph.nodes if n.op == "placeholder"]
    with module.graph.inserting_after(places[-1]):
        for i, like in reversed(list(enumerate(more))):
            module.graph.placeholder(f"more{i}").meta["val"] = like
    module.recompile()
    return module


def _views(graph: Graph, places: Sequence[Node], of: Callable[[Sequence[Tensor]], Tensor]) -> Node:
    """A view of an input of a graph, put into it."""
    from torch.fx.experimental.proxy_tensor import make_fx

    fakes = [n.meta["val"] for n in places]
    small = make_fx(lambda *x: of(x), _allow_non_fake_inputs=True)(*fakes)
    known = dict(zip((n for n in small.graph.nodes if n.op == "placeholder"), places, strict=True))
    for node in small.graph.nodes:
        if node.op == "output":
            return known[node.args[0]]
        if node.op != "placeholder":
            known[node] = graph.node_copy(node, lambda n: known[n])
    raise AssertionError("a graph without an output")


def written(body: GraphModule, count: int, row_of: Callable[[Sequence[Tensor]], Tensor]) -> GraphModule:
    """The graph with its last `count` outputs written into its last `count` inputs instead, at a row.

    row_of: that row, one number (1,), from the graph's inputs; views alone.

    What a loop takes down stays where it is: values that a loop hands from turn to turn are copied at every turn.
    """
    graph = body.graph
    places = [n for n in graph.nodes if n.op == "placeholder"]
    (output,) = (n for n in graph.nodes if n.op == "output")
    results = list(output.args[0])
    with graph.inserting_before(output):
        row = _views(graph, places, row_of)
        for tape, value in zip(places[-count:], results[-count:], strict=True):
            lifted = graph.call_function(torch.ops.aten.unsqueeze.default, (value, 0))
            lifted.meta["val"] = value.meta["val"].unsqueeze(0)
            put = graph.call_function(torch.ops.aten.index_put_.default, (tape, [row], lifted))
            put.meta["val"] = tape.meta["val"]
    output.args = (tuple(results[:-count]),)
    body.recompile()
    return body

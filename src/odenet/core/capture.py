"""Finds the tensors that f uses without being given them: parameters, and whatever else it closes over.

Two views, joined. The autograd graph of one evaluation shows what was used. The function's closure, attributes and
globals give the tensors their names, and show what another branch of f may use later.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import CaptureError

Nodes = set[Any]
"""Nodes of autograd's graphs."""

_DEPTH = 5  # containers within containers; deeper tensors are still found by the graph, only without their name


def named_tensors(f: Any) -> dict[int, tuple[str, Tensor]]:
    """Every tensor with requires_grad that f can reach: id -> (name, tensor)."""
    found: dict[int, tuple[str, Tensor]] = {}
    seen: set[int] = set()

    def visit(name: str, x: Any, depth: int) -> None:
        if isinstance(x, Tensor):
            if x.requires_grad:
                found.setdefault(id(x), (name, x))
            return
        if depth > _DEPTH or id(x) in seen or isinstance(x, (str, bytes, int, float, complex, type, ModuleType)):
            return
        seen.add(id(x))
        for key, child in _children(x):
            visit(f"{name}{key}", child, depth + 1)

    visit("", f, 0)
    return {key: (name.lstrip("."), tensor) for key, (name, tensor) in found.items()}


def _children(x: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(x, nn.Module):
        yield from ((f".{k}", v) for k, v in x.named_parameters(remove_duplicate=False))
        yield from ((f".{k}", v) for k, v in x.named_buffers(remove_duplicate=False))
        for prefix, module in x.named_modules():
            yield from ((f".{prefix}.{k}" if prefix else f".{k}", v) for k, v in _plain_attributes(module))
    elif isinstance(x, functools.partial):
        yield ("", x.func)
        yield from ((f".args[{i}]", v) for i, v in enumerate(x.args))
        yield from ((f".{k}", v) for k, v in x.keywords.items())
    elif inspect.ismethod(x):
        yield ("", x.__func__)
        yield ("", x.__self__)
    elif inspect.isfunction(x):
        yield from _of_function(x)
    elif isinstance(x, dict):
        yield from ((f"[{k!r}]", v) for k, v in x.items())
    elif isinstance(x, (list, tuple, set, frozenset)):
        yield from ((f"[{i}]", v) for i, v in enumerate(x))
    elif hasattr(x, "__dict__"):
        yield from ((f".{k}", v) for k, v in vars(x).items())


def _plain_attributes(module: nn.Module) -> Iterable[tuple[str, Any]]:
    hidden = ("_parameters", "_buffers", "_modules")
    return ((k, v) for k, v in vars(module).items() if k not in hidden and not k.endswith("_hooks"))


def _of_function(f: Any) -> Iterable[tuple[str, Any]]:
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        try:
            yield (f".{name}", cell.cell_contents)
        except ValueError:  # a variable of the enclosing function that has no value yet
            continue
    yield from ((f".{n}", f.__globals__[n]) for n in f.__code__.co_names if n in f.__globals__)
    yield from ((f".{n}", v) for n, v in (f.__kwdefaults__ or {}).items())
    yield from (("", v) for v in f.__defaults__ or ())
    if hasattr(f, "__wrapped__"):
        yield ("", f.__wrapped__)


def _leaf_node() -> type[Any]:
    """What ends a graph at a leaf; a look at the type is quicker than one for the attribute that only it has."""
    with torch.inference_mode(False), torch.enable_grad():
        node = torch.zeros((), requires_grad=True).view(()).grad_fn
    assert node is not None
    return type(node.next_functions[0][0])


_LEAF = _leaf_node()


def graph_marker() -> int:
    """A point in the order in which autograd nodes are made: nodes of later operations have larger numbers.

    Each thread counts its own, and a backward pass on a GPU runs in another thread than the forward pass.
    """
    with torch.enable_grad():
        node = torch.zeros((), requires_grad=True).view(()).grad_fn
    assert node is not None
    return node._sequence_nr()


class Captured:
    """The tensors that f was found to use beside its arguments, and a check that no other turns up."""

    def __init__(self, f: Any) -> None:
        self._named = named_tensors(f)
        self.tensors: dict[int, Tensor] = {key: tensor for key, (_, tensor) in self._named.items()}
        self._edges = {(t.grad_fn, t.output_nr) for t in self.tensors.values() if t.grad_fn is not None}
        self._open = True

    def close(self) -> None:
        """From now on a tensor not seen before is an error: its gradient could no longer be given."""
        self._open = False

    def see(self, outputs: Iterable[Tensor], inputs: Iterable[Tensor], marker: int, seen: Nodes | None = None) -> None:
        """Walk the graph of one evaluation. `inputs` are f's own arguments; `marker` was taken before it.

        seen: nodes that were walked before, which may be of another thread; those of this walk are added.
        """
        known = {id(x) for x in inputs}
        seen = set() if seen is None else seen
        stack = [x.grad_fn for x in outputs if x.grad_fn is not None and x.grad_fn not in seen]
        seen.update(stack)
        for x in outputs:
            if x.grad_fn is None and x.requires_grad and id(x) not in known:
                self._leaf(x)
        edges = self._edges
        while stack:
            for edge in stack.pop().next_functions:
                node = edge[0]
                if node is None or node in seen or (edges and edge in edges):
                    continue
                seen.add(node)
                if type(node) is _LEAF:
                    variable: Tensor = cast(Any, node).variable
                    if id(variable) not in known:
                        self._leaf(variable)
                elif node._sequence_nr() <= marker:
                    raise self._error(f"a tensor computed outside f by {node.name()}, of shape {_shape(*edge)}")
                else:
                    stack.append(node)

    def _leaf(self, tensor: Tensor) -> None:
        if id(tensor) in self.tensors:
            return
        if not self._open:
            raise self._error(f"a tensor of shape {tuple(tensor.shape)} that f did not use at its first evaluation")
        self.tensors[id(tensor)] = tensor

    @staticmethod
    def _error(what: str) -> CaptureError:
        return CaptureError(
            f"f closes over {what}: its gradient cannot be given with this choice of `gradient`. "
            "Hand it to f through `args` (solve(f, y0, ts, args=(...,)) and f(t, y, ...)), or use gradient='backprop'."
        )


def _shape(node: Any, number: int) -> tuple[int, ...] | str:
    metadata = getattr(node, "_input_metadata", None)
    return tuple(metadata[number].shape) if metadata and number < len(metadata) else "unknown"

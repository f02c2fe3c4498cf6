"""What f can reach: the tensors and generators in its closure, attributes, arguments and globals, with their names."""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_DEPTH = 5  # containers within containers
_PLAIN = (str, bytes, int, float, complex, type, type(None), ModuleType, torch.dtype, torch.device)

Edge = tuple[Any, int]
"""A node of an autograd graph and the number of its output: where autograd hands a tensor's gradient over."""


@dataclass
class Reached:
    """What was reached.

    leaves: id -> (name, tensor) of leaves that ask for a gradient. computed: edge -> (name, tensor) of tensors with a
    history. generators: of random numbers.
    """

    leaves: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    computed: dict[Edge, tuple[str, Tensor]] = field(default_factory=dict)
    generators: list[torch.Generator] = field(default_factory=list)


def reached(f: Any) -> Reached:
    """Every tensor with requires_grad, and every generator, that f can reach."""
    found = Reached()
    seen: set[int] = set()

    def visit(name: str, x: Any, depth: int) -> None:
        if isinstance(x, Tensor):
            if x.requires_grad:
                _add(found, name.lstrip("."), x)
            return
        if depth > _DEPTH or id(x) in seen or isinstance(x, _PLAIN):
            return
        seen.add(id(x))
        if isinstance(x, torch.Generator):
            found.generators.append(x)
            return
        for key, child in _children(x):
            visit(f"{name}{key}", child, depth + 1)

    visit("", f, 0)
    return found


def generators(found: Reached, args: Iterable[Any]) -> list[torch.Generator]:
    """Those that were reached, and those among `args`, each once."""
    both = [*found.generators, *(x for x in args if isinstance(x, torch.Generator))]
    return list({id(x): x for x in both}.values())


def _add(found: Reached, name: str, x: Tensor) -> None:
    if x.grad_fn is None:
        found.leaves.setdefault(id(x), (name, x))
    else:
        found.computed.setdefault((x.grad_fn, x.output_nr), (name, x))


def _children(x: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(x, nn.Module):
        yield from ((f".{k}", v) for k, v in x.named_parameters(remove_duplicate=False))
        yield from ((f".{k}", v) for k, v in x.named_buffers(remove_duplicate=False))
        for prefix, module in x.named_modules():
            yield from ((f".{prefix}.{k}" if prefix else f".{k}", v) for k, v in _plain_attributes(module))
            yield from _cached_methods(module)
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
        yield from ((f"[{k!r}]", v) for k, v in list(x.items()))
    elif isinstance(x, (list, tuple, set, frozenset)):
        yield from ((f"[{i}]", v) for i, v in enumerate(x))
    elif isinstance(x, functools._lru_cache_wrapper):  # its results are nobody's attribute
        yield ("", x.__wrapped__)
        yield from ((".cache", v) for v in gc.get_referents(x) if isinstance(v, (Tensor, dict, list, tuple)))
    else:
        yield from ((f".{k}", v) for k, v in list(getattr(x, "__dict__", {}).items()))
        yield from _cached_methods(x)
        slots = (k for kind in type(x).__mro__ for k in _slots(kind))
        yield from ((f".{k}", getattr(x, k)) for k in slots if hasattr(x, k))


def _cached_methods(x: Any) -> Iterable[tuple[str, Any]]:
    """Methods under functools.lru_cache: one cache for all instances of the class."""
    return ((f".{k}", getattr(type(x), k)) for k in _names_of_cached_methods(type(x)))


@functools.lru_cache(1024)
def _names_of_cached_methods(kind: type) -> tuple[str, ...]:
    return tuple(
        k for base in kind.__mro__ for k, v in vars(base).items() if isinstance(v, functools._lru_cache_wrapper)
    )


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _plain_attributes(module: nn.Module) -> Iterable[tuple[str, Any]]:
    hidden = ("_parameters", "_buffers", "_modules")
    return ((k, v) for k, v in vars(module).items() if k not in hidden and not k.endswith("_hooks"))


def _of_function(f: Any) -> Iterable[tuple[str, Any]]:
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        try:
            yield (f".{name}", cell.cell_contents)
        except ValueError:  # a variable of the enclosing function that has no value yet
            continue
    used = [(n, f.__globals__[n]) for n in f.__code__.co_names if n in f.__globals__]
    yield from ((f".{n}", x) for n, x in used)
    for name, module in used:  # such as settings.weight
        if isinstance(module, ModuleType) and module is not torch:
            named = ((n, vars(module).get(n)) for n in f.__code__.co_names)
            yield from ((f".{name}.{n}", x) for n, x in named if isinstance(x, (Tensor, nn.Module)))
    yield from ((f".{n}", v) for n, v in (f.__kwdefaults__ or {}).items())
    yield from (("", v) for v in f.__defaults__ or ())
    if hasattr(f, "__wrapped__"):
        yield ("", f.__wrapped__)

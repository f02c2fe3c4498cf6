"""What f can reach: the tensors and generators in its closure, attributes, arguments and globals, with their names."""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_DEPTH = 5  # containers within containers
_PLAIN = (str, bytes, int, float, complex, type, type(None), ModuleType, torch.dtype, torch.device, bool)
_REGISTERED = ("_parameters", "_buffers", "_modules")  # of a module, which lists them itself

Edge = tuple[Any, int]
"""A node of an autograd graph and the number of its output: where autograd hands a tensor's gradient over."""


@dataclass
class Reachable:
    """What was reached.

    leaves: id -> (name, tensor) of leaves that ask for a gradient. computed: edge -> (name, tensor) of tensors with a
    history. generators: of random numbers.
    """

    leaves: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    computed: dict[Edge, tuple[str, Tensor]] = field(default_factory=dict)
    generators: list[torch.Generator] = field(default_factory=list)


def find_reachable(f: Any) -> Reachable:
    """Every tensor with requires_grad, and every generator, that f can reach."""
    found = Reachable()
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
            if type(child) not in _PLAIN:  # most are
                visit(f"{name}{key}", child, depth + 1)

    visit("", f, 0)
    return found


def generators(found: Reachable, args: Iterable[Any]) -> list[torch.Generator]:
    """Those that were reached, and those among `args`, each once."""
    both = [*found.generators, *(x for x in args if isinstance(x, torch.Generator))]
    return list({id(x): x for x in both}.values())


def _add(found: Reachable, name: str, x: Tensor) -> None:
    if x.grad_fn is None:
        found.leaves.setdefault(id(x), (name, x))
    else:
        found.computed.setdefault((x.grad_fn, x.output_nr), (name, x))


def _children(x: Any) -> list[tuple[str, Any]]:
    if isinstance(x, nn.Module):
        return _of_module(x)
    if isinstance(x, functools.partial):
        numbered = [(f".args[{i}]", v) for i, v in enumerate(x.args)]
        return [("", x.func), *numbered, *((f".{k}", v) for k, v in x.keywords.items())]
    if inspect.ismethod(x):
        return [("", x.__func__), ("", x.__self__)]
    if inspect.isfunction(x):
        return _of_function(x)
    if isinstance(x, dict):
        return [(f"[{k!r}]", v) for k, v in list(x.items())]
    if isinstance(x, (list, tuple, set, frozenset)):
        return [(f"[{i}]", v) for i, v in enumerate(x)]
    if isinstance(x, functools._lru_cache_wrapper):  # its results are nobody's attribute
        kept = [v for v in gc.get_referents(x) if isinstance(v, (Tensor, dict, list, tuple))]
        return [("", x.__wrapped__), *((".cache", v) for v in kept)]
    own = [(f".{k}", v) for k, v in list(getattr(x, "__dict__", {}).items())]
    slots = [k for kind in type(x).__mro__ for k in _slots(kind)]
    return [*own, *_cached_methods(x), *((f".{k}", getattr(x, k)) for k in slots if hasattr(x, k))]


def _of_module(x: nn.Module) -> list[tuple[str, Any]]:
    """Its parameters, buffers and plain attributes, and those of all modules in it."""
    found = [(f".{k}", v) for k, v in x.named_parameters(remove_duplicate=False)]
    found += [(f".{k}", v) for k, v in x.named_buffers(remove_duplicate=False)]
    for prefix, module in x.named_modules():
        start = f".{prefix}." if prefix else "."
        for k, v in vars(module).items():
            if type(v) not in _PLAIN and k not in _REGISTERED and not k.endswith("_hooks"):
                found.append((start + k, v))
        found += _cached_methods(module)
    return found


def _cached_methods(x: Any) -> list[tuple[str, Any]]:
    """Methods under functools.lru_cache: one cache for all instances of the class."""
    names = _names_of_cached_methods(type(x))
    return [(f".{k}", getattr(type(x), k)) for k in names] if names else []


@functools.lru_cache(1024)
def _names_of_cached_methods(kind: type) -> tuple[str, ...]:
    return tuple(
        k for base in kind.__mro__ for k, v in vars(base).items() if isinstance(v, functools._lru_cache_wrapper)
    )


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _of_function(f: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        with suppress(ValueError):  # a variable of the enclosing function that has no value yet
            found.append((f".{name}", cell.cell_contents))
    names = f.__code__.co_names
    for name in names:
        if name not in f.__globals__:
            continue
        x = f.__globals__[name]
        found.append((f".{name}", x))
        if isinstance(x, ModuleType) and x is not torch:  # such as settings.weight
            inner = [(n, vars(x).get(n)) for n in names]
            found += [(f".{name}.{n}", v) for n, v in inner if isinstance(v, (Tensor, nn.Module))]
    found += [(f".{n}", v) for n, v in (f.__kwdefaults__ or {}).items()]
    found += [("", v) for v in f.__defaults__ or ()]
    if hasattr(f, "__wrapped__"):
        found.append(("", f.__wrapped__))
    return found

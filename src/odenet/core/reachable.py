"""Finds the tensors, generators and modules that f reaches: in its closure, attributes, bound arguments, globals."""

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

from .torch_func import functorch, inside_transform

_MAX_DEPTH = 5  # of nested containers
_PLAIN = (str, bytes, int, float, complex, type, type(None), ModuleType, torch.dtype, torch.device, bool)
_REGISTERED = ("_parameters", "_buffers", "_modules")  # attributes of a module, searched by its own methods
_CACHE = type(functools.lru_cache(lambda: None))

Edge = tuple[Any, int]
"""A node of an autograd graph and the number of its output: autograd delivers a tensor's gradient there."""


@dataclass
class Reachable:
    """The result of a search.

    leaves: id -> (name, tensor), for leaves that require a gradient. computed: edge -> (name, tensor), for tensors with
    a history. generators: generators of random numbers. modules: those that are met, without their submodules.
    """

    leaves: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    computed: dict[Edge, tuple[str, Tensor]] = field(default_factory=dict)
    generators: list[torch.Generator] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list[nn.Module])


def find_reachable(f: Any) -> Reachable:
    """Every tensor that requires a gradient, every generator and every module that f can reach."""
    reachable = Reachable()
    seen: set[int] = set()

    def visit(name: str, x: Any, depth: int) -> None:
        if isinstance(x, Tensor):
            if x.requires_grad and not _outlives_transform(x):
                _add(reachable, name.lstrip("."), x)
            return
        if depth > _MAX_DEPTH or id(x) in seen or isinstance(x, _PLAIN):
            return
        seen.add(id(x))
        if isinstance(x, torch.Generator):
            reachable.generators.append(x)
            return
        if isinstance(x, nn.Module):
            reachable.modules.append(x)
        for key, child in _children(x):
            if type(child) not in _PLAIN:  # saves a call for most children
                visit(f"{name}{key}", child, depth + 1)

    visit("", f, 0)
    return reachable


def generators(reachable: Reachable, args: Iterable[Any]) -> list[torch.Generator]:
    """The generators that f can reach and those among `args`, without duplicates."""
    both = [*reachable.generators, *(x for x in args if isinstance(x, torch.Generator))]
    return list({id(x): x for x in both}.values())


def _outlives_transform(x: Tensor) -> bool:
    """Whether f kept x from inside a transform of `torch.func` that has ended: it is no input of the solve."""
    return functorch.is_functorch_wrapped_tensor(x) and not inside_transform()


def _add(reachable: Reachable, name: str, x: Tensor) -> None:
    if x.grad_fn is None:
        reachable.leaves.setdefault(id(x), (name, x))
    else:
        reachable.computed.setdefault((x.grad_fn, x.output_nr), (name, x))


def _children(x: Any) -> list[tuple[str, Any]]:
    if isinstance(x, nn.Module):
        return _module_children(x)
    if isinstance(x, functools.partial):
        bound_args = [(f".args[{i}]", v) for i, v in enumerate(x.args)]
        return [("", x.func), *bound_args, *((f".{k}", v) for k, v in x.keywords.items())]
    if inspect.ismethod(x):
        return [("", x.__func__), ("", x.__self__)]
    if inspect.isfunction(x):
        return _function_children(x)
    if isinstance(x, dict):
        return [(f"[{k!r}]", v) for k, v in list(x.items())]
    if isinstance(x, (list, tuple, set, frozenset)):
        return [(f"[{i}]", v) for i, v in enumerate(x)]
    if isinstance(x, _CACHE):  # no attribute holds the cached results
        cached = [v for v in gc.get_referents(x) if isinstance(v, (Tensor, dict, list, tuple))]
        return [("", x.__wrapped__), *((".cache", v) for v in cached)]
    attributes = [(f".{k}", v) for k, v in list(getattr(x, "__dict__", {}).items())]
    slots = [k for kind in type(x).__mro__ for k in _slots(kind)]
    return [*attributes, *_cached_methods(x), *((f".{k}", getattr(x, k)) for k in slots if hasattr(x, k))]


def _module_children(x: nn.Module) -> list[tuple[str, Any]]:
    """Parameters, buffers and plain attributes of a module and of all its submodules."""
    children: list[tuple[str, Any]] = [(f".{k}", v) for k, v in x.named_parameters(remove_duplicate=False)]
    children += [(f".{k}", v) for k, v in x.named_buffers(remove_duplicate=False)]
    for prefix, module in x.named_modules():
        start = f".{prefix}." if prefix else "."
        for k, v in vars(module).items():
            if type(v) not in _PLAIN and k not in _REGISTERED and not k.endswith("_hooks"):
                children.append((start + k, v))
        children += _cached_methods(module)
    return children


def _cached_methods(x: Any) -> list[tuple[str, Any]]:
    """Methods under functools.lru_cache: the class holds their cache, for all instances."""
    names = _names_of_cached_methods(type(x))
    return [(f".{k}", getattr(type(x), k)) for k in names] if names else []


@functools.lru_cache(1024)
def _names_of_cached_methods(kind: type) -> tuple[str, ...]:
    return tuple(k for base in kind.__mro__ for k, v in vars(base).items() if isinstance(v, _CACHE))


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _function_children(f: Any) -> list[tuple[str, Any]]:
    children: list[tuple[str, Any]] = []
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        with suppress(ValueError):  # the enclosing function has not assigned the variable yet
            children.append((f".{name}", cell.cell_contents))
    names = f.__code__.co_names
    for name in names:
        if name not in f.__globals__:
            continue
        x = f.__globals__[name]
        children.append((f".{name}", x))
        if isinstance(x, ModuleType) and x is not torch:  # such as settings.weight
            attributes = [(n, vars(x).get(n)) for n in names]
            children += [(f".{name}.{n}", v) for n, v in attributes if isinstance(v, (Tensor, nn.Module))]
    children += [(f".{n}", v) for n, v in (f.__kwdefaults__ or {}).items()]
    children += [("", v) for v in f.__defaults__ or ()]
    if hasattr(f, "__wrapped__"):
        children.append(("", f.__wrapped__))
    return children

"""The modes of PyTorch that a solve changes for a while, put back after an interrupt too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch._C import _len_torch_function_stack, _pop_torch_function_stack  # pyright: ignore[reportPrivateUsage]

P = ParamSpec("P")
R = TypeVar("R")


def with_modes_put_back(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, after which grad mode and the stack of function modes are as before, whatever it raises.

    `torch.no_grad` and the like are written in Python: Ctrl-C at the first moment of their `__exit__` skips it, and
    grad mode would stay off for all that comes later.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        grad, modes = torch.is_grad_enabled(), _len_torch_function_stack()
        try:
            return function(*args, **kwargs)
        except BaseException:
            torch.set_grad_enabled(grad)
            for _ in range(_len_torch_function_stack() - modes):
                _pop_torch_function_stack()
            raise

    return call

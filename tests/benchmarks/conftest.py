"""Settings of a program of its own, whatever the other tests of the process have set."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def float32_in_jax() -> None:
    """JAX's x64 mode is a setting of the process, and lets float64 times turn a float32 state into float64."""
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_x64", False)

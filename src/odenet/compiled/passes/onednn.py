"""Matrix products by oneDNN, as an operation that Inductor lowers to one call.

PyTorch's float32 products go to its BLAS, and BLAS libraries differ by a factor of two between processors, either way
(MKL against oneDNN on an AMD processor, 512 x 256 x 1024: 1.20 ms against 0.54 ms). Inductor calls oneDNN only for
weights that are frozen into the code.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import torch_private

Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides of a matrix."""


@lru_cache(maxsize=1)
def linear() -> Any:
    """The operation (x, w, b) -> x @ w.T + b of float32 matrices with any strides."""
    torch_private.onednn()  # Ctrl-C during this import comes before anything is defined
    torch.library.define("odenet::linear", "(Tensor x, Tensor w, Tensor? b) -> Tensor")
    torch.library.impl("odenet::linear", "CPU", _linear)
    torch.library.impl("odenet::linear", "Meta", lambda x, w, b: x.new_empty((x.shape[0], w.shape[0])))
    _register_lowering()
    return torch.ops.odenet.linear.default


def _linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, w, b, "none", [], "")


def _register_lowering() -> None:
    names = torch_private.onednn()
    ir: Any = names.ir

    @names.register_lowering(torch.ops.odenet.linear.default, type_promotion_kind=None)
    def lower(x: Any, w: Any, b: Any) -> Any:  # pyright: ignore[reportUnusedFunction]
        inputs = [ir.ExternKernel.realize_input(i) for i in (x, w)]
        constants: list[Any] = ["none", [-1], ""]
        if b is None:
            constants.insert(0, None)
        else:
            inputs.append(ir.ExternKernel.realize_input(b))
        device, dtype = x.get_device(), x.get_dtype()
        layout = ir.FixedLayout(device=device, dtype=dtype, size=[x.get_size()[0], w.get_size()[0]])
        return ir.TensorBox.create(names.LinearUnary(layout=layout, inputs=inputs, constant_args=constants))


@lru_cache(maxsize=1024)
def is_faster(left: Layout, right: Layout, threads: int) -> bool:
    """Whether oneDNN is measured to be faster for left @ right here; measured once for each pair of layouts."""
    if not torch.backends.mkldnn.is_available():
        return False
    a, b = (torch.empty_strided(*layout).normal_() for layout in (left, right))
    products = (lambda: torch.mm(a, b), lambda: _linear(a, b.t(), None))
    times: list[list[float]] = [[], []]
    for _ in range(7):
        for product, measured in zip(products, times, strict=True):
            start = time.perf_counter()
            product()
            measured.append(time.perf_counter() - start)
    return min(times[1]) < 0.9 * min(times[0])

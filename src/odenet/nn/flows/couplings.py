"""Couplings of a batch of noise and a batch of data: which sample of noise a path from noise to data begins at.

Any coupling whose marginals are the noise and the data gives a flow from the one to the other. One that pairs what is
near gives straighter paths, so that sampling needs fewer steps and the loss has less variance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor

from ...core.serialization import settings_repr
from ...core.validate import describe, describe_shape, integer, number, one_of
from ...errors import ConvergenceWarning, warn
from . import transport

NAMES = ("independent", "ot", "sinkhorn", "bridge")


class Coupling(ABC):
    """Which noise sample goes with which data sample."""

    @abstractmethod
    def pairs(
        self, x0: Tensor, x1: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Indices of shape (B1,), on the device of x1: x0[index] goes with x1 in its order, and so with its context.

        Args:
            x0: noise of shape (B0, ...), independent of x1 and of the context.
            x1: data of shape (B1, ...). B0 = B1, but for `Sinkhorn`.
            context: what the flow is conditional on, of shape (B1,) or (B1, ...). An integer or bool dtype means
                classes, a floating-point one has distances. x0[i] is taken as a draw for context[i].
            generator: the random numbers, where any are drawn. None: the global state.

        Raises:
            TypeError, ValueError: an argument is of the wrong type, shape or device, or has NaN or infinity.
        """

    def __repr__(self) -> str:
        return settings_repr(self)


@final
class Independent(Coupling):
    """x0[i] goes with x1[i]: the product of the two distributions where they are drawn independently.

    Tong et al. 2024, "Improving and generalizing flow-based generative models with minibatch optimal transport"
    (arXiv 2302.00482): I-CFM. The context makes no difference.
    """

    def pairs(
        self, x0: Tensor, x1: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        _check_batches(x0, x1, equal=True)
        return torch.arange(len(x1), device=x1.device)


class Transport(Coupling):
    """Base of the couplings that make squared distances |x0[i] - x1[j]|^2 small, over all axes but the first.

    Args:
        context_weight: what a pair costs that brings noise drawn for another context: C2OT, Cheng and Schwing 2025
            (arXiv 2503.10636). Pairs by distance alone would give each context noise from near its own data in
            training, whereas in sampling each gets all of it. inf, the default, pairs within equal contexts only,
            which leaves the noise of each context as it is; it suits classes. A finite weight w adds w for different
            classes, and w |c_i - c_j|^2 for contexts of floating-point numbers, which are seldom equal: the larger,
            the less bias and the less transport. C2OT's cosine distance is half of the latter for contexts of
            length 1. 0 ignores the context.
    """

    _rectangular = False

    def __init__(self, *, context_weight: float = math.inf) -> None:
        self.context_weight = number("context_weight", context_weight)
        if self.context_weight < 0.0:
            raise ValueError(f"context_weight must not be negative; got {context_weight!r}")

    @torch.no_grad()
    def pairs(
        self, x0: Tensor, x1: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        _check_batches(x0, x1, equal=not self._rectangular)
        a, b = _centred(x0, x1)
        if context is None or self.context_weight == 0.0:
            return self._couple(a, b, generator)
        _check_context(context, x0, x1)
        context = context.to(x1.device).reshape(len(x1), -1)
        if self.context_weight < math.inf:
            c = _context_features(context, self.context_weight, a.dtype)
            return self._couple(torch.cat((a, c), 1), torch.cat((b, c), 1), generator)
        index = torch.arange(len(x1), device=x1.device)
        for rows in _equal_rows(context):
            index[rows] = rows[self._couple(a[rows], b[rows], generator)]
        return index

    @abstractmethod
    def _couple(self, a: Tensor, b: Tensor, generator: torch.Generator | None) -> Tensor:
        """Which row of a, noise, goes with each row of b, data. Both have float32 or float64 and two axes."""


@final
class OT(Transport):
    """The optimal transport plan of the batch: the sum of squared distances is as small as possible. OT-CFM.

    Tong et al. 2024 (arXiv 2302.00482), and Pooladian et al. 2023, "Multisample flow matching"
    (arXiv 2304.14772). Between batches of the same size the plan is a permutation, so each sample of noise and of data
    is used once; torchcfm draws pairs from it with replacement. The permutation is optimal to the rounding of float32,
    or of float64 where x0 or x1 has it. No random numbers are drawn. For data of one number it is a sort, and needs
    nothing else; otherwise SciPy, which `pip install "torch-odenet[flows]"` brings, and the CPU.

    Raises (in `pairs`):
        ImportError: SciPy is missing.
    """

    def _couple(self, a: Tensor, b: Tensor, generator: torch.Generator | None) -> Tensor:
        index = torch.arange(len(b), device=b.device)
        if a.shape[1] == 1:
            index[b[:, 0].argsort()] = a[:, 0].argsort()
        elif len(b) > 1:
            # rows of noise and columns of data: SciPy's paths are shorter with potentials of what has more structure
            index[transport.assignment(_affinity(a, b))] = index.clone()
        return index


@final
class Sinkhorn(Transport):
    """Draws from the entropic plan: the squared distances plus a multiple of the plan's relative entropy are smallest.

    A partner in x0 is drawn for each x1 from its row of the plan, so each x1 is used once, and x0 with replacement;
    torchcfm draws pairs from the plan, and repeats and leaves out data too. A batch of noise of another size may be
    given.

    Args:
        regularisation: the multiple, in the units of the squared distance, as `reg` of POT and torchcfm. Towards 0 it
            is `OT`, towards infinity independent. None: 5 % of the mean squared distance of the batch, both centred.
        tolerance: the largest error of the plan's marginal of x0, in the L1 distance. The marginal of x1 is exact.
        max_iterations: iterations at this regularisation. An error above the tolerance is then a ConvergenceWarning.

    Cuturi 2013, "Sinkhorn distances"; in the log domain: Schmitzer 2019, "Stabilized sparse scaling algorithms for
    entropy regularized transport problems". The coupling of the Schroedinger bridge of Brownian motion with the
    variance sigma^2 has the regularisation 2 sigma^2: SB-CFM, Tong et al. 2024 (arXiv 2302.00482).
    """

    _rectangular = True

    def __init__(
        self,
        regularisation: float | None = None,
        *,
        tolerance: float = 1e-3,
        max_iterations: int = 1000,
        context_weight: float = math.inf,
    ) -> None:
        super().__init__(context_weight=context_weight)
        self.regularisation = None if regularisation is None else number("regularisation", regularisation)
        if self.regularisation is not None and not 0.0 < self.regularisation < math.inf:
            raise ValueError(f"regularisation must be positive and finite, or None; got {regularisation!r}")
        self.tolerance = number("tolerance", tolerance)
        if not 0.0 < self.tolerance < 1.0:
            raise ValueError(f"tolerance must be between 0 and 1; got {tolerance!r}")
        self.max_iterations = integer("max_iterations", max_iterations)

    def _couple(self, a: Tensor, b: Tensor, generator: torch.Generator | None) -> Tensor:
        regularisation = self.regularisation
        if regularisation is None:
            regularisation = 0.05 * (a.square().sum(1).mean() + b.square().sum(1).mean()).item()
        affinity = _affinity(b, a)
        if regularisation == 0.0:  # all samples are equal
            return transport.draw(torch.ones_like(affinity), generator)
        plan, error = transport.entropic_plan(affinity, regularisation, self.tolerance, self.max_iterations)
        if error > self.tolerance:
            warn(
                f"Sinkhorn's algorithm reached a marginal error of {error:.1e}, not tolerance={self.tolerance:g}, in "
                f"max_iterations={self.max_iterations}; the regularisation of {regularisation:.3g} is small for these "
                'data: raise it, or take coupling="ot"',
                ConvergenceWarning,
            )
        return transport.draw(plan, generator)


def coupling(value: str | Coupling, sigma: float | None = None) -> Coupling:
    """A coupling by its name, "independent", "ot", "sinkhorn" or "bridge", or the coupling itself.

    sigma: the noise of the path, which "bridge" needs: it is `Sinkhorn(2 sigma^2)`.
    """
    if isinstance(value, Coupling):
        return value
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"coupling must be a name or a Coupling; got {describe(value)}")
    name = one_of("coupling", value, NAMES)
    if name != "bridge":
        return {"independent": Independent, "ot": OT, "sinkhorn": Sinkhorn}[name]()
    if sigma is None or not 0.0 < number("sigma", sigma) < math.inf:
        raise ValueError(f"coupling='bridge' needs the deviation of its noise: give sigma=, such as 1.0; got {sigma!r}")
    return Sinkhorn(2.0 * number("sigma", sigma) ** 2)


def check_pairs(coupling: Coupling, pairs: Any, x0: Tensor, x1: Tensor) -> None:
    """Raise ValueError unless pairs are what `Coupling.pairs` must return."""
    integers = isinstance(pairs, Tensor) and not (pairs.is_floating_point() or pairs.is_complex())
    if not integers or pairs.dtype is torch.bool or pairs.shape != x1.shape[:1]:
        raise ValueError(
            f"{type(coupling).__name__}.pairs must return one index for each x1, integers of shape ({len(x1)},); got "
            f"{describe_shape(pairs)}" + (f" and {pairs.dtype}" if isinstance(pairs, Tensor) else "")
        )
    if not isinstance(coupling, (Independent, Transport)) and bool(((pairs < 0) | (pairs >= len(x0))).any()):
        raise ValueError(f"{type(coupling).__name__}.pairs must return indices of x0, from 0 to {len(x0) - 1}")


def _check_batches(x0: Tensor, x1: Tensor, *, equal: bool) -> None:
    for name, x in (("x0", x0), ("x1", x1)):
        if not isinstance(x, Tensor) or x.is_complex() or not x.is_floating_point() or x.ndim == 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{name} must be a tensor of real numbers, shape (batch, ...); got {describe(x)}")
    if x0.shape[1:] != x1.shape[1:] or x0.device != x1.device:
        raise ValueError(
            "x0 and x1 must agree in device and in all axes but the first; got "
            f"x0 of shape {tuple(x0.shape)} on {x0.device}, x1 of shape {tuple(x1.shape)} on {x1.device}"
        )
    if (equal and len(x0) != len(x1)) or len(x1) == 0 or len(x0) == 0:
        raise ValueError(
            f"x0 and x1 must have the same batch size, at least 1; got {len(x0)} and {len(x1)}: draw as much noise as "
            "there are data, or take coupling=Sinkhorn(...)"
        )


def _check_context(context: Tensor, x0: Tensor, x1: Tensor) -> None:
    if not isinstance(context, Tensor) or context.is_complex() or context.ndim == 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"context must be a tensor, shape (batch, ...); got {describe(context)}")
    if len(context) != len(x1) or len(x0) != len(x1):
        raise ValueError(
            "x0, x1 and context must have the same batch size: x0[i] was drawn for context[i]; got "
            f"{len(x0)}, {len(x1)} and {len(context)}"
        )
    if context.is_floating_point() and not context.isfinite().all():
        raise ValueError("context has NaN or infinity; remove those samples from the batch")


def _centred(x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Both with two axes and without their means, which no optimal plan depends on: products are then accurate."""
    dtype = torch.promote_types(torch.promote_types(x0.dtype, x1.dtype), torch.float32)
    # where PyTorch may multiply float32 by TF32 or bfloat16, float64 is exact and still fast
    if torch.get_float32_matmul_precision() != "highest":
        dtype = torch.float64
    out: list[Tensor] = []
    for name, x in (("x0", x0), ("x1", x1)):
        flat = x.detach().reshape(len(x), -1).to(dtype)
        flat = flat - flat.mean(0)
        if not math.isfinite(flat.square().sum().item()):
            problem = "values whose squares overflow" if x.isfinite().all() else "NaN or infinity"
            raise ValueError(f"{name} has {problem}; clean or rescale the data before they are coupled")
        out.append(flat)
    return out[0], out[1]


def _affinity(rows: Tensor, columns: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        return (2.0 * rows) @ columns.T


def _context_features(context: Tensor, weight: float, dtype: torch.dtype) -> Tensor:
    """Rows whose squared distances are the weighted costs of different contexts."""
    if context.is_floating_point():
        c = context.to(dtype) * math.sqrt(weight)
        return c - c.mean(0)
    classes = torch.unique(context, dim=0, return_inverse=True)[1]
    return torch.nn.functional.one_hot(classes).to(dtype) * math.sqrt(0.5 * weight)


def _equal_rows(context: Tensor) -> list[Tensor]:
    """The indices of each context that more than one sample has."""
    classes, counts = torch.unique(context, dim=0, return_inverse=True, return_counts=True)[1:]
    if context.is_floating_point() and len(counts) == len(context) > 1:
        raise ValueError(
            f"no two of the {len(context)} contexts are equal, so context_weight=inf leaves nothing to pair; give a "
            "finite context_weight (larger: less bias, less transport), or classes as integers"
        )
    return [rows for rows in classes.argsort(stable=True).split(counts.tolist()) if len(rows) > 1]

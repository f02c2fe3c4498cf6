"""Five classic stiff problems, with reference values at their ends.

ROBER, HIRES, OREGO and VDPOL are in Hairer & Wanner, Solving Ordinary Differential Equations II, Section IV.10. POLLU
is Verwer's (SIAM J. Sci. Comput. 15, 1994). All are also in Mazzia & Magherini, Test Set for IVP Solvers, 2008; its
VDPOL is scaled differently.

Each problem's formulas are written once, on a list of its components; tensors and arrays go through the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StiffProblem:
    """A problem y' = f(t, y) from y0 at t = 0 to t1; the state is the last axis of y."""

    name: str
    y0: Tensor
    t1: float
    f: Callable[[Any, Tensor], Tensor]
    atol_over_rtol: float
    """The absolute tolerance that fits the state's size, for a relative tolerance of 1."""
    end: Tensor
    """y(t1), to 12 digits."""
    numpy_f: Callable[[float, Array], Array]
    """f for SciPy."""

    def scd(self, y1: Any) -> float:
        """Significant correct digits: -log10 of the largest relative error of y1, over every component."""
        y1 = torch.as_tensor(y1, dtype=torch.float64, device="cpu").detach()
        return -float(torch.log10(((y1 - self.end) / self.end).abs().max()))


def _double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _tensors(formulas: Callable[[Sequence[Any]], list[Any]]) -> Callable[[Any, Tensor], Tensor]:
    def f(t: Any, y: Tensor) -> Tensor:
        return torch.stack(formulas(y.unbind(-1)), -1)

    return f


def _arrays(formulas: Callable[[Sequence[Any]], list[Any]]) -> Callable[[float, Array], Array]:
    def f(t: float, y: Array) -> Array:
        return np.stack(formulas(list(np.moveaxis(y, -1, 0))), -1)

    return f


RATES = (0.04, 3e7, 1e4)
"""ROBER's three rates."""


def _rober(y: Sequence[Any], k: Sequence[Any] = RATES) -> list[Any]:
    a, b, c = y
    net, out = k[0] * a - k[2] * b * c, k[1] * b * b
    return [-net, net - out, out]


def rober(t: Any, y: Tensor, k: Tensor) -> Tensor:
    """ROBER with its three rates, `RATES`, as the last axis of k."""
    return torch.stack(_rober(y.unbind(-1), k.unbind(-1)), -1)


def numpy_rober(t: float, y: Array, k: Array) -> Array:
    """`rober` on NumPy's arrays."""
    return np.stack(_rober(list(np.moveaxis(y, -1, 0)), list(np.moveaxis(k, -1, 0))), -1)


def _hires(y: Sequence[Any]) -> list[Any]:
    a, b, c, d, e, f, g, h = y
    bound = 280.0 * f * h - 1.81 * g
    return [
        -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
        1.71 * a - 8.75 * b,
        -10.03 * c + 0.43 * d + 0.035 * e,
        8.32 * b + 1.71 * c - 1.12 * d,
        -1.745 * e + 0.43 * (f + g),
        -280.0 * f * h + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
        bound,
        -bound,
    ]


def _orego(y: Sequence[Any]) -> list[Any]:
    a, b, c = y
    return [77.27 * (b + a * (1.0 - 8.375e-6 * a - b)), (c - (1.0 + a) * b) / 77.27, 0.161 * (a - c)]


def _vdpol(y: Sequence[Any]) -> list[Any]:
    a, b = y
    return [b, ((1.0 - a * a) * b - a) / 1e-6]


def _pollu(y: Sequence[Any]) -> list[Any]:
    no2, no, o3p, o3, ho2, oh, hcho, _co, ald, meo2, c2o3, _co2, pan, ch3o, _hno3, o1d, so2, _so4, no3, n2o5 = y
    r1 = 0.35 * no2
    r2 = 26.6 * no * o3
    r3 = 1.23e4 * ho2 * no
    r4 = 8.6e-4 * hcho
    r5 = 8.2e-4 * hcho
    r6 = 1.5e4 * hcho * oh
    r7 = 1.3e-4 * ald
    r8 = 2.4e4 * ald * oh
    r9 = 1.65e4 * c2o3 * no
    r10 = 9e3 * c2o3 * no2
    r11 = 0.022 * pan
    r12 = 1.2e4 * meo2 * no
    r13 = 1.88 * ch3o
    r14 = 1.63e4 * no2 * oh
    r15 = 4.8e6 * o3p
    r16 = 3.5e-4 * o3
    r17 = 0.0175 * o3
    r18 = 1e8 * o1d
    r19 = 4.44e11 * o1d
    r20 = 1.24e3 * so2 * oh
    r21 = 2.1 * no3
    r22 = 5.78 * no3
    r23 = 0.0474 * no2 * o3
    r24 = 1.78e3 * no3 * no2
    r25 = 3.12 * n2o5
    return [
        r2 + r3 + r9 + r11 + r12 + r22 + r25 - r1 - r10 - r14 - r23 - r24,
        r1 + r21 - r2 - r3 - r9 - r12,
        r1 + r17 + r19 + r22 - r15,
        r15 - r2 - r16 - r17 - r23,
        2.0 * r4 + r6 + r7 + r13 + r20 - r3,
        r3 + 2.0 * r18 - r6 - r8 - r14 - r20,
        r13 - r4 - r5 - r6,
        r4 + r5 + r6 + r7,
        -r7 - r8,
        r7 + r9 - r12,
        r8 + r11 - r9 - r10,
        r9,
        r10 - r11,
        r12 - r13,
        r14,
        r16 - r18 - r19,
        -r20,
        r20,
        r23 + r25 - r21 - r22 - r24,
        r24 - r25,
    ]


ROBER = StiffProblem(
    "ROBER",
    y0=_double(1.0, 0.0, 0.0),
    t1=1e11,
    f=_tensors(_rober),
    atol_over_rtol=1e-6,
    end=_double(2.08334014970e-8, 8.33336077033e-14, 0.999999979167),
    numpy_f=_arrays(_rober),
)
"""Robertson's reaction of three species."""

HIRES = StiffProblem(
    "HIRES",
    y0=_double(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0057),
    t1=321.8122,
    f=_tensors(_hires),
    atol_over_rtol=1e-6,
    end=_double(
        0.000737131257333,
        0.000144248572632,
        5.88872974097e-5,
        0.00117565134328,
        0.00238635619883,
        0.00623896825274,
        0.00284999839519,
        0.00285000160481,
    ),
    numpy_f=_arrays(_hires),
)
"""Schäfer's High Irradiance RESponse, of eight reactants."""

OREGO = StiffProblem(
    "OREGO",
    y0=_double(1.0, 2.0, 3.0),
    t1=360.0,
    f=_tensors(_orego),
    atol_over_rtol=1e-2,
    end=_double(1.00081487032, 1228.17852155, 132.055494285),
    numpy_f=_arrays(_orego),
)
"""The Oregonator, a model of the Belousov-Zhabotinskii reaction."""

VDPOL = StiffProblem(
    "VDPOL",
    y0=_double(2.0, 0.0),
    t1=2.0,
    f=_tensors(_vdpol),
    atol_over_rtol=1.0,
    end=_double(1.70616773217, -0.892809701025),
    numpy_f=_arrays(_vdpol),
)
"""Van der Pol's oscillator, eps y2' = (1 - y1^2) y2 - y1, with eps = 1e-6."""

POLLU = StiffProblem(
    "POLLU",
    y0=_double(0, 0.2, 0, 0.04, 0, 0, 0.1, 0.3, 0.01, 0, 0, 0, 0, 0, 0, 0, 0.007, 0, 0, 0),
    t1=60.0,
    f=_tensors(_pollu),
    atol_over_rtol=1e-6,
    end=_double(
        0.0564625548002,
        0.134248413042,
        4.13973433110e-9,
        0.00552314020748,
        2.01897726230e-7,
        1.46454186349e-7,
        0.0778424911900,
        0.324507535340,
        0.00749401338388,
        1.62229315730e-8,
        1.13586383326e-8,
        0.00223050597572,
        0.000208716288280,
        1.39692101684e-5,
        0.00896488485690,
        4.35284636933e-18,
        0.00689921969626,
        0.000100780303737,
        1.77214651397e-6,
        5.68294329232e-5,
    ),
    numpy_f=_arrays(_pollu),
)
"""Verwer's air pollution model, of 20 species and 25 reactions."""

PROBLEMS = (ROBER, HIRES, OREGO, VDPOL, POLLU)

"""How often a solve looks at a value, where a device would have to be waited for, by PyTorch's profiler."""

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import odenet
from slow_cases import slow_unless


def field(t: Tensor, y: Tensor) -> Tensor:
    return torch.sin(3 * y) - y


def looks(tolerance: float, compile: bool) -> tuple[int, int]:
    """Attempts, and reads of a tensor's value."""
    y0 = torch.linspace(0.1, 1.0, 8, dtype=torch.float64)
    with torch.no_grad():
        odenet.solve(field, y0, [0.0, 3.0], rtol=tolerance, atol=tolerance, compile=compile)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            sol = odenet.solve(field, y0, [0.0, 3.0], rtol=tolerance, atol=tolerance, compile=compile)
    count = sum(e.count for e in seen.key_averages() if e.key == "aten::_local_scalar_dense")
    return sol.stats.accepted + sol.stats.rejected, count


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # until PyTorch 2.10
@pytest.mark.parametrize("compile", slow_unless([False, True], False))
def test_one_look_a_step(compile: bool) -> None:
    """Only that which decides: the error, or in a compiled loop whether it goes on; after 50 one at stiffness."""
    (few, first), (many, second) = looks(1e-3, compile), looks(1e-9, compile)
    assert many > few + 10
    assert second - first - (many - few) == (many > 54 and not compile)

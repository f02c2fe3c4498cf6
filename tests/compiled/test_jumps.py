"""Compiled solves of fields that jump at known times: as eager ones, whose tests have closed forms."""

import pytest
import torch

import odenet
from compiled.sides import same
from odenet.nn import NeuralCDE
from odenet.series import Series
from slow_cases import slow_unless

JUMPS = torch.tensor([0.3, 1.0, 1.0, 1.6], dtype=torch.float64)
EACH = JUMPS.unique()
ENDS, MORE = [0.0, 2.0], [0.0, 0.2, 0.3, 1.0, 1.1, 2.0]


def stairs(w):
    """A field with another matrix between each two jumps; it is that behind the jump at the jump itself."""

    def f(t, y):
        piece = torch.searchsorted(EACH, t.detach(), right=True)
        return torch.tanh(y @ w.index_select(0, piece.view(1))[0]) - 0.1 * y

    return f


@pytest.fixture
def weights():
    return torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()


CASES = [
    (method, ts) for method in ("tsit5", "bosh3", "heun") for ts in ("two", "more", "two back", "more back")
]  # fmt: skip
TIMES = {"two": ENDS, "more": MORE, "two back": ENDS[::-1], "more back": MORE[::-1]}


@pytest.mark.parametrize(("method", "times"), slow_unless(CASES, ("bosh3", "more back")))
def test_as_eager(method, times, weights, y0):
    ts = TIMES[times]
    counted = method != "heun" or len(ts) == 2  # compiled, it evaluates f for outputs in every step
    same(stairs(weights), y0, ts, [weights], counted=counted, method=method, controller=odenet.PID(jump_ts=JUMPS))


@pytest.mark.parametrize("ts", slow_unless([[0.3, 0.7, 1.0, 1.9], [1.6, 1.2, 1.0]], [1.6, 1.2, 1.0]))
def test_starts_and_ends_at_a_jump(ts, weights, y0):
    same(stairs(weights), y0, ts, [weights], method="bosh3", controller=odenet.PID(jump_ts=JUMPS))


@pytest.mark.slow
def test_constant_steps(weights, y0):
    controller = odenet.control.ConstantStep(0.25, jump_ts=JUMPS)
    same(stairs(weights), y0, MORE, [weights], method="rk4", controller=controller)


@pytest.mark.slow
def test_each_sample_jumps_at_its_own_times(y0):
    own = torch.tensor([[0.5, 1.5], [0.25, 0.25], [1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    w = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64, requires_grad=True)

    def f(t, y):
        return w[(t.detach()[:, None] >= own).sum(1)][:, None] * y

    sol = same(f, y0, MORE, [w], method="bosh3", per_sample=True, controller=odenet.PID(jump_ts=own))
    rates = torch.stack([(w[i] - w[i - 1] if i else w[0]) * (2.0 - a).clamp(min=0.0) for i, a in (
        (0, torch.zeros(4, dtype=torch.float64)), (1, own[:, 0]), (2, own[:, 1]))])  # fmt: skip
    torch.testing.assert_close(sol.y1, y0 * rates.sum(0).exp()[:, None], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_float32_times():
    w = torch.tensor([1.0, -1.0], requires_grad=True)

    def f(t, y):
        return torch.where(t >= 0.7, w[1], w[0]) * y

    sol = same(f, torch.ones(2), ENDS, [w], tolerance=1e-5, method="bosh3", controller=odenet.PID(jump_ts=[0.7]))
    torch.testing.assert_close(sol.y1, torch.full((2,), 0.7 - 1.3).exp(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_controlled_equation_of_irregular_times_is_compiled():
    generator = torch.Generator().manual_seed(0)
    series = Series(torch.rand(3, 6, generator=generator).sort(1).values, torch.randn(3, 6, 2, generator=generator))
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        model = NeuralCDE(2, 4, out=1, method="bosh3", compile=compile)
        out = model(series)
        found.append([out, *torch.autograd.grad(out.sum(), list(model.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)

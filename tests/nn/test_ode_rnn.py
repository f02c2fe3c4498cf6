"""ODE-RNN against a GRU by hand, matrix exponentials, SciPy and its own gradients in all modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import odenet
from nn.series_model_suite import ragged
from odenet.nn import ODERNN, MLPField
from odenet.series import Series

D = torch.float64


class Zero(nn.Module):
    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return torch.zeros_like(h)


class Linear(nn.Module):
    """dh/dt = A h."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4, dtype=D))

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return h @ self.matrix.T


class Swinging(nn.Module):
    """A field that depends on t, as the whole batch's (B,)."""

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        assert t.shape == h.shape[:1] and t.dtype == h.dtype
        return torch.sin(5 * t)[:, None] - h.flip(-1) ** 2


def model(field: nn.Module | None = None, **options: Any) -> ODERNN:
    torch.manual_seed(0)
    return ODERNN(2, 4, None, field, **options).double()


def by_hand(rnn: ODERNN, series: Series, flow: Any) -> list[list[Tensor]]:
    """The state after each row, sample by sample: flow(h, t0, t1) between rows, the cell at rows with a value."""
    out: list[list[Tensor]] = []
    for i in range(len(series)):
        h = torch.zeros(1, 4, dtype=D)
        rows: list[Tensor] = []
        for j in range(int(series.length[i])):
            if j:
                h = flow(h, series.t[i, j - 1], series.t[i, j])
            if series.mask[i, j].any():
                h = rnn.cell(torch.cat([series.x[i, j], series.mask[i, j].double()])[None], h)
            rows.append(h[0])
        out.append(rows)
    return out


def check_rows(rnn: ODERNN, series: Series, flow: Any, tol: float) -> None:
    states = rnn.states(series)
    for i, rows in enumerate(by_hand(rnn, series, flow)):
        torch.testing.assert_close(states[i, : len(rows)], torch.stack(rows), rtol=tol, atol=tol)


def test_a_zero_field_leaves_a_gru() -> None:
    rnn = model(Zero())
    check_rows(rnn, ragged(), lambda h, t0, t1: h, 1e-14)
    series = ragged()
    full = Series(series.t.cumsum(1), series.x, torch.ones_like(series.mask))
    gru = nn.GRU(4, 4, batch_first=True, dtype=D)
    for name, value in rnn.cell.named_parameters():
        getattr(gru, f"{name}_l0").data.copy_(value)
    expected = gru(torch.cat([full.x, torch.ones_like(full.x)], -1))[0]
    torch.testing.assert_close(rnn.states(full), expected, rtol=1e-13, atol=1e-13)


def test_a_linear_field_is_a_matrix_exponential() -> None:
    field = Linear()
    rnn, series = model(field, rtol=1e-10, atol=1e-12), ragged()

    def flow(h: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        return h @ torch.linalg.matrix_exp(field.matrix * (t1 - t0)).T

    check_rows(rnn, series, flow, 1e-8)
    rows, queries = by_hand(rnn, series, flow), torch.tensor([0.0, 0.3, 0.5, 1.4], dtype=D)
    at = rnn(series, queries)
    for i in range(4):
        for q, t in enumerate(queries):
            known = int((series.t[i, : series.length[i]] <= t).sum())
            h = flow(rows[i][known - 1][None], series.t[i, known - 1], t)[0] if known else torch.zeros(4, dtype=D)
            torch.testing.assert_close(at[i, q], h, rtol=1e-8, atol=1e-8)
    before = rnn.before(series)
    assert torch.equal(before[:, 0], torch.zeros(4, 4, dtype=D))
    for j in range(1, 5):
        torch.testing.assert_close(before[0, j], flow(rows[0][j - 1][None], series.t[0, j - 1], series.t[0, j])[0])


@pytest.mark.parametrize("options", [{"rtol": 1e-9, "atol": 1e-9}, {"rtol": 1e-9, "atol": 1e-9, "per_sample": True}])
def test_a_field_that_depends_on_time(options: dict[str, Any]) -> None:
    """Against SciPy, also where the model's times are scaled."""
    rnn, series = model(Swinging(), **options), ragged()

    def flow(h: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        def slope(t: float, y: Any) -> Any:
            return Swinging()(torch.tensor([t], dtype=D), torch.as_tensor(y)[None])[0].numpy()

        sol = solve_ivp(slope, (float(t0), float(t1)), h[0].detach().numpy(), rtol=1e-10, atol=1e-10)
        return torch.as_tensor(sol.y[:, -1])[None]

    check_rows(rnn, series, flow, 1e-7)
    rnn.fit_normalizer(series)
    scaled = rnn.normalizer(series)
    assert float(scaled.t.max()) == 1.0
    plain = model(Swinging(), **options)
    torch.testing.assert_close(rnn.states(series), plain.states(scaled), rtol=1e-12, atol=1e-12)


def gradients(rnn: ODERNN, series: Series) -> list[Tensor]:
    t, x = series.t.clone().requires_grad_(), series.x.clone().requires_grad_()
    own = Series(t, x, series.mask, series.length)
    loss = rnn(own).square().sum() + rnn(own, torch.tensor([0.2, 0.5, 1.1], dtype=D)).sin().sum()
    return [*torch.autograd.grad(loss, [t, x, *rnn.parameters()])]


@pytest.mark.parametrize("gradient", ["discrete", "reversible", "adjoint", "gauss"])
def test_gradient_modes(gradient: str) -> None:
    """Exact ones give what backprop gives; for approximate ones and "reversible" solves are accurate."""
    exact = gradient == "discrete"
    options = {} if exact else {"method": "rk4", "step": 0.05}
    mine = gradients(model(gradient=gradient, **options), ragged())
    theirs = gradients(model(gradient="backprop", **options), ragged())
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10 if exact else 1e-5, atol=1e-12 if exact else 1e-7)


def test_gradient_of_the_reversible_method() -> None:
    """It is exact for its own solution: against finite differences of it."""
    rnn, series = model(gradient="reversible"), ragged()
    t, x = series.t.clone().requires_grad_(), series.x.clone().requires_grad_()
    parameters = tuple(rnn.parameters())

    def last(t: Tensor, x: Tensor, *_: Tensor) -> Tensor:
        return rnn(Series(t, x, series.mask, series.length))

    assert torch.autograd.gradcheck(last, (t, x, *parameters), fast_mode=True)


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_adaptive_steps(gradient: str) -> None:
    series = ragged()
    fine = gradients(model(method="rk4", step=0.02), series)
    adaptive = gradients(model(rtol=1e-8, atol=1e-10, gradient=gradient), series)
    for a, b in zip(adaptive, fine, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_compiled() -> None:
    series = ragged()
    both: list[list[Tensor]] = []
    for compile in (False, True):
        rnn = model(rtol=1e-8, atol=1e-10, compile=compile)
        states = rnn.states(series)
        both.append([states, *torch.autograd.grad(states.square().sum(), list(rnn.parameters()))])
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_second_derivatives() -> None:
    """Those of backprop, the default."""
    rnn, series = model(), ragged()
    x = series.x.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: rnn(Series(series.t, x, series.mask, series.length)), (x,), fast_mode=True
    )


def test_options_of_the_solve() -> None:
    """Constant steps where no tolerance is given, of the method and the size that are given."""
    counts = {
        "default": (model(), 4),
        "step": (model(step=0.25), 8),
        "method": (model(method="rk4"), 8),
        "both": (model(method="euler", step=1.0), 1),
    }
    for name, (rnn, nfe) in counts.items():
        calls: list[int] = []
        rnn.flow.field.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        rnn.flow(torch.ones(3, 4, dtype=D), torch.zeros(3, dtype=D), torch.full((3,), 0.08, dtype=D))
        assert len(calls) == nfe, name
    with pytest.raises(TypeError, match="rtoll"):
        model(rtoll=1e-3)
    with pytest.raises(ValueError, match="cell"):
        model(cell="lstm")


def test_static_features_are_where_the_state_begins() -> None:
    series = ragged(static=3)
    rnn = model(static=3)
    assert rnn.initial is not None and series.static is not None
    torch.testing.assert_close(rnn(series, [0.0])[:, 0], rnn.initial(series.static))
    torch.testing.assert_close(rnn.before(series)[:, 0], rnn.initial(series.static))


def test_a_failed_solve_says_so() -> None:
    class Explosive(nn.Module):
        def forward(self, t: Tensor, h: Tensor) -> Tensor:
            return 1e3 + h**2

    with pytest.raises(odenet.errors.SolveError):
        model(Explosive(), rtol=1e-6, atol=1e-6, max_steps=200)(ragged())


def test_the_readout_is_linear_in_the_state() -> None:
    torch.manual_seed(0)
    rnn, series = ODERNN(2, 4, 3, MLPField(4, time=True)).double(), ragged()
    states = rnn.run(rnn.scaled(series))[1]
    assert isinstance(rnn.readout, nn.Linear)
    torch.testing.assert_close(rnn.states(series), states @ rnn.readout.weight.T + rnn.readout.bias)


def test_long_gaps_are_solved_in_parts() -> None:
    """Of at most a tenth of the training data's span; each sample in those of its own gap."""
    rnn = model()
    h, t0, t1 = torch.randn(3, 4, dtype=D), torch.zeros(3, dtype=D), torch.tensor([0.08, 0.35, 2.0], dtype=D)
    exact = model(rtol=1e-10, atol=1e-10)
    exact.load_state_dict(rnn.state_dict())
    torch.testing.assert_close(rnn.flow(h, t0, t1), exact.flow(h, t0, t1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(rnn.flow(h, t0, t1)[:2], rnn.flow(h[:2], t0[:2], t1[:2]), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="call fit_normalizer"):
        rnn.flow(h, t0, 1e4 * t1)

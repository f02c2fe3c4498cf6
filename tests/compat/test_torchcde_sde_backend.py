"""`cdeint(..., backend="torchsde")` takes torchsde's steps: beside a loop, and beside torchcde, if installed."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from odenet.compat.torchcde import CubicSpline, cdeint, natural_cubic_coeffs

D = torch.float64
ITO, STRATONOVICH = ("euler", "milstein"), ("midpoint", "heun", "euler_heun", "log_ode")


class Field(nn.Module):
    def __init__(self, sde_type: str = "stratonovich") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 8, dtype=D)
        self.sde_type = sde_type

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.net(z) + t).unflatten(-1, (4, 2))


def problem(sde_type: str) -> dict[str, Any]:
    torch.manual_seed(1)
    X = CubicSpline(natural_cubic_coeffs(torch.randn(3, 5, 2, dtype=D)))
    z0 = torch.randn(3, 4, dtype=D, requires_grad=True)
    return {"X": X, "func": Field(sde_type), "z0": z0, "t": torch.tensor([0.0, 0.31, 1.7, 4.0], dtype=D)}


def gradients(out: Tensor, given: dict[str, Any]) -> tuple[Tensor, ...]:
    weights = torch.linspace(1.0, 2.0, out.numel(), dtype=D).view(out.shape)
    return torch.autograd.grad((out * weights).sum(), (given["z0"], *given["func"].parameters()))


def increment(method: str, f: Any, t: float, h: float, z: Tensor) -> Tensor:
    k = f(t, z)
    if method in ("midpoint", "log_ode"):
        return h * f(t + h / 2, z + h / 2 * k)
    return h / 2 * (k + f(t + h, z + h * k)) if method == "heun" else h * k


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("method", [*ITO, *STRATONOVICH])
def test_steps_of_a_loop(method: str, adjoint: bool) -> None:
    """Steps of dt from the start, the last one shorter; between their ends a straight line."""
    given, dt = problem("ito" if method in ITO else "stratonovich"), 0.25
    out = cdeint(**given, adjoint=adjoint, backend="torchsde", method=method, dt=dt)

    def f(t: float, z: Tensor) -> Tensor:
        time = torch.tensor(t, dtype=D)
        return (given["func"](time, z) @ given["X"].derivative(time)[..., None])[..., 0]

    states = [given["z0"]]
    for n in range(16):
        states.append(states[-1] + increment(method, f, n * dt, dt, states[-1]))
    path = torch.stack(states)
    expected = []
    for time in given["t"].tolist():
        n = min(int(time / dt), 15)
        expected.append(path[n] + (time / dt - n) * (path[n + 1] - path[n]))
    torch.testing.assert_close(out, torch.stack(expected, 1), rtol=1e-12, atol=1e-12)
    if not adjoint:
        for mine, other in zip(gradients(out, given), gradients(torch.stack(expected, 1), given), strict=True):
            assert (mine - other).norm() < 1e-11 * other.norm()


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_the_adjoint_takes_steps_of_dt_too(method: str) -> None:
    given = problem("ito" if method in ITO else "stratonovich") | {"t": torch.tensor([0.0, 4.0], dtype=D)}
    exact = gradients(cdeint(**given, adjoint=False, rtol=1e-8, atol=1e-8), given)
    errors = []
    for dt in (0.02, 0.01):
        mine = gradients(cdeint(**given, backend="torchsde", method=method, adjoint_method=method, dt=dt), given)
        errors.append(sum(float((a - b).square().sum()) for a, b in zip(mine, exact, strict=True)) ** 0.5)
    assert errors[0] / errors[1] == pytest.approx(2.0 if method == "euler" else 4.0, rel=0.2)


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("method", [*ITO, *STRATONOVICH])
def test_as_torchcde(method: str, adjoint: bool) -> None:
    theirs = pytest.importorskip("torchcde")
    pytest.importorskip("torchsde")
    given = problem("ito" if method in ITO else "stratonovich")
    keywords = {"adjoint": adjoint, "backend": "torchsde", "method": method, "dt": 0.3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchsde's, of gradients that its adjoint may lack
        other = theirs.cdeint(**given, **keywords)
    mine = cdeint(**given, **keywords)
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    if not adjoint:
        for a, b in zip(gradients(mine, given), gradients(other, given), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_defaults_are_those_of_torchsde() -> None:
    """Midpoint steps of 1e-3, whatever the tolerances."""
    given = problem("stratonovich")
    out = cdeint(**given, backend="torchsde", rtol=0.5, atol=0.5)
    exact = cdeint(**given, method="midpoint", options={"step_size": 1e-3})
    torch.testing.assert_close(out, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"adaptive": True}, ValueError, 'adaptive=True is not here .* method="dopri5"'),
        ({"method": "srk"}, ValueError, "method='srk' is not here: name one of euler, "),
        ({"adjoint_method": "adjoint_reversible_heun"}, ValueError, "adjoint_method=.* is not here"),
        ({"method": "dopri5"}, ValueError, "method"),
        ({"logqp": True}, ValueError, "logqp has no meaning"),
        ({"event_fn": lambda t, z: z}, ValueError, "event_fn has no meaning"),
    ],
)
def test_what_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cdeint(**problem("stratonovich"), backend="torchsde", **change)


def test_the_default_of_an_ito_equation_is_refused() -> None:
    with pytest.raises(ValueError, match="method='srk' is not here"):
        cdeint(**problem("ito"), backend="torchsde")

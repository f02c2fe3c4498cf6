"""Controlled equations: closed forms, one another, and finite differences as witnesses."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import odenet
from nn.series_model_suite import D, SeriesModelSuite, close, ragged
from odenet.nn import LinearCDE, LogODE, NeuralCDE
from odenet.nn.controlled import CDEField, LinearField, LowRankCDEField, linear_cde, solved_cde
from odenet.nn.controlled.small_matrices import exponential, prefix_products, whole_product
from odenet.series import Series, linear

TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
# the same steps for all samples and all nearby inputs: results do not depend on the batch, and differences are exact
FIXED: dict[str, Any] = {"method": "rk4", "step": 0.25}
FINE: dict[str, Any] = {"method": "dopri8", "step": 0.25}


class SmoothField(nn.Module):
    """f(s, z), (B, hidden, channels), smooth."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.layer, self.shape = nn.Linear(hidden, hidden * channels), (hidden, channels)

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        return 0.5 * torch.tanh(self.layer(z)).unflatten(-1, self.shape)


class ControlledSuite(SeriesModelSuite):
    batch_tol = 1e-9
    nondet_tol = 1e-9  # the first backward pass of a solve sums in another order than the next


class TestNeuralCDEHermite(ControlledSuite):
    causal = False
    control = "hermite"
    online = False

    def make(self, channels: int, out: int | None, static: int) -> NeuralCDE:
        field = SmoothField(4, 1 + channels) if isinstance(channels, int) and channels > 0 else None
        return NeuralCDE(channels, 4, out, field, control=self.control, online=self.online, static=static, **FIXED)


@pytest.mark.slow
class TestNeuralCDENatural(TestNeuralCDEHermite):
    control = "natural"


class TestNeuralCDELinear(TestNeuralCDEHermite):
    control = "linear"


@pytest.mark.slow
class TestNeuralCDERectilinear(TestNeuralCDEHermite):
    causal = True
    control = "rectilinear"


@pytest.mark.slow
class TestNeuralCDEHermiteOnline(TestNeuralCDEHermite):
    causal = True
    online = True


class TestNeuralCDELinearOnline(TestNeuralCDELinear):
    causal = True
    online = True


class TestLinearCDE(SeriesModelSuite):
    causal = False

    def make(self, channels: int, out: int | None, static: int) -> LinearCDE:
        return LinearCDE(channels, 4, out, block=2, static=static)


class TestLinearCDERectilinear(SeriesModelSuite):
    def make(self, channels: int, out: int | None, static: int) -> LinearCDE:
        return LinearCDE(channels, 4, out, block=2, static=static, control="rectilinear")


class TestLogODE(ControlledSuite):
    causal = False
    batch_tol = 1e-7  # rows end steps within a window

    def make(self, channels: int, out: int | None, static: int) -> LogODE:
        return LogODE(channels, 4, out, window=2, static=static, **FINE)


@pytest.mark.slow
class TestLogODEBrackets(ControlledSuite):
    causal = False
    batch_tol = 1e-7

    def make(self, channels: int, out: int | None, static: int) -> LogODE:
        field = SmoothField(4, 1 + channels) if isinstance(channels, int) and channels > 0 else None
        return LogODE(channels, 4, out, window=2, brackets=True, field=field, static=static, **FINE)


def path_like(series_model: Any, other: Any) -> Any:
    """The other model with the first one's initial map and readout."""
    other.initial.load_state_dict(series_model.initial.state_dict())
    other.readout.load_state_dict(series_model.readout.state_dict())
    return other


def walks(size: int = 4, rows: int = 9, channels: int = 2, seed: int = 0) -> Series:
    generator = torch.Generator().manual_seed(seed)
    t = torch.rand(size, rows, generator=generator, dtype=D).cumsum(1)
    return Series(t, 0.3 * torch.randn(size, rows, channels, generator=generator, dtype=D).cumsum(1))


@pytest.mark.parametrize("control", ["linear", "rectilinear"])
def test_linear_cde_is_the_solve_of_its_field(control: Any) -> None:
    """At the end, at the rows and at any time: to the tolerance of the solve."""
    torch.manual_seed(0)
    scan = LinearCDE(2, 8, 3, control=control).double()
    solved = path_like(scan, NeuralCDE(2, 8, 3, field=scan.field, control=control, **TIGHT).double())
    series, ts = ragged(), torch.linspace(-0.2, 1.3, 7, dtype=D)
    close(solved(series), scan(series), 1e-7)
    close(solved.states(series), scan.states(series), 1e-7)
    close(solved(series, ts), scan(series, ts), 1e-7)


def test_linear_field_as_a_matrix_and_as_a_product() -> None:
    torch.manual_seed(0)
    field, z, dx = LinearField(6, 3, block=2).double(), torch.randn(5, 6, dtype=D), torch.randn(5, 3, dtype=D)
    close(field.prod(torch.zeros(()), z, dx), (field(torch.zeros(()), z) @ dx[..., None])[..., 0], 1e-13)
    with pytest.raises(ValueError, match="block must divide hidden=6"):
        LinearField(6, 3)


def test_linear_cde_of_one_channel_is_a_matrix_exponential() -> None:
    """Where all channels but the time stand still, z(t) = exp(A t) z(0)."""
    torch.manual_seed(0)
    model = LinearCDE(1, 4, block=4).double()
    t = torch.tensor([[0.0, 0.4, 1.7]], dtype=D)
    series = Series(t, torch.zeros(1, 3, 1, dtype=D))
    start = model.initial(torch.zeros(1, 2, dtype=D))
    for i, time in enumerate(t[0]):
        flow = torch.linalg.matrix_exp(time * model.field.weight[0, 0])
        close(model.states(series)[0, i], flow @ start[0], 1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 13])
def test_scans_against_a_loop(count: int) -> None:
    matrices = torch.randn(count, 2, 3, 3, dtype=D)
    expected = [matrices[0]]
    for m in matrices[1:]:
        expected.append(m @ expected[-1])
    mine = matrices.permute(2, 3, 0, 1).requires_grad_()
    close(prefix_products(mine).permute(2, 3, 0, 1), torch.stack(expected), 1e-11)
    close(whole_product(mine)[..., 0, :].permute(2, 0, 1), expected[-1], 1e-11)
    assert torch.autograd.gradcheck(prefix_products, mine, fast_mode=True, nondet_tol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_exponentials_of_small_matrices(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.0, 1e-3, 0.3, 5.0):
        m = scale * torch.randn(4, 4, 50, generator=generator, dtype=dtype)
        expected = torch.linalg.matrix_exp(m.movedim(-1, 0)).movedim(0, -1)
        error = (exponential(m) - expected).abs().amax((0, 1)) / expected.abs().amax((0, 1))
        assert float(error.max()) < 2000 * torch.finfo(dtype).eps
    m = torch.randn(3, 3, 2, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(exponential, m, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(exponential, m)
    assert not torch.isfinite(exponential(torch.full((2, 2, 1), torch.inf))).any()


def test_linear_cde_keeps_its_length_along_long_paths() -> None:
    torch.manual_seed(0)
    model, series = LinearCDE(2, 8), walks(2, 3000)
    states = model.double().states(series)
    close(states.norm(dim=-1), states[:, :1].norm(dim=-1).expand(2, 3000), 1e-9)


@pytest.mark.parametrize("pieces", [1, 3, 4])
def test_scans_of_a_part_of_the_pieces_each(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, series, ts = LinearCDE(2, 8, 3).double(), ragged(), torch.linspace(-0.2, 1.3, 7, dtype=D)

    def found() -> tuple[Tensor, ...]:
        outputs = model(series), model.states(series), model(series, ts)
        return *outputs, *torch.autograd.grad(sum(x.square().sum() for x in outputs), list(model.parameters()))

    together = found()
    size = len(series) * model.hidden * model.field.block * 8
    monkeypatch.setattr(linear_cde, "_BYTES_AT_ONCE", pieces * size)
    for mine, other in zip(found(), together, strict=True):
        close(mine, other, 1e-12)


def test_scans_of_a_part_have_all_derivatives_and_keep_no_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, series = LinearCDE(2, 2, block=2).double(), walks(2, 20)
    monkeypatch.setattr(linear_cde, "_BYTES_AT_ONCE", 5 * 2 * 2 * 2 * 8)  # 5 pieces
    weights = dict(model.named_parameters())

    def end(weight: Tensor) -> Tensor:
        given, ts = weights | {"field.weight": weight}, torch.linspace(0.1, 0.8, 5, dtype=D)
        return sum(torch.func.functional_call(model, given, of).square().sum() for of in ((series,), (series, ts)))

    given = weights["field.weight"].detach().requires_grad_()
    assert torch.autograd.gradcheck(end, given) and torch.autograd.gradgradcheck(end, given)
    direction = torch.randn_like(given)
    (grad,) = torch.autograd.grad(end(given), given)
    close(torch.func.grad(end)(given), grad, 1e-12)
    close(torch.func.jvp(end, (given,), (direction,))[1], (grad * direction).sum(), 1e-12)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(end(forward_ad.make_dual(given.detach(), direction))).tangent
    close(tangent, (grad * direction).sum(), 1e-12)

    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        end(given)
    assert sum(kept) < 8 * 19 * 2 * 2 * 2  # 4384 with the factors of all products; the matrices alone have 152 numbers


def test_a_field_by_its_matrix_and_by_its_product() -> None:
    torch.manual_seed(0)
    field = LowRankCDEField(5, 4, rank=2).double()
    z, dx = torch.randn(3, 5, dtype=D), torch.randn(3, 4, dtype=D)
    close(field.prod(torch.zeros(()), z, dx), (field(torch.zeros(()), z) @ dx[..., None])[..., 0], 1e-13)
    assert torch.linalg.matrix_rank(field(torch.zeros(()), z)).max() == 2
    model = NeuralCDE(3, 5, rank=2)
    assert isinstance(model.field, LowRankCDEField) and model(walks(channels=3).to(torch.float32)).shape == (4, 5)
    with pytest.raises(ValueError, match="give field or rank"):
        NeuralCDE(3, 5, field=CDEField(5, 4), rank=2)


@pytest.mark.parametrize("control", ["linear", "hermite", "natural"])
def test_gradients_of_every_mode(control: Any) -> None:
    torch.manual_seed(0)
    model = NeuralCDE(2, 4, 1, field=SmoothField(4, 3), control=control, **TIGHT).double()
    series = walks(rows=5)
    found = {}
    modes = ("backprop", "discrete", odenet.Discrete(checkpoints=5), "adjoint", "gauss", "reversible")
    for gradient in modes:
        model.solve_options = {**TIGHT, "gradient": gradient}
        loss = model(series).square().sum()
        found[gradient] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    exact = found.pop("backprop")
    for gradient, mine in found.items():
        error = float((mine - exact).norm() / exact.norm())
        assert error < (1e-12 if gradient in ("discrete", modes[2]) else 1e-5), (gradient, error)


@pytest.mark.parametrize("control", ["rectilinear", "hermite", "linear"])
def test_an_online_state_does_not_depend_on_the_future(control: Any) -> None:
    """Whatever comes after a time: other values, other times, more rows, none."""
    torch.manual_seed(0)
    model = NeuralCDE(2, 4, field=SmoothField(4, 3), control=control, online=True, **FIXED).double()
    series, early = walks(), torch.tensor([0.3, 1.1, 1.9], dtype=D)
    cut = 2.0
    t = torch.where(series.t > cut, cut + 2 * (series.t - cut), series.t)
    x = torch.where((series.t > cut)[..., None], -5.0 * series.x, series.x)
    for other in (
        Series(t, x),
        series.before(cut),
        Series(torch.cat([t, t[:, -1:] + 1], 1), x.repeat(1, 2, 1)[:, :10]),
    ):
        close(model(other, early), model(series, early), 1e-12)
    offline = NeuralCDE(2, 4, field=model.field, control="natural", **FIXED).double()
    assert not torch.allclose(offline(Series(t, x), early), offline(series, early))


def test_the_path_alone_decides() -> None:
    """A row on the line between its neighbours changes nothing; nor does a gap in another channel."""
    torch.manual_seed(0)
    model = NeuralCDE(1, 4, field=SmoothField(4, 2), control="linear", **TIGHT).double()
    t = torch.tensor([[0.0, 1.0, 3.0]], dtype=D)
    series = Series(t, torch.tensor([[[0.0], [1.0], [-1.0]]], dtype=D))
    more = Series(
        torch.tensor([[0.0, 0.25, 1.0, 2.0, 3.0]], dtype=D),
        torch.tensor([[[0.0], [0.25], [1.0], [torch.nan], [-1.0]]], dtype=D),
    )
    close(model(more), model(series), 1e-7)


def test_own_controls_and_counts() -> None:
    torch.manual_seed(0)
    series = ragged()
    counted = NeuralCDE(2, 4, counts=True, **FIXED).double()
    assert counted.path_channels == 5 and counted(series).shape == (4, 4)
    own = NeuralCDE(2, 4, control=lambda s: linear(s, counts=True), path_channels=5, **FIXED).double()
    assert own(series).shape == (4, 4)
    with pytest.raises(ValueError, match="path of 5 channels, and the model takes 3"):
        NeuralCDE(2, 4, control=lambda s: linear(s, counts=True)).double()(series)


def test_log_ode_of_one_row_a_window_is_the_controlled_equation() -> None:
    torch.manual_seed(0)
    field, series = SmoothField(4, 3), walks()
    exact = NeuralCDE(2, 4, field=field, control="linear", **TIGHT).double()
    for brackets in (True, False):
        depth = 2 if brackets else 1
        model = LogODE(2, 4, field=field, window=1, depth=depth, brackets=brackets, **TIGHT).double()
        close(path_like(exact, model)(series), exact(series), 1e-8)


def test_brackets_of_linear_fields() -> None:
    """Two straight pieces by one window: exp(B) exp(A) = exp(A + B + [B, A] / 2 + ...): an error of third order."""
    torch.manual_seed(0)
    linear_field = LinearField(4, 3, block=4)
    errors = []
    for scale in (0.2, 0.1):
        series = walks(rows=3)
        series = Series(scale * series.t, scale * series.x)
        exact = NeuralCDE(2, 4, field=linear_field, control="linear", **TIGHT).double()
        model = path_like(exact, LogODE(2, 4, window=2, brackets=True, field=linear_field, **TIGHT).double())
        errors.append(float((model(series) - exact(series)).detach().norm()))
    assert 6.5 < errors[0] / errors[1] < 9.5


def test_depths_of_log_signatures() -> None:
    assert [LogODE(2, 4, depth=depth).path_channels for depth in (1, 2, 3, 4)] == [3, 6, 14, 32]  # Witt's formula
    with pytest.raises(ValueError, match="brackets=True needs depth=2"):
        LogODE(2, 4, depth=3, brackets=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control": "spline"}, "control"),
        ({"control": "natural", "online": True}, "looks ahead"),
        ({"counts": 2}, "counts"),
        ({"online": "yes"}, "online"),
        ({"path_channels": 0}, "path_channels"),
        ({"rtol": -1.0}, "rtol"),
        ({"method": "tsit"}, "method"),
        ({"foo": 1}, "foo"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        NeuralCDE(2, 4, **options)


@pytest.mark.parametrize("control", ["linear", "rectilinear", "hermite", "natural"])
def test_a_sample_whose_rows_are_all_later(control: Any) -> None:
    series = Series(torch.tensor([[5.0, 6.0], [5.5, 6.0]]), torch.randn(2, 2, 1))
    model = NeuralCDE(1, 4, 2, control=control).fit_normalizer(series)
    some = model(series.before(torch.tensor([9.0, 5.2])))
    assert bool(torch.isfinite(some).all())
    close(some[:1], model(series[:1]), 1e-4)


def test_a_field_of_the_wrong_shape() -> None:
    with pytest.raises(TypeError, match=r"field must be callable as field\(s, z\)"):
        NeuralCDE(2, 4, field=nn.Linear(4, 4))
    with pytest.raises(ValueError, match="the path has 3 channels, time among them"):
        NeuralCDE(2, 4, field=CDEField(4, 2))(walks().to(torch.float32))


def test_a_graph_is_kept_where_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []

    def recording(*args: Any, **options: Any) -> Any:
        chosen.append(options.get("gradient"))
        return solve(*args, **options)

    solve = solved_cde.solve
    monkeypatch.setattr(solved_cde, "solve", recording)
    short, model = ragged(), NeuralCDE(2, 4, out=1).double()
    model(short).sum().backward()
    kept = [p.grad for p in model.parameters()]
    model.zero_grad()
    monkeypatch.setattr(solved_cde, "_SHORT_GRAPH", 0)
    model(short).sum().backward()
    assert chosen == ["backprop", None]
    for one, p in zip(kept, model.parameters(), strict=True):
        assert one is not None and p.grad is not None
        close(one, p.grad, 1e-12)
    NeuralCDE(2, 4, gradient="reversible").double()(short)
    assert chosen[-1] == "reversible"


@pytest.mark.parametrize(
    "gradient", ["backprop", "discrete", "adjoint", pytest.param("compiled", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("steps", [{"method": "rk4", "step": 0.5}, {}], ids=["even", "adaptive"])
@pytest.mark.parametrize("make", [NeuralCDE, partial(LogODE, window=4)], ids=["NeuralCDE", "LogODE"])
def test_a_state_does_not_depend_on_the_times_asked_for(make: Any, steps: Any, gradient: str) -> None:
    """Steps end at the rows, or at windows, but not at times that are asked for; states there are interpolated."""
    options = {"compile": True} if gradient == "compiled" else {"gradient": gradient}
    model = make(2, 4, **steps, **options).double()
    series = ragged()
    ts = torch.linspace(float(series.t[series.rows].min()), float(series.t[series.rows].max()), 9, dtype=D)
    together = model(series, ts)
    model(series, ts[:5].flip(0)[None].expand(len(series), -1)).square().sum().backward()
    some = [p.grad for p in model.parameters()]
    model.zero_grad()
    together[:, :5].square().sum().backward()
    for index in range(len(ts)):
        close(model(series, ts[index, None])[:, 0], together[:, index], 1e-10)
    for one, p in zip(some, model.parameters(), strict=True):
        assert one is not None and p.grad is not None
        close(one, p.grad, 1e-2 if gradient == "adjoint" else 1e-9)
    precise = make(2, 4, rtol=1e-8, atol=1e-10).double()
    precise.load_state_dict(model.state_dict())
    close(together, precise(series, ts), 1e-2)


@pytest.mark.parametrize("gradient", ["adjoint", "gauss"])
@pytest.mark.parametrize("make", [NeuralCDE, partial(LogODE, window=2)], ids=["NeuralCDE", "LogODE"])
def test_adjoints_of_outputs_at_rows_and_behind_them(make: Any, gradient: str) -> None:
    """The derivative of the path jumps at the rows, and so at outputs; errors fall as the fourth power."""
    torch.manual_seed(0)
    series = ragged()
    ts = torch.cat([series.t[0], series.t.max() + torch.tensor([0.1, 1.0], dtype=D)])

    def gradients(how: str, step: float) -> list[Tensor]:
        torch.manual_seed(1)
        model = make(2, 4, 1, method="rk4", step=step, gradient=how).double()
        losses = [y.square().sum() for y in (model(series), model(series, ts), model.states(series))]
        return [torch.cat([g.flatten() for g in torch.autograd.grad(y, model.field.parameters())]) for y in losses]

    exact = gradients("backprop", 1 / 32)
    for step, tol in ((1 / 4, 3e-3), (1 / 16, 3e-5)):
        for mine, true in zip(gradients(gradient, step), exact, strict=True):
            assert float((mine - true).norm() / true.norm()) < tol


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("make", [NeuralCDE, partial(LogODE, window=2)], ids=["NeuralCDE", "LogODE"])
def test_constant_steps_behind_the_last_row_are_as_long_as_before_it(make: Any, online: bool) -> None:
    """s goes on by the mean gap of each sample's rows, for samples that end at different times."""
    options = {"online": online} if make is NeuralCDE else {}
    torch.manual_seed(0)
    series = walks()
    model, precise = (make(2, 4, **options, **steps).double() for steps in (dict(FIXED), TIGHT))
    precise.load_state_dict(model.state_dict())
    ts = float(series.t.max()) + torch.tensor([-3.0, 0.5, 4.0, 30.0], dtype=D)
    found = model(series, ts)
    close(found, precise(series, ts), 1e-4)
    for one in range(len(series)):
        index = torch.tensor([one])
        close(model(series[index], ts), found[index], 1e-12)


class Clock(nn.Module):
    """dz = s dt."""

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        slope = torch.zeros_like(z) + s.reshape(-1, 1)
        return torch.stack([slope, torch.zeros_like(z)], -1)


@pytest.mark.parametrize("options", [{}, {"online": True}, {"control": "rectilinear"}], ids=str)
def test_a_field_sees_s_go_on_behind_a_row(options: dict[str, Any]) -> None:
    """At even times s is the time, or of a rectilinear path twice the number of the row and the time since then."""
    model = NeuralCDE(1, 1, field=Clock(), **options, **TIGHT).double()
    for p in model.initial.parameters():
        nn.init.zeros_(p)
    series = Series(torch.arange(4.0, dtype=D), torch.zeros(1, 4, 1, dtype=D))
    ts = torch.tensor([1.5, 3.0, 4.0], dtype=D)
    expected = [0.5 + 0.5 * 2.25, 7.5, 7.5 + 6.5] if options.get("control") else [1.125, 4.5, 8.0]
    close(model(series, ts)[0, :, 0], torch.tensor(expected, dtype=D), 1e-6)
    before_rows = model(series, torch.tensor([2.0, 3.0], dtype=D) - 1e-9)
    close(before_rows[0, :, 0], model.states(series)[0, 2:, 0], 1e-6)


@pytest.mark.slow
def test_long_series_have_steps_enough() -> None:
    """More knots than `max_steps` is by default."""
    torch.manual_seed(0)
    model = NeuralCDE(1, 2, field=SmoothField(2, 2), control="linear", method="euler", step=1.0)
    assert model(walks(1, 10_050, 1).to(torch.float32)).shape == (1, 2)

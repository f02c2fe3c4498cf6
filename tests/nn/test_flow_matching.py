"""FlowMatching: exact velocities in closed form as the witness of paths, samplers, guidance and densities."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from gradient_settings import APPROXIMATE, NAMES
from odenet.core.affine_paths import PATHS, AffinePath, affine_path
from odenet.nn import CNF, FlowMatching, MLPField
from odenet.nn.flows import Coupling, flow_grid

MEAN, STD = torch.tensor([2.0, -1.0], dtype=torch.float64), 0.5
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
AFFINE = [name for name in PATHS if name not in ("vp", "linear_vp")]  # finite up to t = 1


class ExactVelocity(nn.Module):
    """The velocity of a path from a standard normal to N(mean, STD^2), where the context shifts the mean.

    x_t is normal with mean alpha m and variance v = alpha^2 STD^2 + sigma^2, so the velocity is
    alpha' m + (v' / 2v) (x - alpha m).
    """

    def __init__(self, path: str | AffinePath = "cond_ot", dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.path, self.mean = affine_path(path), nn.Parameter(MEAN.to(dtype))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        p, column = self.path, (lambda v: v.to(x.dtype).view(-1, 1) if v.ndim else v.to(x.dtype))
        alpha, sigma, alpha_dot, sigma_dot = (column(f(t)) for f in (p.alpha, p.sigma, p.alpha_dot, p.sigma_dot))
        mean = self.mean if context is None else self.mean + context
        variance = alpha**2 * STD**2 + sigma**2
        rate = (alpha * alpha_dot * STD**2 + sigma * sigma_dot) / variance
        return alpha_dot * mean + rate * (x - alpha * mean)


def data_density(mean: Tensor = MEAN) -> torch.distributions.Distribution:
    return torch.distributions.Independent(torch.distributions.Normal(mean, STD * torch.ones_like(mean)), 1)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PATHS)
def test_points_and_velocities_of_paths(name: Any, x: Tensor) -> None:
    """The velocity is the derivative of the point, for the same pair and time."""
    path = PATHS[name]
    flow = FlowMatching(lambda t, x: x, path=name)
    x0 = torch.randn_like(x)
    at = flow.path_sample(x, x0, generator=torch.Generator().manual_seed(3))
    t = at.t.clone().requires_grad_()
    point = path.alpha(t)[:, None] * x + path.sigma(t)[:, None] * x0
    torch.testing.assert_close(at.x, point.detach())
    slope = torch.stack([torch.autograd.grad(point[:, i].sum(), t, retain_graph=True)[0] for i in range(2)], 1)
    torch.testing.assert_close(at.u, slope)


def test_the_exact_velocity_has_the_least_loss() -> None:
    """The loss at the minimum is the mean conditional variance, and every change of the field raises it."""
    torch.manual_seed(0)
    x1 = data_density().sample((200_000,))
    field = ExactVelocity()

    def loss(f: Any) -> float:
        return FlowMatching(f).loss(x1, generator=torch.Generator().manual_seed(9)).item()

    least = loss(field)
    # the conditional variance of x1 - x0 given x_t is STD^2 over the variance of x_t
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    expected = torch.trapezoid(STD**2 / (t**2 * STD**2 + (1 - t) ** 2), t).item()  # of each component
    assert least == pytest.approx(expected, rel=0.01)
    for change in (0.1, -0.1):
        assert loss(lambda t, x, change=change: field(t, x) + change * x) > least
        assert loss(lambda t, x, change=change: field(t, x) + change) > least


@pytest.mark.parametrize("name", AFFINE)
def test_density_and_samples_of_the_exact_velocity(name: Any, x: Tensor) -> None:
    flow = FlowMatching(ExactVelocity(name), path=name, event_shape=2)
    torch.testing.assert_close(flow.log_prob(x, **TIGHT), data_density().log_prob(x), rtol=0, atol=1e-6)
    x0 = torch.randn(6, 2, dtype=torch.float64)
    torch.testing.assert_close(flow.sample(x0=x0, **TIGHT), (MEAN + STD * x0).detach(), rtol=0, atol=1e-6)
    assert flow.sample((4, 3)).shape == (4, 3, 2) and isinstance(flow.cnf(), CNF) and flow.cnf() is flow.cnf()


@pytest.mark.parametrize("trained", AFFINE)
@pytest.mark.parametrize("name", PATHS)
def test_another_path_after_training(trained: Any, name: Any, x: Tensor) -> None:
    """The velocity becomes the exact one of the other path, and the samples stay."""
    flow = FlowMatching(ExactVelocity(trained), path=trained, event_shape=2)
    other, exact = flow.with_path(name), ExactVelocity(name)
    for t in (torch.linspace(0.02, 0.98, 6, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)):
        torch.testing.assert_close(other.velocity(t, x), exact(t, x))
    if name in AFFINE:
        for end in (1.0,) if trained == "polynomial" else (0.0, 1.0):
            t = torch.tensor(end, dtype=torch.float64)
            torch.testing.assert_close(other.velocity(t, x), exact(t, x), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(other.sample(x0=x, **TIGHT), flow.sample(x0=x, **TIGHT), rtol=0, atol=1e-5)
    assert flow.path is PATHS[trained]


def test_guidance(x: Tensor) -> None:
    """Of exact velocities with the means m and m + c: that with the mean m + w c."""
    flow = FlowMatching(ExactVelocity(), event_shape=2)
    context = torch.randn(6, 2, dtype=torch.float64)
    for t in (torch.tensor(0.3), torch.rand(6)):
        guided = flow.velocity(t, x, context, guidance=2.5)
        torch.testing.assert_close(guided, flow.velocity(t, x, 2.5 * context))
        torch.testing.assert_close(flow.velocity(t, x, context, guidance=1.0), flow.velocity(t, x, context))
    x0 = torch.randn_like(x)
    expected = (MEAN + 2.5 * context + STD * x0).detach()
    torch.testing.assert_close(flow.sample(context=context, x0=x0, guidance=2.5, **TIGHT), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        flow.sample(context=context, x0=x0, guidance=2.5, per_sample=True, **TIGHT), expected, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        flow.log_prob(x, context, **TIGHT), data_density((MEAN + context).detach()).log_prob(x), rtol=0, atol=1e-6
    )
    with pytest.raises(ValueError, match=r"guidance=2.0 needs a context"):
        flow.sample((2,), guidance=2.0)


def test_dropout_of_the_context() -> None:
    null = torch.tensor(3)
    flow = FlowMatching(lambda t, x, c: x, context_dropout=0.25, null_context=null)
    labels = torch.arange(3).repeat(4000)
    at = flow.path_sample(torch.zeros(12_000, 2), context=labels)
    dropped = at.context[0] == 3
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(at.context[0][~dropped], labels[~dropped])
    flow.eval()
    assert torch.equal(flow.path_sample(torch.zeros(12_000, 2), context=labels).context[0], labels)
    with pytest.raises(ValueError, match="null_context is required for a context of labels"):
        FlowMatching(lambda t, x, c: x, context_dropout=0.25).path_sample(torch.zeros(30, 2), context=labels[:30])


def test_the_bridge() -> None:
    """Its points at a time have the bridge's mean and variance, and the mean velocity of a pair is x1 - x0."""
    torch.manual_seed(0)
    flow = FlowMatching(lambda t, x: x, coupling="bridge", sigma=0.7)
    n = 20_000
    x0, x1 = torch.zeros(n, 1, dtype=torch.float64), torch.full((n, 1), 3.0, dtype=torch.float64)
    flow.coupling = FlowMatching(lambda t, x: x).coupling  # the pairs are all alike: no plan of 20,000 x 20,000
    at = flow.path_sample(x1, x0)
    t = at.t[:, None]
    noise = (at.x - 3.0 * t) / torch.sqrt(t * (1 - t))
    assert noise.std().item() == pytest.approx(0.7, rel=0.02) and abs(noise.mean().item()) < 0.02
    torch.testing.assert_close(at.u, 3.0 + (1 - 2 * t) / (2 * t * (1 - t)) * (at.x - 3.0 * t))


def test_optimal_transport_shortens_paths() -> None:
    torch.manual_seed(0)
    x0, x1 = torch.randn(128, 2), torch.randn(128, 2) + torch.tensor([4.0, 0.0])
    length = {}
    for name in ("independent", "ot", "sinkhorn", "bridge"):
        flow = FlowMatching(lambda t, x: x, coupling=name, sigma=0.3 if name == "bridge" else 0.0)  # type: ignore[arg-type]
        at = flow.path_sample(x1, x0)
        length[name] = at.u.square().sum(1).mean().item() if name != "bridge" else 0.0
    assert length["ot"] < length["sinkhorn"] < length["independent"]


@pytest.mark.parametrize("method", ["euler", "heun", "ddim", "dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3"])
def test_samplers(method: str) -> None:
    """Errors fall with the steps as the order says, on even and shifted grids; a step costs what the method says."""
    flow, x0 = FlowMatching(ExactVelocity(), event_shape=2), torch.randn(20, 2, dtype=torch.float64)
    exact = (MEAN + STD * x0).detach()
    order = {"euler": 1, "ddim": 1, "heun": 2}.get(method) or int(method[-2 if method[-1] == "m" else -1])
    for shift in (1.0, 2.0):
        errors = [
            (flow.sample(x0=x0, method=method, grid=flow_grid(n, shift)) - exact).abs().max().item() for n in (160, 320)
        ]
        assert errors[1] < 0.1 and errors[0] / errors[1] > 2.0**order * 0.75
    if method.startswith(("dpmpp", "unipc")):
        assert flow.stats.nfe <= 322


def test_samplers_refuse_a_path_whose_velocity_is_zero_at_the_start() -> None:
    """To divide by that velocity's factor would multiply the error of a learned field."""
    flow = FlowMatching(ExactVelocity("polynomial"), "polynomial", event_shape=2)
    for given in (flow, flow.with_path("cond_ot")):
        with pytest.raises(ValueError, match=r"'dpmpp_2m' predicts the data by the velocity.*Polynomial"):
            given.sample((3,), method="dpmpp_2m", steps=20)


class Quadratic(AffinePath):
    """A path of one's own, by the documented contract."""

    name = "quadratic"

    def alpha(self, t: Tensor) -> Tensor:
        return t * t

    def sigma(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return 2.0 * t

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def time(self, log_ratio: Tensor) -> Tensor:
        r = torch.exp(log_ratio)
        return 2.0 / (1.0 + torch.sqrt(1.0 + 4.0 / r))


def test_a_path_of_ones_own(x: Tensor) -> None:
    path = Quadratic()
    flow = FlowMatching(ExactVelocity(path), path, event_shape=2)
    assert path.start > 0.0 and PATHS["cond_ot"].start == 0.0
    torch.testing.assert_close(flow.log_prob(x, **TIGHT), data_density().log_prob(x), rtol=0, atol=1e-6)
    other = flow.with_path("cosine")
    torch.testing.assert_close(other.sample(x0=x, **TIGHT), (MEAN + STD * x).detach(), rtol=0, atol=1e-4)


def test_the_loss_after_with_path_is_that_of_the_training(x: Tensor) -> None:
    flow = FlowMatching(MLPField(2).double())
    losses = [f.loss(x, generator=torch.Generator().manual_seed(1)) for f in (flow, flow.with_path("cosine"))]
    assert torch.equal(losses[0], losses[1])


def test_generators_seed_everything(x: Tensor) -> None:
    base = torch.distributions.Independent(torch.distributions.Laplace(torch.zeros(2).double(), 1.0), 1)
    for given in (None, base):
        flow = FlowMatching(MLPField(2).double(), base=given, sigma=0.1)
        for call in (
            lambda g, flow=flow: flow.loss(x, generator=g),
            lambda g, flow=flow: flow.rsample((3,), generator=g),
        ):
            first, again, other = (call(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
            assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_a_coupling_returns_is_checked(x: Tensor) -> None:
    class Own(Coupling):
        def __init__(self, result: Any) -> None:
            self.result = result

        def pairs(self, x0: Any, x1: Any, context: Any = None, generator: Any = None) -> Any:
            return self.result

    for wrong in (torch.zeros(6, 1, dtype=torch.int64), torch.arange(1), torch.arange(6.0), (0, 1)):
        with pytest.raises(ValueError, match=r"Own.pairs must return one index for each x1"):
            FlowMatching(MLPField(2).double(), coupling=Own(wrong)).loss(x)
    assert torch.isfinite(FlowMatching(MLPField(2).double(), coupling=Own(torch.arange(6))).loss(x))


@pytest.mark.parametrize("gradient", [name for name in NAMES if name != "forward"])
def test_gradients_through_the_sampler(gradient: str) -> None:
    """To the noise, the field and the context, of the exact flow map."""
    field = ExactVelocity()
    flow = FlowMatching(field, event_shape=2)
    x0 = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    context = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, 2, dtype=torch.float64)
    options = TIGHT if gradient in APPROXIMATE or gradient == "reversible" else {"rtol": 1e-8, "atol": 1e-8}
    sample = flow.rsample(context=context, x0=x0, gradient=gradient, guidance=2.0, **options)
    (sample - target).square().sum().backward()
    exact = 2.0 * (MEAN + 2.0 * context + STD * x0 - target).detach()
    for found, expected in ((x0.grad, STD * exact), (context.grad, 2.0 * exact), (field.mean.grad, exact.sum(0))):
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_to_the_grid() -> None:
    flow, x0 = FlowMatching(ExactVelocity(), event_shape=2), torch.randn(5, 2, dtype=torch.float64)
    inner = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def error(times: Tensor) -> Tensor:
        grid = torch.cat([ends[:1], times, ends[1:]])
        return (flow.rsample(x0=x0, method="euler", grid=grid) - (MEAN + STD * x0)).square().sum()

    (found,) = torch.autograd.grad(error(inner), inner)
    step = torch.tensor([1e-6, 0.0], dtype=torch.float64)
    central = (error(inner.detach() + step) - error(inner.detach() - step)) / 2e-6
    assert found[0].item() == pytest.approx(central.item(), rel=1e-6)


def test_training_and_density() -> None:
    """A small network learns two points' worth of clusters; the density is that of the samples."""
    torch.manual_seed(0)
    field = MLPField(2, (64, 64), "silu")
    flow = FlowMatching(field, coupling="ot")
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)

    def draw(n: int) -> Tensor:
        return 0.4 * torch.randn(n, 2) + torch.where(torch.rand(n, 1) < 0.5, 2.0, -2.0)

    for _ in range(300):
        optimizer.zero_grad()
        flow(draw(128)).backward()
        optimizer.step()
    held_out = draw(2000)
    each = [data_like.log_prob(held_out) for data_like in (_cluster(2.0), _cluster(-2.0))]
    entropy = -(torch.logsumexp(torch.stack(each), 0) - math.log(2.0)).mean().item()
    with torch.no_grad():
        assert -flow.log_prob(held_out).mean().item() == pytest.approx(entropy, abs=0.25)
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(other.log_prob(held_out[:5]), flow.log_prob(held_out[:5]))


def _cluster(centre: float) -> torch.distributions.Distribution:
    return torch.distributions.Independent(torch.distributions.Normal(centre * torch.ones(2), 0.4), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "cond-ot"}, r"path='cond-ot' is unknown. Did you mean 'cond_ot'"),
        ({"coupling": "emd"}, "coupling='emd' is unknown"),
        ({"coupling": 3}, "coupling must be a name or a Coupling"),
        ({"coupling": "bridge"}, "coupling='bridge' needs the deviation of its noise"),
        ({"coupling": "bridge", "sigma": 1.0, "path": "vp"}, "coupling='bridge' has a path of its own"),
        ({"sigma": -1.0}, "sigma must be zero or positive"),
        ({"context_dropout": 1.0}, "context_dropout must be at least 0 and below 1"),
        ({"base": 1}, "base must be a torch.distributions.Distribution"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        FlowMatching(MLPField(2), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.loss(torch.zeros(3, 3)), r"x1 must end in the flow's event shape \(2,\)"),
        (lambda f: f.loss(torch.zeros(2)), r"x1 must be a batch \(B, \*event\)"),
        (lambda f: f.loss(torch.full((3, 2), torch.nan)), "x1 holds NaN or infinity"),
        (lambda f: f.loss(torch.zeros(3, 2).half()), "x1 must be float32 or float64"),
        (lambda f: f.loss(torch.zeros(3, 2), torch.zeros(3, 4)), r"x0 must be like x1, \(3, 2\)"),
        (lambda f: f.loss(torch.zeros(3, 2), torch.zeros(4, 2)), "x0 and x1 must have the same batch size"),
        (lambda f: f.sample((2,), method="euler"), "steps is required: method='euler' does not choose its steps"),
        (lambda f: f.sample((2,), method="dpm"), "method='dpm' is unknown"),
        (lambda f: f.sample((2,), steps=3, grid=[0.0, 1.0]), "steps and grid exclude each other"),
        (lambda f: f.sample((2,), steps=3, step=0.1), "steps and grid exclude step and controller"),
        (lambda f: f.sample((2,), method="euler", grid=[0.0, 0.7, 0.6, 1.0]), "grid must rise from 0 to 1"),
        (lambda f: f.sample((2,), method="euler", grid=[0.1, 1.0]), "grid must rise from 0 to 1"),
        (lambda f: f.sample((2,), x0=torch.zeros(2, 2)), "sample_shape=.* and x0 exclude each other"),
        (lambda f: f.sample((2,), steps=0), "steps must be at least 1"),
        (lambda f: f.sample((0,)), "sample_shape must be a number of samples, or a shape"),
        (lambda f: f.sample((2,), on_failure="return"), "FlowMatching.sample takes no on_failure="),
        (
            lambda f: f.loss(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)),
            "labels are given by name, as context=",
        ),
        (lambda f: CNF(MLPField(2), method="unipc_2"), "method='unipc_2' moves samples without their density"),
        (
            lambda f: CNF(MLPField(2, context=1)).log_prob(torch.zeros(4, 2), torch.zeros(4)),
            r"got shape \(4, 4\): one number for each sample is \(B, 1\)",
        ),
        (
            lambda f: CNF(MLPField(2)).log_prob(torch.zeros(40, 2).numpy()),
            r"x must be a tensor of samples; got ndarray",
        ),
        (lambda f: FlowMatching(MLPField(2), null_context=3), "null_context must be a tensor"),
        (lambda f: f.with_path("cosine").log_prob(torch.zeros(3, 2)), "a density needs no other path"),
        (lambda f: flow_grid(4, shift=0.0), "shift must be positive"),
        (lambda f: f.log_prob(torch.zeros(3, 2), method="dpmpp_2m"), "moves samples without their density"),
        (lambda f: f.log_prob(torch.zeros(3, 2), method=odenet.methods.UniPC()), "moves samples without their density"),
        (lambda f: f.log_prob(torch.zeros(3, 2), steps=4), "takes no steps="),
        (lambda f: f.log_prob(torch.zeros(3, 2), guidance=2.0), "takes no guidance="),
        (
            lambda f: f.rsample((2,), grid=torch.linspace(0, 1, 4).requires_grad_(), gradient="adjoint"),
            "gradient='adjoint' has no gradient to grid",
        ),
        (
            lambda f: FlowMatching(MLPField(2, context=3), null_context=torch.zeros(2)).velocity(
                0.5, torch.zeros(4, 2), torch.zeros(4, 3), 2.0
            ),
            r"null_context must have the shape of one context, \(3,\); got \(2,\)",
        ),
        (lambda f: FlowMatching(lambda t, x, c: x).loss(torch.zeros(3, 2)), "context is missing"),
        (lambda f: FlowMatching(lambda t, x, c: x, event_shape=2).sample((3,)), "context is missing"),
    ],
)
def test_wrong_calls(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(FlowMatching(MLPField(2)))


def test_a_field_of_the_wrong_width() -> None:
    with pytest.raises(ValueError, match=r"field must return the shape of x, \(3, 2\); it returned \(3, 1\)"):
        FlowMatching(lambda t, x: x[:, :1]).loss(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"the field is of dim=3, and event_shape=\(2,\)"):
        FlowMatching(MLPField(3), event_shape=2)


def test_guidance_with_one_context_for_all() -> None:
    """velocity takes the contexts that sample takes: v(null) + 3 (v(c) - v(null)) = 3 c - x."""
    flow, x = FlowMatching(lambda t, x, c: c.expand_as(x) - x, event_shape=2), torch.zeros(5, 2)
    for c in (torch.tensor([2.0]), torch.tensor([[2.0]]), torch.full((5, 1), 2.0)):
        assert torch.equal(flow.velocity(0.5, x, c, guidance=3.0), torch.full((5, 2), 6.0))
        assert torch.equal(flow.velocity(0.5, x[:1], c[:1], guidance=3.0), torch.full((1, 2), 6.0))
        sampled = flow.sample(x0=x, context=c, guidance=3.0, method="euler", steps=1)
        assert torch.equal(sampled, torch.full((5, 2), 6.0))
    labels = FlowMatching(lambda t, x, c: c[:, None] - x, event_shape=2, null_context=torch.tensor(0))
    for label in (torch.tensor(2), torch.tensor([2]), torch.full((5,), 2)):
        assert torch.equal(labels.velocity(0.5, x, label, guidance=3.0), torch.full((5, 2), 6.0))


@pytest.mark.parametrize(
    ("field", "shape", "message"),
    [
        (
            lambda t, x: -x * t,
            (4, 4),
            r"row \d of field\(t, x\) depends on t\[\d\]. t is of shape \(4,\).*t.view\(-1, 1\)",
        ),
        (lambda t, x: -x * t, (4, 1, 4, 4), r"t.view\(-1, 1, 1, 1\)"),
        (lambda t, x: x - x.mean(0), (6, 4), r"field mixes the samples: row \d of field\(t, x\) depends on x\[\d\]"),
    ],
    ids=["time", "time of images", "mean"],
)
def test_a_field_that_mixes_samples(field: Any, shape: tuple[int, ...], message: str) -> None:
    """It would be trained on another field than the one that samples follow, where t is ()."""
    with pytest.raises(ValueError, match=message):
        FlowMatching(field, event_shape=shape[1:]).loss(torch.randn(shape))


def test_batch_norm_may_train() -> None:
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
    flow = FlowMatching(odenet.nn.adapt(net, time="none"), event_shape=2)
    flow.loss(torch.randn(6, 2)).backward()
    assert int(net[1].num_batches_tracked) == 1  # pyright: ignore[reportArgumentType]  # no evaluation but that of the loss


def test_an_error_of_a_field_says_how_it_was_called() -> None:
    net = nn.Linear(3, 2)
    flow = FlowMatching(lambda t, x: net(torch.cat([x, t.repeat(len(x))[:, None]], 1)), event_shape=2)
    with pytest.raises(RuntimeError) as caught:
        flow.loss(torch.randn(6, 2))
    assert "FlowMatching called field(t, x) with t of shape (6,), a time for each sample" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (lambda n: torch.full((n,), n), "pairs must return indices of x0, from 0 to 5"),
        (lambda n: torch.full((n,), -1), "pairs must return indices of x0, from 0 to 5"),
        (lambda n: torch.ones(n, dtype=torch.bool), r"integers of shape \(6,\); got shape \(6,\) and torch.bool"),
        (lambda n: [0] * n, r"integers of shape \(6,\); got list"),
    ],
    ids=["high", "negative", "mask", "list"],
)
def test_wrong_pairs(pairs: Any, message: str) -> None:
    class Own(Coupling):
        def pairs(self, x0: Tensor, x1: Tensor, context: Any = None, generator: Any = None) -> Any:
            return pairs(len(x1))

    with pytest.raises(ValueError, match=f"Own.*{message}"):
        FlowMatching(MLPField(2), coupling=Own()).loss(torch.randn(6, 2))


def test_dtypes_of_base_and_context() -> None:
    """A base and a context are converted to the dtype of the samples."""
    normal = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(2).double(), torch.ones(2).double()), 1
    )
    for flow in (FlowMatching(MLPField(2, context=1), base=normal), CNF(MLPField(2, context=1), base=normal)):
        assert flow.sample((3,), torch.zeros(3, 1).double()).dtype == torch.float32
        assert flow.log_prob(torch.zeros(3, 2), torch.zeros(3, 1).double()).shape == (3,)


def test_stats_are_of_the_last_solve() -> None:
    flow = FlowMatching(MLPField(2), event_shape=2)
    flow.sample((3,), method="euler", steps=7)
    assert flow.stats is not None and flow.stats.nfe == 7
    flow.log_prob(torch.zeros(3, 2))
    assert flow.stats.nfe > 7


def test_a_batch_of_one() -> None:
    for coupling in ("independent", "ot", "sinkhorn"):
        assert torch.isfinite(FlowMatching(MLPField(2), coupling=coupling).loss(torch.zeros(1, 2)))  # type: ignore[arg-type]

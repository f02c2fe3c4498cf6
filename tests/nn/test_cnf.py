"""CNF: densities against closed forms, gradients against central differences, and what a distribution must do."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

import odenet
from gradient_settings import APPROXIMATE, NAMES
from odenet.nn import CNF, ConcatSquashField, MLPField
from slow_cases import slow_unless

TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
A = torch.tensor([[-0.5, 1.2], [0.3, 0.4]], dtype=torch.float64)
B = torch.tensor([0.1, -0.2], dtype=torch.float64)


class Affine(nn.Module):
    """dx/dt = A x + b + C context."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.b = nn.Parameter(A.clone()), nn.Parameter(B.clone())

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        dx = x @ self.A.T + self.b
        return dx if context is None else dx + context


def affine_density(context: Tensor | None = None) -> MultivariateNormal:
    """The density at time 1 of a standard normal at time 0."""
    flow = torch.linalg.matrix_exp(A)
    shift = B if context is None else B + context
    mean = (torch.linalg.solve(A, flow - torch.eye(2, dtype=torch.float64)) @ shift.unsqueeze(-1)).squeeze(-1)
    return MultivariateNormal(mean, flow @ flow.T)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "options", [{}, {"per_sample": True}, {"trace": "hutch++", "samples": 2}, {"method": "radauIIA5"}], ids=str
)
def test_affine_density(options: dict[str, Any], x: Tensor) -> None:
    flow = CNF(Affine(), **TIGHT, **options)
    torch.testing.assert_close(flow.log_prob(x), affine_density().log_prob(x), rtol=0, atol=1e-7)
    assert flow.stats.nfe is not None


def test_affine_density_with_the_default_tolerance(x: Tensor) -> None:
    torch.testing.assert_close(CNF(Affine()).log_prob(x), affine_density().log_prob(x), rtol=0, atol=1e-4)


def test_context(x: Tensor) -> None:
    flow = CNF(Affine(), **TIGHT)
    context = torch.randn(6, 2, dtype=torch.float64)
    torch.testing.assert_close(flow.log_prob(x, context), affine_density(context).log_prob(x), rtol=0, atol=1e-7)
    torch.testing.assert_close(flow.log_prob(x, context[0]), affine_density(context[0]).log_prob(x), rtol=0, atol=1e-7)
    alone = flow.log_prob(x[0], context[0])
    assert alone.shape == () and alone.item() == pytest.approx(flow.log_prob(x, context)[0].item(), abs=1e-7)
    samples = flow.sample((5000, 6), context)
    assert samples.shape == (5000, 6, 2)
    torch.testing.assert_close(samples.mean(0), affine_density(context).mean, rtol=0, atol=0.15)
    under = flow.distribution(context)
    assert under.batch_shape == (6,) and under.sample((3,)).shape == (3, 6, 2)
    torch.testing.assert_close(under.log_prob(x), flow.log_prob(x, context))


def test_labels_as_context() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.net = nn.Embedding(3, 4), MLPField(2, context=4)

        def forward(self, t: Tensor, x: Tensor, label: Tensor) -> Tensor:
            return self.net(t, x, self.embed(label))

    flow, x, label = CNF(Labelled(), event_shape=2), torch.randn(5, 2), torch.tensor([0, 2, 1, 1, 0])
    each = torch.stack([flow.log_prob(x[i], label[i]) for i in range(5)])
    torch.testing.assert_close(flow.log_prob(x, label), each, rtol=0, atol=1e-4)
    assert flow.sample((5,), label).shape == flow.distribution(label).sample().shape == (5, 2)


@pytest.mark.parametrize("field", [lambda: MLPField(2, (16, 16)), lambda: ConcatSquashField(2, (16,))])
def test_total_density_and_round_trip(field: Any) -> None:
    torch.manual_seed(3)
    flow = CNF(field().double(), rtol=1e-7, atol=1e-9)
    grid = torch.linspace(-7, 7, 201, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        total = flow.log_prob(points).exp().sum() * (grid[1] - grid[0]) ** 2
        x, log_prob = flow.sample_and_log_prob((50,))
        torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-6)
        z, log_det = flow.to_base(x)
        back, log_det_back = flow.to_data(z)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-6)
        torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-6)
    assert total.item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("gradient", NAMES)
def test_gradients_against_central_differences(gradient: str, trace: Any, x: Tensor) -> None:
    """To x, to weights, and to the context. The field is one that the library knows nothing of."""
    torch.manual_seed(0)

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, t: Tensor, x: Tensor, context: Tensor) -> Tensor:
            return self.two(torch.tanh(self.one(torch.cat([x, context], 1)))) * (1.0 + t)

    field, context = Field().double(), torch.randn(6, 2, dtype=torch.float64)
    options = {} if gradient in APPROXIMATE else {"method": "rk4", "step": 0.25}
    flow = CNF(field, trace=trace, gradient=gradient, **(options or TIGHT))  # type: ignore[arg-type]
    inputs = {"x": x.clone().requires_grad_(), "context": context.requires_grad_(), "weight": field.one.weight}

    def loss() -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return flow.log_prob(inputs["x"], inputs["context"], generator=generator).square().sum()

    loss().backward()
    for name, tensor in inputs.items():
        direction = torch.randn_like(tensor)
        values = []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                tensor.add_(direction, alpha=shift)
                values.append(loss().item())
        with torch.no_grad():
            tensor.add_(direction, alpha=1e-5)
        assert tensor.grad is not None
        exact = (tensor.grad * direction).sum().item()
        assert exact == pytest.approx((values[0] - values[1]) / 2e-5, rel=2e-5), name


def test_the_density_of_a_sample_is_differentiable_as_for_reverse_kl(x: Tensor) -> None:
    """d/dtheta of E[log q(x)] by reparametrised samples against central differences."""
    field = Affine()
    flow = CNF(field, event_shape=(2,), **TIGHT)

    def loss() -> Tensor:
        torch.manual_seed(0)
        samples, log_prob = flow.sample_and_log_prob((10,))
        return (log_prob + samples.square().sum(1)).mean()

    loss().backward()
    values = []
    for shift in (1e-5, -2e-5):
        with torch.no_grad():
            field.A[0, 1] += shift
            values.append(loss().item())
    assert field.A.grad is not None
    assert field.A.grad[0, 1].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_estimates_of_the_density_are_unbiased() -> None:
    torch.manual_seed(0)
    field, x = MLPField(4, (8,)).double(), torch.randn(1, 4, dtype=torch.float64)
    exact = CNF(field, **TIGHT).log_prob(x).item()
    for trace in ("hutchinson", "hutch++"):
        flow = CNF(field, trace=trace, rtol=1e-5, atol=1e-5)
        estimates = flow.log_prob(x.expand(4000, 4)).detach()
        assert abs(estimates.mean().item() - exact) < 4.0 * estimates.std().item() / 4000**0.5 + 1e-4
        several = CNF(field, trace=trace, samples=2, rtol=1e-5, atol=1e-5).log_prob(x.expand(4000, 4)).detach()
        assert several.std() < 0.85 * estimates.std()


def test_an_adapted_network_is_a_field(x: Tensor) -> None:
    """Its first evaluation, which finds the form of its time, comes before any derivative."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 2)

        def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
            return self.net(torch.cat([x, timesteps[:, None]], 1))

    network = Network().double()
    for trace in ("exact", "hutchinson"):
        flow = CNF(odenet.nn.adapt(network), trace=trace, event_shape=2, **TIGHT)
        assert flow.loss(x).requires_grad
    exact = CNF(lambda t, x: network(x, t.expand(len(x))), event_shape=2, **TIGHT)
    flow = CNF(odenet.nn.adapt(network), event_shape=2, **TIGHT)
    torch.testing.assert_close(flow.log_prob(x), exact.log_prob(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode(mode: Any, x: Tensor) -> None:
    """Of the library's field and of any other."""
    for field in (MLPField(2).double(), Affine()):
        expected = CNF(field, event_shape=2).log_prob(x).detach()
        flow = CNF(field, event_shape=2)
        with mode():
            torch.testing.assert_close(flow.log_prob(x), expected, rtol=0, atol=1e-6)
            assert flow.sample_and_log_prob((3,))[0].shape == (3, 2)


def test_one_sample_under_many_contexts(x: Tensor) -> None:
    flow, contexts = CNF(Affine(), event_shape=2, **TIGHT), torch.randn(5, 2, dtype=torch.float64)
    many = flow.log_prob(x[0], contexts)
    torch.testing.assert_close(many, flow.log_prob(x[:1].expand(5, 2), contexts))
    assert flow.sample((), contexts).shape == (5, 2) and flow.log_prob(x[:1], contexts).shape == (5,)


def test_regularisers_that_look_the_same_all_count(x: Tensor) -> None:
    class Constant(odenet.nn.flows.Regulariser):
        def __call__(self, field: Any, t: Tensor, y: Tensor, at: Any, args: Any) -> Tensor:
            return y.new_ones(len(y))

    flow = CNF(Affine(), regularisers={Constant(): 1.0, Constant(): 10.0})
    assert (flow.loss(x) + flow.log_prob(x).mean()).item() == pytest.approx(11.0, abs=1e-6)


def test_noise_follows_the_seed(x: Tensor) -> None:
    flow = CNF(Affine(), trace="hutchinson")
    draws = [flow.log_prob(x, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    torch.manual_seed(4)
    first = flow.log_prob(x)
    torch.manual_seed(4)
    assert torch.equal(flow.log_prob(x), first)


class TestAsADistribution:
    flow = CNF(Affine(), **TIGHT)

    def test_shapes(self, x: Tensor) -> None:
        flow = CNF(Affine(), event_shape=(2,), **TIGHT)
        assert isinstance(flow, Distribution) and isinstance(flow, nn.Module)
        assert flow.event_shape == (2,) and flow.batch_shape == () and flow.has_rsample
        assert flow.sample().shape == (2,) and flow.sample((3, 4)).shape == (3, 4, 2) and flow.sample(3).shape == (3, 2)
        assert not flow.sample((3,)).requires_grad and flow.rsample((3,)).requires_grad
        assert flow.log_prob(x[0]).shape == () and flow.log_prob(x.view(2, 3, 2)).shape == (2, 3)
        assert flow.expand((4,)).log_prob(x[0]).shape == (4,)
        assert bool(flow.support.check(x).all())

    def test_in_a_transformed_distribution(self, x: Tensor) -> None:
        flow = CNF(Affine(), event_shape=(2,), **TIGHT)
        scaled = TransformedDistribution(flow, [AffineTransform(1.0, 2.0, event_dim=1)])
        expected = affine_density().log_prob((x - 1.0) / 2.0) - 2.0 * math.log(2.0)
        torch.testing.assert_close(scaled.log_prob(x), expected, rtol=0, atol=1e-7)

    def test_as_a_transform(self, x: Tensor) -> None:
        flow = CNF(Affine(), event_shape=(2,), **TIGHT)
        transform = flow.transform()
        normal = Independent(Normal(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)), 1)
        pushed = TransformedDistribution(normal, [transform])
        torch.testing.assert_close(pushed.log_prob(x), affine_density().log_prob(x), rtol=0, atol=1e-7)
        torch.testing.assert_close(transform.inv(transform(x)), x, rtol=0, atol=1e-7)
        trace = torch.full((6,), A.trace().item(), dtype=torch.float64)
        torch.testing.assert_close(transform.log_abs_det_jacobian(x, transform(x)), trace, rtol=0, atol=1e-7)

    def test_another_base(self, x: Tensor) -> None:
        base = MultivariateNormal(torch.ones(2, dtype=torch.float64), 2.0 * torch.eye(2, dtype=torch.float64))
        flow = CNF(lambda t, x: torch.zeros_like(x), base=base)
        torch.testing.assert_close(flow.log_prob(x), base.log_prob(x))
        assert flow.sample((4,)).dtype == torch.float64

    def test_a_flow_is_a_base(self, x: Tensor) -> None:
        inner = CNF(Affine(), event_shape=(2,), **TIGHT)
        outer = CNF(Affine(), base=inner, **TIGHT)
        twice = torch.linalg.matrix_exp(2 * A)
        mean = torch.linalg.solve(A, twice - torch.eye(2, dtype=torch.float64)) @ B
        expected = MultivariateNormal(mean, twice @ twice.T).log_prob(x)
        torch.testing.assert_close(outer.log_prob(x), expected, rtol=0, atol=1e-6)
        assert len(list(outer.parameters())) == 4

    def test_portable(self, x: Tensor) -> None:
        flow = CNF([MLPField(2), ConcatSquashField(2)], norm="act", regularisers=["kinetic"]).double()
        value = flow.log_prob(x)
        for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
            assert torch.equal(other.log_prob(x), value)
            assert {id(p) for p in other.parameters()}.isdisjoint({id(p) for p in flow.parameters()})
        fresh = CNF([MLPField(2), ConcatSquashField(2)], norm="act").double()
        fresh.load_state_dict(flow.state_dict())
        assert torch.equal(fresh.log_prob(x), value)


@pytest.mark.parametrize("norm", ["batch", "act"])
def test_stacks(norm: Any) -> None:
    torch.manual_seed(0)
    x = 5.0 + 3.0 * torch.randn(200, 2, dtype=torch.float64)
    flow = CNF([MLPField(2, (8,)), MLPField(2, (8,))], norm=norm, **TIGHT).double()
    for _ in range(60 if norm == "batch" else 1):
        flow.log_prob(x)
    z, _ = flow.to_base(x)
    assert z.mean().abs() < 0.5 and (z.std() - 1.0).abs() < 0.5
    assert len(flow.stats) == 2
    flow.eval()
    samples, log_prob = flow.sample_and_log_prob((20,))
    torch.testing.assert_close(flow.log_prob(samples), log_prob, rtol=0, atol=1e-6)
    z, log_det = flow.to_base(samples[:1])
    exact = torch.autograd.functional.jacobian(lambda v: flow.to_base(v)[0], samples[0])
    assert log_det.item() == pytest.approx(exact.det().abs().log().item(), abs=1e-6)


def test_regularisers_against_quadrature(x: Tensor) -> None:
    """Integrals along the exact path of an affine field, by many points of it."""
    flow = CNF(Affine(), regularisers=["kinetic", "jacobian", "taylor", "transport"], **TIGHT)
    log_prob, penalties = flow.log_prob_and_penalties(x)
    torch.testing.assert_close(log_prob, flow.log_prob(x), rtol=0, atol=1e-7)
    ts = torch.linspace(1.0, 0.0, 2001, dtype=torch.float64)
    path = odenet.solve(Affine(), x, ts, **TIGHT).ys.detach()
    speed = path @ A.T + B
    integral = {
        "kinetic": torch.trapezoid(speed.square().sum(2), ts.flip(0), dim=0),
        "jacobian": A.square().sum().expand(6),
        "taylor": torch.trapezoid((speed @ A.T).square().sum(2), ts.flip(0), dim=0),
    }
    integral["transport"] = 0.5 * integral["kinetic"]
    for name, expected in integral.items():
        torch.testing.assert_close(penalties[name], expected, rtol=1e-5, atol=1e-6)


def test_higher_taylor_derivative() -> None:
    """dx/dt = x^2 sin(t): the third derivative against that of the formulas."""
    regulariser = odenet.nn.flows.regularisers.TaylorDerivative(3)
    t = torch.tensor(0.7, dtype=torch.float64)
    x = torch.randn(5, 1, dtype=torch.float64)
    s, c = torch.sin(t), torch.cos(t)
    first = x**2 * s
    second = 2 * x * first * s + x**2 * c
    third = 2 * first**2 * s + 2 * x * second * s + 4 * x * first * c - x**2 * s
    found = regulariser(lambda t, x: x**2 * torch.sin(t), t, x, None, ())  # type: ignore[arg-type]
    torch.testing.assert_close(found, third.square().squeeze(1))


@pytest.mark.parametrize("per_sample", [False, True])
def test_regularisers_do_not_change_the_steps(per_sample: bool, x: Tensor) -> None:
    field = MLPField(2).double()
    plain = CNF(field, per_sample=per_sample)
    regularised = CNF(field, per_sample=per_sample, regularisers={"kinetic": 0.1, "jacobian": 0.2})
    a, (b, penalties) = plain.log_prob(x), regularised.log_prob_and_penalties(x)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert bool((torch.as_tensor(plain.stats.nfe) == torch.as_tensor(regularised.stats.nfe)).all())
    expected = -b.mean() + 0.1 * penalties["kinetic"].mean() + 0.2 * penalties["jacobian"].mean()
    torch.testing.assert_close(regularised.loss(x), expected)
    assert all(p.shape == (6,) for p in penalties.values())


def test_steer_moves_the_end_in_training_alone(x: Tensor) -> None:
    flow = CNF(Affine(), steer=0.5, **TIGHT)
    torch.manual_seed(0)
    assert not torch.allclose(flow.log_prob(x), flow.log_prob(x), atol=1e-3)
    z, _ = flow.to_base(x)  # a map is not moved
    torch.testing.assert_close(flow.to_data(z)[0], x, rtol=0, atol=1e-7)
    seeded = [flow.log_prob(x, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*seeded)
    flow.eval()
    torch.testing.assert_close(flow.log_prob(x), affine_density().log_prob(x), rtol=0, atol=1e-7)


def test_torch_func(x: Tensor) -> None:
    """Per-sample gradients, a Hessian, and weights as arguments."""
    flow = CNF(MLPField(2, (8,)).double(), method="rk4", step=0.1)
    score = torch.func.vmap(torch.func.grad(lambda v: flow.log_prob(v)))(x)
    moved = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(flow.log_prob(moved).sum(), moved)
    torch.testing.assert_close(score, expected)
    weights = {k: v.detach() for k, v in flow.named_parameters()}
    gradients = torch.func.grad(lambda w: torch.func.functional_call(flow, w, (x,)).sum())(weights)
    flow.log_prob(x).sum().backward()
    for name, parameter in flow.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
    exact = CNF(MLPField(2, (8,)).double(), method="rk4", step=0.1, gradient="backprop")
    hessian = torch.func.hessian(lambda v: exact.log_prob(v))(x[0])
    torch.testing.assert_close(hessian, hessian.T)


@pytest.mark.parametrize("trace", slow_unless(["exact", "hutchinson", "hutch++"], "exact"))
@pytest.mark.parametrize("own", slow_unless([True, False], True), ids=["library's field", "any field"])
def test_compiled(trace: Any, own: bool) -> None:
    torch.manual_seed(0)
    field: Any = MLPField(2, (16, 16))
    if not own:
        net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

        class Field(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def forward(self, t: Tensor, x: Tensor) -> Tensor:
                return self.net(x) * (1.0 + t)

        field = Field()
    results = []
    x = torch.randn(20, 2)
    for compile in (False, True):
        flow = CNF(field, trace=trace, compile=compile, method="bosh3", rtol=1e-5, atol=1e-5)
        flow.zero_grad()
        value = flow.log_prob(x, generator=torch.Generator().manual_seed(2))
        value.mean().backward()
        results.append((value.detach(), [p.grad.clone() for p in flow.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[1], results[0], rtol=2e-4, atol=2e-5)


class TestWrongInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"trace": "hutchinsen"}, r"trace='hutchinsen' is unknown. Did you mean 'hutchinson'"),
            ({"samples": 0, "trace": "hutchinson"}, "samples must be at least 1"),
            ({"samples": 4}, "samples=4 is of an estimate: trace='exact' has none"),
            ({"regularisers": ["kinetik"]}, r"regularisers='kinetik' is unknown. Did you mean 'kinetic'"),
            ({"regularisers": "kinetic"}, "regularisers must be names"),
            ({"regularisers": {"kinetic": -1.0}}, "weight of 'kinetic' in regularisers must be zero or positive"),
            (
                {"base": Normal(torch.zeros(2), torch.ones(2))},
                r"wrap it, as in torch.distributions.Independent\(base, 1\)",
            ),
            ({"base": "normal"}, "base must be a torch.distributions.Distribution"),
            ({"base": Normal}, "base must be a torch.distributions.Distribution"),
            ({"steps": 4}, r"CNF takes no steps=: give step=0.1, say, with a method of constant steps"),
            ({"guidance": 2.0}, "CNF takes no guidance=: guided samples have another density"),
            ({"base": MultivariateNormal(torch.zeros(3), torch.eye(3))}, r"field is of dim=2.*events of shape \(3,\)"),
            ({"ts": (0.0, 0.0)}, "ts must be two different times"),
            ({"norm": "layer"}, "norm='layer' is unknown"),
            ({"steer": 2.0}, "steer must be zero or positive, and less than the length of ts"),
            ({"event_shape": ()}, "event_shape must be the shape of one sample"),
            ({"event": odenet.Event(lambda t, y: t)}, "CNF takes no event="),
            ({"method": "tsit6"}, "method='tsit6' is unknown"),
            ({"tolerance": 1e-3}, "tolerance"),
            ({"event_shape": 3}, r"the field is of dim=2, and event_shape=\(3,\)"),
            ({"regularisers": {int: 1.0}}, "regularisers must be names or Regulariser objects"),
        ],
        ids=str,
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises((TypeError, ValueError), match=message):
            CNF(MLPField(2), **options)

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), r"x holds NaN or infinity at index \(1, 0\)"),
            (torch.zeros(3, 3), r"x must end in the flow's event shape \(2,\); got shape \(3, 3\)"),
            (torch.zeros(3, 2, dtype=torch.float16), "x must be float32 or float64.*float16"),
            (torch.zeros(3, 2, dtype=torch.int64), r"x must be float32 or float64.*use x.float\(\)"),
            (torch.zeros(3, 2, dtype=torch.float64), "x is torch.float64 and the field's parameters are torch.float32"),
            (torch.zeros(0, 2), "x has no samples"),
            ([[0.0, 1.0]], "x must be a tensor of samples"),
        ],
        ids=str,
    )
    def test_samples(self, x: Any, message: str) -> None:
        with pytest.raises((TypeError, ValueError), match=message):
            CNF(MLPField(2)).log_prob(x)

    def test_contexts(self) -> None:
        flow = CNF(MLPField(2, context=3))
        with pytest.raises(ValueError, match="MLPField takes a context of 3 numbers, and it got none"):
            flow.log_prob(torch.zeros(4, 2))
        with pytest.raises(ValueError, match=r"context of shape \(5, 3\) does not fit samples of batch shape \(4,\)"):
            flow.log_prob(torch.zeros(4, 2), torch.zeros(5, 3))
        with pytest.raises(ValueError, match="context must have 3 numbers in its last axis"):
            flow.log_prob(torch.zeros(4, 2), torch.zeros(4, 2))
        with pytest.raises(ValueError, match="MLPField takes no context, and it got one"):
            CNF(MLPField(2)).log_prob(torch.zeros(4, 2), torch.zeros(4, 2))

    @pytest.mark.parametrize("shape", [2.5, "a", (-1,), (0,), 0], ids=str)
    def test_sample_shapes(self, shape: Any) -> None:
        with pytest.raises(ValueError, match="sample_shape must be a number of samples, or a shape such as"):
            CNF(MLPField(2)).sample(shape)

    def test_fields(self) -> None:
        for field, message in (
            (lambda t, x: x[:, :1], r"field must return the shape of x, \(3, 2\); it returned shape \(3, 1\)"),
            (lambda t, x: None, "field must return the shape of x.*NoneType"),
            (torch.no_grad()(lambda t, x: 2 * x), "field changes with x, and autograd sees no derivative"),
            (lambda t, x: 2 * x.detach(), "field changes with x, and autograd sees no derivative"),
        ):
            with pytest.raises(ValueError, match=message):
                CNF(field, event_shape=2).log_prob(torch.zeros(3, 2))
        assert CNF(lambda t, x: torch.ones_like(x), event_shape=2).log_prob(torch.zeros(3, 2)).shape == (3,)

    @pytest.mark.parametrize(
        ("field", "message"),
        [
            (nn.Sequential(nn.Linear(2, 2)), r"Sequential cannot be called so: give odenet.nn.adapt\(sequential\)"),
            (lambda x, t: x, r"takes the state before the time, by its names: give odenet.nn.adapt"),
            (lambda t: t, "cannot be called so"),
            (MLPField, "field must be an instance; got the class"),
            (3, r"field must be field\(t, x\) or field\(t, x, context\)|must be callable"),
        ],
        ids=["sequential", "order", "one", "class", "number"],
    )
    def test_signatures(self, field: Any, message: str) -> None:
        for kind in (CNF, odenet.nn.FlowMatching):
            with pytest.raises(TypeError, match=message):
                kind(field, event_shape=2)

    def test_missing_and_needless_contexts(self) -> None:
        conditional, plain = CNF(lambda t, x, c: x * c, event_shape=2), CNF(lambda t, x: x, event_shape=2)
        x, context = torch.zeros(3, 2), torch.ones(3, 1)
        for call in (lambda f, *c: f.log_prob(x, *c), lambda f, *c: f.sample((3,), *c)):
            with pytest.raises(TypeError, match="context is missing: field is called as"):
                call(conditional)
            with pytest.raises(TypeError, match="context was given, and field takes none"):
                call(plain, context)
            assert len(call(conditional, context)) == 3

    @pytest.mark.parametrize("per_sample", [False, True])
    def test_a_field_that_mixes_samples(self, per_sample: bool) -> None:
        """Its trace would be that of another map: a wrong density."""
        norm = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        mean, x = (lambda t, x: x - x.mean(0)), torch.randn(5, 2)
        options: dict[str, Any] = {"event_shape": 2, "per_sample": per_sample}
        with pytest.raises(ValueError, match=r"field mixes the samples: row \d of field\(t, x\) depends on x\[\d\]"):
            CNF(mean, **options).log_prob(x)
        flow = CNF(odenet.nn.adapt(norm, time="none"), **options)
        with pytest.raises(ValueError, match=r"BatchNorm in training \(.*1\) takes its mean over the batch"):
            flow.log_prob(x)
        flow.eval()
        flow.log_prob(x)
        flow.train()
        with pytest.raises(ValueError, match="BatchNorm in training"):
            flow.log_prob(x)
        one = CNF(mean, **options)
        one.log_prob(x[:1])
        with pytest.raises(ValueError, match="field mixes the samples"):
            one.log_prob(x)

    @pytest.mark.parametrize(
        ("found", "message"),
        [
            (lambda x: x, "with_trace of the field must return dx/dt and the trace; it returned Tensor"),
            (
                lambda x: (x[:, :1], x[:, 0]),
                r"must return dx/dt of the shape of x, \(3, 2\); it returned shape \(3, 1\)",
            ),
            (lambda x: (x, torch.ones(())), r"must return a trace for each sample, \(3,\); got shape \(\)"),
        ],
        ids=["one", "width", "number"],
    )
    def test_a_wrong_closed_form(self, found: Any, message: str) -> None:
        class Field(nn.Module):
            def forward(self, t: Tensor, x: Tensor) -> Tensor:
                return x

            def with_trace(self, t: Tensor, x: Tensor) -> Any:
                return found(x)

        with pytest.raises(ValueError, match=message):
            CNF(Field(), event_shape=2).log_prob(torch.zeros(3, 2))

    def test_a_regulariser_of_the_wrong_shape(self) -> None:
        class Speed(odenet.nn.flows.Regulariser):
            def __call__(self, field: Any, t: Tensor, y: Tensor, at: Any, args: Any) -> Tensor:
                return at.dy

        with pytest.raises(ValueError, match=r"regulariser Speed\(\) must return one number for each sample, \(3,\)"):
            CNF(MLPField(2), regularisers={Speed(): 1.0}).loss(torch.zeros(3, 2))

    def test_bases_that_are_called(self) -> None:
        def normal(loc: Tensor) -> Independent:
            return Independent(Normal(loc, torch.ones_like(loc)), 1)

        x, context, origin = torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(2, dtype=torch.float64)
        plain, given = CNF(MLPField(2).double(), base=lambda: normal(origin)), CNF(MLPField(2, context=2), base=normal)
        found = plain.log_prob(x.double())
        assert torch.equal(found, CNF(plain.field, base=normal(origin)).log_prob(x.double()))
        torch.testing.assert_close(found, CNF(plain.field).log_prob(x.double()), rtol=1e-14, atol=0.0)
        assert given.sample((3,), context).shape == (3, 2)
        with pytest.raises(TypeError, match=r"base is called with the context, as base.*takes none"):
            CNF(MLPField(2, context=2), base=lambda: normal(torch.zeros(2))).log_prob(x, context)
        with pytest.raises(TypeError, match=r"base is called as base.*and needs one: give context="):
            CNF(MLPField(2), base=normal).log_prob(x)
        with pytest.raises(TypeError, match=r"base must give a torch.distributions.Distribution when it is called"):
            CNF(MLPField(2), base=lambda: 3).log_prob(x)

    def test_a_base_that_needs_a_gradient_and_has_no_rsample(self) -> None:
        class Mixture(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.means = nn.Parameter(torch.tensor([[2.0, 0.0], [-1.0, 1.0]]))

            def forward(self) -> Distribution:
                parts = Independent(Normal(self.means, torch.ones(2, 2)), 1)
                return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(2)), parts)

        flow = CNF(MLPField(2), base=Mixture())
        flow.log_prob(torch.zeros(3, 2)).sum().backward()
        assert flow.base.means.grad is not None and flow.sample((4,)).shape == (4, 2)
        for call in (flow.rsample, flow.sample_and_log_prob):
            with pytest.raises(ValueError, match="base needs a gradient, and a MixtureSameFamily has no rsample"):
                call((4,))
        fixed = CNF(MLPField(2), base=Mixture().requires_grad_(False)())
        assert not fixed.has_rsample and fixed.rsample((4,)).requires_grad

    def test_unknown_event_shape(self) -> None:
        flow = CNF(lambda t, x: -x)
        with pytest.raises(ValueError, match="event_shape is unknown before the flow has seen data"):
            flow.sample((2,))
        with pytest.raises(ValueError, match=r"event_shape is unknown: x of shape .* is no batch of vectors"):
            flow.log_prob(torch.zeros(2, 3, 4))
        flow.log_prob(torch.zeros(2, 3))
        assert flow.sample((5,)).shape == (5, 3)

    def test_a_batch_of_one(self) -> None:
        flow = CNF(MLPField(2), norm="batch", per_sample=True)
        assert flow.log_prob(torch.zeros(1, 2)).shape == (1,) and torch.isfinite(flow.log_prob(torch.zeros(1, 2)))

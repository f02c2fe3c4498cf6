"""The settings of gradients: checkpoints, memory, coupling, interpolation; and their error messages."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import odenet
from odenet.gradients import backward_pass
from odenet.gradients.checkpoint_schedule import optimal_recomputation
from odenet.gradients.memory_budget import parse_bytes
from odenet.gradients.state_store import StepGraphs
from odenet.methods import METHODS, ExplicitRK
from odenet.methods.reversible_method import ReversibleMethod

D = torch.float64

EXPLICIT = sorted(name for name, method in METHODS.items() if isinstance(method, ExplicitRK))


def wave(t: Tensor, y: Tensor) -> Tensor:
    return torch.sin(3 * y) * torch.cos(t)


def wave_of_rows(t: Tensor, y: Tensor) -> Tensor:
    return torch.sin(3 * y) * torch.cos(t)[..., None]


def gradient_of(gradient: Any, **options: Any) -> tuple[Tensor, odenet.Solution]:
    y0 = torch.tensor([0.4, -0.3], dtype=D, requires_grad=True)
    sol = odenet.solve(wave, y0, [0.0, 1.0], gradient=gradient, **options)
    return torch.autograd.grad(sol.y1.square().sum(), y0)[0], sol


@pytest.mark.parametrize("slots", [1, 2, 5, 12, 60])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_recomputation_is_near_the_optimum(slots: int, steps: int) -> None:
    _, sol = gradient_of(odenet.Discrete(checkpoints=slots), method="rk4", step=1 / steps)
    again = sol.stats.backward_nfe / 4 - steps
    best = optimal_recomputation(steps, slots)
    assert sol.stats.checkpoints == slots
    assert best <= again <= (1.06 if slots > 4 else 1.25) * best


def test_steps_with_stored_graphs_are_not_replayed() -> None:
    _, sol = gradient_of("discrete")
    assert sol.stats.accepted > 3 and sol.stats.backward_nfe == 0


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", ["discrete", odenet.Discrete(checkpoints=2), "backprop", "forward"], ids=str)
def test_dense_solution_of_a_solve_of_zero_length(gradient: Any, per_sample: bool) -> None:
    y0 = torch.tensor([[0.4], [-0.3]], dtype=D, requires_grad=True)
    sol = odenet.solve(wave_of_rows, y0, [0.5, 0.5], gradient=gradient, dense=True, per_sample=per_sample)
    value = sol(torch.full((2, 1), 0.5, dtype=D) if per_sample else 0.5)
    torch.testing.assert_close(value.reshape(2, 1), y0)
    (mine,) = torch.autograd.grad((2 * value).sum(), y0)
    assert torch.equal(mine, torch.full_like(y0, 2.0))


def test_checkpoints_never_exceed_their_number() -> None:
    from odenet.gradients.state_store import Checkpoints

    problem = SimpleNamespace(f=SimpleNamespace(random=False))
    for slots in (1, 3, 8):
        states = Checkpoints(slots, stores_carry=False)
        y = (torch.zeros(1),)
        for n in range(100):
            states.store(n, SimpleNamespace(y=y, carry=(), problem=problem))  # type: ignore[arg-type]
            assert len(states.stored) <= slots
        for n in reversed(range(100)):
            states.step_start(n, lambda k, start: start, lambda k, y: ())
            assert len(states.stored) <= slots


def test_memory_chooses_checkpoints() -> None:
    y0 = torch.zeros(1000, dtype=D, requires_grad=True)
    counts = []
    for memory in (16_000, "300kB", "1 MiB"):
        sol = odenet.solve(wave, y0, [0.0, 1.0], method="rk4", step=0.1, gradient=odenet.Discrete(memory=memory))
        counts.append(sol.stats.checkpoints)
        assert sol.stats.checkpoints * 8000 <= parse_bytes(memory)
    assert counts[0] == 1 < counts[1] < counts[2]
    with pytest.raises(ValueError, match=r"memory of 100 bytes holds no state of 8000 bytes.*reversible"):
        odenet.solve(wave, y0, [0.0, 1.0], gradient=odenet.Discrete(memory=100))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", ["discrete", "reversible"])
@pytest.mark.parametrize("name", EXPLICIT)
def test_stages_give_what_one_graph_gives(
    name: str, gradient: str, per_sample: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph per evaluation or per step: the same gradient, from as many evaluations."""
    calls = []
    pull = ExplicitRK._vjp_of_sums
    monkeypatch.setattr(ExplicitRK, "_vjp_of_sums", lambda *given: calls.append(1) or pull(*given))
    how = odenet.Discrete(checkpoints=3) if gradient == "discrete" else gradient
    adaptive = METHODS[name].error_order is not None
    options: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4} if adaptive else {"step": 0.02}

    def found(limit: int) -> tuple[Tensor, ...]:
        monkeypatch.setattr(backward_pass, "STAGEWISE_BYTES", limit)
        generator = torch.Generator().manual_seed(0)
        y0 = [torch.randn(2, 3, dtype=d, generator=generator).requires_grad_() for d in (D, torch.complex128)]
        A = torch.randn(3, 3, dtype=D, generator=generator).requires_grad_()
        sol = odenet.solve(
            lambda t, y: [torch.sin(y[0] @ A) - y[1].real, 1j * y[1] + y[0]], y0, [0.0, 0.4, 1.0], method=name,
            gradient=how, per_sample=per_sample, **options,
        )  # fmt: skip
        loss = sol.y1[0].square().sum() + sol.ys[1].abs().square().sum()
        grads = torch.autograd.grad(loss, (*y0, A))
        return (*grads, torch.as_tensor(sol.stats.backward_nfe))

    whole = found(2**62)
    assert not calls
    for a, b in zip(found(0), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    assert calls


def test_units_of_memory() -> None:
    assert [parse_bytes(x) for x in (7, "7", "2kB", "2 KiB", "1.5MiB", "1g")] == [7, 7, 2000, 2048, 1572864, 2**30]


WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda: odenet.Discrete(checkpoints=0), ValueError, "checkpoints must be at least 1.*0"),
    (lambda: odenet.Discrete(checkpoints=2.5), TypeError, "checkpoints must be an int.*2.5"),  # type: ignore[arg-type]
    (lambda: odenet.Discrete(checkpoints=2, memory=9), ValueError, "exclude each other"),
    (lambda: odenet.Discrete(memory="many"), ValueError, "memory must be bytes.*'many'"),
    (lambda: odenet.Discrete(memory=-1), ValueError, "memory must be positive"),
    (lambda: odenet.Discrete(memory=[1]), TypeError, "memory must be bytes"),  # type: ignore[arg-type]
    (lambda: odenet.Reversible(coupling=0.0), ValueError, r"coupling must lie in \(0, 1\].*0.0"),
    (lambda: odenet.Reversible(coupling=1.5), ValueError, "coupling.*1.5"),
    (lambda: odenet.GaussAdjoint(interpolate="dens"), ValueError, "Did you mean 'dense'"),
    (lambda: odenet.GaussAdjoint(checkpoints=1), ValueError, "checkpoints must be at least 2; got 1"),
    (lambda: odenet.Adjoint(rtol=-1.0), ValueError, "rtol of the backward solve.*-1.0"),
    (lambda: odenet.Adjoint(atol=-1.0), ValueError, "^atol of the backward solve.*-1.0"),
    (lambda: odenet.Adjoint(max_steps=0), ValueError, "max_steps of the backward solve"),
    (lambda: gradient_of(odenet.Adjoint(method="rk4")), ValueError, "adjoint.*rk4.*no error estimate"),
]


@pytest.mark.parametrize(("call", "kind", "match"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_wrong_settings(call: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        call()


@pytest.mark.parametrize("gradient", [odenet.Adjoint(max_steps=3), odenet.GaussAdjoint(max_steps=3)])
def test_failure_of_the_backward_solve(gradient: Any) -> None:
    with pytest.raises(odenet.MaxStepsError, match=r"backward solve.*t=.*discrete.*reversible") as told:
        gradient_of(gradient, rtol=1e-10, atol=1e-10)
    assert ("or 'gauss'" in str(told.value)) == (gradient.name != "gauss")  # no cure is what has just failed


def test_scale_of_the_loss_scales_the_adjoint() -> None:
    """A loss of a millionth of the size has a gradient of a millionth, to the same digits."""
    for name in ("adjoint", "gauss"):
        y0 = torch.tensor([0.4, -0.3], dtype=D, requires_grad=True)
        sol = odenet.solve(wave, y0, [0.0, 1.0], gradient=name, rtol=1e-4, atol=1e-4)
        big, small = (torch.autograd.grad(s * sol.y1.sum(), y0, retain_graph=True)[0] for s in (1.0, 1e-6))
        torch.testing.assert_close(small * 1e6, big, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("name", EXPLICIT)
def test_order_of_the_reversible_method(name: str) -> None:
    base = METHODS[name]
    y0 = torch.tensor([0.3, 1.2, -0.7], dtype=D)
    exact = odenet.solve(wave, y0, [0.0, 1.0], method="dopri8", rtol=1e-13, atol=1e-13).y1
    steps, errors = (0.1, 0.05, 0.025, 0.0125), []
    for step in steps:
        sol = odenet.solve(wave, y0, [0.0, 1.0], method=ReversibleMethod(base), step=step)
        errors.append(float((sol.y1 - exact).abs().max()))
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope > base.order - 0.35 or errors[-1] < 1e-13, errors


def test_stability_of_the_reversible_method() -> None:
    """Constant steps on y' = -a y: y and z stay close for a step below -log(coupling) / a, and separate above."""
    for coupling in (0.99, 0.9, 0.7):
        edge = -math.log(coupling)
        sizes = []
        for factor in (0.8, 2.0):
            sol = odenet.solve(
                lambda t, y: -y, torch.ones(1, dtype=D), [0.0, 2000 * factor * edge],
                method=ReversibleMethod(METHODS["rk4"], coupling), step=factor * edge,
            )  # fmt: skip
            sizes.append(float(sol.y1.abs()))
        assert sizes[0] < 1e-3 < sizes[1], (coupling, sizes)


@pytest.mark.slow
def test_lost_digits_warn_and_the_gradient_is_right() -> None:
    """4000 steps at a coupling of 0.99 lose all digits of float64; the steps are then replayed instead of undone."""
    options: dict[str, Any] = {"method": "midpoint", "step": 1 / 4000}
    with pytest.warns(UserWarning, match=r"could not undo.*reconstructed y0 is off"):
        mine, _ = gradient_of(odenet.Reversible(0.99), **options)
    exact, _ = gradient_of("backprop", **options | {"method": ReversibleMethod(METHODS["midpoint"], 0.99)})
    torch.testing.assert_close(mine, exact, rtol=1e-12, atol=0.0)
    undone, _ = gradient_of(odenet.Reversible(1.0), **options)  # no factor, no loss
    torch.testing.assert_close(undone, exact, rtol=1e-4, atol=0.0)


def test_a_contracting_ode_warns() -> None:
    with pytest.warns(UserWarning, match="not accurate.*coupling"):
        odenet.solve(
            lambda t, y: -10 * y, torch.ones(1, dtype=D), [0.0, 2.0], gradient=odenet.Reversible(), rtol=1e-6, atol=1e-6
        )


def test_float32_is_undone_in_float64() -> None:
    """1000 steps in float32 at the default coupling, without a warning."""
    y0 = torch.tensor([0.4, -0.3], requires_grad=True)
    sol = odenet.solve(wave, y0, [0.0, 1.0], gradient="reversible", method="rk4", step=1e-3)
    (mine,) = torch.autograd.grad(sol.y1.square().sum(), y0)
    exact, _ = gradient_of("backprop", method="rk4", step=1e-2)
    torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=0.0)


def test_an_input_computed_from_another_counts_once() -> None:
    """Second derivatives by two tensors, one computed from the other, as args or captured."""
    w = torch.tensor(0.7, dtype=D, requires_grad=True)
    y0 = torch.ones(1, dtype=D)
    for gradient in ("discrete", "adjoint", "reversible"):
        v = w * w
        sol = odenet.solve(
            lambda t, y, a, b: -a * b * y, y0, [0.0, 1.0], args=(w, v), gradient=gradient, rtol=1e-10, atol=1e-10
        )
        (first,) = torch.autograd.grad(sol.y1.sum(), w, create_graph=True)
        (second,) = torch.autograd.grad(first, w)
        true = torch.exp(-(w**3))
        (one,) = torch.autograd.grad(true, w, create_graph=True)
        (two,) = torch.autograd.grad(one, w)
        torch.testing.assert_close(torch.stack([first, second]), torch.stack([one, two]), rtol=1e-6, atol=1e-8)
    v = w * w
    sol = odenet.solve(lambda t, y: -w * v * y, y0, [0.0, 1.0], rtol=1e-10, atol=1e-10)
    (first,) = torch.autograd.grad(sol.y1.sum(), w, create_graph=True)
    (second,) = torch.autograd.grad(first, w)
    torch.testing.assert_close(torch.stack([first, second]), torch.stack([one, two]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("steps", "chains"), [(20, [20]), (100, [36, 64])])
def test_steps_whose_graphs_are_stored_are_differentiated_in_chains(
    steps: int, chains: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call of autograd for each 64 steps of a joint solve."""
    popped: list[int] = []
    pop_chain = StepGraphs.pop_chain

    def counted(self: StepGraphs, n: int) -> Any:
        chain = pop_chain(self, n)
        popped.append(len(chain))
        return chain

    monkeypatch.setattr(StepGraphs, "pop_chain", counted)
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    odenet.solve(lambda t, y: -y, y0, [0.0, 1.0], method="rk4", step=1.0 / steps).y1.sum().backward()
    assert popped == chains
    torch.testing.assert_close(y0.grad, torch.full_like(y0, math.exp(-1)), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("method", "restarts"), [("rk4", 0), ("tsit5", 3)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_jump_costs_the_backward_pass_one_evaluation(method: str, restarts: int, per_sample: bool) -> None:
    """That of the slope behind it, of a method that keeps slopes; steps that end at jumps have graphs like others."""
    y0 = torch.tensor([[1.0], [2.0]], dtype=D, requires_grad=True)
    jump_ts = torch.tensor([0.25, 0.5, 0.75], dtype=D)
    rates = torch.tensor([0.3, -0.8, 0.5, 1.1], dtype=D, requires_grad=True)
    lengths = torch.full((4,), 0.25, dtype=D)

    def f(t: Tensor, y: Tensor, rates: Tensor) -> Tensor:
        rate = rates[(t[..., None] >= jump_ts).sum(-1)]
        return (rate[:, None] if per_sample else rate) * y

    sol = odenet.solve(
        f, y0, [0.0, 1.0], args=(rates,), method=method, per_sample=per_sample,
        controller=odenet.ConstantStep(0.05, jump_ts=jump_ts),
    )  # fmt: skip
    mine = torch.autograd.grad(sol.y1.sum(), (y0, rates))
    exact = torch.autograd.grad((y0 * torch.exp((rates * lengths).sum())).sum(), (y0, rates))
    for a, b in zip(mine, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert bool(torch.as_tensor(sol.stats.backward_nfe == restarts).all())

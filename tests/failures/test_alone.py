"""A sample that fails freezes alone: its neighbours are what they are without it, forward and gradient, bit for bit."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch

import odenet
from failures.cases import KINDS, OVERFLOW, D, batch, check_alone, kept, solved, weights
from gradient_settings import GRADIENTS, NAMES
from slow_cases import slow_unless

CONSTANT: dict[str, Any] = {"method": "rk4", "step": 0.05}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_neighbours(gradient: str, kind: str) -> None:
    """The first, one in the middle, the last; so few that they stay in the batch, and so many that they leave it."""
    failing, dense = ([5], False) if hash_of(gradient, kind) % 2 else ([0, 1, 12], True)
    check_alone(KINDS[kind], 13, failing, gradient=GRADIENTS[gradient], dense=dense)


def hash_of(*names: str) -> int:
    """The same in every process."""
    return sum(map(ord, "".join(names)))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "NaN in args"])
@pytest.mark.parametrize("gradient", NAMES)
def test_rows_that_f_closes_over(gradient: str, kind: str) -> None:
    """f cannot be evaluated for some of the samples alone."""
    constant = KINDS[kind].once and hash_of(gradient, kind) % 2
    check_alone(KINDS[kind], 12, [5], gradient=gradient, closure=True, **(CONSTANT if constant else {}))


@pytest.mark.parametrize("gradient", ["discrete", "checkpoints", "backprop", "gauss", "reversible", "forward"])
def test_constant_steps_and_decreasing_times(gradient: str) -> None:
    for kind in ("blow-up", "f is NaN from a time on"):
        check_alone(KINDS[kind], 12, [3], gradient=GRADIENTS[gradient], down=True, **CONSTANT)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_times_that_move(gradient: str) -> None:
    """`backprop` sums over the uses of a time in another order once samples have left the batch."""
    bits = gradient != "backprop"
    check_alone(KINDS["blow-up"], 12, [5], gradient=GRADIENTS[gradient], moving=True, bits_of_ts=bits)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_sample_that_overflows_in_rejected_attempts_alone(gradient: str) -> None:
    """It does not fail. (`adjoint` cannot solve it backwards, and says so; `reversible` cannot undo it.)"""
    if gradient in ("adjoint", "reversible"):
        pytest.skip("backwards the solution of this sample explodes")
    check_alone(OVERFLOW, 12, [5], gradient=GRADIENTS[gradient], fails=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex128])
@pytest.mark.parametrize("gradient", ["discrete", "backprop", "gauss"])
def test_dtypes(gradient: str, dtype: torch.dtype) -> None:
    """dopri8 has evaluations of its own for outputs within a step."""
    method = "dopri8" if dtype == torch.float32 else "dopri5"
    for kind in ("f is NaN from a time on", "blow-up"):
        check_alone(KINDS[kind], 12, [5], gradient=gradient, dtype=dtype, method=method, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["radauIIA3", "trbdf2", "explicit_adams", "implicit_adams"])
@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_implicit_and_multistep_methods(gradient: str, method: str) -> None:
    """An iteration evaluates f for all samples until the last has converged: `nfe` is that of the batch."""
    for kind in ("f is infinite from a time on", "NaN in y0"):
        for closure in (False, True):
            options = {"method": method, "step": 0.05, "closure": closure}
            # the sums that an Adams method makes of its history are large and cancel
            check_alone(KINDS[kind], 12, [5], gradient=gradient, counts=False, sums=1e5, **options)


@pytest.mark.parametrize("kind", slow_unless(KINDS, "f is NaN from a time on", "blow-up", "max_steps"))
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_all_fail(gradient: str, kind: str) -> None:
    """A batch of one, and one that has nobody left: gradients of zero, exactly, and none that is missing."""
    for count, closure in ((1, False), (3, kind != "NaN in args")):
        failing = list(range(count))
        made = batch(KINDS[kind], count, failing)
        options: dict[str, Any] = {"closure": closure, "moving": True, "dense": True}
        run = solved(made, KINDS[kind], weights(count, 4), gradient=GRADIENTS[gradient], **options)
        assert torch.equal(run.sol.status, torch.full((count,), int(KINDS[kind].status)))
        for found in (run.y0, run.w, run.ts, *(() if closure else (run.k,))):
            assert found is not None and torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_loss_of_the_dense_solution_alone_where_all_failed(gradient: str) -> None:
    made = batch(KINDS["blow-up"], 3, [0, 1, 2])
    y0, w = made.y0.clone().requires_grad_(), made.w.clone().requires_grad_()
    sol = odenet.solve(
        made.f, y0, made.ts, args=(made.k, w), per_sample=True, on_failure="return", dense=True,
        gradient=GRADIENTS[gradient],
    )  # fmt: skip
    value = sol(torch.full((3, 1), 0.01, dtype=D))
    for found in torch.autograd.grad(value.sum(), (y0, w)):
        assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_losses(gradient: str) -> None:
    """Of a failed sample they meet outputs that were reached, its last state, and NaN."""
    kind, keep = KINDS["f is NaN from a time on"], kept(3, [1])
    made, found = batch(kind, 3, [1]), []
    k, w = made.k, made.w.clone().requires_grad_()
    for b in (made, made.without([1])):
        y0, k = b.y0.clone().requires_grad_(), b.k
        sol = odenet.solve(
            b.f, y0, b.ts, args=(k, w), per_sample=True, on_failure="return", gradient=GRADIENTS[gradient]
        )
        whole = len(y0) == 3
        assert not whole or bool(sol.ys[1, :2].isfinite().all() and sol.ys[1, 2:].isnan().all())
        ok = torch.as_tensor(sol.status) == odenet.Status.SUCCESS
        losses = [sol.ys[ok].sum(), sol.ys.nansum(), sol.ys.sum(), sol.y1[ok].sum(), sol.y1.sum()]
        found.append([torch.autograd.grad(loss, (y0, w), retain_graph=True) for loss in losses])
    for (mine, shared), (true, right) in zip(*found, strict=True):
        assert torch.equal(mine[keep], true) and torch.equal(mine[1], torch.zeros(2, dtype=D))
        torch.testing.assert_close(shared, right, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", ["blow-up", "f is NaN from a time on", "NaN in y0"])
@pytest.mark.parametrize("gradient", ["discrete", "backprop", "reversible", "forward"])
def test_second_derivatives(gradient: str, kind: Any) -> None:
    kind = KINDS[kind]
    made, keep, out = batch(kind, 12, [5]), kept(12, [5]), []
    for b in (made, made.without([5])):
        y0, w = b.y0.clone().requires_grad_(), b.w.clone().requires_grad_()
        sol = odenet.solve(
            b.f, y0, b.ts, args=(b.k, w), per_sample=True, on_failure="return", gradient=gradient, rtol=1e-6
        )
        first = torch.autograd.grad(sol.y1.sum(), (y0, w), create_graph=True)
        out.append(torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (y0, w)))
    (ya, wa), (yb, wb) = out
    torch.testing.assert_close(ya[keep], yb, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(wa, wb, rtol=1e-12, atol=1e-12)
    assert torch.equal(ya[5], torch.zeros(2, dtype=D))


def test_lanes_of_vmap() -> None:
    """Each is a joint solve of its own; neighbours are what they are without it, and what all share has finite sums."""
    for name, kind in KINDS.items():
        made, keep = batch(kind, 5, [2]), kept(5, [2])

        def one(y: torch.Tensor, k: torch.Tensor, w: torch.Tensor, made: Any = made, kind: Any = kind) -> Any:
            def f(t: torch.Tensor, y: torch.Tensor, k: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
                return made.f(t.reshape(1), y[None], k[None], w)[0]

            limits: dict[str, Any] = {"rtol": kind.rtol, "atol": kind.atol, "max_steps": kind.max_steps}
            sol = odenet.solve(f, y, made.ts[0], args=(k, w), on_failure="return", **limits)
            return sol.ys, sol.y1

        out = []
        for b, rows in ((made, keep), (made.without([2]), torch.arange(4))):
            y0, k, w = (x.clone().requires_grad_() for x in (b.y0, b.k, b.w))
            ys, y1 = torch.func.vmap(one, in_dims=(0, 0, None))(y0, k, w)
            got = torch.autograd.grad(ys[rows].sum() + y1[rows].sum(), (y0, k, w), materialize_grads=True)
            out.append((ys, y1, *got))
        for a, b in zip(out[0][:4], out[1][:4], strict=True):
            assert torch.equal(a[keep], b), name
        alone = one(made.y0[2], made.k[2], made.w)
        for a, b in zip(out[0][:2], alone, strict=True):
            tame = ~(b.abs() > 1e6)  # where a blow-up ends is rounding
            torch.testing.assert_close(a[2][tame], b[tame], rtol=1e-12, atol=1e-12, equal_nan=True)
        torch.testing.assert_close(out[0][4], out[1][4], rtol=1e-12, atol=1e-14)


COMPILED = ["blow-up", "f is NaN from a time on", "NaN in y0", "infinity in y0", "NaN in args", "max_steps"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMPILED)
def test_compiled(kind: str) -> None:
    """A library takes all samples through all steps; with rows in args, with rows that f closes over."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_alone(KINDS[kind], 12, [5], compile=True)
        if kind != "NaN in args":
            check_alone(KINDS[kind], 12, [5], compile=True, closure=True)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_solved_part_of_a_compiled_joint_solve(sign: float) -> None:
    """As `test_solved_part_of_a_joint_solve`, without gradients of times, which are not compiled."""
    y0, w = torch.tensor([1.0, 2.0], dtype=D, requires_grad=True), torch.tensor(0.7, dtype=D, requires_grad=True)

    def f(t: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.where(t * sign > 0.55, torch.nan, sign * w) * y

    ts = sign * torch.tensor([0.0, 0.0, 0.2, 0.4, 0.4, 0.8, 1.0], dtype=D)
    options: dict[str, Any] = {"compile": True, "dense": True, "rtol": 1e-9, "atol": 1e-11}
    sol = odenet.solve(f, y0, ts, args=(w,), on_failure="return", **options)
    exact = y0 * torch.exp(w * sign * ts[:5]).unsqueeze(-1)
    assert sol.status == odenet.Status.NON_FINITE and bool(sol.ys[5:].isnan().all())
    torch.testing.assert_close(sol.ys[:5], exact, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(sol.y1, y0 * torch.exp(0.55 * w), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(sol(0.3 * sign), y0 * torch.exp(0.3 * w), rtol=1e-6, atol=0.0)
    with pytest.raises(ValueError, match="the time reached"):
        sol(0.9 * sign)
    found = torch.autograd.grad(sol.ys[:5].sum(), (y0, w))
    for a, b in zip(found, torch.autograd.grad(exact.sum(), (y0, w)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_compiled_with_constant_steps_and_dense_output() -> None:
    for kind in ("blow-up", "NaN in y0"):
        check_alone(KINDS[kind], 12, [5], compile=True, dense=True)
        check_alone(KINDS[kind], 12, [5], compile=True, **CONSTANT)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_random(seed: int) -> None:
    """Kind, gradient, method, sizes and times by chance."""
    chance = random.Random(seed)
    name = chance.choice(list(KINDS))
    kind, count = KINDS[name], chance.randint(2, 25)
    failing = sorted(chance.sample(range(count), chance.randint(1, max(1, count // 3))))
    constant = kind.once and chance.random() < 0.4
    gradient = chance.choice(list(GRADIENTS))
    method = chance.choice(["rk4", "midpoint", "tsit5"] if constant else ["tsit5", "dopri5", "bosh3", "dopri8"])
    options: dict[str, Any] = {"method": method} | ({"step": chance.choice([0.1, 0.03])} if constant else {})
    closure = name != "NaN in args" and chance.random() < 0.4
    check_alone(
        kind, count, failing, gradient=GRADIENTS[gradient], closure=closure, down=chance.random() < 0.3,
        dense=chance.random() < 0.4, moving=chance.random() < 0.3, bits_of_ts=gradient != "backprop", seed=seed,
        **options,
    )  # fmt: skip

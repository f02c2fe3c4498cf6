"""Calls with a known answer: `solve` and what else takes the same things."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import odenet
from gradient_settings import APPROXIMATE
from odenet import nn
from odenet.core.pytrees import flatten, unflatten

from .fields import FIELDS, STRUCTURES, Leaves
from .known import Built, bound, built, event, exact, noted_at, wide
from .ledger import Ledger, demand, watched
from .strategies import Report, Valid

EXACT = ("backprop", "discrete", "forward")  # of the same numerical solution


def bits(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def same(a: Any, b: Any) -> bool:
    """Bitwise, and NaN with NaN."""
    pairs = zip(flatten(a)[0], flatten(b)[0], strict=True)
    return all(
        x.dtype == y.dtype and torch.equal(bits(x).nan_to_num(nan=7.0), bits(y).nan_to_num(nan=7.0)) for x, y in pairs
    )


def near(got: Leaves, want: Leaves, case: Valid, what: str, slack: float = 1.0) -> None:
    size = max(1.0, *(float(x.detach().abs().max()) for x in want))
    for a, b in zip(got, want, strict=True):
        demand(a.shape == b.shape, f"{what} has shape {tuple(a.shape)}, not {tuple(b.shape)}")
        miss = float((wide(a.detach()) - b.detach()).abs().max()) / size
        limit = slack * bound(case, a)
        demand(miss < limit, f"{what} is off by {miss:.2e}, more than {limit:.2e}")


def solved(ledger: Ledger, made: Built, **changes: Any) -> odenet.Solution:
    return ledger.call("solve", odenet.solve, made.f, made.y0, made.ts, args=made.args, **made.options | changes)


def run_valid(case: Valid, ledger: Ledger) -> None:
    made = built(case)
    inputs = [x for x in flatten((made.y0, made.args))[0] if isinstance(x, Tensor)]
    inputs += [made.ts] if isinstance(made.ts, Tensor) else []
    before = [x.detach().clone() for x in inputs]
    steps: list[float] = []
    fractions: list[float] = []
    extra: dict[str, Any] = {}
    if case.callbacks:
        extra["callbacks"] = odenet.Callbacks(step=lambda t, y, dt: steps.append(float(dt.max())))
    if case.progress:
        extra["progress"] = lambda fraction, stats: fractions.append(fraction)
    start = made.times[..., 0]
    want = exact(case, made.leaves, made.k, made.times, start)
    happens: float | None = None
    if case.event != "none":
        extra["event"], happens = event(case, made, want)
    with watched():
        sol = solved(ledger, made, **extra)
        demand(all(same(a, b.detach()) for a, b in zip(before, inputs, strict=True)), "an input was changed in place")
        shape_of(case, sol, made)
        if happens is None:
            values(case, sol, made, want, ledger)
            noted(case, sol, made)
        else:
            hits(case, sol, made, happens)
        if case.callbacks:
            total = int(torch.as_tensor(sol.stats.accepted).max() + torch.as_tensor(sol.stats.rejected).max())
            demand(len(steps) >= int(total > 0) and all(h >= 0 for h in steps), f"step called {len(steps)} times")
        if case.progress:
            demand(
                fractions == sorted(fractions) and (fractions[-1:] in ([1.0], []) or happens is not None),
                f"progress {fractions[-3:]}",
            )
        if happens is None:
            gradients(case, sol, made, want)
        demand(all(same(a, b.detach()) for a, b in zip(before, inputs, strict=True)), "backward changed an input")
        if case.event == "none":
            related(case, sol, made, ledger)


def shape_of(case: Valid, sol: odenet.Solution, made: Built) -> None:
    spec = flatten(STRUCTURES[case.structure])[1]
    T = made.times.shape[-1]
    for name, tree in (("ys", sol.ys), ("y1", sol.y1)):
        found, kind = flatten(tree)
        demand(kind == spec, f"{name} has the structure {kind}")
        for x, y0 in zip(found, made.leaves, strict=True):
            at = int(case.per_sample)
            shape = (*y0.shape[:at], T, *y0.shape[at:]) if name == "ys" else tuple(y0.shape)
            demand(x.dtype == y0.dtype and tuple(x.shape) == shape, f"{name} is {x.dtype} {tuple(x.shape)}")
    if isinstance(made.ts, Tensor) and made.ts.is_floating_point():
        demand(sol.ts.dtype == made.ts.dtype, f"sol.ts has {sol.ts.dtype}")
    rows = made.times.detach().expand(len(made.leaves[0]), -1) if case.per_sample else made.times.detach()[None]
    for x, y0 in zip(flatten(sol.ys)[0], made.leaves, strict=True):
        by_time = x.detach().movedim(int(case.per_sample), 0)
        demand(same(by_time[0], y0.detach()), "ys[0] is not y0")
        for i in range(1, T):
            equal = rows[:, i] == rows[:, i - 1]
            a, b = (by_time[j] if case.per_sample else by_time[j][None] for j in (i, i - 1))
            if case.event == "none":
                demand(same(a[equal], b[equal]), f"ys differ at equal times {i - 1} and {i}")


def values(case: Valid, sol: odenet.Solution, made: Built, want: Leaves, ledger: Ledger) -> None:
    code = torch.as_tensor(sol.status)
    demand(bool((code == int(odenet.Status.SUCCESS)).all()), f"status {sol.status}")
    stats = {k: torch.as_tensor(sol.stats[k]) for k in ("nfe", "accepted", "rejected")}
    moving = made.times.detach()[..., 0] != made.times.detach()[..., -1]
    demand(bool(((stats["nfe"] > 0) | ~moving).all()), f"nfe {sol.stats.nfe}")
    demand(bool((stats["accepted"] + stats["rejected"] <= 10_000).all()), "more than max_steps attempts")
    slack = 3.0 if case.gradient == "reversible" else 1.0
    near(flatten(sol.ys)[0], want, case, "ys", slack)
    axis = int(case.per_sample)
    near(flatten(sol.y1)[0], [x.select(axis, -1) for x in want], case, "y1", slack)
    if not case.dense:
        return
    ts = made.times.detach()
    between = (ts[..., :-1] + ts[..., 1:]) / 2
    for t in (ts, between):
        got = ledger.call("Solution", sol, t)
        near(flatten(got)[0], exact(case, made.leaves, made.k, t, made.times[..., 0]), case, "sol(t)", 3 * slack)
    one = float(between.reshape(-1)[0])
    if ts.ndim == 1:
        lane = torch.full((len(made.leaves[0]), 1) if case.per_sample else (1,), one, dtype=torch.float64)
        truth = exact(case, made.leaves, made.k, lane, made.times[..., 0])
        got = flatten(ledger.call("Solution", sol, one))[0]
        near(got, [x.select(axis, 0) for x in truth], case, "sol(number)", 3 * slack)


def noted(case: Valid, sol: odenet.Solution, made: Built) -> None:
    """Every event that does not end the solve, once in each solve that has a length."""
    if case.event not in ("noted", "same"):
        demand(sol.hits is None or not sol.hits.which.numel(), "hits without an event")
        return
    at, times = noted_at(made).reshape(-1), made.times.detach().reshape(-1, made.times.shape[-1])
    which = sol.hits.which if case.per_sample else sol.hits.which[None]
    at, times = at.expand(len(which)), times.expand(len(which), -1)
    moving = times[:, 0] != times[:, -1]
    demand(bool(((which >= 0).sum(1) == moving.long()).all()), f"hits {which.tolist()}")
    found = sol.hits.t.detach().double().reshape(len(which), -1)[moving]
    size = times.abs().amax(1)[moving].clamp(min=1.0)
    demand(bool(((found[:, :1] - at[moving, None]).abs() < 1e-6 * size[:, None]).all()), f"hits at {found.tolist()}")


def hits(case: Valid, sol: odenet.Solution, made: Built, at: float) -> None:
    demand(sol.status == odenet.Status.EVENT and sol.event is not None, f"no event: {sol.status}")
    demand(sol.event.which == int(case.event == "several"), f"event {sol.event.which}")
    span = abs(float(made.times.detach()[-1] - made.times.detach()[0]))
    slack = 30.0 if case.event == "state" else 3.0  # where y moves slowly, its error is larger in time
    worst = max(bound(case, x) for x in made.leaves)
    miss = abs(float(sol.event.t.detach()) - at) / span
    demand(
        miss < slack * worst / (0.05 if case.event == "state" else 1.0),
        f"event at {float(sol.event.t.detach())}, not {at}",
    )
    t = sol.event.t.detach().double().reshape(1)
    want = exact(case, made.leaves, made.k, t, made.times[0])
    near(flatten(sol.y1)[0], [x[0] for x in want], case, "y at the event", 3.0)
    demand(same(sol.y1, sol.event.y), "y1 is not the state at the event")


def gradients(case: Valid, sol: Any, made: Built, want: Leaves, slack: float = 1.0) -> None:
    """Of one loss, by y0, k and ts, against those of the closed form."""
    asked = [x for x in (*made.leaves, made.k, *made.times_of) if x.requires_grad]
    if not asked:
        demand(not any(x.requires_grad for x in flatten(sol.ys)[0]), "ys want a gradient that nobody asked for")
        return
    found = flatten(sol.ys)[0]
    zero = bool((made.times.detach()[..., 0] == made.times.detach()[..., -1]).all())

    def loss(ys: Leaves) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i, y in enumerate(ys):
            total = total + (1 + i) * wide(y).abs().square().mean() + wide(y).real.mean()
        return total

    if zero and not any(x.requires_grad for x in found):
        return  # a solve of no length calls nothing
    mine = torch.autograd.grad(loss(found), asked, allow_unused=True, materialize_grads=True)
    true = torch.autograd.grad(loss(want), asked, allow_unused=True, materialize_grads=True)
    for got, right, x in zip(mine, true, asked, strict=True):
        of_times = any(x is t for t in made.times_of)
        unit = case.unit if of_times else 1.0
        worst = max(bound(case, y) for y in made.leaves)
        size = 1.0 + float(right.abs().max()) * unit + float(sum(y.detach().abs().square().max() for y in want))
        miss = float((wide(got) - wide(right)).abs().max()) * unit / size
        limit = slack * worst * (5.0 if case.gradient in EXACT else 10.0) * (10.0 if of_times else 1.0)
        if not zero:
            demand(miss < limit, f"gradient of {'ts' if of_times else tuple(x.shape)} is off by {miss:.2e} "
                   f"(allowed {limit:.2e}): {got.tolist()}, not {right.tolist()}")  # fmt: skip


def related(case: Valid, sol: odenet.Solution, made: Built, ledger: Ledger) -> None:
    """The property that `case.relation` names, by another call."""
    known, how = FIELDS[case.field], case.relation
    plain = {"dense": False, "controller": made.options["controller"]}
    rough = [x.detach() for x in flatten(sol.ys)[0]]
    spec = flatten(STRUCTURES[case.structure])[1]
    if how == "again":
        # callbacks keep the batch whole, and PyTorch's complex product depends on how many rows there are
        watch = odenet.Callbacks() if case.callbacks else None
        other = solved(ledger, made, callbacks=watch).ys
        if case.compiled:  # which may be told to be the slower way, the first time
            near(flatten(other)[0], [wide(x) for x in rough], case, "ys of the same call")
        else:
            demand(same(other, sol.ys), "the same call gave other numbers")
    elif how == "without_grad":
        with torch.no_grad():
            other = solved(ledger, made, **plain)
        demand(not any(x.requires_grad for x in flatten(other.ys)[0]), "a gradient under no_grad")
        near(flatten(other.ys)[0], [wide(x) for x in rough], case, "ys under no_grad")
    elif how == "row" and case.per_sample and known.rows and case.tol_form != "tree":
        alone(case, sol, made, ledger)
    elif how == "shift" and known.autonomous and case.controller not in ("stops", "perturbed", "unseen"):
        moved = made._replace(ts=made.times.detach() + 2 * case.unit)
        near(flatten(solved(ledger, moved, **plain).ys)[0], [wide(x) for x in rough], case, "ys of a later start", 2.0)
    elif how == "reverse":
        back = made._replace(
            y0=unflatten([x.detach() for x in flatten(sol.y1)[0]], spec), ts=made.times.detach().flip(-1)
        )
        other = flatten(solved(ledger, back, **plain).y1)[0]
        near(other, [wide(x.detach()) for x in made.leaves], case, "y0 on the way back", 20.0)
    elif how == "scale" and known.linear:
        twice = made._replace(y0=unflatten([x.detach() * 2 for x in made.leaves], spec))
        near(
            [x / 2 for x in flatten(solved(ledger, twice, **plain).ys)[0]],
            [wide(x) for x in rough],
            case,
            "half of it",
            2.0,
        )
    elif how == "permute" and case.structure == "dict" and case.field != "swap":
        other = made._replace(y0=dict(reversed(list(made.y0.items()))))
        found = solved(ledger, other, **plain | ({"rtol": case.tol, "atol": case.tol} if case.tol else {})).ys
        for key, got in found.items():
            near([got], [wide(sol.ys[key].detach())], case, f"ys[{key!r}] in another order", 2.0)


def alone(case: Valid, sol: odenet.Solution, made: Built, ledger: Ledger) -> None:
    """The last sample, solved without the others: the same numbers, bit for bit."""
    i = len(made.leaves[0]) - 1
    spec = flatten(STRUCTURES[case.structure])[1]
    args = tuple(x[i:] for x in made.args) if case.passing == "rows" else made.args
    ts = made.times.detach()[i:] if made.times.ndim == 2 else made.times.detach()
    if case.ts_form == "float32":
        ts = ts.float()
    one = made._replace(y0=unflatten([x.detach()[i:] for x in made.leaves], spec), ts=ts, args=args)
    other = solved(ledger, one)
    for a, b in zip(flatten(other.ys)[0], flatten(sol.ys)[0], strict=True):
        demand(same(a.detach()[0], b.detach()[i]), "a sample alone has other numbers than in its batch")


def run_layer_of(case: Valid, ledger: Ledger) -> None:
    """NeuralODE around the field of a case is the solve itself."""
    made = built(case)
    with watched():
        ts = made.times.detach().double()
        layer = nn.NeuralODE(made.f, **made.options)
        got = ledger.call("NeuralODE", layer, made.y0, ts, made.args)
        demand(same(got, solved(ledger, made._replace(ts=ts)).ys), "the layer gives other numbers than solve")
        demand(int(torch.as_tensor(layer.stats.nfe).max()) >= 0, "stats")


def run_report(report: Report, ledger: Ledger) -> None:
    case = report.case
    made = built(case)

    def loss(sol: odenet.Solution) -> Tensor:
        return torch.stack([x.abs().square().sum() for x in flatten(sol.ys)[0]]).sum()

    options = {k: made.options[k] for k in ("method", "rtol", "atol")}
    with watched():
        rows = ledger.call(
            "gradient_report", odenet.gradient_report, made.f, made.y0, made.ts, loss, args=made.args,
            gradients=list(report.gradients), repeats=1, **options,
        )  # fmt: skip
    demand([r.gradient for r in rows] == list(report.gradients), f"rows {[r.gradient for r in rows]}")
    single = case.dtype == "float32"
    for row in rows:
        # in float32 the steps themselves may differ from those of the reference in float64
        limit = 1e-2 if row.gradient in APPROXIMATE or single else 1e-8
        demand(row.relative_error < limit and row.true_error < 1e-2, f"{row}")
        demand(row.nfe > 0 and row.seconds > 0 and row.peak_bytes >= 0 and not row.note, f"{row}")
    demand("relative error" in str(rows), "the table has no head")

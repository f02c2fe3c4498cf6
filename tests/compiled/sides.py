"""A compiled solve beside an eager one."""

import torch

import odenet


def field_of(w, b):
    """The field that most tests share; its tensors are captured."""
    return lambda t, y: torch.tanh(y @ w + b) * torch.cos(t)


def leaves(tree):
    return [x for k in sorted(tree) for x in leaves(tree[k])] if isinstance(tree, dict) else [tree]


def squares(sol):
    return sum((y.double() ** 2).sum() for y in leaves(sol.ys))


def solved(f, y0, ts, params=(), *, loss=squares, compile=True, **options):
    """Solution and gradients to the leaves of y0 and to params."""
    mapped = isinstance(y0, dict)
    start = {k: v.detach().clone().requires_grad_() for k, v in y0.items()} if mapped else y0.detach().clone()
    if not mapped:
        start.requires_grad_()
    sol = odenet.solve(f, start, ts, compile=compile, **options)
    return sol, torch.autograd.grad(loss(sol), [*leaves(start), *params])


def same(f, y0, ts, params=(), *, tolerance=1e-10, counted=True, **options):
    """Both ways give the same values, gradients and counts; the compiled solution."""
    (a, ga), (b, gb) = (solved(f, y0, ts, params, compile=way, **options) for way in (False, True))
    for x, y in zip([*leaves(a.ys), *leaves(a.y1), *ga], [*leaves(b.ys), *leaves(b.y1), *gb], strict=True):
        torch.testing.assert_close(y, x, rtol=tolerance, atol=tolerance, equal_nan=True)
    for name in (*(["nfe"] if counted else []), "accepted", "rejected"):
        assert torch.equal(torch.as_tensor(getattr(a.stats, name)), torch.as_tensor(getattr(b.stats, name))), name
    return b

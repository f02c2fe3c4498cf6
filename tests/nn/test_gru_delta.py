"""GRUs with gaps and GRU-D against the formulas of the papers, sample by sample and row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from nn.series_model_suite import ragged
from odenet.nn import GRUD, GRUDelta
from odenet.series import Series

D = torch.float64
TS = torch.tensor([0.0, 0.3, 0.62, 1.7], dtype=D)


def rows(series: Series, i: int) -> list[tuple[float, Tensor, Tensor]]:
    """Time, values and mask of the rows of a sample that have a value."""
    count = int(series.length[i])
    triples = zip(series.t[i, :count].tolist(), series.x[i, :count], series.mask[i, :count], strict=True)
    return [triple for triple in triples if bool(triple[2].any())]


def test_gru_with_gaps() -> None:
    torch.manual_seed(0)
    model, series = GRUDelta(2, 5).double(), ragged()
    last, ends = model(series), series.t[:, -1:]
    at = model(series, torch.cat([TS.expand(4, -1), ends], 1))

    def step(h: Tensor, x: Tensor, mask: Tensor, gap: float) -> Tensor:
        return model.cell(torch.cat([x, mask.to(D), torch.tensor([gap], dtype=D)])[None], h[None])[0]

    for i in range(4):
        h, before = torch.zeros(5, dtype=D), rows(series, i)[0][0]
        queries = [*TS.tolist(), float(ends[i])]
        states = [h for _ in queries]
        for t, x, mask in rows(series, i):
            h = step(h, x, mask, t - before)
            before = t
            for q, query in enumerate(queries):
                if query >= t:
                    nothing = torch.zeros(2, dtype=D)
                    states[q] = step(h, nothing, nothing, query - t) if query > t else h
        torch.testing.assert_close(last[i], states[-1])
        torch.testing.assert_close(at[i], torch.stack(states))


def test_gru_d() -> None:
    torch.manual_seed(0)
    model, series = GRUD(2, 5).double(), ragged()
    w, b = model.value_decay
    last, ends = model(series), series.t[:, -1:]
    at = model(series, torch.cat([TS.expand(4, -1), ends], 1))

    def decay(rate: Tensor) -> Tensor:
        return torch.exp(-torch.clamp(rate, min=0.0))

    for i in range(4):
        h, known = torch.zeros(5, dtype=D), torch.zeros(2, dtype=D)
        since, observed, before = torch.zeros(2, dtype=D), torch.ones(2, dtype=torch.bool), rows(series, i)[0][0]
        queries = [*TS.tolist(), float(ends[i])]
        states = [h for _ in queries]
        for t, x, mask in rows(series, i):
            since = (t - before) + torch.where(observed, 0.0, since)
            known_filled = decay(w * since + b) * known
            filled = torch.where(mask, x, known_filled)
            decayed = decay(model.state_decay(since)) * h
            h = model.cell(torch.cat([filled, mask.to(D)])[None], decayed[None])[0]
            known, observed, before = torch.where(mask, x, known), mask, t
            for q, query in enumerate(queries):
                if query >= t:
                    ahead = (query - t) + torch.where(observed, 0.0, since)
                    states[q] = decay(model.state_decay(ahead)) * h if query > t else h
        torch.testing.assert_close(last[i], states[-1])
        torch.testing.assert_close(at[i], torch.stack(states))


def test_gru_d_forgets() -> None:
    """Long after the last value a missing one is the mean, which is 0 in scaled units, and the state is 0."""
    torch.manual_seed(0)
    model = GRUD(1, 5).double()
    with torch.no_grad():
        model.state_decay.weight.fill_(1.0)
        model.value_decay.fill_(1.0)
    series = Series(torch.tensor([[0.0]], dtype=D), torch.tensor([[[4.0]]], dtype=D))
    near, far = model(series, [0.1])[0, 0], model(series, [60.0])[0, 0]
    assert float(near.detach().abs().max()) > 1e-2
    torch.testing.assert_close(far, torch.zeros(5, dtype=D), rtol=0.0, atol=1e-20)


def test_rows_without_a_value_change_nothing() -> None:
    """They are not there for the state after the last row with a value."""
    torch.manual_seed(0)
    t = torch.tensor([[0.0, 0.2, 0.5, 0.6]], dtype=D)
    x = torch.randn(1, 4, 2, dtype=D)
    mask = torch.tensor([True, False, True, True])[None, :, None].expand(1, 4, 2)
    keep = torch.tensor([0, 2, 3])
    for model in (GRUDelta(2, 5).double(), GRUD(2, 5).double()):
        torch.testing.assert_close(model(Series(t, x, mask)), model(Series(t[:, keep], x[:, keep])))
        torch.testing.assert_close(model(Series(t, x, mask), TS), model(Series(t[:, keep], x[:, keep]), TS))

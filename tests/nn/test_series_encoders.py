"""Encoders of a latent ODE, beside a loop over the rows of one sample at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from odenet.nn.latent.series_encoders import AttentionEncoder, GRUEncoder, RecurrentEncoder, RNNEncoder
from odenet.series import Series

CELLS = {RNNEncoder: nn.RNNCell, GRUEncoder: nn.GRUCell}


def series(missing: float) -> Series:
    """Five samples of six rows; values are missing with this probability, and of the last sample all, if any."""
    generator = torch.Generator().manual_seed(0)
    t, _ = torch.rand(5, 6, generator=generator, dtype=torch.float64).sort(1)
    x = torch.randn(5, 6, 2, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 6, 2, generator=generator) >= missing
    mask[-1] &= missing == 0
    return Series(t, torch.where(mask, x, 0.0), mask)


def rows_of(given: Series, sample: int) -> tuple[Tensor, Tensor]:
    """Values and mask (T, 4) and times (T,) of the rows with a value of this sample."""
    kept = given.mask[sample].any(-1)
    values, mask = given.x[sample][kept], given.mask[sample][kept]
    return torch.cat([values, mask.double()], -1), given.t[sample][kept]


@pytest.mark.parametrize("missing", [0.0, 0.6])
def test_attention_is_the_mean_of_mapped_rows(missing: float) -> None:
    given = series(missing)
    encoder = AttentionEncoder(2, 12).double()  # four queries, and three features of each
    for sample, features in enumerate(encoder(given)):
        rows, t = rows_of(given, sample)
        keys = encoder.rows(torch.cat([rows, t[:, None]], -1))
        scores, values = encoder.scores(keys).exp(), encoder.values(keys).view(-1, 4, 3)
        expected = (scores[..., None] * values).sum(0) / (1.0 + scores.sum(0))[:, None]
        torch.testing.assert_close(features, expected.flatten(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("missing", [0.0, 0.6])
@pytest.mark.parametrize("kind", CELLS)
def test_units_go_from_the_last_row_to_the_first(kind: type[RecurrentEncoder], missing: float) -> None:
    given, encoder = series(missing), kind(2, 8).double()
    cell: Any = CELLS[kind](6, 8).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in encoder.rnn.state_dict().items()})
    for sample, features in enumerate(encoder(given)):
        rows, t = rows_of(given, sample)
        h, later = torch.zeros(1, 8, dtype=torch.float64), t[-1:]
        for row, time in zip(rows.flip(0), t.flip(0), strict=True):
            h = cell(torch.cat([row, -time[None], later - time])[None], h)
            later = time[None]
        torch.testing.assert_close(features, h[0], rtol=1e-12, atol=1e-12)

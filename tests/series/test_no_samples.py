"""A batch of no samples goes through what has no reason to refuse it."""

import torch

from odenet.nn.recurrent import ODERNN
from odenet.series import Series


def test_an_empty_list_chooses_no_sample() -> None:
    series = Series(torch.arange(3.0), torch.randn(2, 3, 2))
    none = series[[]]
    assert len(none) == 0
    assert none.x.shape == (0, 3, 2)
    assert series[[True, False]].x.shape == (1, 3, 2)


def test_an_ode_rnn_of_no_sample() -> None:
    series = Series(torch.arange(3.0), torch.randn(2, 3, 2))
    assert ODERNN(2, 8)(series[[]]).shape == (0, 8)

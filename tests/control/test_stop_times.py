"""The stop times of a solve: which of them are jumps."""

from __future__ import annotations

import pytest
import torch

from odenet.control.stop_times import StopRule


@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_stops_at_one_time_are_jumps_where_one_is(batch: tuple[int, ...], direction: float) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        step_ts, jump_ts = (
            direction * torch.randint(-2, 13, (*batch, count), generator=generator).double() for count in (7, seed % 6)
        )
        ts = direction * torch.tensor([0.0, 10.0], dtype=torch.float64).expand(*batch, 2)
        stops = StopRule(step_ts=step_ts, jump_ts=jump_ts).stop_times(ts, torch.full(batch, direction))
        assert stops.jumps is not None
        expected = (stops.times[..., None] == jump_ts[..., None, :]).any(-1)
        assert torch.equal(stops.jumps, expected)


def test_many_jumps_take_linear_memory() -> None:
    """Each pair of them would take 10 GB."""
    times = torch.arange(1.0, 100_000.0)
    stops = StopRule(step_ts=times, jump_ts=times[::2]).stop_times(torch.tensor([0.0, 1e5]), torch.tensor(1.0))
    assert stops.jumps is not None and int(stops.jumps.sum()) == 2 * len(times[::2])

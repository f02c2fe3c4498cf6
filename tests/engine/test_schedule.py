"""Checkpoint schedules: closed forms against the recurrences they solve, and whole reversals step by step."""

from functools import cache

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from odenet.gradients.checkpoint_schedule import (
    OnlineSchedule,
    beta,
    first_checkpoint,
    optimal_recomputation,
    reversal_cost,
)

# The most that the online placement may cost, relative to the best one, by number of slots: the measured worst of all
# sweeps of up to 5000 steps, rounded up.
WORST = {1: 1.0, 2: 1.22, 3: 1.101, 4: 1.077, 5: 1.066, 8: 1.032, 12: 1.053, 20: 1.045, 32: 1.002, 64: 1.001}


@cache
def least_cost(steps, slots):
    if steps <= 1:
        return 0
    if slots == 1:
        return steps * (steps - 1) // 2
    return min(j + least_cost(steps - j, slots - 1) + least_cost(j, slots) for j in range(1, steps))


@cache
def least_placed(steps, slots):
    # The first gap has all the slots, what follows it one fewer; or there is no other gap.
    if slots == 1:
        return least_cost(steps, 1)
    inner = (least_cost(j, slots) + least_placed(steps - j, slots - 1) for j in range(1, steps))
    return min([least_cost(steps, slots), *inner])


def sweep(steps, slots):
    """The lengths up to `steps`, each with the positions held by then, checked as they change."""
    schedule = OnlineSchedule(slots)
    held = []
    for n in range(steps):
        keep, discarded = schedule.offer(n)
        if discarded is not None:
            assert keep and discarded != 0 and len(held) == slots
            held.remove(discarded)
        if keep:
            held.append(n)
        assert held == schedule.positions and held[0] == 0 and len(held) <= slots
        yield n + 1, held


def placed_cost(held, steps, slots):
    ends = [*held[1:], steps]
    return sum(reversal_cost(end - p, slots - i) for i, (p, end) in enumerate(zip(held, ends, strict=True)))


def reverse(held, steps, slots):
    """Reverse a sweep with nothing but advances from held states; the order of the steps and the advances taken."""
    held, order, advances, end = list(held), [], 0, steps
    while end > 0:
        start = held[-1]
        if end - start == 1:
            order.append(start)
            held.pop()
            end = start
            continue
        free = slots - len(held) + 1
        first = first_checkpoint(end - start, free)
        assert 0 < first < end - start
        advances += first
        if free > 1:
            held.append(start + first)
            assert len(held) <= slots
        else:  # the last step is taken from the state at hand, and the start is needed again
            assert first == end - start - 1
            end -= 1
            order.append(end)
    return order, advances


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 7])
def test_the_costs_and_the_split_solve_the_recurrence(slots):
    for steps in range(1, 70):
        cost = reversal_cost(steps, slots)
        assert cost == least_cost(steps, slots)
        assert optimal_recomputation(steps, slots) == least_placed(steps, slots)
        if steps > 1:
            j = first_checkpoint(steps, slots)
            rest = reversal_cost(steps - j, slots - 1) if slots > 1 else 0
            assert 0 < j < steps and cost == j + rest + reversal_cost(j, slots)


def test_beta_counts_the_steps_that_so_many_repetitions_reach():
    assert [beta(3, r) for r in range(-1, 4)] == [0, 1, 4, 10, 20]
    for slots in range(1, 6):
        for r in range(1, 6):
            steps = beta(slots, r)
            assert reversal_cost(steps, slots) - reversal_cost(steps - 1, slots) == r
            assert reversal_cost(steps + 1, slots) - reversal_cost(steps, slots) == r + 1


def test_no_steps_cost_nothing():
    assert reversal_cost(0, 1) == reversal_cost(0, 5) == optimal_recomputation(0, 3) == 0


@pytest.mark.parametrize("slots", WORST)
def test_every_sweep_stays_close_to_the_best_placement(slots):
    for steps, held in sweep(1500, slots):
        best, cost = optimal_recomputation(steps, slots), placed_cost(held, steps, slots)
        assert best <= cost <= WORST[slots] * best
        if steps < beta(slots, 2):
            assert cost == best


def test_the_best_placement_is_kept_while_two_repetitions_suffice():
    for slots in (6, 20, 60):
        for steps, held in sweep(beta(slots, 2) - 1, slots):
            if steps % 7 == 0 or steps < 2 * slots:
                assert placed_cost(held, steps, slots) == optimal_recomputation(steps, slots)


@given(st.integers(1, 800), st.integers(1, 40))
@settings(deadline=None)
def test_a_whole_reversal_visits_every_step_in_reverse_at_the_promised_cost(steps, slots):
    *_, (_, held) = sweep(steps, slots)
    order, advances = reverse(held, steps, slots)
    assert order == list(range(steps))[::-1]
    assert advances == placed_cost(held, steps, slots)
    assert optimal_recomputation(steps, slots) <= advances <= 1.22 * optimal_recomputation(steps, slots)


def test_the_first_states_are_all_kept_and_one_slot_keeps_only_the_start():
    schedule = OnlineSchedule(4)
    assert [schedule.offer(n) for n in range(4)] == [(True, None)] * 4
    assert schedule.positions == [0, 1, 2, 3]
    single = OnlineSchedule(1)
    assert [single.offer(n) for n in range(5)] == [(True, None)] + [(False, None)] * 4


def test_keeps_grow_rare_as_the_sweep_outgrows_its_slots():
    schedule = OnlineSchedule(5)
    kept = sum(schedule.offer(n)[0] for n in range(5000))
    assert kept < 500


def test_a_schedule_without_slots_is_refused():
    with pytest.raises(ValueError, match="at least one slot"):
        OnlineSchedule(0)

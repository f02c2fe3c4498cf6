"""Schedules that choose which states to store when steps of unknown number are to be reversed.

A reverse pass needs the state before each step, last step first. With at most K stored states (the initial one
included), all other states are recomputed by advancing from stored ones. A step that is replayed once from its stored
initial state, with its graph, and then differentiated is not an advance and is not counted here.

The counts are those of A. Griewank and A. Walther, "Algorithm 799: revolve" (ACM TOMS 26(1), 2000). The online setting,
one forward sweep of unknown length that can store only the current state, is that of P. Stumm and A. Walther, "New
algorithms for optimal online checkpointing" (SIAM J. Sci. Comput. 32(2), 2010).

After a sweep of N steps that stored the positions 0 = p_0 < p_1 < ... the gaps between them are reversed from the last
to the first. Later positions have been released by then, so gap i has K - i slots, and the placement costs sum_i
reversal_cost(p_(i+1) - p_i, K - i) recomputed steps. `OnlineSchedule` chooses the positions, `first_checkpoint` those
inside a gap.
"""

from bisect import bisect_left
from math import comb
from sys import maxsize

_NEVER = maxsize


def beta(slots: int, repetitions: int) -> int:
    """The most steps that `slots` stored states reverse with `repetitions` advances over each step.

    The initial state is one of them. It is binomial(slots + repetitions, slots), and 0 for a negative number of
    repetitions.
    """
    return comb(slots + repetitions, slots) if repetitions >= 0 else 0


def _repetitions(steps: int, slots: int) -> int:
    """The least r with beta(slots, r) >= steps. It grows like steps ** (1 / slots), so the loop is short."""
    if slots == 1:
        return max(steps - 1, 0)
    repetitions, reach = 0, 1
    while reach < steps:
        repetitions += 1
        reach = reach * (slots + repetitions) // repetitions
    return repetitions


def reversal_cost(steps: int, slots: int) -> int:
    """The least number of advances that reverses `steps` steps from a stored state, which takes one of the `slots`.

    With r the least number for which beta(slots, r) >= steps it is r * steps - beta(slots + 1, r - 1): convex and
    piecewise linear in the steps, as each step beyond beta(slots, r - 1) costs r advances (Griewank and Walther).
    """
    repetitions = _repetitions(steps, slots)
    return repetitions * steps - beta(slots + 1, repetitions - 1)


def first_checkpoint(steps: int, slots: int) -> int:
    """Steps to advance before storing the first checkpoint, to reverse two or more steps at `reversal_cost`.

    The state after j steps gets a slot; the later steps are reversed with one slot fewer, then it is released and the
    first j steps have all slots again. With one slot nothing can be stored: j = steps - 1 is where the last step
    begins, and it is replayed from the current state. For both parts one more step must cost r - 1 and r advances,
    which leaves an interval of j; this is its lower end.
    """
    if slots == 1:
        return steps - 1
    repetitions = _repetitions(steps, slots)
    return max(beta(slots, repetitions - 2), steps - beta(slots - 1, repetitions), 1)


def optimal_recomputation(steps: int, slots: int) -> int:
    """The least sum over gaps (see the module) after a forward sweep of `steps` steps, if their number were known.

    It is reversal_cost(steps + 1, slots) - steps: to reverse one step more, the first pass is a sweep over all steps
    but that last one, which is reversed from the current state; the remaining cost is that of the placement after the
    sweep.
    """
    return reversal_cost(steps + 1, slots) - steps if steps > 0 else 0


class _ReversalCost:
    """`reversal_cost` for one number of slots, from a table that grows on demand."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._reach = [1]  # beta(slots, r)
        self._offset = [0]  # beta(slots + 1, r - 1): the sum of the previous reaches

    def __call__(self, steps: int) -> int:
        reach = self._reach
        while reach[-1] < steps:
            self._offset.append(self._offset[-1] + reach[-1])
            reach.append(reach[-1] * (self._slots + len(reach)) // len(reach))
        repetitions = bisect_left(reach, steps)
        return repetitions * steps - self._offset[repetitions]


class OnlineSchedule:
    """Which states to store in a forward sweep of unknown length, at most `slots` at a time.

    The rule is greedy: the current state replaces the position whose loss costs least, as soon as reversing a sweep of
    one step more would not get dearer by that. Among equally cheap losses it chooses the one that leaves the largest
    gap. Storing a little later was better with some slot numbers and worse with others; weighting a loss by what the
    gaps of a larger sweep need was worse.

    Recomputed steps relative to `optimal_recomputation`, the worst of all sweeps of up to 5000 steps: 1.22 with 2
    slots, 1.10 with 3, 1.08 with 4, 1.07 with 5, 1.03 with 8, 1.056 with 13 (the largest for 6 to 32), 1.04 with 20,
    1.002 with 32, 1.0005 with 64; and 1 with one slot or, with any number, up to beta(slots, 2) - 1 steps. The total
    work (sweep, recomputation, reversal) is at most 1.043 of the optimum from 4 slots on. No rule does much better with
    few slots: by exhaustive search each is above 1.08 with 3, 1.07 with 4 and 1.05 with 5 slots within 22 steps. With
    10 to 30 slots the worst sweeps are those of about beta(slots, r) steps, where every gap would need its maximal
    length, and gaps merged from equal ones are shorter.

    Storing a state takes time proportional to the positions after the discarded one; all other calls only compare two
    numbers.
    """

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"a schedule needs at least one slot, for the initial state; got {slots}")
        self.positions: list[int] = []
        self._slots = slots
        self._next = 0  # number of the next step whose state is stored
        self._next_discard: int | None = None  # index of the position that it replaces
        self._opening = 1  # index that the opening phase discards; `slots` once it is over
        self._costs = [_ReversalCost(count) for count in range(slots + 1)]  # by number of slots; entry 0 is unused
        # By index j: the saving by one slot more in the gaps 1 to j; and the cheapest loss among the positions 1 to j
        # as (cost less a constant, minus the resulting gap, index).
        self._savings = [0]
        self._cheapest = [(_NEVER, 0, 0)]

    def offer(self, n: int) -> tuple[bool, int | None]:
        """Whether to store the state at n, and which stored position to discard first (None: a slot is free).

        Call it for n = 0, 1, 2, ..., each time before step n.
        """
        if n < self._next:
            return False, None
        index = self._next_discard
        discarded = None if index is None else self.positions.pop(index)
        self.positions.append(n)
        self._plan(n, index)
        return True, discarded

    def _plan(self, n: int, index: int | None) -> None:
        """Choose the next state to store and the position that it replaces, after n replaced the one at `index`."""
        positions, slots = self.positions, self._slots
        if len(positions) < slots:
            self._next = n + 1
            return
        if slots == 1:
            self._next = _NEVER
            return
        if self._opening < slots:
            # While two repetitions suffice, filling the gaps from the front, each up to beta(its slots, 1), is optimal
            # at every step (Stumm and Walther), and equals the result of the search below, at less work.
            while (j := self._opening) < slots:
                end = positions[j + 1] if j + 1 < slots else n + 1
                if end - positions[j - 1] <= beta(slots - j + 1, 1):
                    self._next, self._next_discard = n + 1, j
                    return
                self._opening += 1
            index = None
        self._update_losses(1 if index is None else max(index - 1, 1))
        self._schedule_next(n)

    def _update_losses(self, first: int) -> None:
        """Update the losses from index `first` on; a loss does not change those well before it."""
        positions, costs, slots = self.positions, self._costs, self._slots
        savings, cheapest = self._savings, self._cheapest
        del savings[first:], cheapest[first:]
        saved, best = savings[-1], cheapest[-1]
        previous, current = positions[first - 1], positions[first]
        cost = costs[slots - first + 1]
        gap_cost = cost(current - previous)
        for j in range(first, slots - 1):
            following = positions[j + 1]
            fewer_slots_cost = costs[slots - j]
            right_cost, merged = cost(following - current), following - previous
            loss = (cost(merged) - gap_cost - right_cost - saved, -merged, j)
            if loss < best:
                best = loss
            gap_cost = fewer_slots_cost(following - current)
            saved += right_cost - gap_cost
            savings.append(saved)
            cheapest.append(best)
            previous, current, cost = current, following, fewer_slots_cost

    def _schedule_next(self, n: int) -> None:
        """Find the step at which the cheapest loss pays off; n is the last stored position."""
        cost = self._costs[2]
        inner, inner_gap, inner_index = self._cheapest[-1]
        inner += self._savings[-1]
        last_gap = n - self.positions[-2]
        last_cost = cost(last_gap)

        def losses(length: int) -> tuple[int, int]:
            # A gap of `length` steps after n has two slots if an inner position is discarded.
            return inner + cost(length), cost(last_gap + length) - last_cost

        def due(length: int) -> bool:
            return min(losses(length)) <= length * (length + 1) // 2

        # Restarting from n alone grows faster than either loss, so once due it stays due.
        high = 1
        while not due(high):
            high *= 2
        length = bisect_left(range(high), True, lo=high // 2 + 1, key=due)
        inner_loss, last_loss = losses(length)
        self._next = n + length
        last = (last_loss, -last_gap - length) < (inner_loss, inner_gap)
        self._next_discard = self._slots - 1 if last else inner_index

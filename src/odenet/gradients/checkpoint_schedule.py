"""Where to keep states when steps whose number is not known in advance are to be reversed.

A reverse pass needs the state before each step, last step first. With at most K states held (the initial one
included), the other states are recomputed by advancing from held ones. A step that is taken directly from its held
start, once, with its graph, and then differentiated is not an advance and is not counted here.

The counts are those of A. Griewank and A. Walther, "Algorithm 799: revolve" (ACM TOMS 26(1), 2000); the online
setting, one forward sweep of unknown length that may only keep the state at hand, is that of P. Stumm and A. Walther,
"New algorithms for optimal online checkpointing" (SIAM J. Sci. Comput. 32(2), 2010).

After a sweep of N steps that left the positions 0 = p_0 < p_1 < ... the gaps between them are reversed from the last
to the first. Every later position is released by then, so gap i has K - i slots, and the sweep's placement costs
sum_i reversal_cost(p_(i+1) - p_i, K - i) recomputed steps. `OnlineSchedule` chooses the positions, `split` does the
rest.
"""

from bisect import bisect_left
from math import comb
from sys import maxsize

_NEVER = maxsize


def beta(slots: int, repetitions: int) -> int:
    """The most steps that `slots` held states, the start included, reverse at `repetitions` advances over each.

    It is binomial(slots + repetitions, slots), and 0 for a negative number of repetitions.
    """
    return comb(slots + repetitions, slots) if repetitions >= 0 else 0


def _repetitions(steps: int, slots: int) -> int:
    """The least r with beta(slots, r) >= steps; the count grows like steps ** (1 / slots), so the loop is short."""
    if slots == 1:
        return max(steps - 1, 0)
    repetitions, reach = 0, 1
    while reach < steps:
        repetitions += 1
        reach = reach * (slots + repetitions) // repetitions
    return repetitions


def reversal_cost(steps: int, slots: int) -> int:
    """The least number of advances that reverses `steps` steps from a held start, in `slots` slots, it included.

    With r the least number for which beta(slots, r) >= steps it is r * steps - beta(slots + 1, r - 1): convex and
    piecewise linear in the steps, for each step beyond beta(slots, r - 1) costs r advances (Griewank and Walther).
    """
    repetitions = _repetitions(steps, slots)
    return repetitions * steps - beta(slots + 1, repetitions - 1)


def first_checkpoint(steps: int, slots: int) -> int:
    """How far to advance first, to reverse two or more steps from a held start at `reversal_cost`.

    The state reached, j steps on, is kept in a slot; the steps after it are reversed with one slot fewer, then it is
    released and the j steps before it have all the slots again. With one slot nothing can be kept: j = steps - 1 is
    where the last step begins, and it is taken from the state at hand. Both parts have to stay in the range where a
    further step costs r advances less one and r, which leaves an interval; this is its lower end.
    """
    if slots == 1:
        return steps - 1
    repetitions = _repetitions(steps, slots)
    return max(beta(slots, repetitions - 2), steps - beta(slots - 1, repetitions), 1)


def optimal_recomputation(steps: int, slots: int) -> int:
    """The least sum over gaps (see the module) after a forward sweep of `steps` steps, had their number been known.

    It is reversal_cost(steps + 1, slots) - steps: to reverse one step more, the first pass is a sweep over all steps
    but that last one, which is reversed from the state at hand; what remains is the placement the sweep left.
    """
    return reversal_cost(steps + 1, slots) - steps if steps > 0 else 0


class _ReversalCost:
    """`reversal_cost` for one number of slots, by looking up a table that grows with the steps asked for."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._reach = [1]  # beta(slots, r)
        self._offset = [0]  # beta(slots + 1, r - 1): the sum of the reaches before

    def __call__(self, steps: int) -> int:
        reach = self._reach
        while reach[-1] < steps:
            self._offset.append(self._offset[-1] + reach[-1])
            reach.append(reach[-1] * (self._slots + len(reach)) // len(reach))
        repetitions = bisect_left(reach, steps)
        return repetitions * steps - self._offset[repetitions]


class OnlineSchedule:
    """Which states to keep in a forward sweep of unknown length, never more than `slots` of them.

    The rule is greedy: the state at hand replaces the position whose loss costs least, as soon as that would not
    make a sweep of one step more dearer to reverse than leaving all as it is; among equally cheap losses, that which
    leaves the largest gap. Storing a little later was better with some slots and worse with others; weighing a loss
    by what the gaps of a larger sweep need was worse.

    Recomputed steps against `optimal_recomputation`, the worst of all sweeps of up to 5000 steps: 1.22 with 2 slots,
    1.10 with 3, 1.08 with 4, 1.07 with 5, 1.03 with 8, 1.056 with 13 (the most of 6 to 32), 1.04 with 20, 1.002 with
    32, 1.0005 with 64, and 1 with one slot or, with any number, up to beta(slots, 2) - 1 steps. The total work (sweep,
    recomputation, reversal) is at most 1.043 of the optimum from 4 slots on. No rule does much better with few slots:
    by exhaustive search each is above 1.08 with 3, 1.07 with 4 and 1.05 with 5 slots within 22 steps. With 10 to 30
    slots the worst sweeps are those of about beta(slots, r) steps, where every gap would have to be as long as it may
    be, and gaps merged from equal ones fall short of that.

    A keep takes time in proportion to the positions after the one lost; other calls only compare two numbers.
    """

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"a schedule needs at least one slot, for the initial state; got {slots}")
        self.positions: list[int] = []
        self._slots = slots
        self._next = 0  # the next step whose state is kept
        self._next_discard: int | None = None  # the index of the position discarded for it
        self._opening = 1  # where the opening phase discards; `slots` once it is over
        self._costs = [_ReversalCost(count) for count in range(slots + 1)]  # by number of slots; that for 0 is not used
        # By index j: what one slot more would save in the gaps 1 to j; and the cheapest loss among the positions 1
        # to j as (cost less a constant, minus the gap it leaves, index).
        self._savings = [0]
        self._cheapest = [(_NEVER, 0, 0)]

    def offer(self, n: int) -> tuple[bool, int | None]:
        """Whether to keep the state at n, and which held position to discard first (None: there is room).

        To be called for n = 0, 1, 2, ..., each time before step n is taken.
        """
        if n < self._next:
            return False, None
        lost = self._next_discard
        discarded = None if lost is None else self.positions.pop(lost)
        self.positions.append(n)
        self._plan(n, lost)
        return True, discarded

    def _plan(self, n: int, lost: int | None) -> None:
        """Fix the next state to keep and the position it replaces, the state at n having been kept for `lost`."""
        positions, slots = self.positions, self._slots
        if len(positions) < slots:
            self._next = n + 1
            return
        if slots == 1:
            self._next = _NEVER
            return
        if self._opening < slots:
            # While two repetitions suffice, filling the gaps from the front, each up to beta(slots it has, 1), is
            # optimal at every step (Stumm and Walther), and what the search below would find, at less work.
            while (j := self._opening) < slots:
                end = positions[j + 1] if j + 1 < slots else n + 1
                if end - positions[j - 1] <= beta(slots - j + 1, 1):
                    self._next, self._next_discard = n + 1, j
                    return
                self._opening += 1
            lost = None
        self._update_losses(1 if lost is None else max(lost - 1, 1))
        self._schedule_next(n)

    def _update_losses(self, first: int) -> None:
        """Bring the losses up to date from index `first` on; a loss changes nothing about those well before it."""
        positions, costs, slots = self.positions, self._costs, self._slots
        savings, cheapest = self._savings, self._cheapest
        del savings[first:], cheapest[first:]
        saved, best = savings[-1], cheapest[-1]
        before, here = positions[first - 1], positions[first]
        cost = costs[slots - first + 1]
        gap_cost = cost(here - before)
        for j in range(first, slots - 1):
            after = positions[j + 1]
            fewer = costs[slots - j]
            own, left = cost(after - here), after - before
            loss = (cost(left) - gap_cost - own - saved, -left, j)
            if loss < best:
                best = loss
            gap_cost = fewer(after - here)
            saved += own - gap_cost
            savings.append(saved)
            cheapest.append(best)
            before, here, cost = here, after, fewer

    def _schedule_next(self, n: int) -> None:
        """Find the step at which the cheapest loss is worth it, the state at n being the last one held."""
        cost = self._costs[2]
        inner, inner_left, inner_index = self._cheapest[-1]
        inner += self._savings[-1]
        last_gap = n - self.positions[-2]
        last_cost = cost(last_gap)

        def losses(length: int) -> tuple[int, int]:
            # The gap after n, once it has `length` steps, has two slots if an inner position is lost.
            return inner + cost(length), cost(last_gap + length) - last_cost

        def due(length: int) -> bool:
            return min(losses(length)) <= length * (length + 1) // 2

        # Restarting from n alone grows faster than either loss, so what is due stays due.
        high = 1
        while not due(high):
            high *= 2
        length = bisect_left(range(high), True, lo=high // 2 + 1, key=due)
        inner_loss, last_loss = losses(length)
        self._next = n + length
        last = (last_loss, -last_gap - length) < (inner_loss, inner_left)
        self._next_discard = self._slots - 1 if last else inner_index

"""Random numbers: the states of the generators that f may draw from, kept and set again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

GeneratorStates = tuple[Tensor, ...]


class Generators:
    """PyTorch's own generators, of the CPU and of a state's device, and those that f holds."""

    def __init__(self, device: torch.device, held: Sequence[torch.Generator] = ()) -> None:
        self.device, self.user_generators = device, tuple(held)

    def get_states(self) -> GeneratorStates:
        found = [torch.get_rng_state()]
        if self.device.type == "cuda":
            found.append(torch.cuda.get_rng_state(self.device))
        elif self.device.type == "mps":
            found.append(torch.mps.get_rng_state())
        return (*found, *(x.get_state() for x in self.user_generators))

    def set_states(self, states: GeneratorStates) -> None:
        first, *others = states
        torch.set_rng_state(first)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(others.pop(0), self.device)
        elif self.device.type == "mps":
            torch.mps.set_rng_state(others.pop(0))
        for generator, state in zip(self.user_generators, others, strict=True):
            generator.set_state(state)

    @contextmanager
    def with_states(self, states: GeneratorStates | None) -> Iterator[None]:
        """The numbers drawn here are those that were drawn from `states`; outside it is as if none had been."""
        if states is None:
            yield
            return
        before = self.get_states()
        self.set_states(states)
        try:
            yield
        finally:
            self.set_states(before)


def same_states(a: GeneratorStates, b: GeneratorStates) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class DrawsRandomNumbers:
    """What draws random numbers, where it does: those of a step are drawn again where it is taken again.

    generators: that it may draw from. random: it has drawn. first_states: before its first evaluation.
    """

    generators: Generators | None = None
    random = False
    first_states: GeneratorStates | None = None

    @property
    def initial_random_states(self) -> GeneratorStates | None:
        """Those from which f drew at its first evaluation, where it draws random numbers."""
        return self.first_states if self.random else None

    def random_states(self) -> GeneratorStates | None:
        """Those of the generators that f draws from, where it does."""
        return self.generators.get_states() if self.random and self.generators is not None else None

    def set_random_states(self, states: GeneratorStates | None) -> None:
        """f draws its next numbers from `states`."""
        if states is not None and self.generators is not None:
            self.generators.set_states(states)

    def with_random_states(self, states: GeneratorStates | None) -> AbstractContextManager[object]:
        """f draws the numbers here that it drew from `states`; None: where it draws none."""
        if states is None or self.generators is None:
            return nullcontext()
        return self.generators.with_states(states)

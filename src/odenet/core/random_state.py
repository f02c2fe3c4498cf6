"""Random numbers: saves and restores the states of the generators that f may draw from."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

GeneratorStates = tuple[Tensor, ...]


class Generators:
    """PyTorch's default generators, of the CPU and of the state's device, and the generators that f can reach."""

    def __init__(self, device: torch.device, user_generators: Sequence[torch.Generator] = ()) -> None:
        self.device, self.user_generators = device, tuple(user_generators)

    def get_states(self) -> GeneratorStates:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        elif self.device.type == "mps":
            states.append(torch.mps.get_rng_state())
        return (*states, *(x.get_state() for x in self.user_generators))

    def set_states(self, states: GeneratorStates) -> None:
        cpu_state, *remaining = states
        torch.set_rng_state(cpu_state)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(remaining.pop(0), self.device)
        elif self.device.type == "mps":
            torch.mps.set_rng_state(remaining.pop(0))
        for generator, state in zip(self.user_generators, remaining, strict=True):
            generator.set_state(state)

    @contextmanager
    def with_states(self, states: GeneratorStates | None) -> Generator[None]:
        """A context that draws from `states`, and restores the present states at its end; None changes nothing."""
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
    """Base of a function that may draw random numbers: a replay of a step draws the same numbers again.

    generators: those that it may draw from; None before the first evaluation. random: the first evaluation drew
    numbers. first_states: the states before the first evaluation.
    """

    generators: Generators | None = None
    random = False
    first_states: GeneratorStates | None = None

    @property
    def initial_random_states(self) -> GeneratorStates | None:
        """The generators' states before the first evaluation; None if f draws no numbers."""
        return self.first_states if self.random else None

    def random_states(self) -> GeneratorStates | None:
        """The generators' present states; None if f draws no numbers."""
        return self.generators.get_states() if self.random and self.generators is not None else None

    def set_random_states(self, states: GeneratorStates | None) -> None:
        """Let f draw its next numbers from `states`; None changes nothing."""
        if states is not None and self.generators is not None:
            self.generators.set_states(states)

    def with_random_states(self, states: GeneratorStates | None) -> AbstractContextManager[object]:
        """A context in which f draws the numbers that it drew from `states`; None changes nothing."""
        if states is None or self.generators is None:
            return nullcontext()
        return self.generators.with_states(states)

"""Ways to differentiate a solve: the `Gradient` classes that `solve(gradient=...)` takes by name or as instances.

`discrete` (default), `backprop`, `reversible` and `forward` give the exact gradient of the numerical solution;
`adjoint` and `gauss` solve the continuous adjoint ODE, to its tolerances. Without grad mode, under forward-mode
autograd and inside `torch.func` transforms every gradient is bypassed: PyTorch differentiates the solver's own
operations (`gradient_bypassed` in gradient.py).

A solve with gradient="discrete":

1. discrete.py: `Discrete.run` chooses what is stored: all states and graphs, or checkpoints (memory_budget.py).
2. taped_solve.py: `solve_with_tape` solves a detached copy of the problem. The tape (engine/tape.py) records each
    accepted step; state_store.py stores its initial state or graph, at positions from checkpoint_schedule.py.
3. custom_vjp.py: `custom_vjp` attaches the outputs to the inputs, with the backward pass as their VJP.
4. backward_pass.py: `BackwardPass.run` takes the steps in reverse order; `TapeBackwardPass` in discrete.py replays each
    one (step_graph.py) and computes its VJP. batch_segments.py: steps in which some samples had left the batch.

A solve with gradient="adjoint":

1. adjoint.py: `Adjoint`, a `ContinuousAdjoint` (continuous_adjoint.py), whose `run` solves a detached copy.
2. custom_vjp.py attaches the outputs, as above.
3. continuous_adjoint.py: `AdjointSolve.run` solves the adjoint ODE (adjoint_field.py) backwards from output to output
    and adds the cotangent of each; quadrature.py integrates the gradient of parameters along the way.

After any solve, api/solve.py detaches failed samples (failed_samples.py) and makes missing gradients zero
(zero_gradients.py).
"""

from .adjoint import Adjoint
from .backprop import Backprop
from .continuous_adjoint import ContinuousAdjoint
from .discrete import Discrete
from .forward_mode import Forward
from .gauss_adjoint import GaussAdjoint
from .gradient import Gradient
from .reversible import Reversible

_ALL = (Discrete, Backprop, Adjoint, GaussAdjoint, Reversible, Forward)

GRADIENTS: dict[str, type[Gradient]] = {gradient.name: gradient for gradient in _ALL}

__all__ = [
    "GRADIENTS",
    "Adjoint",
    "Backprop",
    "ContinuousAdjoint",
    "Discrete",
    "Forward",
    "GaussAdjoint",
    "Gradient",
    "Reversible",
]

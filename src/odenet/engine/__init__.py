"""The engine: the loop that solves one problem forwards, whatever the method, the controller and the gradient.

One attempt at a step, file by file:

1. `problem.py` has a frozen `Problem`: f, y0, the times, the method, the controller, the tolerances. `loop.py` makes
   the first `State` (`start`) and repeats the attempt until every sample has ended (`run`).
2. `stop_tracker.py` says where the step has to end at the latest, the next stop time. A `HostStopTracker` holds Python
   numbers, for an eager joint solve; a `BatchStopTracker` tensors. Constant steps are planned ahead
   (`planned_steps.py`).
3. `try_step` (`advance.py`) puts together the `StepInput`, with f by its one-sided limits at jumps (`one_sided.py`),
   calls `Method.step`, and asks the controller for its `Decision` on the error ratio. The result is a `StepAttempt`
   (`step_attempt.py`). Wrappers of `try_step` record a graph (`tape.py`), end the step at an event
   (events/locator.py), call the caller's functions (`callbacks.py`) or inspect it (`stiffness.py`).
4. Observers (`observer.py`) see the attempt: `output_recorder.py` and `vmapped.py` record the outputs at ts (the rule
   for both is in `output_rule.py`), `dense_recorder.py` the polynomials that `dense_solution.py` evaluates, `tape.py`
   what a backward pass replays, `step_recorder.py` the steps themselves, `progress_reporter.py` reports progress.
5. `accept_or_reject` (`advance.py`) makes the next state; `counters.py` counts.
6. When enough samples have ended, the others go on as a smaller batch (`compaction.py`, `batch_index.py`).

`integrate.py` composes all this into one `NumericalSolution`. If a sample failed, `diagnose.py` says why.
"""

"""The step loop: a frozen problem, one attempt at a step, a loop that repeats it, observers that watch."""

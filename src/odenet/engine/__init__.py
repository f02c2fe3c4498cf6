"""The step loop: a frozen problem, one attempt at a step, a driver that repeats it, observers that watch."""

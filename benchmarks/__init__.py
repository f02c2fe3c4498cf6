"""Benchmarks of odenet, run from a checkout: `python -m benchmarks`."""

"""What several benchmarks use: timing, memory, child processes, tables, plots."""

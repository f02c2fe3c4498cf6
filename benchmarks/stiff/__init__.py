"""Work and precision on five stiff problems, beside SciPy and diffrax."""

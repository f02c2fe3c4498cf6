"""The public call: its arguments, their checks, and what it returns."""

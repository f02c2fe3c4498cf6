"""Continuous normalizing flows and flow matching."""

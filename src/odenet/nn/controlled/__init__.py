"""Controlled differential equations: models that a path through a series drives."""

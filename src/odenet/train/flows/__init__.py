"""Density estimation: what there is to learn a density from."""

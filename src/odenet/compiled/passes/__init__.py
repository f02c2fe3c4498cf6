"""Rewrites of recorded graphs: matrix products, saved products, column-major states, softplus."""

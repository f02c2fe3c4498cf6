"""Foundations of all layers: leaves, the vector field, captured tensors, norms, status codes, checks of arguments."""

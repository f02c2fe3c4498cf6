"""Solves inside `torch.compile`, `torch.export` and ONNX graphs of the caller's own model."""

"""What every layer stands on: leaves, lanes, the vector field, norms, status codes."""

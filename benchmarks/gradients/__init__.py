"""Memory, exactness, time and recomputation of every gradient."""

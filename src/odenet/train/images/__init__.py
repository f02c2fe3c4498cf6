"""Image data, and the comparison of the Neural ODE paper's networks."""

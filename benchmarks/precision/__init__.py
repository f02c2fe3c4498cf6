"""Work-precision diagrams of odenet's methods: error against evaluations and against time."""

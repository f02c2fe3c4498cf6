"""Work-precision diagrams of this library's methods: error against evaluations and against time."""

"""What models of series at irregular times must show: predictions from clinical data, classes, motions, spirals."""

"""What models of series at irregular times must show."""

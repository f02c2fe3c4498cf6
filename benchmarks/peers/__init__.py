"""odenet beside other libraries, from the same weights."""
